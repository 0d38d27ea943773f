//! How much memory this process may use, and how much it does.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The memory that the system lets this process have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Allowance {
    /// Bytes.
    pub bytes: u64,
    /// What sets the limit.
    pub source: AllowanceSource,
}

/// What limits the memory of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AllowanceSource {
    /// The limit of the control group, or of one above it.
    ControlGroup,
    /// The memory of the machine.
    Machine,
    /// The system does not tell; 8 GiB are assumed.
    Unknown,
}

impl Allowance {
    /// What a run takes of it where nobody says otherwise: half, because the file pages of the slide want room, too, and so does
    /// whatever else runs.
    #[must_use]
    pub fn budget(&self) -> u64 {
        self.bytes / 2
    }
}

/// Asks the system: the smallest limit of the control groups that this process is in (version 1 or 2), or the machine's memory.
#[must_use]
pub fn allowance() -> Allowance {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let limit = limits(&groups).filter_map(|file| read(&file)?.trim().parse::<u64>().ok()).min();
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| kilobytes(&text, "MemTotal"));
    match (limit, machine) {
        // Without a limit, version 1 states the largest number of pages there could be.
        (Some(limit), machine) if machine.is_none_or(|machine| limit < machine) => {
            Allowance { bytes: limit, source: AllowanceSource::ControlGroup }
        }
        (_, Some(machine)) => Allowance { bytes: machine, source: AllowanceSource::Machine },
        _ => Allowance { bytes: 8 << 30, source: AllowanceSource::Unknown },
    }
}

/// The files that hold the limits of the groups of `/proc/self/cgroup`, and of those above them.
fn limits(groups: &str) -> impl Iterator<Item = PathBuf> {
    groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { return Vec::new() };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            c if c.split(',').any(|c| c == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => return Vec::new(),
        };
        let group = Path::new(group.trim_start_matches('/')).to_owned();
        group.ancestors().map(|group| Path::new(root).join(group).join(file)).collect()
    })
}

/// The most memory that was used, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeakMemory {
    /// Anonymous memory of this process, sampled every 20 ms while the run lasted. Slides are mapped read-only; beside this there are
    /// at most 16 MiB of written file pages that wait for the disk.
    pub anonymous: u64,
    /// Resident set, as the kernel keeps it since the process began: it includes pages of mapped slides, which the
    /// kernel drops when memory is short.
    pub resident: u64,
}

/// Samples memory on a thread of its own while `work` runs. `None` where the system does not tell (it takes Linux's `/proc`).
pub(crate) fn watch<T>(work: impl FnOnce() -> T) -> (T, Option<PeakMemory>) {
    let anonymous = AtomicU64::new(status("RssAnon").unwrap_or(0));
    let done = AtomicBool::new(false);
    let sample = || {
        if let Some(bytes) = status("RssAnon") {
            anonymous.fetch_max(bytes, Ordering::Relaxed);
        }
    };
    let result = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                sample();
                std::thread::park_timeout(Duration::from_millis(20));
            }
        });
        // A panic in `work` must still end the sampler, or the scope would wait for it for ever.
        let guard = StopOnDrop { done: &done, thread: sampler.thread().clone() };
        let result = work();
        drop(guard);
        result
    });
    sample();
    let resident = status("VmHWM");
    (result, resident.map(|resident| PeakMemory { anonymous: anonymous.into_inner(), resident }))
}

/// Tells a thread that looks at `done` now and then, and sleeps in between, that it is over: also where whoever tells it panics, so that nobody waits for
/// it for ever.
pub(crate) struct StopOnDrop<'a> {
    pub(crate) done: &'a AtomicBool,
    pub(crate) thread: std::thread::Thread,
}

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        self.thread.unpark();
    }
}

/// A field of `/proc/self/status`, in bytes.
fn status(field: &str) -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/self/status").ok()?, field)
}

/// A field of such a file: `NAME:   123 kB`.
fn kilobytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.starts_with(field) && l[field.len()..].starts_with(':'))?;
    let kib: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_the_group_and_of_all_above() {
        let files = |groups: &str| limits(groups).map(|p| p.display().to_string()).collect::<Vec<_>>();
        let v2 = ["/sys/fs/cgroup/a/b/memory.max", "/sys/fs/cgroup/a/memory.max", "/sys/fs/cgroup/memory.max"];
        assert_eq!(files("0::/a/b\n"), v2);
        let v1 = ["/sys/fs/cgroup/memory/j/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
        assert_eq!(files("12:cpu,cpuacct:/x\n9:memory:/j\n"), v1);
        assert!(files("nonsense").is_empty());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_allows_something() {
        let allowed = allowance();
        assert_ne!(allowed.source, AllowanceSource::Unknown);
        assert!(allowed.bytes > 64 << 20 && allowed.budget() == allowed.bytes / 2, "{allowed:?}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_large_buffer_shows() {
        let ((), peak) = watch(|| {
            let buffer = vec![1u8; 64 << 20];
            std::thread::sleep(Duration::from_millis(60));
            assert_eq!(buffer.iter().step_by(4096).map(|&b| u64::from(b)).sum::<u64>(), 16384);
        });
        assert!(peak.is_some_and(|p| p.anonymous >= 64 << 20 && p.resident >= 64 << 20), "{peak:?}");
    }
}
