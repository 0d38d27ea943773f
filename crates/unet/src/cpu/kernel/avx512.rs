//! AVX-512: sixteen lanes.
#![allow(unsafe_code)]
// The names say where they come from.
#![allow(clippy::wildcard_imports)]

use std::arch::x86_64::*;

use super::elementwise::elementwise;
use super::generic;
use super::vector::{PairedVector, Vector};
use super::{Kernels, RawInputTile, RawOutputTile, RawRow, RawTile, by_block, by_pixels};

#[derive(Clone, Copy)]
struct Lanes(__m512);

/// The first `count` of sixteen lanes.
#[inline(always)]
fn first(count: usize) -> u16 {
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

/// # Safety
/// The CPU has the features, and the argument is as [`generic::tile`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn single<const PX: usize, const CB: usize>(t: &RawTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::tile::<Lanes, PX, 1, CB>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::tile`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn double<const PX: usize, const CB: usize>(t: &RawTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::tile::<Lanes, PX, 2, CB>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::paired_tile`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn paired<const PX: usize, const CB: usize>(t: &RawTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::paired_tile::<Lanes, PX, CB>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::input_tile`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn input_tile(t: &RawInputTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::input_tile::<Lanes>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::output_tile`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn output_tile(t: &RawOutputTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::output_tile::<Lanes>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::load_row`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn load_row<const CB: usize>(row: &RawRow) {
    // SAFETY: the caller's contract.
    unsafe { generic::load_row::<Lanes, CB>(row) }
}

elementwise!(#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]);

/// 32 registers: twelve pixels of two vectors take 24, the weights two.
pub(super) static KERNELS: Kernels = Kernels {
    lanes: 16,
    single: by_pixels!(single: 1 2 3 4 5 6 7 8 9 10 11 12),
    double: Some(by_pixels!(double: 1 2 3 4 5 6 7 8 9 10 11 12)),
    paired: Some(by_pixels!(paired: 1 2 3 4 5 6 7 8 9 10 11 12)),
    input_tile,
    output_tile,
    load_row: by_block!(load_row),
    elementwise: ELEMENTWISE,
};
