//! What is no slide is refused in one line that names the file and the cause.

use std::path::Path;

use microtome_io::slide::{OpenOptions, open};
use microtome_io::{Error, Level};
use microtome_testkit::assets;

fn refusal(path: &Path) -> Error {
    let error = open(path, &OpenOptions::default()).unwrap_err();
    let line = error.to_string();
    assert!(line.starts_with(&path.display().to_string()) && !line.contains('\n'), "{line}");
    error
}

#[test]
fn files_that_are_no_slides() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let mut dicom = vec![0; 128];
    dicom.extend(b"DICM");
    for (name, content, words) in [
        ("empty.svs", &b""[..], "is empty"),
        ("noise.svs", b"anything at all", "in no format that microtome knows; it reads Aperio SVS"),
        ("photo.svs", b"\xff\xd8\xff\xe0 and so on", "holds a JPEG picture, no TIFF"),
        ("photo.tif", b"\x89PNG\r\n\x1a\n and so on", "holds a PNG picture, no TIFF"),
        ("slide.mrxs", b"\xff\xd8\xff\xe0 and so on", "3DHISTECH MIRAX"),
        ("slide.ndpis", b"[NanoZoomer Digital Pathology Image Set]", "Hamamatsu NDPI set"),
        ("dicom", &dicom, "DICOM: the file does not say of what kind it is"),
        ("page.svs", b"<!DOCTYPE html><html>", "a web page"),
        ("tiny.tif", b"II\x2a\0", "the file ends inside it"),
        ("unfinished.tif", b"II\x2a\0\0\0\0\0", "without a directory"),
        ("circle.tif", b"II\x2a\0\x08\0\0\0\x01\0\x00\x01\x03\0\x01\0\0\0\x05\0\0\0\x08\0\0\0", "a cycle"),
        ("cut.png", b"\x89PNG\r\n\x1a\n\0\0", "damaged PNG picture"),
    ] {
        let error = refusal(&write(name, content)).to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn missing_files_and_folders() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(refusal(&folder.path().join("missing.svs")), Error::Io { .. }));
    assert!(refusal(folder.path()).to_string().contains("is a folder"));
    std::fs::write(folder.path().join("zarr.json"), "{}").unwrap();
    assert!(refusal(folder.path()).to_string().contains("no multiscale image"));
}

#[test]
fn openslides_own_broken_slides() {
    if let Some(path) = assets::openslide_asset("unopenable.tiff") {
        assert!(refusal(&path).to_string().contains("compression 52479 cannot be read"));
    }
    if let Some(path) = assets::openslide_asset("unreadable.svs") {
        let slide = open(&path, &OpenOptions::default()).unwrap();
        let error = slide.read_region(Level(0), slide.info().size().rect()).unwrap_err();
        assert!(matches!(error, Error::Tile { .. }), "{error}");
        assert!(error.to_string().contains("level 0, column 0 row 0: JPEG"), "{error}");
    }
}
