//! One heap for all threads.
//!
//! glibc gives each thread a heap of its own, and what one of them has freed serves no other: with a pipeline of eight threads that is up to
//! a quarter more memory than is in use. Large buffers are all that this program allocates often, so one heap is as fast.
#![allow(unsafe_code)]

/// From now on all threads share one heap. To be called before there are any.
pub(crate) fn share() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` takes two numbers and touches nothing of ours; no other thread runs yet. If it refuses, memory stays as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
