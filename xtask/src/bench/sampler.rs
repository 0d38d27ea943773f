//! How much memory a process and its descendants hold, read from outside in Linux's `/proc`.
//!
//! The measure is anonymous memory plus dirty pages of mapped files: what the kernel cannot take back without writing it somewhere. Pages of files
//! that are written by `write` are nobody's memory in `/proc`, and are not in it. Clean pages of
//! mapped files, which make up the rest of a resident set, it drops when memory is short.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two looks at the anonymous memory.
const PAUSE: Duration = Duration::from_millis(10);
/// Between two looks at dirty file pages. For these the kernel walks the page tables, several milliseconds for each GiB, in which the
/// process must wait with some of its own requests for memory; they also change slowly.
const DIRTY_PAUSE: Duration = Duration::from_millis(100);

/// The most that was seen at one moment, in bytes, over a process and its descendants. A page that a fork shares counts once for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Peak {
    /// Anonymous memory and dirty file pages.
    pub(super) dirty: u64,
    /// Resident sets.
    pub(super) resident: u64,
    /// How often somebody looked.
    pub(super) samples: u64,
}

/// Looks every 10 ms until `done`.
pub(super) fn watch(pid: u32, done: &AtomicBool) -> Peak {
    let mut peak = Peak::default();
    let mut dirty_files = 0;
    let mut dirty_files_at: Option<Instant> = None;
    while !done.load(Ordering::Acquire) {
        let family = family(pid);
        if dirty_files_at.is_none_or(|at| at.elapsed() >= DIRTY_PAUSE) {
            dirty_files =
                family.iter().filter_map(|&pid| read(pid, "smaps_rollup")).map(|t| dirty_file_pages(&t)).sum();
            dirty_files_at = Some(Instant::now());
        }
        let statuses: Vec<String> = family.iter().filter_map(|&pid| read(pid, "status")).collect();
        let sum = |key| statuses.iter().filter_map(|text| bytes(text, key)).sum::<u64>();
        peak.dirty = peak.dirty.max(sum("RssAnon") + dirty_files);
        peak.resident = peak.resident.max(sum("VmRSS"));
        peak.samples += 1;
        std::thread::park_timeout(PAUSE);
    }
    peak
}

/// A process and its descendants.
fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        next += 1;
        let threads = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        let children = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
        family.extend(
            children.flat_map(|text| text.split_whitespace().filter_map(|c| c.parse().ok()).collect::<Vec<u32>>()),
        );
    }
    family
}

/// A file of a process; none when it has ended.
fn read(pid: u32, file: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).ok()
}

/// Dirty pages of files, in bytes, by the text of `smaps_rollup`.
///
/// `Shared_Dirty` and `Private_Dirty` include anonymous pages, all of which are dirty but those that the process gave back with
/// `MADV_FREE` (`LazyFree`): Linux, Documentation/filesystems/proc.rst.
fn dirty_file_pages(rollup: &str) -> u64 {
    let value = |key| bytes(rollup, key).unwrap_or(0);
    let anonymous = value("Anonymous").saturating_sub(value("LazyFree"));
    (value("Shared_Dirty") + value("Private_Dirty")).saturating_sub(anonymous)
}

/// The value of a line `Key:   123 kB`, in bytes.
pub(super) fn bytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `/proc/self/smaps_rollup` held in a Python 3.11 that had written each page of a shared mapping of a file, 64 MiB.
    const ROLLUP: &str = "\
Rss:               79580 kB
Pss_Dirty:         72884 kB
Shared_Clean:       2148 kB
Shared_Dirty:          0 kB
Private_Clean:      4548 kB
Private_Dirty:     72884 kB
Anonymous:          7348 kB
LazyFree:              0 kB
";

    #[test]
    fn dirty_pages_of_files_are_what_is_dirty_and_not_anonymous() {
        assert_eq!(dirty_file_pages(ROLLUP), 64 << 20);
        assert_eq!(dirty_file_pages(""), 0);
    }

    #[test]
    fn a_key_is_a_whole_word() {
        assert_eq!(bytes("RssAnon:\t    1234 kB\n", "RssAnon"), Some(1234 * 1024));
        assert_eq!(bytes("RssAnon:\t    1234 kB\n", "Rss"), None);
    }
}
