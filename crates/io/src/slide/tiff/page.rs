//! A directory as a picture: what its samples are, and how one tile or strip is decoded.

use super::ifd::Ifd;
use super::layout::{Cut, Layout};
use super::{Container, Tag};
use crate::pixels::Samples;
use crate::slide::alpha::{Alpha, Channel, over_white};
use crate::slide::codec::{self, Compression, predictor};
use crate::slide::pyramid::check_limit;
use crate::slide::raster::{Raster, Shape};
use crate::{Error, Pixels, Result, SampleType, Size, TileCoord};

/// What the samples of a pixel mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Color {
    /// One channel or more without a common colour; the first is brightness.
    Grey,
    /// One channel of brightness, stored upside down.
    InvertedGrey,
    /// Red, green, blue.
    Rgb,
    /// JPEG's luma and chroma; the decoder makes red, green, blue of them.
    YCbCr,
}

/// The most samples per pixel: fluorescence slides have a dozen, and nobody means more.
const MAX_CHANNELS: u64 = 64;

/// A page whose samples can be decoded.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    file: Container,
    /// Its tiles or strips.
    pub(crate) layout: Layout,
    /// What the samples mean.
    pub(crate) color: Color,
    shape: Shape,
    compression: Compression,
    predictor: bool,
    stored_channels: usize,
    alpha: Option<Alpha>,
    jpeg_tables: Option<Vec<u8>>,
}

impl Page {
    /// Reads how a page is stored.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming what cannot be read, [`Error::Format`] for a page that contradicts itself,
    /// [`Error::Limits`] for one whose pieces are too large.
    pub(crate) fn read(file: &Container, ifd: &Ifd) -> Result<Self> {
        let unsupported =
            |what: String| Error::unsupported(file.path(), format!("TIFF page at byte {}: {what}", ifd.offset()));
        let value = |tag: Tag, default: u64| Ok::<_, Error>(ifd.unsigned(file, tag)?.unwrap_or(default));

        let compression = Compression::from_code(value(Tag::COMPRESSION, 1)?).map_err(unsupported)?;
        let samples = value(Tag::SAMPLES_PER_PIXEL, 1)?;
        if !(1..=MAX_CHANNELS).contains(&samples) {
            return Err(unsupported(format!("{samples} samples per pixel cannot be read, 1 to {MAX_CHANNELS} can")));
        }
        let stored_channels = samples as usize;
        let sample = sample_type(file, ifd).and_then(|found| found.map_err(unsupported))?;
        if matches!(compression, Compression::Jpeg | Compression::WebP) && sample != SampleType::U8 {
            let name = if compression == Compression::WebP { "WebP" } else { "JPEG" };
            return Err(unsupported(format!("{name} of 16 bits per sample cannot be read, 8 can")));
        }
        // Of a single channel both configurations are the same.
        let planes = match value(Tag::PLANAR_CONFIGURATION, 1)? {
            2 if samples > 1 => samples,
            1 | 2 => 1,
            code => return Err(unsupported(format!("PlanarConfiguration {code} cannot be read, 1 and 2 can"))),
        };
        let stream_channels = if planes > 1 { 1 } else { stored_channels };
        if value(Tag::FILL_ORDER, 1)? != 1 {
            return Err(unsupported("bits stored from the other end (FillOrder 2) cannot be read".into()));
        }
        // 0 is no orientation at all; libtiff takes it for 1, and so do we.
        let orientation = value(Tag::ORIENTATION, 1)?;
        if orientation > 1 {
            return Err(unsupported(format!(
                "a turned or mirrored picture (Orientation {orientation}) cannot be read"
            )));
        }

        let photometric = ifd.unsigned(file, Tag::PHOTOMETRIC_INTERPRETATION)?;
        let (color, color_channels) = match photometric {
            Some(0) => (Color::InvertedGrey, 1),
            Some(1) => (Color::Grey, 1),
            Some(2) => (Color::Rgb, 3),
            Some(6) if matches!(compression, Compression::Jpeg | Compression::Jpeg2000) => (Color::YCbCr, 3),
            // Here the compression says what the colours are.
            Some(6) if compression.is_jpeg2000() => (Color::Rgb, 3),
            Some(code) => return Err(unsupported(photometric_refusal(code))),
            None => {
                return Err(Error::format(
                    file.path(),
                    format!("TIFF page at byte {}: has no PhotometricInterpretation", ifd.offset()),
                ));
            }
        };
        if stored_channels < color_channels {
            return Err(Error::format(
                file.path(),
                format!("TIFF page at byte {}: {samples} samples per pixel cannot be colours", ifd.offset()),
            ));
        }
        let extra = ifd.unsigned_values(file, Tag::EXTRA_SAMPLES)?.unwrap_or_default();
        let alpha = alpha(&extra, stored_channels - color_channels).map_err(unsupported)?;
        if color == Color::InvertedGrey && stored_channels > 1 {
            return Err(unsupported("white-is-zero pixels of several samples cannot be read".into()));
        }
        match compression {
            Compression::Jpeg if planes == 1 && stored_channels != color_channels => {
                return Err(unsupported(format!("JPEG of {samples} channels cannot be read, 1 and 3 can")));
            }
            Compression::WebP if !(3..=4).contains(&stream_channels) || color != Color::Rgb => {
                return Err(unsupported("WebP of other than RGB or RGBA pixels cannot be read".into()));
            }
            Compression::Jpeg2000 | Compression::Jpeg2000Rgb | Compression::Jpeg2000YCbCr if stream_channels > 4 => {
                return Err(unsupported(format!("JPEG 2000 of {samples} channels cannot be read, 1 to 4 can")));
            }
            _ => {}
        }
        if planes > 1 && (color == Color::YCbCr || compression == Compression::Jpeg2000YCbCr) {
            return Err(unsupported("luma and chroma in planes of their own cannot be read".into()));
        }
        let predictor = match value(Tag::PREDICTOR, 1)? {
            1 => false,
            _ if !compression.has_predictor() => false,
            2 => true,
            code => return Err(unsupported(format!("predictor {code} cannot be read, 1 and 2 can"))),
        };

        let layout = Layout::read(file, ifd, planes)?;
        let channels = stored_channels - usize::from(alpha.is_some());
        let background = match (color, sample) {
            (Color::Grey | Color::InvertedGrey, _) if alpha.is_none() => 0,
            (_, SampleType::U8) => u16::from(u8::MAX),
            (_, SampleType::U16) => u16::MAX,
        };
        let shape =
            Shape { size: layout.size, cell: layout.cell, channels, sample, background: vec![background; channels] };
        // Alpha is decoded, too, before it is got rid of.
        check_limit(
            file.path(),
            &Shape { channels: stored_channels, ..shape.clone() },
            shape.cell,
            file.limits().decoded_bytes,
        )?;
        Ok(Self {
            file: file.clone(),
            layout,
            color,
            shape,
            compression,
            predictor,
            stored_channels,
            alpha,
            jpeg_tables: match compression {
                Compression::Jpeg => ifd.bytes(file, Tag::JPEG_TABLES)?,
                _ => None,
            },
        })
    }

    /// True if pixels were laid over white to get rid of an alpha channel.
    pub(crate) fn has_alpha(&self) -> bool {
        self.alpha.is_some()
    }

    /// The samples of one stream, which holds all channels or one plane, with the predictor undone.
    fn decompress(&self, data: &[u8], size: Size) -> Result<Samples, String> {
        let planar = self.layout.planes > 1;
        let channels = if planar { 1 } else { self.stored_channels };
        match self.compression {
            Compression::Jpeg => {
                let (expected, color) = self.jpeg_header(size)?;
                return codec::jpeg::decode(self.jpeg_tables.as_deref(), data, expected, color).map(Samples::U8);
            }
            Compression::Jpeg2000 | Compression::Jpeg2000YCbCr | Compression::Jpeg2000Rgb => {
                let expected = codec::jpeg2000::Expected {
                    width: size.width,
                    height: size.height,
                    components: channels,
                    sample: self.shape.sample,
                };
                let luma_and_chroma = match self.compression {
                    Compression::Jpeg2000YCbCr => channels == 3,
                    Compression::Jpeg2000Rgb => false,
                    _ => self.color == Color::YCbCr,
                };
                let color =
                    if luma_and_chroma { codec::jpeg2000::Color::YCbCr } else { codec::jpeg2000::Color::AsStored };
                return codec::jpeg2000::decode(data, expected, color);
            }
            Compression::WebP => return codec::webp::decode(data, size.width, size.height, channels).map(Samples::U8),
            _ => {}
        }
        // The product was checked against the limits when the page was read.
        let mut bytes = vec![0; size.area() as usize * channels * self.shape.sample.bytes()];
        match self.compression {
            Compression::Lzw => codec::lzw::decode(data, &mut bytes)?,
            Compression::PackBits => codec::packbits::decode(data, &mut bytes)?,
            Compression::Deflate => codec::deflate::decode(data, &mut bytes)?,
            Compression::Zstd => codec::zstd::decode(data, &mut bytes)?,
            _ => codec::none::decode(data, &mut bytes)?,
        }
        let width = size.width as usize;
        Ok(match self.shape.sample {
            SampleType::U8 => {
                if self.predictor {
                    predictor::undo(&mut bytes, width, channels);
                }
                Samples::U8(bytes)
            }
            SampleType::U16 => {
                let mut samples = self.file.order().samples(&bytes);
                if self.predictor {
                    predictor::undo(&mut samples, width, channels);
                }
                Samples::U16(samples)
            }
        })
    }

    /// What a JPEG stream of this size must say, and what its channels are.
    fn jpeg_header(&self, size: Size) -> Result<(codec::jpeg::Header, codec::jpeg::Color), String> {
        let planar = self.layout.planes > 1;
        let side = |pixels: u64| u16::try_from(pixels).map_err(|_| format!("JPEG: no side is {pixels} pixels long"));
        let expected = codec::jpeg::Header {
            width: side(size.width)?,
            height: side(size.height)?,
            components: if planar { 1 } else { self.stored_channels as u8 },
        };
        let color = match self.color {
            _ if planar => codec::jpeg::Color::Grey,
            Color::Rgb => codec::jpeg::Color::Rgb,
            Color::YCbCr => codec::jpeg::Color::YCbCr,
            Color::Grey | Color::InvertedGrey => codec::jpeg::Color::Grey,
        };
        Ok((expected, color))
    }

    /// The samples of all planes, those of a pixel side by side; `None` if the file leaves the piece out.
    fn planes(&self, tile: TileCoord, size: Size) -> Result<Option<Samples>> {
        let file = &self.file;
        let corrupt = |what: String| Error::format(file.path(), what);
        let pixels = size.area() as usize * self.stored_channels;
        let mut whole = match self.shape.sample {
            SampleType::U8 => Samples::U8(vec![0; pixels]),
            SampleType::U16 => Samples::U16(vec![0; pixels]),
        };
        let mut missing = 0;
        for plane in 0..self.layout.planes {
            let Some(data) = self.layout.bytes(file, tile, plane)? else {
                missing += 1;
                continue;
            };
            let samples = self.decompress(&data, size);
            file.source().still_whole()?;
            let spread = |what: &str| format!("channel {plane}: {what}");
            match (&mut whole, samples.map_err(|what| corrupt(spread(&what)))?) {
                (Samples::U8(whole), Samples::U8(samples)) => scatter(whole, &samples, plane, self.stored_channels),
                (Samples::U16(whole), Samples::U16(samples)) => scatter(whole, &samples, plane, self.stored_channels),
                _ => unreachable!("all planes are of the page's type"),
            }
        }
        match missing {
            0 => Ok(Some(whole)),
            _ if missing == self.layout.planes => Ok(None),
            _ => Err(corrupt(format!("{missing} of {} channels are left out, the others are not", self.layout.planes))),
        }
    }

    /// Undoes what was done to the samples of a pixel.
    fn interpret<T: Channel>(&self, mut samples: Vec<T>) -> Vec<T> {
        if self.color == Color::InvertedGrey {
            for sample in &mut samples {
                *sample = T::of(T::WHITE - (*sample).into());
            }
        }
        match self.alpha {
            Some(alpha) => over_white(&samples, self.stored_channels, alpha),
            None => samples,
        }
    }
}

/// Puts the samples of a plane where they belong among those of all.
fn scatter<T: Copy>(whole: &mut [T], plane: &[T], number: u64, channels: usize) {
    for (to, from) in whole.iter_mut().skip(number as usize).step_by(channels).zip(plane) {
        *to = *from;
    }
}

impl Raster for Page {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn decode(&self, tile: TileCoord) -> Result<Option<Pixels>> {
        let file = &self.file;
        let size = self.layout.stored_size(tile);
        let samples = if self.layout.planes > 1 {
            self.planes(tile, size)?
        } else {
            let Some(data) = self.layout.bytes(file, tile, 0)? else { return Ok(None) };
            let samples = self.decompress(&data, size);
            // Bytes that vanished meanwhile read as zeros: neither these samples nor what is said against them counts then.
            file.source().still_whole()?;
            Some(samples.map_err(|what| Error::format(file.path(), what))?)
        };
        Ok(samples.map(|samples| match samples {
            Samples::U8(samples) => Pixels::from_u8(size, self.shape.channels, self.interpret(samples)),
            Samples::U16(samples) => Pixels::from_u16(size, self.shape.channels, self.interpret(samples)),
        }))
    }

    fn jpeg(&self, tile: TileCoord) -> Result<Option<Vec<u8>>> {
        let file = &self.file;
        // Strips end where the page does; alpha and inverted greys are undone after decoding.
        let as_decoded = self.layout.planes == 1 && self.alpha.is_none() && self.color != Color::InvertedGrey;
        if self.compression != Compression::Jpeg || self.layout.cut != Cut::Tiles || !as_decoded {
            return Ok(None);
        }
        let Some(data) = self.layout.bytes(file, tile, 0)? else { return Ok(None) };
        let stream = self.jpeg_header(self.layout.stored_size(tile)).and_then(|(expected, color)| {
            codec::jpeg::whole_baseline(self.jpeg_tables.as_deref(), &data, expected, color)
        });
        // Bytes that vanished meanwhile read as zeros: what is said of them does not count then.
        file.source().still_whole()?;
        stream.map_err(|what| Error::format(file.path(), what))
    }

    fn prefetch(&self, tile: TileCoord) {
        // A tile that cannot be found is for whoever reads it to complain about.
        for plane in 0..self.layout.planes {
            if let Ok(Some(range)) = self.layout.range(&self.file, tile, plane) {
                self.file.source().prefetch(range);
            }
        }
    }
}

/// The type of all samples of a page, or a clause that says why it is none that can be read.
fn sample_type(file: &Container, ifd: &Ifd) -> Result<Result<SampleType, String>> {
    let bits = ifd.unsigned_values(file, Tag::BITS_PER_SAMPLE)?.unwrap_or_else(|| vec![1]);
    let formats = ifd.unsigned_values(file, Tag::SAMPLE_FORMAT)?.unwrap_or_else(|| vec![1]);
    if let Some(format) = formats.iter().find(|&&format| format != 1) {
        let name = match format {
            2 => "signed",
            3 => "floating-point",
            4 => "undefined",
            _ => "complex or unknown",
        };
        return Ok(Err(format!("{name} samples cannot be read, unsigned ones of 8 or 16 bits can")));
    }
    Ok(match bits.first() {
        Some(8) if bits.iter().all(|&b| b == 8) => Ok(SampleType::U8),
        Some(16) if bits.iter().all(|&b| b == 16) => Ok(SampleType::U16),
        Some(first) if bits.iter().all(|b| b == first) => {
            Err(format!("{first} bits per sample cannot be read, 8 and 16 can"))
        }
        _ => Err("samples of different widths cannot be read".into()),
    })
}

/// Why a photometric interpretation is refused.
fn photometric_refusal(code: u64) -> String {
    let name = match code {
        3 => "a palette",
        4 => "a transparency mask",
        5 => "CMYK",
        6 => "YCbCr outside of JPEG",
        8..=10 => "CIE L*a*b*",
        32803 | 34892 => "raw camera samples",
        32844 | 32845 => "SGI LogLuv",
        _ => "unknown",
    };
    format!("colours stored as {name} (PhotometricInterpretation {code}) cannot be read yet")
}

/// What the samples beyond the colours are. Those that the file does not explain stay channels of their own.
fn alpha(extra: &[u64], count: usize) -> Result<Option<Alpha>, String> {
    let extra = &extra[..extra.len().min(count)];
    match extra {
        _ if extra.iter().all(|&kind| kind == 0) => Ok(None),
        [1] if count == 1 => Ok(Some(Alpha::Premultiplied)),
        [2] if count == 1 => Ok(Some(Alpha::Straight)),
        _ => Err(format!("extra samples of the kinds {extra:?} cannot be read")),
    }
}
