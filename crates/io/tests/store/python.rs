//! What other programs say of our stores.

use std::path::Path;
use std::process::Command;

use microtome_io::store::{ImageSink, StoreLevel, ZarrImage};
use microtome_io::{Level, Microns, Pixels, Rect, SampleType, Size};

use serde_json::Map;

use super::{average, content, image, picture, pyramid, write_all};

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
