//! What is said where the file under a map goes away.
//!
//! Slides are mapped into memory (`microtome::io::bytes::Map` states what that relies on). Where a page of one is gone when it is touched,
//! because the file was truncated a moment ago or its disk or network mount has failed, the system sends `SIGBUS`, and there is no
//! way back into the code that touched it. The journal says what is durable, so the process may end where it is.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// One line, as all errors are.
const SENTENCE: &[u8] =
    b"error: a file has become shorter while it was read, or its disk or network mount has failed; \
    with the file as it was, the same command goes on\n";

/// The code of a slide that failed, as in the table of exit codes.
const CODE: libc::c_int = 4;

/// From now on `SIGBUS` for a page that is gone ends the process with one sentence on stderr and exit code 4.
pub(crate) fn explain() {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = handle;
    // SAFETY: an all-zero sigaction is a valid value, of which every field that counts is set before it is used; the handler has the
    // signature that SA_SIGINFO asks for, and does only what a signal handler may. Should the call fail, the signal ends the process
    // as it always did, without the sentence.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        // The standard library gives its threads a second stack for such handlers.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
    }
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    static SAID: AtomicBool = AtomicBool::new(false);
    // SAFETY: `info` is null or what the system says of this signal; `sigaction`, `raise`, `write`, `pause` and `_exit` are async-signal-safe (POSIX.1-2017,
    // 2.4.3), and an atomic that is free of locks may be used in a handler; the sentence lives as long as the process.
    unsafe {
        // Anything but a page that is not there, such as memory that has failed or a signal that somebody sent, is not for us to explain: where
        // this handler returns, the signal comes again and does what it does by default.
        if info.is_null() || (*info).si_code != libc::BUS_ADRERR {
            let mut default: libc::sigaction = std::mem::zeroed();
            default.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(signal, &raw const default, ptr::null_mut());
            libc::raise(signal);
            return;
        }
        // Several threads read a slide: one speaks, and ends the others while they wait.
        while SAID.swap(true, Ordering::Relaxed) {
            libc::pause();
        }
        libc::write(libc::STDERR_FILENO, SENTENCE.as_ptr().cast(), SENTENCE.len());
        libc::_exit(CODE);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use microtome::io::bytes::{ByteSource, Map};

    use super::*;

    const CHILD: &str = "MICROTOME_TEST_OF_SIGBUS";

    /// The process that dies is this test, started once more.
    #[test]
    fn a_page_that_is_gone_ends_the_process_with_a_sentence() {
        if let Some(path) = std::env::var_os(CHILD) {
            explain();
            let map = Map::open(path.as_ref()).unwrap();
            let lent = map.read_at(0..map.len()).unwrap();
            std::fs::OpenOptions::new().write(true).open(map.path()).unwrap().set_len(0).unwrap();
            // More threads than one, as when a slide is read.
            let sum = |bytes: &[u8]| bytes.iter().map(|&b| u64::from(b)).sum::<u64>();
            let sums = std::thread::scope(|scope| {
                let sums: Vec<_> = lent.chunks(1 << 16).map(|part| scope.spawn(move || sum(part))).collect();
                sums.into_iter().map(|sum| sum.join().unwrap()).sum::<u64>()
            });
            unreachable!("the pages were read: {sums}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "bus::tests::a_page_that_is_gone_ends_the_process_with_a_sentence", "--nocapture"]);
        let output = again.env(CHILD, &path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(CODE), "{said}");
        assert_eq!(said.lines().filter(|line| line.as_bytes() == SENTENCE.trim_ascii_end()).count(), 1, "{said}");
    }

    /// A signal that somebody sends is no page that is gone.
    #[test]
    fn another_sigbus_does_what_it_does_by_default() {
        if std::env::var_os(CHILD).is_some() {
            explain();
            let me = std::process::id().to_string();
            Command::new("kill").args(["-BUS", &me]).status().unwrap();
            std::thread::sleep(std::time::Duration::from_secs(20));
            return;
        }
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "bus::tests::another_sigbus_does_what_it_does_by_default", "--nocapture"]);
        let status = again.env(CHILD, "").output().unwrap().status;
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGBUS), "{status}");
    }
}
