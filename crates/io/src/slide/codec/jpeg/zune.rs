//! Decoding of progressive streams by zune-jpeg: pure Rust, within some levels of libjpeg-turbo.

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::Header;

/// Decodes a complete stream whose header is `header` into as many samples as that says. Every one of them is written, or none counts.
pub(super) fn decode_into(stream: &[u8], header: Header, samples: &mut [u8]) -> Result<(), String> {
    let space = if header.components == 1 { ColorSpace::Luma } else { ColorSpace::RGB };
    // Strict, or a damaged stream would come out as grey where it breaks off.
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(header.width.into())
        .set_max_height(header.height.into())
        .jpeg_set_out_colorspace(space);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(stream), options);
    decoder.decode_into(samples).map_err(|e| format!("JPEG: {e}"))
}
