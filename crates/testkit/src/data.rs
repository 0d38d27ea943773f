//! Real files that some tests read, and the tests that do without them.

use std::io::Write;
use std::path::{Path, PathBuf};

/// The path of a file or folder among the real files, or `None` where it is absent: the test has then been reported as
/// skipped and returns.
///
/// The folder is the one named by the environment variable `MICROTOME_DATA`, or `../shared/data` beside the workspace.
///
/// ```no_run
/// let Some(slide) = microtome_testkit::data("slides/svs/CMU-1-Small-Region.svs") else { return };
/// ```
#[must_use]
pub fn data(path: impl AsRef<Path>) -> Option<PathBuf> {
    let folder = std::env::var_os("MICROTOME_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"), PathBuf::from);
    let found = folder.join(path.as_ref());
    if found.exists() {
        return Some(found);
    }
    skip(&format!("{} is not there; MICROTOME_DATA says where real files are", found.display()));
    None
}

/// Reports that the running test skips itself: a line on stderr that starts with `SKIPPED: `, and the same in the file named by
/// `MICROTOME_SKIP_LOG`, with which `cargo xtask test` counts.
pub fn skip(reason: &str) {
    // The test harness names a test's thread after the test.
    let thread = std::thread::current();
    let program = std::env::current_exe().ok();
    let program = program.as_deref().and_then(Path::file_stem).map(|name| name.to_string_lossy());
    // Without the hash that cargo appends, so that the line stays the same from build to build.
    let program = program.as_deref().map_or("", |name| name.rsplit_once('-').map_or(name, |(name, _)| name));
    let line = format!("{program} {}: {reason}\n", thread.name().unwrap_or("main"));
    eprint!("SKIPPED: {line}");
    if let Some(log) = std::env::var_os("MICROTOME_SKIP_LOG") {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log);
        // One write of a short line: tests of several processes append without tearing each other's lines.
        if let Err(error) = log.and_then(|mut log| log.write_all(line.as_bytes())) {
            eprintln!("MICROTOME_SKIP_LOG: {error}");
        }
    }
}
