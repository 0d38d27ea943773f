//! How much memory this process uses.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// The most memory that was used, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PeakMemory {
    /// Anonymous memory of this process, sampled every 20 ms while the run lasted. Slides are mapped read-only; beside this there are
    /// at most 32 MiB of written file pages that wait for the disk.
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
        let guard = StopOnDrop { done: &done, sampler: sampler.thread().clone() };
        let result = work();
        drop(guard);
        result
    });
    sample();
    let resident = status("VmHWM");
    (result, resident.map(|resident| PeakMemory { anonymous: anonymous.into_inner(), resident }))
}

struct StopOnDrop<'a> {
    done: &'a AtomicBool,
    sampler: std::thread::Thread,
}

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        self.sampler.unpark();
    }
}

/// A field of `/proc/self/status`, in bytes.
fn status(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|l| l.starts_with(field) && l[field.len()..].starts_with(':'))?;
    let kib: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

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
