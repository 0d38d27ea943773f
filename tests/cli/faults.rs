//! What breaks under a run: its slide, its disk, its folder, its model. Each time one line says so, and the same command finishes the job
//! once the fault is mended.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use microtome_testkit::{Weights, skip, small_package};

use crate::kills::{begin, tower};
use crate::{Place, Ran, content, microtome, run};

/// Enough that a run can be met in the midst of its work.
const SHARDS: u32 = 24;

/// A slide, a small model, and the store that an undisturbed run gives.
struct Job {
    place: Place,
    slide: PathBuf,
    model: PathBuf,
    output: PathBuf,
    expected: BTreeMap<PathBuf, Option<Vec<u8>>>,
}

impl Job {
    fn new() -> Self {
        let place = Place::new();
        let (slide, model) = (tower(&place, "tower.tif", SHARDS * 2048), place.path("model"));
        small_package(&model, Weights::Plain);
        let whole = place.path("whole.ome.zarr");
        run(&mut begin(&slide, &model, &whole)).ended(0);
        let expected = content(&whole);
        let output = place.path("mask.ome.zarr");
        Self { place, slide, model, output, expected }
    }

    fn command(&self) -> Command {
        begin(&self.slide, &self.model, &self.output)
    }

    /// Starts the run, and returns once it has noted some shards.
    fn begun(&self) -> Child {
        let mut command = self.command();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (journal, start) = (self.run_folder().join("journal.jsonl"), Instant::now());
        while std::fs::read_to_string(&journal).unwrap_or_default().lines().count() < 6 {
            assert!(child.try_wait().unwrap().is_none(), "it ended before anything went wrong");
            assert!(start.elapsed() < Duration::from_mins(1), "it does not begin");
            std::thread::sleep(Duration::from_millis(1));
        }
        child
    }

    fn run_folder(&self) -> PathBuf {
        self.output.with_extension("zarr.run")
    }

    /// Nothing has run yet.
    fn forget(&self) {
        std::fs::remove_dir_all(&self.output).unwrap();
        std::fs::remove_dir_all(self.run_folder()).unwrap();
    }

    /// The same command goes on behind what was finished, and gives the bytes of the undisturbed run.
    #[track_caller]
    fn goes_on(&self) {
        run(&mut self.command()).ended(0);
        assert!(content(&self.output) == self.expected, "other bytes");
        let report = std::fs::read(self.run_folder().join("report.json")).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
        assert!(report["resumed_shards"].as_u64().unwrap() >= 3, "nothing was kept: {}", report["resumed_shards"]);
    }
}

fn ended(child: Child) -> Ran {
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn a_slide_that_is_cut_off_while_it_is_read() {
    let job = Job::new();
    let bytes = std::fs::read(&job.slide).unwrap();
    // To a length inside a page, to the end of one, and to nothing.
    for length in [bytes.len() / 8 / 4096 * 4096 + 1234, bytes.len() / 8 / 4096 * 4096, 0] {
        let child = job.begun();
        OpenOptions::new().write(true).open(&job.slide).unwrap().set_len(length as u64).unwrap();
        ended(child).refused(4, &["has become shorter while it was read"]);
        std::fs::write(&job.slide, &bytes).unwrap();
        job.goes_on();
        job.forget();
    }
}

#[test]
fn an_output_folder_that_vanishes_during_the_run() {
    let job = Job::new();
    let child = job.begun();
    // The run may put something into a folder while it is being removed.
    while job.output.exists() {
        let _ = std::fs::remove_dir_all(&job.output);
    }
    ended(child).refused(4, &["mask.ome.zarr", "No such file"]);
    // Nothing was made anew that could be taken for a mask.
    assert!(!job.output.exists(), "{:?}", content(&job.output).keys());
    run(&mut job.command()).ended(0);
    assert!(content(&job.output) == job.expected);
}

#[test]
fn a_run_folder_that_vanishes_during_the_run() {
    let job = Job::new();
    let mut child = job.begun();
    std::fs::remove_dir_all(job.run_folder()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    // Without a journal nothing is believed.
    run(&mut job.command()).ended(0);
    assert!(content(&job.output) == job.expected);

    job.forget();
    let child = job.begun();
    std::fs::remove_dir_all(job.run_folder()).unwrap();
    // The mask is finished, its report cannot be written.
    ended(child).refused(4, &["mask.ome.zarr.run", "report.json", "No such file"]);
    assert!(content(&job.output) == job.expected);
    run(&mut job.command()).ended(0);
}

#[test]
fn a_model_that_gives_no_numbers() {
    let place = Place::new();
    let (slide, model) = (place.slide("slide.png"), place.path("model"));
    for weights in [Weights::NotANumber, Weights::Infinite] {
        small_package(&model, weights);
        let before = place.content();
        let output = place.path("mask.ome.zarr");
        run(&mut begin(&slide, &model, &output)).refused(4, &["slide.png", "tiles from", "256 x 256", "finite"]);
        assert!(place.content() == before, "something was left behind");
    }
}

/// No file may become larger than this allows: the one failure of a disk that anybody can have anywhere.
#[test]
fn a_file_that_may_not_grow() {
    let job = Job::new();
    let mut limited = Command::new("sh");
    // In units of 512 or 1024 bytes. Without the trap the signal would end it before it could say anything.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 4; exec \"$@\"", "sh"]);
    let command = job.command();
    limited.arg(command.get_program()).args(command.get_args());
    run(&mut limited).refused(4, &["mask.ome.zarr", "File too large"]);
    run(&mut job.command()).ended(0);
    assert!(content(&job.output) == job.expected);
}

/// What happens in a name space of its own, where disks can be as small as one likes, and read-only.
///
/// `script` finds `$DISK`, an empty folder to mount at; `segment` runs the job into `$OUT`, as often as it is called, and keeps what
/// each run says. Returns what they said, or `None` where this is not allowed.
fn with_disks(job: &Job, out: &Path, script: &str) -> Option<Vec<Ran>> {
    let allowed = Command::new("unshare").args(["-rm", "true"]).stderr(Stdio::null()).status();
    if !allowed.is_ok_and(|status| status.success()) {
        skip("unshare -rm is not allowed here, so there are no small disks");
        return None;
    }
    let said = job.place.path("said");
    std::fs::create_dir(&said).unwrap();
    let segment = r#"
        n=0
        segment() {
            n=$((n + 1))
            code=0
            "$@" >"$SAID/$n.stdout" 2>"$SAID/$n.stderr" </dev/null || code=$?
            echo $code >"$SAID/$n.code"
        }
    "#;
    let command = begin(&job.slide, &job.model, out);
    let mut shell = Command::new("unshare");
    shell.args(["-rm", "sh", "-ec", &format!("{segment}{script}"), "sh"]).arg(command.get_program());
    shell.args(command.get_args()).env("SAID", &said).env("OUT", out).env("DISK", job.place.path("disk"));
    shell.env("SAVED", job.place.path("saved")).env("BYTES", stored_bytes(job).to_string());
    let ran = run(&mut shell);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let read = |n: usize, what: &str| std::fs::read_to_string(said.join(format!("{n}.{what}")));
    let runs = (1..).map_while(|n| {
        let code = read(n, "code").ok()?.trim().parse().ok();
        Some(Ran { code, stdout: read(n, "stdout").unwrap(), stderr: read(n, "stderr").unwrap() })
    });
    let runs = runs.collect();
    std::fs::remove_dir_all(said).unwrap();
    Some(runs)
}

/// What the files of the store take on a disk of pages.
fn stored_bytes(job: &Job) -> usize {
    job.expected.values().map(|file| file.as_ref().map_or(0, |bytes| bytes.len().div_ceil(4096) * 4096)).sum()
}

#[test]
fn a_disk_that_is_full() {
    let job = Job::new();
    let disk = job.place.path("disk");
    std::fs::create_dir(&disk).unwrap();
    let script = r#"
        mount -t tmpfs -o size=$((BYTES / 2)) tmpfs "$DISK"
        segment "$@"
        segment "$@"
        mount -o remount,size=64m "$DISK"
        segment "$@"
        cp -r "$DISK" "$SAVED"
    "#;
    let Some(runs) = with_disks(&job, &disk.join("mask.ome.zarr"), script) else { return };
    let [first, again, more] = <[Ran; 3]>::try_from(runs).unwrap();
    first.refused(4, &["mask.ome.zarr", "No space left on device"]);
    again.refused(4, &["mask.ome.zarr", "No space left on device"]);
    more.ended(0);
    let saved = job.place.path("saved");
    assert!(content(&saved.join("mask.ome.zarr")) == job.expected);
    let report = std::fs::read(saved.join("mask.ome.zarr.run/report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert!(report["resumed_shards"].as_u64().unwrap() >= 10, "{}", report["resumed_shards"]);
}

/// The journal's disk is full or read-only, while there is room for the store.
#[test]
fn a_journal_that_cannot_be_written() {
    let job = Job::new();
    let mut child = job.begun();
    child.kill().unwrap();
    child.wait().unwrap();
    // One page, of which the journal has filled a part.
    let script = r#"
        cp -r "$OUT.run" "$SAVED"
        mount -t tmpfs -o size=4k tmpfs "$OUT.run"
        cp "$SAVED/journal.jsonl" "$OUT.run"
        segment "$@"
        cp "$OUT.run/journal.jsonl" "$SAVED"
        mount -o remount,ro "$OUT.run"
        segment "$@"
        umount "$OUT.run"
        cp "$SAVED/journal.jsonl" "$OUT.run"
    "#;
    let Some(runs) = with_disks(&job, &job.output, script) else { return };
    let [full, read_only] = <[Ran; 2]>::try_from(runs).unwrap();
    full.refused(4, &["mask.ome.zarr.run/journal.jsonl", "No space left on device"]);
    read_only.refused(4, &["mask.ome.zarr.run", "Read-only file system"]);
    job.goes_on();
}

#[test]
fn an_output_that_is_read_only() {
    let job = Job::new();
    let disk = job.place.path("disk");
    std::fs::create_dir(&disk).unwrap();
    let script = r#"
        mount -t tmpfs tmpfs "$DISK"
        mount -o remount,ro "$DISK"
        segment "$@"
        ls -A "$DISK" >"$SAVED"
        mount -o remount,rw "$DISK"
        segment "$@"
    "#;
    let Some(runs) = with_disks(&job, &disk.join("mask.ome.zarr"), script) else { return };
    let [read_only, then] = <[Ran; 2]>::try_from(runs).unwrap();
    read_only.refused(4, &["mask.ome.zarr", "Read-only file system"]);
    then.ended(0);
    assert_eq!(std::fs::read_to_string(job.place.path("saved")).unwrap(), "", "something was left behind");

    // One that was begun, and cannot be gone on with for a while.
    let mut child = job.begun();
    child.kill().unwrap();
    child.wait().unwrap();
    let before = content(&job.output);
    let script = r#"
        mount --bind "$OUT" "$OUT"
        mount -o remount,bind,ro "$OUT"
        segment "$@"
    "#;
    let Some(runs) = with_disks(&job, &job.output, script) else { return };
    let [read_only] = <[Ran; 1]>::try_from(runs).unwrap();
    read_only.refused(4, &["mask.ome.zarr", "Read-only file system"]);
    assert!(content(&job.output) == before);
    job.goes_on();
    assert!(run(microtome().arg("verify").arg(&job.output)).ended(0).stdout.contains(" 0 faulty"));
}
