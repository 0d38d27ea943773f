//! What the figures were measured on.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::sampler::bytes;
use crate::shell;
use crate::workspace::Workspace;

/// Extensions of the instruction set that decide which kernels run.
const EXTENSIONS: [&str; 7] = ["avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd"];

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
