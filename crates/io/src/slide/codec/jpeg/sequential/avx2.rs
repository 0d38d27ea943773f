//! The same on x86-64 with AVX2: the transform and the colours in vectors written out, the rest as the compiler makes it of the loops in
//! `bits.rs` and `rows.rs` for such a processor.
#![allow(unsafe_code)]
// The names say where they come from.
#![allow(clippy::wildcard_imports)]

use std::arch::x86_64::*;

use super::dct::{EVEN, ODD, SHIFTS};
use super::huffman::Fault;
use super::rows::{BLUE, GREEN, RED};
use super::scan::{Part, Units};
use super::{Bits, rows, scan};

/// Stands for a processor that has what the functions of this file need: there is none without asking it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// Asks the processor.
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt");
        found.then_some(Self(()))
    }

    pub(super) fn units(self, bits: &mut Bits, parts: &mut [Part<'_>], units: Units) -> Result<(), (Fault, usize)> {
        #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
        fn inner(this: Avx2, bits: &mut Bits, parts: &mut [Part<'_>], units: Units) -> Result<(), (Fault, usize)> {
            scan::decode_units(bits, parts, units, |coefficients, quantisation, samples, stride| {
                this.inverse(coefficients, quantisation, samples, stride);
            })
        }
        // SAFETY: `self` says that the processor has all that is enabled.
        unsafe { inner(self, bits, parts, units) }
    }

    /// As [`inverse`](super::dct::inverse).
    #[inline(always)]
    pub(super) fn inverse(self, coefficients: &[i16; 64], quantisation: &[i16; 64], samples: &mut [u8], stride: usize) {
        // SAFETY: `self` says that the processor has AVX2.
        let done = unsafe { inverse(coefficients, quantisation) };
        for (row, done) in done.into_iter().enumerate() {
            samples[row * stride..row * stride + 8].copy_from_slice(&done.to_le_bytes());
        }
    }

    /// As [`rows::widen`].
    pub(super) fn widen(self, samples: &[u8], wide: &mut [u8]) {
        #[target_feature(enable = "avx2")]
        fn inner(samples: &[u8], wide: &mut [u8]) {
            rows::widen(samples, wide);
        }
        // SAFETY: `self` says that the processor has AVX2.
        unsafe { inner(samples, wide) }
    }

    /// As [`rows::between`].
    pub(super) fn between(self, near: &[u8], far: &[u8], bias: u16, row: &mut [u8]) {
        #[target_feature(enable = "avx2")]
        fn inner(near: &[u8], far: &[u8], bias: u16, row: &mut [u8]) {
            rows::between(near, far, bias, row);
        }
        // SAFETY: `self` says that the processor has AVX2.
        unsafe { inner(near, far, bias, row) }
    }

    /// As [`rows::sums`].
    pub(super) fn sums(self, near: &[u8], far: &[u8], sums: &mut [u16]) {
        #[target_feature(enable = "avx2")]
        fn inner(near: &[u8], far: &[u8], sums: &mut [u16]) {
            rows::sums(near, far, sums);
        }
        // SAFETY: `self` says that the processor has AVX2.
        unsafe { inner(near, far, sums) }
    }

    /// As [`rows::widen_sums`].
    pub(super) fn widen_sums(self, sums: &[u16], wide: &mut [u8]) {
        #[target_feature(enable = "avx2")]
        fn inner(sums: &[u16], wide: &mut [u8]) {
            rows::widen_sums(sums, wide);
        }
        // SAFETY: `self` says that the processor has AVX2.
        unsafe { inner(sums, wide) }
    }

    /// As [`rows::interleave`].
    pub(super) fn interleave(self, channels: [&[u8]; 3], pixels: &mut [u8]) {
        // SAFETY: `self` says that the processor has AVX2.
        unsafe { interleave(channels, pixels) }
    }

    /// As [`rows::colors`].
    pub(super) fn colors(self, channels: [&[u8]; 3], pixels: &mut [u8]) {
        // SAFETY: `self` says that the processor has AVX2.
        unsafe { colors(channels, pixels) }
    }
}

/// Rows 2 `pair` and 2 `pair` + 1 of a block.
#[target_feature(enable = "avx2")]
fn two_rows(block: &[i16; 64], pair: usize) -> __m256i {
    let rows: &[i16] = &block[16 * pair..16 * pair + 16];
    // SAFETY: the slice has 32 bytes, and the load needs no alignment.
    unsafe { _mm256_loadu_si256(rows.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn sixteen(samples: &[u8; 16]) -> __m128i {
    // SAFETY: the array has 16 bytes, and the load needs no alignment.
    unsafe { _mm_loadu_si128(samples.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn store(vector: __m128i, to: &mut [u8; 16]) {
    // SAFETY: the array has 16 bytes, and the store needs no alignment.
    unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), vector) }
}

/// Two factors, in all pairs of lanes.
#[target_feature(enable = "avx2")]
fn factors([a, b]: [i16; 2]) -> __m256i {
    _mm256_set1_epi32(i32::from(b) << 16 | i32::from(a as u16))
}

/// Numbers 0, 1, 2, 3 in the lower half of what comes first, and the others.
#[target_feature(enable = "avx2")]
fn halves(first: __m256i, second: __m256i) -> [__m256i; 2] {
    [_mm256_permute2x128_si256::<0x20>(first, second), _mm256_permute2x128_si256::<0x31>(first, second)]
}

#[target_feature(enable = "avx2")]
fn odd(in15: __m256i, in37: __m256i, [a, b, c, d]: [i16; 4]) -> __m256i {
    _mm256_add_epi32(_mm256_madd_epi16(in15, factors([a, b])), _mm256_madd_epi16(in37, factors([c, d])))
}

/// Transforms eight columns at once. Each lane of the input has two rows' numbers of a column: 0 and 4, 1 and 5, 2 and 6, 3 and 7.
/// The output are the rows, not yet shifted.
#[target_feature(enable = "avx2")]
fn pass([in04, in15, in26, in37]: [__m256i; 4], shift: u32) -> [__m256i; 8] {
    let half = _mm256_set1_epi32(1 << (shift - 1));
    let sum = _mm256_add_epi32(_mm256_madd_epi16(in04, factors(EVEN[0])), half);
    let difference = _mm256_add_epi32(_mm256_madd_epi16(in04, factors(EVEN[1])), half);
    let outer = _mm256_madd_epi16(in26, factors(EVEN[2]));
    let inner = _mm256_madd_epi16(in26, factors(EVEN[3]));
    let even = [
        _mm256_add_epi32(sum, outer),
        _mm256_add_epi32(difference, inner),
        _mm256_sub_epi32(difference, inner),
        _mm256_sub_epi32(sum, outer),
    ];
    let odd = [odd(in15, in37, ODD[0]), odd(in15, in37, ODD[1]), odd(in15, in37, ODD[2]), odd(in15, in37, ODD[3])];
    [
        _mm256_add_epi32(even[0], odd[0]),
        _mm256_add_epi32(even[1], odd[1]),
        _mm256_add_epi32(even[2], odd[2]),
        _mm256_add_epi32(even[3], odd[3]),
        _mm256_sub_epi32(even[3], odd[3]),
        _mm256_sub_epi32(even[2], odd[2]),
        _mm256_sub_epi32(even[1], odd[1]),
        _mm256_sub_epi32(even[0], odd[0]),
    ]
}

/// Rows 2 `pair` and 2 `pair` + 1 of coefficients, times their steps.
#[target_feature(enable = "avx2")]
fn dequantised(coefficients: &[i16; 64], quantisation: &[i16; 64], pair: usize) -> __m256i {
    _mm256_mullo_epi16(two_rows(coefficients, pair), two_rows(quantisation, pair))
}

/// Two rows of the first pass, shifted and clamped to 16 bits, each with its columns in the order 0, 4, 1, 5, 2, 6, 3, 7.
#[target_feature(enable = "avx2")]
fn packed(first: __m256i, second: __m256i) -> __m256i {
    const SHIFT: i32 = SHIFTS[0] as i32;
    let pairs = _mm256_setr_epi8(
        0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15, 0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15,
    );
    let packed = _mm256_packs_epi32(_mm256_srai_epi32::<SHIFT>(first), _mm256_srai_epi32::<SHIFT>(second));
    _mm256_shuffle_epi8(_mm256_permute4x64_epi64::<0b11_01_10_00>(packed), pairs)
}

/// Four columns of the second pass, shifted and clamped to samples: of each row from 0 to 3 and from 4 to 7 four side by side.
#[target_feature(enable = "avx2")]
fn samples([a, b, c, d]: [__m256i; 4]) -> __m256i {
    const SHIFT: i32 = SHIFTS[1] as i32;
    let turned = _mm256_setr_epi8(
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,
    );
    let first = _mm256_packs_epi32(_mm256_srai_epi32::<SHIFT>(a), _mm256_srai_epi32::<SHIFT>(b));
    let second = _mm256_packs_epi32(_mm256_srai_epi32::<SHIFT>(c), _mm256_srai_epi32::<SHIFT>(d));
    // Clamped to signed bytes; then the middle is added.
    let samples = _mm256_add_epi8(_mm256_packs_epi16(first, second), _mm256_set1_epi8(-128));
    _mm256_shuffle_epi8(samples, turned)
}

/// The samples of a block, each row as a number whose lowest byte is the first sample.
#[target_feature(enable = "avx2")]
fn inverse(coefficients: &[i16; 64], quantisation: &[i16; 64]) -> [u64; 8] {
    let rows01 = dequantised(coefficients, quantisation, 0);
    let rows23 = dequantised(coefficients, quantisation, 1);
    let rows45 = dequantised(coefficients, quantisation, 2);
    let rows67 = dequantised(coefficients, quantisation, 3);
    // Rows 0 and 4 of columns 0 to 3, then rows 1 and 5; and the same of columns 4 to 7.
    let [in04, in15] = halves(_mm256_unpacklo_epi16(rows01, rows45), _mm256_unpackhi_epi16(rows01, rows45));
    let [in26, in37] = halves(_mm256_unpacklo_epi16(rows23, rows67), _mm256_unpackhi_epi16(rows23, rows67));
    let between = pass([in04, in15, in26, in37], SHIFTS[0]);

    // Rows y and y + 4; then a lane for each row, of two columns' numbers.
    let rows04 = packed(between[0], between[4]);
    let rows15 = packed(between[1], between[5]);
    let rows26 = packed(between[2], between[6]);
    let rows37 = packed(between[3], between[7]);
    let (low, high) = (_mm256_unpacklo_epi32(rows04, rows15), _mm256_unpacklo_epi32(rows26, rows37));
    let (in04, in15) = (_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high));
    let (low, high) = (_mm256_unpackhi_epi32(rows04, rows15), _mm256_unpackhi_epi32(rows26, rows37));
    let (in26, in37) = (_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high));
    let [a, b, c, d, e, f, g, h] = pass([in04, in15, in26, in37], SHIFTS[1]);

    let (left, right) = (samples([a, b, c, d]), samples([e, f, g, h]));
    // Rows 0, 1 and 4, 5; rows 2, 3 and 6, 7.
    let (first, second) = (_mm256_unpacklo_epi32(left, right), _mm256_unpackhi_epi32(left, right));
    [
        _mm256_extract_epi64::<0>(first) as u64,
        _mm256_extract_epi64::<1>(first) as u64,
        _mm256_extract_epi64::<0>(second) as u64,
        _mm256_extract_epi64::<1>(second) as u64,
        _mm256_extract_epi64::<2>(first) as u64,
        _mm256_extract_epi64::<3>(first) as u64,
        _mm256_extract_epi64::<2>(second) as u64,
        _mm256_extract_epi64::<3>(second) as u64,
    ]
}

/// Where a byte of sixteen pixels comes from, for each of the three vectors that they fill and each channel; 128: from another channel.
static FROM: [[[u8; 16]; 3]; 3] = {
    let mut from = [[[128; 16]; 3]; 3];
    let mut byte = 0;
    while byte < 48 {
        from[byte / 16][byte % 3][byte % 16] = (byte / 3) as u8;
        byte += 1;
    }
    from
};

/// Sixteen pixels.
#[target_feature(enable = "avx2")]
fn store_pixels([red, green, blue]: [__m128i; 3], pixels: &mut [u8; 48]) {
    let (vectors, _) = pixels.as_chunks_mut::<16>();
    for (vector, [from_red, from_green, from_blue]) in vectors.iter_mut().zip(&FROM) {
        let red = _mm_shuffle_epi8(red, sixteen(from_red));
        let green = _mm_shuffle_epi8(green, sixteen(from_green));
        let blue = _mm_shuffle_epi8(blue, sixteen(from_blue));
        store(_mm_or_si128(_mm_or_si128(red, green), blue), vector);
    }
}

#[target_feature(enable = "avx2")]
fn interleave([red, green, blue]: [&[u8]; 3], pixels: &mut [u8]) {
    let (blocks, rest) = pixels.as_chunks_mut::<48>();
    let done = blocks.len() * 16;
    let (reds, greens, blues) = (red.as_chunks().0, green.as_chunks().0, blue.as_chunks().0);
    for (((pixels, red), green), blue) in blocks.iter_mut().zip(reds).zip(greens).zip(blues) {
        store_pixels([sixteen(red), sixteen(green), sixteen(blue)], pixels);
    }
    rows::interleave([&red[done..], &green[done..], &blue[done..]], rest);
}

#[target_feature(enable = "avx2")]
fn colors([luma, blue, red]: [&[u8]; 3], pixels: &mut [u8]) {
    let (blocks, rest) = pixels.as_chunks_mut::<48>();
    let done = blocks.len() * 16;
    let (lumas, blues, reds) = (luma.as_chunks().0, blue.as_chunks().0, red.as_chunks().0);
    for (((pixels, luma), blue), red) in blocks.iter_mut().zip(lumas).zip(blues).zip(reds) {
        store_pixels(sixteen_colors(sixteen(luma), sixteen(blue), sixteen(red)), pixels);
    }
    rows::colors([&luma[done..], &blue[done..], &red[done..]], rest);
}

/// 2^16.
const ONE: i32 = 1 << 16;

/// Red, green and blue of sixteen pixels.
///
/// Products of 16 bits keep their upper half only, so that factors are such that nothing is lost. Of a chroma c, red gets
/// c + 26345 c / 2^16 and blue 2 c - 14942 c / 2^16, halves rounded up. The upper half of 2 c times the factor is twice the quotient,
/// rounded down; with 1 added, its half is what is wanted. Green takes products of 32 bits; for 46802, which is above 2^15, stands
/// 46802 - 2^16, and a whole chroma is taken away.
#[target_feature(enable = "avx2")]
fn sixteen_colors(luma: __m128i, blue: __m128i, red: __m128i) -> [__m128i; 3] {
    let middle = _mm256_set1_epi16(128);
    let luma = _mm256_cvtepu8_epi16(luma);
    let blue = _mm256_sub_epi16(_mm256_cvtepu8_epi16(blue), middle);
    let red = _mm256_sub_epi16(_mm256_cvtepu8_epi16(red), middle);
    let (blue2, red2) = (_mm256_add_epi16(blue, blue), _mm256_add_epi16(red, red));
    let r = _mm256_add_epi16(_mm256_add_epi16(luma, red), half_product(red2, RED - ONE));
    let b = _mm256_add_epi16(_mm256_add_epi16(luma, blue2), half_product(blue2, BLUE - 2 * ONE));
    let (low, high) = (_mm256_unpacklo_epi16(blue, red), _mm256_unpackhi_epi16(blue, red));
    let g = _mm256_sub_epi16(_mm256_packs_epi32(green(low), green(high)), red);
    let g = _mm256_add_epi16(luma, g);
    [bytes(r), bytes(g), bytes(b)]
}

/// The upper half of a product, halved, halves rounded up.
#[target_feature(enable = "avx2")]
fn half_product(twice: __m256i, factor: i32) -> __m256i {
    let product = _mm256_mulhi_epi16(twice, _mm256_set1_epi16(factor as i16));
    _mm256_srai_epi16::<1>(_mm256_add_epi16(product, _mm256_set1_epi16(1)))
}

/// What green gets of both chromas, and one chroma of red more.
#[target_feature(enable = "avx2")]
fn green(chromas: __m256i) -> __m256i {
    let product = _mm256_madd_epi16(chromas, factors([-GREEN[0] as i16, (ONE - GREEN[1]) as i16]));
    _mm256_srai_epi32::<16>(_mm256_add_epi32(product, _mm256_set1_epi32(ONE / 2)))
}

/// Sixteen numbers as samples, clamped.
#[target_feature(enable = "avx2")]
fn bytes(numbers: __m256i) -> __m128i {
    let packed = _mm256_packus_epi16(numbers, numbers);
    _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b10_00>(packed))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::slide::codec::jpeg::sequential::dct::{self, tests::block};

    fn avx2() -> Option<Avx2> {
        let found = Avx2::detect();
        if found.is_none() {
            microtome_testkit::skip("this processor has no AVX2");
        }
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn the_transform_is_the_portable_one(
            (coefficients, quantisation) in block(),
            anything in prop::array::uniform32(any::<i16>()),
            how_much in 0..32_usize,
        ) {
            let Some(avx2) = avx2() else { return Ok(()) };
            let mut wild = coefficients;
            wild[..how_much].copy_from_slice(&anything[..how_much]);
            for coefficients in [coefficients, wild] {
                let (mut ours, mut theirs) = ([0; 64 + 56], [0; 64 + 56]);
                avx2.inverse(&coefficients, &quantisation, &mut ours, 15);
                dct::inverse(&coefficients, &quantisation, &mut theirs, 15);
                prop_assert_eq!(ours, theirs);
            }
        }

        #[test]
        fn rows_are_the_portable_ones(width in 2..200_usize, seed: u64) {
            let Some(avx2) = avx2() else { return Ok(()) };
            let mut state = seed;
            let mut channel = || -> Vec<u8> {
                let next = || {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 56) as u8
                };
                std::iter::repeat_with(next).take(width).collect()
            };
            let (a, b, c) = (channel(), channel(), channel());
            let of = |length: usize| (vec![0_u8; length], vec![0_u8; length]);
            let (mut ours, mut theirs) = of(3 * width);
            avx2.interleave([&a, &b, &c], &mut ours);
            rows::interleave([&a, &b, &c], &mut theirs);
            prop_assert_eq!(&ours, &theirs);
            avx2.colors([&a, &b, &c], &mut ours);
            rows::colors([&a, &b, &c], &mut theirs);
            prop_assert_eq!(&ours, &theirs);
            let (mut ours, mut theirs) = of(width);
            for bias in [1, 2] {
                avx2.between(&a, &b, bias, &mut ours);
                rows::between(&a, &b, bias, &mut theirs);
                prop_assert_eq!(&ours, &theirs);
            }
            let (mut ours, mut theirs) = of(2 * width);
            avx2.widen(&a, &mut ours);
            rows::widen(&a, &mut theirs);
            prop_assert_eq!(&ours, &theirs);
            let mut sums = (vec![0; width], vec![0; width]);
            avx2.sums(&a, &b, &mut sums.0);
            rows::sums(&a, &b, &mut sums.1);
            prop_assert_eq!(&sums.0, &sums.1);
            avx2.widen_sums(&sums.0, &mut ours);
            rows::widen_sums(&sums.0, &mut theirs);
            prop_assert_eq!(&ours, &theirs);
        }
    }

    /// All chromas, with lumas that clamp some and none.
    #[test]
    fn colours_are_the_portable_ones() {
        let Some(avx2) = avx2() else { return };
        let blue: Vec<u8> = (0..=u16::MAX).map(|at| at as u8).collect();
        let red: Vec<u8> = (0..=u16::MAX).map(|at| (at >> 8) as u8).collect();
        for luma in [0, 100, 128, 255] {
            let luma = vec![luma; 1 << 16];
            let (mut ours, mut theirs) = (vec![0; 3 << 16], vec![0; 3 << 16]);
            avx2.colors([&luma, &blue, &red], &mut ours);
            rows::colors([&luma, &blue, &red], &mut theirs);
            assert!(ours == theirs);
        }
    }
}
