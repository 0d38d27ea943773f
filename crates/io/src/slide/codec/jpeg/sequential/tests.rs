//! Streams whose coefficients are known, against the picture as the formulas make it, pixel by pixel.

use proptest::prelude::*;

use super::*;
use crate::slide::codec::jpeg::EOI;

/// A picture as its coefficients, and how they are coded.
#[derive(Debug, Clone)]
struct Coding {
    width: usize,
    height: usize,
    /// Blocks of a unit, from left to right and from top to bottom, for each channel.
    factors: Vec<(usize, usize)>,
    interval: usize,
    /// Which channels each scan has.
    scans: Vec<Vec<usize>>,
    /// Bits of a code for coefficients: 8, or more than tables look at.
    code_bits: usize,
    rgb: bool,
    seed: u64,
}

/// Coefficients of a block, in the order of the stream.
type Block = [i16; 64];

struct Plane {
    /// In a row, as far as units of all channels reach.
    across: usize,
    blocks: Vec<Block>,
}

impl Coding {
    fn most(&self) -> (usize, usize) {
        (self.factors.iter().map(|f| f.0).max().unwrap(), self.factors.iter().map(|f| f.1).max().unwrap())
    }

    /// Blocks of a unit.
    fn unit(&self, channel: usize) -> (usize, usize) {
        if self.factors.len() == 1 { (1, 1) } else { self.factors[channel] }
    }

    /// Pixels that a sample of the channel stands for.
    fn ratio(&self, channel: usize) -> (usize, usize) {
        if self.factors.len() == 1 {
            return (1, 1);
        }
        let (most, (x, y)) = (self.most(), self.factors[channel]);
        (most.0 / x, most.1 / y)
    }

    fn size(&self, channel: usize) -> (usize, usize) {
        let (x, y) = self.ratio(channel);
        (self.width.div_ceil(x), self.height.div_ceil(y))
    }

    fn units(&self) -> (usize, usize) {
        let (x, y) = if self.factors.len() == 1 { (1, 1) } else { self.most() };
        (self.width.div_ceil(8 * x), self.height.div_ceil(8 * y))
    }

    fn planes(&self) -> Vec<Plane> {
        let mut state = self.seed;
        let mut below = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % bound) as i16
        };
        let (columns, rows) = self.units();
        let plane = |channel: usize| {
            let (x, y) = self.unit(channel);
            let block = |_| {
                let mut block = [0; 64];
                block[0] = below(400) - 200;
                // A third flat, a third with few coefficients, a third with many.
                for _ in 0..[0, 3, 60][below(3) as usize] {
                    block[1 + below(63) as usize] = [below(3) - 1, below(41) - 20][below(2) as usize];
                }
                block
            };
            Plane { across: columns * x, blocks: (0..columns * x * rows * y).map(block).collect() }
        };
        (0..self.factors.len()).map(plane).collect::<Vec<_>>()
    }

    fn stream(&self, planes: &[Plane]) -> Vec<u8> {
        let mut out = vec![0xff, 0xd8];
        let mut segment = |marker: u8, content: &[u8]| {
            out.extend([0xff, marker]);
            out.extend((content.len() as u16 + 2).to_be_bytes());
            out.extend(content);
        };
        if self.rgb {
            segment(APP14, b"Adobe\0\x64\0\0\0\0\0");
        }
        segment(DQT, &[&[0x01][..], &STEPS].concat());
        let mut dc = [0; 17];
        dc[4] = 12;
        segment(DHT, &[&dc[..], &(0..12).collect::<Vec<u8>>()].concat());
        let mut ac = [0; 17];
        (ac[0], ac[self.code_bits]) = (0x11, 162);
        segment(DHT, &[&ac[..], &symbols()].concat());
        let mut frame = vec![8];
        frame.extend([(self.height as u16).to_be_bytes(), (self.width as u16).to_be_bytes()].concat());
        frame.push(self.factors.len() as u8);
        for (channel, (x, y)) in self.factors.iter().enumerate() {
            frame.extend([channel as u8 + 1, (x << 4 | y) as u8, 1]);
        }
        segment(0xc1, &frame);
        for scan in &self.scans {
            let mut segment = |marker: u8, content: &[u8]| {
                out.extend([0xff, marker]);
                out.extend((content.len() as u16 + 2).to_be_bytes());
                out.extend(content);
            };
            segment(DRI, &(self.interval as u16).to_be_bytes());
            let mut head = vec![scan.len() as u8];
            head.extend(scan.iter().flat_map(|&channel| [channel as u8 + 1, 0x01]));
            head.extend([0, 63, 0]);
            segment(SOS, &head);
            self.code(scan, planes, &mut out);
        }
        out.extend([0xff, EOI]);
        out
    }

    fn code(&self, scan: &[usize], planes: &[Plane], out: &mut Vec<u8>) {
        let (columns, rows) = match *scan {
            [only] => {
                let (width, height) = self.size(only);
                (width.div_ceil(8), height.div_ceil(8))
            }
            _ => self.units(),
        };
        let mut bits = Writer::default();
        let mut means = [0; 3];
        for unit in 0..columns * rows {
            if self.interval > 0 && unit > 0 && unit % self.interval == 0 {
                std::mem::take(&mut bits).finish(out);
                out.extend([0xff, 0xd0 + ((unit / self.interval - 1) % 8) as u8]);
                means = [0; 3];
            }
            for &channel in scan {
                let (x, y) = if scan.len() == 1 { (1, 1) } else { self.unit(channel) };
                for (row, column) in (0..y).flat_map(|row| (0..x).map(move |column| (row, column))) {
                    let at = (unit / columns * y + row) * planes[channel].across + unit % columns * x + column;
                    self.block(&planes[channel].blocks[at], &mut means[channel], &mut bits);
                }
            }
        }
        bits.finish(out);
    }

    fn block(&self, block: &Block, mean: &mut i16, bits: &mut Writer) {
        let difference = block[0] - *mean;
        *mean = block[0];
        bits.put(size(difference), 4);
        bits.value(difference);
        let symbol = |run: usize, value: i16, bits: &mut Writer| {
            let wanted = (run << 4) as u8 | size(value) as u8;
            bits.put(symbols().iter().position(|&symbol| symbol == wanted).unwrap() as u32, self.code_bits as u32);
            bits.value(value);
        };
        let mut run = 0;
        for &value in &block[1..] {
            if value == 0 {
                run += 1;
                continue;
            }
            while run > 15 {
                symbol(15, 0, bits);
                run -= 16;
            }
            symbol(run, value, bits);
            run = 0;
        }
        if run > 0 {
            symbol(0, 0, bits);
        }
    }

    /// The picture as the formulas make it.
    fn picture(&self, planes: &[Plane]) -> Vec<u8> {
        let steps: [i16; 64] = std::array::from_fn(|at| {
            let number = (0..64).find(|&number| bits::place(number) == at).unwrap();
            STEPS[number].into()
        });
        let samples: Vec<Vec<[u8; 64]>> = planes
            .iter()
            .map(|plane| {
                let samples = |block: &Block| {
                    let mut placed = [0; 64];
                    (0..64).for_each(|number| placed[bits::place(number)] = block[number]);
                    dct::tests::reference(&placed, &steps)
                };
                plane.blocks.iter().map(samples).collect()
            })
            .collect();
        let sample = |channel: usize, x: usize, y: usize| -> i32 {
            let across = planes[channel].across;
            samples[channel][y / 8 * across + x / 8][y % 8 * 8 + x % 8].into()
        };
        let pixel = |channel: usize, x: usize, y: usize| -> i32 {
            let ((width, height), ratio) = (self.size(channel), self.ratio(channel));
            let (i, j) = (x / ratio.0, y / ratio.1);
            let far = if y.is_multiple_of(2) { j.saturating_sub(1) } else { (j + 1).min(height - 1) };
            let beside = if x.is_multiple_of(2) { i.checked_sub(1) } else { Some(i + 1).filter(|&i| i < width) };
            match ratio {
                (1, 2) => (3 * sample(channel, i, j) + sample(channel, i, far) + 1 + y as i32 % 2) >> 2,
                (2, 1) if width > 2 => match beside {
                    Some(beside) => (3 * sample(channel, i, j) + sample(channel, beside, j) + 1 + x as i32 % 2) >> 2,
                    None => sample(channel, i, j),
                },
                (2, 2) if width > 2 => {
                    let sum = |i: usize| 3 * sample(channel, i, j) + sample(channel, i, far);
                    (3 * sum(i) + sum(beside.unwrap_or(i)) + 8 - x as i32 % 2) >> 4
                }
                _ => sample(channel, i, j),
            }
        };
        let places = (0..self.height).flat_map(|y| (0..self.width).map(move |x| (x, y)));
        places
            .flat_map(|(x, y)| {
                let channels: Vec<i32> = (0..self.factors.len()).map(|channel| pixel(channel, x, y)).collect();
                match channels[..] {
                    [luma, blue, red] if !self.rgb => {
                        let (blue, red) = (blue - 128, red - 128);
                        let green = (-22_554 * blue - 46_802 * red + 32_768) >> 16;
                        let (red, blue) = ((91_881 * red + 32_768) >> 16, (116_130 * blue + 32_768) >> 16);
                        vec![luma + red, luma + green, luma + blue]
                    }
                    _ => channels.clone(),
                }
            })
            .map(|value| value.clamp(0, 255) as u8)
            .collect()
    }

    fn header(&self) -> Header {
        Header { width: self.width as u16, height: self.height as u16, components: self.factors.len() as u8 }
    }
}

/// Steps of quantisation, in the order of the stream.
static STEPS: [u8; 64] = {
    let mut steps = [0; 64];
    let mut at = 0;
    while at < 64 {
        steps[at] = 4 + at as u8 / 4;
        at += 1;
    }
    steps
};

/// All symbols that coefficients may have.
fn symbols() -> Vec<u8> {
    let values = (0..16).flat_map(|run| (1..=10).map(move |size| run << 4 | size));
    [0x00, 0xf0].into_iter().chain(values).collect()
}

fn size(value: i16) -> u32 {
    16 - value.unsigned_abs().leading_zeros()
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    buffer: u64,
    count: u32,
}

impl Writer {
    fn put(&mut self, value: u32, bits: u32) {
        self.buffer = self.buffer << bits | u64::from(value);
        self.count += bits;
        while self.count >= 8 {
            self.count -= 8;
            let byte = (self.buffer >> self.count) as u8;
            self.bytes.push(byte);
            if byte == 0xff {
                self.bytes.push(0);
            }
        }
    }

    fn value(&mut self, value: i16) {
        let bits = size(value);
        let raw = if value < 0 { i32::from(value) + (1 << bits) - 1 } else { value.into() };
        self.put(raw as u32, bits);
    }

    fn finish(mut self, out: &mut Vec<u8>) {
        if self.count > 0 {
            let left = 8 - self.count;
            self.put((1 << left) - 1, left);
        }
        out.extend(self.bytes);
    }
}

fn coding() -> impl Strategy<Value = Coding> {
    let factors = prop_oneof![
        1 => (1..=4_usize, 1..=4_usize).prop_map(|one| vec![one]),
        4 => prop::sample::select(vec![(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4), (4, 2), (2, 4)])
            .prop_map(|luma| vec![luma, (1, 1), (1, 1)]),
        2 => prop::sample::select(vec![
            vec![(2, 2), (2, 1), (1, 2)], vec![(1, 1), (2, 2), (1, 2)], vec![(2, 2), (1, 1), (2, 1)], vec![(1, 4), (1, 2), (1, 1)],
            vec![(4, 1), (2, 1), (2, 1)], vec![(3, 1), (1, 1), (3, 1)], vec![(2, 2), (2, 2), (1, 1)],
        ]),
    ];
    let size = prop_oneof![3 => 1..50_usize, 1 => prop::sample::select(vec![64_usize, 97, 128])];
    let scans =
        prop::sample::select(vec![vec![vec![0, 1, 2]], vec![vec![2], vec![0], vec![1]], vec![vec![1], vec![0, 2]]]);
    (
        size.clone(),
        size,
        factors,
        prop::sample::select(vec![0_usize, 0, 1, 2, 5]),
        scans,
        any::<bool>(),
        any::<bool>(),
        any::<u64>(),
    )
        .prop_map(|(width, height, factors, interval, scans, long, rgb, seed)| {
            let grey = factors.len() == 1;
            Coding {
                width,
                height,
                factors,
                interval,
                scans: if grey { vec![vec![0]] } else { scans },
                code_bits: if long { 12 } else { 8 },
                rgb: rgb && !grey,
                seed,
            }
        })
}

fn all_kernels() -> Vec<Kernels> {
    let mut all = vec![Kernels::Portable];
    if !matches!(Kernels::best(), Kernels::Portable) {
        all.push(Kernels::best());
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn pictures_are_what_the_formulas_make(coding in coding()) {
        let planes = coding.planes();
        let (stream, right) = (coding.stream(&planes), coding.picture(&planes));
        for kernels in all_kernels() {
            let mut samples = vec![99; right.len()];
            let done = decode_with(kernels, &stream, coding.header(), &mut samples);
            prop_assert_eq!(done, Ok(()), "{:?}", kernels);
            prop_assert!(samples == right, "{:?}", kernels);
        }
    }

    /// A stream that was cut off or changed is an error, or decodes to something; it never panics.
    #[test]
    fn damaged_streams_end(
        coding in coding(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut stream = coding.stream(&coding.planes());
        let whole = changes.is_empty();
        for (at, value) in changes {
            let at = at.index(stream.len());
            stream[at] = value;
        }
        let cut = cut.map(|cut| cut.index(stream.len()));
        stream.truncate(cut.unwrap_or(stream.len()));
        let mut samples = vec![99; coding.width * coding.height * coding.factors.len()];
        let done = decode_with(Kernels::best(), &stream, coding.header(), &mut samples);
        prop_assert!(!whole || done.is_err() == cut.is_some(), "{:?}: {:?}", cut, done);
    }
}

fn simple() -> Coding {
    Coding {
        width: 100,
        height: 60,
        factors: vec![(2, 2), (1, 1), (1, 1)],
        interval: 3,
        scans: vec![vec![0, 1, 2]],
        code_bits: 8,
        rgb: false,
        seed: 5,
    }
}

fn refusal(stream: &[u8], header: Header) -> String {
    let mut samples = vec![0; header.samples()];
    decode_with(Kernels::best(), stream, header, &mut samples).unwrap_err()
}

#[test]
fn what_is_wrong_is_said() {
    let coding = simple();
    let stream = coding.stream(&coding.planes());
    let find = |what: &[u8]| stream.windows(what.len()).position(|bytes| bytes == what).unwrap();
    let broken = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut stream = stream.clone();
        change(&mut stream);
        refusal(&stream, coding.header())
    };
    let says = |found: String, words: &str| assert!(found.starts_with("JPEG: ") && found.contains(words), "{found}");
    let frame = find(&[0xff, 0xc1]);
    let scan = find(&[0xff, SOS]);
    let restart = find(&[0xff, 0xd0]);
    says(broken(&|stream| stream[restart + 1] = 0xd3), "restart marker 0 is missing, marker 0xd3 is in its place");
    says(broken(&|stream| stream[restart + 1] = EOI), "unit 3 of 7 in row 0 of 4: restart marker 0 is missing");
    says(broken(&|stream| drop(stream.drain(restart - 9..restart))), "of 7 in row 0 of 4: ");
    let ones = [0xff, 0, 0xff, 0, 0xff, 0];
    says(broken(&|stream| stream[restart - 6..restart].copy_from_slice(&ones)), "no Huffman code of its table");
    says(broken(&|stream| stream[frame + 5..frame + 9].fill(0)), "holds 0 x 0 pixels");
    says(broken(&|stream| stream[frame + 6] = 61), "holds 100 x 61 pixels");
    says(broken(&|stream| stream[frame + 11] = 0x50), "sampling factors of 5 and 0 do not exist");
    says(broken(&|stream| stream[frame + 11] = 0x44), "units of 18 blocks");
    says(broken(&|stream| (stream[frame + 11], stream[frame + 14]) = (0x31, 0x21)), "cannot be read");
    says(broken(&|stream| stream[frame + 12] = 2), "quantisation table 2 of channel 1 is missing");
    says(broken(&|stream| stream[frame + 13] = 1), "two channels have the number 1");
    says(broken(&|stream| stream[scan + 6] = 0x21), "Huffman table of means 2 of channel 1 is missing");
    says(broken(&|stream| stream[scan + 6] = 0x0f), "Huffman table of coefficients 15 of channel 1 is missing");
    says(broken(&|stream| stream[scan + 5] = 9), "channel 9, which the frame does not have");
    says(broken(&|stream| stream[scan + 7] = 1), "channel 1 is coded twice");
    says(broken(&|stream| stream[scan + 4] = 2), "the scan header is not as long");
    says(broken(&|stream| drop(stream.drain(frame..frame + 19))), "a scan comes before its frame header");
    says(broken(&|stream| drop(stream.splice(2..2, [0xff, DQT, 0, 3, 0x20]))), "has the precision 2");
    says(broken(&|stream| drop(stream.splice(2..2, [0xff, DHT, 0, 3, 0x20]))), "is of the class 2");
    says(broken(&|stream| drop(stream.splice(2..2, [0xff, DRI, 0, 3, 1]))), "is not two bytes");
    says(broken(&|stream| stream.truncate(stream.len() - 2)), "its coded data end early");
    // A channel that no scan has.
    let coding = Coding { scans: vec![vec![0], vec![2]], ..simple() };
    says(refusal(&coding.stream(&coding.planes()), coding.header()), "before all channels have been coded");
}

/// Nothing is read behind the interval that a marker ends: units that it lacks are an error, whatever follows.
#[test]
fn an_interval_that_ends_early_is_not_filled_up() {
    let coding = Coding { interval: 7, ..simple() };
    let stream = coding.stream(&coding.planes());
    let restart = stream.windows(2).position(|bytes| bytes == [0xff, 0xd0]).unwrap();
    for gone in 1..40 {
        let mut short = stream.clone();
        short.drain(restart - gone..restart);
        let found = refusal(&short, coding.header());
        assert!(found.contains("in row 0 of 4: "), "{gone}: {found}");
    }
}
