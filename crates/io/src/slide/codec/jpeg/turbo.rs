//! Decoding by libjpeg-turbo: C, and bit for bit what OpenSlide decodes.

use turbojpeg::{Decompressor, Image, PixelFormat};

use super::Header;
use crate::slide::spare;

/// Decodes a complete stream whose header is `header`.
pub(super) fn decode(stream: &[u8], header: Header) -> Result<Vec<u8>, String> {
    let format = match header.components {
        1 => PixelFormat::GRAY,
        3 => PixelFormat::RGB,
        n => return Err(format!("JPEG: {n} channels (CMYK, perhaps) cannot be read, 1 and 3 can")),
    };
    let (width, height) = (usize::from(header.width), usize::from(header.height));
    let pitch = width * usize::from(header.components);
    // The library writes every sample or fails.
    let mut samples = spare::take(header.samples());
    let image = Image { pixels: &mut samples[..], width, pitch, height, format };
    Decompressor::new()
        .and_then(|mut decompressor| {
            // The library reads the header before it decodes, and needs it to do so.
            decompressor.read_header(stream)?;
            decompressor.decompress(stream, image)
        })
        .map_err(|e| format!("JPEG: {e}"))?;
    Ok(samples)
}
