//! From coefficients to samples: the inverse of the discrete cosine transform, in the integers in which libjpeg computes it by default
//! (`islow`), so that every sample comes out as there.
//!
//! It is the transform of Loeffler, Ligtenberg and Moschytz with 12 multiplications, first along columns, then along rows. Factors are
//! multiplied by 2^13 and rounded; between the passes numbers are kept at 4 times their size. Here the additions in front of
//! multiplications are multiplied out: each result is a sum of products, which is exact in 32 bits, and so the same. What would not fit
//! 16 bits between the passes is clamped, as libjpeg-turbo's kernels for x86 do; the coefficients of a picture never get there.
//!
//! Sources: Loeffler, Ligtenberg, Moschytz, "Practical fast 1-D DCT algorithms with 11 multiplications", ICASSP 1989; the comments of
//! libjpeg's `jidctint.c`.

/// Bits behind the point of the factors.
const FACTOR_BITS: u32 = 13;
/// Bits behind the point that numbers keep between the passes.
const KEPT_BITS: u32 = 2;

/// What each pass shifts to the right by, halves rounded up. The second one also divides by 8, for the transform as it is defined has a
/// factor of 1/8 that its passes leave out.
pub(super) const SHIFTS: [u32; 2] = [FACTOR_BITS - KEPT_BITS, FACTOR_BITS + KEPT_BITS + 3];

/// A factor, multiplied by 2^13.
const fn fixed(factor: f64) -> i16 {
    (factor * (1 << FACTOR_BITS) as f64 + 0.5) as i16
}

const F0_298: i16 = fixed(0.298_631_336);
const F0_390: i16 = fixed(0.390_180_644);
const F0_541: i16 = fixed(0.541_196_100);
const F0_765: i16 = fixed(0.765_366_865);
const F0_899: i16 = fixed(0.899_976_223);
const F1_175: i16 = fixed(1.175_875_602);
const F1_501: i16 = fixed(1.501_321_110);
const F1_847: i16 = fixed(1.847_759_065);
const F1_961: i16 = fixed(1.961_570_560);
const F2_053: i16 = fixed(2.053_119_869);
const F2_562: i16 = fixed(2.562_915_447);
const F3_072: i16 = fixed(3.072_711_026);

/// The even part: what coefficients 0 and 4 contribute to the sums of the middle and of the rim, and 2 and 6 likewise.
pub(super) const EVEN: [[i16; 2]; 4] = [
    [1 << FACTOR_BITS, 1 << FACTOR_BITS],
    [1 << FACTOR_BITS, -(1 << FACTOR_BITS)],
    [F0_541 + F0_765, F0_541],
    [F0_541, F0_541 - F1_847],
];

/// The odd part: what coefficients 1, 5, 3, 7 contribute to each of the four differences between a sample and its mirror image, from the
/// rim to the middle.
pub(super) const ODD: [[i16; 4]; 4] = [
    [F1_501 - F0_899 + F1_175 - F0_390, F1_175 - F0_390, F1_175, F1_175 - F0_899],
    [F1_175, F1_175 - F2_562, F3_072 - F2_562 + F1_175 - F1_961, F1_175 - F1_961],
    [F1_175 - F0_390, F2_053 - F2_562 + F1_175 - F0_390, F1_175 - F2_562, F1_175],
    [F1_175 - F0_899, F1_175, F1_175 - F1_961, F0_298 - F0_899 + F1_175 - F1_961],
];

/// Eight numbers at once: of a row of coefficients in the first pass, of a column in the second.
type Lanes = [i32; 8];

/// Transforms eight columns at once; `input` are the rows.
#[inline(always)]
fn pass(input: &[Lanes; 8], shift: u32) -> [Lanes; 8] {
    let mut output = [[0; 8]; 8];
    for lane in 0..8 {
        let at = |row: usize| input[row][lane];
        let two = |[a, b]: [i16; 2], x: i32, y: i32| i32::from(a) * x + i32::from(b) * y;
        let half = 1 << (shift - 1);
        let (sum, difference) = (two(EVEN[0], at(0), at(4)) + half, two(EVEN[1], at(0), at(4)) + half);
        let (outer, inner) = (two(EVEN[2], at(2), at(6)), two(EVEN[3], at(2), at(6)));
        let even = [sum + outer, difference + inner, difference - inner, sum - outer];
        for row in 0..4 {
            let [a, b, c, d] = ODD[row];
            let odd = two([a, b], at(1), at(5)) + two([c, d], at(3), at(7));
            output[row][lane] = (even[row] + odd) >> shift;
            output[7 - row][lane] = (even[row] - odd) >> shift;
        }
    }
    output
}

/// Transforms a block of coefficients, row by row, times `quantisation`, into 8 x 8 samples; `stride` is from one row of `samples` to the next.
///
/// # Panics
/// If `samples` end before the last row.
#[inline(always)]
pub(super) fn inverse(coefficients: &[i16; 64], quantisation: &[i16; 64], samples: &mut [u8], stride: usize) {
    let mut rows = [[0; 8]; 8];
    for ((row, coefficients), quantisation) in
        rows.iter_mut().zip(coefficients.chunks_exact(8)).zip(quantisation.chunks_exact(8))
    {
        for ((value, &coefficient), &step) in row.iter_mut().zip(coefficients).zip(quantisation) {
            *value = i32::from(coefficient.wrapping_mul(step));
        }
    }
    let between = pass(&rows, SHIFTS[0]);
    let mut columns = [[0; 8]; 8];
    for row in 0..8 {
        for column in 0..8 {
            columns[column][row] = between[row][column].clamp(i16::MIN.into(), i16::MAX.into());
        }
    }
    let across = pass(&columns, SHIFTS[1]);
    for row in 0..8 {
        let samples = &mut samples[row * stride..row * stride + 8];
        for column in 0..8 {
            samples[column] = (across[column][row] + 128).clamp(0, 255) as u8;
        }
    }
}

/// The sample of which a block consists that has a mean and nothing else: what [`inverse`] makes of it.
#[inline(always)]
pub(super) fn flat(mean: i16, step: i16) -> u8 {
    let mean = (i32::from(mean.wrapping_mul(step)) << KEPT_BITS).clamp(i16::MIN.into(), i16::MAX.into());
    (((mean + 16) >> 5) + 128).clamp(0, 255) as u8
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The transform as libjpeg's comments describe it: additions where the flow graph has them, in numbers that hold anything.
    fn by_the_graph(v: [i64; 8], shift: u32) -> [i64; 8] {
        let f = |factor: f64| (factor * 8192.0).round() as i64;
        let descale = |x: i64| (x + (1 << (shift - 1))) >> shift;
        let z1 = (v[2] + v[6]) * f(0.541_196_100);
        let (even2, even3) = (z1 - v[6] * f(1.847_759_065), z1 + v[2] * f(0.765_366_865));
        let (even0, even1) = ((v[0] + v[4]) << 13, (v[0] - v[4]) << 13);
        let even = [even0 + even3, even1 + even2, even1 - even2, even0 - even3];
        let (a, b, c, d) = (v[7], v[5], v[3], v[1]);
        let (z1, z2, z3, z4) = (a + d, b + c, a + c, b + d);
        let z5 = (z3 + z4) * f(1.175_875_602);
        let (z1, z2) = (z1 * -f(0.899_976_223), z2 * -f(2.562_915_447));
        let (z3, z4) = (z3 * -f(1.961_570_560) + z5, z4 * -f(0.390_180_644) + z5);
        let odd = [
            d * f(1.501_321_110) + z1 + z4,
            c * f(3.072_711_026) + z2 + z3,
            b * f(2.053_119_869) + z2 + z4,
            a * f(0.298_631_336) + z1 + z3,
        ];
        let mut out = [0; 8];
        for i in 0..4 {
            out[i] = descale(even[i] + odd[i]);
            out[7 - i] = descale(even[i] - odd[i]);
        }
        out
    }

    pub(crate) fn reference(coefficients: &[i16; 64], quantisation: &[i16; 64]) -> [u8; 64] {
        let value = |at: usize| i64::from(coefficients[at]) * i64::from(quantisation[at]);
        let mut between = [0; 64];
        for column in 0..8 {
            let done = by_the_graph(std::array::from_fn(|row| value(row * 8 + column)), 11);
            (0..8).for_each(|row| between[row * 8 + column] = done[row]);
        }
        let mut samples = [0; 64];
        for row in 0..8 {
            let done = by_the_graph(std::array::from_fn(|column| between[row * 8 + column]), 18);
            (0..8).for_each(|column| samples[row * 8 + column] = (done[column] + 128).clamp(0, 255) as u8);
        }
        samples
    }

    /// Blocks as pictures have them, sparse or full, whose numbers stay below 16 bits between the passes; and what divided them.
    pub(crate) fn block() -> impl Strategy<Value = ([i16; 64], [i16; 64])> {
        let spread = prop::sample::select(vec![1_i16, 3, 20, 100]);
        (spread, 1..64_usize, any::<u64>()).prop_map(|(spread, rate, seed)| {
            let mut state = seed;
            let mut below = |bound: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % bound
            };
            // The product stays below 410, and 8 times 8 of these below 2^15 / 4, but for the mean.
            let quantisation: [i16; 64] = std::array::from_fn(|_| 1 + below((400 / spread) as u64) as i16);
            let mut coefficients = std::array::from_fn(|_| {
                let value = below(2 * spread as u64 + 1) as i16 - spread;
                if below(64) < rate as u64 { value } else { 0 }
            });
            coefficients[0] = (below(2048) as i16 - 1024) / quantisation[0];
            (coefficients, quantisation)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn samples_are_libjpegs((coefficients, quantisation) in block()) {
            let mut samples = [7; 64];
            inverse(&coefficients, &quantisation, &mut samples, 8);
            prop_assert_eq!(samples, reference(&coefficients, &quantisation));
        }
    }

    #[test]
    fn a_flat_block_is_what_the_transform_makes_of_it() {
        for mean in i16::MIN..=i16::MAX {
            let mut coefficients = [0; 64];
            coefficients[0] = mean;
            let mut samples = [7; 64];
            inverse(&coefficients, &[1; 64], &mut samples, 8);
            assert_eq!(samples, [flat(mean, 1); 64], "{mean}");
        }
    }

    #[test]
    fn factors_are_the_ones_of_libjpeg() {
        // The constants that `jidctint.c` states.
        let ours = [F0_298, F0_390, F0_541, F0_765, F0_899, F1_175, F1_501, F1_847, F1_961, F2_053, F2_562, F3_072];
        assert_eq!(ours, [2446, 3196, 4433, 6270, 7373, 9633, 12299, 15137, 16069, 16819, 20995, 25172]);
    }

    #[test]
    fn nothing_runs_over() {
        for value in [i16::MIN, i16::MAX] {
            for signs in 0..64_u32 {
                let mut samples = [0; 64];
                let coefficients = std::array::from_fn(|at| if signs >> (at % 8) & 1 == 1 { value } else { !value });
                inverse(&coefficients, &[1; 64], &mut samples, 8);
            }
        }
    }
}
