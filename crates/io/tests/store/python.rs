//! What other programs say of our stores.

use std::path::Path;
use std::process::Command;

use microtome_io::store::{
    AxisUnit, Format, ImageSink, LabelSource, LabelledImage, OmeZarr, StoreLevel, StoredImage, ZarrImage,
};
use microtome_io::{Level, Microns, Pixels, Rect, SampleType, Size};

use serde_json::Map;

use super::{average, content, corpus, encoded, image, picture, pyramid, write_all};

/// zarr-python, numpy, ome-zarr-models and the JSON schemas of OME-NGFF, by `tests/python/check_store.py` at the root of the workspace.
#[test]
fn other_programs_read_what_we_write() {
    let Some(python) = std::env::var_os("MICROTOME_PYTHON") else {
        microtome_testkit::skip("MICROTOME_PYTHON names no interpreter with zarr and ome-zarr-models");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/check_store.py");
    let check = |store: &Path, arguments: &[&str]| {
        let output = Command::new(&python).arg(&script).arg(store).args(arguments).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let folder = tempfile::tempdir().unwrap();
    for (width, height, levels) in [(1, 1, 1), (300, 171, 5), (33, 25, 3)] {
        let path = folder.path().join(format!("{width}x{height}.zarr"));
        let mut image = image(Size::new(width, height), levels, SampleType::U8);
        image.levels = StoreLevel::finest(Size::new(width, height), Some(Microns::square(0.499))).pyramid(levels);
        let mask = ZarrImage::create(&path, image).unwrap();
        write_all(&mask, &pyramid(Size::new(width, height), levels, 11));
        mask.finish(&Map::new()).unwrap();
        let (accepted, words) = check(&path, &["--expect-mpp", "0.499", "--size", &format!("{width}x{height}")]);
        assert!(accepted, "{words}");
        println!("{words}");
        let (accepted, words) = check(&path, &["--expect-mpp", "0.5"]);
        assert!(!accepted && words.contains("0.499"), "a wrong resolution must be found: {words}");
    }
    for (width, height, levels, channels) in [(1, 1, 1, 1), (300, 171, 5, 1), (301, 170, 5, 3)] {
        let path = folder.path().join(format!("{width}x{height}x{channels}.zarr"));
        let size = Size::new(width, height);
        let mut image = picture(size, levels, SampleType::U8, channels);
        image.levels = StoreLevel::finest(size, Some(Microns::square(0.499))).pyramid(levels);
        let mut pyramid = vec![content(&image, Level(0), 5)];
        while pyramid.len() < levels {
            pyramid.push(average(&pyramid[pyramid.len() - 1]));
        }
        let store = ZarrImage::create(&path, image).unwrap();
        write_all(&store, &pyramid);
        store.finish(&Map::new()).unwrap();
        let (accepted, words) = check(&path, &["--expect-mpp", "0.499", "--size", &format!("{width}x{height}")]);
        assert!(accepted, "{words}");
        println!("{words}");
    }
    // A level that is no mean must be found, too.
    let path = folder.path().join("mean.zarr");
    let two = picture(Size::new(300, 171), 2, SampleType::U8, 2);
    let finest = content(&two, Level(0), 5);
    let store = ZarrImage::create(&path, two).unwrap();
    let mut second = average(&finest);
    second.blit(
        second.size().rect(),
        &Pixels::filled(Size::new(1, 1), SampleType::U8, &[0, 99]),
        Rect::new(7, 8, 1, 1),
    );
    write_all(&store, &[finest, second]);
    store.finish(&Map::new()).unwrap();
    let (accepted, words) = check(&path, &[]);
    assert!(!accepted && words.contains("no mean of level 0: 2 samples differ"), "{words}");

    // A level that is no majority must be found, too.
    let path = folder.path().join("wrong.zarr");
    let mask = ZarrImage::create(&path, image(Size::new(300, 171), 2, SampleType::U8)).unwrap();
    let mut levels = pyramid(Size::new(300, 171), 2, 11);
    levels[1] = pyramid(Size::new(150, 86), 1, 12).remove(0);
    write_all(&mask, &levels);
    mask.finish(&Map::new()).unwrap();
    let (accepted, words) = check(&path, &[]);
    assert!(!accepted && words.contains("majority"), "{words}");
}

/// Labels and a picture of three channels with levels as they should be, in any form.
fn both(format: Format, compression: &str) -> [(StoredImage, Vec<Pixels>); 2] {
    let size = Size::new(301, 170);
    let levels = StoreLevel::finest(size, Some(Microns::square(0.499))).pyramid(5);
    let mut labels = encoded(image(size, 5, SampleType::U8), format, compression);
    let mut of_channels = encoded(picture(size, 5, SampleType::U8, 3), format, compression);
    (labels.levels, of_channels.levels) = (levels.clone(), levels);
    let mut averages = vec![content(&of_channels, Level(0), 5)];
    while averages.len() < 5 {
        averages.push(average(&averages[averages.len() - 1]));
    }
    [(labels, pyramid(size, 5, 11)), (of_channels, averages)]
}

#[test]
fn other_programs_read_each_version_and_labels_in_their_image() {
    let Some(python) = std::env::var_os("MICROTOME_PYTHON") else {
        microtome_testkit::skip("MICROTOME_PYTHON names no interpreter with zarr and ome-zarr-models");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/check_store.py");
    let check = |store: &Path, arguments: &[&std::ffi::OsStr]| {
        let output = Command::new(&python).arg(&script).arg(store).args(arguments).output().unwrap();
        let words = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{words}");
        println!("{words}");
    };
    let folder = tempfile::tempdir().unwrap();
    for (format, compression) in
        [(Format::V0_4, "zstd:1"), (Format::V0_4, "blosc:5"), (Format::V0_5, "gzip:6"), (Format::V0_5, "blosc:1")]
    {
        let name = format!("{format}-{}", compression.replace(':', "-"));
        let path = folder.path().join(format!("{name}.ome.zarr"));
        let [(mut labels, majorities), (of_channels, averages)] = both(format, compression);
        let sink = ZarrImage::create(&path, of_channels).unwrap();
        write_all(&sink, &averages);
        sink.finish(&Map::new()).unwrap();
        let host = LabelledImage::open(&path).unwrap();
        host.make_folder().unwrap();
        labels.source = Some(LabelSource { image: "../../".into(), unit: AxisUnit::Micrometer });
        let label = host.label("nuclei").unwrap();
        let sink = ZarrImage::create(&label, labels).unwrap();
        write_all(&sink, &majorities);
        sink.finish(&Map::new()).unwrap();
        host.list("nuclei").unwrap();
        let expected = ["--format".as_ref(), format.version().as_ref(), "--expect-mpp".as_ref(), "0.499".as_ref()];
        check(&path, &expected);
        check(&label, &[&expected[..], &["--image".as_ref(), path.as_os_str()]].concat());
    }
}

/// Every version with every compression, in narrow and in wide samples: what zarr-python decodes is what was written.
#[test]
fn zarr_python_reads_every_form_pixel_for_pixel() {
    let folder = tempfile::tempdir().unwrap();
    let compressions = ["none", "gzip:1", "gzip:9", "zstd:1", "zstd:19", "blosc:1", "blosc:5", "blosc:9"];
    let mut paths = vec!["read".into()];
    let mut expected = Vec::new();
    for (format, compression) in [Format::V0_5, Format::V0_4].iter().flat_map(|f| compressions.map(|c| (*f, c))) {
        for sample in [SampleType::U8, SampleType::U16] {
            let (large, small) = (Size::new(230, 119), Size::new(75, 43));
            for (kind, image) in [("labels", image(large, 2, sample)), ("picture", picture(small, 2, sample, 3))] {
                // Chunks that Blosc cuts into several blocks, and some that it does not.
                let mut image = encoded(image, format, compression);
                image.chunk = if kind == "labels" { Size::new(512, 512) } else { Size::new(16, 8) };
                image.shard = if kind == "labels" { Size::new(1024, 512) } else { Size::new(32, 24) };
                let levels = [content(&image, Level(0), 3), content(&image, Level(1), 4)];
                let path = folder.path().join(format!("{format}-{}-{sample:?}-{kind}", compression.replace(':', "-")));
                let sink = ZarrImage::create(&path, image).unwrap();
                write_all(&sink, &levels);
                sink.finish(&Map::new()).unwrap();
                expected.push(levels.iter().map(corpus::describe).collect::<serde_json::Value>());
                assert_eq!(corpus::levels(&OmeZarr::open(&path).unwrap()), expected[expected.len() - 1]);
                paths.push(path.into_os_string());
            }
        }
    }
    let arguments: Vec<_> = paths.iter().map(std::ffi::OsString::as_os_str).collect();
    let Some(read) = corpus::python(&arguments) else {
        microtome_testkit::skip("MICROTOME_PYTHON names no interpreter with zarr");
        return;
    };
    assert_eq!(read.len(), expected.len());
    for (read, expected) in read.iter().zip(&expected) {
        assert_eq!(read["levels"], *expected, "{read}");
    }
}
