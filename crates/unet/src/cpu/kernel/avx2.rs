//! AVX2 with FMA: eight lanes.
#![allow(unsafe_code)]
// The names say where they come from.
#![allow(clippy::wildcard_imports)]

use std::arch::x86_64::*;

use super::elementwise::elementwise;
use super::generic;
use super::vector::Vector;
use super::{Kernels, RawInputTile, RawOutputTile, RawRow, RawTile, by_block, by_pixels};

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

/// # Safety
/// The CPU has the features, and the argument is as [`generic::tile`] asks.
#[target_feature(enable = "avx2,fma")]
unsafe fn single<const PX: usize, const CB: usize>(t: &RawTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::tile::<Lanes, PX, 1, CB>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::tile`] asks.
#[target_feature(enable = "avx2,fma")]
unsafe fn double<const PX: usize, const CB: usize>(t: &RawTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::tile::<Lanes, PX, 2, CB>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::input_tile`] asks.
#[target_feature(enable = "avx2,fma")]
unsafe fn input_tile(t: &RawInputTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::input_tile::<Lanes>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::output_tile`] asks.
#[target_feature(enable = "avx2,fma")]
unsafe fn output_tile(t: &RawOutputTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::output_tile::<Lanes>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::load_row`] asks.
#[target_feature(enable = "avx2,fma")]
unsafe fn load_row<const CB: usize>(row: &RawRow) {
    // SAFETY: the caller's contract.
    unsafe { generic::load_row::<Lanes, CB>(row) }
}

elementwise!(#[target_feature(enable = "avx2,fma")]);

/// 16 registers: six pixels of two vectors take twelve, the weights two.
pub(super) static KERNELS: Kernels = Kernels {
    lanes: 8,
    single: by_pixels!(single: 1 2 3 4 5 6 7 8 9 10 11 12),
    double: Some(by_pixels!(double: 1 2 3 4 5 6)),
    paired: None,
    input_tile,
    output_tile,
    load_row: by_block!(load_row),
    elementwise: ELEMENTWISE,
};
