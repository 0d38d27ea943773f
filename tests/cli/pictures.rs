//! `preview` and `info`.

use microtome::io::Size;
use serde_json::Value;

use crate::{Place, microtome, read, run};

#[test]
fn previews_of_slides_and_masks() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let mask = place.path("mask.ome.zarr");
    run(place.segment(&[&slide], &mask).arg("--quiet")).ended(0);
    let preview = |source: &std::path::Path, output: &str, flags: &[&str]| {
        let output = place.path(output);
        run(microtome().arg("preview").arg(source).arg(&output).args(flags)).ended(0);
        read(&output)
    };
    let original = read(&slide);
    assert!(preview(&slide, "whole.png", &[]) == original, "a small slide is shown as it is");
    assert!(preview(&slide, "whole.webp", &[]) == original, "WebP is lossless");
    assert_eq!(preview(&slide, "whole.jpg", &["--quality", "50"]).size(), original.size());
    assert_eq!(preview(&slide, "small.PNG", &["--size", "100"]).size(), Size::new(100, 67));

    let masked = preview(&mask, "mask.png", &[]);
    assert_eq!((masked.size(), masked.channels()), (original.size(), 3));
    let colors: std::collections::BTreeSet<[u8; 3]> =
        masked.as_u8().unwrap().chunks_exact(3).map(|p| [p[0], p[1], p[2]]).collect();
    assert_eq!(colors.into_iter().collect::<Vec<_>>(), [[0, 0, 0], [230, 159, 0]]);

    let overlay = preview(&slide, "overlay.png", &["--overlay", mask.to_str().unwrap()]);
    let (mut outlined, mut other) = (0, 0);
    for (a, b) in overlay.as_u8().unwrap().chunks_exact(3).zip(original.as_u8().unwrap().chunks_exact(3)) {
        if a != b {
            *(if a == [230, 159, 0] { &mut outlined } else { &mut other }) += 1;
        }
    }
    assert!(outlined > 500 && other == 0, "{outlined} outlined, {other} changed otherwise");
}

#[test]
fn previews_that_cannot_be_made() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let mask = place.path("mask.ome.zarr");
    run(place.segment(&[&slide], &mask).arg("--quiet")).ended(0);
    let small = place.path("small.png");
    run(microtome().arg("preview").arg(&slide).arg(&small).args(["--size", "90"])).ended(0);
    let square = place.path("square.png");
    std::fs::copy(crate::repository("models/nuclei/test/input.png"), &square).unwrap();
    let before = place.content();
    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        run(microtome().arg("preview").args(arguments).current_dir(place.folder.path())).refused(code, words);
    };
    refused(&["slide.png", "picture.xyz"], 2, &["picture.xyz", ".png"]);
    refused(&["slide.png", "picture"], 2, &["picture", ".png"]);
    refused(&["missing.svs", "picture.png"], 4, &["missing.svs"]);
    refused(&["slide.png", "missing/picture.png"], 4, &["missing/picture.png"]);
    refused(&["slide.png", "picture.png", "--overlay", "missing.ome.zarr"], 4, &["missing.ome.zarr"]);
    refused(&["slide.png", "picture.png", "--overlay", "slide.png"], 4, &["slide.png"]);
    refused(&["square.png", "picture.png", "--overlay", "mask.ome.zarr"], 2, &["mask.ome.zarr", "proportions"]);
    refused(&["mask.ome.zarr", "picture.png", "--overlay", "mask.ome.zarr"], 2, &["--overlay"]);
    refused(&[".", "picture.png"], 4, &[]);
    run(microtome().args(["preview", "slide.png", "picture.png", "--size", "0"])).ended(2);
    run(microtome().args(["preview", "slide.png", "picture.png", "--quality", "101"])).ended(2);
    assert!(place.content() == before, "something was left behind");
}

#[test]
fn info_of_slides_and_stores() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let mask = place.path("mask.ome.zarr");
    run(place.segment(&[&slide], &mask).args(["--quiet", "--mpp", "0.25"])).ended(0);
    let info =
        |path: &std::path::Path, flags: &[&str]| run(microtome().arg("info").arg(path).args(flags)).ended(0).stdout;
    let text = info(&slide, &[]);
    for word in ["slide.png", "png", "300 x 200", "3 x 8 bits", "resolution   unknown"] {
        assert!(text.contains(word), "{word} is missing: {text}");
    }
    let json: Value = serde_json::from_str(&info(&slide, &["--json"])).unwrap();
    assert_eq!((&json["format"], &json["levels"][0]["size"]["width"]), (&"png".into(), &300.into()));
    assert_eq!(json["resolution"], Value::Null);

    let text = info(&mask, &[]);
    assert!(text.contains("0.25 x 0.25 um") && text.contains("300 x 200"), "{text}");
    let json: Value = serde_json::from_str(&info(&mask, &["--json"])).unwrap();
    assert_eq!((&json["content"]["kind"], &json["version"]), (&"labels".into(), &"0.5".into()));
    assert_eq!(json["content"]["classes"][1]["name"], "nucleus");

    run(microtome().arg("info").arg(place.path("missing.svs"))).refused(4, &["missing.svs", "No such file"]);
    run(microtome().arg("info").arg(place.folder.path())).refused(4, &[&place.folder.path().display().to_string()]);
    run(microtome().arg("info").arg(place.file("text.svs", "hello"))).refused(4, &["text.svs"]);
}
