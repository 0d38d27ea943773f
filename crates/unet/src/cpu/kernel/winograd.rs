//! Tiles into the values that are multiplied in their place, and back: Winograd's algorithm.
//!
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015). Written once for every instruction set, as [`generic`](super::generic).
#![allow(unsafe_code)]
// Indices are rows and columns of a transform here; iterators would hide which.
#![allow(clippy::needless_range_loop)]

use super::vector::{Content, Vector};
use super::{RawInputTile, RawOutputTile};

/// `F(M, 3)`: `M` values from `N = M + 2` by as many products.
///
/// # Safety
/// The CPU has the vector's instruction set.
pub(super) trait Transform<V: Vector, const M: usize, const N: usize> {
    /// `Bᵀ d`.
    unsafe fn input(d: [V; N]) -> [V; N];
    /// `Aᵀ m`.
    unsafe fn output(m: [V; N]) -> [V; M];
}

/// Section 4.1 of the paper: additions only, and so hardly any loss of precision.
pub(super) struct OfTwo;

/// Equation 13.
pub(super) struct OfFour;

// SAFETY of the blocks below: the callers' contract.
impl<V: Vector> Transform<V, 2, 4> for OfTwo {
    #[inline(always)]
    unsafe fn input(d: [V; 4]) -> [V; 4] {
        // SAFETY: see above.
        unsafe { [d[0].sub(d[2]), d[1].add(d[2]), d[2].sub(d[1]), d[1].sub(d[3])] }
    }

    #[inline(always)]
    unsafe fn output(m: [V; 4]) -> [V; 2] {
        // SAFETY: see above.
        unsafe { [m[0].add(m[1]).add(m[2]), m[1].sub(m[2]).sub(m[3])] }
    }
}

impl<V: Vector> Transform<V, 4, 6> for OfFour {
    #[inline(always)]
    unsafe fn input(d: [V; 6]) -> [V; 6] {
        // SAFETY: see above.
        unsafe {
            let (two, four, five) = (V::constant(2.0), V::constant(4.0), V::constant(5.0));
            let (a, b) = (d[4].minus_product(four, d[2]), d[3].minus_product(four, d[1]));
            let (e, f) = (d[4].sub(d[2]), two.mul(d[3].sub(d[1])));
            [
                d[4].minus_product(five, d[2]).plus_product(four, d[0]),
                a.add(b),
                a.sub(b),
                e.add(f),
                e.sub(f),
                d[5].minus_product(five, d[3]).plus_product(four, d[1]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn output(m: [V; 6]) -> [V; 4] {
        // SAFETY: see above.
        unsafe {
            let (two, four, eight) = (V::constant(2.0), V::constant(4.0), V::constant(8.0));
            let (a, b) = (m[1].add(m[2]), m[1].sub(m[2]));
            let (c, d) = (m[3].add(m[4]), m[3].sub(m[4]));
            [m[0].add(a).add(c), b.plus_product(two, d), a.plus_product(four, c), b.plus_product(eight, d).add(m[5])]
        }
    }
}

/// The values, in words of `W`, that stand for `N` by `N` pixels of sixteen channels in f32.
///
/// # Safety
/// The CPU has the vector's instruction set, and `t` is as [`RawInputTile`] says.
#[inline(always)]
pub(super) unsafe fn input_tile<V: Vector, W: Content<V>, T: Transform<V, M, N>, const M: usize, const N: usize>(
    t: &RawInputTile,
) {
    // SAFETY: the caller's contract; lanes are a divisor of sixteen.
    unsafe {
        for first in (0..16).step_by(V::LANES) {
            let mut columns = [[V::zero(); N]; N];
            for j in 0..N {
                let mut d = [V::zero(); N];
                for i in 0..N {
                    d[i] = V::load(t.input.add(i * t.row_stride + j * 16 + first));
                }
                let d = T::input(d);
                for i in 0..N {
                    columns[i][j] = d[i];
                }
            }
            for i in 0..N {
                let d = T::input(columns[i]);
                for j in 0..N {
                    let to = t.output.add((N * i + j) * t.position_stride + first / W::CHANNELS);
                    W::store(d[j], to);
                    V::prefetch_to_write(to.wrapping_add(16));
                }
            }
        }
    }
}

/// `M` by `M` pixels, or fewer at a border, of one vector of channels.
///
/// # Safety
/// The CPU has the vector's instruction set, and `t` is as [`RawOutputTile`] says.
#[inline(always)]
pub(super) unsafe fn output_tile<V: Vector, T: Transform<V, M, N>, const M: usize, const N: usize>(t: &RawOutputTile) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut columns = [[V::zero(); N]; M];
        for j in 0..N {
            let mut m = [V::zero(); N];
            for i in 0..N {
                let from = t.input.add((N * i + j) * t.position_stride);
                m[i] = V::load(from);
                V::prefetch(from.wrapping_add(16));
            }
            let m = T::output(m);
            for i in 0..M {
                columns[i][j] = m[i];
            }
        }
        let bias = V::load(t.bias);
        let (sum_at, squares_at) = (t.statistics.wrapping_add(V::LANES), t.statistics.wrapping_add(2 * V::LANES));
        let (mut pivot, mut sum, mut squares) = (V::zero(), V::zero(), V::zero());
        if !t.statistics.is_null() {
            pivot = V::load(t.statistics);
        }
        for i in 0..t.rows.min(M) {
            let row = T::output(columns[i]);
            for j in 0..t.columns.min(M) {
                let value = row[j].add(bias);
                let d = value.sub(pivot);
                sum = sum.add(d);
                squares = squares.plus_product(d, d);
                let output = t.output.add(i * t.row_stride + j * t.pixel_stride);
                V::prefetch_to_write(output.wrapping_add(M * t.pixel_stride));
                if t.channels == V::LANES {
                    value.store(output);
                } else {
                    value.store_first(output, t.channels);
                }
            }
        }
        if !t.statistics.is_null() {
            sum.add_to(sum_at);
            squares.add_to(squares_at);
        }
    }
}
