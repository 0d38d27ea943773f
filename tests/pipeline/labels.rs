//! Masks that become labels of an image.

use microtome::io::Microns;
use microtome::io::slide::{OpenOptions, open};
use microtome::io::store::{
    Channel, Content, Encoding, Format, Found, ImageSink, OmeZarr, StoreLevel, StoredImage, Translation, ZarrImage,
    inspect,
};
use microtome::{Observer, Product, store_of, verify};
use microtome_io::{SampleType, TileCoord};
use microtome_testkit::{FunctionModel, SyntheticSlide};
use microtome_tile::pyramid::Reduction;
use serde_json::{Map, Value, json};

use crate::resume::StopAfter;
use crate::*;

const SIZE: Size = Size::new(210, 330);
const FORMATS: [Format; 2] = [Format::V0_5, Format::V0_4];

fn slide() -> SyntheticSlide {
    SyntheticSlide::new(SIZE, 5).with_mpp(Some(Microns::square(0.25))).with_tissue_everywhere()
}

fn model() -> FunctionModel {
    FunctionModel::new(Size::new(24, 24), &[20.5, 60.5])
}

fn named(name: &str) -> Settings {
    with(&settings(), |s| (s.name, s.batch) = (Some(name.into()), Some(1)))
}

/// An image of the slide's pixels with so many levels, whose first pixel lies at `translation`.
fn image_of(slide: &SyntheticSlide, path: &Path, format: Format, levels: usize, finest: StoreLevel) {
    let image = StoredImage {
        name: "slide".into(),
        levels: finest.pyramid(levels),
        chunk: Size::new(64, 64),
        shard: Size::new(128, 128),
        sample: SampleType::U8,
        encoding: Encoding { format, ..Encoding::default() },
        content: Content::Image { channels: ["r", "g", "b"].map(|n| Channel::new(n, [255; 3])).into() },
        source: None,
        method: "mean".into(),
        metadata: Map::new(),
        attributes: Map::new(),
    };
    let sink = ZarrImage::create(path, image.clone()).unwrap();
    let mut pixels = slide.read_region(Level(0), SIZE.rect()).unwrap();
    for n in 0..levels {
        let grid = image.shards(Level(n)).unwrap();
        for at in (0..grid.area()).map(|i| TileCoord { row: i / grid.width, column: i % grid.width }) {
            let rect = image.shard_rect(Level(n), at).unwrap();
            let mut part = Pixels::filled(rect.size(), SampleType::U8, &[0; 3]);
            part.blit(rect, &pixels, pixels.size().rect());
            sink.write_shard(Level(n), at, &part).unwrap();
        }
        pixels = Reduction::Mean.halve(&pixels);
    }
    sink.finish(&Map::new()).unwrap();
}

fn host(folder: &Path, name: &str, format: Format) -> PathBuf {
    let path = folder.join(name);
    image_of(&slide(), &path, format, 3, StoreLevel::finest(SIZE, Some(Microns::square(0.25))));
    path
}

fn label(image: &Path, settings: &Settings, existing: Existing, observer: &dyn Observer) -> microtome::Result<Outcome> {
    // The slide is the image itself.
    let slide = open(image, &OpenOptions::default()).unwrap();
    Segmenter::new(&model(), settings.clone()).unwrap().segment_label(slide.as_ref(), image, existing, observer)
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn listed(image: &Path, format: Format) -> Value {
    match format {
        Format::V0_5 => json_of(&image.join("labels/zarr.json"))["attributes"]["ome"]["labels"].clone(),
        Format::V0_4 => json_of(&image.join("labels/.zattrs"))["labels"].clone(),
    }
}

fn described(label: &Path, format: Format) -> Value {
    match format {
        Format::V0_5 => json_of(&label.join("zarr.json"))["attributes"]["ome"].clone(),
        Format::V0_4 => json_of(&label.join(".zattrs")),
    }
}

/// Scale and translation of a level.
fn place(label: &Path, format: Format, level: usize) -> (Value, Value) {
    let transformations = &described(label, format)["multiscales"][0]["datasets"][level]["coordinateTransformations"];
    (transformations[0]["scale"].clone(), transformations[1]["translation"].clone())
}

#[test]
fn a_label_is_the_mask_and_its_image_stays() {
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("alone.ome.zarr");
    segment_to(&slide(), &model(), &named("nuclei"), &alone);
    for format in FORMATS {
        let image = host(folder.path(), &format!("slide-{format}.ome.zarr"), format);
        let before = files(&image);
        let outcome = label(&image, &named("nuclei"), Existing::Keep, &Silent).unwrap();
        assert!(matches!(outcome, Outcome::Done(_)));
        let mask = image.join("labels/nuclei");
        assert!(matches!(inspect(&mask), Ok(Found::Complete(_))));
        assert_eq!(levels_of_store(&mask)[..3], levels_of_store(&alone)[..3]);
        assert_eq!(OmeZarr::open(&mask).unwrap().info().levels.len(), 3, "as many levels as the image");
        assert_eq!(OmeZarr::open(&mask).unwrap().info().version, format.version());
        assert_eq!(listed(&image, format), json!(["nuclei"]));
        let ome = described(&mask, format);
        assert_eq!(ome["image-label"]["source"], json!({ "image": "../../" }));
        assert_eq!(ome["multiscales"][0]["name"], json!("nuclei"));
        let after = files(&image);
        assert!(before.iter().all(|(name, content)| after[name] == *content), "the image is what it was");
        let new = after.keys().filter(|name| !before.contains_key(*name));
        assert!(new.into_iter().all(|name| name.starts_with("labels")), "{:?}", after.keys());
        // What belongs to the run lies beside the image, and verify finds it.
        let run = folder.path().join(format!("slide-{format}.ome.zarr.nuclei.run"));
        assert!(run.join("journal.jsonl").is_file() && run.join("report.html").is_file());
        assert!(verify(&mask).unwrap().intact > 50);

        // The same again changes nothing.
        assert!(matches!(label(&image, &named("nuclei"), Existing::Keep, &Silent), Ok(Outcome::AlreadyDone { .. })));
        assert!(files(&image) == after);
        // A second label stands beside the first, and replacing one leaves the other as it is.
        label(&image, &named("tumour"), Existing::Keep, &Silent).unwrap();
        assert_eq!(listed(&image, format), json!(["nuclei", "tumour"]));
        let both = files(&image);
        let other = with(&named("nuclei"), |s| s.step = Some(1.0));
        match label(&image, &other, Existing::Keep, &Silent) {
            Err(Error::DifferentRun { path, differs }) => {
                assert_eq!((path, differs.as_str()), (mask.clone(), "step: 0.5 there, 1.0 here"));
            }
            other => panic!("{other:?}"),
        }
        assert!(files(&image) == both);
        label(&image, &other, Existing::Replace, &Silent).unwrap();
        let replaced = files(&image);
        assert_eq!(listed(&image, format), json!(["tumour", "nuclei"]));
        let changed = |name: &&PathBuf| both.get(*name) != replaced.get(*name);
        let changed: Vec<_> = both.keys().filter(changed).collect();
        assert!(!changed.is_empty());
        let allowed = ["labels/nuclei", "labels/zarr.json", "labels/.zattrs"];
        assert!(changed.iter().all(|name| allowed.iter().any(|a| name.starts_with(a))), "{changed:?}");
    }
}

#[test]
fn a_run_that_is_stopped_leaves_an_image_without_the_label_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    for format in FORMATS {
        let whole = host(folder.path(), &format!("whole-{format}.ome.zarr"), format);
        label(&whole, &named("nuclei"), Existing::Keep, &Silent).unwrap();
        let expected = files(&whole);
        for percent in [0, 40, 75] {
            let image = host(folder.path(), &format!("stopped-{percent}-{format}.ome.zarr"), format);
            let untouched = files(&image);
            let observer = StopAfter::new(SIZE.area() * percent / 100);
            let stopped = label(&image, &named("nuclei"), Existing::Keep, &observer);
            assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
            assert!(OmeZarr::open(&image).is_ok() && OmeZarr::open(image.join("labels/nuclei")).is_err());
            assert!(!image.join("labels/zarr.json").exists() && !image.join("labels/.zattrs").exists(), "not listed");
            if percent == 0 {
                assert!(files(&image) == untouched && !image.join("labels").exists(), "nothing is left");
            }
            assert!(matches!(label(&image, &named("nuclei"), Existing::Keep, &Silent), Ok(Outcome::Done(_))));
            assert!(files(&image) == expected, "{format}, stopped at {percent} %");
        }
        // Between the last two steps: finished, and not listed. While it is replaced, it is not listed either.
        let (document, name) = match format {
            Format::V0_5 => ("labels/zarr.json", "labels/nuclei/zarr.json"),
            Format::V0_4 => ("labels/.zattrs", "labels/nuclei/.zattrs"),
        };
        std::fs::remove_file(whole.join(document)).unwrap();
        assert!(matches!(label(&whole, &named("nuclei"), Existing::Keep, &Silent), Ok(Outcome::AlreadyDone { .. })));
        assert!(files(&whole) == expected);
        let other = with(&named("nuclei"), |s| s.step = Some(1.0));
        let stopped = label(&whole, &other, Existing::Replace, &StopAfter::new(SIZE.area() / 2));
        assert!(matches!(stopped, Err(Error::Interrupted)));
        assert_eq!(listed(&whole, format), json!([]));
        assert!(!whole.join(name).exists());
    }
}

#[test]
fn a_coarser_model_s_label_lies_on_its_image() {
    let folder = tempfile::tempdir().unwrap();
    let coarse = |name: &str| with(&named(name), |s| s.model_mpp = Some(TargetResolution::Mpp(0.5)));
    for format in FORMATS {
        // The image begins somewhere on the slide that it was cut out of.
        let image = folder.path().join(format!("part-{format}.ome.zarr"));
        let translation = Translation { x: 100.0, y: 20.0 };
        let finest = StoreLevel { size: SIZE, mpp: Some(Microns::square(0.25)), translation };
        image_of(&slide(), &image, format, 5, finest);
        label(&image, &coarse("coarse"), Existing::Keep, &Silent).unwrap();
        let mask = image.join("labels/coarse");
        let info = OmeZarr::open(&mask).unwrap().info().clone();
        assert_eq!((info.levels.len(), info.levels[0].size), (5, Size::new(105, 165)));
        // A pixel of the mask spans two of the image: its centre lies half a pixel of the image further.
        assert_eq!(place(&mask, format, 0), (json!([0.5, 0.5]), json!([20.125, 100.125])));
        assert_eq!(place(&mask, format, 2), (json!([2.0, 2.0]), json!([20.875, 100.875])));
        assert_eq!(described(&mask, format)["multiscales"][0]["axes"][0]["unit"], json!("micrometer"));

        // Of an image that does not say what it measures in, the label does not say so either, and has the image's numbers.
        let image = folder.path().join(format!("unitless-{format}.ome.zarr"));
        image_of(&slide(), &image, format, 3, StoreLevel::finest(SIZE, None));
        let settings = with(&coarse("coarse"), |s| s.mpp = Some(0.25));
        label(&image, &settings, Existing::Keep, &Silent).unwrap();
        let mask = image.join("labels/coarse");
        assert_eq!(place(&mask, format, 0), (json!([2.0, 2.0]), json!([0.5, 0.5])));
        assert_eq!(described(&mask, format)["multiscales"][0]["axes"][0], json!({ "name": "y", "type": "space" }));
    }
}

#[test]
fn a_label_has_no_more_levels_than_it_can_have() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("deep.ome.zarr");
    image_of(&slide(), &image, Format::V0_5, 10, StoreLevel::finest(SIZE, Some(Microns::square(0.25))));
    label(&image, &named("all"), Existing::Keep, &Silent).unwrap();
    // 210 x 330 pixels are one after nine halvings.
    let levels = levels_of_store(&image.join("labels/all"));
    assert_eq!((levels.len(), levels[9].0), (10, Size::new(1, 1)));
    assert_pyramid(&levels, 1, "ten levels");
    let coarse = with(&named("coarse"), |s| s.model_mpp = Some(TargetResolution::Mpp(1.0)));
    label(&image, &coarse, Existing::Keep, &Silent).unwrap();
    assert_eq!(levels_of_store(&image.join("labels/coarse")).len(), 8);
}

/// The slide that the image was made of may be the slide, too, and the image one of its coarser levels.
#[test]
fn the_slide_may_be_the_one_that_the_image_was_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let whole = host(folder.path(), "whole.ome.zarr", Format::V0_5);
    let segmenter = |settings: Settings| Segmenter::new(Box::leak(Box::new(model())), settings).unwrap();
    let run =
        |image: &Path, settings: Settings| segmenter(settings).segment_label(&slide(), image, Existing::Keep, &Silent);
    run(&whole, named("nuclei")).unwrap();
    let mask = whole.join("labels/nuclei");
    let expected: Vec<u16> = over(SIZE, |x, y| model().class(&slide().pixel(x, y)));
    assert_same(SIZE, &levels_of_store(&mask)[0].1, &expected, "from the slide");

    let half = SyntheticSlide::new(Size::new(105, 165), 5).with_tissue_everywhere();
    let image = folder.path().join("half.ome.zarr");
    let finest = StoreLevel {
        size: Size::new(105, 165),
        mpp: Some(Microns::square(0.5)),
        translation: Translation { x: 0.125, y: 0.125 },
    };
    let stored = StoredImage { levels: finest.pyramid(2), ..image_description() };
    let sink = ZarrImage::create(&image, stored).unwrap();
    let whole = half.read_region(Level(0), Size::new(105, 165).rect()).unwrap();
    for at in [(0, 0), (1, 0)] {
        let at = TileCoord { row: at.0, column: at.1 };
        let rect = sink.image().shard_rect(Level(0), at).unwrap();
        let mut part = Pixels::filled(rect.size(), SampleType::U8, &[0; 3]);
        part.blit(rect, &whole, whole.size().rect());
        sink.write_shard(Level(0), at, &part).unwrap();
    }
    sink.finish(&Map::new()).unwrap();
    run(&image, named("fine")).unwrap();
    // In micrometres from the slide's first pixel, as the image's own levels are.
    assert_eq!(place(&image.join("labels/fine"), Format::V0_5, 0), (json!([0.25, 0.25]), json!([0.0, 0.0])));
}

fn image_description() -> StoredImage {
    StoredImage {
        name: "slide".into(),
        levels: Vec::new(),
        chunk: Size::new(64, 64),
        shard: Size::new(128, 128),
        sample: SampleType::U8,
        encoding: Encoding::default(),
        content: Content::Image { channels: ["r", "g", "b"].map(|n| Channel::new(n, [255; 3])).into() },
        source: None,
        method: "mean".into(),
        metadata: Map::new(),
        attributes: Map::new(),
    }
}

#[test]
fn probabilities_lie_beside_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let image = host(folder.path(), "slide.ome.zarr", Format::V0_4);
    let settings = with(&named("nuclei"), |s| (s.probabilities, s.confidence) = (true, true));
    label(&image, &settings, Existing::Keep, &Silent).unwrap();
    assert_eq!(
        names(folder.path()),
        [
            "slide.nuclei.confidence.ome.zarr",
            "slide.nuclei.probabilities.ome.zarr",
            "slide.ome.zarr",
            "slide.ome.zarr.nuclei.run"
        ]
    );
    assert_eq!(names(&image.join("labels")), [".zattrs", ".zgroup", "nuclei"]);
    let mask = image.join("labels/nuclei");
    let probabilities = store_of(&mask, Product::Probabilities);
    assert_eq!(probabilities, folder.path().join("slide.nuclei.probabilities.ome.zarr"));
    assert_eq!(OmeZarr::open(probabilities).unwrap().info().version, "0.4");
    assert!(verify(&mask).unwrap().faults.is_empty());
}

#[test]
fn an_image_in_a_collection_has_its_run_beside_the_collection() {
    let folder = tempfile::tempdir().unwrap();
    let collection = folder.path().join("all.zarr");
    std::fs::create_dir(&collection).unwrap();
    let document = json!({ "zarr_format": 3, "node_type": "group", "attributes": { "ome": { "version": "0.5", "bioformats2raw.layout": 3 } } });
    std::fs::write(collection.join("zarr.json"), document.to_string()).unwrap();
    let image = host(&collection, "0", Format::V0_5);
    let error = label(&collection, &named("nuclei"), Existing::Keep, &Silent).unwrap_err();
    assert!(matches!(&error, Error::Usage(text) if text.contains("all.zarr/0")), "{error}");
    label(&image, &named("nuclei"), Existing::Keep, &Silent).unwrap();
    assert_eq!(names(folder.path()), ["all.zarr", "all.zarr.0.nuclei.run"]);
    assert_eq!(names(&collection), ["0", "zarr.json"]);
}

#[test]
fn what_cannot_be_a_label_of_the_image_is_refused_and_nothing_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let image = host(folder.path(), "slide.ome.zarr", Format::V0_4);
    let before = files(folder.path());
    let refused = |image: &Path, settings: &Settings, slide: &dyn SlideReader, word: &str| {
        let model = model();
        let segmenter = Segmenter::new(&model, settings.clone()).unwrap();
        let error = segmenter.segment_label(slide, image, Existing::Replace, &Silent).unwrap_err();
        assert!(error.to_string().contains(word) && error.exit_code() == 2, "{word:?} is missing: {error}");
        assert!(files(folder.path()) == before);
    };
    let newer = with(&named("nuclei"), |s| s.format = Some(Format::V0_5));
    refused(&image, &newer, &slide(), "the image is OME-Zarr 0.4");
    refused(&image, &named("a/b"), &slide(), "cannot be called");
    let other = SyntheticSlide::new(Size::new(210, 300), 5).with_tissue_everywhere();
    refused(&image, &named("nuclei"), &other, "210 x 300");
    let other = other.with_mpp(Some(Microns::square(0.25)));
    refused(&image, &named("nuclei"), &other, "do not cover the same area");
    // A label of somebody else's with that name.
    std::fs::create_dir_all(image.join("labels/theirs")).unwrap();
    std::fs::write(image.join("labels/theirs/.zattrs"), r#"{"multiscales": []}"#).unwrap();
    let before = files(folder.path());
    let error = label(&image, &named("theirs"), Existing::Replace, &Silent).unwrap_err();
    assert!(matches!(error, Error::OutputExists { .. }), "{error}");
    assert!(files(folder.path()) == before);
    // Something of somebody else's in a label of ours: it is not replaced, and stays listed.
    label(&image, &named("nuclei"), Existing::Keep, &Silent).unwrap();
    std::fs::write(image.join("labels/nuclei/.DS_Store"), "theirs").unwrap();
    let error = label(&image, &named("nuclei"), Existing::Replace, &Silent).unwrap_err();
    assert!(error.to_string().contains(".DS_Store"), "{error}");
    assert_eq!(listed(&image, Format::V0_4), json!(["nuclei"]));
}

/// zarr-python, ome-zarr-models and the JSON schemas of OME-NGFF, by `tests/python/check_store.py`.
#[test]
fn other_programs_find_a_label_and_its_image() {
    let Some(python) = std::env::var_os("MICROTOME_PYTHON") else {
        microtome_testkit::skip("MICROTOME_PYTHON names no interpreter with zarr and ome-zarr-models");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    for (format, mpp) in [(Format::V0_5, 0.25), (Format::V0_5, 0.5), (Format::V0_4, 0.25), (Format::V0_4, 0.6)] {
        let image = host(folder.path(), &format!("{format}-{mpp}.ome.zarr"), format);
        let settings = with(&named("nuclei"), |s| s.model_mpp = Some(TargetResolution::Mpp(mpp)));
        label(&image, &settings, Existing::Keep, &Silent).unwrap();
        let check = |store: &Path, flags: &[&std::ffi::OsStr]| {
            let mut command = std::process::Command::new(&python);
            command.arg(repository("tests/python/check_store.py")).arg(store).args(flags);
            let output = command.output().unwrap();
            let words = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success(), "{words}");
            println!("{words}");
        };
        check(&image, &["--format".as_ref(), format.version().as_ref()]);
        let mpp = mpp.to_string();
        check(
            &image.join("labels/nuclei"),
            &["--image".as_ref(), image.as_os_str(), "--expect-mpp".as_ref(), mpp.as_ref()],
        );
    }
}
