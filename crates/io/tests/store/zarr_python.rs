//! Stores written by zarr-python (`tests/python/zarr_stores.py`): each is read as zarr-python reads it, as a store and as a slide, or refused.

use microtome_io::slide::{self, OpenOptions, SlideReader};
use microtome_io::store::OmeZarr;
use microtome_io::{Level, Microns, Rect};
use serde_json::json;

use super::corpus;

#[test]
fn what_zarr_python_writes_is_read_as_it_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let Some(stores) = corpus::python(&["write".as_ref(), folder.path().as_os_str()]) else {
        microtome_testkit::skip("MICROTOME_PYTHON names no interpreter with zarr");
        return;
    };
    assert!(stores.len() > 100, "{}", stores.len());
    let mut faults = Vec::new();
    for expected in &stores {
        let name = expected["name"].as_str().unwrap();
        let path = folder.path().join(name);
        let opened = slide::open(&path, &OpenOptions::default());
        if let Some(word) = expected["refused"].as_str() {
            match opened {
                Ok(_) => faults.push(format!("{name} is read, and should be refused")),
                Err(error) if !error.to_string().contains(word) => faults.push(format!("{name}: {error}")),
                Err(_) => {}
            }
            continue;
        }
        let slide = match opened {
            Ok(slide) => slide,
            Err(error) => {
                faults.push(format!("{name}: {error}"));
                continue;
            }
        };
        if corpus::levels(slide.as_ref()) != expected["levels"] {
            faults.push(format!("{name}: the slide's pixels differ"));
        }
        let store = OmeZarr::open(&path).unwrap();
        if corpus::levels(&store) != expected["levels"] {
            faults.push(format!("{name}: the store's pixels differ"));
        }
        pieces_are_parts_of_the_whole(slide.as_ref(), name, &mut faults);
        let info = slide.info();
        if let Some(mpp) = expected["mpp"].as_f64() {
            let read = info.resolution.as_ref().unwrap().mpp;
            assert!((read.x / mpp - 1.0).abs() < 1e-12 && read == Microns::square(read.x), "{name}: {read:?}");
        } else {
            assert_eq!(info.resolution, None, "{name}");
        }
        assert_eq!(json!(info.channel_names), *expected.get("channel_names").unwrap_or(&json!([])), "{name}");
        assert_eq!(slide.content_id().unwrap(), store.content_id().unwrap(), "{name}");
        if name == "two-multiscales.zarr" {
            assert_eq!(info.properties["ome-zarr.multiscales"], "2");
            assert_eq!(info.properties["ome-zarr.name"], "written");
        }
        for (role, level) in expected["associated"].as_object().into_iter().flatten() {
            assert_eq!(corpus::describe(&slide.read_associated(role).unwrap()), *level, "{name}: {role}");
            assert_eq!(corpus::describe(&store.read_associated(role).unwrap()), *level, "{name}: {role}");
        }
        if expected.get("associated").is_some() {
            assert_eq!(info.properties["ome-zarr.series"], "4");
            assert_eq!(info.properties["ome-zarr.series-not-read"], "3 (another)");
            assert!(slide.read_associated("thumbnail").is_err());
        }
    }
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), stores.len(), faults.join("\n"));
}

/// Cached or not, pieces are what the whole is made of.
fn pieces_are_parts_of_the_whole(slide: &dyn SlideReader, name: &str, faults: &mut Vec<String>) {
    let rect = slide.info().size().rect();
    let whole = slide.read_region(Level(0), rect).unwrap();
    for piece in [Rect::new(3, 5, 40, 33), Rect::new(31, 15, 2, 34), Rect::new(60, 60, 1, 1)] {
        slide.prefetch(Level(0), piece);
        let mut expected = slide.read_region(Level(0), piece).unwrap();
        let read = expected.clone();
        expected.blit(piece, &whole, rect);
        if read != expected {
            faults.push(format!("{name}: {piece} differs from the whole"));
        }
    }
}
