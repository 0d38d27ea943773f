//! JPEG streams as slides hold them: abbreviated, with tables shared by all tiles, and colours that the container knows
//! better than the stream.
//!
//! The stream is put together for the decoder: start of image; the shared tables; an Adobe APP14 segment that says
//! what the three channels are; the tile's own segments; its scans. The APP14 segment is what keeps an RGB stream from
//! being taken for YCbCr: nothing else in a stream says so, every decoder guesses YCbCr, and on Aperio slides the guess
//! is wrong by 50 levels in the mean (against OpenSlide 4.0.1 on CMU-1-Small-Region.svs). libtiff and OpenSlide likewise
//! let the photometric interpretation of the TIFF decide.
//!
//! Streams too large to be decoded at once are decoded by pieces, between restart markers: see [`restart`].
//!
//! What decodes is [`sequential`], ours, which gives what libjpeg-turbo gives; for progressive streams, which slides do not have, it is
//! zune-jpeg, which differs by some levels. With the feature `turbojpeg`, libjpeg-turbo decodes them all.
//!
//! Sources: ITU-T T.81; TIFF Technical Note 2 (`JPEGTables`); Adobe Technical Note 5116 (APP14).

pub(crate) mod restart;
// Where libjpeg-turbo decodes, tests compare the two.
#[cfg(any(test, not(feature = "turbojpeg")))]
mod sequential;
#[cfg(feature = "turbojpeg")]
mod turbo;
#[cfg(not(feature = "turbojpeg"))]
mod zune;

use super::super::spare;

/// What the channels of a stream are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Color {
    /// One channel.
    Grey,
    /// Red, green, blue.
    Rgb,
    /// Luma and two chromas, to be turned into red, green, blue.
    YCbCr,
    /// What the stream's own markers say: for files that are nothing but a JPEG.
    AsMarked,
}

impl Color {
    /// The segment that tells decoders so: marker, length 14, "Adobe", version 100, two words of flags, and the transform
    /// (0 none, 1 YCbCr). Empty where there is nothing to tell.
    fn segment(self) -> &'static [u8] {
        match self {
            Self::Rgb => b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0",
            Self::YCbCr => b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x01",
            Self::Grey | Self::AsMarked => b"",
        }
    }
}

/// What a stream says of itself before its first scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Pixels from left to right.
    pub(crate) width: u16,
    /// Pixels from top to bottom.
    pub(crate) height: u16,
    /// Channels.
    pub(crate) components: u8,
}

impl Header {
    /// Samples of the picture.
    fn samples(self) -> usize {
        usize::from(self.width) * usize::from(self.height) * usize::from(self.components)
    }
}

/// Frame headers of baseline and of progressive coding.
const SOF0: u8 = 0xc0;
const SOF2: u8 = 0xc2;
const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const DRI: u8 = 0xdd;
const DHP: u8 = 0xde;
const APP0: u8 = 0xe0;
const APP15: u8 = 0xef;
const COM: u8 = 0xfe;

/// Reads the header of a whole stream.
pub(crate) fn read_header(data: &[u8]) -> Result<Header, String> {
    let mut header = None;
    for segment in Segments::new(data)? {
        let segment = segment?;
        if is_frame(segment.marker) {
            header = Some(frame(&segment)?);
        }
        if segment.marker == SOS {
            return header.ok_or_else(|| "JPEG: a scan comes before its frame header".into());
        }
    }
    Err("JPEG: the stream ends before its first scan".into())
}

/// True for a stream that is made as those of luma and chroma are: a JFIF segment, or chroma of fewer pixels. Nothing follows
/// from it where the container says otherwise, but the two contradict each other.
pub(crate) fn looks_like_ycbcr(data: &[u8]) -> bool {
    let Ok(segments) = Segments::new(data) else { return false };
    for segment in segments.map_while(Result::ok) {
        // After marker and length, JFIF's name; in a frame header the sampling factors of three channels, three bytes each.
        let claims = match segment.marker {
            APP0 => segment.bytes.get(4..9) == Some(b"JFIF\0"),
            marker if is_frame(marker) => {
                matches!(segment.bytes, [_, _, _, _, _, _, _, _, _, 3, _, luma, _, _, chroma, ..] if luma != chroma)
            }
            _ => false,
        };
        if claims {
            return true;
        }
    }
    false
}

/// Decodes a stream into 8-bit samples, three channels as red, green, blue.
///
/// Size and number of channels must be those of `expected`; they are compared before anything is allocated.
pub(crate) fn decode(tables: Option<&[u8]>, data: &[u8], expected: Header, color: Color) -> Result<Vec<u8>, String> {
    decode_stream(&assemble(tables, data, expected, color)?, expected)
}

/// Decodes a complete stream whose header is `header`.
fn decode_stream(stream: &[u8], header: Header) -> Result<Vec<u8>, String> {
    if !matches!(header.components, 1 | 3) {
        return Err(format!("JPEG: {} channels (CMYK, perhaps) cannot be read, 1 and 3 can", header.components));
    }
    // The decoders write every sample or fail.
    let mut samples = spare::take(header.samples());
    decode_into(stream, header, &mut samples)?;
    Ok(samples)
}

/// As [`decode_stream`], into [`Header::samples`] of 1 or 3 channels.
fn decode_into(stream: &[u8], header: Header, samples: &mut [u8]) -> Result<(), String> {
    #[cfg(feature = "turbojpeg")]
    return turbo::decode_into(stream, header, samples);
    #[cfg(not(feature = "turbojpeg"))]
    if Segments::new(stream)?.map_while(Result::ok).any(|segment| segment.marker == SOF2) {
        zune::decode_into(stream, header, samples)
    } else {
        sequential::decode_into(stream, header, samples)
    }
}

/// Decodes a whole stream into all of `samples`, which are those that its header says: for benches.
pub(crate) fn decode_whole(stream: &[u8], samples: &mut [u8]) -> Result<(), String> {
    let header = read_header(stream)?;
    if header.samples() != samples.len() || !matches!(header.components, 1 | 3) {
        return Err(format!("JPEG: {} samples of {} channels", header.samples(), header.components));
    }
    decode_into(stream, header, samples)
}

/// The stream that [`decode`] would decode, as a file of its own, or `None` if it is not baseline coding of 8 bits (SOF0), which is all that
/// some viewers take. Nothing in it is decoded.
pub(crate) fn whole_baseline(
    tables: Option<&[u8]>,
    data: &[u8],
    expected: Header,
    color: Color,
) -> Result<Option<Vec<u8>>, String> {
    let stream = assemble(tables, data, expected, color)?;
    for segment in Segments::new(&stream)? {
        let marker = segment?.marker;
        if is_frame(marker) {
            return Ok((marker == SOF0).then_some(stream));
        }
    }
    Ok(None)
}

/// Puts together the stream that the decoder gets.
fn assemble(tables: Option<&[u8]>, data: &[u8], expected: Header, color: Color) -> Result<Vec<u8>, String> {
    let mut stream = Vec::with_capacity(data.len() + tables.map_or(0, <[u8]>::len) + 18);
    stream.extend([0xff, SOI]);
    for segment in tables.map(Segments::new).transpose()?.into_iter().flatten() {
        let segment = segment.map_err(|e| format!("JPEGTables: {e}"))?;
        if is_frame(segment.marker) || segment.marker == SOS {
            return Err("JPEGTables: hold a picture instead of tables".into());
        }
        if !is_comment(segment.marker) {
            stream.extend(segment.bytes);
        }
    }
    stream.extend(color.segment());
    let mut framed = false;
    for segment in Segments::new(data)? {
        let segment = segment?;
        if is_frame(segment.marker) {
            let found = frame(&segment)?;
            if found != expected {
                return Err(format!(
                    "JPEG: holds {} x {} pixels of {} channels, the file says {} x {} of {}",
                    found.width, found.height, found.components, expected.width, expected.height, expected.components
                ));
            }
            framed = true;
        }
        if segment.marker == DHP {
            return Err("JPEG: hierarchical coding cannot be read".into());
        }
        if segment.marker == SOS {
            if !framed {
                return Err("JPEG: a scan comes before its frame header".into());
            }
            // Inside scans 0xff is followed by 0 or a restart number, so that an end marker is where it seems to be.
            // Without one the stream was cut off, and decoders would fill what is missing with grey.
            let scans = &data[segment.start..];
            let end = scans.windows(2).rposition(|pair| pair == [0xff, EOI]);
            let end = end.ok_or("JPEG: the stream is cut off: it has no end marker")?;
            stream.extend(&scans[..end + 2]);
            return Ok(stream);
        }
        if color == Color::AsMarked || !is_comment(segment.marker) {
            stream.extend(segment.bytes);
        }
    }
    Err("JPEG: the stream ends before its first scan".into())
}

/// True for segments that hold no part of the picture. Some of them (JFIF, Adobe) change how decoders take colours,
/// which is for the container to say.
fn is_comment(marker: u8) -> bool {
    (APP0..=APP15).contains(&marker) || marker == COM
}

/// True for frame headers (SOF0 to SOF15, whose range also holds DHT, JPG and DAC).
fn is_frame(marker: u8) -> bool {
    matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc)
}

/// Reads a frame header; refuses what the decoders cannot do, by name.
fn frame(segment: &Segment<'_>) -> Result<Header, String> {
    let kind = match segment.marker {
        0xc0 | 0xc1 | SOF2 => None,
        0xc3 => Some("lossless coding"),
        0xc5..=0xc7 => Some("hierarchical coding"),
        _ => Some("arithmetic coding"),
    };
    if let Some(kind) = kind {
        return Err(format!("JPEG: {kind} cannot be read"));
    }
    let [_, _, _, _, precision, h1, h0, w1, w0, components, ..] = *segment.bytes else {
        return Err("JPEG: the frame header is too short".into());
    };
    if precision != 8 {
        return Err(format!("JPEG: {precision} bits per sample cannot be read, 8 can"));
    }
    Ok(Header { width: u16::from_be_bytes([w1, w0]), height: u16::from_be_bytes([h1, h0]), components })
}

/// A marker segment: `bytes` from its 0xff on, which lies at `start` of the stream.
struct Segment<'a> {
    marker: u8,
    start: usize,
    bytes: &'a [u8],
}

/// Walks the segments between the start of an image and its first scan, or its end.
struct Segments<'a> {
    data: &'a [u8],
    at: usize,
    done: bool,
}

impl<'a> Segments<'a> {
    fn new(data: &'a [u8]) -> Result<Self, String> {
        if !data.starts_with(&[0xff, SOI]) {
            return Err("JPEG: the stream does not start with a start marker".into());
        }
        Ok(Self { data, at: 2, done: false })
    }

    fn segment(&mut self) -> Result<Option<Segment<'a>>, String> {
        let data = self.data;
        // Any number of 0xff may come before a marker (T.81, B.1.1.2).
        let start = self.at;
        let mut at = start;
        while data.get(at) == Some(&0xff) && data.get(at + 1) == Some(&0xff) {
            at += 1;
        }
        let marker = match data.get(at..) {
            Some([0xff, marker, ..]) => *marker,
            // Tables need not be closed by an end marker.
            Some([]) | None => return Ok(None),
            Some(_) => return Err(format!("JPEG: there is no marker at byte {start}")),
        };
        if marker == EOI {
            return Ok(None);
        }
        let length = match data.get(at + 2..at + 4) {
            Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
            _ => return Err("JPEG: the stream ends inside a segment".into()),
        };
        let bytes = match data.get(at..at + 2 + length) {
            Some(bytes) if length >= 2 => bytes,
            Some(_) => return Err(format!("JPEG: segment {marker:#04x} has the bogus length {length}")),
            None => return Err("JPEG: the stream ends inside a segment".into()),
        };
        self.at = at + bytes.len();
        self.done = marker == SOS;
        Ok(Some(Segment { marker, start: at, bytes }))
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = Result<Segment<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let segment = self.segment().transpose();
        if !matches!(segment, Some(Ok(_))) {
            self.done = true;
        }
        segment
    }
}

#[cfg(test)]
mod tests {
    use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
    use proptest::prelude::*;

    use super::*;

    fn stream(chroma: SamplingFactor, progressive: bool, restart: u16, side: u16) -> Vec<u8> {
        let mut stream = Vec::new();
        let mut encoder = Encoder::new(&mut stream, 80);
        encoder.set_sampling_factor(chroma);
        encoder.set_progressive(progressive);
        encoder.set_restart_interval(restart);
        let pixels: Vec<u8> =
            (0..u32::from(side) * u32::from(side) * 3).map(|i| (i.wrapping_mul(i) >> 5) as u8).collect();
        encoder.encode(&pixels, side, side, ColorType::Rgb).unwrap();
        stream
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        /// What was in the buffer before shows in no pixel, also of streams that are damaged and decoded nevertheless.
        #[test]
        fn every_sample_is_written(
            chroma in prop::sample::select(vec![SamplingFactor::R_4_4_4, SamplingFactor::R_4_2_2, SamplingFactor::R_4_2_0]),
            progressive: bool,
            restart in prop::sample::select(vec![0_u16, 1, 3]),
            side in prop::sample::select(vec![8_u16, 17, 40]),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
        ) {
            let mut stream = stream(chroma, progressive, restart, side);
            for (at, value) in changes {
                let at = at.index(stream.len());
                stream[at] = value;
            }
            let Ok(header) = read_header(&stream) else { return Ok(()) };
            if header.samples() > 1 << 20 || header.samples() == 0 || !matches!(header.components, 1 | 3) {
                return Ok(());
            }
            let decoded = [0x55, 0xaa].map(|before| {
                let mut samples = vec![before; header.samples()];
                decode_into(&stream, header, &mut samples).map(|()| samples)
            });
            if let [Ok(one), Ok(other)] = &decoded {
                prop_assert!(one == other);
            }
        }
    }

    /// Where libjpeg-turbo is there, it decodes what ours decodes, to the same samples.
    #[cfg(feature = "turbojpeg")]
    #[test]
    fn ours_is_libjpeg_turbo() {
        use SamplingFactor::{R_4_1_0, R_4_1_1, R_4_2_0, R_4_2_1, R_4_2_2, R_4_4_0, R_4_4_1, R_4_4_4};
        for chroma in [R_4_4_4, R_4_4_0, R_4_4_1, R_4_2_2, R_4_2_0, R_4_2_1, R_4_1_1, R_4_1_0] {
            for side in (1..40).chain([100, 255, 256]) {
                for restart in [0, 1, 7] {
                    let stream = stream(chroma, false, restart, side);
                    let header = read_header(&stream).unwrap();
                    let mut samples = [vec![0; header.samples()], vec![1; header.samples()]];
                    sequential::decode_into(&stream, header, &mut samples[0]).unwrap();
                    turbo::decode_into(&stream, header, &mut samples[1]).unwrap();
                    assert!(samples[0] == samples[1], "{chroma:?}, {side}");
                }
            }
        }
    }
}

#[cfg(all(test, not(feature = "turbojpeg")))]
mod speed {
    use std::time::Duration;

    use super::*;
    use crate::slide::raster::Raster;
    use crate::slide::tiff::{Page, Tiff};
    use crate::slide::{Limits, OpenOptions, open};
    use crate::{Level, Rect, TileCoord};

    /// What the calling thread spent on a processor: other load on the machine does not count.
    fn spent() -> Duration {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        Duration::from_nanos(text.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or_default())
    }

    fn best(mut run: impl FnMut()) -> f64 {
        let once = |run: &mut dyn FnMut()| {
            let before = spent();
            run();
            spent().saturating_sub(before).as_secs_f64()
        };
        (0..15).map(|_| once(&mut run)).fold(f64::INFINITY, f64::min)
    }

    /// How much of the bare decoder's rate is left when tiles are read from the file, and when regions are.
    ///
    /// `cargo nextest run -p microtome-io --run-ignored all -E 'test(share_of_the_decoder)' --no-capture`
    #[test]
    #[ignore = "a measurement"]
    fn share_of_the_decoder() {
        let Some(path) = microtome_testkit::data("slides/svs/CMU-1-Small-Region.svs") else { return };
        let source = OpenOptions::default().access.open(&path).unwrap();
        let tiff = Tiff::parse(source, &Limits::default()).unwrap();
        let (file, ifd) = (tiff.file(), &tiff.directories()[0]);
        let page = Page::read(file, ifd).unwrap();
        let tables = ifd.bytes(file, crate::slide::tiff::Tag::JPEG_TABLES).unwrap();
        let size = page.layout.cell;
        let cells = page.layout.size.cells(size);
        let tiles: Vec<_> =
            (0..cells.height).flat_map(|row| (0..cells.width).map(move |column| TileCoord { row, column })).collect();
        let expected = Header { width: 240, height: 240, components: 3 };
        let streams: Vec<_> = tiles
            .iter()
            .map(|&tile| {
                let data = page.layout.bytes(file, tile, 0).unwrap().unwrap();
                assemble(tables.as_deref(), &data, expected, Color::Rgb).unwrap()
            })
            .collect();
        let mut samples = vec![0; size.area() as usize * 3];
        let bare = best(|| {
            for stream in &streams {
                decode_into(stream, expected, &mut samples).unwrap();
            }
        });
        let fresh = best(|| {
            for stream in &streams {
                std::hint::black_box(decode_stream(stream, expected).unwrap());
            }
        });
        let paged = best(|| {
            for &tile in &tiles {
                std::hint::black_box(page.decode(tile).unwrap());
            }
        });
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let regions = |cache: usize| {
            one.install(|| {
                best(|| {
                    let slide = open(&path, &OpenOptions::default().cache_bytes(cache)).unwrap();
                    for y in (0..2967).step_by(512) {
                        for x in (0..2220).step_by(512) {
                            let rect = Rect::new(x, y, (2220 - x as u64).min(512), (2967 - y as u64).min(512));
                            std::hint::black_box(slide.read_region(Level(0), rect).unwrap());
                        }
                    }
                })
            })
        };
        let rate = |seconds: f64| tiles.len() as f64 * size.area() as f64 / seconds / 1e6;
        for (what, seconds) in [
            ("bare, one buffer", bare),
            ("bare, a buffer each", fresh),
            ("tiles of a page", paged),
            ("regions, 64 MiB of tiles kept", regions(64 << 20)),
            ("regions, 6 MiB of tiles kept", regions(6 << 20)),
        ] {
            println!("{what:30} {:6.1} Mpx/s of tiles, {:.3} of the bare decoder", rate(seconds), bare / seconds);
        }
    }

    /// Ours beside zune-jpeg, in turns, on the same streams into one buffer: tiles as the slide stores them (240 x 240, RGB), and its pixels coded
    /// again as 256 x 256 pixels of luma and chroma.
    ///
    /// `cargo nextest run -p microtome-io --release --run-ignored all -E 'test(ours_beside_zune)' --no-capture`
    #[test]
    #[ignore = "a measurement"]
    fn ours_beside_zune() {
        use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

        /// Of all tiles for each time that is taken: the clock ticks in milliseconds.
        const PASSES: usize = 8;

        let Some(path) = microtome_testkit::data("slides/svs/CMU-1-Small-Region.svs") else { return };
        let source = OpenOptions::default().access.open(&path).unwrap();
        let tiff = Tiff::parse(source, &Limits::default()).unwrap();
        let (file, ifd) = (tiff.file(), &tiff.directories()[0]);
        let page = Page::read(file, ifd).unwrap();
        let tables = ifd.bytes(file, crate::slide::tiff::Tag::JPEG_TABLES).unwrap();
        let cells = page.layout.size.cells(page.layout.cell);
        let tiles = (0..cells.height).flat_map(|row| (0..cells.width).map(move |column| TileCoord { row, column }));
        let header = |side: u16| Header { width: side, height: side, components: 3 };
        let stored = tiles.map(|tile| {
            let data = page.layout.bytes(file, tile, 0).unwrap().unwrap();
            assemble(tables.as_deref(), &data, header(240), Color::Rgb).unwrap()
        });
        let mut sets = vec![("240 x 240 RGB, as stored".to_owned(), header(240), stored.collect::<Vec<_>>())];
        let slide = open(&path, &OpenOptions::default()).unwrap();
        for (name, chroma, quality) in [
            ("4:4:4", SamplingFactor::F_1_1, 75),
            ("4:2:2", SamplingFactor::F_2_1, 75),
            ("4:2:0", SamplingFactor::F_2_2, 75),
            ("4:2:0", SamplingFactor::F_2_2, 90),
        ] {
            let places = (0..11).flat_map(|row| (0..8).map(move |column| (row * 256, column * 256)));
            let streams = places.map(|(y, x)| {
                let pixels = slide.read_region(Level(0), Rect::new(x, y, 256, 256)).unwrap();
                let mut stream = Vec::new();
                let mut encoder = Encoder::new(&mut stream, quality);
                encoder.set_sampling_factor(chroma);
                encoder.encode(pixels.as_u8().unwrap(), 256, 256, ColorType::Rgb).unwrap();
                stream
            });
            sets.push((format!("256 x 256 {name}, quality {quality}"), header(256), streams.collect()));
        }
        for (name, header, streams) in sets {
            let mut samples = vec![0; header.samples()];
            let mut times = [const { Vec::new() }; 2];
            for _ in 0..11 {
                for (times, decode) in times.iter_mut().zip([sequential::decode_into, zune::decode_into]) {
                    let before = spent();
                    for stream in streams.iter().cycle().take(PASSES * streams.len()) {
                        decode(stream, header, &mut samples).unwrap();
                    }
                    times.push(spent().saturating_sub(before).as_secs_f64());
                }
            }
            let pixels = streams.len() as f64 * header.samples() as f64 / 3.0;
            let [ours, zune] = times.map(|mut times| {
                times.sort_by(f64::total_cmp);
                PASSES as f64 * pixels / times[times.len() / 2] / 1e6
            });
            let bits = streams.iter().map(|stream| stream.len() as f64 * 8.0).sum::<f64>() / pixels;
            println!(
                "{name:30} {bits:4.2} bits a pixel: ours {ours:5.1}, zune-jpeg {zune:5.1} Mpx/s, {:.2} times",
                ours / zune
            );
        }
    }
}
