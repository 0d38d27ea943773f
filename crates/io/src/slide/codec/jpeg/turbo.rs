//! Decoding by libjpeg-turbo: C, and bit for bit what OpenSlide decodes.

use turbojpeg::{Decompressor, Image, PixelFormat};

use super::Header;

/// Decodes a complete stream whose header is `header` into as many samples as that says.
pub(super) fn decode_into(stream: &[u8], header: Header, samples: &mut [u8]) -> Result<(), String> {
    let format = if header.components == 1 { PixelFormat::GRAY } else { PixelFormat::RGB };
    let (width, height) = (usize::from(header.width), usize::from(header.height));
    let pitch = width * usize::from(header.components);
    // The library writes every sample or fails.
    let image = Image { pixels: samples, width, pitch, height, format };
    Decompressor::new()
        .and_then(|mut decompressor| {
            // The library reads the header before it decodes, and needs it to do so.
            decompressor.read_header(stream)?;
            decompressor.decompress(stream, image)
        })
        .map_err(|e| format!("JPEG: {e}"))
}
