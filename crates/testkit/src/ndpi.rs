//! Writes Hamamatsu NDPI slides whose pixels are a function of their position.
//!
//! Each interval between restart markers is encoded as a JPEG of its own; their units are then strung together. A level can
//! so be larger than any encoder would take, and its bytes are what a scanner would write: OpenSlide reads them.
//!
//! ```
//! use microtome_testkit::ndpi::NdpiSlide;
//!
//! let slide = NdpiSlide::new(&[(512, 256), (128, 64)], |level, x, y| [x as u8, y as u8, level as u8]);
//! assert_eq!(&slide.bytes()[..4], b"II\x2a\0");
//! ```

use std::io::{Cursor, Result, Seek, SeekFrom, Write};
use std::path::Path;

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

/// How coarsely chroma is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chroma {
    /// As finely as luma: units of 8 x 8 pixels.
    Full,
    /// Half as finely along x: units of 16 x 8.
    HalfWidth,
    /// Half as finely along both: units of 16 x 16.
    Half,
}

/// What the table of the places of intervals says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starts {
    /// The truth.
    Right,
    /// Nothing: there is none.
    Absent,
    /// Places that are off by a few bytes here and there.
    Wrong,
}

/// The red, green and blue of a pixel, by level, x and y.
pub type PixelFn = Box<dyn Fn(usize, u64, u64) -> [u8; 3] + Send + Sync>;

/// A slide to be written. All fields may be changed before it is.
pub struct NdpiSlide {
    /// Width and height of each level; whole intervals if OpenSlide is to read it.
    pub levels: Vec<(u32, u32)>,
    /// The pixels.
    pub pixel: PixelFn,
    /// Units between restart markers; 0 for none. More than lie side by side must be whole rows of them.
    pub interval: u16,
    /// How chroma is stored.
    pub chroma: Chroma,
    /// The table of intervals.
    pub starts: Starts,
    /// False to let the frame header say 0 in place of sides. Where they are too long for it, as for scanners, it always does.
    pub says_size: bool,
    /// Further pages of the first level's size at other focal planes, in nanometres.
    pub planes: Vec<i32>,
    /// Bytes to be left out in front of the first level; the file system need not store them.
    pub gap: u64,
    /// The magnification of the first level.
    pub lens: f32,
    /// Pixels per centimetre of the first level.
    pub per_centimeter: u32,
    /// Lines of `key=value`.
    pub properties: String,
}

impl std::fmt::Debug for NdpiSlide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NdpiSlide").field("levels", &self.levels).finish_non_exhaustive()
    }
}

/// A field of a directory.
enum Values<'a> {
    Short(Vec<u16>),
    Long(Vec<u64>),
    Signed(i32),
    Float(f32),
    Ratio(u32),
    Text(&'a str),
}

/// What is said of a page besides where its bytes lie.
struct Page<'a> {
    size: (u32, u32),
    samples: u16,
    compression: u16,
    photometric: u16,
    lens: f32,
    plane: Option<i32>,
    per_centimeter: u32,
    starts: &'a [u64],
}

impl NdpiSlide {
    /// A slide with intervals of 16 units of 8 x 8 pixels.
    pub fn new(levels: &[(u32, u32)], pixel: impl Fn(usize, u64, u64) -> [u8; 3] + Send + Sync + 'static) -> Self {
        Self {
            levels: levels.to_vec(),
            pixel: Box::new(pixel),
            interval: 16,
            chroma: Chroma::Full,
            starts: Starts::Right,
            says_size: true,
            planes: Vec::new(),
            gap: 0,
            lens: 20.0,
            per_centimeter: 21_913,
            properties: "Product=C0000\r\nempty=\r\nno pair\r\nstage.center=1,2\r\n".into(),
        }
    }

    /// The whole file.
    ///
    /// # Panics
    /// Never: writing to memory does not fail.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        self.write_to(&mut out).expect("writing to memory does not fail");
        out.into_inner()
    }

    /// Writes the file.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        self.write_to(&mut file)?;
        file.flush()
    }

    /// Writes the file.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_to(&self, out: &mut (impl Write + Seek)) -> Result<()> {
        out.write_all(b"II\x2a\0")?;
        let mut link = out.stream_position()?;
        out.write_all(&[0; 8])?;
        out.seek(SeekFrom::Current(self.gap as i64))?;
        let levels = self.levels.iter().enumerate().map(|(level, _)| (level, 0));
        for (level, plane) in levels.chain(self.planes.iter().map(|&plane| (0, plane))) {
            let size = self.levels[level];
            let (stream, mut starts) = self.encode(level);
            match self.starts {
                Starts::Right => {}
                Starts::Absent => starts.clear(),
                Starts::Wrong => starts.iter_mut().skip(3).step_by(5).for_each(|start| *start += 3),
            }
            let shrink = self.levels[0].0 as f32 / size.0 as f32;
            let page = Page {
                size,
                samples: 3,
                compression: 7,
                photometric: 6,
                lens: self.lens / shrink,
                plane: Some(plane),
                per_centimeter: (self.per_centimeter as f32 / shrink) as u32,
                starts: &starts,
            };
            link = self.write_page(out, &stream, &page, link)?;
        }
        let (width, height) = (160, 56);
        let glass: Vec<u8> = (0..width * height).flat_map(|i| (self.pixel)(9, i % width, i / width)).collect();
        let mut stream = Vec::new();
        Encoder::new(&mut stream, 90)
            .encode(&glass, width as u16, height as u16, ColorType::Rgb)
            .map_err(std::io::Error::other)?;
        let mut page = Page {
            size: (width as u32, height as u32),
            samples: 3,
            compression: 7,
            photometric: 6,
            lens: -1.0,
            plane: None,
            per_centimeter: 156,
            starts: &[],
        };
        link = self.write_page(out, &stream, &page, link)?;
        let map: Vec<u8> = glass.chunks_exact(3).map(|pixel| pixel[0]).collect();
        page = Page { samples: 1, compression: 1, photometric: 1, lens: -2.0, ..page };
        self.write_page(out, &map, &page, link)?;
        Ok(())
    }

    /// Width and height of a unit.
    fn unit(&self) -> (u32, u32) {
        match self.chroma {
            Chroma::Full => (8, 8),
            Chroma::HalfWidth => (16, 8),
            Chroma::Half => (16, 16),
        }
    }

    /// A rectangle of a level as a JPEG.
    fn encode_piece(&self, level: usize, (x, y): (u32, u32), (width, height): (u32, u32)) -> Vec<u8> {
        let rows = y..y + height;
        let samples: Vec<u8> =
            rows.flat_map(|y| (x..x + width).flat_map(move |x| (self.pixel)(level, x.into(), y.into()))).collect();
        let mut stream = Vec::new();
        let mut encoder = Encoder::new(&mut stream, 85);
        encoder.set_sampling_factor(match self.chroma {
            Chroma::Full => SamplingFactor::F_1_1,
            Chroma::HalfWidth => SamplingFactor::F_2_1,
            Chroma::Half => SamplingFactor::F_2_2,
        });
        encoder
            .encode(&samples, width as u16, height as u16, ColorType::Rgb)
            .expect("pieces have the sizes that JPEG allows, and memory takes any stream");
        stream
    }

    /// A level as a JPEG, and where its intervals start.
    fn encode(&self, level: usize) -> (Vec<u8>, Vec<u64>) {
        let (width, height) = self.levels[level];
        let (unit_width, unit_height) = self.unit();
        let (across, down) = (width.div_ceil(unit_width), height.div_ceil(unit_height));
        let size = match u32::from(self.interval) {
            0 => (width, height),
            interval if interval > across => (across * unit_width, interval / across * unit_height),
            interval => (interval * unit_width, unit_height),
        };
        let (mut stream, mut starts) = (Vec::new(), Vec::new());
        for y in (0..height).step_by(size.1 as usize) {
            for x in (0..width).step_by(size.0 as usize) {
                let rest = if self.interval == 0 { height } else { down * unit_height - y };
                let piece = self.encode_piece(level, (x, y), (size.0, size.1.min(rest)));
                let (frame, scan, data) = segments(&piece);
                if starts.is_empty() {
                    stream.extend(&piece[..scan]);
                    let sides = if self.says_size && width.max(height) <= 65_500 {
                        [height as u16, width as u16]
                    } else {
                        [0, 0]
                    };
                    stream[frame + 5..frame + 9].copy_from_slice(&sides.map(u16::to_be_bytes).concat());
                    if self.interval > 0 {
                        stream.extend([0xff, 0xdd, 0, 4]);
                        stream.extend(self.interval.to_be_bytes());
                    }
                    stream.extend(&piece[scan..data]);
                } else {
                    stream.extend([0xff, 0xd0 + (starts.len() - 1) as u8 % 8]);
                }
                starts.push(stream.len() as u64);
                stream.extend(&piece[data..piece.len() - 2]);
            }
        }
        stream.extend([0xff, 0xd9]);
        if self.interval == 0 {
            starts.clear();
        }
        (stream, starts)
    }

    /// Writes the bytes of a page and its directory, and its place to `link`; returns where the place of the next one belongs.
    fn write_page(&self, out: &mut (impl Write + Seek), data: &[u8], page: &Page<'_>, link: u64) -> Result<u64> {
        let at = out.stream_position()?;
        out.write_all(data)?;
        let lows: Vec<u64> = page.starts.iter().map(|start| start & 0xffff_ffff).collect();
        let highs: Vec<u64> = page.starts.iter().map(|start| start >> 32).collect();
        let bits = vec![8; page.samples.into()];
        let (width, height) = (u64::from(page.size.0), u64::from(page.size.1));
        let mut fields = vec![
            (256, Values::Long(vec![width])),
            (257, Values::Long(vec![height])),
            (258, Values::Short(bits)),
            (259, Values::Short(vec![page.compression])),
            (262, Values::Short(vec![page.photometric])),
            (271, Values::Text("Hamamatsu")),
            (273, Values::Long(vec![at])),
            (277, Values::Short(vec![page.samples])),
            (278, Values::Long(vec![height])),
            (279, Values::Long(vec![data.len() as u64])),
            (282, Values::Ratio(page.per_centimeter)),
            (283, Values::Ratio(page.per_centimeter)),
            (296, Values::Short(vec![3])),
            (65420, Values::Short(vec![1])),
            (65421, Values::Float(page.lens)),
            (65422, Values::Signed(12_538_720)),
            (65423, Values::Signed(-96_063)),
            (65424, Values::Signed(page.plane.unwrap_or(0))),
            (65426, Values::Long(lows)),
            (65427, Values::Text("reference")),
            (65432, Values::Long(highs)),
            (65449, Values::Text(&self.properties)),
        ];
        fields.retain(|(tag, values)| match values {
            Values::Long(values) if values.is_empty() => false,
            _ => page.plane.is_some() || *tag != 65424,
        });
        // Low and high halves of values that fit into an entry, or of the places of others.
        let mut entries = Vec::new();
        for (tag, values) in &fields {
            let (kind, count, bytes) = encode(values);
            let value = if bytes.len() <= 4 || matches!(values, Values::Long(values) if values.len() == 1) {
                let mut value = bytes;
                value.resize(8, 0);
                value
            } else {
                let at = out.stream_position()?;
                out.write_all(&bytes)?;
                at.to_le_bytes().to_vec()
            };
            entries.push((*tag, kind, count, value));
        }
        let offset = out.stream_position()?;
        out.write_all(&(entries.len() as u16).to_le_bytes())?;
        for (tag, kind, count, value) in &entries {
            out.write_all(&u16::to_le_bytes(*tag))?;
            out.write_all(&u16::to_le_bytes(*kind))?;
            out.write_all(&u32::to_le_bytes(*count))?;
            out.write_all(&value[..4])?;
        }
        let next = out.stream_position()?;
        out.write_all(&[0; 8])?;
        for (.., value) in &entries {
            out.write_all(&value[4..])?;
        }
        let end = out.stream_position()?;
        out.seek(SeekFrom::Start(link))?;
        out.write_all(&offset.to_le_bytes())?;
        out.seek(SeekFrom::Start(end))?;
        Ok(next)
    }
}

/// Type, count and bytes of a field. A single long number has 8 bytes.
fn encode(values: &Values<'_>) -> (u16, u32, Vec<u8>) {
    match values {
        Values::Short(values) => {
            (3, values.len() as u32, values.iter().flat_map(|value| value.to_le_bytes()).collect())
        }
        Values::Long(values) if values.len() == 1 => (4, 1, values[0].to_le_bytes().to_vec()),
        Values::Long(values) => {
            (4, values.len() as u32, values.iter().flat_map(|&value| (value as u32).to_le_bytes()).collect())
        }
        Values::Signed(value) => (9, 1, value.to_le_bytes().to_vec()),
        Values::Float(value) => (11, 1, value.to_le_bytes().to_vec()),
        Values::Ratio(value) => (5, 1, [value.to_le_bytes(), 1_u32.to_le_bytes()].concat()),
        Values::Text(text) => (2, text.len() as u32 + 1, [text.as_bytes(), b"\0"].concat()),
    }
}

/// Where the frame header, the scan header and the units of a JPEG start.
fn segments(stream: &[u8]) -> (usize, usize, usize) {
    let (mut at, mut frame) = (2, 0);
    loop {
        let end = at + 2 + usize::from(u16::from_be_bytes([stream[at + 2], stream[at + 3]]));
        match stream[at + 1] {
            0xc0 | 0xc1 => frame = at,
            0xda => return (frame, at, end),
            _ => {}
        }
        at = end;
    }
}
