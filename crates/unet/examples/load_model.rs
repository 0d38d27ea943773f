//! Loads a model and says how much memory that took: `cargo run --release -p microtome-unet --example load_model MODEL`.
//!
//! Memory is anonymous memory, looked at every millisecond: the weights that the network uses, at the width at which it computes. Files are
//! mapped, and clean pages of files are the system's to take back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use microtome_unet::{Model, ModelOptions};

/// Anonymous memory of this process in bytes, by `/proc/self/status`.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: load_model MODEL")?;
    let before = anonymous();
    let (peak, done) = (AtomicU64::new(before), AtomicBool::new(false));
    let start = Instant::now();
    let model = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                peak.fetch_max(anonymous(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let model = Model::open(&path, &ModelOptions::default());
        done.store(true, Ordering::Release);
        model
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let card = model.card();
    let weights = 4 * card.parameters * card.folds.len() as u64;
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let (after, peak) = (anonymous() - before, peak.into_inner() - before);
    println!("{}", card.architecture);
    println!(
        "{:.1} MB of weights; memory grew by {:.1} MB, at most {:.1} MB, in {seconds:.2} s",
        megabytes(weights),
        megabytes(after),
        megabytes(peak),
    );
    Ok(())
}
