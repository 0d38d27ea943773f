//! Decoding by zune-jpeg: pure Rust, within one level of libjpeg-turbo on streams without chroma subsampling.

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::Header;
use crate::slide::spare;

/// Decodes a complete stream whose header is `header`.
pub(super) fn decode(stream: &[u8], header: Header) -> Result<Vec<u8>, String> {
    // The decoder writes every sample or fails: `every_sample_is_written`.
    let mut samples = spare::take(header.samples());
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

#[cfg(test)]
mod tests {
    use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
    use proptest::prelude::*;

    use super::*;
    use crate::slide::codec::jpeg::read_header;

    fn stream(chroma: SamplingFactor, progressive: bool, restart: u16, side: u16) -> Vec<u8> {
        let mut stream = Vec::new();
        let mut encoder = Encoder::new(&mut stream, 80);
        encoder.set_sampling_factor(chroma);
        encoder.set_progressive(progressive);
        encoder.set_restart_interval(restart);
        let pixels: Vec<u8> = (0..u32::from(side) * u32::from(side) * 3).map(|i| (i * i >> 5) as u8).collect();
        encoder.encode(&pixels, side, side, ColorType::Rgb).unwrap();
        stream
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        /// What was in the buffer before shows in no pixel, also of streams that are damaged and decoded nevertheless.
        #[test]
        fn every_sample_is_written(
            chroma in prop::sample::select(vec![SamplingFactor::R_4_4_4, SamplingFactor::R_4_2_2, SamplingFactor::R_4_2_0]),
            progressive: bool,
            restart in prop::sample::select(vec![0_u16, 1, 3]),
            side in prop::sample::select(vec![8_u16, 17, 40]),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
        ) {
            let mut stream = stream(chroma, progressive, restart, side);
            for (at, value) in changes {
                let at = at.index(stream.len());
                stream[at] = value;
            }
            let Ok(header) = read_header(&stream) else { return Ok(()) };
            if header.samples() > 1 << 20 || header.samples() == 0 {
                return Ok(());
            }
            let decoded = [0x55, 0xaa].map(|before| {
                let mut samples = vec![before; header.samples()];
                decode_into(&stream, header, &mut samples).map(|()| samples)
            });
            if let [Ok(one), Ok(other)] = &decoded {
                prop_assert!(one == other);
            }
        }
    }
}
