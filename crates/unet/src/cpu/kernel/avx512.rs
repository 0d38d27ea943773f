//! AVX-512: sixteen lanes.
#![allow(unsafe_code)]
// The names say where they come from.
#![allow(clippy::wildcard_imports)]

use std::arch::x86_64::*;

use super::elementwise::elementwise;
use super::generic;
use super::vector::{Content, OfBf16, OfF32, PairedVector, PairsVector, Vector};
use super::winograd::{self, OfFour, OfTwo, Transform};
use super::{Kernels, RawInputTile, RawOutputTile, RawRow, RawTile, Sides, Words, by_block, by_pixels};

#[derive(Clone, Copy)]
pub(super) struct Lanes(pub(super) __m512);

/// The first `count` of sixteen lanes.
#[inline(always)]
pub(super) fn first(count: usize) -> u16 {
    debug_assert!(count <= 16);
    ((1_u32 << count) - 1) as u16
}

// SAFETY of the blocks below: by the trait's contract the CPU has AVX-512 F, BW, DQ and VL,
// and pointers are valid for what is read or written through them; masked lanes are not touched.
impl Vector for Lanes {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_maskz_loadu_ps(first(count), from) })
    }

    #[inline(always)]
    unsafe fn bend(self, slope: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, _mm512_setzero_ps());
            Self(_mm512_mask_mov_ps(_mm512_mul_ps(self.0, slope.0), positive, self.0))
        }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_set1_ps(*from) })
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const f32) {
        // SAFETY: see above; a prefetch reads nothing that the program could see, wherever it points to.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }

    #[inline(always)]
    unsafe fn prefetch_to_write(to: *mut f32) {
        // SAFETY: see above.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(to.cast()) }
    }

    #[inline(always)]
    unsafe fn constant(value: f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
    }

    #[inline(always)]
    unsafe fn minus_product(self, a: Self, b: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_fnmadd_ps(a.0, b.0, self.0) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        // SAFETY: see above.
        unsafe { _mm512_mask_storeu_ps(to, first(count), self.0) }
    }
}

// SAFETY of the blocks below: as above.
impl PairedVector for Lanes {
    #[inline(always)]
    unsafe fn splat_pair(from: *const f32) -> Self {
        // SAFETY: see above; the two values are read as one double without looking at them.
        Self(unsafe { _mm512_castpd_ps(_mm512_set1_pd(from.cast::<f64>().read_unaligned())) })
    }

    #[inline(always)]
    unsafe fn sum_pairs(low: Self, high: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
            let even = _mm512_permutex2var_ps(low.0, even, high.0);
            Self(_mm512_add_ps(even, _mm512_permutex2var_ps(low.0, odd, high.0)))
        }
    }

    #[inline(always)]
    unsafe fn lower_half(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_maskz_mov_ps(first(8), self.0) })
    }

    #[inline(always)]
    unsafe fn store_lower(self, to: *mut f32, count: usize) {
        debug_assert!(count <= 8);
        // SAFETY: see above.
        unsafe { self.store_first(to, count) }
    }

    #[inline(always)]
    unsafe fn store_upper(self, to: *mut f32, count: usize) {
        debug_assert!(count <= 8);
        // SAFETY: see above.
        unsafe { _mm256_mask_storeu_ps(to, first(count) as u8, _mm512_extractf32x8_ps::<1>(self.0)) }
    }
}

// SAFETY of the blocks below: as above.
impl PairsVector for Lanes {
    #[inline(always)]
    unsafe fn firsts(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(self.0))) })
    }

    #[inline(always)]
    unsafe fn seconds(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_and_ps(self.0, _mm512_castsi512_ps(_mm512_set1_epi32(0xffff_0000_u32 as i32))) })
    }

    #[inline(always)]
    unsafe fn store_pairs(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_si256(to.cast(), self.rounded()) }
    }

    #[inline(always)]
    unsafe fn store_first_pairs(self, to: *mut f32, count: usize) {
        debug_assert!(count <= 8);
        // SAFETY: see above.
        unsafe { _mm256_mask_storeu_epi32(to.cast(), first(count) as u8, self.rounded()) }
    }
}

impl Lanes {
    /// All lanes as bf16: the vectors' version of [`bf16::round`](super::super::bf16::round).
    ///
    /// # Safety
    /// The CPU has AVX-512 F.
    #[inline(always)]
    unsafe fn rounded(self) -> __m256i {
        // SAFETY: the caller's contract.
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let nearest = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let halves = _mm512_mask_or_epi32(nearest, nan, bits, _mm512_set1_epi32(0x40_0000));
            _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(halves))
        }
    }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::tile`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn single<W: Content<Lanes>, const PX: usize, const CB: usize>(t: &RawTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::tile::<Lanes, W, PX, 1, CB>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::tile`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn double<W: Content<Lanes>, const PX: usize, const CB: usize>(t: &RawTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::tile::<Lanes, W, PX, 2, CB>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::paired_tile`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn paired<W: Content<Lanes>, const PX: usize, const CB: usize>(t: &RawTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::paired_tile::<Lanes, W, PX, CB>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`winograd::input_tile`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn input_tile<W: Content<Lanes>, T: Transform<Lanes, M, N>, const M: usize, const N: usize>(t: &RawInputTile) {
    // SAFETY: the caller's contract.
    unsafe { winograd::input_tile::<Lanes, W, T, M, N>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`winograd::output_tile`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn output_tile<T: Transform<Lanes, M, N>, const M: usize, const N: usize>(t: &RawOutputTile) {
    // SAFETY: the caller's contract.
    unsafe { winograd::output_tile::<Lanes, T, M, N>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::load_row`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn load_row<W: Content<Lanes>, const CB: usize>(row: &RawRow) {
    // SAFETY: the caller's contract.
    unsafe { generic::load_row::<Lanes, W, CB>(row) }
}

elementwise!(#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]);

/// 32 registers: twelve pixels of two vectors take 24, the weights two.
pub(super) static F32: Kernels = Kernels {
    lanes: 16,
    words: Words::F32,
    single: by_pixels!(single<OfF32>: 1 2 3 4 5 6 7 8 9 10 11 12),
    double: Some(by_pixels!(double<OfF32>: 1 2 3 4 5 6 7 8 9 10 11 12)),
    paired: Some(by_pixels!(paired<OfF32>: 1 2 3 4 5 6 7 8 9 10 11 12)),
    f32: None,
    sides: Sides { output: 4, input: 6 },
    input_tile: input_tile::<OfF32, OfFour, 4, 6>,
    output_tile: output_tile::<OfFour, 4, 6>,
    load_row: by_block!(load_row<OfF32>),
    elementwise: ELEMENTWISE,
};

/// Fewer pixels at a time than for f32, which is the better choice where these are used: they would only make the program larger.
pub(super) static BF16: Kernels = Kernels {
    lanes: 16,
    words: Words::Bf16,
    single: by_pixels!(single<OfBf16>: 1 2 3 4 5 6 7 8),
    double: Some(by_pixels!(double<OfBf16>: 1 2 3 4 5 6 7 8)),
    paired: Some(by_pixels!(paired<OfBf16>: 1 2 3 4 5 6 7 8)),
    f32: Some(&F32),
    sides: Sides { output: 2, input: 4 },
    input_tile: input_tile::<OfBf16, OfTwo, 2, 4>,
    output_tile: output_tile::<OfTwo, 2, 4>,
    load_row: by_block!(load_row<OfBf16>),
    elementwise: ELEMENTWISE,
};
