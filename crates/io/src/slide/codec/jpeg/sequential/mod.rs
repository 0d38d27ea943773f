//! Baseline and extended sequential JPEG of 8 bits in Huffman codes, sample for sample what libjpeg-turbo decodes by default.
//!
//! Bits become coefficients (`bits`, `huffman`), these samples (`dct`), and samples pixels (`rows`); `scan` says which blocks lie where. `avx2`
//! has the parts that take the time for x86-64 processors with AVX2.
//!
//! A picture whose channels come in one scan, as all slides have it, is decoded by rows of units (MCUs). Two of them are kept at most,
//! since chroma at half the height takes from the row above and below; what is done is written into the picture, which is written once.
//! Where each channel has a scan of its own, the samples of the whole picture are kept.
//!
//! A stream that breaks off, leaves its codes, or lacks a restart marker is an error that names the unit. libjpeg would go on with grey.
//!
//! Source: ITU-T T.81.

// The loops must be compiled for the processor that they run on, as part of the function that is.
#![allow(clippy::inline_always)]

#[cfg(target_arch = "x86_64")]
mod avx2;
mod bits;
mod dct;
mod huffman;
mod rows;
mod scan;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::rc::Rc;

use self::bits::Bits;
use self::huffman::{Class, Fault, Table};
use self::scan::{Part, Units};
use super::{APP0, DRI, Header, SOS, Segment, Segments, is_frame};

const DHT: u8 = 0xc4;
const DQT: u8 = 0xdb;
const APP14: u8 = 0xee;

impl<'a> Segment<'a> {
    /// What comes behind marker and length.
    fn content(&self) -> &'a [u8] {
        self.bytes.get(4..).unwrap_or_default()
    }
}

/// Decodes a complete stream whose header is `header` into as many samples as that says. Every one of them is written, or none counts.
///
/// # Errors
/// A clause that says what is wrong with the stream.
pub(super) fn decode_into(stream: &[u8], header: Header, samples: &mut [u8]) -> Result<(), String> {
    decode_with(Kernels::best(), stream, header, samples)
}

fn decode_with(kernels: Kernels, stream: &[u8], header: Header, samples: &mut [u8]) -> Result<(), String> {
    let mut decoder = Decoder { kernels, tables: Tables::default(), frame: None };
    let mut segments = Segments::new(stream)?;
    while let Some(segment) = segments.next() {
        let segment = segment?;
        match segment.marker {
            marker if is_frame(marker) => {
                if decoder.frame.is_some() {
                    return Err("JPEG: there are two frame headers".into());
                }
                decoder.frame = Some(Frame::read(&segment, header)?);
            }
            SOS => match decoder.scan(&segment, stream, samples)? {
                Next::Done => return Ok(()),
                Next::Segments(at) => segments = Segments { data: stream, at, done: false },
            },
            _ => decoder.tables.read(&segment)?,
        }
    }
    Err("JPEG: the stream ends before all channels have been coded".into())
}

/// Which instructions the loops are made of.
#[derive(Debug, Clone, Copy)]
enum Kernels {
    /// Those that every processor has for which this is compiled.
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
}

/// Calls the same function of `avx2` or of a portable module.
macro_rules! either {
    ($kernels:expr, $name:ident, $portable:expr, $($argument:expr),*) => {
        match $kernels {
            Kernels::Portable => $portable($($argument),*),
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx2(avx2) => avx2.$name($($argument),*),
        }
    };
}

impl Kernels {
    fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = avx2::Avx2::detect() {
            return Self::Avx2(avx2);
        }
        Self::Portable
    }

    fn units(self, bits: &mut Bits, parts: &mut [Part<'_>], units: Units) -> Result<(), (Fault, usize)> {
        fn portable(bits: &mut Bits, parts: &mut [Part<'_>], units: Units) -> Result<(), (Fault, usize)> {
            scan::decode_units(bits, parts, units, dct::inverse)
        }
        either!(self, units, portable, bits, parts, units)
    }
}

/// What segments say before scans.
#[derive(Debug, Default)]
struct Tables {
    quantisation: [Option<[i16; 64]>; 4],
    dc: [Option<Rc<Table>>; 4],
    ac: [Option<Rc<Table>>; 4],
    /// Units between restart markers; 0 if there are none.
    interval: usize,
    /// True if there is a JFIF segment.
    jfif: bool,
    /// The transform that an Adobe segment states.
    adobe: Option<u8>,
}

impl Tables {
    fn read(&mut self, segment: &Segment<'_>) -> Result<(), String> {
        let content = segment.content();
        match segment.marker {
            DQT => self.quantisation(content)?,
            DHT => self.huffman(content)?,
            DRI => match *content {
                [high, low] => self.interval = u16::from_be_bytes([high, low]).into(),
                _ => return Err("JPEG: the restart interval is not two bytes".into()),
            },
            APP0 => self.jfif |= content.len() >= 14 && content.starts_with(b"JFIF\0"),
            APP14 if content.len() >= 12 && content.starts_with(b"Adobe") => self.adobe = Some(content[11]),
            _ => {}
        }
        Ok(())
    }

    fn quantisation(&mut self, mut content: &[u8]) -> Result<(), String> {
        while let Some((&head, rest)) = content.split_first() {
            let bytes = match head >> 4 {
                0 => 1,
                1 => 2,
                precision => return Err(format!("JPEG: a quantisation table has the precision {precision}")),
            };
            let steps = rest.get(..64 * bytes).ok_or("JPEG: a segment of quantisation tables is too short")?;
            let number = usize::from(head & 15);
            let table = self.quantisation.get_mut(number);
            let table = table.ok_or_else(|| format!("JPEG: there is no quantisation table {number}"))?.insert([0; 64]);
            for (at, step) in steps.chunks_exact(bytes).enumerate() {
                // Steps above 32767 wrap, and so do products with them: of these only the lower half counts.
                table[bits::place(at)] = step.iter().fold(0, |step, &byte| step << 8 | i16::from(byte));
            }
            content = &rest[64 * bytes..];
        }
        Ok(())
    }

    fn huffman(&mut self, mut content: &[u8]) -> Result<(), String> {
        while let Some((&head, rest)) = content.split_first() {
            let (class, tables) = match head >> 4 {
                0 => (Class::Dc, &mut self.dc),
                1 => (Class::Ac, &mut self.ac),
                class => return Err(format!("JPEG: a Huffman table is of the class {class}")),
            };
            let number = usize::from(head & 15);
            let table = tables.get_mut(number).ok_or_else(|| format!("JPEG: there is no Huffman table {number}"))?;
            let (made, length) = huffman::table(class, rest)?;
            *table = Some(made);
            content = &rest[length..];
        }
        Ok(())
    }
}

/// How the samples of a component become as many as there are pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Enlargement {
    /// They are as many.
    None,
    /// Half as many from left to right.
    Across,
    /// Half as many from top to bottom.
    Down,
    /// Both.
    Both,
    /// Each stands for so many pixels, from left to right and from top to bottom.
    Repeat(usize, usize),
}

impl Enlargement {
    /// By libjpeg's rules: what is not half, and what is two samples wide or less, is repeated.
    fn of(ratio: (usize, usize), width: usize) -> Self {
        match ratio {
            (1, 1) => Self::None,
            (1, 2) => Self::Down,
            (2, 1) if width > 2 => Self::Across,
            (2, 2) if width > 2 => Self::Both,
            (across, down) => Self::Repeat(across, down),
        }
    }

    /// True if a row takes from the one above or below.
    fn needs_neighbours(self) -> bool {
        matches!(self, Self::Down | Self::Both)
    }
}

/// A channel.
#[derive(Debug)]
struct Component {
    id: u8,
    /// Blocks of a unit, from left to right and from top to bottom.
    across: usize,
    down: usize,
    /// Its quantisation table.
    table: usize,
    /// Samples that belong to the picture.
    width: usize,
    height: usize,
    enlargement: Enlargement,
    /// Rows of the picture that a row of samples stands for.
    rows: usize,
    /// The samples of the rows of units that are kept, by turns in the same places.
    samples: Vec<u8>,
    /// Samples from one row to the next.
    stride: usize,
    /// Room for a row that is made of samples.
    row: Vec<u8>,
    sums: Vec<u16>,
    /// True if a scan has had it.
    coded: bool,
}

impl Component {
    /// A row of samples. Those above the first and below the last are these.
    fn samples(&self, row: usize) -> &[u8] {
        let kept = self.samples.len() / self.stride;
        let row = row.min(self.height - 1) % kept;
        &self.samples[row * self.stride..row * self.stride + self.width]
    }

    /// Makes a row of the picture of samples, if it is not one of them.
    fn enlarge(&mut self, kernels: Kernels, row: usize) {
        let at = row / self.rows;
        // The neighbour that is nearer to the row of the picture.
        let (far, bias) = if row.is_multiple_of(2) { (at.saturating_sub(1), 1) } else { (at + 1, 2) };
        let (mut made, mut sums) = (std::mem::take(&mut self.row), std::mem::take(&mut self.sums));
        let near = self.samples(at);
        match self.enlargement {
            Enlargement::None => {}
            Enlargement::Across => either!(kernels, widen, rows::widen, near, &mut made),
            Enlargement::Down => either!(kernels, between, rows::between, near, self.samples(far), bias, &mut made),
            Enlargement::Both => {
                either!(kernels, sums, rows::sums, near, self.samples(far), &mut sums);
                either!(kernels, widen_sums, rows::widen_sums, &sums, &mut made);
            }
            Enlargement::Repeat(across, _) => rows::repeat(near, across, &mut made),
        }
        (self.row, self.sums) = (made, sums);
    }

    /// A row of the picture, which has been [enlarged](Self::enlarge), of so many pixels.
    fn row(&self, row: usize, width: usize) -> &[u8] {
        if self.enlargement == Enlargement::None { self.samples(row) } else { &self.row[..width] }
    }
}

/// What the frame header says.
#[derive(Debug)]
struct Frame {
    width: usize,
    height: usize,
    /// Blocks of a unit of all channels, from left to right and from top to bottom.
    across: usize,
    down: usize,
    components: Vec<Component>,
    /// True once samples have their place, and whether they have it for the whole picture.
    whole: Option<bool>,
    /// True once a scan has come, and whether channels are luma and chroma.
    colors: Option<bool>,
}

/// Blocks that a unit of several channels may hold (T.81, B.2.3).
const BLOCKS: usize = 10;

impl Frame {
    fn read(segment: &Segment<'_>, expected: Header) -> Result<Self, String> {
        let header = super::frame(segment)?;
        if header != expected || header.width == 0 || header.height == 0 {
            return Err(format!("JPEG: holds {} x {} pixels", header.width, header.height));
        }
        let (width, height) = (usize::from(header.width), usize::from(header.height));
        let parameters = segment.content().get(6..).unwrap_or_default();
        if parameters.len() != 3 * usize::from(header.components) {
            return Err("JPEG: the frame header is not as long as its channels need".into());
        }
        let factors = |parameters: &[u8]| (usize::from(parameters[1] >> 4), usize::from(parameters[1] & 15));
        let (mut across, mut down, mut blocks) = (1, 1, 0);
        for parameters in parameters.chunks_exact(3) {
            let (x, y) = factors(parameters);
            if !(1..=4).contains(&x) || !(1..=4).contains(&y) {
                return Err(format!("JPEG: sampling factors of {x} and {y} do not exist"));
            }
            (across, down, blocks) = (across.max(x), down.max(y), blocks + x * y);
        }
        // Blocks of one channel are not grouped, whatever its factors are (T.81, A.2.2).
        let alone = header.components == 1;
        if alone {
            (across, down) = (1, 1);
        } else if blocks > BLOCKS {
            return Err(format!("JPEG: units of {blocks} blocks, where {BLOCKS} is the most"));
        }
        let mut components: Vec<Component> = Vec::new();
        for parameters in parameters.chunks_exact(3) {
            let (x, y) = if alone { (1, 1) } else { factors(parameters) };
            if across % x != 0 || down % y != 0 {
                return Err(format!(
                    "JPEG: a channel with {x} x {y} samples for {across} x {down} pixels cannot be read"
                ));
            }
            if components.iter().any(|component| component.id == parameters[0]) {
                return Err(format!("JPEG: two channels have the number {}", parameters[0]));
            }
            let ratio = (across / x, down / y);
            let (width, height) = (width.div_ceil(ratio.0), height.div_ceil(ratio.1));
            let enlargement = Enlargement::of(ratio, width);
            let made = if enlargement == Enlargement::None { 0 } else { width * ratio.0 };
            components.push(Component {
                id: parameters[0],
                across: x,
                down: y,
                table: parameters[2].into(),
                width,
                height,
                enlargement,
                rows: ratio.1,
                samples: Vec::new(),
                stride: 0,
                row: vec![0; made],
                sums: vec![0; if enlargement == Enlargement::Both { width } else { 0 }],
                coded: false,
            });
        }
        Ok(Self { width, height, across, down, components, whole: None, colors: None })
    }

    /// Units of all channels, from left to right and from top to bottom.
    fn units(&self) -> (usize, usize) {
        (self.width.div_ceil(8 * self.across), self.height.div_ceil(8 * self.down))
    }

    /// Makes room for samples: of the whole picture, or of as many rows of units as are needed at a time.
    fn make_room(&mut self, whole: bool) {
        let (columns, rows) = self.units();
        let neighbours = self.components.iter().any(|component| component.enlargement.needs_neighbours());
        let kept = match (whole, neighbours) {
            (true, _) => rows,
            (false, true) => rows.min(2),
            (false, false) => 1,
        };
        for component in &mut self.components {
            component.stride = columns * component.across * 8;
            component.samples = vec![0; kept * component.down * 8 * component.stride];
        }
        self.whole = Some(whole);
    }

    /// Writes rows of the picture.
    fn write(&mut self, kernels: Kernels, colors: bool, rows: Range<usize>, samples: &mut [u8]) {
        let length = self.width * self.components.len();
        for (at, pixels) in rows.clone().zip(samples[rows.start * length..rows.end * length].chunks_exact_mut(length)) {
            for component in &mut self.components {
                component.enlarge(kernels, at);
            }
            match &self.components[..] {
                [first, second, third] => {
                    let channels = [first, second, third].map(|component| component.row(at, self.width));
                    if colors {
                        either!(kernels, colors, rows::colors, channels, pixels);
                    } else {
                        either!(kernels, interleave, rows::interleave, channels, pixels);
                    }
                }
                [only] => pixels.copy_from_slice(only.row(at, self.width)),
                _ => unreachable!("streams of other channels are refused before"),
            }
        }
    }
}

/// What comes after a scan.
enum Next {
    /// Nothing: the picture is written.
    Done,
    /// More segments, from here.
    Segments(usize),
}

struct Decoder {
    kernels: Kernels,
    tables: Tables,
    frame: Option<Frame>,
}

/// What a scan says of one of its channels.
struct Coded {
    /// Which of the frame's.
    component: usize,
    quantisation: [i16; 64],
    dc: Rc<Table>,
    ac: Rc<Table>,
    mean: i32,
}

impl Decoder {
    /// Decodes a scan, and writes the picture if this was the last channel.
    fn scan(&mut self, segment: &Segment<'_>, stream: &[u8], samples: &mut [u8]) -> Result<Next, String> {
        let Self { kernels, tables, frame: Some(frame) } = self else {
            return Err("JPEG: a scan comes before its frame header".into());
        };
        let mut coded = coded(tables, frame, segment)?;
        // As the first scan finds them: a mark between scans changes nothing of what stands before.
        let colors = frame.colors.unwrap_or_else(|| is_luma_and_chroma(tables, frame));
        frame.colors = Some(colors);
        let whole = frame.whole.unwrap_or(coded.len() < frame.components.len());
        if frame.whole.is_none() {
            frame.make_room(whole);
        }
        // The blocks of a channel that is alone are not grouped, and only those are coded that hold pixels.
        let alone = coded.len() == 1;
        let (columns, rows) = match &coded[..] {
            [only] => {
                let component = &frame.components[only.component];
                (component.width.div_ceil(8), component.height.div_ceil(8))
            }
            _ => frame.units(),
        };
        let mut bits = Bits::default();
        let fault = |fault: Fault, column: usize, row: usize| {
            format!("JPEG: unit {column} of {columns} in row {row} of {rows}: {}", fault.says())
        };
        let (mut end, mut marker) =
            bits.start(stream, segment.start + segment.bytes.len()).map_err(|found| fault(found, 0, 0))?;
        let (mut left, mut restarts) = (tables.interval, 0_u8);
        let neighbours = frame.components.iter().any(|component| component.enlargement.needs_neighbours());
        for row in 0..rows {
            let mut at = 0;
            while at < columns {
                if tables.interval > 0 && left == 0 {
                    if !bits.enough() {
                        return Err(fault(Fault::Ends, at, row));
                    }
                    if marker != 0xd0 + restarts {
                        let due = format!("restart marker {restarts} is missing, marker {marker:#04x} is in its place");
                        return Err(format!("JPEG: unit {at} of {columns} in row {row} of {rows}: {due}"));
                    }
                    (end, marker) =
                        bits.start(stream, end_of_marker(stream, end)).map_err(|found| fault(found, at, row))?;
                    coded.iter_mut().for_each(|coded| coded.mean = 0);
                    (left, restarts) = (tables.interval, (restarts + 1) % 8);
                }
                let next = if tables.interval == 0 { columns } else { columns.min(at + left) };
                let mut parts = parts(frame, &mut coded, row, alone);
                kernels.units(&mut bits, &mut parts, at..next).map_err(|(found, at)| fault(found, at, row))?;
                left = left.saturating_sub(next - at);
                at = next;
            }
            if !bits.enough() {
                return Err(fault(Fault::Ends, columns - 1, row));
            }
            if !whole {
                // Where chroma takes from the row below, the last row of these waits for it.
                let lag = usize::from(neighbours);
                let (from, to) = (row * 8 * frame.down, (row + 1) * 8 * frame.down);
                let to = if row + 1 == rows { frame.height } else { to - lag };
                frame.write(*kernels, colors, from.saturating_sub(lag)..to, samples);
            }
        }
        for coded in coded {
            frame.components[coded.component].coded = true;
        }
        if !frame.components.iter().all(|component| component.coded) {
            return Ok(Next::Segments(end));
        }
        if whole {
            frame.write(*kernels, colors, 0..frame.height, samples);
        }
        Ok(Next::Done)
    }
}

/// Reads a scan header.
fn coded(tables: &Tables, frame: &Frame, segment: &Segment<'_>) -> Result<Vec<Coded>, String> {
    let bad = || "JPEG: the scan header is not as long as its channels need".to_owned();
    let (&count, rest) = segment.content().split_first().ok_or_else(bad)?;
    let selectors = rest.get(..2 * usize::from(count)).ok_or_else(bad)?;
    // Behind them, which coefficients, and which of their bits: in this coding all.
    if count == 0 || rest.len() != selectors.len() + 3 {
        return Err(bad());
    }
    let mut coded: Vec<Coded> = Vec::new();
    for selector in selectors.chunks_exact(2) {
        let (id, dc, ac) = (selector[0], usize::from(selector[1] >> 4), usize::from(selector[1] & 15));
        let component = frame.components.iter().position(|component| component.id == id);
        let component =
            component.ok_or_else(|| format!("JPEG: a scan of channel {id}, which the frame does not have"))?;
        if frame.components[component].coded || coded.iter().any(|coded| coded.component == component) {
            return Err(format!("JPEG: channel {id} is coded twice"));
        }
        let missing = |what: &str, number: usize| format!("JPEG: {what} {number} of channel {id} is missing");
        let table = frame.components[component].table;
        let quantisation = tables.quantisation.get(table).copied().flatten();
        let huffman = |tables: &[Option<Rc<Table>>; 4], number: usize| tables.get(number).cloned().flatten();
        coded.push(Coded {
            component,
            quantisation: quantisation.ok_or_else(|| missing("quantisation table", table))?,
            dc: huffman(&tables.dc, dc).ok_or_else(|| missing("Huffman table of means", dc))?,
            ac: huffman(&tables.ac, ac).ok_or_else(|| missing("Huffman table of coefficients", ac))?,
            mean: 0,
        });
    }
    Ok(coded)
}

/// True if three channels are luma and chroma: what libjpeg concludes from segments, or from the channels' numbers.
fn is_luma_and_chroma(tables: &Tables, frame: &Frame) -> bool {
    let [first, second, third] = &frame.components[..] else { return false };
    match tables.adobe {
        _ if tables.jfif => true,
        Some(transform) => transform != 0,
        None => [first.id, second.id, third.id] != *b"RGB",
    }
}

/// Where the samples of a row of units go. A scan of one channel has rows of blocks instead.
fn parts<'a>(frame: &'a mut Frame, coded: &'a mut [Coded], row: usize, alone: bool) -> Vec<Part<'a>> {
    let mut components: Vec<Option<&mut Component>> = frame.components.iter_mut().map(Some).collect();
    let parts = coded.iter_mut().map(|coded| {
        let component = components[coded.component].take().expect("a scan has each channel once");
        let (across, down) = if alone { (1, 1) } else { (component.across, component.down) };
        let length = down * 8 * component.stride;
        let kept = component.samples.len() / length;
        let start = row % kept * length;
        Part {
            samples: &mut component.samples[start..start + length],
            stride: component.stride,
            across,
            down,
            quantisation: &coded.quantisation,
            dc: &coded.dc,
            ac: &coded.ac,
            mean: &mut coded.mean,
        }
    });
    parts.collect()
}

/// Where a marker ends that begins at `start` and is there.
fn end_of_marker(stream: &[u8], start: usize) -> usize {
    start + stream[start..].iter().take_while(|&&byte| byte == 0xff).count() + 1
}
