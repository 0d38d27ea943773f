//! `microtome convert`: what it says, what it refuses, and what is left when it is stopped, killed or out of room.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use microtome::io::Level;
use microtome::io::store::{Found, OmeZarr, inspect};
use microtome_testkit::skip;
use microtome_testkit::tiff::{Compression, TiffSlide};
use serde_json::Value;

use crate::signals::{ended, signal};
use crate::{Place, content, microtome, run};

/// A slide of 400 shards of 64 pixels, each of which holds noise and is therefore work.
fn slide(place: &Place) -> PathBuf {
    let mut slide = TiffSlide::rgb(&[(1280, 1280)], |_, x, y, channel| {
        let mixed = (x * 2_654_435_761 + y * 2_246_822_519 + channel as u64 * 3_266_489_917) >> 7;
        (mixed % 251) as u16
    });
    slide.compression = Compression::Deflate;
    slide.description = Some(
        "Aperio Image Library v11.2.1 1280x1280 [0,0 1280x1280] (64x64) ZIP/RGB|AppMag = 20|MPP = 0.5|User = Jane Doe"
            .into(),
    );
    place.file("slide.svs", slide.bytes())
}

/// A conversion that notes every shard as soon as it can.
fn begin(slide: &Path, output: &Path) -> Command {
    let mut command = microtome();
    command.arg("convert").arg(slide).arg(output);
    command.args(["--chunk", "32", "--shard", "64", "--threads", "2", "--sync-every", "0", "--quiet"]);
    command
}

fn run_folder(output: &Path) -> PathBuf {
    output.with_extension("zarr.run")
}

/// Starts a conversion, and returns once it has noted some shards, and is stopped there.
fn begun(slide: &Path, output: &Path) -> Child {
    let mut command = begin(slide, output);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (journal, start) = (run_folder(output).join("journal.jsonl"), Instant::now());
    while std::fs::read_to_string(&journal).unwrap_or_default().lines().count() < 6 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before anything went wrong");
        assert!(start.elapsed() < Duration::from_mins(1), "it does not begin");
    }
    signal(&child, "STOP");
    child
}

#[test]
fn a_slide_becomes_an_image() {
    let place = Place::new();
    let (slide, output) = (slide(&place), place.path("image.ome.zarr"));
    let convert = || {
        let mut command = microtome();
        command.arg("convert").arg(&slide).arg(&output);
        command
    };
    let ran = run(&mut convert()).ended(0);
    for word in [
        "slide.svs",
        "1280 x 1280 pixels, aperio, 0.5 x 0.5 um",
        "3 channels of 8 bits",
        "levels       3",
        "Mpx/s",
        "planned",
        "image.ome.zarr",
    ] {
        assert!(ran.stdout.contains(word), "{word} is missing: {ran:?}");
    }
    assert!(ran.stderr.lines().any(|line| line == "slide.svs: conversion"), "{ran:?}");
    let store = OmeZarr::open(&output).unwrap();
    let original = crate::read(&slide);
    assert!(store.read_region(Level(0), original.size().rect()).unwrap() == original);
    for (name, bytes) in content(place.folder.path()).into_iter().filter(|(name, _)| name != Path::new("slide.svs")) {
        let text = String::from_utf8_lossy(bytes.as_deref().unwrap_or_default()).into_owned();
        assert!(!text.contains("Jane") && !text.contains("slide.svs"), "{}", name.display());
    }

    // Again: done.
    let before = place.content();
    let again = run(&mut convert()).ended(0);
    assert!(again.stdout.contains("done already"), "{again:?}");
    let again = run(convert().args(["--threads", "1", "--json", "--quiet"])).ended(0);
    assert_eq!(serde_json::from_str::<Value>(&again.stdout).unwrap()["outcome"], "already_done");
    run(convert().args(["--quiet", "--reduction", "max"]))
        .refused(5, &["image.ome.zarr", "reduction: mean there, max here", "--overwrite"]);
    assert!(place.content() == before);
    let ran = run(convert().args(["--overwrite", "--json", "--reduction", "nearest", "--quiet"])).ended(0);
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    let done = &json["outcome"]["done"];
    assert_eq!(done["plan"]["levels"].as_array().unwrap().len(), 3);
    assert!(done["bytes"].as_u64().unwrap() > 100_000 && done["mpx_per_second"].as_f64().unwrap() > 0.0, "{done}");
    assert_eq!(ran.stderr, "");
    let verified = run(microtome().arg("verify").arg(&output)).ended(0);
    assert!(verified.stdout.contains(" 0 faulty"), "{verified:?}");
}

#[test]
fn what_is_left_out_and_what_is_not_known_is_said() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let ran = run(microtome().arg("convert").arg(&slide).arg(place.path("image.ome.zarr"))).ended(0);
    let note = ran.stderr.lines().find(|line| line.starts_with("note: ")).unwrap_or_else(|| panic!("{ran:?}"));
    assert!(note.contains("slide.png") && note.contains("resolution is not known"), "{note}");
}

/// No network is asked for any of it. Over a connection, see `tests/python/check_remote.py`.
#[test]
fn urls_are_refused_where_there_can_be_none() {
    let place = Place::new();
    let slide = slide(&place);
    let refused = |command: &str, output: &str, words: &[&str]| {
        run(microtome().arg(command).arg(&slide).arg(output)).refused(2, words);
    };
    for wrong in ["s3://slides", "s3://slides/", "s3:///a.ome.zarr", "s3://slides/../a.ome.zarr"] {
        refused("convert", wrong, &[wrong, "s3://"]);
    }
    refused("convert", "s3://slides/a.ome.zarr.zip", &["in one file"]);
    refused("preview", "s3://slides/a.png", &["written to files"]);
    refused("preview", "s3://slides/a.dzi", &["written to files"]);
    refused("read", "s3://slides/a.png", &["written to files"]);
}

#[test]
fn what_cannot_be_is_refused_with_a_sentence() {
    let place = Place::new();
    let (slide, output) = (slide(&place), place.path("image.ome.zarr"));
    let file = place.file("notes.txt", "mine");
    let before = place.content();
    let refused = |flags: &[&str], code: i32, words: &[&str]| {
        run(microtome().arg("convert").arg(&slide).arg(&output).args(flags)).refused(code, words);
        assert!(place.content() == before, "{flags:?} left something behind");
    };
    refused(&["--level", "3", "--quiet"], 2, &["slide.svs", "no level 3"]);
    refused(&["--rect", "1200,0,100,100", "--quiet"], 2, &["slide.svs", "--rect"]);
    refused(&["--rect", "1,2,3", "--quiet"], 2, &["--rect"]);
    refused(&["--levels", "99", "--quiet"], 2, &["99 levels", "1 to 12"]);
    refused(&["--levels", "many", "--quiet"], 2, &["--levels", "source"]);
    refused(&["--chunk", "100", "--shard", "150", "--quiet"], 2, &["150", "100"]);
    refused(&["--compression", "lz4", "--quiet"], 2, &["lz4", "zstd"]);
    refused(&["--format", "0.3", "--quiet"], 2, &["0.3", "0.5"]);
    refused(&["--memory", "10MiB", "--quiet"], 6, &["slide.svs", "needs", "10.00 MiB", "--memory"]);
    refused(&["--threads", "0", "--quiet"], 2, &["thread"]);
    let convert = |output: &Path| run(microtome().arg("convert").arg(&slide).arg(output).arg("--quiet"));
    convert(&file).refused(2, &["notes.txt", "there already"]);
    convert(&slide).refused(2, &["slide.svs", "take the place"]);
    convert(place.folder.path()).refused(2, &["take the place", "slide.svs"]);
    convert(&place.path("missing/image.ome.zarr")).refused(4, &["missing", "No such file"]);
    run(microtome().arg("convert").arg(&slide).arg(place.path("image.ozx")).args(["--format", "0.4", "--quiet"]))
        .refused(2, &["image.ozx", "--format 0.4"]);
    run(microtome().arg("convert").arg(place.path("no.svs")).arg(&output)).refused(4, &["no.svs", "No such file"]);
    assert!(place.content() == before);
}

#[test]
fn killed_twenty_times_a_conversion_ends_with_the_bytes_of_an_undisturbed_one() {
    const KILLS: usize = 20;
    let place = Place::new();
    let (slide, whole) = (slide(&place), place.path("whole.ome.zarr"));
    let start = Instant::now();
    run(&mut begin(&slide, &whole)).ended(0);
    let undisturbed = start.elapsed();
    let expected = content(&whole);
    let seed = 4_u64;
    // Knuth's MMIX linear congruential generator.
    let mut state = seed;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / (1_u64 << 31) as f64
    };
    let (mut kills, mut stores) = (0, 0);
    while kills < KILLS {
        stores += 1;
        let output = place.path(&format!("killed-{stores}.ome.zarr"));
        for lives in 1.. {
            let mut child = begin(&slide, &output)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // Longer and longer, so that it ends at last.
            std::thread::sleep(undisturbed.mul_f64(random() * f64::from(lives) / 4.0));
            // One that has ended by itself cannot be killed any more, and its status says so.
            child.kill().unwrap();
            let (code, signal, text) = ended(child);
            if signal != Some(9) {
                assert_eq!(code, Some(0), "seed {seed}, after {kills} kills: {text}");
                break;
            }
            kills += 1;
        }
        assert!(content(&output) == expected, "seed {seed}: other bytes after {kills} kills");
        let verified = run(microtome().arg("verify").arg(&output)).ended(0);
        assert!(verified.stdout.contains(" 0 faulty"), "{verified:?}");
        // A kill after the last step but one, while the report is written, leaves a part of that, which nobody reads.
        let part = |name: &Path| {
            name.to_string_lossy().starts_with("report.json.") && name.extension() == Some("part".as_ref())
        };
        let left: Vec<_> = content(&run_folder(&output)).into_keys().filter(|name| !part(name)).collect();
        assert!(
            left.iter().all(|name| ["journal.jsonl", "report.json"].iter().any(|n| name == Path::new(n))),
            "{left:?}"
        );
    }
    println!("seed {seed}: {kills} kills, {stores} stores; undisturbed {undisturbed:?}");
}

#[test]
fn of_two_at_once_one_wins_and_the_other_says_so() {
    let place = Place::new();
    let (slide, output) = (slide(&place), place.path("image.ome.zarr"));
    let first = begun(&slide, &output);
    run(&mut begin(&slide, &output)).refused(2, &["image.ome.zarr", "another process"]);
    run(begin(&slide, &output).arg("--overwrite")).refused(2, &["image.ome.zarr", "another process"]);
    signal(&first, "CONT");
    let (code, _, text) = ended(first);
    assert_eq!((code, text.as_str()), (Some(0), ""));
    let whole = place.path("whole.ome.zarr");
    run(&mut begin(&slide, &whole)).ended(0);
    assert!(content(&output) == content(&whole));

    // Begun at the same moment, again and again: whoever comes second finds it in use, or done.
    for n in 0..4 {
        let output = place.path(&format!("{n}.ome.zarr"));
        let spawn = || {
            begin(&slide, &output).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let codes = [spawn(), spawn()].map(|child| {
            let (code, _, text) = ended(child);
            assert!(code == Some(0) || (code == Some(2) && text.contains(".ome.zarr")), "{code:?}: {text}");
            code
        });
        assert!(codes.contains(&Some(0)), "{codes:?}");
        assert!(content(&output) == content(&whole), "{codes:?}");
    }
}

/// A loser may look at the place just before the winner takes it, and must not clear it away after that.
#[test]
fn of_three_at_once_the_losers_leave_the_winner_alone() {
    let place = Place::new();
    let slide = slide(&place);
    for n in 0..20 {
        let output = place.path(&format!("{n}.ome.zarr"));
        let spawn = || {
            let mut command = begin(&slide, &output);
            command.args(["--rect", "0,0,256,256"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            command.spawn().unwrap()
        };
        let ends = [spawn(), spawn(), spawn()].map(ended);
        let won = ends.iter().filter(|(code, ..)| *code == Some(0)).count();
        assert!(won >= 1 && ends.iter().all(|(code, ..)| matches!(code, Some(0 | 2))), "round {n}: {ends:?}");
        assert!(matches!(inspect(&output).unwrap(), Found::Complete(_)), "round {n}: {ends:?}");
    }
}

#[test]
fn a_signal_stops_it_and_the_same_command_goes_on() {
    let place = Place::new();
    let (slide, whole) = (slide(&place), place.path("whole.ome.zarr"));
    run(&mut begin(&slide, &whole)).ended(0);
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        // On a busy machine a conversion may be over before anybody saw it begin: then another one is stopped.
        let stopped = (0..10).find_map(|attempt| {
            let output = place.path(&format!("{name}-{attempt}.ome.zarr"));
            let child = begun(&slide, &output);
            signal(&child, name);
            signal(&child, "CONT");
            let (found, _, text) = ended(child);
            (found != Some(0)).then_some((output, found, text))
        });
        let (output, found, text) = stopped.expect("one of ten is stopped in time");
        assert_eq!(found, Some(code), "{text}");
        assert!(text.lines().any(|line| line.starts_with("error: ") && line.contains("stopped")), "{text}");
        assert!(matches!(inspect(&output).unwrap(), Found::Unfinished));
        run(&mut begin(&slide, &output)).ended(0);
        assert!(content(&output) == content(&whole));
        let report: Value =
            serde_json::from_slice(&std::fs::read(run_folder(&output).join("report.json")).unwrap()).unwrap();
        assert!(report["resumed_shards"].as_u64().unwrap() >= 3, "{}", report["resumed_shards"]);
    }
}

/// No file may become larger than this allows: the one failure of a disk that anybody can have anywhere.
#[test]
fn a_file_that_may_not_grow() {
    let place = Place::new();
    let (slide, output, whole) = (slide(&place), place.path("image.ome.zarr"), place.path("whole.ome.zarr"));
    let mut limited = Command::new("sh");
    // In units of 512 or 1024 bytes. Without the trap the signal would end it before it could say anything.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 4; exec \"$@\"", "sh"]);
    let command = begin(&slide, &output);
    limited.arg(command.get_program()).args(command.get_args());
    run(&mut limited).refused(4, &["image.ome.zarr", "File too large"]);
    run(&mut begin(&slide, &output)).ended(0);
    run(&mut begin(&slide, &whole)).ended(0);
    assert!(content(&output) == content(&whole));
}

/// In a name space of its own, where disks can be as small as one likes.
#[test]
fn a_disk_that_is_full() {
    let allowed = Command::new("unshare").args(["-rm", "true"]).stderr(Stdio::null()).status();
    if !allowed.is_ok_and(|status| status.success()) {
        skip("unshare -rm is not allowed here, so there are no small disks");
        return;
    }
    let place = Place::new();
    let (slide, whole, disk, saved) =
        (slide(&place), place.path("whole.ome.zarr"), place.path("disk"), place.path("saved"));
    run(&mut begin(&slide, &whole)).ended(0);
    std::fs::create_dir(&disk).unwrap();
    let script = r#"
        mount -t tmpfs -o size=4m tmpfs "$DISK"
        code=0
        "$@" 2>"$SAID" </dev/null || code=$?
        echo "exit $code" >>"$SAID"
        mount -o remount,size=64m "$DISK"
        "$@" </dev/null
        cp -r "$DISK" "$SAVED"
    "#;
    let command = begin(&slide, &disk.join("image.ome.zarr"));
    let said = place.path("said");
    let mut shell = Command::new("unshare");
    shell.args(["-rm", "sh", "-ec", script, "sh"]).arg(command.get_program()).args(command.get_args());
    shell.env("SAID", &said).env("DISK", &disk).env("SAVED", &saved);
    let ran = run(&mut shell);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let said = std::fs::read_to_string(said).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("No space left on device") && lines[1] == "exit 4", "{said}");
    assert!(content(&saved.join("image.ome.zarr")) == content(&whole));
    let report: Value =
        serde_json::from_slice(&std::fs::read(saved.join("image.ome.zarr.run/report.json")).unwrap()).unwrap();
    assert!(report["resumed_shards"].as_u64().unwrap() >= 10, "{}", report["resumed_shards"]);
}

/// The shard that is taken where none is asked for is one that can be.
#[test]
fn any_chunk_has_a_shard() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    for chunk in ["255", "511", "512", "1025"] {
        run(microtome().arg("convert").arg(&slide).arg(place.path(chunk)).args(["--chunk", chunk])).ended(0);
    }
}
