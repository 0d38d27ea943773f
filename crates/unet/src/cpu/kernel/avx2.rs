//! AVX2 with FMA: eight lanes.
#![allow(unsafe_code)]
// The names say where they come from.
#![allow(clippy::wildcard_imports)]

use std::arch::x86_64::*;

use super::elementwise::elementwise;
use super::generic;
use super::vector::{Content, OfBf16, OfF32, PairsVector, Vector};
use super::winograd::{self, OfFour, OfTwo, Transform};
use super::{Kernels, RawInputTile, RawOutputTile, RawRow, RawTile, Sides, Words, by_block, by_pixels};

#[derive(Clone, Copy)]
struct Lanes(__m256);

/// Read from position `8 - count`, the mask of the first `count` lanes.
static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

// SAFETY of the blocks below: by the trait's contract the CPU has AVX2 and FMA,
// and pointers are valid for what is read or written through them; masked lanes are not touched.
impl Vector for Lanes {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        debug_assert!(count <= 8);
        // SAFETY: see above; with at most eight lanes the mask is read from inside `MASKS`.
        unsafe {
            let mask = _mm256_loadu_si256(MASKS.as_ptr().add(8 - count).cast());
            Self(_mm256_maskload_ps(from, mask))
        }
    }

    #[inline(always)]
    unsafe fn bend(self, slope: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            let positive = _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, _mm256_setzero_ps());
            Self(_mm256_blendv_ps(_mm256_mul_ps(self.0, slope.0), self.0, positive))
        }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_broadcast_ss(&*from) })
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
        Self(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_fmadd_ps(a.0, b.0, self.0) })
    }

    #[inline(always)]
    unsafe fn minus_product(self, a: Self, b: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_fnmadd_ps(a.0, b.0, self.0) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        debug_assert!(count <= 8);
        // SAFETY: see above; with at most eight lanes the mask is read from inside `MASKS`.
        unsafe {
            let mask = _mm256_loadu_si256(MASKS.as_ptr().add(8 - count).cast());
            _mm256_maskstore_ps(to, mask, self.0);
        }
    }
}

// SAFETY of the blocks below: as above.
impl PairsVector for Lanes {
    #[inline(always)]
    unsafe fn firsts(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(self.0))) })
    }

    #[inline(always)]
    unsafe fn seconds(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_and_ps(self.0, _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32))) })
    }

    #[inline(always)]
    unsafe fn store_pairs(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { _mm_storeu_si128(to.cast(), self.rounded()) }
    }

    #[inline(always)]
    unsafe fn store_first_pairs(self, to: *mut f32, count: usize) {
        debug_assert!(count <= 4);
        // SAFETY: see above; with at most four words the mask is read from inside `MASKS`.
        unsafe { _mm_maskstore_epi32(to.cast(), _mm_loadu_si128(MASKS.as_ptr().add(8 - count).cast()), self.rounded()) }
    }
}

impl Lanes {
    /// All lanes as bf16: the vectors' version of [`bf16::round`](super::super::bf16::round).
    ///
    /// # Safety
    /// The CPU has AVX2.
    #[inline(always)]
    unsafe fn rounded(self) -> __m128i {
        // SAFETY: the caller's contract.
        unsafe {
            let bits = _mm256_castps_si256(self.0);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let nearest = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0));
            let halves = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(nearest, quiet, nan));
            // Both halves of the vector are narrowed for themselves; their lower quarters are what counts.
            let halves = _mm256_permute4x64_epi64::<0b10_00>(_mm256_packus_epi32(halves, halves));
            _mm256_castsi256_si128(halves)
        }
    }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::tile`] asks.
#[target_feature(enable = "avx2,fma")]
unsafe fn single<W: Content<Lanes>, const PX: usize, const CB: usize>(t: &RawTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::tile::<Lanes, W, PX, 1, CB>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::tile`] asks.
#[target_feature(enable = "avx2,fma")]
unsafe fn double<W: Content<Lanes>, const PX: usize, const CB: usize>(t: &RawTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::tile::<Lanes, W, PX, 2, CB>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`winograd::input_tile`] asks.
#[target_feature(enable = "avx2,fma")]
unsafe fn input_tile<W: Content<Lanes>, T: Transform<Lanes, M, N>, const M: usize, const N: usize>(t: &RawInputTile) {
    // SAFETY: the caller's contract.
    unsafe { winograd::input_tile::<Lanes, W, T, M, N>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`winograd::output_tile`] asks.
#[target_feature(enable = "avx2,fma")]
unsafe fn output_tile<T: Transform<Lanes, M, N>, const M: usize, const N: usize>(t: &RawOutputTile) {
    // SAFETY: the caller's contract.
    unsafe { winograd::output_tile::<Lanes, T, M, N>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::load_row`] asks.
#[target_feature(enable = "avx2,fma")]
unsafe fn load_row<W: Content<Lanes>, const CB: usize>(row: &RawRow) {
    // SAFETY: the caller's contract.
    unsafe { generic::load_row::<Lanes, W, CB>(row) }
}

elementwise!(#[target_feature(enable = "avx2,fma")]);

/// 16 registers: six pixels of two vectors take twelve, the weights two.
pub(super) static F32: Kernels = Kernels {
    lanes: 8,
    words: Words::F32,
    single: by_pixels!(single<OfF32>: 1 2 3 4 5 6 7 8 9 10 11 12),
    double: Some(by_pixels!(double<OfF32>: 1 2 3 4 5 6)),
    paired: None,
    f32: None,
    sides: Sides { output: 4, input: 6 },
    input_tile: input_tile::<OfF32, OfFour, 4, 6>,
    output_tile: output_tile::<OfFour, 4, 6>,
    load_row: by_block!(load_row<OfF32>),
    elementwise: ELEMENTWISE,
};

/// Both halves of the weights and of a word, and a mask, take registers, too.
pub(super) static BF16: Kernels = Kernels {
    lanes: 8,
    words: Words::Bf16,
    single: by_pixels!(single<OfBf16>: 1 2 3 4 5 6),
    double: Some(by_pixels!(double<OfBf16>: 1 2 3 4)),
    paired: None,
    f32: Some(&F32),
    sides: Sides { output: 2, input: 4 },
    input_tile: input_tile::<OfBf16, OfTwo, 2, 4>,
    output_tile: output_tile::<OfTwo, 2, 4>,
    load_row: by_block!(load_row<OfBf16>),
    elementwise: ELEMENTWISE,
};
