//! The kernels, written once for every instruction set.
//!
//! They are `#[inline(always)]` so that they become part of functions that enable the instruction set's features.
//! The arrays of vectors have constant extents and live in registers.
#![allow(unsafe_code)]
// Indices are pixels, vectors and positions of a transform here; iterators would hide which.
#![allow(clippy::needless_range_loop)]

use super::vector::{PairedVector, Vector};
use super::{RawInputTile, RawOutputTile, RawRow, RawTile};

/// Weights are fetched so many values before they are multiplied: large layers read them from the last cache or from memory,
/// and the CPU's own prefetching stops at the end of every page.
const AHEAD: usize = 1024;

/// A convolution's output for `PX` neighbouring pixels and `OV` vectors of channels.
/// Neighbouring pixels lie `CB` words apart in the input.
///
/// # Safety
/// The CPU has the vector's instruction set, and `t` is as [`RawTile`] says for `PX` pixels and `OV * LANES` channels.
#[inline(always)]
pub(super) unsafe fn tile<V: Vector, const PX: usize, const OV: usize, const CB: usize>(t: &RawTile) {
    // SAFETY: the caller's contract bounds every pointer that is formed here: see the assertions of `Kernels::rows`.
    unsafe {
        let mut sums = [[V::zero(); OV]; PX];
        for v in 0..OV {
            let bias = V::load(t.bias.add(v * V::LANES));
            for x in 0..PX {
                sums[x][v] = bias;
            }
        }
        let mut weights = t.weights;
        for run in 0..t.runs {
            let mut input = t.input.add(*t.offsets.add(run));
            // Four words at a time: a run's length is a multiple of four, and one counter serves four steps.
            for _ in 0..t.length / 4 {
                for c in 0..4 {
                    let mut w = [V::zero(); OV];
                    for v in 0..OV {
                        w[v] = V::load(weights.add((c * OV + v) * V::LANES));
                        V::prefetch(weights.wrapping_add((c * OV + v) * V::LANES + AHEAD));
                    }
                    for x in 0..PX {
                        let word = V::splat(input.add(x * CB + c));
                        for v in 0..OV {
                            sums[x][v] = sums[x][v].plus_product(w[v], word);
                        }
                    }
                }
                weights = weights.add(4 * OV * V::LANES);
                input = input.add(4);
            }
        }
        if !t.statistics.is_null() {
            for v in 0..OV {
                let at = t.statistics.add(v * V::LANES);
                let pivot = V::load(at);
                let (mut sum, mut squares) = (V::zero(), V::zero());
                for x in 0..PX {
                    let d = sums[x][v].sub(pivot);
                    sum = sum.add(d);
                    squares = squares.plus_product(d, d);
                }
                sum.add_to(at.add(OV * V::LANES));
                squares.add_to(at.add(2 * OV * V::LANES));
            }
        }
        if t.channels == OV * V::LANES {
            for x in 0..PX {
                for v in 0..OV {
                    sums[x][v].store(t.output.add(x * t.pixel_stride + v * V::LANES));
                }
            }
        } else {
            for x in 0..PX {
                for v in 0..OV {
                    let count = t.channels.saturating_sub(v * V::LANES).min(V::LANES);
                    sums[x][v].store_first(t.output.wrapping_add(x * t.pixel_stride + v * V::LANES), count);
                }
            }
        }
    }
}

/// As [`tile`], for half as many channels as there are lanes: each channel has two lanes, for even and odd input words,
/// so that narrow layers fill the vector too.
///
/// # Safety
/// As [`tile`], for `LANES / 2` channels. The bias and the statistics have `LANES` values: the bias 0 in odd lanes,
/// the pivot the same in both halves.
#[inline(always)]
pub(super) unsafe fn paired_tile<V: PairedVector, const PX: usize, const CB: usize>(t: &RawTile) {
    // SAFETY: as in `tile`.
    unsafe {
        let mut sums = [V::load(t.bias); PX];
        let mut weights = t.weights;
        for run in 0..t.runs {
            let mut input = t.input.add(*t.offsets.add(run));
            for _ in 0..t.length / 4 {
                for c in 0..2 {
                    let w = V::load(weights.add(c * V::LANES));
                    for x in 0..PX {
                        sums[x] = sums[x].plus_product(w, V::splat_pair(input.add(x * CB + 2 * c)));
                    }
                }
                weights = weights.add(2 * V::LANES);
                input = input.add(4);
            }
        }
        let (sum_at, squares_at) = (t.statistics.wrapping_add(V::LANES), t.statistics.wrapping_add(2 * V::LANES));
        let (mut pivot, mut sum, mut squares) = (V::zero(), V::zero(), V::zero());
        if !t.statistics.is_null() {
            pivot = V::load(t.statistics);
        }
        for x in (0..PX).step_by(2) {
            let last = x + 1 == PX;
            let two = V::sum_pairs(sums[x], if last { V::zero() } else { sums[x + 1] });
            if !t.statistics.is_null() {
                let d = two.sub(pivot);
                let d = if last { d.lower_half() } else { d };
                sum = sum.add(d);
                squares = squares.plus_product(d, d);
            }
            let output = t.output.add(x * t.pixel_stride);
            if !last && t.channels == V::LANES / 2 && t.pixel_stride == V::LANES / 2 {
                two.store(output);
                continue;
            }
            two.store_lower(output, t.channels);
            if !last {
                two.store_upper(output.add(t.pixel_stride), t.channels);
            }
        }
        if !t.statistics.is_null() {
            sum.add_to(sum_at);
            squares.add_to(squares_at);
        }
    }
}

/// `Bᵀ d` of F(4, 3): Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), equation 13.
///
/// # Safety
/// The CPU has the vector's instruction set.
#[inline(always)]
unsafe fn input_transform<V: Vector>(d: [V; 6]) -> [V; 6] {
    // SAFETY: the caller's contract.
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

/// `Aᵀ m` of F(4, 3), from the same place.
///
/// # Safety
/// The CPU has the vector's instruction set.
#[inline(always)]
unsafe fn output_transform<V: Vector>(m: [V; 6]) -> [V; 4] {
    // SAFETY: the caller's contract.
    unsafe {
        let (two, four, eight) = (V::constant(2.0), V::constant(4.0), V::constant(8.0));
        let (a, b) = (m[1].add(m[2]), m[1].sub(m[2]));
        let (c, d) = (m[3].add(m[4]), m[3].sub(m[4]));
        [m[0].add(a).add(c), b.plus_product(two, d), a.plus_product(four, c), b.plus_product(eight, d).add(m[5])]
    }
}

/// The 36 values that stand for six by six pixels of sixteen channels.
///
/// # Safety
/// The CPU has the vector's instruction set, and `t` is as [`RawInputTile`] says.
#[inline(always)]
pub(super) unsafe fn input_tile<V: Vector>(t: &RawInputTile) {
    // SAFETY: the caller's contract; lanes are a divisor of sixteen.
    unsafe {
        for first in (0..16).step_by(V::LANES) {
            let mut columns = [[V::zero(); 6]; 6];
            for j in 0..6 {
                let mut d = [V::zero(); 6];
                for i in 0..6 {
                    d[i] = V::load(t.input.add(i * t.row_stride + j * 16 + first));
                }
                let d = input_transform(d);
                for i in 0..6 {
                    columns[i][j] = d[i];
                }
            }
            for i in 0..6 {
                let d = input_transform(columns[i]);
                for j in 0..6 {
                    let to = t.output.add((6 * i + j) * t.position_stride + first);
                    d[j].store(to);
                    V::prefetch_to_write(to.wrapping_add(16));
                }
            }
        }
    }
}

/// Four by four pixels, or fewer at a border, of one vector of channels.
///
/// # Safety
/// The CPU has the vector's instruction set, and `t` is as [`RawOutputTile`] says.
#[inline(always)]
pub(super) unsafe fn output_tile<V: Vector>(t: &RawOutputTile) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut columns = [[V::zero(); 6]; 4];
        for j in 0..6 {
            let mut m = [V::zero(); 6];
            for i in 0..6 {
                let from = t.input.add((6 * i + j) * t.position_stride);
                m[i] = V::load(from);
                V::prefetch(from.wrapping_add(16));
            }
            let m = output_transform(m);
            for i in 0..4 {
                columns[i][j] = m[i];
            }
        }
        let bias = V::load(t.bias);
        let (sum_at, squares_at) = (t.statistics.wrapping_add(V::LANES), t.statistics.wrapping_add(2 * V::LANES));
        let (mut pivot, mut sum, mut squares) = (V::zero(), V::zero(), V::zero());
        if !t.statistics.is_null() {
            pivot = V::load(t.statistics);
        }
        for i in 0..t.rows.min(4) {
            let row = output_transform(columns[i]);
            for j in 0..t.columns.min(4) {
                let value = row[j].add(bias);
                let d = value.sub(pivot);
                sum = sum.add(d);
                squares = squares.plus_product(d, d);
                let output = t.output.add(i * t.row_stride + j * t.pixel_stride);
                V::prefetch_to_write(output.wrapping_add(4 * t.pixel_stride));
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

/// Pixels into blocks of `CB` words, through `x * factor + summand` and a leaky ReLU.
/// A pixel's channels are read one after the other, because memory is fastest that way.
///
/// # Safety
/// The CPU has the vector's instruction set, and `r` is as [`RawRow`] says.
#[inline(always)]
pub(super) unsafe fn load_row<V: Vector, const CB: usize>(r: &RawRow) {
    // SAFETY: the caller's contract bounds every pointer that is formed here: see the assertions of `Kernels::load_row`.
    unsafe {
        for pixel in 0..r.pixels {
            let from = r.source.add(pixel * r.stride);
            let to = r.target.add(pixel * CB);
            for block in 0..r.channels.div_ceil(CB) {
                for first in (block * CB..(block + 1) * CB).step_by(V::LANES) {
                    let channels = r.channels.saturating_sub(first).min(CB.min(V::LANES));
                    V::prefetch(from.wrapping_add(first + r.row_stride));
                    let x = if channels == V::LANES {
                        V::load(from.add(first))
                    } else {
                        V::load_first(from.wrapping_add(first), channels)
                    };
                    let to = to.add(block * r.plane + first % CB);
                    if CB < V::LANES {
                        let [factor, summand, slope] =
                            [r.factors, r.summands, r.slopes].map(|values| V::load_first(values.add(first), CB));
                        summand.plus_product(x, factor).bend(slope).store_first(to, CB);
                    } else {
                        let [factor, summand, slope] =
                            [r.factors, r.summands, r.slopes].map(|values| V::load(values.add(first)));
                        summand.plus_product(x, factor).bend(slope).store(to);
                    }
                }
            }
        }
    }
}
