//! Aperio slides of JPEG 2000 tiles, made by tifffile and OpenJPEG, against OpenSlide.

use std::path::Path;
use std::process::Command;

use microtome_io::Size;

use crate::openslide::{compare, spread};

/// Runs a script of `tests/python`, or says that the test is skipped where no interpreter is named.
pub(crate) fn python(script: &str, arguments: &[&Path]) -> Option<Vec<u8>> {
    let Some(python) = std::env::var_os("MICROTOME_PYTHON") else {
        microtome_testkit::skip("MICROTOME_PYTHON names no interpreter with tifffile; `cargo xtask test` makes one");
        return None;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python").join(script);
    let output = Command::new(&python).arg(&script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    Some(output.stdout)
}

#[test]
fn jpeg_2000_slides_are_openslides() {
    let folder = tempfile::tempdir().unwrap();
    if python("jpeg2000_slides.py", &[folder.path()]).is_none() {
        return;
    }
    // Both decoders compute in floats where the coding loses something, and may round apart.
    for (name, allowed) in [("rgb_lossless", 0), ("ycbcr_lossless", 0), ("rgb_lossy", 1), ("ycbcr_lossy", 2)] {
        let slide = crate::slide(folder.path().join(name).with_extension("svs"));
        assert_eq!(slide.info().levels.len(), 2);
        let Some((description, difference)) = compare(&*slide, &spread(&*slide, 40, Size::new(97, 83))) else { return };
        assert_eq!(description.properties["openslide.vendor"], "aperio");
        assert!(difference.max <= allowed && difference.mean < 0.05, "{name}: {difference:?}");
    }
}
