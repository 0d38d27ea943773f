//! JPEG-LS, as DICOM holds it: without loss or nearly so, 2 to 16 bits, channels in scans of their own, line by line, or
//! sample by sample.
//!
//! Why it is written here: of the crates for it one wraps C++, and the one in Rust (pure_jpegls 2.0.0) reads single
//! channels only, while slides are in colours.
//!
//! What it does not read is refused by name: palettes, restart intervals, subsampled channels, and the colour transforms of
//! Hewlett-Packard, which are no part of the standard. Memory: two lines, the tables of contexts, and the result.
//!
//! Source: ITU-T T.87, whose names the variables have.

use crate::SampleType;

/// What the container says of the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Pixels from left to right.
    pub(crate) width: usize,
    /// Pixels from top to bottom.
    pub(crate) height: usize,
    /// Samples per pixel.
    pub(crate) components: usize,
    /// What a sample is stored as.
    pub(crate) sample: SampleType,
}

/// Decodes a stream into samples that lie side by side, of two bytes in little endian if they are wide.
///
/// Size, number of components and depth are compared with `expected` before anything is allocated.
pub(crate) fn decode(data: &[u8], expected: Expected) -> Result<Vec<u8>, String> {
    let Expected { width, height, components, sample } = expected;
    let bytes = sample.bytes();
    let mut markers = Markers { data, at: 0 };
    if markers.next()? != SOI {
        return Err("JPEG-LS: the stream does not start with a start marker".into());
    }
    let mut precision = None;
    let mut presets = [0_i64; 5];
    let mut identifiers = Vec::new();
    let mut done = vec![false; components];
    let mut out = Vec::new();
    loop {
        let marker = markers.next()?;
        if marker == EOI {
            break;
        }
        let segment = markers.segment()?;
        let word = |at: usize| {
            let pair = segment.get(at..at + 2);
            pair.map(|pair| i64::from(u16::from_be_bytes([pair[0], pair[1]]))).ok_or_else(short)
        };
        match marker {
            SOF55 => {
                if precision.is_some() {
                    return Err("JPEG-LS: there are two frame headers".into());
                }
                let bits = *segment.first().ok_or_else(short)?;
                let found = (word(3)? as usize, word(1)? as usize, usize::from(*segment.get(5).ok_or_else(short)?));
                if found != (width, height, components) {
                    return Err(format!(
                        "JPEG-LS: holds {} x {} pixels of {} channels, the file says {width} x {height} of {components}",
                        found.0, found.1, found.2
                    ));
                }
                if bits < 2 || usize::from(bits) > 8 * bytes {
                    return Err(format!("JPEG-LS: holds {bits} bits per sample, the file says {}", 8 * bytes));
                }
                for component in segment.get(6..6 + 3 * components).ok_or_else(short)?.chunks_exact(3) {
                    if component[1] != 0x11 {
                        return Err("JPEG-LS: subsampled channels cannot be read".into());
                    }
                    identifiers.push(component[0]);
                }
                precision = Some(bits);
                out = vec![0; width * height * components * bytes];
            }
            LSE => {
                if segment.first() != Some(&1) {
                    return Err("JPEG-LS: palettes and sizes in segments of their own cannot be read".into());
                }
                presets = [word(1)?, word(3)?, word(5)?, word(7)?, word(9)?];
            }
            SOS => {
                let precision = precision.ok_or("JPEG-LS: a scan comes before its frame header")?;
                let count = usize::from(*segment.first().ok_or_else(short)?);
                let rest = segment.get(1 + 2 * count..4 + 2 * count).ok_or_else(short)?;
                let (near, interleave, point) = (rest[0], rest[1], rest[2]);
                let mut lanes = Vec::new();
                for pair in segment[1..=2 * count].chunks_exact(2) {
                    let lane = identifiers.iter().position(|identifier| *identifier == pair[0]);
                    let lane = lane.filter(|&lane| !std::mem::replace(&mut done[lane], true));
                    lanes.push(lane.ok_or("JPEG-LS: a scan is of no channel, or of one that was there before")?);
                    if pair[1] != 0 {
                        return Err("JPEG-LS: palettes cannot be read".into());
                    }
                }
                let fits = match interleave {
                    0 => count == 1,
                    1 | 2 => count > 1,
                    _ => false,
                };
                if !fits || point != 0 {
                    return Err(format!("JPEG-LS: {count} channels interleaved in manner {interleave} cannot be read"));
                }
                let limits = Limits::new(precision, near, presets)?;
                let mut scan = Scan {
                    bits: Bits { data, at: markers.at, cache: 0, count: 0, stuffed: false },
                    contexts: Contexts::new(&limits),
                    limits,
                };
                let mut take = |y: usize, lane: usize, line: &[i64]| {
                    let row = &mut out[y * width * components * bytes..];
                    for (pixel, &value) in row.chunks_exact_mut(components * bytes).zip(line) {
                        pixel[lane * bytes..(lane + 1) * bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
                    }
                };
                scan.decode((width, height), &lanes, interleave == 2, &mut take)?;
                markers.at = scan.bits.at;
                markers.skip_to_marker();
            }
            0xdd if word(0)? != 0 => return Err("JPEG-LS: restart intervals cannot be read".into()),
            0xe8 if segment.starts_with(b"mrfx") && segment.get(4) != Some(&0) => {
                return Err("JPEG-LS: Hewlett-Packard's colour transforms cannot be read".into());
            }
            0xdd | 0xe0..=0xef | 0xfe => {}
            _ => return Err(format!("JPEG-LS: marker {marker:#04x} cannot be read")),
        }
    }
    if precision.is_none() || done.contains(&false) {
        return Err("JPEG-LS: the stream ends before its last channel".into());
    }
    Ok(out)
}

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const SOF55: u8 = 0xf7;
const LSE: u8 = 0xf8;

fn short() -> String {
    "JPEG-LS: the stream is cut off".into()
}

fn damaged() -> String {
    "JPEG-LS: the stream is damaged".into()
}

/// Walks marker segments.
struct Markers<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Markers<'a> {
    fn next(&mut self) -> Result<u8, String> {
        while let Some([0xff, 0xff]) = self.data.get(self.at..self.at + 2) {
            self.at += 1;
        }
        match self.data.get(self.at..self.at + 2) {
            Some(&[0xff, marker]) => {
                self.at += 2;
                Ok(marker)
            }
            Some(_) => Err(format!("JPEG-LS: there is no marker at byte {}", self.at)),
            None => Err(short()),
        }
    }

    /// What the segment of the marker holds behind its length.
    fn segment(&mut self) -> Result<&'a [u8], String> {
        let length = self.data.get(self.at..self.at + 2).ok_or_else(short)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let segment = self.data.get(self.at + 2..self.at + length).ok_or_else(short)?;
        self.at += length;
        Ok(segment)
    }

    /// Goes on to the marker that ends a scan.
    fn skip_to_marker(&mut self) {
        let rest = &self.data[self.at..];
        let marker = rest.windows(2).position(|pair| pair[0] == 0xff && pair[1] >= 0x80);
        self.at += marker.unwrap_or(rest.len());
    }
}

/// Reads bits, the highest first; after a byte of ones the next one has seven (A.1).
struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    /// Left-aligned.
    cache: u64,
    count: u32,
    stuffed: bool,
}

impl Bits<'_> {
    fn fill(&mut self) {
        while self.count <= 56 {
            let Some(&byte) = self.data.get(self.at) else { return };
            if byte == 0xff && self.data.get(self.at + 1).is_none_or(|&next| next >= 0x80) {
                return;
            }
            let bits = 8 - u32::from(self.stuffed);
            self.cache |= u64::from(byte) << (64 - bits - self.count);
            self.count += bits;
            self.stuffed = byte == 0xff;
            self.at += 1;
        }
    }

    fn read(&mut self, bits: u32) -> Result<i64, String> {
        if bits == 0 {
            return Ok(0);
        }
        if self.count < bits {
            self.fill();
            if self.count < bits {
                return Err(short());
            }
        }
        let value = self.cache >> (64 - bits);
        self.cache <<= bits;
        self.count -= bits;
        Ok(value as i64)
    }

    /// Counts zeros up to a one, which is read, too.
    fn zeros(&mut self) -> Result<u32, String> {
        let mut total = 0;
        loop {
            self.fill();
            let zeros = self.cache.leading_zeros();
            if zeros < self.count {
                self.cache = self.cache << zeros << 1;
                self.count -= zeros + 1;
                return Ok(total + zeros);
            }
            total += self.count;
            if self.count == 0 || total > 128 {
                return Err(if self.count == 0 { short() } else { damaged() });
            }
            (self.cache, self.count) = (0, 0);
        }
    }
}

/// What holds for a scan.
#[derive(Debug)]
struct Limits {
    near: i64,
    /// Twice NEAR and one: the width of a step.
    step: i64,
    maxval: i64,
    t: [i64; 3],
    reset: i64,
    range: i64,
    qbpp: u32,
    limit: u32,
}

impl Limits {
    /// `presets` are MAXVAL, T1, T2, T3 and RESET, 0 for the default (C.2.4.1.1).
    fn new(precision: u8, near: u8, presets: [i64; 5]) -> Result<Self, String> {
        let near = i64::from(near);
        let full = (1_i64 << precision) - 1;
        let maxval = if presets[0] == 0 { full } else { presets[0] };
        if maxval > full || near > maxval / 2 {
            return Err(damaged());
        }
        let clamp = |value: i64, low: i64| if value > maxval || value < low { low } else { value };
        let mut t = [0; 3];
        let mut low = near + 1;
        for (i, (basic, slope)) in [(3, 3), (7, 5), (21, 7)].into_iter().enumerate() {
            let start = i as i64 + 2;
            let default = if maxval >= 128 {
                let factor = (maxval.min(4095) + 128) / 256;
                factor * (basic - start) + start + slope * near
            } else {
                (basic / (256 / (maxval + 1)) + slope * near).max(start)
            };
            t[i] = if presets[i + 1] == 0 { clamp(default, low) } else { presets[i + 1] };
            if t[i] < low || t[i] > maxval {
                return Err(damaged());
            }
            low = t[i];
        }
        let reset = if presets[4] == 0 { 64 } else { presets[4] };
        if reset < 3 {
            return Err(damaged());
        }
        let step = 2 * near + 1;
        let range = (maxval + 2 * near) / step + 1;
        let bits = |values: i64| 64 - (values - 1).leading_zeros();
        let bpp = bits(maxval + 1).max(2);
        Ok(Self { near, step, maxval, t, reset, range, qbpp: bits(range), limit: 2 * (bpp + bpp.max(8)) })
    }

    /// The region of a gradient (A.3.3).
    fn quantize(&self, d: i64) -> i64 {
        let size = match d.abs() {
            d if d <= self.near => 0,
            d if d < self.t[0] => 1,
            d if d < self.t[1] => 2,
            d if d < self.t[2] => 3,
            _ => 4,
        };
        size * d.signum()
    }

    /// The sample that a prediction and its error stand for (A.4.5).
    fn reconstruct(&self, predicted: i64, error: i64) -> i64 {
        let mut value = predicted + error * self.step;
        if value < -self.near {
            value += self.range * self.step;
        } else if value > self.maxval + self.near {
            value -= self.range * self.step;
        }
        value.clamp(0, self.maxval)
    }
}

/// Contexts of gradients, and behind them the two of runs.
const REGULAR: usize = 365;

/// What was learnt (A.2.1, A.6).
struct Contexts {
    a: [i64; REGULAR + 2],
    b: [i64; REGULAR],
    c: [i64; REGULAR],
    n: [i64; REGULAR + 2],
    nn: [i64; 2],
}

impl Contexts {
    fn new(limits: &Limits) -> Self {
        let a = ((limits.range + 32) / 64).max(2);
        Self { a: [a; REGULAR + 2], b: [0; REGULAR], c: [0; REGULAR], n: [1; REGULAR + 2], nn: [0; 2] }
    }
}

/// Orders of run lengths (A.2.1).
const J: [u32; 32] =
    [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// The lines of one channel: the one above and the current one, with a guard on both sides.
struct Lane {
    above: Vec<i64>,
    line: Vec<i64>,
}

impl Lane {
    fn neighbours(&self, x: usize) -> [i64; 4] {
        [self.line[x - 1], self.above[x], self.above[x - 1], self.above[x + 1]]
    }
}

struct Scan<'a> {
    bits: Bits<'a>,
    contexts: Contexts,
    limits: Limits,
}

impl Scan<'_> {
    /// Decodes the channels of a scan, line by line or (`together`) sample by sample.
    fn decode(
        &mut self,
        (width, height): (usize, usize),
        channels: &[usize],
        together: bool,
        take: &mut impl FnMut(usize, usize, &[i64]),
    ) -> Result<(), String> {
        let lane = |_| Lane { above: vec![0; width + 2], line: vec![0; width + 2] };
        let mut lanes: Vec<Lane> = channels.iter().map(lane).collect();
        let mut runs = vec![0; lanes.len()];
        for y in 0..height {
            for lane in &mut lanes {
                lane.above[width + 1] = lane.above[width];
                lane.line[0] = lane.above[1];
            }
            if together {
                self.line(&mut lanes, width, &mut runs[0])?;
            } else {
                for (lane, run) in lanes.iter_mut().zip(&mut runs) {
                    self.line(std::slice::from_mut(lane), width, run)?;
                }
            }
            for (lane, &channel) in lanes.iter_mut().zip(channels) {
                take(y, channel, &lane.line[1..=width]);
                std::mem::swap(&mut lane.above, &mut lane.line);
            }
        }
        Ok(())
    }

    fn line(&mut self, lanes: &mut [Lane], width: usize, run: &mut usize) -> Result<(), String> {
        let mut x = 1;
        while x <= width {
            let near = self.limits.near;
            let flat = |lane: &Lane| {
                let [a, b, c, d] = lane.neighbours(x);
                (d - b).abs() <= near && (b - c).abs() <= near && (c - a).abs() <= near
            };
            if !lanes.iter().all(flat) {
                for lane in &mut *lanes {
                    lane.line[x] = self.regular(lane.neighbours(x))?;
                }
                x += 1;
                continue;
            }
            let (end, interrupted) = self.run(x, width, run)?;
            for lane in &mut *lanes {
                let value = lane.line[x - 1];
                lane.line[x..end].fill(value);
            }
            x = end;
            if interrupted {
                let alone = lanes.len() == 1;
                for lane in &mut *lanes {
                    let [a, b, ..] = lane.neighbours(x);
                    lane.line[x] = self.interruption(a, b, alone, *run)?;
                }
                *run = run.saturating_sub(1);
                x += 1;
            }
        }
        Ok(())
    }

    /// Where a run ends, and whether a sample that ends it follows (A.7.1).
    fn run(&mut self, start: usize, width: usize, run: &mut usize) -> Result<(usize, bool), String> {
        let mut x = start;
        while self.bits.read(1)? == 1 {
            let length = (1 << J[*run]).min(width + 1 - x);
            x += length;
            if length == 1 << J[*run] {
                *run = (*run + 1).min(31);
            }
            if x > width {
                return Ok((x, false));
            }
        }
        x += self.bits.read(J[*run])? as usize;
        if x > width { Err(damaged()) } else { Ok((x, true)) }
    }

    /// A number in the limited code of Golomb (A.5.3).
    fn golomb(&mut self, k: u32, limit: u32) -> Result<i64, String> {
        let zeros = self.bits.zeros()?;
        let value = if zeros < limit - self.limits.qbpp - 1 {
            (i64::from(zeros) << k) + self.bits.read(k)?
        } else {
            self.bits.read(self.limits.qbpp)? + 1
        };
        if value > 2 * self.limits.range { Err(damaged()) } else { Ok(value) }
    }

    /// The parameter of the code (A.5.1).
    fn order(n: i64, a: i64) -> Result<u32, String> {
        (0..24).find(|&k| n << k >= a).ok_or_else(damaged)
    }

    /// A sample by its neighbours (A.3 to A.6).
    fn regular(&mut self, [a, b, c, d]: [i64; 4]) -> Result<i64, String> {
        let limits = &self.limits;
        let q = 81 * limits.quantize(d - b) + 9 * limits.quantize(b - c) + limits.quantize(c - a);
        let (sign, q) = if q < 0 { (-1, -q as usize) } else { (1, q as usize) };
        let predicted = match c {
            c if c >= a.max(b) => a.min(b),
            c if c <= a.min(b) => a.max(b),
            c => a + b - c,
        };
        let contexts = &self.contexts;
        let predicted = (predicted + sign * contexts.c[q]).clamp(0, limits.maxval);
        let k = Self::order(contexts.n[q], contexts.a[q])?;
        let turned = limits.near == 0 && k == 0 && 2 * contexts.b[q] <= -contexts.n[q];
        let mapped = self.golomb(k, self.limits.limit)?;
        let error = match (turned, mapped % 2 == 0) {
            (false, true) => mapped / 2,
            (false, false) => -((mapped + 1) / 2),
            (true, true) => -(mapped / 2) - 1,
            (true, false) => (mapped - 1) / 2,
        };
        let limits = &self.limits;
        let Contexts { a, b, c, n, .. } = &mut self.contexts;
        let (a, b, c, n) = (&mut a[q], &mut b[q], &mut c[q], &mut n[q]);
        *b += error * limits.step;
        *a += error.abs();
        if *n == limits.reset {
            *a >>= 1;
            *b >>= 1;
            *n >>= 1;
        }
        *n += 1;
        if *b <= -*n {
            *b = (*b + *n).max(1 - *n);
            *c = (*c - 1).max(-128);
        } else if *b > 0 {
            *b = (*b - *n).min(0);
            *c = (*c + 1).min(127);
        }
        Ok(limits.reconstruct(predicted, sign * error))
    }

    /// The sample that ends a run (A.7.2). Where channels come sample by sample, that they differ is not looked at.
    fn interruption(&mut self, a: i64, b: i64, alone: bool, run: usize) -> Result<i64, String> {
        let same = alone && (a - b).abs() <= self.limits.near;
        let (kind, q) = (i64::from(same), REGULAR + usize::from(same));
        let contexts = &self.contexts;
        let temp = contexts.a[q] + if same { contexts.n[q] >> 1 } else { 0 };
        let k = Self::order(contexts.n[q], temp)?;
        let mapped = self.golomb(k, self.limits.limit - J[run] - 1)?;
        let odd = (mapped + kind) & 1;
        let size = (mapped + kind + odd) / 2;
        let contexts = &mut self.contexts;
        let negative = k != 0 || 2 * contexts.nn[q - REGULAR] >= contexts.n[q];
        let error = if negative == (odd == 1) { -size } else { size };
        let nn = &mut contexts.nn[q - REGULAR];
        *nn += i64::from(error < 0);
        contexts.a[q] += (mapped + 1 - kind) >> 1;
        if contexts.n[q] == self.limits.reset {
            contexts.a[q] >>= 1;
            contexts.n[q] >>= 1;
            *nn >>= 1;
        }
        contexts.n[q] += 1;
        let sign = if !same && a > b { -1 } else { 1 };
        Ok(self.limits.reconstruct(if same { a } else { b }, sign * error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One tile of a slide, from the Python package wsidicom-data.
    fn tile(name: &str) -> Option<Vec<u8>> {
        Some(std::fs::read(microtome_testkit::data("codec/wsidicom-data")?.join(name)).unwrap())
    }

    #[test]
    fn the_tile_of_wsidicom_is_exact() {
        for (name, components, sample, bytes) in [
            ("GRAYSCALE-8", 1, SampleType::U8, 1),
            ("RGB-8", 3, SampleType::U8, 1),
            ("GRAYSCALE-16", 1, SampleType::U16, 2),
        ] {
            let Some(truth) = tile(&format!("Explicit_VR_Little_Endian-{name}.raw")) else { return };
            let expected = Expected { width: 240, height: 240, components, sample };
            let stream = tile(&format!("JPEG-LS_Lossless_Image_Compression-{name}.jls")).unwrap();
            assert!(decode(&stream, expected).unwrap() == truth, "{name}");
            let near = tile(&format!("JPEG-LS_Lossy_(Near-Lossless)_Image_Compression-{name}.jls")).unwrap();
            let found = decode(&near, expected).unwrap();
            let value = |raw: &[u8]| raw.iter().rev().fold(0_i64, |value, &byte| value << 8 | i64::from(byte));
            let pairs = found.chunks(bytes).zip(truth.chunks(bytes));
            let worst = pairs.map(|(a, b)| (value(a) - value(b)).abs()).max().unwrap();
            eprintln!("{name}: off by {worst} at most");
            assert!(worst > 0 && worst < 20);
            // Cut off, it is an error and no picture.
            for length in (0..stream.len()).step_by(997) {
                decode(&stream[..length], expected).unwrap_err();
            }
        }
    }

    #[test]
    fn damage_is_an_error_or_other_pixels() {
        let Some(stream) = tile("JPEG-LS_Lossless_Image_Compression-RGB-8.jls") else { return };
        let expected = Expected { width: 240, height: 240, components: 3, sample: SampleType::U8 };
        let mut read = 0;
        let header = 0..120;
        for at in header.chain((120..stream.len()).step_by(1999)) {
            let mut stream = stream.clone();
            stream[at] ^= 1 << (at % 8);
            read += u32::from(decode(&stream, expected).is_ok());
        }
        eprintln!("{read} damaged streams could be read");
    }
}
