//! A user's region: only what touches it runs, inside it nothing changes, and what does not fit is refused with a sentence.

use std::path::{Path, PathBuf};

use microtome::io::slide::SlideReader;
use microtome::io::{Level, Microns, Rect, Size};
use microtome::{
    Error, Existing, Outcome, Region, RegionOrigin, RoiSource, Segmenter, Settings, Silent, TargetResolution,
    TissueMode,
};
use microtome_testkit::{FunctionModel, SyntheticSlide};
use png::{BitDepth, ColorType};
use serde_json::json;

use crate::function::THRESHOLDS;
use crate::{assert_same, levels_of, levels_of_store, over, segment, segment_to, settings, with};

const SIZE: Size = Size::new(700, 500);

fn slide() -> SyntheticSlide {
    SyntheticSlide::new(SIZE, 5).with_tissue_everywhere()
}

fn model() -> FunctionModel {
    FunctionModel::new(Size::new(64, 64), &THRESHOLDS)
}

fn source(path: &Path, values: &[&str]) -> RoiSource {
    RoiSource { path: path.into(), values: values.iter().map(|&v| v.into()).collect() }
}

fn given(settings: &Settings, path: &Path, values: &[&str]) -> Settings {
    with(settings, |s| s.roi = Some(source(path, values)))
}

fn region(settings: &Settings) -> Region {
    Segmenter::new(&model(), settings.clone()).unwrap().region(&slide()).unwrap_or_else(|e| panic!("{e}")).unwrap()
}

/// A grey picture of samples of `bits` bits, given as they are stored.
fn png(path: &Path, size: Size, depth: BitDepth, data: &[u8]) {
    let file = std::fs::File::create(path).unwrap();
    let mut encoder = png::Encoder::new(file, size.width as u32, size.height as u32);
    encoder.set_color(ColorType::Grayscale);
    encoder.set_depth(depth);
    encoder.write_header().unwrap().write_image_data(data).unwrap();
}

/// Two triangles of one class, and a rectangle with a hole of another.
fn annotations(folder: &Path) -> PathBuf {
    let feature = |name: &str, rings: serde_json::Value| {
        json!({
            "type": "Feature", "id": "x", "geometry": { "type": "Polygon", "coordinates": rings },
            "properties": { "objectType": "annotation", "classification": { "name": name, "color": [200, 0, 0] } },
        })
    };
    let document = json!({ "type": "FeatureCollection", "features": [
        feature("Tumor", json!([[[20.5, 30.0], [300.0, 41.5], [100.0, 220.0], [20.5, 30.0]]])),
        feature("Tumor", json!([[[80, 60], [320, 60], [200, 260]]])),
        feature("Stroma", json!([[[400, 300], [640, 300], [640, 480], [400, 480]], [[450, 350], [450, 420], [590, 420], [590, 350]]])),
    ]});
    let path = folder.join("annotations.geojson");
    std::fs::write(&path, document.to_string()).unwrap();
    path
}

/// The mask in the region is the full run's, outside it is background; tiles that do not touch it do not run.
fn check(settings: &Settings, what: &str) {
    let (full, _) = segment(&slide(), &model(), &with(settings, |s| s.roi = None));
    let (mask, summary) = segment(&slide(), &model(), settings);
    let region = region(settings);
    let (size, full) = &levels_of(&full)[0];
    let wanted = |x: u64, y: u64| region.roi.covers(Rect::new(x as i64, y as i64, 1, 1));
    let expected = over(*size, |x, y| if wanted(x, y) { full[(y * size.width + x) as usize] } else { 0 });
    assert_same(*size, &levels_of(&mask)[0].1, &expected, what);
    assert!(summary.tiles.run > 0 && summary.tiles.skipped > 0, "{what}: {:?}", summary.tiles);
    let source = settings.roi.clone().unwrap();
    assert_eq!(region.origin, RegionOrigin::File(source.clone()));
    let said = summary.roi.as_ref().unwrap();
    assert_eq!((&said.source, said.share), (&source, region.share));
    assert_eq!(summary.tissue_share, None);
    let text = summary.to_string();
    assert!(text.contains("of the slide, from ") && !text.contains("tissue "), "{text}");
}

#[test]
fn polygons_are_regions() {
    let folder = tempfile::tempdir().unwrap();
    let path = annotations(folder.path());
    for resolution in [TargetResolution::Native, TargetResolution::Mpp(0.8)] {
        let settings = with(&settings(), |s| s.model_mpp = Some(resolution));
        check(&given(&settings, &path, &["Tumor"]), "Tumor");
        check(&given(&settings, &path, &["Stroma"]), "Stroma");
    }
    let cells = |values: &[&str]| region(&given(&settings(), &path, values)).roi.cells();
    // 240 x 180 pixels less a hole of 140 x 70.
    assert_eq!(cells(&["Stroma"]), 240 * 180 - 140 * 70);
    assert_eq!(cells(&["any"]), cells(&["Stroma"]) + cells(&["Tumor"]));
    assert_eq!(cells(&["Stroma", "Tumor"]), cells(&["any"]));

    let bare = folder.path().join("bare.json");
    std::fs::write(&bare, r#" {"type":"MultiPolygon","coordinates":[[[[10,10,7],[60,10,7],[60,40,7],[10,40,7]]]]}"#)
        .unwrap();
    assert_eq!(region(&given(&settings(), &bare, &[])).roi.cells(), 50 * 30);
}

#[test]
fn pictures_are_regions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.png");
    let roi = |values: &[&str]| region(&given(&settings(), &path, values)).roi;
    // 7 x 5 pixels, each of which is 100 x 100 pixels of the slide.
    let size = Size::new(7, 5);
    let samples: Vec<u8> = (0..35).map(|i| if i % 7 == 2 && i > 7 { 9 } else { u8::from(i == 34) * 200 }).collect();
    png(&path, size, BitDepth::Eight, &samples);
    assert_eq!((roi(&["9"]).cells(), roi(&["200"]).cells(), roi(&["9", "200"]).cells()), (4, 1, 5));
    assert!(roi(&["9"]).covers(Rect::new(200, 100, 100, 400)) && !roi(&["9"]).touches(Rect::new(0, 0, 700, 100)));
    for resolution in [TargetResolution::Native, TargetResolution::Mpp(0.8)] {
        let settings = with(&settings(), |s| s.model_mpp = Some(resolution));
        check(&given(&settings, &path, &["9", "200"]), "8 bits");
    }
    png(&path, size, BitDepth::Sixteen, &samples.iter().flat_map(|&v| [v, 1]).collect::<Vec<_>>());
    assert_eq!(roi(&["2305"]).cells(), 4);
    // One bit: white is 255.
    png(&path, size, BitDepth::One, &[0b0100_0000, 0, 0, 0b0000_1100, 0]);
    assert_eq!(roi(&["255"]).cells(), 3);
    // Two bits: the second grey is 85.
    png(&path, size, BitDepth::Two, &[0b0100_0000, 0, 0, 0, 0, 0, 0b0000_0101, 0, 0, 0]);
    assert_eq!(roi(&["85"]).cells(), 3);
}

#[test]
fn the_saved_mask_is_a_region_and_gives_the_same_mask() {
    let folder = tempfile::tempdir().unwrap();
    let path = annotations(folder.path());
    let islands = SyntheticSlide::new(Size::new(1510, 1100), 11).with_mpp(Some(Microns::square(0.4871)));
    let settings = || with(&settings(), |s| (s.chunk, s.shard) = (64, 128));
    let auto = |s: &mut Settings| s.tissue = TissueMode::Auto;
    let cases: [(&dyn SlideReader, Settings); 4] = [
        (&islands, with(&settings(), auto)),
        (
            &islands,
            with(&settings(), |s| (s.tissue, s.model_mpp) = (TissueMode::Auto, Some(TargetResolution::Mpp(0.613)))),
        ),
        (&slide(), given(&settings(), &path, &["any"])),
        (&slide(), with(&given(&settings(), &path, &["Tumor"]), |s| s.model_mpp = Some(TargetResolution::Mpp(0.7)))),
    ];
    for (n, (slide, settings)) in cases.into_iter().enumerate() {
        let first = folder.path().join(format!("first-{n}.ome.zarr"));
        segment_to(slide, &model(), &settings, &first);
        let saved = folder.path().join(format!("first-{n}.ome.zarr.run/roi.png"));
        let again = given(&settings, &saved, &["255"]);
        let second = folder.path().join(format!("second-{n}.ome.zarr"));
        segment_to(slide, &model(), &again, &second);
        assert!(levels_of_store(&first) == levels_of_store(&second), "case {n}");
        let roi = |s: Settings| Segmenter::new(&model(), s).unwrap().region(slide).unwrap().unwrap().roi;
        assert_eq!(roi(settings), roi(again), "case {n}");
    }
}

#[test]
fn the_mask_of_a_coarse_model_is_a_region_for_a_fine_one() {
    let folder = tempfile::tempdir().unwrap();
    let coarse_model = FunctionModel::new(Size::new(32, 32), &[30.5]);
    let islands = SyntheticSlide::new(Size::new(1510, 1100), 11);
    for (n, mpp) in [Some(Microns::square(0.5)), Some(Microns { x: 0.5, y: 0.4 }), None].into_iter().enumerate() {
        let slide = islands.clone().with_mpp(mpp);
        let path = folder.path().join(format!("coarse-{n}.ome.zarr"));
        let resolution = if mpp.is_some() { TargetResolution::Mpp(2.0) } else { TargetResolution::Native };
        let coarse = with(&settings(), |s| s.model_mpp = Some(resolution));
        segment_to(&slide, &coarse_model, &coarse, &path);
        // The level of 4 um, or the only one that counts.
        let level = usize::from(mpp.is_some());
        let (size, labels) = levels_of_store(&path).swap_remove(level);
        let fine = given(&settings(), &path, &["1"]);
        let roi = Segmenter::new(&model(), fine.clone()).unwrap().region(&slide).unwrap().unwrap().roi;
        assert_eq!(roi.size(), size, "{mpp:?}");
        let found = over(size, |x, y| roi.cell(x, y).into());
        assert_same(size, &found, &labels, "the region and the mask that it was made of");

        let (mask, _) = segment(&slide, &model(), &fine);
        let (full, _) = segment(&slide, &model(), &settings());
        let (size, full) = &levels_of(&full)[0];
        // How many pixels of the slide a pixel of the region spans, by what the store says of itself.
        let stored = microtome::io::store::OmeZarr::open(&path).unwrap().info().levels[level].mpp;
        let per = |axis: fn(Microns) -> f64| mpp.zip(stored).map_or(1.0, |(slide, mask)| axis(mask) / axis(slide));
        let (per_x, per_y) = (per(|m| m.x), per(|m| m.y));
        let expected = over(*size, |x, y| {
            let (column, row) = (((x as f64 + 0.5) / per_x) as u64, ((y as f64 + 0.5) / per_y) as u64);
            let column = column.min(roi.size().width - 1);
            let row = row.min(roi.size().height - 1);
            if labels[(row * roi.size().width + column) as usize] == 1 {
                full[(y * size.width + x) as usize]
            } else {
                0
            }
        });
        assert_same(*size, &levels_of(&mask)[0].1, &expected, "fine inside coarse");
    }
    // By the name of its class, too; the names are in the refusal of others.
    let path = folder.path().join("coarse-0.ome.zarr");
    let slide = islands.with_mpp(Some(Microns::square(0.5)));
    let region = |values: &[&str]| {
        Segmenter::new(&model(), given(&settings(), &path, values)).unwrap().region(&slide).map(|r| r.unwrap().roi)
    };
    let name = levels_name(&path);
    assert_eq!(region(&[&name]).unwrap(), region(&["1"]).unwrap());
    for values in [&["nothing"][..], &[], &["7"]] {
        let message = region(values).unwrap_err().to_string();
        assert!(message.contains(&format!("1 ({name})")) && message.contains("coarse-0"), "{message}");
    }
    // Another slide's mask does not fit.
    let other = SyntheticSlide::new(Size::new(900, 900), 1).with_mpp(Some(Microns::square(0.5)));
    let error = Segmenter::new(&model(), given(&settings(), &path, &["1"])).unwrap().region(&other).unwrap_err();
    assert!(error.to_string().contains("another slide"), "{error}");
}

fn levels_name(path: &Path) -> String {
    let store = microtome::io::store::OmeZarr::open(path).unwrap();
    store.info().content.classes().iter().find(|class| class.value == 1).unwrap().name.clone()
}

#[test]
fn the_same_region_from_elsewhere_is_the_same_run() {
    let folder = tempfile::tempdir().unwrap();
    let (slide, model) = (slide(), model());
    let rect = |right: u32| {
        format!(r#"{{"type":"Polygon","coordinates":[[[10,10],[{right},10],[{right},90],[10,90],[10,10]]]}}"#)
    };
    let path = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (one, same, other) = (path("1.json", rect(90)), path("2.json", rect(90)), path("3.json", rect(91)));
    let output = folder.path().join("mask.ome.zarr");
    segment_to(&slide, &model, &given(&settings(), &one, &[]), &output);
    let again = |roi: &Path| {
        let segmenter = Segmenter::new(&model, given(&settings(), roi, &[])).unwrap();
        segmenter.segment(&slide, &output, Existing::Keep, &Silent)
    };
    assert!(matches!(again(&same).unwrap(), Outcome::AlreadyDone));
    let error = again(&other).unwrap_err();
    assert!(error.exit_code() == 5 && error.to_string().contains("roi: "), "{error}");
}

#[test]
fn regions_that_do_not_fit_are_refused_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("region");
    let (slide, model) = (slide(), model());
    let refused = |values: &[&str], words: &str| {
        let segmenter = Segmenter::new(&model, given(&settings(), &path, values)).unwrap();
        let output = folder.path().join("mask.ome.zarr");
        let error = segmenter.segment(&slide, &output, Existing::Keep, &Silent).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Region { .. }) && error.exit_code() == 2, "{text}");
        assert!(text.starts_with(&path.display().to_string()) && text.contains(words), "{words:?} is missing: {text}");
        assert!(!output.exists(), "{text}");
    };
    refused(&[], "No such file");
    let text = |content: &str| std::fs::write(&path, content).unwrap();
    for (content, values, words) in [
        ("", &[][..], "none of them"),
        ("II*\0 a TIFF", &["1"], "none of them"),
        ("\x7b", &[], "cannot be read: EOF"),
        ("[1,", &[], "cannot be read"),
        ("{}", &[], "\"type\""),
        (r#"{"type":"Polygon"}"#, &[], "the list of rings"),
        (r#"{"type":"Polygon","coordinates":[[[1,2],[3,4]]]}"#, &[], "a ring of 2 corners"),
        (r#"{"type":"Polygon","coordinates":[[[1],[3],[4]]]}"#, &[], "at least two numbers"),
        (r#"{"type":"Polygon","coordinates":[[["1",2],[3,4],[5,6]]]}"#, &[], "no pair of numbers"),
        (r#"{"type":"Polygon","coordinates":[[[1e999,2],[3,4],[5,6]]]}"#, &[], "out of range"),
        (r#"{"type":"Polygon","coordinates":[[[1e308,2],[-1e308,400],[5,6]]]}"#, &[], "finite"),
        (
            r#"{"type":"Polygon","coordinates":[[[900,2],[990,4],[995,96]]]}"#,
            &[],
            "holds no pixel of the slide, which has 700 x 500",
        ),
        (r#"{"type":"Polygon","coordinates":[[[1,2],[3,4],[5,60]]]}"#, &["Tumor"], "no feature has a class"),
        (r#"{"type":"LineString","coordinates":[[1,2],[3,4],[5,6]]}"#, &[], "a LineString encloses nothing"),
        (r#"{"type":"FeatureCollection","features":[]}"#, &[], "no geometry"),
        (r#"{"type":"FeatureCollection","features":7}"#, &[], "the list of features"),
    ] {
        text(content);
        refused(values, words);
    }
    text(&std::fs::read_to_string(annotations(folder.path())).unwrap());
    refused(&[], r#"there are "Stroma", "Tumor""#);
    refused(&["tumor"], r#"no feature has the class "tumor"; there are "Stroma", "Tumor""#);
    text(&"[".repeat(1000));
    refused(&[], "recursion limit");

    png(&path, Size::new(7, 5), BitDepth::Eight, &(0..35).collect::<Vec<u8>>());
    refused(&[], "it has 0, 1, 2");
    refused(&["77"], "no pixel of it has the value 77; it has 0, 1, 2");
    refused(&["Tumor"], "numbers from 0 to 65535");
    refused(&["70000"], "numbers from 0 to 65535");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 20]).unwrap();
    refused(&["1"], "this PNG cannot be read");
    png(&path, Size::new(7, 7), BitDepth::Eight, &[1; 49]);
    refused(&["1"], "proportions");

    let special = |color: ColorType, data: &[u8], change: &dyn Fn(&mut png::Encoder<'_, std::fs::File>)| {
        let mut encoder = png::Encoder::new(std::fs::File::create(&path).unwrap(), 7, 5);
        encoder.set_color(color);
        change(&mut encoder);
        encoder.write_header().unwrap().write_image_data(data).unwrap();
    };
    special(ColorType::Rgb, &[1; 105], &|_| {});
    refused(&["1"], "colours");
    special(ColorType::GrayscaleAlpha, &[1; 70], &|_| {});
    refused(&["1"], "an alpha channel");
    special(ColorType::Indexed, &[0; 35], &|e| e.set_palette(vec![1, 2, 3]));
    refused(&["1"], "a palette");
    special(ColorType::Grayscale, &[1; 35], &|e| e.set_trns(vec![0, 1]));
    refused(&["1"], "a transparent grey");
    for (note, words) in [
        ("nonsense", "is not what microtome writes"),
        (r#"{"downsample":{"x":-1,"y":1}}"#, "no plausible number"),
        (r#"{"downsample":{"x":1,"y":1}}"#, "a slide of about 7 x 5 pixels, and this one has 700 x 500"),
    ] {
        special(ColorType::Grayscale, &[1; 35], &|e| e.add_text_chunk("microtome".into(), note.into()).unwrap());
        refused(&["1"], words);
    }

    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    refused(&["1"], "no OME-Zarr group");
}

/// A region costs memory, and the plan knows.
#[test]
fn the_region_is_part_of_the_memory_plan() {
    let folder = tempfile::tempdir().unwrap();
    let path = annotations(folder.path());
    let settings = given(&settings(), &path, &["any"]);
    let (_, summary) = segment(&slide(), &model(), &settings);
    assert_eq!(summary.memory_plan.region, region(&settings).roi.bytes());
    assert_eq!(summary.geometry.target.level, Level(0));
}
