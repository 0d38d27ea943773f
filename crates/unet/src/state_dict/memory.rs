//! What loading takes: the weights that are used, and nothing of what lies beside them in the file.
//!
//! Anonymous memory is the whole process's, so that the measured part runs in a process of its own: this test's binary again.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{NESTED, StateDict};
use crate::Architecture;
use crate::architecture::PlainConvUnet;
use crate::torch::fixture::{Item, dict, save};

const FILE: &str = "MICROTOME_TEST_CHECKPOINT";

/// A network with more than 32 MiB of weights.
fn network() -> Architecture {
    let mut parameters: PlainConvUnet = crate::architecture::tests::tiny();
    parameters.features = vec![64, 384, 640];
    Architecture::PlainConvUnet(parameters)
}

/// Bytes of `/proc/self/status`.
fn anonymous() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}

/// How much more anonymous memory there is at most while `run` runs, looked at every few hundred microseconds.
fn growth(run: impl FnOnce()) -> u64 {
    let before = anonymous().unwrap();
    let (peak, done) = (AtomicU64::new(before), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                peak.fetch_max(anonymous().unwrap(), Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_micros(300));
            }
        });
        run();
        peak.fetch_max(anonymous().unwrap(), Ordering::Relaxed);
        done.store(true, Ordering::Release);
    });
    peak.into_inner() - before
}

#[test]
fn loading_takes_the_used_weights_and_little_more() {
    if anonymous().is_none() {
        microtome_testkit::skip("the system does not say what is anonymous memory (RssAnon)");
        return;
    }
    let weights = || {
        let tensor = |w: crate::network::WeightShape| {
            let count = w.shape.iter().product();
            (w.name, Item::Tensor(w.shape, vec![0.5; count]))
        };
        Item::Dict(network().network().weights().into_iter().map(tensor).collect())
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("checkpoint.pth");
    // As a training program leaves it: as much again for the optimizer.
    save(&file, &dict([("state_dict", weights()), ("optimizer", weights())]));
    let used = 4 * network().network().parameters();
    assert!(std::fs::metadata(&file).unwrap().len() > 2 * used && used > 32 << 20, "{used}");

    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--ignored", "state_dict::memory::measured_alone"])
        .env(FILE, &file)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    let growth = output.lines().find_map(|line| line.strip_prefix("growth ")?.parse::<u64>().ok());
    let growth = growth.unwrap_or_else(|| panic!("{output}{}", String::from_utf8_lossy(&child.stderr)));
    println!("{used} bytes of weights, {growth} bytes of memory");
    assert!((used..used + used / 20).contains(&growth), "{growth} bytes for {used} bytes of weights");
}

/// Run by the test above, with a file.
#[test]
#[ignore = "a part of another test"]
fn measured_alone() {
    let Some(file) = std::env::var_os(FILE) else { return };
    let mut loaded = None;
    let growth = growth(|| {
        let state = StateDict::open(Path::new(&file), &NESTED).unwrap();
        loaded = Some(state.weights(&network()).unwrap());
    });
    // The test runner's own words stand before it on the line.
    println!("\ngrowth {growth}");
    assert!(loaded.unwrap().values().all(|w| w.values.iter().all(|v| *v == 0.5)));
}
