//! AVX-512 with AVX512_BF16: the kernels of AVX-512, with instructions that round to pairs and multiply them.
#![allow(unsafe_code)]
// The names say where they come from.
#![allow(clippy::wildcard_imports)]

use std::arch::x86_64::*;

use super::avx512::{self, Lanes};
use super::generic;
use super::vector::Content;
use super::winograd::{self, OfTwo};
use super::{Kernels, RawInputTile, RawRow, RawTile, by_block, by_pixels};

/// Two bf16, multiplied by VDPBF16PS, and rounded by VCVTNEPS2BF16: see [`OfBf16`](super::vector::OfBf16) for what that does.
struct OfBf16;

// SAFETY of the blocks below: by the trait's contract the CPU has the instructions, and pointers are valid for what is written
// through them; masked words are not touched. The casts do not change a bit.
impl Content<Lanes> for OfBf16 {
    const CHANNELS: usize = 2;

    #[inline(always)]
    unsafe fn plus_product(sum: Lanes, weights: Lanes, input: Lanes) -> Lanes {
        // SAFETY: see above.
        Lanes(unsafe {
            let [weights, input] = [weights.0, input.0].map(|words| std::mem::transmute::<__m512, __m512bh>(words));
            _mm512_dpbf16_ps(sum.0, weights, input)
        })
    }

    #[inline(always)]
    unsafe fn store(channels: Lanes, to: *mut f32) {
        // SAFETY: see above.
        unsafe {
            let words = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(channels.0));
            _mm256_storeu_si256(to.cast(), words);
        }
    }

    #[inline(always)]
    unsafe fn store_first(channels: Lanes, to: *mut f32, count: usize) {
        // SAFETY: see above.
        unsafe {
            let words = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(channels.0));
            _mm256_mask_storeu_epi32(to.cast(), avx512::first(count / 2) as u8, words);
        }
    }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::tile`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,avx512bf16")]
unsafe fn single<W: Content<Lanes>, const PX: usize, const CB: usize>(t: &RawTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::tile::<Lanes, W, PX, 1, CB>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::tile`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,avx512bf16")]
unsafe fn double<W: Content<Lanes>, const PX: usize, const CB: usize>(t: &RawTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::tile::<Lanes, W, PX, 2, CB>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::paired_tile`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,avx512bf16")]
unsafe fn paired<W: Content<Lanes>, const PX: usize, const CB: usize>(t: &RawTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::paired_tile::<Lanes, W, PX, CB>(t) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`generic::load_row`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,avx512bf16")]
unsafe fn load_row<W: Content<Lanes>, const CB: usize>(row: &RawRow) {
    // SAFETY: the caller's contract.
    unsafe { generic::load_row::<Lanes, W, CB>(row) }
}

/// # Safety
/// The CPU has the features, and the argument is as [`winograd::input_tile`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,avx512bf16")]
unsafe fn input_tile(t: &RawInputTile) {
    // SAFETY: the caller's contract.
    unsafe { winograd::input_tile::<Lanes, OfBf16, OfTwo, 2, 4>(t) }
}

pub(super) static BF16: Kernels = Kernels {
    single: by_pixels!(single<OfBf16>: 1 2 3 4 5 6 7 8 9 10 11 12),
    double: Some(by_pixels!(double<OfBf16>: 1 2 3 4 5 6 7 8 9 10 11 12)),
    paired: Some(by_pixels!(paired<OfBf16>: 1 2 3 4 5 6 7 8 9 10 11 12)),
    input_tile,
    load_row: by_block!(load_row<OfBf16>),
    ..avx512::BF16
};
