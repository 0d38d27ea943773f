//! bfloat16 is the upper half of an f32: the same exponents, eight bits of precision in place of 24.

/// The nearest bf16, ties to even, as the f32 that it is. NaN stays NaN.
///
/// Integers only, so that compilers can make vectors of it and every CPU rounds alike.
#[inline]
pub(crate) fn round(x: f32) -> f32 {
    let bits = x.to_bits();
    let half = 0x7fff + (bits >> 16 & 1);
    // The quiet bit: what is left of a NaN must not look like infinity.
    let bits = if x.is_nan() { bits | 0x40_0000 } else { bits.wrapping_add(half) };
    f32::from_bits(bits & 0xffff_0000)
}

/// Two values, rounded, in one word: the first in the lower half.
#[inline]
pub(super) fn pair(first: f32, second: f32) -> f32 {
    f32::from_bits(round(first).to_bits() >> 16 | round(second).to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_to_the_nearest_and_ties_to_even() {
        // 1 + n / 128 are the values from 1 to 2.
        let step = 1.0 / 128.0;
        for (x, rounded) in [
            (1.0, 1.0),
            (1.0 + 0.49 * step, 1.0),
            (1.0 + 0.5 * step, 1.0),
            (1.0 + 0.51 * step, 1.0 + step),
            (1.0 + 1.5 * step, 1.0 + 2.0 * step),
            (2.0 - 0.25 * step, 2.0),
            (f32::MAX, f32::INFINITY),
            (f32::INFINITY, f32::INFINITY),
            (0.0, 0.0),
        ] {
            assert_eq!(round(x), rounded, "{x}");
            assert_eq!(round(-x).to_bits(), (-rounded).to_bits(), "-{x}");
        }
    }

    #[test]
    fn nan_stays_nan() {
        for bits in [0x7f80_0001, 0x7fff_ffff, 0xff80_0001, 0xffff_ffff] {
            assert!(round(f32::from_bits(bits)).is_nan(), "{bits:x}");
        }
    }

    #[test]
    fn the_first_of_a_pair_lies_in_the_lower_half() {
        assert_eq!(pair(1.0, -2.0).to_bits(), 0xc000_3f80);
    }
}
