//! Being stopped, and readers who have seen enough.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use microtome::io::store::{Found, OmeZarr, inspect};
use microtome_testkit::tiff::TiffSlide;

use crate::{Place, content, microtome, repository, run};

/// A slide that takes a while: 2900 tiles.
fn large(place: &Place) -> PathBuf {
    let slide = TiffSlide::rgb(&[(800, 700)], |_, x, y, channel| {
        (60 + (x / 3 * 31 + y / 5 * 17 + 50 * channel as u64) % 180) as u16
    });
    place.file("large.tif", slide.bytes())
}

fn begin(slide: &Path, output: &Path, step: &str) -> Command {
    let mut command = microtome();
    command.arg("segment").arg(slide).arg("-m").arg(repository("tests/models/nnunet-nuclei")).arg("-o").arg(output);
    command.args(["--model-mpp", "native", "--no-tta", "--step-size", step, "--tissue", "none", "--threads", "2"]);
    command
}

/// Starts a run and returns when its tiles have begun to run.
fn started(command: &mut Command) -> Child {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = child.stderr.as_mut().unwrap();
    let mut line = String::new();
    // Byte by byte, so that nothing is read that belongs to whoever comes next.
    while !line.ends_with("segmentation\n") {
        let mut byte = [0];
        assert_eq!(stderr.read(&mut byte).unwrap(), 1, "it ended early: {line}");
        line.push(byte[0].into());
    }
    child
}

pub(super) fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Its exit code, the signal that ended it, and the rest of what it says on stderr.
pub(super) fn ended(mut child: Child) -> (Option<i32>, Option<i32>, String) {
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    let status = child.wait().unwrap();
    (status.code(), status.signal(), text)
}

#[test]
fn a_signal_stops_a_run_and_leaves_nothing_that_looks_like_a_mask() {
    let place = Place::new();
    let slide = large(&place);
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let output = place.path(&format!("{name}.ome.zarr"));
        let child = started(&mut begin(&slide, &output, "0.1"));
        let begun = Instant::now();
        signal(&child, name);
        let (found, _, text) = ended(child);
        assert_eq!(found, Some(code), "{text}");
        assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?} to stop", begun.elapsed());
        assert!(text.lines().any(|line| line.starts_with("error: ") && line.contains("stopped")), "{text}");
        assert!(OmeZarr::open(&output).is_err(), "half a store opens");
        assert!(matches!(inspect(&output).unwrap(), Found::Nothing | Found::Unfinished));
        // A reader of the half-done store is told, in one line.
        run(microtome().arg("info").arg(&output)).refused(4, &[&output.display().to_string()]);
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let place = Place::new();
    let slide = large(&place);
    let child = started(&mut begin(&slide, &place.path("mask.ome.zarr"), "0.1"));
    signal(&child, "INT");
    signal(&child, "INT");
    let (code, _, text) = ended(child);
    assert_eq!(code, Some(130), "{text}");
}

/// A service that takes connections and says nothing is asked for minutes: longer than whoever sent the signal waits.
#[cfg(feature = "remote")]
#[test]
fn a_signal_ends_a_run_that_waits_for_an_answer() {
    let place = Place::new();
    let service = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    service.set_nonblocking(true).unwrap();
    let mut command = begin(Path::new("s3://bucket/slide.svs"), &place.path("mask.ome.zarr"), "1");
    command.env("AWS_ENDPOINT_URL_S3", format!("http://{}", service.local_addr().unwrap()));
    command.envs([("AWS_SKIP_SIGNATURE", "true"), ("NO_PROXY", "*")]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let connection = std::cell::OnceCell::new();
    crate::batch::wait_for(&mut child, || service.accept().is_ok_and(|accepted| connection.set(accepted).is_ok()));
    let begun = Instant::now();
    signal(&child, "TERM");
    let (code, _, text) = ended(child);
    assert_eq!(code, Some(143), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?} to stop", begun.elapsed());
    assert!(text.lines().any(|line| line.contains("did not end in time")), "{text}");
}

/// Killed without notice, the next run neither takes the rest for a mask nor is kept from its own.
#[test]
fn after_a_kill_the_same_command_finishes_the_job() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let output = place.path("mask.ome.zarr");
    let small = |output: &Path| begin(&slide, output, "0.1");
    let child = started(&mut small(&output));
    // The store is in use by now: nobody else may write there.
    let second = run(small(&output).arg("--quiet"));
    second.refused(2, &["mask.ome.zarr", "another process"]);
    signal(&child, "KILL");
    let (_, signal, _) = ended(child);
    assert_eq!(signal, Some(9));
    assert!(matches!(inspect(&output).unwrap(), Found::Unfinished));
    run(small(&output).arg("--quiet")).ended(0);
    let whole = place.path("whole.ome.zarr");
    run(small(&whole).arg("--quiet")).ended(0);
    assert!(content(&output) == content(&whole), "a run that was killed gives other bytes");
}

/// Output goes to a reader that has closed its end before the first byte.
fn unread(command: &mut Command) -> (Option<i32>, String) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    (child.wait().unwrap().code(), text)
}

#[test]
fn a_reader_who_has_seen_enough_is_no_error() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let mask = place.path("mask.ome.zarr");
    let other = place.path("other.ome.zarr");
    for command in [
        microtome().arg("info").arg(&slide),
        microtome().arg("info").arg(&slide).arg("--json"),
        microtome().args(["model", "info"]).arg(repository("tests/models/nnunet-nuclei")),
        place.segment(&[&slide], &mask).arg("--quiet").arg("--json"),
        &mut place.segment(&[&slide], &other),
        microtome().arg("verify").arg(&mask),
        microtome().arg("--help"),
    ] {
        let (code, text) = unread(command);
        assert_eq!(code, Some(0), "{command:?}: {text}");
        assert!(!text.contains("error") && !text.contains("panicked"), "{command:?}: {text}");
    }
    // The work is done all the same.
    OmeZarr::open(&mask).unwrap();
    OmeZarr::open(&other).unwrap();
}

#[test]
fn errors_that_nobody_reads_are_no_panic() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    for (command, expected) in [
        (microtome().arg("info").arg(place.path("missing.svs")), 4),
        (&mut place.segment(&[&slide], &place.path("mask.ome.zarr")), 0),
        (&mut place.segment(&[&place.path("missing.svs")], &place.path("none")), 4),
    ] {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stderr.take());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while lines.next().is_some() {}
        assert_eq!(child.wait().unwrap().code(), Some(expected), "{command:?}");
    }
}

#[test]
fn a_signal_stops_an_import_and_leaves_nothing() {
    let place = Place::new();
    let slide = large(&place);
    let before = place.content();
    let mut command = microtome();
    command.args(["model", "import"]).arg(repository("tests/models/nnunet-nuclei")).arg(place.path("package"));
    let child = started(command.arg("--measure").arg(&slide));
    signal(&child, "INT");
    let (found, _, text) = ended(child);
    assert_eq!(found, Some(130), "{text}");
    assert!(place.content() == before, "something was left behind");
}
