//! From samples to pixels, a row at a time: chroma that is stored coarser is enlarged as libjpeg does it by default ("fancy upsampling"), and
//! luma and chroma become red, green and blue by its tables.
//!
//! Samples of chroma lie in the middle of the pixels that they stand for. A pixel takes three quarters of the nearest sample and a quarter
//! of the one behind it, along each direction in which chroma is coarser. Halves are rounded up in one of two neighbours and down in the
//! other, so that colours do not drift.
//!
//! The loops are such that the compiler makes vectors of them; `avx2.rs` says for which.
//!
//! Source: the comments of libjpeg-turbo's `jdsample.c` and `jdcolor.c`.

/// Twice as many samples: each gives two, that lean to their neighbours left and right. Those at the ends have one neighbour only.
///
/// # Panics
/// If there are fewer than two samples, or `wide` has not exactly twice as many.
#[inline(always)]
pub(super) fn widen(samples: &[u8], wide: &mut [u8]) {
    let (first, last) = (samples[0], samples[samples.len() - 1]);
    assert_eq!(wide.len(), 2 * samples.len());
    let third = |x: u8| 3 * u16::from(x);
    wide[0] = first;
    wide[1] = ((third(first) + u16::from(samples[1]) + 2) >> 2) as u8;
    let end = wide.len();
    wide[end - 2] = ((third(last) + u16::from(samples[samples.len() - 2]) + 1) >> 2) as u8;
    wide[end - 1] = last;
    for (pair, near) in wide[2..end - 2].chunks_exact_mut(2).zip(samples.windows(3)) {
        pair[0] = ((third(near[1]) + u16::from(near[0]) + 1) >> 2) as u8;
        pair[1] = ((third(near[1]) + u16::from(near[2]) + 2) >> 2) as u8;
    }
}

/// The row above or below the middle of a sample, between it and its neighbour there.
///
/// `bias` is 1 above and 2 below.
#[inline(always)]
pub(super) fn between(near: &[u8], far: &[u8], bias: u16, row: &mut [u8]) {
    for ((sample, &near), &far) in row.iter_mut().zip(near).zip(far) {
        *sample = ((3 * u16::from(near) + u16::from(far) + bias) >> 2) as u8;
    }
}

/// Four times what [`between`] is, not rounded.
#[inline(always)]
pub(super) fn sums(near: &[u8], far: &[u8], sums: &mut [u16]) {
    for ((sum, &near), &far) in sums.iter_mut().zip(near).zip(far) {
        *sum = 3 * u16::from(near) + u16::from(far);
    }
}

/// As [`widen`], of [`sums`].
///
/// # Panics
/// As there.
#[inline(always)]
pub(super) fn widen_sums(sums: &[u16], wide: &mut [u8]) {
    let (first, last) = (sums[0], sums[sums.len() - 1]);
    assert_eq!(wide.len(), 2 * sums.len());
    wide[0] = ((4 * first + 8) >> 4) as u8;
    wide[1] = ((3 * first + sums[1] + 7) >> 4) as u8;
    let end = wide.len();
    wide[end - 2] = ((3 * last + sums[sums.len() - 2] + 8) >> 4) as u8;
    wide[end - 1] = ((4 * last + 7) >> 4) as u8;
    for (pair, near) in wide[2..end - 2].chunks_exact_mut(2).zip(sums.windows(3)) {
        pair[0] = ((3 * near[1] + near[0] + 8) >> 4) as u8;
        pair[1] = ((3 * near[1] + near[2] + 7) >> 4) as u8;
    }
}

/// Each sample so many times.
pub(super) fn repeat(samples: &[u8], times: usize, wide: &mut [u8]) {
    for (wide, &sample) in wide.chunks_mut(times).zip(samples) {
        wide.fill(sample);
    }
}

/// Red, green, blue, side by side.
#[inline(always)]
pub(super) fn interleave([red, green, blue]: [&[u8]; 3], pixels: &mut [u8]) {
    for (((pixel, &red), &green), &blue) in pixels.chunks_exact_mut(3).zip(red).zip(green).zip(blue) {
        pixel.copy_from_slice(&[red, green, blue]);
    }
}

/// 2^16 times what red gets of the chroma of red, green of both, and blue of that of blue, as libjpeg rounds it.
pub(super) const RED: i32 = 91_881;
pub(super) const GREEN: [i32; 2] = [22_554, 46_802];
pub(super) const BLUE: i32 = 116_130;

/// Red, green and blue of luma and the chromas of blue and red, side by side (JFIF 1.02, in 16 bits behind the point).
#[inline(always)]
pub(super) fn colors([luma, blue, red]: [&[u8]; 3], pixels: &mut [u8]) {
    const HALF: i32 = 1 << 15;
    let sample = |value: i32| value.clamp(0, 255) as u8;
    for (((pixel, &luma), &blue), &red) in pixels.chunks_exact_mut(3).zip(luma).zip(blue).zip(red) {
        let (luma, blue, red) = (i32::from(luma), i32::from(blue) - 128, i32::from(red) - 128);
        pixel.copy_from_slice(&[
            sample(luma + ((RED * red + HALF) >> 16)),
            sample(luma + ((HALF - GREEN[0] * blue - GREEN[1] * red) >> 16)),
            sample(luma + ((BLUE * blue + HALF) >> 16)),
        ]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_lean_to_their_neighbours() {
        let mut wide = [0; 6];
        widen(&[0, 100, 7], &mut wide);
        // 0; (0 * 3 + 100 + 2) / 4; (300 + 0 + 1) / 4; (300 + 7 + 2) / 4; (21 + 100 + 1) / 4; 7
        assert_eq!(wide, [0, 25, 75, 77, 30, 7]);
        let mut row = [0; 2];
        between(&[10, 10], &[12, 11], 1, &mut row);
        assert_eq!(row, [10, 10]);
        between(&[10, 10], &[12, 11], 2, &mut row);
        assert_eq!(row, [11, 10]);
        let mut four = [0; 3];
        sums(&[10, 20, 255], &[0, 40, 255], &mut four);
        assert_eq!(four, [30, 100, 1020]);
        widen_sums(&four, &mut wide);
        // (120 + 8) / 16, (90 + 100 + 7) / 16; (300 + 30 + 8) / 16, (300 + 1020 + 7) / 16; (3060 + 100 + 8) / 16, (4080 + 7) / 16
        assert_eq!(wide, [8, 12, 21, 82, 198, 255]);
        let mut wide = [0; 7];
        repeat(&[1, 2, 3], 3, &mut wide);
        assert_eq!(wide, [1, 1, 1, 2, 2, 2, 3]);
    }

    #[test]
    fn colours_are_those_of_jfif() {
        let mut pixels = [0; 12];
        colors([&[128, 255, 76, 29], &[128, 128, 85, 255], &[128, 128, 255, 107]], &mut pixels);
        // Grey, white, and what red and blue become.
        assert_eq!(pixels, [128, 128, 128, 255, 255, 255, 254, 0, 0, 0, 0, 254]);
    }
}
