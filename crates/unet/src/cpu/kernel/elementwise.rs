//! What happens value by value, in plain Rust that each instruction set compiles into its own vectors.
//!
//! Values are pixels one after the other with all their channels. What differs by channel comes as a pattern: the same for every few
//! pixels, so many that vectors are full whatever the number of channels.

use super::Kernels;
use super::curve::Curve;
use crate::taps::{Combination, Taps};

/// What becomes of a target's value and a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cpu) enum Blend {
    /// The new one.
    Set,
    /// Their sum.
    Add,
    /// The larger.
    Maximum,
}

/// Pixels of one row, combined from pixels of another.
#[derive(Debug)]
pub(in crate::cpu) struct Gather<'a> {
    pub(in crate::cpu) source: &'a [f32],
    pub(in crate::cpu) channels: usize,
    pub(in crate::cpu) taps: &'a Taps,
    pub(in crate::cpu) combination: Combination,
    pub(in crate::cpu) target: &'a mut [f32],
}

/// The functions of one instruction set.
#[derive(Clone, Copy)]
pub(super) struct Elementwise {
    pub(super) blend: unsafe fn(&[f32], &[f32], f32, Blend, &mut [f32]),
    pub(super) bend: unsafe fn(&[f32], &mut [f32]),
    pub(super) gather: unsafe fn(Gather<'_>),
    pub(super) measure: unsafe fn(&[f32], &mut [f32]),
    pub(super) curve: unsafe fn(Curve, &mut [f32]),
}

/// Makes them, with the attribute that enables the instruction set.
macro_rules! elementwise {
    ($(#[$feature:meta])?) => {
        const ELEMENTWISE: super::elementwise::Elementwise = {
            use super::elementwise::{self, Blend, Elementwise, Gather};

            $(#[$feature])?
            fn blend(source: &[f32], pattern: &[f32], weight: f32, how: Blend, target: &mut [f32]) {
                elementwise::blend(source, pattern, weight, how, target);
            }
            $(#[$feature])?
            fn bend(pattern: &[f32], values: &mut [f32]) {
                elementwise::bend(pattern, values);
            }
            $(#[$feature])?
            fn gather(gather: Gather<'_>) {
                elementwise::gather(gather);
            }
            $(#[$feature])?
            fn measure(values: &[f32], sums: &mut [f32]) {
                elementwise::measure(values, sums);
            }
            $(#[$feature])?
            fn curve(function: super::curve::Curve, values: &mut [f32]) {
                super::curve::curve(function, values);
            }
            Elementwise { blend, bend, gather, measure, curve }
        };
    };
}
pub(super) use elementwise;

impl Kernels {
    /// Blends `source`, through the pattern and times the weight, into `target`. A pattern is a third factors, a third summands and
    /// a third slopes for what is negative then; an empty one changes nothing.
    pub(in crate::cpu) fn blend(&self, source: &[f32], pattern: &[f32], weight: f32, how: Blend, target: &mut [f32]) {
        // SAFETY: the CPU has the instruction set; the function itself is plain Rust.
        unsafe { (self.elementwise.blend)(source, pattern, weight, how, target) }
    }

    /// Sends values through a pattern, in their place.
    pub(in crate::cpu) fn bend(&self, pattern: &[f32], values: &mut [f32]) {
        // SAFETY: as above.
        unsafe { (self.elementwise.bend)(pattern, values) }
    }

    /// Combines pixels.
    pub(in crate::cpu) fn gather(&self, gather: Gather<'_>) {
        // SAFETY: as above.
        unsafe { (self.elementwise.gather)(gather) }
    }

    /// Adds, for each value of the pattern, differences from a pivot and their squares: a third of `sums` are pivots, a third sums of
    /// differences, a third sums of squares.
    pub(in crate::cpu) fn measure(&self, values: &[f32], sums: &mut [f32]) {
        // SAFETY: as above.
        unsafe { (self.elementwise.measure)(values, sums) }
    }

    /// Replaces values by the function's.
    pub(in crate::cpu) fn curve(&self, function: Curve, values: &mut [f32]) {
        // SAFETY: as above.
        unsafe { (self.elementwise.curve)(function, values) }
    }
}

#[inline(always)]
pub(super) fn blend(source: &[f32], pattern: &[f32], weight: f32, how: Blend, target: &mut [f32]) {
    if pattern.is_empty() && how == Blend::Set && weight == 1.0 {
        target.copy_from_slice(source);
        return;
    }
    match how {
        Blend::Set => each(source, pattern, target, |_, x| x * weight),
        Blend::Add => each(source, pattern, target, |t, x| t + x * weight),
        Blend::Maximum => each(source, pattern, target, larger),
    }
}

/// The larger one; what is not a number remains so.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

#[inline(always)]
fn each(source: &[f32], pattern: &[f32], target: &mut [f32], combine: impl Fn(f32, f32) -> f32) {
    let n = pattern.len() / 3;
    if n == 0 {
        target.iter_mut().zip(source).for_each(|(t, x)| *t = combine(*t, *x));
        return;
    }
    let (factors, rest) = pattern.split_at(n);
    let (summands, slopes) = rest.split_at(n);
    for (target, source) in target.chunks_mut(n).zip(source.chunks(n)) {
        let n = target.len().min(source.len());
        let (target, source) = (&mut target[..n], &source[..n]);
        let (factors, summands, slopes) = (&factors[..n], &summands[..n], &slopes[..n]);
        for i in 0..n {
            target[i] = combine(target[i], bent(source[i], factors[i], summands[i], slopes[i]));
        }
    }
}

#[inline(always)]
pub(super) fn bend(pattern: &[f32], values: &mut [f32]) {
    let n = pattern.len() / 3;
    if n == 0 {
        return;
    }
    let (factors, rest) = pattern.split_at(n);
    let (summands, slopes) = rest.split_at(n);
    for values in values.chunks_mut(n) {
        let n = values.len();
        let (factors, summands, slopes) = (&factors[..n], &summands[..n], &slopes[..n]);
        for i in 0..n {
            values[i] = bent(values[i], factors[i], summands[i], slopes[i]);
        }
    }
}

/// As the loader of convolutions does it.
#[inline(always)]
fn bent(x: f32, factor: f32, summand: f32, slope: f32) -> f32 {
    let y = x * factor + summand;
    if y > 0.0 { y } else { y * slope }
}

#[inline(always)]
pub(super) fn gather(gather: Gather<'_>) {
    let Gather { source, channels, taps, combination, target } = gather;
    let pixels = target.chunks_exact_mut(channels);
    let taps = taps.positions.chunks_exact(taps.each).zip(taps.weights.chunks_exact(taps.each));
    for (target, (positions, weights)) in pixels.zip(taps) {
        let mut sources = positions.iter().map(|p| &source[p * channels..][..channels]).zip(weights);
        let Some((first, weight)) = sources.next() else { continue };
        for c in 0..channels {
            target[c] = first[c] * weight;
        }
        for (source, weight) in sources {
            match combination {
                Combination::Sum => {
                    for c in 0..channels {
                        target[c] += source[c] * weight;
                    }
                }
                Combination::Maximum => {
                    for c in 0..channels {
                        target[c] = larger(target[c], source[c]);
                    }
                }
            }
        }
    }
}

#[inline(always)]
pub(super) fn measure(values: &[f32], sums: &mut [f32]) {
    let n = sums.len() / 3;
    let (pivots, rest) = sums.split_at_mut(n);
    let (sums, squares) = rest.split_at_mut(n);
    for values in values.chunks(n) {
        let n = values.len();
        let (pivots, sums, squares) = (&pivots[..n], &mut sums[..n], &mut squares[..n]);
        for i in 0..n {
            let d = values[i] - pivots[i];
            sums[i] += d;
            squares[i] += d * d;
        }
    }
}
