//! zlib streams (RFC 1950), TIFF compression 8 and its older number 32946.

use flate2::{Decompress, FlushDecompress, Status};

/// Inflates until the buffer is full.
pub(crate) fn decode(data: &[u8], out: &mut [u8]) -> Result<(), String> {
    let mut inflater = Decompress::new(true);
    let want = out.len();
    loop {
        let (read, written) = (inflater.total_in() as usize, inflater.total_out() as usize);
        if written == want {
            return Ok(());
        }
        let status = inflater
            .decompress(&data[read..], &mut out[written..], FlushDecompress::Finish)
            .map_err(|e| format!("deflate: {e}"))?;
        let stuck = inflater.total_in() as usize == read && inflater.total_out() as usize == written;
        if (status == Status::StreamEnd || stuck) && (inflater.total_out() as usize) < want {
            return Err(format!("deflate: the stream ends after {} of {want} bytes", inflater.total_out()));
        }
    }
}
