//! Activations without corners, in plain Rust that compilers turn into the instruction set's vectors.
//!
//! Errors between -30 and 30, as a test below measures them against f64 with AVX-512, AVX2 and plain Rust, as a share of the result
//! (or of 1e-3, where that is less): of `exp` 7.7e-8, SiLU 1.3e-7, Mish 2.5e-7, GELU with tanh 1.5e-6.
//! That of the error function is 3.3e-7, and thus that of GELU 2.0e-7 times its argument.

// Coefficients are kept as they were published.
#![allow(clippy::excessive_precision)]

/// A function of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cpu) enum Curve {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x * tanh(ln(1 + exp(x)))`.
    Mish,
    /// `x / 2 * (1 + erf(x / sqrt(2)))`.
    Gelu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`.
    GeluTanh,
}

/// Replaces values by the function's.
#[inline(always)]
pub(super) fn curve(function: Curve, values: &mut [f32]) {
    match function {
        Curve::Silu => values.iter_mut().for_each(|x| *x = silu(*x)),
        Curve::Mish => values.iter_mut().for_each(|x| *x = mish(*x)),
        Curve::Gelu => values.iter_mut().for_each(|x| *x = gelu(*x)),
        Curve::GeluTanh => values.iter_mut().for_each(|x| *x = gelu_tanh(*x)),
    }
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `tanh(ln(1 + e))` is `n / (n + 2)` with `n = e * (e + 2)`; from 20 on that is 1 in f32.
#[inline(always)]
fn mish(x: f32) -> f32 {
    let e = exp(if x > 20.0 { 20.0 } else { x });
    let n = e * (e + 2.0);
    x * (n / (n + 2.0))
}

#[inline(always)]
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// `(1 + tanh(u)) / 2` is `1 / (1 + exp(-2 * u))`.
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    /// `2 * sqrt(2 / pi)`.
    const SCALE: f32 = 1.595_769_1;
    x / (1.0 + exp(-SCALE * (x + 0.044_715 * x * x * x)))
}

/// Cephes' `expf` (Moshier, "Methods and Programs for Mathematical Functions", 1989): a polynomial between powers of two.
/// Beyond -87 and 88 it stays at their values. What is not a number remains so.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Added to a number, it leaves the nearest integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const POLYNOMIAL: [f32; 6] = [
        1.987_569_150_0e-4,
        1.398_199_950_7e-3,
        8.333_451_907_3e-3,
        4.166_579_589_4e-2,
        1.666_666_545_9e-1,
        5.000_000_120_1e-1,
    ];
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln(2) in two parts, of which the first has few bits.
    let r = x - n * 0.693_359_375 + n * 2.121_944_4e-4;
    let polynomial = POLYNOMIAL.into_iter().fold(0.0, |sum, c| sum * r + c);
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    (polynomial * (r * r) + r + 1.0) * f32::from_bits(power)
}

/// A quotient of polynomials, as in XLA (`xla/hlo/builder/lib/math.cc`, `ErfImpl32`) and Eigen; beyond 4 it stays at 1.
#[inline(always)]
fn erf(x: f32) -> f32 {
    const NUMERATOR: [f32; 7] = [
        -2.726_142_258_013_06e-10,
        2.770_681_424_959_02e-08,
        -2.101_024_020_825_08e-06,
        -5.692_506_394_623_46e-05,
        -7.349_906_303_268_55e-04,
        -2.954_599_808_540_25e-03,
        -1.609_603_332_624_15e-02,
    ];
    const DENOMINATOR: [f32; 5] = [
        -1.456_607_184_649_96e-05,
        -2.133_740_552_789_05e-04,
        -1.682_826_974_382_03e-03,
        -7.373_329_167_204_68e-03,
        -1.426_473_905_141_89e-02,
    ];
    let x = if x > 4.0 { 4.0 } else { x };
    let x = if x < -4.0 { -4.0 } else { x };
    let square = x * x;
    let numerator = NUMERATOR.into_iter().fold(0.0, |sum, c| sum * square + c);
    let denominator = DENOMINATOR.into_iter().fold(0.0, |sum, c| sum * square + c);
    x * numerator / denominator
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::InstructionSet;
    use crate::cpu::kernel::{Kernels, Words};
    use crate::cpu::tests::erf as erf_by_definition;

    fn by_definition(curve: Curve, x: f64) -> f64 {
        match curve {
            Curve::Silu => x / (1.0 + (-x).exp()),
            Curve::Mish => x * x.exp().ln_1p().tanh(),
            Curve::Gelu => x / 2.0 * (1.0 + erf_by_definition(x / std::f64::consts::SQRT_2)),
            Curve::GeluTanh => {
                x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
            }
        }
    }

    #[test]
    fn curves_are_as_good_as_stated() {
        let points: Vec<f32> = (-30_000..=30_000).map(|i| i as f32 / 1000.0).collect();
        // Relative to what is given for the point and the expected value.
        let largest = |values: &[f32], expected: &dyn Fn(f64) -> f64, relative_to: fn(f64, f64) -> f64| {
            let error = |(x, y): (&f32, &f32)| {
                let (x, y) = (f64::from(*x), f64::from(*y));
                (y - expected(x)).abs() / relative_to(x, expected(x))
            };
            points.iter().zip(values).map(error).fold(0.0, f64::max)
        };
        let result = |_, expected: f64| expected.abs().max(1e-3);
        let argument = |x: f64, _| x.abs().max(1e-3);
        let each = |of: fn(f32) -> f32| -> Vec<f32> { points.iter().map(|x| of(*x)).collect() };
        let mut errors = vec![
            ("exp".to_owned(), largest(&each(exp), &f64::exp, result), 1e-7),
            ("erf".to_owned(), largest(&each(erf), &erf_by_definition, |_, _| 1.0), 3.5e-7),
        ];
        for set in InstructionSet::available() {
            for (curve, relative_to, bound) in [
                (Curve::Silu, result as fn(f64, f64) -> f64, 3e-7),
                (Curve::Mish, result, 3e-7),
                (Curve::Gelu, argument, 2e-7),
                (Curve::GeluTanh, result, 3e-6),
            ] {
                let mut values = points.clone();
                Kernels::of(set, Words::F32).curve(curve, &mut values);
                let error = largest(&values, &|x| by_definition(curve, x), relative_to);
                errors.push((format!("{curve:?} by {set}"), error, bound));
            }
        }
        for (name, error, bound) in errors {
            println!("{name}: {error:e}");
            assert!(error < bound, "{name}: {error:e}");
        }
    }

    #[test]
    fn far_out_curves_are_lines() {
        for set in InstructionSet::available() {
            for curve in [Curve::Silu, Curve::Mish, Curve::Gelu, Curve::GeluTanh] {
                let mut values = [-1e30, -200.0, 0.0, 200.0, 1e30, f32::INFINITY, f32::NAN];
                Kernels::of(set, Words::F32).curve(curve, &mut values);
                assert!(values[..3].iter().all(|v| v.abs() < 1e-5), "{curve:?} by {set}: {values:?}");
                assert_eq!(values[3..6], [200.0, 1e30, f32::INFINITY]);
                assert!(values[6].is_nan());
            }
        }
    }
}
