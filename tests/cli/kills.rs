//! Killed again and again, at random moments.
#![cfg(unix)]

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use microtome_testkit::tiff::{Container, TiffSlide};
use microtome_testkit::{Weights, small_package};

use crate::{Place, content, microtome, run};

/// How often at least.
const KILLS: usize = 50;

/// A slide that is high and narrow, so that each of its many shards is little work.
pub(crate) fn tower(place: &Place, name: &str, height: u32) -> std::path::PathBuf {
    let mut slide = TiffSlide::rgb(&[(192, height)], |_, x, y, channel| {
        (60 + (x / 9 * 31 + y / 7 * 17 + (x / 3 * y / 5) % 23 * 5 + 50 * channel as u64) % 180) as u16
    });
    slide.container = Container::Big;
    let path = place.path(name);
    slide.write(&path).unwrap();
    path
}

/// A run that notes every shard as soon as it can.
pub(crate) fn begin(slide: &Path, model: &Path, output: &Path) -> Command {
    let mut command = microtome();
    command.arg("segment").arg(slide).arg("-m").arg(model).arg("-o").arg(output);
    command.args(["--model-mpp", "native", "--tissue", "none", "--threads", "2", "--memory", "512MiB"]);
    command.args(["--sync-every", "0", "--quiet"]);
    command
}

#[test]
fn killed_fifty_times_a_run_ends_with_the_bytes_of_an_undisturbed_one() {
    let place = Place::new();
    let slide = tower(&place, "tower.tif", 60 * 2048);
    let model = place.path("model");
    small_package(&model, Weights::Plain);
    let whole = place.path("whole.ome.zarr");
    let start = Instant::now();
    run(&mut begin(&slide, &model, &whole)).ended(0);
    let undisturbed = start.elapsed();
    let expected = content(&whole);
    let shards = expected.keys().filter(|name| name.starts_with("0/c")).count();
    assert!(shards > 60, "{shards} files and folders of level 0");

    let seed = 20_u64;
    // Knuth's MMIX linear congruential generator.
    let mut state = seed;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / (1_u64 << 31) as f64
    };
    // So long that a few dozen lives make a run, whatever the machine.
    let longest = undisturbed / 7;
    let (mut kills, mut stores) = (0, 0);
    while kills < KILLS {
        stores += 1;
        let output = place.path(&format!("killed-{stores}.ome.zarr"));
        let before = kills;
        loop {
            // One that is never let live long enough would never end.
            let life = longest.mul_f64(random()) * if kills - before > 2 * KILLS { 20 } else { 1 };
            let (status, text) = lives(&mut begin(&slide, &model, &output), life);
            if status.signal() != Some(9) {
                assert_eq!(status.code(), Some(0), "seed {seed}, after {kills} kills: {text}");
                break;
            }
            kills += 1;
        }
        println!("seed {seed}: store {stores} is finished after {} kills", kills - before);
        assert!(content(&output) == expected, "seed {seed}: other bytes after {kills} kills");
        let verified = run(microtome().arg("verify").arg(&output)).ended(0);
        assert!(verified.stdout.contains(" 0 faulty"), "{verified:?}");
        let left: Vec<_> = content(&output.with_extension("zarr.run")).into_keys().collect();
        // Of a run that was killed between its last byte and its report, there is no report, or one that is half written.
        let ours = |name: &std::path::PathBuf| {
            let name = name.to_string_lossy();
            let half = name.starts_with("report.") && name.ends_with(".part");
            half || ["journal.jsonl", "report.html", "report.json"].contains(&&*name)
        };
        assert!(left.iter().all(ours), "{left:?}");
    }
    // Beside the stores and their folders there is nothing.
    let mut names: Vec<String> = std::fs::read_dir(place.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with("killed-") && !name.starts_with("whole."))
        .collect();
    names.sort();
    assert_eq!(names, ["model", "tower.tif"]);
    println!("seed {seed}: {kills} kills, {stores} stores; undisturbed {undisturbed:?}, in all {:?}", start.elapsed());
}

/// Lets a process live for so long, and kills it then; its end, and what it said.
fn lives(command: &mut Command, life: Duration) -> (ExitStatus, String) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let born = Instant::now();
    while born.elapsed() < life && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    // One that has ended by itself cannot be killed any more, and its status says so.
    child.kill().unwrap();
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    (child.wait().unwrap(), text)
}
