//! Decoding by zune-jpeg: pure Rust, within one level of libjpeg-turbo on streams without chroma subsampling.

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::Header;

/// Decodes a complete stream whose header is `header`.
pub(super) fn decode(stream: &[u8], header: Header) -> Result<Vec<u8>, String> {
    let mut samples = vec![0; header.samples()];
    decode_into(stream, header, &mut samples)?;
    Ok(samples)
}

/// As [`decode`], into a buffer of [`Header::samples`].
pub(super) fn decode_into(stream: &[u8], header: Header, samples: &mut [u8]) -> Result<(), String> {
    let space = match header.components {
        1 => ColorSpace::Luma,
        3 => ColorSpace::RGB,
        n => return Err(format!("JPEG: {n} channels (CMYK, perhaps) cannot be read, 1 and 3 can")),
    };
    // Strict, or a damaged stream would come out as grey where it breaks off.
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(header.width.into())
        .set_max_height(header.height.into())
        .jpeg_set_out_colorspace(space);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(stream), options);
    decoder.decode_into(samples).map_err(|e| format!("JPEG: {e}"))
}
