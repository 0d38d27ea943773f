//! JPEG 2000 streams, as TIFF tiles, DICOM frames and JP2 files hold them. Decoding is hayro-jpeg2000's.
//!
//! What comes out are the samples of the stream; whether three of them are luma and chroma is for the container to say
//! ([`Color`]). Left to itself hayro takes a bare stream whose chroma is subsampled for YCbCr, and one whose chroma is
//! not for RGB: so the stream is taken out of its container and wrapped anew, in one that says nothing of colours.
//! Chroma samples are repeated over the pixels that they stand for, and turned into colours in whole numbers, both
//! as OpenSlide does it: what was coded without loss agrees with it bit for bit.
//!
//! hayro reads on over what it does not find: tiles of the stream that are missing come out grey. And it allocates what
//! the headers of a stream ask for, and may panic over numbers that contradict each other. So the headers are walked here
//! first ([`Stream::parse`]): sizes are compared with what the container says, tiles are counted, code blocks are bounded.
//! A panic that gets past this is caught and is an error like any other.
//!
//! Memory while decoding: 4 bytes per sample for the picture, about 12 per sample of the largest component for the
//! transform, at most 24 per sample for the tables of code blocks, and the result.
//!
//! Sources: ITU-T T.800, annexes A (markers), B (tiles, precincts, code blocks) and I (JP2); OpenSlide's
//! `openslide-decode-jp2k.c` for how Aperio's colours are meant; the measurements in the project's notes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use hayro_jpeg2000::{DecodeSettings, DecoderContext, Image};

use crate::SampleType;
use crate::pixels::Samples;

/// What the samples of a stream mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Color {
    /// What they are is not for the decoder to know: they are returned as they are.
    AsStored,
    /// Luma and two chromas, also once the stream's own transform (MCT) was undone: to be turned into red, green, blue.
    YCbCr,
}

/// What a stream says of its picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Pixels from left to right.
    pub(crate) width: u32,
    /// Pixels from top to bottom.
    pub(crate) height: u32,
    /// Samples per pixel.
    pub(crate) components: u16,
    /// Bits per sample; the same for all.
    pub(crate) bits: u8,
}

/// What the container says of the picture; what the stream says must not contradict it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Pixels from left to right.
    pub(crate) width: u64,
    /// Pixels from top to bottom.
    pub(crate) height: u64,
    /// Samples per pixel.
    pub(crate) components: usize,
    /// What a sample is stored as: 8 bits, or 9 to 16, whose values are not stretched.
    pub(crate) sample: SampleType,
}

/// Reads what a stream, bare or in a JP2 file, says of its picture.
pub(crate) fn read_header(data: &[u8]) -> Result<Header, String> {
    Ok(Stream::parse(codestream(data)?)?.header)
}

/// Decodes a stream, bare or in a JP2 file; the samples of a pixel lie side by side.
///
/// Size, number of components and depth are compared with `expected` before anything is allocated.
pub(crate) fn decode(data: &[u8], expected: Expected, color: Color) -> Result<Samples, String> {
    let data = codestream(data)?;
    let Header { width, height, components, bits } = Stream::parse(data)?.header;
    if (u64::from(width), u64::from(height), usize::from(components))
        != (expected.width, expected.height, expected.components)
    {
        return Err(format!(
            "JPEG 2000: holds {width} x {height} pixels of {components} channels, the file says {} x {} of {}",
            expected.width, expected.height, expected.components
        ));
    }
    let fits = match expected.sample {
        SampleType::U8 => bits == 8,
        SampleType::U16 => (9..=16).contains(&bits),
    };
    if !fits {
        return Err(format!("JPEG 2000: holds {bits} bits per sample, the file says {}", 8 * expected.sample.bytes()));
    }
    if color == Color::YCbCr && components != 3 {
        return Err(format!("JPEG 2000: {components} channels cannot be luma and chroma"));
    }
    let wrapped = wrap(data);
    // Nothing outlives the call that a panic could leave half done.
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        let settings = DecodeSettings { resolve_palette_indices: false, strict: true, target_resolution: None };
        let image = Image::new(&wrapped, &settings).map_err(|e| format!("JPEG 2000: {e}"))?;
        let mut context = DecoderContext::default();
        let decoded = image.decode(&mut context).map_err(|e| format!("JPEG 2000: {e}"))?;
        let planes: Vec<&[f32]> = decoded.components().iter().map(hayro_jpeg2000::ComponentData::samples).collect();
        let pixels = width as usize * height as usize;
        if planes.len() != usize::from(components) || planes.iter().any(|plane| plane.len() < pixels) {
            return Err("JPEG 2000: the decoder lost a channel".to_owned());
        }
        Ok(match expected.sample {
            SampleType::U8 => Samples::U8(interleave(&planes, pixels, bits, color, |v| v as u8)),
            SampleType::U16 => Samples::U16(interleave(&planes, pixels, bits, color, |v| v as u16)),
        })
    }));
    decoded.unwrap_or_else(|_| Err("JPEG 2000: the stream contradicts itself, and the decoder gave up".into()))
}

/// Puts the samples of a pixel side by side, as whole numbers of `bits` bits.
fn interleave<T: Copy>(planes: &[&[f32]], pixels: usize, bits: u8, color: Color, of: impl Fn(i32) -> T) -> Vec<T> {
    let white = (1_i32 << bits) - 1;
    // What lies outside comes from coding with loss.
    let whole = |value: f32| ((value + 0.5).floor() as i32).clamp(0, white);
    let mut samples = Vec::with_capacity(pixels * planes.len());
    match (planes, color) {
        (&[luma, blue, red], Color::YCbCr) => {
            for ((&y, &cb), &cr) in luma.iter().zip(blue).zip(red).take(pixels) {
                samples.extend(rgb(whole(y), whole(cb), whole(cr), bits).map(|value| of(value.clamp(0, white))));
            }
        }
        (&[red, green, blue], Color::AsStored) => {
            for ((&r, &g), &b) in red.iter().zip(green).zip(blue).take(pixels) {
                samples.extend([of(whole(r)), of(whole(g)), of(whole(b))]);
            }
        }
        _ => {
            for pixel in 0..pixels {
                samples.extend(planes.iter().map(|plane| of(whole(plane[pixel]))));
            }
        }
    }
    samples
}

/// Red, green and blue of luma and chroma, not yet clamped: JFIF's formulas to five decimals, which is what OpenSlide's tables
/// hold. (libjpeg's fractions of 16 bits come out one apart in one green of three thousand.)
fn rgb(y: i32, cb: i32, cr: i32, bits: u8) -> [i32; 3] {
    let middle = 1_i64 << (bits - 1);
    let (cb, cr) = (i64::from(cb) - middle, i64::from(cr) - middle);
    let rounded = |sum: i64| (sum + 50_000).div_euclid(100_000) as i32;
    [y + rounded(140_200 * cr), y + rounded(-34_414 * cb - 71_414 * cr), y + rounded(177_200 * cb)]
}

const SOC: [u8; 2] = [0xff, 0x4f];
const SIGNATURE: &[u8] = b"\0\0\0\x0cjP  \r\n\x87\n";

/// The stream itself: of a JP2 file, what its box `jp2c` holds.
fn codestream(data: &[u8]) -> Result<&[u8], String> {
    if data.starts_with(&SOC) {
        return Ok(data);
    }
    if !data.starts_with(SIGNATURE) {
        return Err("JPEG 2000: the stream does not start with a start marker".into());
    }
    let mut boxes = Boxes(data);
    while let Some((kind, content)) = boxes.next()? {
        match &kind {
            b"jp2h" => {
                let mut inner = Boxes(content);
                while let Some((kind, _)) = inner.next()? {
                    if kind == *b"pclr" {
                        return Err("JPEG 2000: colours stored as a palette cannot be read".into());
                    }
                }
            }
            b"jp2c" if content.starts_with(&SOC) => return Ok(content),
            _ => {}
        }
    }
    Err("JPEG 2000: the file holds no stream".into())
}

/// The boxes of a JP2 file (T.800, I.4).
struct Boxes<'a>(&'a [u8]);

impl<'a> Boxes<'a> {
    fn next(&mut self) -> Result<Option<([u8; 4], &'a [u8])>, String> {
        let cut_off = || "JPEG 2000: the file ends inside a box".to_owned();
        let Some((head, rest)) = self.0.split_first_chunk::<8>() else {
            return if self.0.is_empty() { Ok(None) } else { Err(cut_off()) };
        };
        let kind = [head[4], head[5], head[6], head[7]];
        let length = u64::from(u32::from_be_bytes([head[0], head[1], head[2], head[3]]));
        // 0 stands for the rest of the file, 1 for a length of 8 bytes that follows.
        let (rest, length) = match length {
            0 => (rest, Some(rest.len() as u64)),
            1 => {
                let (long, rest) = rest.split_first_chunk::<8>().ok_or_else(cut_off)?;
                (rest, u64::from_be_bytes(*long).checked_sub(16))
            }
            _ => (rest, length.checked_sub(8)),
        };
        let length = length.and_then(|length| usize::try_from(length).ok()).ok_or_else(cut_off)?;
        let (content, rest) = rest.split_at_checked(length).ok_or_else(cut_off)?;
        self.0 = rest;
        Ok(Some((kind, content)))
    }
}

/// A JP2 file around a stream; its colour specification is of a method that hayro takes for no colours at all.
fn wrap(stream: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(stream.len() + 71);
    file.extend(SIGNATURE);
    file.extend(*b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 ");
    file.extend(*b"\0\0\0\x13jp2h\0\0\0\x0bcolr\x03\0\0");
    file.extend(*b"\0\0\0\0jp2c");
    file.extend(stream);
    file
}

/// The most tiles that a stream may be cut into. Slides use one per stream; each costs memory before it is decoded.
const MAX_TILES: u64 = 4096;
/// The most halvings of a picture; the standard allows 32, a picture of 65535 pixels has room for 16.
const MAX_LEVELS: u8 = 16;
/// hayro reads so many quality layers.
const MAX_LAYERS: u16 = 32;

/// A stream whose headers were walked, and hold nothing that hayro does not read right.
struct Stream {
    header: Header,
}

/// How a component is cut up (COD and COC, T.800, A.6.1).
#[derive(Clone)]
struct Coding {
    levels: u8,
    /// Exponents of width and height of a code block.
    block: (u32, u32),
    /// Exponents of width and height of the precincts of each resolution, the coarsest first.
    precincts: Vec<(u32, u32)>,
}

impl Stream {
    fn parse(data: &[u8]) -> Result<Self, String> {
        let mut markers = Markers { data, at: 2 };
        let (marker, siz) = markers.segment()?;
        if marker != 0x51 {
            return Err("JPEG 2000: the stream does not start with its size".into());
        }
        let numbers = siz.get(2..36).ok_or_else(bad_size)?;
        let number = |i: usize| {
            let at = 4 * i;
            u32::from_be_bytes([numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3]])
        };
        let [right, bottom, left, top, tile_width, tile_height, tile_left, tile_top] = std::array::from_fn(number);
        if (left, top, tile_left, tile_top) != (0, 0, 0, 0) {
            return Err("JPEG 2000: a picture that does not lie at the origin of its grid cannot be read".into());
        }
        if right == 0 || bottom == 0 || tile_width == 0 || tile_height == 0 || (right | bottom) > i32::MAX as u32 {
            return Err(bad_size());
        }
        let components = u16::from_be_bytes([numbers[32], numbers[33]]);
        let depths = &siz[36..];
        if !(1..=4).contains(&components) || depths.len() != 3 * usize::from(components) {
            return Err(format!("JPEG 2000: {components} channels cannot be read, 1 to 4 can"));
        }
        let depth = depths[0];
        if depth & 0x80 != 0 {
            return Err("JPEG 2000: signed samples cannot be read".into());
        }
        for component in depths.chunks_exact(3) {
            if component[0] != depth {
                return Err("JPEG 2000: channels of different depths cannot be read".into());
            }
        }
        // The first component must have all pixels; the others may have a half or a quarter of them along an axis.
        let steps: Vec<(u8, u8)> = depths.chunks_exact(3).map(|component| (component[1], component[2])).collect();
        if steps[0] != (1, 1) || steps.iter().any(|(x, y)| !matches!(x, 1 | 2 | 4) || !matches!(y, 1 | 2 | 4)) {
            return Err(format!("JPEG 2000: channels with a sample at every {steps:?} pixels cannot be read"));
        }
        let tiles = u64::from(right.div_ceil(tile_width)) * u64::from(bottom.div_ceil(tile_height));
        if tiles > MAX_TILES {
            return Err(format!("JPEG 2000: a stream of {tiles} tiles cannot be read, one of {MAX_TILES} can"));
        }
        let header = Header { width: right, height: bottom, components, bits: depth + 1 };
        if header.bits > 16 {
            return Err(format!("JPEG 2000: {} bits per sample cannot be read, 8 and 16 can", header.bits));
        }

        let (layers, codings) = main_header(&mut markers, components)?;
        let tile = (tile_width.min(right), tile_height.min(bottom));
        for coding in &codings {
            coding.check(tile, layers)?;
        }
        tile_parts(&mut markers, tiles as usize)?;
        Ok(Self { header })
    }
}

fn bad_size() -> String {
    "JPEG 2000: the size of the picture is damaged".into()
}

/// Reads the main header behind the size: quality layers, and how each component is cut up.
fn main_header(markers: &mut Markers<'_>, components: u16) -> Result<(u16, Vec<Coding>), String> {
    let mut common = None;
    let mut own = vec![None; usize::from(components)];
    while markers.peek() != Some(SOT) {
        let (marker, segment) = markers.segment()?;
        match (marker, segment) {
            (0x52, &[style, _, l1, l0, _, ref rest @ ..]) => {
                common = Some((u16::from_be_bytes([l1, l0]), Coding::read(style, rest)?));
            }
            (0x53, &[component, style, ref rest @ ..]) => {
                let coding = own.get_mut(usize::from(component)).ok_or("JPEG 2000: a header is for no channel")?;
                *coding = Some(Coding::read(style, rest)?);
            }
            (0x52 | 0x53, _) => return Err("JPEG 2000: the stream ends inside a header".into()),
            _ => {}
        }
    }
    let (layers, coding) = common.ok_or("JPEG 2000: the stream does not say how it is coded")?;
    if !(1..=MAX_LAYERS).contains(&layers) {
        return Err(format!("JPEG 2000: {layers} quality layers cannot be read, 1 to {MAX_LAYERS} can"));
    }
    Ok((layers, own.into_iter().map(|own| own.unwrap_or_else(|| coding.clone())).collect()))
}

impl Coding {
    fn read(style: u8, parameters: &[u8]) -> Result<Self, String> {
        let &[levels, width, height, _, _, ref precincts @ ..] = parameters else {
            return Err("JPEG 2000: the stream ends inside a header".into());
        };
        if levels > MAX_LEVELS {
            return Err(format!("JPEG 2000: {levels} halvings cannot be read, {MAX_LEVELS} can"));
        }
        let resolutions = usize::from(levels) + 1;
        let precincts = if style & 1 == 0 {
            vec![(15, 15); resolutions]
        } else {
            let sizes = precincts.get(..resolutions).ok_or("JPEG 2000: the stream ends inside a header")?;
            sizes.iter().map(|size| (u32::from(size & 15), u32::from(size >> 4))).collect()
        };
        Ok(Self { levels, block: (u32::from(width) + 2, u32::from(height) + 2), precincts })
    }

    /// Checks that a tile of the stream does not fall into more pieces than its size justifies.
    fn check(&self, tile: (u32, u32), layers: u16) -> Result<(), String> {
        let samples = u64::from(tile.0) * u64::from(tile.1);
        let mut pieces = 0_u64;
        for (resolution, &(x, y)) in self.precincts.iter().enumerate() {
            let finest = u32::from(self.levels) - resolution as u32;
            // From the second resolution on, precincts are measured on the picture and cut bands of half its size.
            let half = u32::from(resolution > 0);
            if x < half || y < half {
                return Err("JPEG 2000: precincts of no size".into());
            }
            let count = |pixels: u32, exponent: u32| u64::from((pixels >> finest) + 1) / (1 << exponent) + 2;
            let precincts = count(tile.0, x) * count(tile.1, y);
            let blocks =
                count(tile.0, self.block.0.min(x - half) + half) * count(tile.1, self.block.1.min(y - half) + half);
            pieces = pieces.saturating_add(precincts).saturating_add(3 * blocks * (u64::from(layers) + 4));
        }
        if pieces > samples.saturating_add(1 << 16) {
            return Err(format!(
                "JPEG 2000: a tile of {} x {} pixels in {pieces} pieces cannot be read",
                tile.0, tile.1
            ));
        }
        Ok(())
    }
}

/// Walks the parts of all tiles; each tile must be there, and the stream must go on to its end marker.
fn tile_parts(markers: &mut Markers<'_>, tiles: usize) -> Result<(), String> {
    let cut_off = || "JPEG 2000: the stream is cut off".to_owned();
    let mut found = vec![false; tiles];
    while markers.peek() == Some(SOT) {
        let start = markers.at;
        let (_, segment) = markers.segment()?;
        let &[index1, index0, l3, l2, l1, l0, ..] = segment else { return Err(cut_off()) };
        let index = usize::from(u16::from_be_bytes([index1, index0]));
        let tile = found.get_mut(index).ok_or_else(|| format!("JPEG 2000: there is no tile {index}"))?;
        let end = match u32::from_be_bytes([l3, l2, l1, l0]) as usize {
            // The last part may leave its length to the end of the stream.
            0 => markers.data.len().checked_sub(2).ok_or_else(cut_off)?,
            length => start.checked_add(length).ok_or_else(cut_off)?,
        };
        while markers.peek() != Some(SOD) {
            let (marker, _) = markers.segment()?;
            if matches!(marker, 0x52 | 0x53) {
                return Err("JPEG 2000: tiles that are coded differently cannot be read".into());
            }
        }
        let body = markers.at + 2;
        if end < body || end > markers.data.len() {
            return Err(cut_off());
        }
        *tile |= end > body;
        markers.at = end;
    }
    if markers.peek() != Some(EOC) {
        return Err("JPEG 2000: the stream is cut off: it has no end marker".into());
    }
    match found.iter().position(|found| !found) {
        Some(index) => Err(format!("JPEG 2000: tile {index} of the stream is missing")),
        None => Ok(()),
    }
}

const SOT: u8 = 0x90;
const SOD: u8 = 0x93;
const EOC: u8 = 0xd9;

/// Walks marker segments.
struct Markers<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Markers<'a> {
    /// The marker that comes next.
    fn peek(&self) -> Option<u8> {
        match self.data.get(self.at..self.at.checked_add(2)?)? {
            [0xff, marker] => Some(*marker),
            _ => None,
        }
    }

    /// The next marker and what its segment holds behind the length.
    fn segment(&mut self) -> Result<(u8, &'a [u8]), String> {
        let marker = self.peek().ok_or_else(|| format!("JPEG 2000: there is no marker at byte {}", self.at))?;
        let from = self.at + 2;
        let length = match self.data.get(from..from + 2) {
            Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
            _ => return Err("JPEG 2000: the stream ends inside a segment".into()),
        };
        let segment = self.data.get(from + 2..from + length);
        let segment = segment.ok_or("JPEG 2000: the stream ends inside a segment")?;
        self.at = from + length;
        Ok((marker, segment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(width: u64, height: u64, components: usize, sample: SampleType) -> Expected {
        Expected { width, height, components, sample }
    }

    fn bytes(samples: Samples) -> Vec<u8> {
        match samples {
            Samples::U8(samples) => samples,
            Samples::U16(_) => panic!("wide samples"),
        }
    }

    /// The largest and the mean difference.
    fn difference(a: &[u8], b: &[u8]) -> (u8, f64) {
        assert_eq!(a.len(), b.len());
        let differences = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b));
        let sum: u64 = differences.clone().map(u64::from).sum();
        (differences.max().unwrap_or(0), sum as f64 / a.len() as f64)
    }

    /// Small streams with their pixels, made by OpenJPEG: `generate.py` beside them in frames-sg/wsi-rs.
    #[test]
    fn streams_of_every_kind_of_colour_give_their_pixels() {
        let Some(folder) = microtome_testkit::data("codec/wsi-rs/jp2k") else { return };
        for (name, color) in [
            ("rgb_mct", Color::AsStored),
            ("rgb_nomct", Color::AsStored),
            ("ycbcr_444", Color::YCbCr),
            ("ycbcr_422", Color::YCbCr),
            ("ycbcr_420", Color::YCbCr),
        ] {
            let stream = std::fs::read(folder.join(name).with_extension("j2k")).unwrap();
            let truth = std::fs::read(folder.join(name).with_extension("ppm")).unwrap();
            let found = bytes(decode(&stream, expected(16, 12, 3, SampleType::U8), color).unwrap());
            let truth = &truth[truth.len() - 16 * 12 * 3..];
            eprintln!("{name}: {:?}", difference(&found, truth));
            assert!(difference(&found, truth).0 <= 1, "{name}");
            // A container that is mistaken about the size is told so.
            let error = decode(&stream, expected(16, 16, 3, SampleType::U8), color).unwrap_err();
            assert_eq!(error, "JPEG 2000: holds 16 x 12 pixels of 3 channels, the file says 16 x 16 of 3");
            assert!(decode(&stream, expected(16, 12, 3, SampleType::U16), color).unwrap_err().contains("8 bits"));
        }
    }

    /// One tile of a slide in all that DICOM allows, from the Python package wsidicom-data.
    #[test]
    fn the_tile_of_wsidicom_is_read_from_all_its_streams() {
        let Some(folder) = microtome_testkit::data("codec/wsidicom-data") else { return };
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        let lossless = |kind: &str| read(&format!("JPEG_2000_Image_Compression_(Lossless_Only)-{kind}.jp2"));
        let lossy = |kind: &str| read(&format!("JPEG_2000_Image_Compression-{kind}.jp2"));
        let decode = |stream: &[u8], components, sample| {
            decode(stream, expected(240, 240, components, sample), Color::AsStored).unwrap()
        };
        let rgb = read("Explicit_VR_Little_Endian-RGB-8.raw");
        // The transform of the stream itself makes RGB of what DICOM calls YBR_RCT and YBR_ICT.
        for kind in ["RGB-8", "YBR-8"] {
            assert_eq!(bytes(decode(&lossless(kind), 3, SampleType::U8)), rgb, "{kind}");
            let found = difference(&bytes(decode(&lossy(kind), 3, SampleType::U8)), &rgb);
            assert!(found.1 < 2.0, "{kind}: {found:?}");
        }
        let grey = read("Explicit_VR_Little_Endian-GRAYSCALE-8.raw");
        assert_eq!(bytes(decode(&lossless("GRAYSCALE-8"), 1, SampleType::U8)), grey);
        assert!(difference(&bytes(decode(&lossy("GRAYSCALE-8"), 1, SampleType::U8)), &grey).1 < 2.0);
        let wide = read("Explicit_VR_Little_Endian-GRAYSCALE-16.raw");
        let wide: Vec<u16> = wide.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        assert_eq!(decode(&lossless("GRAYSCALE-16"), 1, SampleType::U16), Samples::U16(wide));
        assert_eq!(read_header(&lossless("GRAYSCALE-16")).unwrap().bits, 16);
    }

    #[test]
    fn damage_is_an_error_or_other_pixels() {
        let Some(folder) = microtome_testkit::data("codec/wsi-rs/jp2k") else { return };
        let whole = std::fs::read(folder.join("ycbcr_420.j2k")).unwrap();
        let expected = expected(16, 12, 3, SampleType::U8);
        let mut read = 0;
        for at in 0..whole.len() {
            for change in [0x01, 0x10, 0x80, 0xff] {
                let mut stream = whole.clone();
                stream[at] ^= change;
                read += u32::from(decode(&stream, expected, Color::YCbCr).is_ok());
            }
            assert!(decode(&whole[..at], expected, Color::YCbCr).is_err(), "cut off at {at}");
        }
        eprintln!("of {} damaged streams {read} could be read", 4 * whole.len());
    }

    #[test]
    fn streams_are_found_in_their_files() {
        let Some(folder) = microtome_testkit::data("tiff/libvips") else { return };
        let header = |name: &str| read_header(&std::fs::read(folder.join(name)).unwrap());
        assert_eq!(header("world.jp2"), Ok(Header { width: 800, height: 400, components: 3, bits: 8 }));
        assert!(header("issue412.jp2").unwrap_err().contains("a palette"));
        assert!(header("Bretagne2_4.j2k").unwrap_err().contains("the origin of its grid"));
    }
}
