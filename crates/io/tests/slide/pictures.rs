//! Plain pictures as slides of one level.

use std::path::Path;

use image::{DynamicImage, ImageFormat};
use microtome_io::slide::{Limits, OpenOptions, open};
use microtome_io::{Error, Level, Rect, SampleType, Samples};

use crate::slide;

fn gradient() -> image::RgbaImage {
    image::RgbaImage::from_fn(30, 20, |x, y| image::Rgba([x as u8 * 8, y as u8 * 12, 90, if x < 15 { 255 } else { 0 }]))
}

fn whole(path: &Path) -> Samples {
    let slide = slide(path);
    assert_eq!((slide.info().levels.len(), slide.info().resolution.is_none()), (1, true));
    slide.read_region(Level(0), slide.info().size().rect()).unwrap().samples().clone()
}

#[test]
fn lossless_pictures_come_back_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let rgb = DynamicImage::from(gradient()).to_rgb8();
    for (name, format) in [("a.png", ImageFormat::Png), ("a.webp", ImageFormat::WebP)] {
        let path = folder.path().join(name);
        rgb.save_with_format(&path, format).unwrap();
        assert_eq!(slide(&path).info().format, name[2..]);
        assert_eq!(whole(&path), Samples::U8(rgb.to_vec()));
    }
    let wide = DynamicImage::from(rgb).to_luma16();
    let path = folder.path().join("wide.png");
    wide.save(&path).unwrap();
    assert_eq!((slide(&path).info().sample, slide(&path).info().channels), (SampleType::U16, 1));
    assert_eq!(whole(&path), Samples::U16(wide.to_vec()));
}

#[test]
fn transparent_pictures_lie_on_white() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    gradient().save(&path).unwrap();
    let slide = slide(&path);
    assert_eq!(slide.info().channels, 3);
    let pixels = slide.read_region(Level(0), Rect::new(14, 5, 2, 1)).unwrap();
    assert_eq!(pixels.as_u8().unwrap(), [112, 60, 90, 255, 255, 255]);
    let outside = slide.read_region(Level(0), Rect::new(-1, 0, 1, 1)).unwrap();
    assert_eq!(outside.as_u8().unwrap(), [255; 3]);
}

#[test]
fn a_jpeg_that_is_cut_off_is_an_error_and_not_grey() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jpg");
    DynamicImage::from(gradient()).to_rgb8().save(&path).unwrap();
    assert_eq!(slide(&path).info().format, "jpeg");
    whole(&path);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();
    let cut = slide(&path);
    for _ in 0..2 {
        let error = cut.read_region(Level(0), Rect::new(0, 0, 5, 5)).unwrap_err();
        assert!(matches!(error, Error::Tile { .. }) && error.to_string().contains("cut off"), "{error}");
    }
}

#[test]
fn a_picture_beyond_the_limit_is_refused_before_it_is_decoded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    gradient().save(&path).unwrap();
    let mut limits = Limits::default();
    limits.decoded_bytes = 1000;
    let error = open(&path, &OpenOptions::default().limits(limits)).unwrap_err();
    assert!(matches!(error, Error::Limits { .. }) && error.to_string().contains("the limit is 1000"), "{error}");
}

#[test]
fn the_identity_follows_the_content_and_not_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let id = |name: &str, width: u32| {
        let path = folder.path().join(name);
        image::RgbImage::new(width, 4).save(&path).unwrap();
        slide(&path).content_id().unwrap()
    };
    assert_eq!(id("a.png", 5), id("b.png", 5));
    assert_ne!(id("a.png", 5), id("a.png", 6));
}
