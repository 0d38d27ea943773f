//! Sums of products of pairs: what they are, and that all instruction sets agree about them.

use super::super::bf16;
use super::*;

/// Numbers that look random, are the same on every machine, and lie in -1..1.
fn noise(seed: u32) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / f32::from_bits(0x4b00_0000) - 1.0
    }
}

const PIXELS: usize = 7;
const CHANNELS: usize = 40;
const WORDS: usize = 48;

/// The sums that kernels make of these pairs: `input` of each pixel, `weights` of each word and channel.
/// Each channel has a vector's lane to itself, so that all sets add in the same order.
fn sums(kernels: &Kernels, block: Block, input: &[f32], weights: &[f32]) -> Vec<f32> {
    let mut output = vec![0.0; PIXELS * CHANNELS];
    // Blocks of all pixels, one after the other, as in the scratch.
    let words = block.words();
    let mut scratch = vec![0.0; PIXELS * WORDS];
    for (i, word) in input.iter().enumerate() {
        let (pixel, word_of) = (i / WORDS, i % WORDS);
        scratch[(word_of / words * PIXELS + pixel) * words + word_of % words] = *word;
    }
    let runs = Runs::new((0..WORDS / words).map(|b| b * PIXELS * words), words);
    let mut first = 0;
    for (form, channels) in kernels.groups(CHANNELS) {
        let form = if form == Lanes::Paired { Lanes::Single } else { form };
        let lanes = kernels.group_lanes(form);
        let mut packed = vec![0.0; WORDS * lanes];
        for (word, c) in (0..WORDS).flat_map(|word| (0..channels).map(move |c| (word, c))) {
            packed[word * lanes + c] = weights[word * CHANNELS + first + c];
        }
        let rows = Rows {
            rows: 1,
            pixels: PIXELS,
            input: &scratch,
            from: 0,
            row_stride: 0,
            runs: &runs,
            weights: &packed,
            bias: &vec![0.0; lanes],
            output: &mut output,
            to: first,
            pixel_stride: CHANNELS,
            output_stride: 0,
            channels,
            statistics: None,
        };
        kernels.rows(form, block, rows);
        first += channels;
    }
    output
}

/// The exact sums, and the sums of the products' magnitudes.
fn exact(input: &[f32], weights: &[f32]) -> Vec<(f64, f64)> {
    let halves = |word: f32| {
        let bits = word.to_bits();
        [bits << 16, bits & 0xffff_0000].map(|half| f64::from(f32::from_bits(half)))
    };
    let product = |pixel: usize, c: usize, word: usize| {
        let ([a, b], [v, w]) = (halves(input[pixel * WORDS + word]), halves(weights[word * CHANNELS + c]));
        (a * v + b * w, (a * v).abs() + (b * w).abs())
    };
    let all = (0..PIXELS).flat_map(|pixel| (0..CHANNELS).map(move |c| (pixel, c)));
    all.map(|(pixel, c)| (0..WORDS).map(|word| product(pixel, c, word)).fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1)))
        .collect()
}

#[test]
fn sums_of_pairs_are_the_same_on_every_instruction_set() {
    let mut next = noise(5);
    let mut words = |n: usize| -> Vec<f32> { (0..n).map(|_| bf16::pair(next(), next())).collect() };
    let (input, weights) = (words(PIXELS * WORDS), words(WORDS * CHANNELS));
    let exact = exact(&input, &weights);
    for block in Block::ALL {
        let expected = sums(Kernels::of(InstructionSet::Portable, Words::Bf16), block, &input, &weights);
        for set in InstructionSet::available() {
            let found = sums(Kernels::of(set, Words::Bf16), block, &input, &weights);
            // Each of 96 roundings is of at most half a last bit of a partial sum.
            let close = |(sum, (exact, magnitude)): (&f32, &(f64, f64))| {
                (f64::from(*sum) - exact).abs() <= 96.0 * f64::from(f32::EPSILON) / 2.0 * magnitude
            };
            assert!(found.iter().zip(&exact).all(close), "{set}, {block:?}");
            let same = found == expected;
            println!("{set}, {block:?}: the same bits as plain Rust: {same}");
            // That is also what Intel states for the instruction, but how a CPU does it is not for us to say.
            assert!(same || set.multiplies_bf16(), "{set}, {block:?}");
        }
    }
}

/// 2^24 + 1 is rounded to 2^24, so that the sum tells what was added first.
#[test]
fn seconds_are_added_before_firsts() {
    let big = 16_777_216.0;
    let mut input = vec![0.0; PIXELS * WORDS];
    let mut weights = vec![0.0; WORDS * CHANNELS];
    for pixel in input.chunks_mut(WORDS) {
        (pixel[0], pixel[1]) = (bf16::pair(0.0, 1.0), bf16::pair(1.0, 1.0));
    }
    weights[..CHANNELS].fill(bf16::pair(0.0, big));
    weights[CHANNELS..][..CHANNELS].fill(bf16::pair(-big, 1.0));
    for set in InstructionSet::available().filter(|set| !set.multiplies_bf16()) {
        let found = sums(Kernels::of(set, Words::Bf16), Block::Sixteen, &input, &weights);
        assert!(found.iter().all(|sum| *sum == 0.0), "{set}");
    }
}

#[test]
fn loaders_round_to_the_nearest_pair() {
    let mut next = noise(7);
    let ties = [1.0 + 0.5 / 128.0, 1.0 + 1.5 / 128.0];
    let special = [f32::NAN, f32::from_bits(0x7f80_0001), f32::INFINITY, -f32::MAX, ties[0], ties[1], -0.0];
    for set in InstructionSet::available() {
        for (block, channels) in Block::ALL.into_iter().flat_map(|b| [5, 8, 16, 20, 50].map(|c| (b, c))) {
            let source: Vec<f32> =
                special.into_iter().chain(std::iter::repeat_with(&mut next)).take(3 * channels).collect();
            let (words, blocks) = (block.words(), channels.div_ceil(2 * block.words()));
            let plane = 3 * words;
            let mut target = vec![7.0; blocks * plane];
            let row = LoadedRow {
                source: &source,
                stride: channels,
                row_stride: 0,
                pixels: 3,
                channels,
                target: &mut target,
                plane,
                factors: &vec![1.0; blocks * 2 * words],
                // So that -0 stays that.
                summands: &vec![-0.0; blocks * 2 * words],
                slopes: &vec![1.0; blocks * 2 * words],
            };
            Kernels::of(set, Words::Bf16).load_row(block, row);
            for (pixel, channel) in (0..3).flat_map(|p| (0..blocks * 2 * words).map(move |c| (p, c))) {
                let word = target[channel / (2 * words) * plane + pixel * words + channel % (2 * words) / 2].to_bits();
                let found = f32::from_bits(if channel % 2 == 0 { word << 16 } else { word & 0xffff_0000 });
                let expected = source[pixel * channels..][..channels].get(channel).map_or(0.0, |x| bf16::round(*x));
                let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
                assert!(same, "{set}, {block:?}: {found} for {expected}, channel {channel} of {channels}");
            }
        }
    }
}
