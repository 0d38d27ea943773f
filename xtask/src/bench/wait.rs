//! Waiting for a child in the way that tells what it used, which the standard library does not.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::time::Duration;

/// What a process and those descendants that it waited for used, as the kernel counted it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    /// Processor time in the program itself.
    pub(super) user: Duration,
    /// Processor time in the kernel.
    pub(super) system: Duration,
    /// Bytes of the largest resident set of one process.
    pub(super) resident: u64,
    /// Bytes handed to the file system for writing.
    pub(super) written: u64,
}

/// Waits for the child's end. Takes it, because there is nothing left to wait for afterwards.
pub(super) fn wait(child: Child) -> io::Result<(ExitStatus, Usage)> {
    let pid = child.id() as libc::pid_t;
    let mut status = 0;
    // SAFETY: `rusage` is a plain C structure of integers, for which zeros are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live local variables of the types that wait4(2) writes. `child` is ours and nobody has waited for
    // it, so the process id is still its own.
    while unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    let usage = Usage {
        user: time(usage.ru_utime),
        system: time(usage.ru_stime),
        // getrusage(2): kilobytes, and blocks of 512 bytes.
        resident: usage.ru_maxrss as u64 * 1024,
        written: usage.ru_oublock as u64 * 512,
    };
    Ok((ExitStatus::from_raw(status), usage))
}
