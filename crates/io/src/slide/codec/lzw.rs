//! LZW as TIFF 6.0 defines it (section 13): codes from the most significant bit, widened one code early.

use weezl::{BitOrder, LzwStatus, decode::Decoder};

/// Expands until the buffer is full.
pub(crate) fn decode(data: &[u8], out: &mut [u8]) -> Result<(), String> {
    // The clear code 256 that opens each stream, in 9 bits, starts with 0x80. Before TIFF 6.0 some writers packed codes
    // from the other end; libtiff tells these by this very test.
    if matches!(data, [0, second, ..] if second & 1 == 1) {
        return Err("LZW: codes are packed in the order used before TIFF 6.0, which cannot be read".into());
    }
    let mut decoder = Decoder::with_tiff_size_switch(BitOrder::Msb, 8);
    let (mut read, mut written) = (0, 0);
    while written < out.len() {
        let step = decoder.decode_bytes(&data[read..], &mut out[written..]);
        read += step.consumed_in;
        written += step.consumed_out;
        let ended = match step.status {
            Ok(LzwStatus::Ok) => step.consumed_in == 0 && step.consumed_out == 0,
            Ok(LzwStatus::NoProgress | LzwStatus::Done) => true,
            Err(e) => return Err(format!("LZW: {e}")),
        };
        if ended && written < out.len() {
            return Err(format!("LZW: the stream ends after {written} of {} bytes", out.len()));
        }
    }
    Ok(())
}
