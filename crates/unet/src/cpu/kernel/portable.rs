//! Plain Rust for any CPU, and what the other instruction sets are compared with.
#![allow(unsafe_code)]

use super::elementwise::elementwise;
use super::generic;
use super::vector::Portable;
use super::{Kernels, RawInputTile, RawOutputTile, RawRow, RawTile, by_block, by_pixels};

/// # Safety
/// The argument is as [`generic::tile`] asks.
unsafe fn single<const PX: usize, const CB: usize>(t: &RawTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::tile::<Portable, PX, 1, CB>(t) }
}

/// # Safety
/// The argument is as [`generic::input_tile`] asks.
unsafe fn input_tile(t: &RawInputTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::input_tile::<Portable>(t) }
}

/// # Safety
/// The argument is as [`generic::output_tile`] asks.
unsafe fn output_tile(t: &RawOutputTile) {
    // SAFETY: the caller's contract.
    unsafe { generic::output_tile::<Portable>(t) }
}

/// # Safety
/// The argument is as [`generic::load_row`] asks.
unsafe fn load_row<const CB: usize>(row: &RawRow) {
    // SAFETY: the caller's contract.
    unsafe { generic::load_row::<Portable, CB>(row) }
}

elementwise!();

/// Eight lanes are two of the sixteen registers of SSE2 or NEON.
pub(super) static KERNELS: Kernels = Kernels {
    lanes: 8,
    single: by_pixels!(single: 1 2 3 4 5),
    double: None,
    paired: None,
    input_tile,
    output_tile,
    load_row: by_block!(load_row),
    elementwise: ELEMENTWISE,
};
