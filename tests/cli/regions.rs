//! `--roi`, of `segment` and of `preview`.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::{Place, microtome, read, repository, run};

/// `microtome segment` with nnU-Net's model of `tests/models`, as it chooses where to run.
fn segment(slide: &Path, output: &Path) -> Command {
    let mut command = microtome();
    command.arg("segment").arg(slide).arg("-m").arg(repository("tests/models/nnunet-nuclei")).arg("-o").arg(output);
    command.args(["--model-mpp", "native", "--no-tta", "--step-size", "1", "--memory", "1GiB", "--threads", "2"]);
    command
}

fn annotations(place: &Place) -> std::path::PathBuf {
    place.file(
        "annotations.geojson",
        r#"{"type":"FeatureCollection","features":[{"type":"Feature","properties":{"classification":{"name":"Tumor"}},
            "geometry":{"type":"Polygon","coordinates":[[[20,20],[120,20],[120,90],[20,90],[20,20]]]}}]}"#,
    )
}

#[test]
fn a_region_is_segmented_and_shown() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let roi = annotations(&place);
    let whole = place.path("whole.ome.zarr");
    run(segment(&slide, &whole).args(["--tissue", "none", "--quiet"])).ended(0);
    let mask = place.path("mask.ome.zarr");
    let said = run(segment(&slide, &mask).arg("--roi").arg(&roi).args(["--roi-value", "Tumor", "--json"])).ended(0);
    let said: Value = serde_json::from_str(&said.stdout).unwrap();
    let region = &said["outcome"]["done"]["roi"];
    assert_eq!((&region["values"], &region["path"]), (&serde_json::json!(["Tumor"]), &serde_json::json!(roi)));
    let share = region["share"].as_f64().unwrap();
    assert!((share - 7000.0 / 60000.0).abs() < 1e-12, "{share}");

    // Outside the rectangle nothing, inside it what the whole run found.
    let pixels = |store: &Path| {
        // A PNG would be transparent outside.
        let picture = place.path("labels.webp");
        run(microtome().arg("preview").arg(store).arg(&picture)).ended(0);
        read(&picture).as_u8().unwrap().to_vec()
    };
    let (part, whole) = (pixels(&mask), pixels(&whole));
    let mut differing = 0;
    for (i, (part, whole)) in part.chunks_exact(3).zip(whole.chunks_exact(3)).enumerate() {
        let (x, y) = (i % 300, i / 300);
        let inside = (20..120).contains(&x) && (20..90).contains(&y);
        assert!(if inside { part == whole } else { part == [0, 0, 0] }, "pixel {x} {y}");
        differing += usize::from(part != whole);
    }
    assert!(differing > 100, "the whole run found nothing outside");

    // The same region as the run left it: the same pixels.
    let saved = place.path("mask.ome.zarr.run/roi.png");
    let again = place.path("again.ome.zarr");
    run(segment(&slide, &again).arg("--roi").arg(&saved).args(["--roi-value", "255", "--quiet"])).ended(0);
    assert!(pixels(&again) == part, "the saved region gives another mask");

    let preview = |flags: &[&str]| {
        let picture = place.path("region.png");
        run(microtome().arg("preview").arg(&slide).arg(&picture).args(flags)).ended(0);
        read(&picture).as_u8().unwrap().chunks_exact(3).map(|p| p == [0, 0, 255]).collect::<Vec<_>>()
    };
    let outline = preview(&["--roi", roi.to_str().unwrap(), "--roi-value", "Tumor"]);
    assert_eq!(outline.iter().filter(|&&blue| blue).count(), 2 * (100 + 70) - 4);
    assert!(outline[20 * 300 + 20] && outline[89 * 300 + 119] && !outline[21 * 300 + 21]);
    preview(&["--roi", "auto", "--overlay", place.path("whole.ome.zarr").to_str().unwrap()]);
}

#[test]
fn regions_that_are_refused() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let roi = annotations(&place);
    let before = place.content();
    let refused = |flags: &[&str], words: &[&str]| {
        let mut command = segment(&slide, &place.path("mask.ome.zarr"));
        run(command.arg("--quiet").args(flags).current_dir(place.folder.path())).refused(2, words);
    };
    refused(&["--roi", "missing.png", "--roi-value", "1"], &["missing.png", "No such file"]);
    refused(&["--roi", "annotations.geojson"], &["annotations.geojson", "--roi-value", "\"Tumor\""]);
    refused(&["--roi", "annotations.geojson", "--roi-value", "Tumour"], &["\"Tumour\"", "\"Tumor\""]);
    refused(&["--roi", "slide.png", "--roi-value", "1"], &["slide.png", "colours"]);
    refused(&["--roi", "annotations.geojson", "--tissue", "none"], &["--roi", "--tissue"]);
    refused(&["--roi-value", "1"], &["--roi"]);
    let other = place.slide("other.png");
    let output = place.path("masks");
    let mut several = segment(&slide, &output);
    run(several.arg(&other).arg("--roi").arg(&roi)).refused(2, &["--roi", "one slide"]);
    std::fs::remove_file(&other).unwrap();
    let preview = |flags: &[&str], words: &[&str]| {
        run(microtome().args(["preview", "slide.png", "out.png"]).args(flags).current_dir(place.folder.path()))
            .refused(2, words);
    };
    preview(&["--roi", "annotations.geojson"], &["--roi-value", "\"Tumor\""]);
    preview(&["--roi", "auto", "--roi-value", "1"], &["--roi auto"]);
    preview(&["--roi-value", "1"], &["--roi"]);
    assert!(place.content() == before, "something was left behind");
}
