//! What a run foretells, and what it writes besides labels.

use microtome::io::store::OmeZarr;
use microtome_testkit::tiff::{Compression, TiffSlide};
use serde_json::Value;

use crate::{Place, run};

#[test]
fn a_dry_run_says_what_would_happen_and_writes_nothing() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let mask = place.path("mask.ome.zarr");
    let before = place.content();
    let ran = run(place.segment(&[&slide], &mask).arg("--dry-run")).ended(0);
    for words in [
        "target grid  300 x 200",
        "tiles        6 of 6 run, 0 skipped",
        "strips       1 of 300",
        "memory       ",
        "of 1.00 GiB",
        "disk         at most",
        "time         about",
    ] {
        assert!(ran.stdout.contains(words), "{words} is missing: {ran:?}");
    }
    let ran = run(place.segment(&[&slide], &mask).args(["--dry-run", "--json", "--quiet"])).ended(0);
    let forecast = &serde_json::from_str::<Value>(&ran.stdout).unwrap()["forecast"];
    let number =
        |path: &str| forecast.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}: {ran:?}"));
    assert_eq!((number("/tiles/run"), number("/strips"), number("/blocks")), (6.0, 1.0, 1.0));
    assert!(number("/memory_total") <= number("/budget") && number("/seconds/total") > 0.0);
    // A mask of 8 bits, and a third more for its levels.
    assert_eq!(number("/disk/stores"), 80_000.0);
    run(place.segment(&[&slide], &mask).args(["--dry-run", "--memory", "64MiB"])).refused(6, &["--memory ", "MiB"]);
    assert!(place.content() == before, "something was written");

    // The run itself says the same at its start.
    let ran = run(&mut place.segment(&[&slide], &mask)).ended(0);
    assert!(ran.stderr.contains("slide.png: tiles        6 of 6 run, 0 skipped"), "{ran:?}");
}

#[test]
fn probabilities_and_confidence_lie_beside_the_mask() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let mask = place.path("mask.ome.zarr");
    run(place.segment(&[&slide], &mask).args(["--probabilities", "--confidence", "--quiet"])).ended(0);
    for (name, channels) in [("mask.probabilities.ome.zarr", 2), ("mask.confidence.ome.zarr", 1)] {
        let store = OmeZarr::open(place.path(name)).unwrap();
        assert_eq!((store.info().channels, store.info().levels[0].size.width), (channels, 300), "{name}");
    }
    let again = run(place.segment(&[&slide], &mask).args(["--probabilities", "--confidence"])).ended(0);
    assert!(again.stdout.contains("done already"), "{again:?}");
    // Without them it is another run.
    run(place.segment(&[&slide], &mask).arg("--quiet")).refused(5, &["products: "]);
    let verified = run(crate::microtome().arg("verify").arg(&mask)).ended(0);
    assert!(verified.stdout.contains("0 faulty"), "{verified:?}");
}

/// The model is nnU-Net's, which cuts off black borders.
#[test]
fn what_was_cut_off_is_said() {
    let place = Place::new();
    let slide = TiffSlide::rgb(&[(300, 200)], |_, x, y, c| {
        let bright = (71..250).contains(&x) && (20..200).contains(&y);
        if bright { (1 + (x * 7 + y * 13 + c as u64 * 50) % 251) as u16 } else { 0 }
    });
    let slide = place.file("slide.tif", slide.bytes());
    let mask = place.path("mask.ome.zarr");
    let words = "crop         179 x 180 at (71, 20) of level 0; what lies outside is black, and background in the mask";
    let planned = run(place.segment(&[&slide], &mask).arg("--dry-run")).ended(0);
    assert!(planned.stdout.contains(words), "{planned:?}");
    let ran = run(&mut place.segment(&[&slide], &mask)).ended(0);
    assert!(ran.stdout.contains(words) && ran.stderr.contains("slide.tif: crop"), "{ran:?}");
    let report = std::fs::read_to_string(place.path("mask.ome.zarr.run/report.html")).unwrap();
    assert!(report.contains("179 x 180 at (71, 20) of level 0"), "{report}");
    run(place.segment(&[&slide], &mask).args(["--crop-nonzero", "off", "--quiet"]))
        .refused(5, &["crop_nonzero: true there"]);
    let again = run(place.segment(&[&slide], &mask).args(["--crop-nonzero", "on"])).ended(0);
    assert!(again.stdout.contains("done already"), "{again:?}");
    let whole = run(place.segment(&[&slide], &mask).args(["--crop-nonzero", "off", "--overwrite"])).ended(0);
    assert!(!whole.stdout.contains("crop  "), "{whole:?}");
}

#[test]
fn tiles_that_cannot_be_read_fail_the_run_or_are_listed() {
    let place = Place::new();
    let mut slide = TiffSlide::rgb(&[(700, 500)], |_, x, y, c| ((x * 7 + y * 13 + c as u64 * 50) % 251) as u16);
    slide.compression = Compression::Deflate;
    let mut bytes = slide.bytes();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].fill(0xff);
    let slide = place.file("slide.tif", bytes);
    let mask = place.path("mask.ome.zarr");
    run(place.segment(&[&slide], &mask).arg("--quiet")).refused(4, &["slide.tif", "level 0", "column", "row"]);

    let filled = || {
        let mut command = place.segment(&[&slide], &mask);
        command.args(["--on-bad-tile", "fill"]);
        command
    };
    let ran = run(&mut filled()).ended(3);
    assert!(ran.stdout.contains("unreadable   level 0, column"), "{ran:?}");
    assert!(ran.stderr.contains("warning: ") && ran.stderr.contains("could not be read"), "{ran:?}");
    let report = std::fs::read_to_string(place.path("mask.ome.zarr.run/report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    let tiles = report["unreadable"].as_array().unwrap();
    assert!(!tiles.is_empty() && tiles.iter().all(|t| t["column"].is_u64() && t["cause"].is_string()), "{tiles:?}");
    // Done already, but not without faults.
    let again = run(&mut filled()).ended(3);
    assert!(again.stdout.contains("done already"), "{again:?}");
}

#[test]
fn a_scratch_folder_that_is_not_there_is_named() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let mask = place.path("mask.ome.zarr");
    let gone = place.path("gone");
    run(place.segment(&[&slide], &mask).args(["--quiet", "--scratch"]).arg(&gone)).refused(4, &["gone"]);
    assert!(!mask.exists());
    std::fs::create_dir(&gone).unwrap();
    run(place.segment(&[&slide], &mask).args(["--quiet", "--scratch"]).arg(&gone)).ended(0);
    assert!(std::fs::read_dir(&gone).unwrap().next().is_none(), "nothing is left there");
}
