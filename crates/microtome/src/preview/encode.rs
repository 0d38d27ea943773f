//! Pictures as files.

use std::borrow::Cow;
use std::path::Path;

use image::{ExtendedColorType, ImageEncoder};
use microtome_io::{Pixels, Samples};

use super::PreviewOptions;
use crate::output::put;
use crate::{Error, Result};

/// How a picture is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PictureFormat {
    Png,
    Jpeg,
    /// Lossless.
    WebP,
}

/// Writes a grey or RGB picture of 8 bits, or as a PNG of 16 bits, per sample; the ending decides the format: `.png`, `.jpg`, `.jpeg` or `.webp` (lossless).
///
/// The picture appears under its name when it is complete.
///
/// # Errors
/// [`Error::Usage`] for another ending, other pixels, or more of them to a side than the format can have; [`Error::Picture`] if it cannot be
/// encoded, [`Error::Io`] if it cannot be written.
pub fn save(picture: &Pixels, path: &Path, options: PreviewOptions) -> Result<()> {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let format = match ending.as_str() {
        "png" => PictureFormat::Png,
        "jpg" | "jpeg" => PictureFormat::Jpeg,
        "webp" => PictureFormat::WebP,
        _ => return Err(Error::Usage(format!("{}: pictures are written as .png, .jpg or .webp", path.display()))),
    };
    put(path, &encode(picture, format, path, options)?)
}

/// The bytes of a grey or RGB picture; `path` is what an error names.
///
/// # Errors
/// [`Error::Usage`] for other pixels, or more of them to a side than the format can have; [`Error::Picture`] if it cannot be encoded.
pub(crate) fn encode(picture: &Pixels, format: PictureFormat, path: &Path, options: PreviewOptions) -> Result<Vec<u8>> {
    let (samples, color): (Cow<'_, [u8]>, _) = match (picture.samples(), picture.channels()) {
        (Samples::U8(samples), 1) => (samples.into(), ExtendedColorType::L8),
        (Samples::U8(samples), 3) => (samples.into(), ExtendedColorType::Rgb8),
        // The encoders of `image` take samples in the byte order of the machine.
        (Samples::U16(samples), channels @ (1 | 3)) if format == PictureFormat::Png => (
            samples.iter().flat_map(|sample| sample.to_ne_bytes()).collect(),
            if channels == 1 { ExtendedColorType::L16 } else { ExtendedColorType::Rgb16 },
        ),
        _ => {
            return Err(Error::Usage(
                "pictures have grey or RGB pixels, of 8 bits or, as a PNG, of 16 bits a sample".into(),
            ));
        }
    };
    let (what, most) = match format {
        PictureFormat::Png => ("PNG", u32::MAX),
        PictureFormat::Jpeg => ("JPEG", 65_535),
        PictureFormat::WebP => ("WebP", 16_384),
    };
    let size = picture.size();
    if size.width.max(size.height) > u64::from(most) {
        return Err(Error::Usage(format!(
            "{}: a {what} has at most {most} pixels to a side, and this picture {size}: make it smaller, or a PNG",
            path.display()
        )));
    }
    let (width, height) = (size.width as u32, size.height as u32);
    let mut bytes = Vec::new();
    let encoded = match format {
        PictureFormat::Png => {
            image::codecs::png::PngEncoder::new(&mut bytes).write_image(&samples, width, height, color)
        }
        PictureFormat::Jpeg => image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, options.quality)
            .write_image(&samples, width, height, color),
        PictureFormat::WebP => {
            image::codecs::webp::WebPEncoder::new_lossless(&mut bytes).write_image(&samples, width, height, color)
        }
    };
    encoded.map_err(|error| Error::Picture { path: path.into(), message: error.to_string() })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use microtome_io::{SampleType, Size};

    use super::*;

    #[test]
    fn a_picture_that_its_format_cannot_hold_is_refused_with_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let wide = |width| Pixels::filled(Size::new(width, 1), SampleType::U8, &[7]);
        for (name, most) in [("a.webp", 16_384), ("a.jpg", 65_535)] {
            let path = folder.path().join(name);
            save(&wide(most), &path, PreviewOptions::default()).unwrap();
            let error = save(&wide(most + 1), &path, PreviewOptions::default()).unwrap_err();
            assert!(matches!(&error, Error::Usage(why) if why.contains(&most.to_string())), "{error}");
        }
        save(&wide(65_536), &folder.path().join("a.png"), PreviewOptions::default()).unwrap();
    }
}
