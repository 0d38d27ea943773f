//! Writes TIFF pyramids whose pixels are a function of their position.
//!
//! ```
//! use microtome_testkit::tiff::{Compression, TiffSlide};
//!
//! // Two levels; the pixel function gets level, x, y and channel.
//! let mut slide = TiffSlide::rgb(&[(500, 300), (250, 150)], |level, x, y, channel| {
//!     (level as u64 + x + 2 * y + 50 * channel as u64) as u16 % 256
//! });
//! slide.compression = Compression::Deflate;
//! assert_eq!(&slide.bytes()[..4], b"II\x2a\0");
//! ```

use std::io::{Cursor, Read, Result, Seek, SeekFrom, Write};
use std::path::Path;

/// 32- or 64-bit offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// TIFF 6.0.
    Classic,
    /// BigTIFF.
    Big,
}

/// In which order the bytes of a number are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `II`.
    Little,
    /// `MM`.
    Big,
}

/// How tiles are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// zlib.
    Deflate,
    /// JPEG of 8-bit samples at a quality of 1 to 100, without chroma subsampling, tables shared by all tiles of a level.
    /// What is stored is RGB or YCbCr as [`TiffSlide::photometric`] says (2 or 6).
    Jpeg(u8),
}

/// How pages are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Tiles of this width and height.
    Tiles(u32, u32),
    /// Strips of this many rows.
    Strips(u32),
}

/// Where levels after the first are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Levels {
    /// As further pages.
    Pages,
    /// As sub-directories of the first page.
    SubIfds,
}

/// The value of a sample, by level, x, y and channel.
pub type PixelFn = Box<dyn Fn(usize, u64, u64, usize) -> u16 + Send + Sync>;

/// A slide to be written. All fields may be changed before it is.
pub struct TiffSlide {
    /// Width and height of each level.
    pub levels: Vec<(u32, u32)>,
    /// The pixels.
    pub pixel: PixelFn,
    /// Samples per pixel.
    pub channels: usize,
    /// 8 or 16.
    pub bits: u16,
    /// TIFF's `PhotometricInterpretation`.
    pub photometric: u16,
    /// TIFF's `ExtraSamples`.
    pub extra_samples: Vec<u16>,
    /// Tiles or strips.
    pub cut: Cut,
    /// How they are compressed.
    pub compression: Compression,
    /// TIFF's `Predictor`: 1 or 2.
    pub predictor: u16,
    /// Width of offsets.
    pub container: Container,
    /// Byte order.
    pub order: Order,
    /// Where coarser levels go.
    pub placement: Levels,
    /// `ImageDescription` of the first page.
    pub description: Option<String>,
    /// Pixels per unit along x and y, and `ResolutionUnit`.
    pub resolution: Option<(f64, f64, u16)>,
    /// Tiles to leave out, by level, column and row.
    pub left_out: Vec<(usize, u32, u32)>,
    /// Fields of small numbers to add to each page, or to put in place of those that would be written.
    pub fields: Vec<(u16, Vec<u16>)>,
}

impl std::fmt::Debug for TiffSlide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TiffSlide").field("levels", &self.levels).finish_non_exhaustive()
    }
}

/// The values of a field.
enum Values {
    Short(Vec<u16>),
    Long(Vec<u64>),
    /// Long in a classic TIFF, Long8 in a BigTIFF.
    Offset(Vec<u64>),
    Bytes(u16, Vec<u8>),
    Rational(f64),
}

impl TiffSlide {
    /// A slide of 8-bit RGB pixels in uncompressed tiles of 64 x 64.
    pub fn rgb(levels: &[(u32, u32)], pixel: impl Fn(usize, u64, u64, usize) -> u16 + Send + Sync + 'static) -> Self {
        Self {
            levels: levels.to_vec(),
            pixel: Box::new(pixel),
            channels: 3,
            bits: 8,
            photometric: 2,
            extra_samples: Vec::new(),
            cut: Cut::Tiles(64, 64),
            compression: Compression::None,
            predictor: 1,
            container: Container::Classic,
            order: Order::Little,
            placement: Levels::Pages,
            description: None,
            resolution: None,
            left_out: Vec::new(),
            fields: Vec::new(),
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

    /// Writes the file, tile by tile, so that memory does not grow with the slide.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_to(&self, out: &mut (impl Write + Seek)) -> Result<()> {
        out.write_all(if self.order == Order::Little { b"II" } else { b"MM" })?;
        match self.container {
            Container::Classic => out.write_all(&self.number(42, 2))?,
            Container::Big => out.write_all(&[self.number(43, 2), self.number(8, 2), self.number(0, 2)].concat())?,
        }
        // The place that holds the offset of the next directory.
        let mut link = out.stream_position()?;
        out.write_all(&self.number(0, self.offset_bytes()))?;

        let mut pages = Vec::new();
        for level in 0..self.levels.len() {
            pages.push(self.write_tiles(out, level)?);
        }
        let mut sub_ifds = Vec::new();
        if self.placement == Levels::SubIfds {
            for fields in pages.drain(1..) {
                sub_ifds.push(self.write_directory(out, fields)?.0);
            }
        }
        for (page, mut fields) in pages.into_iter().enumerate() {
            if page == 0 {
                self.describe(&mut fields);
                if !sub_ifds.is_empty() {
                    fields.push((330, Values::Offset(sub_ifds.clone())));
                }
            }
            let (offset, next) = self.write_directory(out, fields)?;
            let end = out.stream_position()?;
            out.seek(SeekFrom::Start(link))?;
            out.write_all(&self.number(offset, self.offset_bytes()))?;
            out.seek(SeekFrom::Start(end))?;
            link = next;
        }
        Ok(())
    }

    fn describe(&self, fields: &mut Vec<(u16, Values)>) {
        if let Some(text) = &self.description {
            fields.push((270, Values::Bytes(2, [text.as_bytes(), b"\0"].concat())));
        }
        if let Some((x, y, unit)) = self.resolution {
            fields.push((282, Values::Rational(x)));
            fields.push((283, Values::Rational(y)));
            fields.push((296, Values::Short(vec![unit])));
        }
    }

    /// Writes the tiles or strips of a level; returns the fields of its directory.
    fn write_tiles(&self, out: &mut (impl Write + Seek), level: usize) -> Result<Vec<(u16, Values)>> {
        let (width, height) = self.levels[level];
        let (cell_width, cell_height) = match self.cut {
            Cut::Tiles(width, height) => (width, height),
            Cut::Strips(rows) => (width, rows.min(height)),
        };
        let (mut offsets, mut counts, mut tables) = (Vec::new(), Vec::new(), None);
        for row in 0..height.div_ceil(cell_height) {
            for column in 0..width.div_ceil(cell_width) {
                if self.left_out.contains(&(level, column, row)) {
                    offsets.push(0);
                    counts.push(0);
                    continue;
                }
                let rows = match self.cut {
                    Cut::Tiles(..) => cell_height,
                    Cut::Strips(_) => cell_height.min(height - row * cell_height),
                };
                let samples = self.samples(level, column * cell_width, row * cell_height, cell_width, rows);
                let data = match self.compression {
                    Compression::None => self.raw(&samples, cell_width),
                    Compression::Deflate => {
                        let raw = self.raw(&samples, cell_width);
                        let mut packed = Vec::new();
                        flate2::read::ZlibEncoder::new(&raw[..], flate2::Compression::default())
                            .read_to_end(&mut packed)?;
                        packed
                    }
                    Compression::Jpeg(quality) => {
                        let (shared, abbreviated) = split_jpeg(&self.jpeg(&samples, cell_width, rows, quality));
                        tables.get_or_insert(shared);
                        abbreviated
                    }
                };
                // Offsets are to be even (TIFF 6.0, section 7).
                let at = out.stream_position()?;
                if at % 2 == 1 {
                    out.write_all(&[0])?;
                }
                offsets.push(out.stream_position()?);
                counts.push(data.len() as u64);
                out.write_all(&data)?;
            }
        }
        let mut fields = vec![
            (254, Values::Long(vec![u64::from(level > 0)])),
            (256, Values::Long(vec![width.into()])),
            (257, Values::Long(vec![height.into()])),
            (258, Values::Short(vec![self.bits; self.channels])),
            (
                259,
                Values::Short(vec![match self.compression {
                    Compression::None => 1,
                    Compression::Deflate => 8,
                    Compression::Jpeg(_) => 7,
                }]),
            ),
            (262, Values::Short(vec![self.photometric])),
            (277, Values::Short(vec![self.channels as u16])),
            (284, Values::Short(vec![1])),
        ];
        if self.predictor != 1 {
            fields.push((317, Values::Short(vec![self.predictor])));
        }
        if !self.extra_samples.is_empty() {
            fields.push((338, Values::Short(self.extra_samples.clone())));
        }
        if let Some(tables) = tables {
            fields.push((347, Values::Bytes(7, tables)));
        }
        match self.cut {
            Cut::Tiles(width, height) => fields.extend([
                (322, Values::Long(vec![width.into()])),
                (323, Values::Long(vec![height.into()])),
                (324, Values::Offset(offsets)),
                (325, Values::Offset(counts)),
            ]),
            Cut::Strips(rows) => fields.extend([
                (273, Values::Offset(offsets)),
                (278, Values::Long(vec![rows.into()])),
                (279, Values::Offset(counts)),
            ]),
        }
        for (tag, values) in &self.fields {
            fields.retain(|(known, _)| known != tag);
            fields.push((*tag, Values::Short(values.clone())));
        }
        Ok(fields)
    }

    fn samples(&self, level: usize, x: u32, y: u32, width: u32, height: u32) -> Vec<u16> {
        let mut samples = Vec::with_capacity(width as usize * height as usize * self.channels);
        for y in y..y + height {
            for x in x..x + width {
                samples.extend((0..self.channels).map(|channel| (self.pixel)(level, x.into(), y.into(), channel)));
            }
        }
        samples
    }

    /// The bytes of samples in the order of the file, as differences if there is a predictor.
    fn raw(&self, samples: &[u16], width: u32) -> Vec<u8> {
        let stride = width as usize * self.channels;
        let mut raw = Vec::with_capacity(samples.len() * usize::from(self.bits) / 8);
        for row in samples.chunks_exact(stride) {
            for (i, &sample) in row.iter().enumerate() {
                let left = if self.predictor == 2 && i >= self.channels { row[i - self.channels] } else { 0 };
                raw.extend(self.number(sample.wrapping_sub(left).into(), usize::from(self.bits / 8)));
            }
        }
        raw
    }

    fn jpeg(&self, samples: &[u16], width: u32, height: u32, quality: u8) -> Vec<u8> {
        use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
        let samples: Vec<u8> = samples.iter().map(|&sample| sample as u8).collect();
        let color = match (self.channels, self.photometric) {
            (1, _) => ColorType::Luma,
            // Channels that call themselves YCbCr are stored as they are, and so stay RGB.
            (_, 2) => ColorType::Ycbcr,
            _ => ColorType::Rgb,
        };
        let mut stream = Vec::new();
        let mut encoder = Encoder::new(&mut stream, quality);
        encoder.set_sampling_factor(SamplingFactor::F_1_1);
        encoder
            .encode(&samples, width as u16, height as u16, color)
            .expect("tiles have the sizes that JPEG allows, and memory takes any stream");
        stream
    }

    /// Writes a directory and the values that do not fit into it; returns its offset, and that of its link to the next one.
    fn write_directory(&self, out: &mut (impl Write + Seek), mut fields: Vec<(u16, Values)>) -> Result<(u64, u64)> {
        fields.sort_by_key(|(tag, _)| *tag);
        let room = self.offset_bytes();
        let mut entries = self.number(fields.len() as u64, if room == 8 { 8 } else { 2 });
        for (tag, values) in &fields {
            let (kind, count, mut bytes) = self.encode(values);
            if bytes.len() > room {
                if out.stream_position()? % 2 == 1 {
                    out.write_all(&[0])?;
                }
                let at = out.stream_position()?;
                out.write_all(&bytes)?;
                bytes = self.number(at, room);
            }
            bytes.resize(room, 0);
            entries.extend(self.number((*tag).into(), 2));
            entries.extend(self.number(kind.into(), 2));
            entries.extend(self.number(count, room));
            entries.extend(bytes);
        }
        if out.stream_position()? % 2 == 1 {
            out.write_all(&[0])?;
        }
        let offset = out.stream_position()?;
        out.write_all(&entries)?;
        let link = out.stream_position()?;
        out.write_all(&self.number(0, room))?;
        Ok((offset, link))
    }

    /// Type, count and bytes of a field.
    fn encode(&self, values: &Values) -> (u16, u64, Vec<u8>) {
        let numbers = |values: &[u64], width| values.iter().flat_map(|&value| self.number(value, width)).collect();
        match values {
            Values::Short(values) => {
                let values: Vec<u64> = values.iter().map(|&value| value.into()).collect();
                (3, values.len() as u64, numbers(&values, 2))
            }
            Values::Offset(values) if self.container == Container::Big => (16, values.len() as u64, numbers(values, 8)),
            Values::Long(values) | Values::Offset(values) => (4, values.len() as u64, numbers(values, 4)),
            Values::Bytes(kind, bytes) => (*kind, bytes.len() as u64, bytes.clone()),
            Values::Rational(value) => (5, 1, numbers(&[(value * 1e4).round() as u64, 10_000], 4)),
        }
    }

    fn offset_bytes(&self) -> usize {
        if self.container == Container::Big { 8 } else { 4 }
    }

    fn number(&self, value: u64, width: usize) -> Vec<u8> {
        match self.order {
            Order::Little => value.to_le_bytes()[..width].to_vec(),
            Order::Big => value.to_be_bytes()[8 - width..].to_vec(),
        }
    }
}

/// Parts a JPEG stream into its tables, as a stream of their own, and the rest: TIFF's abbreviated form.
fn split_jpeg(stream: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut tables, mut rest) = (vec![0xff, 0xd8], vec![0xff, 0xd8]);
    let mut at = 2;
    while stream[at + 1] != 0xda {
        let end = at + 2 + usize::from(u16::from_be_bytes([stream[at + 2], stream[at + 3]]));
        let is_table = matches!(stream[at + 1], 0xdb | 0xc4);
        if is_table { &mut tables } else { &mut rest }.extend(&stream[at..end]);
        at = end;
    }
    rest.extend(&stream[at..]);
    tables.extend([0xff, 0xd9]);
    (tables, rest)
}
