//! Tiles as baseline JPEG files (ITU-T T.81), with the tables of its annex K as every other encoder scales them by a quality.
//!
//! An encoder of our own, because tiles are what the time of a DeepZoom image goes into. All tables are made once for all tiles; chroma of
//! 2 x 2 pixels is computed once, from their sum; of the 64 coefficients of a block only those that are not 0 are coded one by one. It needs
//! no instruction that a processor may lack, so that the same pixels give the same bytes everywhere.
//!
//! The cosine transform is that of Arai, Agui and Nakajima (1988) in 32-bit floating point, whose scale factors are part of the quantisation.
//! Eight columns are transformed side by side, in loops that compilers turn into vector instructions.

mod tables;

use super::Subsampling;
use tables::{CHROMA_AC, CHROMA_DC, CHROMA_STEPS, Huffman, LUMA_AC, LUMA_DC, LUMA_STEPS, ZIGZAG};

/// Encodes tiles of one quality.
#[derive(Debug)]
pub(super) struct Encoder {
    subsampling: Subsampling,
    luma: Coder,
    chroma: Coder,
}

/// What a thread uses again from tile to tile: a row of squares of 16 x 16 pixels, or of 8 x 8, plane by plane, padded to whole squares.
#[derive(Debug, Default)]
pub(super) struct Band {
    luma: Vec<u8>,
    blue: Vec<u8>,
    red: Vec<u8>,
}

impl Encoder {
    /// An encoder of this quality, 1 to 100, scaled as libjpeg does.
    pub(super) fn new(quality: u8, subsampling: Subsampling) -> Self {
        let luma = Coder::new(&LUMA_STEPS, quality, &LUMA_DC, &LUMA_AC);
        let chroma = Coder::new(&CHROMA_STEPS, quality, &CHROMA_DC, &CHROMA_AC);
        Self { subsampling, luma, chroma }
    }

    /// Appends the file of a picture to `to`: `width` x `height` pixels of RGB, or of grey if `channels` is 1.
    pub(super) fn encode(
        &self,
        samples: &[u8],
        (width, height): (u16, u16),
        channels: usize,
        band: &mut Band,
        to: &mut Vec<u8>,
    ) {
        // Squares of 2 x 2 blocks of luma and one of each chroma, or one of each.
        let blocks = if channels == 3 && self.subsampling == Subsampling::Halved { 2 } else { 1 };
        self.header((width, height), channels, blocks, to);
        let (width, side) = (usize::from(width), 8 * blocks);
        let padded = width.next_multiple_of(side);
        let mut bits = Bits { to, word: 0, count: 0 };
        let mut means = [0; 3];
        for rows in samples.chunks(side * width * channels) {
            band.fill(rows, width, channels, blocks);
            for x in (0..padded).step_by(side) {
                for (y, x) in (0..blocks).flat_map(|y| (0..blocks).map(move |i| (8 * y, x + 8 * i))) {
                    self.luma.block(&band.luma[y * padded + x..], padded, &mut means[0], &mut bits);
                }
                if channels == 3 {
                    let (at, stride) = (x / blocks, padded / blocks);
                    self.chroma.block(&band.blue[at..], stride, &mut means[1], &mut bits);
                    self.chroma.block(&band.red[at..], stride, &mut means[2], &mut bits);
                }
            }
        }
        bits.finish();
        to.extend([0xff, 0xd9]);
    }

    fn header(&self, (width, height): (u16, u16), channels: usize, blocks: usize, to: &mut Vec<u8>) {
        to.extend([0xff, 0xd8]);
        let mut segment = |marker: u8, parts: &[&[u8]]| {
            let length = 2 + parts.iter().map(|part| part.len()).sum::<usize>();
            to.extend([0xff, marker, (length >> 8) as u8, length as u8]);
            parts.iter().for_each(|part| to.extend_from_slice(part));
        };
        let coders = [&self.luma, &self.chroma];
        let coders = &coders[..if channels == 3 { 2 } else { 1 }];
        // JFIF 1.1, pixels as wide as high.
        segment(0xe0, &[b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"]);
        for (number, coder) in (0..).zip(coders) {
            segment(0xdb, &[&[number], &coder.steps]);
        }
        let ([h1, h0], [w1, w0]) = (height.to_be_bytes(), width.to_be_bytes());
        let (luma, samples) = ((blocks << 4 | blocks) as u8, channels as u8);
        let components = [1, luma, 0, 2, 0x11, 1, 3, 0x11, 1];
        segment(0xc0, &[&[8, h1, h0, w1, w0, samples], &components[..3 * channels]]);
        for (number, coder) in (0..).zip(coders) {
            for (class, table) in [(0x00, &coder.dc), (0x10, &coder.ac)] {
                segment(0xc4, &[&[class | number], &table.huffman.lengths, table.huffman.symbols]);
            }
        }
        segment(0xda, &[&[samples], &[1, 0x00, 2, 0x11, 3, 0x11][..2 * channels], &[0, 63, 0]]);
    }
}

impl Band {
    /// Takes the pixels of a row of squares; the last pixel of a row, and the last row, stand for what is missing.
    fn fill(&mut self, samples: &[u8], width: usize, channels: usize, blocks: usize) {
        let (rows, side) = (samples.len() / (width * channels), 8 * blocks);
        let padded = width.next_multiple_of(side);
        self.luma.resize(padded * side, 0);
        let lines = samples.chunks_exact(width * channels).zip(self.luma.chunks_exact_mut(padded));
        if channels == 1 {
            lines.for_each(|(samples, luma)| luma[..width].copy_from_slice(samples));
            return pad(&mut self.luma, padded, width, rows);
        }
        for (samples, luma) in lines {
            for (pixel, luma) in samples.as_chunks::<3>().0.iter().zip(luma) {
                *luma = luma_of(*pixel);
            }
        }
        pad(&mut self.luma, padded, width, rows);
        let (stride, columns, lines) = (padded / blocks, width.div_ceil(blocks), rows.div_ceil(blocks));
        self.blue.resize(stride * 8, 0);
        self.red.resize(stride * 8, 0);
        let chroma = self.blue.chunks_exact_mut(stride).zip(self.red.chunks_exact_mut(stride));
        for (samples, (blue, red)) in samples.chunks(blocks * width * 3).zip(chroma) {
            let pixels = samples.as_chunks::<3>().0;
            if blocks == 1 {
                for ((pixel, blue), red) in pixels.iter().zip(blue).zip(red) {
                    [*blue, *red] = chroma_of(pixel.map(u32::from), 0);
                }
            } else {
                halve_chroma(pixels, width, blue, red);
            }
        }
        pad(&mut self.blue, stride, columns, lines);
        pad(&mut self.red, stride, columns, lines);
    }
}

/// Repeats the last of `width` samples of each row up to its end, and the last of `rows` rows.
fn pad(plane: &mut [u8], stride: usize, width: usize, rows: usize) {
    if width < stride {
        for row in plane.chunks_exact_mut(stride).take(rows) {
            let last = row[width - 1];
            row[width..].fill(last);
        }
    }
    for row in rows..plane.len() / stride {
        plane.copy_within((rows - 1) * stride..rows * stride, row * stride);
    }
}

/// The chroma of two rows of pixels, or of the last one; at an odd end the pixels there stand for those beyond.
fn halve_chroma(pixels: &[[u8; 3]], width: usize, blue: &mut [u8], red: &mut [u8]) {
    let (top, rest) = pixels.split_at(width);
    let bottom = if rest.is_empty() { top } else { rest };
    let of = |four: [[u8; 3]; 4]| {
        let sum = |c: usize| four.iter().map(|pixel| u32::from(pixel[c])).sum();
        chroma_of([sum(0), sum(1), sum(2)], 2)
    };
    let pairs = top.as_chunks::<2>().0.iter().zip(bottom.as_chunks::<2>().0);
    for (([a, b], [c, d]), (blue, red)) in pairs.zip(blue.iter_mut().zip(red.iter_mut())) {
        [*blue, *red] = of([*a, *b, *c, *d]);
    }
    if !width.is_multiple_of(2) {
        let (a, c) = (top[width - 1], bottom[width - 1]);
        [blue[width / 2], red[width / 2]] = of([a, a, c, c]);
    }
}

/// JFIF's luma, rounded: 0.299 R + 0.587 G + 0.114 B, in 16 bits behind the point.
#[inline]
fn luma_of([r, g, b]: [u8; 3]) -> u8 {
    ((19595 * u32::from(r) + 38470 * u32::from(g) + 7471 * u32::from(b) + (1 << 15)) >> 16) as u8
}

/// JFIF's chroma of a sum of `2^bits` pixels, rounded: blue and red.
#[inline]
fn chroma_of([r, g, b]: [u32; 3], bits: u32) -> [u8; 2] {
    // The offset of 128 keeps all sums positive; a half less a hair is added, so that pure blue and pure red stay within 255.
    let half = (128 << (16 + bits)) + (1 << (15 + bits)) - 1;
    let blue = half + 32768 * b - 11059 * r - 21709 * g;
    let red = half + 32768 * r - 27439 * g - 5329 * b;
    [(blue >> (16 + bits)) as u8, (red >> (16 + bits)) as u8]
}

/// Transforms, quantises and codes blocks of luma or of chroma.
#[derive(Debug)]
struct Coder {
    /// In the order of the zigzag, as files hold them.
    steps: [u8; 64],
    /// What each coefficient of the transform is multiplied with, column by column as the transform leaves them.
    factors: [Row; 8],
    dc: Codes,
    ac: Codes,
}

/// The code of each symbol: its bits, and how many.
#[derive(Debug)]
struct Codes {
    huffman: &'static Huffman,
    of: [(u16, u8); 256],
}

impl Codes {
    fn new(huffman: &'static Huffman) -> Self {
        let mut of = [(0, 0); 256];
        let mut symbols = huffman.symbols.iter();
        let mut code = 0_u16;
        for (length, &count) in (1..).zip(&huffman.lengths) {
            for symbol in symbols.by_ref().take(count.into()) {
                of[usize::from(*symbol)] = (code, length);
                code += 1;
            }
            code <<= 1;
        }
        Self { huffman, of }
    }
}

/// The scale of each row and column of the transform.
const SCALES: [f64; 8] =
    [1.0, 1.387_039_845, 1.306_562_965, 1.175_875_602, 1.0, 0.785_694_958, 0.541_196_1, 0.275_899_379];

impl Coder {
    fn new(at_50: &[u8; 64], quality: u8, dc: &'static Huffman, ac: &'static Huffman) -> Self {
        let quality = u32::from(quality.clamp(1, 100));
        let scale = if quality < 50 { 5000 / quality } else { 200 - 2 * quality };
        let step = |at: usize| ((u32::from(at_50[at]) * scale + 50) / 100).clamp(1, 255) as u8;
        let factor = |row: usize, column: usize| {
            (1.0 / (f64::from(step(8 * row + column)) * SCALES[row] * SCALES[column] * 8.0)) as f32
        };
        Self {
            steps: std::array::from_fn(|i| step(ZIGZAG[i].into())),
            factors: std::array::from_fn(|column| std::array::from_fn(|row| factor(row, column))),
            dc: Codes::new(dc),
            ac: Codes::new(ac),
        }
    }

    /// Codes the 8 x 8 samples at the start of a plane; `mean` is what the block of the plane before it left there.
    #[inline]
    fn block(&self, plane: &[u8], stride: usize, mean: &mut i32, bits: &mut Bits<'_>) {
        let mut rows = [[0.0; 8]; 8];
        for (row, samples) in rows.iter_mut().zip(plane.chunks(stride)) {
            // Every row of a padded plane has whole blocks.
            let Some(samples) = samples.first_chunk::<8>() else { return };
            *row = samples.map(|sample| f32::from(sample) - 128.0);
        }
        transform(&mut rows);
        let mut columns = transposed(&rows);
        transform(&mut columns);
        let mut coefficients = [[0_i16; 8]; 8];
        for ((to, from), factors) in coefficients.iter_mut().zip(&columns).zip(&self.factors) {
            for ((to, from), factor) in to.iter_mut().zip(from).zip(factors) {
                *to = rounded(from * factor);
            }
        }
        self.code(coefficients.as_flattened(), mean, bits);
    }

    /// Codes quantised coefficients, which lie column by column.
    #[inline]
    fn code(&self, coefficients: &[i16], mean: &mut i32, bits: &mut Bits<'_>) {
        // In the order of the zigzag, and a bit for each that is not 0.
        let (mut ordered, mut present) = ([0_i16; 64], 0_u64);
        for (at, value) in ordered.iter_mut().enumerate().rev() {
            *value = coefficients[usize::from(TURNED[at] & 63)];
            present = present << 1 | u64::from(*value != 0);
        }
        let now = i32::from(ordered[0]);
        let (size, value) = magnitude(now - *mean);
        *mean = now;
        let (code, length) = self.dc.of[size as usize];
        bits.put(u32::from(code) << size | value, u32::from(length) + size);
        let (mut rest, mut last) = (present & !1, 0);
        while rest != 0 {
            let at = rest.trailing_zeros();
            rest &= rest - 1;
            let mut zeros = at - last - 1;
            last = at;
            while zeros >= 16 {
                let (code, length) = self.ac.of[0xf0];
                bits.put(code.into(), length.into());
                zeros -= 16;
            }
            let (size, value) = magnitude(ordered[at as usize & 63].into());
            let (code, length) = self.ac.of[(zeros << 4 | size) as usize & 255];
            bits.put(u32::from(code) << size | value, u32::from(length) + size);
        }
        if last < 63 {
            let (code, length) = self.ac.of[0];
            bits.put(code.into(), length.into());
        }
    }
}

/// The zigzag over coefficients that lie column by column.
const TURNED: [u8; 64] = {
    let mut turned = [0; 64];
    let mut i = 0;
    while i < 64 {
        turned[i] = ZIGZAG[i] % 8 * 8 + ZIGZAG[i] / 8;
        i += 1;
    }
    turned
};

/// The number of bits that a value takes, and those bits: negative values less one, without their sign.
#[inline]
fn magnitude(value: i32) -> (u32, u32) {
    let size = 32 - value.unsigned_abs().leading_zeros();
    let bits = (value - i32::from(value < 0)) as u32 & ((1 << size) - 1);
    (size, bits)
}

/// The nearest whole number to one that is far below 2^22.
#[inline]
fn rounded(value: f32) -> i16 {
    // Adding 1.5 x 2^23 leaves no bit for a fraction; unlike a conversion, it is one vector instruction on every processor.
    const SHIFT: f32 = 12_582_912.0;
    ((value + SHIFT).to_bits().wrapping_sub(SHIFT.to_bits())) as i16
}

/// Eight numbers that are computed side by side.
type Row = [f32; 8];

/// The cosine transform of eight columns, each of which is the same element of the eight rows; scaled by [`SCALES`] row by row.
#[inline]
fn transform(rows: &mut [Row; 8]) {
    let add = |a: Row, b: Row| -> Row { std::array::from_fn(|i| a[i] + b[i]) };
    let subtract = |a: Row, b: Row| -> Row { std::array::from_fn(|i| a[i] - b[i]) };
    let times = |a: Row, by: f32| -> Row { std::array::from_fn(|i| a[i] * by) };
    let [r0, r1, r2, r3, r4, r5, r6, r7] = *rows;
    let (s07, s16, s25, s34) = (add(r0, r7), add(r1, r6), add(r2, r5), add(r3, r4));
    let (d07, d16, d25, d34) = (subtract(r0, r7), subtract(r1, r6), subtract(r2, r5), subtract(r3, r4));

    let (outer, inner) = (add(s07, s34), add(s16, s25));
    let (left, right) = (subtract(s07, s34), subtract(s16, s25));
    let turned = times(add(right, left), std::f32::consts::FRAC_1_SQRT_2);
    let even = [add(outer, inner), add(left, turned), subtract(outer, inner), subtract(left, turned)];

    let (a, b, c) = (add(d34, d25), add(d25, d16), add(d16, d07));
    let z5 = times(subtract(a, c), 0.382_683_43);
    let z2 = add(times(a, 0.541_196_1), z5);
    let z4 = add(times(c, 1.306_563), z5);
    let z3 = times(b, std::f32::consts::FRAC_1_SQRT_2);
    let (plus, minus) = (add(d07, z3), subtract(d07, z3));
    let odd = [add(plus, z4), subtract(minus, z2), add(minus, z2), subtract(plus, z4)];

    *rows = [even[0], odd[0], even[1], odd[1], even[2], odd[2], even[3], odd[3]];
}

#[inline]
fn transposed(rows: &[Row; 8]) -> [Row; 8] {
    std::array::from_fn(|column| std::array::from_fn(|row| rows[row][column]))
}

/// Bits one after the other, in bytes of which those that are 0xff are followed by a 0.
struct Bits<'a> {
    to: &'a mut Vec<u8>,
    /// Less than 32 bits that wait, at the low end.
    word: u64,
    count: u32,
}

impl Bits<'_> {
    /// Appends the `length` low bits of `bits`, at most 32; those above are 0.
    #[inline]
    fn put(&mut self, bits: u32, length: u32) {
        self.word = self.word << length | u64::from(bits);
        self.count += length;
        if self.count >= 32 {
            self.count -= 32;
            let word = (self.word >> self.count) as u32;
            // A byte of 0xff is one with its highest bit set that has not after one is added; others may look so, too, by a carry.
            if word & 0x8080_8080 & !word.wrapping_add(0x0101_0101) == 0 {
                self.to.extend_from_slice(&word.to_be_bytes());
            } else {
                word.to_be_bytes().into_iter().for_each(|byte| self.byte(byte));
            }
        }
    }

    fn byte(&mut self, byte: u8) {
        self.to.push(byte);
        if byte == 0xff {
            self.to.push(0);
        }
    }

    /// Fills the last byte with ones.
    fn finish(mut self) {
        let missing = self.count.next_multiple_of(8) - self.count;
        let word = self.word << missing | ((1 << missing) - 1);
        let count = self.count + missing;
        for shift in (0..count).step_by(8).rev() {
            self.byte((word >> shift) as u8);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use image::ImageEncoder;
    use microtome_io::bytes::Memory;
    use microtome_io::slide::{OpenOptions, open, open_bytes};
    use microtome_io::{Level, Rect};

    use super::*;

    fn encoded(samples: &[u8], size: (u16, u16), channels: usize, quality: u8, subsampling: Subsampling) -> Vec<u8> {
        let mut bytes = Vec::new();
        Encoder::new(quality, subsampling).encode(samples, size, channels, &mut Band::default(), &mut bytes);
        bytes
    }

    fn decoded(bytes: Vec<u8>) -> Vec<u8> {
        let slide = open_bytes(Arc::new(Memory::new("tile.jpg", bytes)), &OpenOptions::default()).unwrap();
        slide.read_region(Level(0), slide.info().size().rect()).unwrap().as_u8().unwrap().to_vec()
    }

    #[test]
    fn plain_colors_come_back() {
        for subsampling in [Subsampling::Halved, Subsampling::Full] {
            for color in [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [170, 110, 160]] {
                for size in [(1, 1), (7, 5), (17, 16), (40, 33)] {
                    let samples = color.repeat(usize::from(size.0) * usize::from(size.1));
                    let found = decoded(encoded(&samples, size, 3, 100, subsampling));
                    let worst = found.iter().zip(&samples).map(|(a, b)| a.abs_diff(*b)).max();
                    assert!(worst <= Some(2), "{color:?}, {size:?}, {subsampling:?}: {worst:?}");
                }
            }
        }
    }

    #[test]
    fn at_the_best_quality_little_is_lost() {
        // Noise is the hardest to keep: coefficients of all frequencies, many of the largest sizes, and bytes of 0xff.
        let noise =
            |n: u64| -> Vec<u8> { (0..n).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 37) as u8).collect() };
        for size in [(64, 64), (33, 70), (8, 8), (15, 1), (1, 23)] {
            let pixels = u64::from(size.0) * u64::from(size.1);
            let samples = noise(pixels);
            let found = decoded(encoded(&samples, size, 1, 100, Subsampling::Halved));
            let worst = found.iter().zip(&samples).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(found.len() == samples.len() && worst <= 2, "{size:?}: {worst}");
            let samples = noise(3 * pixels);
            let found = decoded(encoded(&samples, size, 3, 100, Subsampling::Full));
            let worst = found.iter().zip(&samples).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(found.len() == samples.len() && worst <= 5, "{size:?}: {worst}");
            // The worst quality has the largest steps, and must decode as well.
            assert_eq!(decoded(encoded(&samples, size, 3, 1, Subsampling::Halved)).len(), samples.len());
        }
    }

    #[test]
    fn chroma_is_that_of_the_mean_of_a_square() {
        // Red and green in turn, column by column: half of each everywhere.
        let samples: Vec<u8> = (0..32 * 16).flat_map(|i| if i % 2 == 0 { [200, 0, 0] } else { [0, 200, 0] }).collect();
        let mut band = Band::default();
        band.fill(&samples, 32, 3, 2);
        let [blue, red] = chroma_of([100, 100, 0], 0);
        assert!(band.blue.iter().all(|&v| v == blue) && band.red.iter().all(|&v| v == red));
    }

    #[test]
    fn coefficients_are_those_of_the_definition() {
        let value = |x: usize, y: usize| ((x * 37 + y * 91 + x * y * 5) % 256) as f32 - 128.0;
        let mut rows: [Row; 8] = std::array::from_fn(|y| std::array::from_fn(|x| value(x, y)));
        transform(&mut rows);
        let mut columns = transposed(&rows);
        transform(&mut columns);
        for (v, u) in (0..8).flat_map(|v| (0..8).map(move |u| (v, u))) {
            // T.81, A.3.3.
            let scale = |k: usize| if k == 0 { std::f64::consts::FRAC_1_SQRT_2 } else { 1.0 };
            let cosine = |i: usize, k: usize| ((2 * i + 1) as f64 * k as f64 * std::f64::consts::PI / 16.0).cos();
            let sum: f64 = (0..8)
                .flat_map(|y| (0..8).map(move |x| (x, y)))
                .map(|(x, y)| f64::from(value(x, y)) * cosine(x, u) * cosine(y, v))
                .sum();
            let expected = scale(u) * scale(v) / 4.0 * sum;
            let found = f64::from(columns[u][v]) / (8.0 * SCALES[u] * SCALES[v]);
            assert!((found - expected).abs() < 1e-3, "row {v}, column {u}: {found} in place of {expected}");
        }
    }

    #[test]
    fn numbers_are_rounded_to_the_nearest() {
        for (value, expected) in [(0.0, 0), (0.49, 0), (0.51, 1), (-0.51, -1), (1023.4, 1023), (-2047.6, -2048)] {
            assert_eq!(rounded(value), expected);
        }
    }

    /// `cargo nextest run --workspace --run-ignored only --no-capture -E 'test(measurement_of_encoding)'`
    #[test]
    #[ignore = "a measurement"]
    fn measurement_of_encoding() {
        let Some(path) = microtome_testkit::data("slides/svs/CMU-1-Small-Region.svs") else { return };
        let slide = open(path, &OpenOptions::default()).unwrap();
        let rects = (0..8).flat_map(|y| (0..8).map(move |x| Rect::new(100 + x * 256, 100 + y * 256, 256, 256)));
        let tiles: Vec<_> = rects.map(|rect| slide.read_region(Level(0), rect).unwrap()).collect();
        let (mut band, mut bytes) = (Band::default(), Vec::new());
        for (quality, subsampling) in [(75, Subsampling::Halved), (90, Subsampling::Halved), (90, Subsampling::Full)] {
            let encoder = Encoder::new(quality, subsampling);
            let best = (0..9).map(|_| {
                let begun = Instant::now();
                bytes.clear();
                for tile in &tiles {
                    encoder.encode(tile.as_u8().unwrap(), (256, 256), 3, &mut band, &mut bytes);
                }
                begun.elapsed().as_secs_f64()
            });
            let seconds = best.fold(f64::INFINITY, f64::min);
            let rate = 64.0 * 65536.0 / 1e6 / seconds;
            println!("quality {quality}, {subsampling:?}: {rate:.0} Mpx/s, {} bytes a tile", bytes.len() / 64);
        }
        let begun = Instant::now();
        bytes.clear();
        for tile in &tiles {
            let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 90);
            encoder.write_image(tile.as_u8().unwrap(), 256, 256, image::ExtendedColorType::Rgb8).unwrap();
        }
        let rate = 64.0 * 65536.0 / 1e6 / begun.elapsed().as_secs_f64();
        println!("quality 90 by the crate image: {rate:.0} Mpx/s, {} bytes a tile", bytes.len() / 64);
    }
}
