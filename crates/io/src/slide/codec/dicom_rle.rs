//! DICOM's RLE: each byte of each sample in a plane of its own, every plane packed by Apple's run lengths.
//!
//! A header of 64 bytes says where the planes (segments) start. The planes come channel by channel, within a channel the
//! most significant byte first.
//!
//! Source: DICOM PS3.5, annex G.

use super::packbits;

/// Unpacks `channels` planes of `width` bytes a sample into samples that are interleaved and little endian.
pub(crate) fn decode(data: &[u8], out: &mut [u8], channels: usize, width: usize) -> Result<(), String> {
    let planes = channels * width;
    let word = |index: usize| {
        let bytes = data.get(index * 4..index * 4 + 4)?;
        bytes.try_into().ok().map(|bytes| u32::from_le_bytes(bytes) as usize)
    };
    let count = word(0).ok_or("RLE: the stream ends inside its header")?;
    if count != planes || planes > 15 {
        return Err(format!("RLE: the stream has {count} segments where there should be {planes}"));
    }
    let pixels = out.len() / planes;
    let mut plane = vec![0; pixels];
    for index in 0..planes {
        let start = word(1 + index).ok_or("RLE: the stream ends inside its header")?;
        let end = if index + 1 < planes { word(2 + index).unwrap_or(0) } else { data.len() };
        let segment = data.get(start..end).filter(|_| start >= 64);
        let segment = segment.ok_or_else(|| format!("RLE: segment {index} lies at bytes {start} to {end}"))?;
        packbits::decode(segment, &mut plane).map_err(|what| format!("RLE: segment {index}: {what}"))?;
        let (channel, byte) = (index / width, width - 1 - index % width);
        for (pixel, &value) in out.chunks_exact_mut(planes).zip(&plane) {
            pixel[channel * width + byte] = value;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn planes_are_interleaved_and_bytes_turned() {
        // Two samples of two channels of 16 bits: 0x0102 0x0304 for the first channel, 0x0506 twice for the second.
        let mut data = vec![0_u8; 64];
        let segments: [&[u8]; 4] = [&[1, 1, 3], &[1, 2, 4], &[0xff, 5], &[0xff, 6]];
        data[0] = 4;
        for (index, segment) in segments.into_iter().enumerate() {
            let start = data.len() as u32;
            data[4 + index * 4..8 + index * 4].copy_from_slice(&start.to_le_bytes());
            data.extend(segment);
        }
        let mut out = [0; 8];
        decode(&data, &mut out, 2, 2).unwrap();
        assert_eq!(out, [2, 1, 6, 5, 4, 3, 6, 5]);
        assert!(decode(&data, &mut [0; 12], 3, 2).unwrap_err().contains("4 segments where there should be 6"));
        assert!(decode(&data[..70], &mut out, 2, 2).is_err());
        data[4] = 63;
        assert!(decode(&data, &mut out, 2, 2).unwrap_err().contains("segment 0"));
    }
}
