//! Stores that others wrote.

use std::path::{Path, PathBuf};

use microtome_io::store::OmeZarr;
use microtome_io::{Level, Rect, Size};

/// The folder of real files, or `None` and a word on stderr.
pub(crate) fn data() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let data = std::env::var_os("MICROTOME_DATA").map_or(beside, PathBuf::from);
    if data.join("zarr").is_dir() {
        return Some(data);
    }
    eprintln!("SKIPPED: stores of other programs: no folder {}; set MICROTOME_DATA", data.display());
    None
}

fn groups(folder: &Path, found: &mut Vec<PathBuf>) {
    if ["zarr.json", ".zattrs", ".zgroup", ".zarray"].iter().any(|name| folder.join(name).is_file()) {
        found.push(folder.into());
    }
    let mut inner: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    inner.sort();
    inner.iter().for_each(|p| groups(p, found));
}

#[test]
fn every_store_is_read_or_refused_with_a_sentence() {
    let Some(data) = data() else { return };
    let mut found = Vec::new();
    groups(&data.join("zarr"), &mut found);
    let mut read = Vec::new();
    for path in &found {
        let name = path.strip_prefix(&data).unwrap().display().to_string();
        match OmeZarr::open(path) {
            Err(error) => println!("{name}: refused: {error}"),
            Ok(store) => {
                for (n, level) in store.info().levels.iter().enumerate() {
                    store.read_region(Level(n), level.size.rect()).unwrap();
                }
                println!("{name}: {:?}", store.info());
                read.push(name);
            }
        }
    }
    println!("{} of {} nodes are stores that are read", read.len(), found.len());
    assert_eq!(read, READ);
}

/// What of `zarr/` has two dimensions and integers; the rest is volumes, floating point, old versions, or no image.
const READ: &[&str] = &[];

/// Versions 0.4 and 0.5 of a picture, written by ome-zarr-py, hold the same pixels.
#[test]
fn both_versions_of_a_store_hold_the_same_picture() {
    let Some(data) = data() else { return };
    let folder = data.join("zarr/ome-zarr-fiji-java/2d_testing");
    let [old, new] =
        ["2d_dataset_v4.ome.zarr", "2d_dataset_v5.ome.zarr"].map(|n| OmeZarr::open(folder.join(n)).unwrap());
    assert_eq!((old.info().version.as_str(), new.info().version.as_str()), ("0.4", "0.5"));
    assert_eq!(old.info().levels[0].size, Size::new(64, 64));
    for rect in [Rect::new(0, 0, 64, 64), Rect::new(-3, 60, 10, 10)] {
        let picture = old.read_region(Level(0), rect).unwrap();
        assert_eq!(picture, new.read_region(Level(0), rect).unwrap());
        assert!(picture.as_u8().unwrap().iter().any(|&v| v != 0));
    }
}
