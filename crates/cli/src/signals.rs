//! Ctrl-C and polite termination.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};

/// How long after a signal the process may live: who sends one waits for 20 to 30 seconds, and kills.
const GRACE: Duration = Duration::from_secs(17);
const LOOK: Duration = Duration::from_millis(200);

static RECEIVED: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// From now on the first SIGINT or SIGTERM is only noted; a second one ends the process at once, and so does time.
pub(crate) fn watch() -> anyhow::Result<()> {
    let received = RECEIVED.get_or_init(Arc::default);
    let again = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&again))?;
        signal_hook::flag::register(signal, Arc::clone(&again))?;
        signal_hook::flag::register_usize(signal, Arc::clone(received), signal as usize)?;
    }
    // Requests to an object store, for one, are made again for minutes and cannot be stopped. What is finished is journalled, so that ending
    // loses nothing of it.
    std::thread::Builder::new().name("signals".into()).spawn(|| {
        while exit_code().is_none() {
            std::thread::sleep(LOOK);
        }
        std::thread::sleep(GRACE);
        crate::failure::say("error: stopped: what was under way did not end in time");
        std::process::exit(i32::from(exit_code().unwrap_or(1)));
    })?;
    Ok(())
}

/// True once a signal has come.
pub(crate) fn received() -> bool {
    RECEIVED.get().is_some_and(|r| r.load(Ordering::Relaxed) != 0)
}

/// 128 plus the number of the signal that came.
pub(crate) fn exit_code() -> Option<u8> {
    let signal = RECEIVED.get()?.load(Ordering::Relaxed);
    (signal != 0).then_some(128 + signal as u8)
}
