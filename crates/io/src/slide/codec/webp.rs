//! WebP pictures: TIFF compression 50001, and 34927, which some writers used before there was a number.
//!
//! A stream leaves the alpha channel out if all of it is opaque, whatever the file says that it holds, and may hold one
//! that the file does not know of; libtiff reads both, and so do we.

use std::io::Cursor;

use image_webp::WebPDecoder;

/// What the decoder may allocate besides the picture, in bytes per sample of it.
const SCRATCH: usize = 16;

/// Decodes a picture of `width` by `height` pixels into red, green, blue and, if `channels` is 4, alpha.
pub(crate) fn decode(data: &[u8], width: u64, height: u64, channels: usize) -> Result<Vec<u8>, String> {
    if channels != 3 && channels != 4 {
        return Err(format!("WebP: {channels} channels cannot be read, 3 and 4 can"));
    }
    let mut decoder = WebPDecoder::new(Cursor::new(data)).map_err(|e| format!("WebP: {e}"))?;
    let (found_width, found_height) = decoder.dimensions();
    if (u64::from(found_width), u64::from(found_height)) != (width, height) {
        return Err(format!("WebP: holds {found_width} x {found_height} pixels, the file says {width} x {height}"));
    }
    if decoder.is_animated() {
        return Err("WebP: animations cannot be read".into());
    }
    let pixels = width as usize * height as usize;
    let stored = if decoder.has_alpha() { 4 } else { 3 };
    decoder.set_memory_limit(pixels.saturating_mul(4 * SCRATCH).saturating_add(1 << 20));
    let mut samples = vec![0; pixels * stored];
    decoder.read_image(&mut samples).map_err(|e| format!("WebP: {e}"))?;
    Ok(match (stored, channels) {
        (4, 3) => samples.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
        (3, 4) => samples.chunks_exact(3).flat_map(|pixel| [pixel[0], pixel[1], pixel[2], u8::MAX]).collect(),
        _ => samples,
    })
}
