//! What the figures were measured on.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::sampler::bytes;
use crate::shell;
use crate::workspace::Workspace;

/// Extensions of the instruction set that decide which kernels run.
const EXTENSIONS: [&str; 7] = ["avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd"];

/// How long all processors together were busy since the machine started, in steps of 10 ms; time that the host of a virtual machine gave
/// to others counts.
pub(super) fn busy() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    // proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal, in ticks of which x86 and ARM count 100 a second.
    let ticks = text.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8);
    let idle = [3, 4];
    let busy = ticks.enumerate().filter(|(index, _)| !idle.contains(index)).filter_map(|(_, t)| t.parse::<u64>().ok());
    Duration::from_millis(busy.sum::<u64>() * 10)
}

/// Processor time of all threads of a process so far, without that of its children; none when it has ended.
pub(super) fn cpu(pid: u32) -> Duration {
    ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default())
}

/// Time in the program and in the kernel, by the text of `/proc/PID/stat`.
fn ticks(stat: &str) -> Duration {
    // proc_pid_stat(5): the second field is the name in brackets, which may hold anything; the 14th and 15th are ticks as above.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    Duration::from_millis(fields.skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum::<u64>() * 10)
}

/// True if the processor has one of these extensions, by Linux's names.
pub(super) fn has_any(extensions: &[&str]) -> bool {
    let flags = flags(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    flags.split(' ').any(|flag| extensions.contains(&flag))
}

/// Extensions of the first processor.
fn flags(processors: &str) -> String {
    field(processors, "flags").or_else(|| field(processors, "Features")).unwrap_or_default()
}

/// The first value of that name in `/proc/cpuinfo`.
fn field(processors: &str, key: &str) -> Option<String> {
    let line = processors.lines().find(|line| line.split(':').next().is_some_and(|k| k.trim() == key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The machine, its load at this moment, and the version of the program.
pub(super) fn describe(workspace: &Workspace) -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let flags = flags(&processors);
    let extensions: Vec<&str> = EXTENSIONS.into_iter().filter(|e| flags.split(' ').any(|flag| flag == *e)).collect();
    json!({
        "processor": field(&processors, "model name").unwrap_or_else(|| std::env::consts::ARCH.into()),
        "extensions": extensions,
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory_bytes": bytes(&read("/proc/meminfo"), "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load_average_before": read("/proc/loadavg").split(' ').next().and_then(|load| load.parse::<f64>().ok()),
        "commit": commit(workspace),
    })
}

/// The commit that is checked out, with a mark where files differ from it; nothing outside a git repository.
fn commit(workspace: &Workspace) -> Option<String> {
    let git = |arguments: &[&str]| shell::read(Command::new("git").arg("-C").arg(&workspace.root).args(arguments)).ok();
    let commit = git(&["rev-parse", "--short=10", "HEAD"])?;
    // What the benches themselves write is no change of the program.
    let changed = git(&["status", "--porcelain", "--", ".", ":!docs"])?;
    Some(format!("{}{}", commit.trim(), if changed.is_empty() { "" } else { ", with changes" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_brackets_and_spaces() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194304 100 0 0 0 7 3 50 60 20 0 1 0 100 0 0";
        assert_eq!(ticks(stat), Duration::from_millis(100));
        assert_eq!(ticks(""), Duration::ZERO);
        assert!(cpu(std::process::id()) < Duration::from_hours(1));
    }

    #[test]
    fn extensions_are_whole_words_of_the_first_processor() {
        let processors = "processor : 0\nflags\t\t: fpu avx2 avx512_bf16x\n\nprocessor : 1\nflags : avx512_bf16\n";
        assert_eq!(flags(processors), "fpu avx2 avx512_bf16x");
        assert!(!has_any(&[]));
    }
}
