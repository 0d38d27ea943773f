//! One slide, several processes.
#![cfg(unix)]

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use microtome_testkit::tiff::{Container, TiffSlide};
use microtome_testkit::{Weights, small_package};

use crate::kills::begin;
use crate::{Place, content, microtome, run};

/// Two columns of shards, the second a narrow one, and five rows.
fn slide(place: &Place) -> std::path::PathBuf {
    let mut slide = TiffSlide::rgb(&[(2300, 4 * 2048 + 100)], |_, x, y, channel| {
        (60 + (x / 9 * 31 + y / 7 * 17 + (x / 3 * y / 5) % 23 * 5 + 50 * channel as u64) % 180) as u16
    });
    slide.container = Container::Big;
    let path = place.path("slide.tif");
    slide.write(&path).unwrap();
    path
}

fn part(slide: &Path, model: &Path, output: &Path, part: &str) -> Command {
    let mut command = begin(slide, model, output);
    command.args(["--part", part]);
    command
}

#[test]
fn four_workers_one_of_them_killed_leave_the_bytes_of_one() {
    let place = Place::new();
    let (slide, model) = (slide(&place), place.path("model"));
    small_package(&model, Weights::Plain);
    let [whole, output] = ["whole.ome.zarr", "mask.ome.zarr"].map(|name| place.path(name));
    run(&mut begin(&slide, &model, &whole)).ended(0);

    let machines = [("1", "384MiB"), ("2", "512MiB"), ("1", "1GiB"), ("3", "400MiB")];
    let mut workers: Vec<_> = machines
        .iter()
        .enumerate()
        .map(|(i, (threads, memory))| {
            let mut command = part(&slide, &model, &output, &format!("{i}/4"));
            command.args(["--threads", threads, "--memory", memory]);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    // The last one dies as soon as it has something to lose: its share are narrow shards, many of which are left then.
    let mut victim = workers.pop().unwrap();
    let journal = output.with_extension("zarr.run").join("part-3-of-4.jsonl");
    let lines = || std::fs::read_to_string(&journal).map_or(0, |text| text.lines().count());
    let begun = Instant::now();
    while lines() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(100), "nothing was noted");
        std::thread::sleep(Duration::from_millis(1));
    }
    victim.kill().unwrap();
    let ended = victim.wait_with_output().unwrap();
    assert_eq!(ended.status.signal(), Some(9), "{ended:?}");
    for worker in workers {
        let ended = worker.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    }
    run(begin(&slide, &model, &output).arg("--finish")).refused(2, &["mask.ome.zarr", "part 3 of 4 is not complete"]);
    run(microtome().arg("info").arg(&output)).refused(4, &["mask.ome.zarr"]);
    let again = run(part(&slide, &model, &output, "3/4").args(["--json"])).ended(0);
    let said: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
    let summary = &said["outcome"]["done"];
    assert_eq!(said["part"], serde_json::json!({ "index": 3, "of": 4 }));
    assert!(summary["resumed_shards"].as_u64() > Some(0), "{said}");
    let again = run(part(&slide, &model, &output, "0/4").args(["--json"])).ended(0);
    assert!(again.stdout.contains("already_done"), "{again:?}");
    run(begin(&slide, &model, &output).arg("--finish")).ended(0);
    assert!(content(&output) == content(&whole), "other bytes");
    let verified = run(microtome().arg("verify").arg(&output)).ended(0);
    assert!(verified.stdout.contains(" 0 faulty"), "{verified:?}");
    // Done is done, for everybody.
    for mut again in [begin(&slide, &model, &output), part(&slide, &model, &output, "2/4")] {
        run(&mut again).ended(0);
    }
    run(begin(&slide, &model, &output).arg("--finish")).ended(0);
}

#[test]
fn parts_that_cannot_be_are_refused() {
    let place = Place::new();
    let (slide, model) = (place.slide("slide.png"), place.path("model"));
    small_package(&model, Weights::Plain);
    let output = place.path("mask.ome.zarr");
    let before = place.content();
    for (value, words) in
        [("4/4", ["--part", "from 0 to 3"]), ("0/0", ["--part", "0 parts"]), ("two", ["--part", "I/N"])]
    {
        run(&mut part(&slide, &model, &output, value)).refused(2, &words);
    }
    for flag in ["--finish", "--overwrite", "--no-resume", "--dry-run"] {
        run(part(&slide, &model, &output, "0/2").arg(flag)).refused(2, &["--part", flag]);
    }
    run(part(&slide, &model, &output, "0/2").arg(&slide)).refused(2, &["one slide", "2"]);
    run(begin(&slide, &model, &output).arg("--finish")).refused(2, &["mask.ome.zarr", "no part"]);
    assert!(place.content() == before, "a refusal has left something");

    run(&mut part(&slide, &model, &output, "0/2")).ended(0);
    let before = place.content();
    run(&mut part(&slide, &model, &output, "0/3")).refused(5, &["mask.ome.zarr", "parts: 2 there, 3 here"]);
    run(part(&slide, &model, &output, "1/2").args(["--step-size", "0.75"]))
        .refused(5, &["of part 0/2: step:", "0.75 here"]);
    run(&mut begin(&slide, &model, &output)).refused(5, &["mask.ome.zarr", "parts: 2 there, none here"]);
    assert!(place.content() == before, "a refusal has changed something");
}
