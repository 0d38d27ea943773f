//! Plain Rust for any CPU, and what the other instruction sets are compared with.
#![allow(unsafe_code)]

use super::elementwise::elementwise;
use super::generic;
use super::vector::{Content, OfBf16, OfF32, Portable};
use super::winograd::{self, OfFour, OfTwo, Transform};
use super::{Kernels, RawInputTile, RawOutputTile, RawRow, RawTile, Sides, Words, by_block, by_pixels};

/// # Safety
/// The argument is as [`generic::tile`] asks.
unsafe fn single<W: Content<Portable>, const PX: usize, const CB: usize>(t: &RawTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::tile::<Portable, W, PX, 1, CB>(t) }
}

/// # Safety
/// The argument is as [`winograd::input_tile`] asks.
unsafe fn input_tile<W: Content<Portable>, T: Transform<Portable, M, N>, const M: usize, const N: usize>(
    t: &RawInputTile,
) {
    // SAFETY: the caller's contract.
    unsafe { winograd::input_tile::<Portable, W, T, M, N>(t) }
}

/// # Safety
/// The argument is as [`winograd::output_tile`] asks.
unsafe fn output_tile<T: Transform<Portable, M, N>, const M: usize, const N: usize>(t: &RawOutputTile) {
    // SAFETY: the caller's contract.
    unsafe { winograd::output_tile::<Portable, T, M, N>(t) }
}

/// # Safety
/// The argument is as [`generic::load_row`] asks.
unsafe fn load_row<W: Content<Portable>, const CB: usize>(row: &RawRow) {
    // SAFETY: the caller's contract.
    unsafe { generic::load_row::<Portable, W, CB>(row) }
}

elementwise!();

/// Eight lanes are two of the sixteen registers of SSE2 or NEON.
pub(super) static F32: Kernels = Kernels {
    lanes: 8,
    words: Words::F32,
    single: by_pixels!(single<OfF32>: 1 2 3 4 5),
    double: None,
    paired: None,
    f32: None,
    sides: Sides { output: 4, input: 6 },
    input_tile: input_tile::<OfF32, OfFour, 4, 6>,
    output_tile: output_tile::<OfFour, 4, 6>,
    load_row: by_block!(load_row<OfF32>),
    elementwise: ELEMENTWISE,
};

pub(super) static BF16: Kernels = Kernels {
    lanes: 8,
    words: Words::Bf16,
    single: by_pixels!(single<OfBf16>: 1 2 3 4),
    double: None,
    paired: None,
    f32: Some(&F32),
    sides: Sides { output: 2, input: 4 },
    input_tile: input_tile::<OfBf16, OfTwo, 2, 4>,
    output_tile: output_tile::<OfTwo, 2, 4>,
    load_row: by_block!(load_row<OfBf16>),
    elementwise: ELEMENTWISE,
};
