//! The kernels, written once for every instruction set.
//!
//! They are `#[inline(always)]` so that they become part of functions that enable the instruction set's features.
//! The arrays of vectors have constant extents and live in registers.
#![allow(unsafe_code)]
// Indices are pixels, vectors and positions of a transform here; iterators would hide which.
#![allow(clippy::needless_range_loop)]

use super::vector::{Content, PairedVector, Vector};
use super::{RawRow, RawTile};

/// Lanes of the widest vectors.
const MOST_LANES: usize = 16;

/// Weights are fetched so many values before they are multiplied: large layers read them from the last cache or from memory,
/// and the CPU's own prefetching stops at the end of every page.
const AHEAD: usize = 1024;

/// A convolution's output for `PX` neighbouring pixels and `OV` vectors of channels.
/// Neighbouring pixels lie `CB` words apart in the input; `W` says what the words hold.
///
/// # Safety
/// The CPU has the vector's instruction set, and `t` is as [`RawTile`] says for `PX` pixels and `OV * LANES` channels.
#[inline(always)]
pub(super) unsafe fn tile<V: Vector, W: Content<V>, const PX: usize, const OV: usize, const CB: usize>(t: &RawTile) {
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
                            sums[x][v] = W::plus_product(sums[x][v], w[v], word);
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
pub(super) unsafe fn paired_tile<V: PairedVector, W: Content<V>, const PX: usize, const CB: usize>(t: &RawTile) {
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
                        sums[x] = W::plus_product(sums[x], w, V::splat_pair(input.add(x * CB + 2 * c)));
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

/// Pixels into blocks of `CB` words, which hold what `W` says, through `x * factor + summand` and a leaky ReLU.
/// A pixel's channels are read one after the other, because memory is fastest that way.
///
/// # Safety
/// The CPU has the vector's instruction set, and `r` is as [`RawRow`] says.
#[inline(always)]
pub(super) unsafe fn load_row<V: Vector, W: Content<V>, const CB: usize>(r: &RawRow) {
    let most = CB * W::CHANNELS;
    // SAFETY: the caller's contract bounds every pointer that is formed here: see the assertions of `Kernels::load_row`.
    unsafe {
        if most <= V::LANES && r.channels <= most {
            // One vector holds a pixel, or as many as lie side by side: what is done to them stays in registers.
            let side_by_side = r.channels == most && r.stride == most;
            let together = if side_by_side { V::LANES / most } else { 1 };
            let [factor, summand, slope] = [r.factors, r.summands, r.slopes].map(|values| {
                let mut lanes = [0.0; MOST_LANES];
                (0..together * most).for_each(|lane| lanes[lane] = *values.add(lane % most));
                V::load(lanes.as_ptr())
            });
            for pixel in (0..r.pixels).step_by(together) {
                let pixels = together.min(r.pixels - pixel);
                let x = V::load_first(r.source.add(pixel * r.stride), (pixels - 1) * most + r.channels);
                W::store_first(summand.plus_product(x, factor).bend(slope), r.target.add(pixel * CB), pixels * most);
            }
            return;
        }
        for pixel in 0..r.pixels {
            let from = r.source.add(pixel * r.stride);
            let to = r.target.add(pixel * CB);
            for block in 0..r.channels.div_ceil(most) {
                for first in (block * most..(block + 1) * most).step_by(V::LANES) {
                    let channels = r.channels.saturating_sub(first).min(most.min(V::LANES));
                    V::prefetch(from.wrapping_add(first + r.row_stride));
                    let x = if channels == V::LANES {
                        V::load(from.add(first))
                    } else {
                        V::load_first(from.wrapping_add(first), channels)
                    };
                    let to = to.add(block * r.plane + first % most / W::CHANNELS);
                    if most < V::LANES {
                        let [factor, summand, slope] =
                            [r.factors, r.summands, r.slopes].map(|values| V::load_first(values.add(first), most));
                        W::store_first(summand.plus_product(x, factor).bend(slope), to, most);
                    } else {
                        let [factor, summand, slope] =
                            [r.factors, r.summands, r.slopes].map(|values| V::load(values.add(first)));
                        W::store(summand.plus_product(x, factor).bend(slope), to);
                    }
                }
            }
        }
    }
}
