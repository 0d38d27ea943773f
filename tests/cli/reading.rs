//! `read` and `validate`, and the flags with which any command opens a slide.

use serde_json::Value;

use crate::{Place, microtome, read, run};
use microtome::io::{Pixels, Rect, Size};

#[test]
fn a_rectangle_is_the_slides_pixels() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let all = read(&slide);
    let out = place.path("part.png");
    run(microtome().arg("read").arg(&slide).arg(&out).args(["--rect", "20,-5,50,40"])).ended(0);
    let mut expected = Pixels::filled(Size::new(50, 40), all.sample_type(), &[255; 3]);
    expected.blit(Rect::new(20, -5, 50, 40), &all, all.size().rect());
    assert!(read(&out) == expected, "inside the slide's pixels, outside the background");

    run(microtome().arg("read").arg(&slide).arg(&out)).refused(2, &["part.png", "--overwrite"]);
    assert!(read(&out) == expected, "what was there stays");
    run(microtome().arg("read").arg(&slide).arg(&out).args(["--overwrite", "--no-mmap"])).ended(0);
    assert!(read(&out) == all);
    run(microtome().arg("read").arg(&slide).arg(&out).args(["--overwrite", "--channel", "1"])).ended(0);
    assert!(read(&out) == all.channel(1));
}

#[test]
fn what_cannot_be_read_is_said() {
    let place = Place::new();
    place.slide("slide.png");
    let before = place.content();
    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        run(microtome().arg("read").args(arguments).current_dir(place.folder.path())).refused(code, words);
    };
    refused(&["slide.png", "out.jpg"], 2, &["out.jpg", ".png"]);
    refused(&["slide.png", "out.png", "--level", "1"], 2, &["slide.png", "level 1"]);
    refused(&["slide.png", "out.png", "--associated", "label"], 2, &["slide.png", "label"]);
    refused(&["slide.png", "out.png", "--channel", "3"], 2, &["channel 3"]);
    refused(&["slide.png", "out.png", "--rect", "0,0,0,5"], 2, &["rectangle"]);
    refused(&["slide.png", "out.png", "--rect", "0,0,5"], 2, &["four numbers"]);
    refused(&["missing.svs", "out.png"], 4, &["missing.svs"]);
    refused(&["slide.png", "missing/out.png"], 4, &["missing/out.png"]);
    // 300 x 200 pixels of 3 bytes, and one for alpha.
    refused(&["slide.png", "out.png", "--decode-limit", "200000"], 4, &["slide.png", "240000 bytes", "200000"]);
    assert_eq!(place.content(), before, "nothing was written");
    run(microtome()
        .args(["read", "slide.png", "out.png", "--decode-limit", "240000"])
        .current_dir(place.folder.path()))
    .ended(0);
    let noted = run(microtome().args(["info", "slide.png", "--icc", "srgb"]).current_dir(place.folder.path())).ended(0);
    assert!(noted.stderr.contains("no ICC profile"), "{}", noted.stderr);
}

#[test]
fn every_bad_tile_is_named() {
    let place = Place::new();
    let good = place.slide("slide.png");
    let said = run(microtome().arg("validate").arg(&good).args(["--json", "--quiet"])).ended(0);
    let said: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(said["validation"], serde_json::json!({ "tiles": 1, "faults": [] }));

    let Some(slide) = microtome_testkit::assets::cmu_small_region() else { return };
    let mut bytes = std::fs::read(slide).unwrap();
    // The streams of two tiles lose their first marker.
    let starts: Vec<usize> = (0..bytes.len() - 3).filter(|&at| bytes[at..].starts_with(&[0xff, 0xd8, 0xff])).collect();
    for at in [starts[3], starts[40]] {
        bytes[at] = 0;
    }
    let bad = place.file("bad.svs", bytes);
    let said = run(microtome().arg("validate").arg(&bad).args(["--threads", "2"])).ended(3);
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[..2].iter().all(|line| line.contains("bad.svs: level 0, column ")), "{lines:?}");
    assert!(lines[2].contains("130 tiles tried, 2 faults"), "{lines:?}");
    run(microtome().arg("validate").arg(place.path("missing.svs"))).refused(4, &["missing.svs"]);
    run(microtome().arg("validate").arg(&good).args(["--threads", "0"])).refused(2, &["0 threads"]);
}

#[test]
fn the_power_of_the_objective_counts_where_it_is_asked_for() {
    let Some(slide) = microtome_testkit::assets::cmu_small_region() else { return };
    let place = Place::new();
    // The same slide without its resolution: `MPP` is called otherwise, in a description of the same length.
    let mut bytes = std::fs::read(slide).unwrap();
    let at = bytes.windows(4).position(|word| word == b"MPP ").unwrap();
    bytes[at..at + 3].copy_from_slice(b"XXX");
    let slide = place.file("slide.svs", bytes);
    let output = place.path("mask.ome.zarr");
    let forecast = |flags: &[&str]| {
        let mut command = microtome();
        command
            .arg("segment")
            .arg(&slide)
            .arg("-m")
            .arg(crate::repository("tests/models/nnunet-nuclei"))
            .arg("-o")
            .arg(&output);
        run(command.args(["--dry-run", "--quiet", "--memory", "1GiB"]).args(flags))
    };
    forecast(&[]).refused(2, &["slide.svs", "--mpp"]);
    forecast(&["--mpp-from-objective", "--mpp", "0.5"]).refused(2, &["--mpp"]);
    let said: Value = serde_json::from_str(&forecast(&["--mpp-from-objective", "--json"]).ended(0).stdout).unwrap();
    let resolution = &said["forecast"]["geometry"]["resolution"];
    assert_eq!(resolution["mpp"]["x"], 0.5, "{said}");
    assert_eq!(resolution["source"], "objective-power");
}
