//! Colours by ICC profile, against what littleCMS (through Pillow) makes of the same pixels.

use std::process::Command;

use microtome_io::slide::{Colors, OpenOptions, open};
use microtome_io::{Level, Rect};

/// Makes a TIFF (`argv[2]`) of pixels of all colours with the profile in `argv[1]`, and writes what Pillow's `ImageCms` makes of them
/// by the profile's own intent to `argv[3]`: RGB bytes.
const LITTLE_CMS: &str = "
import io, sys, numpy, tifffile
from PIL import Image, ImageCms
pixels = numpy.random.default_rng(1).integers(0, 256, (200, 300, 3)).astype('uint8')
pixels[:20] = 255
icc = open(sys.argv[1], 'rb').read()
tifffile.imwrite(sys.argv[2], pixels, photometric='rgb', tile=(64, 64), compression='zlib', iccprofile=icc)
profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
intent = ImageCms.getDefaultIntent(profile)
image = ImageCms.profileToProfile(Image.fromarray(pixels), profile, ImageCms.createProfile('sRGB'), intent)
open(sys.argv[3], 'wb').write(image.tobytes())
";

#[test]
fn a_profile_is_applied_as_little_cms_does() {
    let Some(python) = std::env::var_os("MICROTOME_PYTHON") else {
        microtome_testkit::skip("MICROTOME_PYTHON names no interpreter with Pillow; `cargo xtask test` makes one");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let [icc, tiff, rgb] = ["adobe.icc", "slide.tif", "rgb"].map(|name| folder.path().join(name));
    std::fs::write(&icc, moxcms::ColorProfile::new_adobe_rgb().encode().unwrap()).unwrap();
    let output = Command::new(python).args(["-c", LITTLE_CMS]).args([&icc, &tiff, &rgb]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let stored = crate::slide(&tiff);
    let srgb = open(&tiff, &OpenOptions::default().colors(Colors::Srgb)).unwrap();
    assert_eq!((stored.info().colors, srgb.info().colors), (Colors::Stored, Colors::Srgb));
    assert_eq!(srgb.info().background, [255; 3], "white stays white");
    assert_eq!(stored.content_id().unwrap(), srgb.content_id().unwrap());
    let all = stored.info().size().rect();
    let ours = srgb.read_region(Level::FINEST, all).unwrap();
    assert!(ours != stored.read_region(Level::FINEST, all).unwrap(), "nothing was converted");
    // Any part is the same as in the whole.
    let read = srgb.read_region(Level::FINEST, Rect::new(17, 23, 50, 40)).unwrap();
    for (row, y) in read.as_u8().unwrap().chunks_exact(150).zip(23..) {
        assert!(row == &ours.as_u8().unwrap()[(y * 300 + 17) * 3..][..150], "row {y}");
    }
    let theirs = std::fs::read(rgb).unwrap();
    let difference = |(a, b): (&u8, &u8)| u64::from(a.abs_diff(*b));
    let most = ours.as_u8().unwrap().iter().zip(&theirs).map(difference).max().unwrap();
    let sum: u64 = ours.as_u8().unwrap().iter().zip(&theirs).map(difference).sum();
    eprintln!("at most {most}, in the mean {}", sum as f64 / theirs.len() as f64);
    assert!(most <= 2 && sum as f64 <= 0.0422 * theirs.len() as f64, "{most}, {sum}");
}

#[test]
fn a_slide_without_a_profile_stays_as_it_is() {
    let Some(path) = microtome_testkit::assets::cmu_small_region() else { return };
    let stored = crate::slide(&path);
    let srgb = open(&path, &OpenOptions::default().colors(Colors::Srgb)).unwrap();
    if stored.icc_profile().is_none() {
        assert_eq!(srgb.info(), stored.info());
    } else {
        assert_eq!(srgb.info().colors, Colors::Srgb);
    }
}
