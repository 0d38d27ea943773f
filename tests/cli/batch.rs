//! Archives: a manifest, many slides, several processes, and what becomes of them.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use microtome_testkit::tiff::TiffSlide;
use microtome_testkit::{Weights, skip, small_package};
use serde_json::Value;

use crate::kills::tower;
use crate::signals::signal;
use crate::{Place, content, microtome, run};

/// A slide of a kind that takes no time; another one for each seed.
fn small(place: &Place, name: &str, seed: u64) -> PathBuf {
    let mut slide = TiffSlide::rgb(&[(300, 200)], move |_, x, y, channel| {
        ((x / 9 * 31 + y / 7 * 17 + seed * 41 + 50 * channel as u64) % 256) as u16
    });
    slide.resolution = Some((20_000.0, 20_000.0, 3));
    let path = place.path(name);
    slide.write(&path).unwrap();
    path
}

/// So many slides `s0`, `s1`, ...; number 1 is corrupt and number 2 is missing, if there are so many.
fn archive(place: &Place, count: u64) -> PathBuf {
    for i in (0..count).filter(|i| !matches!(i, 1 | 2)) {
        small(place, &format!("{i}.tif"), i);
    }
    if count > 1 {
        place.file("1.tif", "no slide");
    }
    manifest(place, count)
}

fn manifest(place: &Place, count: u64) -> PathBuf {
    let rows: String = (0..count).map(|i| format!("{i}.tif,s{i}\n")).collect();
    place.file("archive.csv", format!("slide,id\n{rows}"))
}

fn model(place: &Place) -> PathBuf {
    let model = place.path("model");
    if !model.exists() {
        small_package(&model, Weights::Plain);
    }
    model
}

fn batch(place: &Place, manifest: &Path, out: &str) -> Command {
    let mut command = microtome();
    command.arg("batch").arg(manifest).arg("-m").arg(model(place)).arg("-o").arg(place.path(out));
    command.args(["--model-mpp", "native", "--tissue", "none", "--threads", "2", "--memory", "512MiB"]);
    command.args(["--sync-every", "0", "--quiet"]);
    command
}

/// All stores below a folder, file by file.
fn stores(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut all = content(folder);
    all.retain(|name, _| name.ancestors().any(|part| part.extension().is_some_and(|ending| ending == "zarr")));
    all
}

fn events(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits until something is so.
pub(super) fn wait_for(child: &mut Child, what: impl Fn() -> bool) {
    let begun = Instant::now();
    while !what() {
        assert!(child.try_wait().unwrap().is_none(), "it ended early");
        assert!(begun.elapsed() < Duration::from_mins(1), "nothing happens");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn an_archive_is_worked_off_and_says_what_failed() {
    let place = Place::new();
    let manifest = archive(&place, 5);
    let ran = run(&mut batch(&place, &manifest, "out")).ended(3);
    assert_eq!(ran.stdout, "");
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(lines.len(), 3, "{ran:?}");
    // What is not there is said before anything runs.
    assert!(lines[0].starts_with("warning: ") && lines[0].contains("line 4: the slide of s2: No such file"), "{ran:?}");
    assert!(lines.iter().any(|line| line.starts_with("error: line 3: s1: the slide: ")), "{ran:?}");
    assert!(lines.iter().any(|line| line.starts_with("error: line 4: s2: the slide: No such file")), "{ran:?}");
    for name in ["mask.ome.zarr/zarr.json", "report.json", "done", "thumbnail.jpg", "mask.ome.zarr.run/report.html"] {
        assert!(place.path("out/s4").join(name).exists(), "{name}");
    }
    let csv = std::fs::read_to_string(place.path("out/summary.csv")).unwrap();
    assert_eq!(csv.lines().count(), 6, "{csv}");
    assert!(csv.lines().nth(2).unwrap().starts_with("s1,,failed,4,\"the slide: "), "{csv}");
    assert!(std::fs::read_to_string(place.path("out/summary.html")).unwrap().contains("3 done, 2 failed"));

    // The same again tries what failed, and nothing else.
    let stores_before = stores(&place.path("out"));
    run(&mut batch(&place, &manifest, "out")).ended(3);
    assert!(stores(&place.path("out")) == stores_before);
    small(&place, "1.tif", 1);
    small(&place, "2.tif", 2);
    let ran = run(batch(&place, &manifest, "out").arg("--json")).ended(0);
    let outcomes: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let by = |id: &str| outcomes.iter().find(|o| o["id"] == id).unwrap()["by"].clone();
    assert_eq!((by("s0"), by("s1"), by("s2")), ("earlier-run".into(), "this-run".into(), "this-run".into()));
    // Now all is done, and nothing is touched any more.
    let before = place.content();
    let begun = Instant::now();
    let ran = run(&mut batch(&place, &manifest, "out")).ended(0);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
    assert!(place.content() == before);
    // Masks are those of `segment`.
    let mut single = microtome();
    single
        .arg("segment")
        .arg(place.path("4.tif"))
        .arg("-m")
        .arg(model(&place))
        .arg("-o")
        .arg(place.path("single.ome.zarr"));
    single.args(["--model-mpp", "native", "--tissue", "none", "--threads", "1", "--quiet"]);
    run(&mut single).ended(0);
    assert!(content(&place.path("single.ome.zarr")) == content(&place.path("out/s4/mask.ome.zarr")));
}

#[test]
fn a_bad_manifest_is_refused_with_every_line_before_anything_runs() {
    let place = Place::new();
    small(&place, "0.tif", 0);
    let bad = place.file("bad.csv", "slide,id,mpp\n0.tif,a,0.5\n0.tif,a,0.5\n0.tif,../b,0.5\n0.tif,c,wide\n");
    let ran = run(&mut batch(&place, &bad, "out")).ended(2);
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(lines.len(), 3, "{ran:?}");
    for (line, words) in
        lines.iter().zip(["bad.csv: line 3: id: \"a\"", "line 4: id: \"../b\"", "line 5: mpp: \"wide\""])
    {
        assert!(line.starts_with("error: ") && line.contains(words), "{ran:?}");
    }
    assert!(!place.path("out").exists());
    let unknown = place.file("unknown.csv", "slide,id,stain\n0.tif,a,HE\n");
    run(&mut batch(&place, &unknown, "out")).refused(2, &["unknown.csv", "line 1", "stain"]);
    run(&mut batch(&place, &place.path("none.csv"), "out")).refused(2, &["none.csv"]);
    run(&mut batch(&place, &place.file("list.txt", ""), "out")).refused(2, &["list.txt", ".csv"]);
    let mut remote = microtome();
    remote.arg("batch").arg(archive(&place, 1)).arg("-m").arg(model(&place)).args(["-o", "s3://bucket/out"]);
    run(&mut remote).refused(2, &["s3://bucket/out", "object store"]);
    let good = archive(&place, 1);
    run(batch(&place, &good, "out").args(["--shard", "4/4"])).refused(2, &["--shard", "4/4"]);
    run(batch(&place, &good, "out").args(["--jobs", "0"])).refused(2, &["one slide"]);
    run(batch(&place, &good, "out").args(["--stage-limit", "1GiB"])).refused(2, &["--stage"]);
    run(batch(&place, &good, "out").args(["--memory", "1MiB"])).ended(6);
    let file = place.file("taken", "a file");
    run(&mut batch(&place, &good, "taken")).refused(4, &["taken"]);
    assert_eq!(std::fs::read(file).unwrap(), b"a file");
}

#[test]
fn a_plan_says_what_would_be_done_and_leaves_nothing() {
    let place = Place::new();
    let manifest = archive(&place, 4);
    let before = place.content();
    model(&place);
    let ran = run(batch(&place, &manifest, "out").arg("--dry-run")).ended(3);
    assert!(ran.stdout.contains("line 2: s0: 300 x 200 pixels, 2 tiles at most"), "{ran:?}");
    assert!(ran.stdout.contains("4 slides: 2 to do, 2 cannot be done"), "{ran:?}");
    assert!(!place.path("out").exists());
    let mut after = place.content();
    after.retain(|name, _| !name.starts_with("model"));
    assert!(after == before);
}

#[test]
fn a_batch_that_is_killed_goes_on_to_the_same_bytes() {
    let place = Place::new();
    tower(&place, "0.tif", 24 * 2048);
    for i in [1, 2] {
        small(&place, &format!("{i}.tif"), i);
    }
    let manifest = manifest(&place, 3);
    run(&mut batch(&place, &manifest, "whole")).ended(0);
    let mut child = batch(&place, &manifest, "out").stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let journal = place.path("out/s0/mask.ome.zarr.run/journal.jsonl");
    wait_for(&mut child, || std::fs::read_to_string(&journal).unwrap_or_default().lines().count() > 5);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert!(!place.path("out/s0/done").exists() && place.path("out/s0/lease").exists());
    // Its lease is that of a process of this machine which has ended: nobody waits for it.
    let begun = Instant::now();
    run(&mut batch(&place, &manifest, "out")).ended(0);
    assert!(begun.elapsed() < Duration::from_secs(50), "{:?}", begun.elapsed());
    assert!(stores(&place.path("out")) == stores(&place.path("whole")));
    let report: Value = serde_json::from_slice(&std::fs::read(place.path("out/s0/report.json")).unwrap()).unwrap();
    assert!(report["summary"]["resumed_shards"].as_u64().unwrap() >= 3, "nothing was kept");
    let starts = events(&place.path("out/events.jsonl"));
    assert_eq!(starts.iter().filter(|e| e["event"] == "slide-started" && e["id"] == "s0").count(), 2);
}

#[test]
fn a_signal_ends_a_batch_and_the_same_command_goes_on() {
    let place = Place::new();
    tower(&place, "0.tif", 24 * 2048);
    small(&place, "1.tif", 1);
    let manifest = manifest(&place, 2);
    run(&mut batch(&place, &manifest, "whole")).ended(0);
    for (name, code) in [("TERM", 143), ("INT", 130)] {
        let mut child = batch(&place, &manifest, name).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let journal = place.path(name).join("s0/mask.ome.zarr.run/journal.jsonl");
        wait_for(&mut child, || std::fs::read_to_string(&journal).unwrap_or_default().lines().count() > 5);
        let begun = Instant::now();
        signal(&child, name);
        let (found, _, text) = crate::signals::ended(child);
        assert_eq!(found, Some(code), "{text}");
        assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?} to stop", begun.elapsed());
        assert!(text.lines().any(|line| line == "error: stopped"), "{text}");
        let out = place.path(name);
        assert!(!out.join("s0/lease").exists() && !out.join("s0/done").exists());
        let all = events(&out.join("events.jsonl"));
        assert_eq!(all.iter().filter(|e| e["event"] == "slide-stopped").count(), 1);
        run(&mut batch(&place, &manifest, name)).ended(0);
        assert!(stores(&out) == stores(&place.path("whole")));
    }
}

#[test]
fn two_processes_at_once_share_the_work() {
    let place = Place::new();
    for i in 0..8 {
        small(&place, &format!("{i}.tif"), i);
    }
    let manifest = manifest(&place, 8);
    run(&mut batch(&place, &manifest, "whole")).ended(0);
    let children: Vec<Child> = (0..2)
        .map(|_| batch(&place, &manifest, "out").stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    for child in children {
        let (code, _, text) = crate::signals::ended(child);
        assert_eq!(code, Some(0), "{text}");
    }
    let all = events(&place.path("out/events.jsonl"));
    for i in 0..8 {
        let started = all.iter().filter(|e| e["event"] == "slide-started" && e["id"] == format!("s{i}")).count();
        assert_eq!(started, 1, "s{i}");
    }
    assert!(stores(&place.path("out")) == stores(&place.path("whole")));
}

#[test]
fn shards_are_told_by_the_engine_and_merged_by_a_report() {
    let place = Place::new();
    let manifest = archive(&place, 7);
    run(&mut batch(&place, &manifest, "whole")).ended(3);
    run(batch(&place, &manifest, "out").args(["--shard", "auto"]).env_remove("SLURM_ARRAY_TASK_ID"))
        .refused(2, &["--shard", "SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"]);
    let mut codes = Vec::new();
    for task in 1..=3 {
        let mut command = batch(&place, &manifest, "out");
        command.args(["--shard", "auto"]).env("SLURM_ARRAY_TASK_ID", task.to_string());
        command.envs([("SLURM_ARRAY_TASK_COUNT", "3"), ("SLURM_ARRAY_TASK_MIN", "1"), ("SLURM_ARRAY_TASK_MAX", "3")]);
        codes.push(run(&mut command).code);
    }
    // The corrupt and the missing one lie in one shard or in two; elsewhere all is well.
    assert!(
        codes.iter().all(|code| matches!(code, Some(0 | 3 | 4))) && codes.iter().any(|code| *code != Some(0)),
        "{codes:?}"
    );
    assert!(!place.path("out/summary.csv").exists());
    let report = || run(microtome().arg("report").arg(place.path("out"))).ended(0);
    let said = report().stdout;
    assert!(said.contains("5 done, 0 of them with faults, 2 failed, 0 waiting"), "{said}");
    let before = place.content();
    report();
    assert!(place.content() == before, "doing it again changes nothing");
    let ids = |name: &str| {
        let csv = std::fs::read_to_string(place.path(name).join("summary.csv")).unwrap();
        csv.lines().skip(1).map(|line| line.split(',').take(4).collect::<Vec<_>>().join(",")).collect::<Vec<_>>()
    };
    assert_eq!(ids("out"), ids("whole"));
    let mut started: Vec<String> = (0..3)
        .flat_map(|i| events(&place.path(&format!("out/events-{i}-of-3.jsonl"))))
        .filter(|e| e["event"] == "slide-started")
        .map(|e| e["id"].as_str().unwrap().to_owned())
        .collect();
    started.sort();
    assert_eq!(started, (0..7).map(|i| format!("s{i}")).collect::<Vec<_>>());
    assert!(stores(&place.path("out")) == stores(&place.path("whole")));
    run(microtome().arg("report").arg(place.path("model"))).refused(2, &["no results of a batch"]);
    run(microtome().arg("report").arg(place.path("none"))).refused(4, &["none"]);
}

/// No file may become larger than this allows: the one failure of a disk that anybody can have anywhere.
#[test]
fn a_disk_that_takes_no_more_fails_slides_and_is_got_over() {
    let place = Place::new();
    tower(&place, "0.tif", 8 * 2048);
    let manifest = manifest(&place, 1);
    run(&mut batch(&place, &manifest, "whole")).ended(0);
    let command = batch(&place, &manifest, "out");
    let mut limited = Command::new("sh");
    // In units of 512 or 1024 bytes. Without the trap the signal would end it before it could say anything.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 4; exec \"$@\"", "sh"]);
    limited.arg(command.get_program()).args(command.get_args());
    let ran = run(&mut limited).ended(4);
    assert!(ran.stderr.contains("File too large"), "{ran:?}");
    events(&place.path("out/events.jsonl"));
    run(&mut batch(&place, &manifest, "out")).ended(0);
    assert!(stores(&place.path("out")) == stores(&place.path("whole")));
}

/// Runs batches in a name space of its own, where `$DISK` can be mounted as one likes; `batch` runs it, and notes code and words. `None` where
/// this is not allowed.
fn with_disk(place: &Place, manifest: &Path, script: &str) -> Option<Vec<(String, String)>> {
    let allowed = Command::new("unshare").args(["-rm", "true"]).stderr(Stdio::null()).status();
    if !allowed.is_ok_and(|status| status.success()) {
        skip("unshare -rm is not allowed here, so there are no small disks");
        return None;
    }
    let said = place.path("said");
    std::fs::create_dir(&said).unwrap();
    std::fs::create_dir(place.path("disk")).unwrap();
    let batch = "n=0\nbatch() { n=$((n + 1)); code=0; \"$@\" 2>\"$SAID/$n.stderr\" </dev/null || code=$?; echo $code >\"$SAID/$n.code\"; }\n";
    let command = self::batch(place, manifest, "disk/out");
    let mut shell = Command::new("unshare");
    shell.args(["-rm", "sh", "-ec", &format!("{batch}{script}"), "sh"]).arg(command.get_program());
    shell.args(command.get_args()).env("SAID", &said).env("DISK", place.path("disk")).env("SAVED", place.path("saved"));
    let ran = run(&mut shell);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let read = |n: usize, what: &str| std::fs::read_to_string(said.join(format!("{n}.{what}"))).ok();
    Some((1..).map_while(|n| Some((read(n, "code")?.trim().to_owned(), read(n, "stderr")?))).collect())
}

#[test]
fn a_disk_that_is_read_only_or_full_is_said_and_got_over() {
    let place = Place::new();
    tower(&place, "0.tif", 24 * 2048);
    let manifest = manifest(&place, 1);
    run(&mut batch(&place, &manifest, "whole")).ended(0);
    let expected = stores(&place.path("whole"));
    let bytes: usize = expected.values().flatten().map(|bytes| bytes.len().div_ceil(4096) * 4096).sum();
    let script = format!(
        "mount -t tmpfs tmpfs \"$DISK\"\nmount -o remount,ro \"$DISK\"\nbatch \"$@\"\n\
         mount -o remount,rw,size={} \"$DISK\"\nbatch \"$@\"\nmount -o remount,size=64m \"$DISK\"\nbatch \"$@\"\n\
         cp -r \"$DISK\" \"$SAVED\"",
        bytes / 2
    );
    let Some(runs) = with_disk(&place, &manifest, &script) else { return };
    let [(read_only, first), (full, second), (then, _)] = &runs[..] else { panic!("{runs:?}") };
    assert!(read_only == "4" && first.contains("Read-only file system"), "{runs:?}");
    assert!(full == "4" && second.contains("No space left on device"), "{runs:?}");
    assert_eq!(then, "0", "{runs:?}");
    events(&place.path("saved/out/events.jsonl"));
    assert!(stores(&place.path("saved/out")) == expected);
}

#[test]
fn a_slide_whose_copy_has_no_room_is_read_where_it_is() {
    let place = Place::new();
    small(&place, "0.tif", 0);
    let manifest = manifest(&place, 1);
    let script = "mount -t tmpfs tmpfs \"$DISK\"\nmkdir \"$DISK/stage\"\n\
                  mount -t tmpfs -o size=32k tmpfs \"$DISK/stage\"\nbatch \"$@\" --stage \"$DISK/stage\"";
    let Some(runs) = with_disk(&place, &manifest, script) else { return };
    assert!(matches!(&runs[..], [(code, _)] if code == "0"), "{runs:?}");
}

/// Nobody can ask another machine whether its process lives: what counts is that nothing changes for so long.
#[test]
fn the_lease_of_another_machine_expires() {
    let place = Place::new();
    let manifest = archive(&place, 1);
    std::fs::create_dir_all(place.path("out/s0")).unwrap();
    let owner = r#"{"host":"elsewhere","boot":"b","space":"s","pid":7,"begun":9}"#;
    place.file("out/s0/lease", format!(r#"{{"owner":{owner},"nonce":"n","beat":4}}"#));
    let begun = Instant::now();
    run(batch(&place, &manifest, "out").args(["--lease-expiry", "2"])).ended(0);
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(!place.path("out/s0/lease").exists() && place.path("out/s0/done").exists());
}

#[test]
fn a_tree_is_listed_looked_at_and_worked_off() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("slides/sub")).unwrap();
    small(&place, "slides/one.tif", 1);
    small(&place, "slides/sub/two.tif", 2);
    std::fs::copy(place.path("slides/one.tif"), place.path("slides/sub/again.tif")).unwrap();
    let list = place.path("archive.csv");
    run(microtome().arg("manifest").arg(place.path("slides")).arg("-o").arg(&list)).ended(0);
    let text = std::fs::read_to_string(&list).unwrap();
    let expected = "slide,id,mpp,mpp_source,format,width,height,bytes\n\
                    slides/one.tif,one,0.5,TIFF resolution tags,generic-tiff,300,200,";
    assert!(text.starts_with(expected), "{text}");
    // One that is there is not replaced unasked.
    run(microtome().arg("manifest").arg(place.path("slides")).arg("-o").arg(&list))
        .refused(2, &["archive.csv", "--overwrite"]);
    place.file("slides/bad.svs", "no slide");
    let ran = run(microtome().arg("manifest").arg(place.path("slides"))).ended(3);
    assert!(ran.stderr.lines().any(|line| line.starts_with("error: ") && line.contains("bad.svs")), "{ran:?}");
    assert_eq!(ran.stdout.lines().count(), 4, "{ran:?}");
    std::fs::create_dir(place.path("empty")).unwrap();
    run(microtome().arg("manifest").arg(place.path("empty"))).refused(2, &["no slide"]);

    let csv = place.path("audit.csv");
    let mut audit = microtome();
    audit.arg("audit").arg(&list).args(["--quiet", "--speed", "2", "-o"]).arg(&csv);
    let ran = run(&mut audit).ended(3);
    assert!(ran.stdout.contains("has the same bytes as one") && ran.stdout.contains("at 2 Mpx/s"), "{ran:?}");
    assert_eq!(std::fs::read_to_string(&csv).unwrap().lines().count(), 4);
    let mut measured = microtome();
    measured.arg("audit").arg(&list).args(["--quiet", "--json", "--sample", "all", "--model-mpp", "native", "-m"]);
    let found: Value = serde_json::from_str(&run(measured.arg(model(&place))).ended(3).stdout).unwrap();
    assert!(found["slides"][0]["hours"].as_f64().unwrap() > 0.0 && found["slides"][0]["tiles_tried"] == 20, "{found}");

    run(batch(&place, &list, "out").args(["--jobs", "2"])).ended(0);
    for id in ["one", "two", "again"] {
        assert!(place.path("out").join(id).join("done").exists(), "{id}");
    }
    assert!(content(&place.path("out/one/mask.ome.zarr")) == content(&place.path("out/again/mask.ome.zarr")));
}
