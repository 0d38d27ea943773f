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

/// The machine, its load at this moment, and the version of the program.
pub(super) fn describe(workspace: &Workspace) -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let field = |key: &str| {
        let line = processors.lines().find(|line| line.split(':').next().is_some_and(|k| k.trim() == key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let flags = field("flags").or_else(|| field("Features")).unwrap_or_default();
    let extensions: Vec<&str> = EXTENSIONS.into_iter().filter(|e| flags.split(' ').any(|flag| flag == *e)).collect();
    json!({
        "processor": field("model name").unwrap_or_else(|| std::env::consts::ARCH.into()),
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
