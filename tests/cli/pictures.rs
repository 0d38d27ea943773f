//! `preview` and `info`.

use microtome::io::{Pixels, SampleType, Size};
use microtome::preview::{PreviewOptions, save};
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

    let masked = preview(&mask, "mask.webp", &[]);
    assert_eq!((masked.size(), masked.channels()), (original.size(), 3));
    let colors: std::collections::BTreeSet<[u8; 3]> =
        masked.as_u8().unwrap().chunks_exact(3).map(|p| [p[0], p[1], p[2]]).collect();
    assert_eq!(colors.into_iter().collect::<Vec<_>>(), [[0, 0, 0], [230, 159, 0]]);
    // A PNG of a mask holds the labels themselves; our reader lays it over white, where it is transparent.
    let transparent = preview(&mask, "mask.png", &[]);
    let pairs = transparent.as_u8().unwrap().chunks_exact(3).zip(masked.as_u8().unwrap().chunks_exact(3));
    for (a, b) in pairs {
        assert_eq!(a, if b == [0; 3] { [255; 3] } else { [230, 159, 0] });
    }
    let mut png = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(place.path("mask.png")).unwrap()));
    png.set_transformations(png::Transformations::IDENTITY);
    let mut png = png.read_info().unwrap();
    assert_eq!((png.info().color_type, png.info().bit_depth), (png::ColorType::Indexed, png::BitDepth::Eight));
    assert_eq!(png.info().palette.as_deref(), Some(&[0, 0, 0, 230, 159, 0][..]));
    assert_eq!(png.info().trns.as_deref(), Some(&[0][..]));
    let mut labels = vec![0; 300 * 200];
    png.next_frame(&mut labels).unwrap();
    let expected = masked.as_u8().unwrap().chunks_exact(3).map(|pixel| u8::from(pixel != [0; 3]));
    assert!(labels.iter().copied().eq(expected));

    let overlay = preview(&slide, "overlay.png", &["--overlay", mask.to_str().unwrap()]);
    let (mut outlined, mut other) = (0, 0);
    for (a, b) in overlay.as_u8().unwrap().chunks_exact(3).zip(original.as_u8().unwrap().chunks_exact(3)) {
        if a != b {
            *(if a == [230, 159, 0] { &mut outlined } else { &mut other }) += 1;
        }
    }
    assert!(outlined > 500 && other == 0, "{outlined} outlined, {other} changed otherwise");

    let overlay =
        preview(&slide, "filled.png", &["--overlay", mask.to_str().unwrap(), "--style", "fill", "--opacity", "0.4"]);
    let mixed = overlay.as_u8().unwrap().chunks_exact(3).zip(original.as_u8().unwrap().chunks_exact(3));
    for ((now, before), label) in mixed.zip(&labels) {
        for ((now, before), color) in now.iter().zip(before).zip([230.0, 159.0, 0.0]) {
            let expected = if *label == 0 { f64::from(*before) } else { f64::from(*before) * 0.6 + color * 0.4 };
            assert!((f64::from(*now) - expected).abs() <= 0.5001, "{now} in place of {expected}");
        }
    }
    let covered =
        preview(&slide, "covered.png", &["--overlay", mask.to_str().unwrap(), "--style", "fill", "--opacity", "1"]);
    let count = covered.as_u8().unwrap().chunks_exact(3).filter(|pixel| *pixel == [230, 159, 0]).count();
    assert_eq!(count, labels.iter().filter(|&&label| label == 1).count());

    let with_legend = preview(&slide, "legend.png", &["--overlay", mask.to_str().unwrap(), "--legend"]);
    assert_eq!(with_legend.size(), Size::new(300, 216), "a line below the picture");
    let outlined = preview(&slide, "outlined.png", &["--overlay", mask.to_str().unwrap(), "--style", "outline"]);
    assert!(with_legend.as_u8().unwrap()[..300 * 200 * 3] == *outlined.as_u8().unwrap(), "nothing is hidden");
    let below = &with_legend.as_u8().unwrap()[300 * 200 * 3..];
    assert_eq!(below.chunks_exact(3).filter(|pixel| *pixel == [230, 159, 0]).count(), 36, "a swatch of 6 x 6");
    let masked_legend = preview(&mask, "mask-legend.png", &["--legend"]);
    assert_eq!(masked_legend.size(), Size::new(300, 216));
}

#[test]
fn a_scale_bar_takes_a_resolution() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let mask = place.path("mask.ome.zarr");
    run(place.segment(&[&slide], &mask).args(["--quiet", "--mpp", "0.25"])).ended(0);
    let preview = |arguments: &[&str]| run(microtome().arg("preview").args(arguments).current_dir(place.folder.path()));
    preview(&["slide.png", "out.png", "--scale-bar"]).refused(2, &["slide.png", "resolution is not known"]);
    assert!(!place.path("out.png").exists());
    // 300 pixels of 0.25 um, shown as 150: a quarter of the width are 18.75 um, and 10 um are 20 pixels.
    preview(&["mask.ome.zarr", "out.png", "--scale-bar", "--size", "150"]).ended(0);
    let picture = read(&place.path("out.png"));
    assert_eq!(picture.size(), Size::new(150, 116));
    let row = &picture.as_u8().unwrap()[(100 + 7) * 150 * 3..][..150 * 3];
    let bar: Vec<usize> = row.chunks_exact(3).enumerate().filter(|(_, p)| *p == [0; 3]).map(|(x, _)| x).collect();
    assert_eq!(bar[..20], (4..24).collect::<Vec<_>>()[..]);
    assert!(bar[20..].iter().all(|&x| x > 26), "then comes text: {bar:?}");
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
    std::fs::copy(crate::repository("tests/models/nnunet-nuclei/test/input.png"), &square).unwrap();
    run(microtome().arg("convert").arg(&slide).arg(place.path("image.ome.zarr")).arg("--quiet")).ended(0);
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
    refused(&["slide.png", "picture.png", "--overlay", "image.ome.zarr"], 2, &["image.ome.zarr", "no mask of labels"]);
    refused(&["mask.ome.zarr", "picture.png", "--overlay", "mask.ome.zarr"], 2, &["--overlay"]);
    refused(&["slide.png", "picture.png", "--legend"], 2, &["--legend", "--overlay"]);
    let fill = ["slide.png", "picture.png", "--overlay", "mask.ome.zarr", "--style"];
    refused(&[&fill[..], &["fill", "--opacity", "1.5"]].concat(), 2, &["--opacity", "0 to 1"]);
    refused(&[&fill[..], &["outline", "--opacity", "0.5"]].concat(), 2, &["--opacity", "fill"]);
    refused(&["slide.png", "picture.png", "--style", "fill"], 2, &["--overlay"]);
    refused(&[".", "picture.png"], 4, &[]);
    run(microtome().args(["preview", "slide.png", "picture.png", "--size", "0"])).ended(2);
    run(microtome().args(["preview", "slide.png", "picture.png", "--quality", "101"])).ended(2);
    assert!(place.content() == before, "something was left behind");
}

#[test]
fn a_preview_does_not_take_the_place_of_what_it_shows() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    place.slide("photo.jpg");
    let region = Pixels::filled(Size::new(30, 20), SampleType::U8, &[255]);
    save(&region, &place.path("region.png"), PreviewOptions::default()).unwrap();
    std::fs::create_dir(place.path("tiles_files")).unwrap();
    std::fs::copy(&slide, place.path("tiles_files/slide.png")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(&slide, place.path("link.png")).unwrap();
    let before = place.content();
    let preview = |arguments: &[&str]| run(microtome().arg("preview").args(arguments).current_dir(place.folder.path()));
    preview(&["slide.png", "slide.png"]).refused(2, &["slide.png"]);
    preview(&["photo.jpg", "./photo.jpg", "--size", "10"]).refused(2, &["photo.jpg"]);
    preview(&["photo.jpg", "region.png", "--roi", "region.png", "--roi-value", "255"]).refused(2, &["region.png"]);
    preview(&["tiles_files/slide.png", "tiles.dzi", "--overwrite"]).refused(2, &["tiles_files"]);
    if cfg!(unix) {
        preview(&["link.png", "slide.png"]).refused(2, &["slide.png"]);
    }
    assert!(place.content() == before, "something was replaced");
    preview(&["photo.jpg", "slide.png", "--roi", "region.png", "--roi-value", "255"]).ended(0);
    assert!(place.content() != before, "any other picture may be replaced");
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
