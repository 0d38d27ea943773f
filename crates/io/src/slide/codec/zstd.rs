//! Zstandard frames (RFC 8878): TIFF compression 50000, and 34926, which some writers used before there was a number.

/// Expands until the buffer is full.
///
/// Frames are expanded straight into the buffer: a window that a frame asks for is never allocated, and one that holds
/// more than the buffer is an error.
pub(crate) fn decode(data: &[u8], out: &mut [u8]) -> Result<(), String> {
    let written = zstd::bulk::decompress_to_buffer(data, out).map_err(|e| format!("Zstandard: {e}"))?;
    if written < out.len() {
        return Err(format!("Zstandard: the stream ends after {written} of {} bytes", out.len()));
    }
    Ok(())
}
