//! Plain pictures, PNG, JPEG and WebP, as slides of one level.
//!
//! They cannot be decoded in parts, so that the whole picture must fit into `Limits::decoded_bytes`. It is decoded on the
//! first read and kept.
//! Transparent pictures are laid over white. None of these formats has a field for micrometres per pixel (dots per inch are
//! about paper), so that the resolution is always unknown.
//! An orientation in EXIF data is not applied: pixels are those that are stored.

use std::io::Cursor;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use image::codecs::{png::PngDecoder, webp::WebPDecoder};
use image::{ColorType, ImageDecoder};

use super::alpha::{Alpha, over_white};
use super::cache::Found;
use super::codec::jpeg;
use super::{ICC_FAULT, OpenOptions, SlideInfo, SlideReader, mosaic};
use crate::bytes::{ByteSource, content_id};
use crate::{Error, Level, Pixels, Rect, Result, SampleType, Size};

/// The kinds of pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Png,
    Jpeg,
    WebP,
}

impl Kind {
    /// The kind that a file with these first bytes is.
    pub(super) fn of(head: &[u8]) -> Option<Self> {
        match head {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(Self::Png),
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::WebP),
            _ => None,
        }
    }

    /// Its name, for people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::WebP => "WebP",
        }
    }
}

/// A picture as a slide of one level.
#[derive(Debug)]
struct Picture {
    source: Arc<dyn ByteSource>,
    kind: Kind,
    info: SlideInfo,
    limit: u64,
    /// The decoded picture, or the decoder's word.
    pixels: OnceLock<Result<Arc<Pixels>, String>>,
}

/// Opens a picture: reads its header.
pub(super) fn open(kind: Kind, source: Arc<dyn ByteSource>, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    let Header { size, channels, sample, icc } = header(kind, &*source)?;
    let limit = options.limits.decoded_bytes;
    check_limit(source.path(), size, channels, sample, limit)?;
    let (icc_profile_bytes, icc_fault) = icc.map_or_else(|fault| (None, Some(fault)), |bytes| (bytes, None));
    let info = SlideInfo {
        properties: icc_fault.map(|fault| (ICC_FAULT.to_owned(), fault)).into_iter().collect(),
        // White under colours, which light shone through; nothing is known of grey values.
        background: match (channels, sample) {
            (3, SampleType::U8) => vec![0xff; 3],
            (3, SampleType::U16) => vec![0xffff; 3],
            _ => vec![0; channels],
        },
        icc_profile_bytes,
        ..SlideInfo::new(source.path(), &kind.name().to_lowercase(), size, size, channels, sample)
    };
    Ok(Box::new(Picture { source, kind, info, limit, pixels: OnceLock::new() }))
}

impl SlideReader for Picture {
    fn info(&self) -> &SlideInfo {
        &self.info
    }

    fn resident_bytes(&self) -> u64 {
        self.info.size().area() * self.info.channels as u64
    }

    fn read_region(&self, level: Level, rect: Rect) -> Result<Pixels> {
        self.info.level(level)?;
        let SlideInfo { channels, sample, ref background, .. } = self.info;
        check_limit(self.source.path(), rect.size(), channels, sample, self.limit)?;
        let size = self.info.size();
        let mut region = Pixels::filled(rect.size(), sample, background);
        mosaic::fill(&mut region, rect, size, size, |tile, _| match self.pixels.get_or_init(|| self.decode()) {
            Ok(pixels) => Ok(Found::Tile(Some(Arc::clone(pixels)))),
            Err(message) => Err(Error::Tile { path: self.info.path.clone(), level, tile, message: message.clone() }),
        })?;
        Ok(region)
    }

    fn read_associated(&self, name: &str) -> Result<Pixels> {
        Err(Error::usage(&self.info.path, format!("a picture has no associated images, and so none named {name:?}")))
    }

    fn content_id(&self) -> Result<String> {
        content_id(&*self.source)
    }
}

impl Picture {
    fn decode(&self) -> Result<Arc<Pixels>, String> {
        let bytes = self.source.read_at(0..self.source.len()).map_err(|e| e.to_string())?;
        let pixels = self.decode_bytes(&bytes);
        // Bytes that vanished meanwhile read as zeros: neither these pixels nor what is said against them counts then.
        self.source.still_whole().map_err(|e| e.to_string())?;
        pixels
    }

    fn decode_bytes(&self, bytes: &[u8]) -> Result<Arc<Pixels>, String> {
        let SlideInfo { channels, sample, .. } = self.info;
        let size = self.info.size();
        if self.kind == Kind::Jpeg {
            let header = jpeg::read_header(bytes)?;
            let samples = jpeg::decode(None, bytes, header, jpeg::Color::AsMarked)?;
            return Ok(Arc::new(Pixels::from_u8(size, channels, samples)));
        }
        let decoder = decoder(self.kind, bytes).map_err(|e| e.to_string())?;
        let color = decoder.color_type();
        let stored = usize::from(color.channel_count());
        let mut raw = vec![0; size.area() as usize * stored * sample.bytes()];
        decoder.read_image(&mut raw).map_err(|e| e.to_string())?;
        let alpha = color.has_alpha();
        Ok(Arc::new(match sample {
            SampleType::U8 => {
                let samples = if alpha { over_white(&raw, stored, Alpha::Straight) } else { raw };
                Pixels::from_u8(size, channels, samples)
            }
            SampleType::U16 => {
                // The decoders of `image` write samples in the byte order of the machine.
                let samples: Vec<u16> = raw.chunks_exact(2).map(|b| u16::from_ne_bytes([b[0], b[1]])).collect();
                let samples = if alpha { over_white(&samples, stored, Alpha::Straight) } else { samples };
                Pixels::from_u16(size, channels, samples)
            }
        }))
    }
}

fn check_limit(path: &Path, size: Size, channels: usize, sample: SampleType, limit: u64) -> Result<()> {
    // One channel more than comes out: alpha must be decoded before it can be got rid of.
    let bytes = size.area().saturating_mul(((channels + 1) * sample.bytes()) as u64);
    if bytes > limit {
        return Err(Error::limits(
            path,
            format!("{size} pixels in one piece take {bytes} bytes, the limit is {limit}"),
        ));
    }
    Ok(())
}

/// What a picture says before its pixels.
struct Header {
    size: Size,
    channels: usize,
    sample: SampleType,
    /// Bytes of the ICC profile, if there is one, or why it cannot be read.
    icc: Result<Option<usize>, String>,
}

fn header(kind: Kind, source: &dyn ByteSource) -> Result<Header> {
    let corrupt = |e: String| Error::format(source.path(), format!("damaged {} picture: {e}", kind.name()));
    let bytes = source.read_at(0..source.len())?;
    if kind == Kind::Jpeg {
        let header = jpeg::read_header(&bytes).map_err(corrupt)?;
        if !matches!(header.components, 1 | 3) {
            return Err(Error::unsupported(
                source.path(),
                format!("a JPEG picture of {} channels (CMYK, perhaps) cannot be read", header.components),
            ));
        }
        let size = Size::new(header.width.into(), header.height.into());
        if size.is_empty() {
            return Err(corrupt(format!("it has {size} pixels")));
        }
        return Ok(Header { size, channels: header.components.into(), sample: SampleType::U8, icc: Ok(None) });
    }
    let mut decoder = decoder(kind, &bytes).map_err(|e| corrupt(e.to_string()))?;
    let (width, height) = decoder.dimensions();
    let size = Size::new(width.into(), height.into());
    let (channels, sample) = match decoder.color_type() {
        ColorType::L8 | ColorType::La8 => (1, SampleType::U8),
        ColorType::Rgb8 | ColorType::Rgba8 => (3, SampleType::U8),
        ColorType::L16 | ColorType::La16 => (1, SampleType::U16),
        ColorType::Rgb16 | ColorType::Rgba16 => (3, SampleType::U16),
        other => {
            return Err(Error::unsupported(source.path(), format!("samples of the kind {other:?} cannot be read")));
        }
    };
    let icc = decoder.icc_profile().map(|icc| icc.map(|profile| profile.len())).map_err(|error| error.to_string());
    Ok(Header { size, channels, sample, icc })
}

fn decoder<'a>(kind: Kind, bytes: &'a [u8]) -> image::ImageResult<Box<dyn ImageDecoder + 'a>> {
    let reader = Cursor::new(bytes);
    Ok(match kind {
        Kind::WebP => Box::new(WebPDecoder::new(reader)?),
        Kind::Png | Kind::Jpeg => Box::new(PngDecoder::new(reader)?),
    })
}
