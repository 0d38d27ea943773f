//! Plain Rust for any CPU, and what the other instruction sets are compared with.
#![allow(unsafe_code)]

use super::generic;
use super::vector::Portable;
use super::{Kernels, RawInputTile, RawOutputTile, RawTile, by_block, by_pixels};

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

fn load_row<const CB: usize>(s: &[f32], stride: usize, channels: usize, t: &mut [f32], affine: &[f32], slope: f32) {
    generic::load_row::<CB>(s, stride, channels, t, affine, slope);
}

/// Eight lanes are two of the sixteen registers of SSE2 or NEON.
pub(super) static KERNELS: Kernels = Kernels {
    lanes: 8,
    single: by_pixels!(single: 1 2 3 4 5),
    double: None,
    paired: None,
    input_tile,
    output_tile,
    load_row: by_block!(load_row),
};
