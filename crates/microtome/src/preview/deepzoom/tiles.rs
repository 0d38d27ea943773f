//! One tile: cut out of its level, encoded or copied, written.

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder};
use microtome_io::slide::SlideReader;
use microtome_io::{Class, Level, Pixels, Rect, Samples, Size, TileCoord};

use super::geometry::Geometry;
use super::jpeg::{Band, Encoder};
use super::{DeepZoomOptions, TileFormat, TileSource};
use crate::preview::labels::Palette;
use crate::{Error, Result};

/// How samples become those of a tile.
#[derive(Debug)]
pub(super) enum Coloring {
    /// Grey or RGB as it is; of 16 bits the upper 8.
    AsStored,
    /// Labels in their colours, one for each value that a sample may have.
    Labels(Vec<[u8; 3]>),
}

impl Coloring {
    /// The colours of all labels that samples of this many bits may be.
    pub(super) fn of(classes: &[Class], bits: u32) -> Self {
        let palette = Palette::new(classes);
        Self::Labels((0..1_u32 << bits).map(|label| palette.color(label as u16)).collect())
    }
}

/// Writes tiles, from many threads at once.
#[derive(Debug)]
pub(super) struct TileWriter<'a> {
    folder: PathBuf,
    geometry: &'a Geometry,
    options: &'a DeepZoomOptions,
    coloring: Coloring,
    jpeg: Encoder,
    copies: Copies<'a>,
    written: AtomicU64,
    copied: AtomicU64,
    bytes: AtomicU64,
}

/// What a thread uses again from tile to tile.
#[derive(Debug, Default)]
struct Buffers {
    samples: Vec<u8>,
    band: Band,
    encoded: Vec<u8>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

impl<'a> TileWriter<'a> {
    /// Makes the folders of all levels.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn new(
        folder: &Path,
        geometry: &'a Geometry,
        options: &'a DeepZoomOptions,
        coloring: Coloring,
        slide: &'a dyn SlideReader,
    ) -> Result<Self> {
        for depth in 0..geometry.levels().len() {
            let level = folder.join(geometry.number(depth).to_string());
            std::fs::create_dir(&level).map_err(|source| Error::Io { path: level, source })?;
        }
        let copies = Copies::new(slide, geometry, options, &coloring);
        let (written, copied, bytes) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let jpeg = Encoder::new(options.quality, options.subsampling);
        Ok(Self { folder: folder.into(), geometry, options, coloring, jpeg, copies, written, copied, bytes })
    }

    /// Writes a tile of the level of a depth, of which `region` holds the pixels of `at`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Picture`], and [`Error::Read`] for a tile to be copied that is damaged.
    pub(super) fn write(&self, depth: usize, tile: TileCoord, region: &Pixels, at: Rect) -> Result<()> {
        let name = format!("{}_{}.{}", tile.column, tile.row, self.options.format.ending());
        let path = self.folder.join(self.geometry.number(depth).to_string()).join(name);
        let length = if let Some(stream) = self.copies.tile(depth, tile)? {
            self.copied.fetch_add(1, Ordering::Relaxed);
            put(&path, &stream)?
        } else {
            BUFFERS.with_borrow_mut(|buffers| {
                let rect = self.geometry.tile(depth, tile);
                let channels = cut(region, at, rect, &self.coloring, &mut buffers.samples);
                self.encode(buffers, rect.size(), channels)
                    .map_err(|message| Error::Picture { path: path.clone(), message })?;
                put(&path, &buffers.encoded)
            })?
        };
        self.written.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    fn encode(&self, buffers: &mut Buffers, size: Size, channels: usize) -> Result<(), String> {
        let Buffers { samples, band, encoded } = buffers;
        encoded.clear();
        let (width, height) = (size.width as u32, size.height as u32);
        match self.options.format {
            TileFormat::Jpeg => {
                // No tile is wider than twice the largest that the options allow.
                self.jpeg.encode(samples, (width as u16, height as u16), channels, band, encoded);
                Ok(())
            }
            TileFormat::Png => {
                let mut encoder = png::Encoder::new(encoded, width, height);
                encoder.set_color(if channels == 1 { png::ColorType::Grayscale } else { png::ColorType::Rgb });
                encoder.set_depth(png::BitDepth::Eight);
                encoder.set_compression(png::Compression::Fast);
                let write = |mut writer: png::Writer<&mut Vec<u8>>| writer.write_image_data(samples);
                encoder.write_header().and_then(write).map_err(|error| error.to_string())
            }
            TileFormat::WebP => {
                let color = if channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
                WebPEncoder::new_lossless(encoded)
                    .write_image(samples, width, height, color)
                    .map_err(|error| error.to_string())
            }
        }
    }

    /// Tiles that were written, those of them that were copied, and the bytes of all.
    pub(super) fn counts(&self) -> (u64, u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (count(&self.written), count(&self.copied), count(&self.bytes))
    }

    /// Why no tile can be copied, if that is so.
    pub(super) fn nothing_to_copy(&self) -> Option<&str> {
        self.copies.none_because.as_deref()
    }
}

/// Writes a file, and gives its length. It is not synced by itself, but with all others at the end.
fn put(path: &Path, bytes: &[u8]) -> Result<u64> {
    let write = || File::create(path)?.write_all(bytes);
    write().map_err(|source| Error::Io { path: path.into(), source })?;
    Ok(bytes.len() as u64)
}

/// The pixels of `rect`, which lies in `at`, as 8-bit samples in `to`; gives their channels.
fn cut(region: &Pixels, at: Rect, rect: Rect, coloring: &Coloring, to: &mut Vec<u8>) -> usize {
    let channels = region.channels();
    to.clear();
    for y in rect.y..rect.bottom() {
        let first = ((y - at.y) as u64 * at.width + (rect.x - at.x) as u64) as usize * channels;
        let row = first..first + rect.width as usize * channels;
        match (region.samples(), coloring) {
            (Samples::U8(samples), Coloring::AsStored) => to.extend_from_slice(&samples[row]),
            (Samples::U16(samples), Coloring::AsStored) => to.extend(samples[row].iter().map(|&v| (v >> 8) as u8)),
            (Samples::U8(samples), Coloring::Labels(colors)) => {
                to.extend(samples[row].iter().flat_map(|&label| colors[usize::from(label)]));
            }
            (Samples::U16(samples), Coloring::Labels(colors)) => {
                to.extend(samples[row].iter().flat_map(|&label| colors[usize::from(label)]));
            }
        }
    }
    match coloring {
        Coloring::AsStored => channels,
        Coloring::Labels(_) => 3,
    }
}

/// Tiles of the slide that are tiles of the image as they are.
#[derive(Debug)]
struct Copies<'a> {
    slide: &'a dyn SlideReader,
    tile: u64,
    /// By depth: the level of the slide that has the same pixels, in tiles of the same size.
    levels: Vec<Option<Level>>,
    /// Why there are none, if copies were asked for.
    none_because: Option<String>,
}

impl<'a> Copies<'a> {
    fn new(slide: &'a dyn SlideReader, geometry: &Geometry, options: &DeepZoomOptions, coloring: &Coloring) -> Self {
        let tile = u64::from(options.tile_size);
        let none = |none_because| Self { slide, tile, levels: vec![None; geometry.levels().len()], none_because };
        if options.tiles == TileSource::Encode {
            return none(None);
        }
        if options.format != TileFormat::Jpeg {
            return none(Some("only tiles of JPEG can be copied".into()));
        }
        if matches!(coloring, Coloring::Labels(_)) {
            return none(Some("labels are coloured, not copied".into()));
        }
        if options.overlap != 0 {
            return none(Some(format!(
                "tiles that overlap by {} cannot be copied, those without overlap can",
                options.overlap
            )));
        }
        let info = slide.info();
        let stored = |size: Size| {
            let same = |level: &usize| {
                let here = &info.levels[*level];
                here.stored && here.size == size && here.tile == Size::new(tile, tile)
            };
            (0..info.levels.len()).find(same).map(Level)
        };
        let levels: Vec<Option<Level>> = geometry.levels().iter().map(|&size| stored(size)).collect();
        if levels.iter().all(Option::is_none) {
            let theirs = info.levels[0].tile;
            return none(Some(format!("the tiles of the slide have {theirs} pixels, those asked for {tile} x {tile}")));
        }
        let first = levels.iter().position(Option::is_some).and_then(|depth| levels[depth]).unwrap_or(Level::FINEST);
        // A faulty tile is for the one who writes it to complain about.
        let is_jpeg = slide.tiles(first).is_ok_and(|tiles| {
            tiles.take(64).any(|at| {
                let tile = TileCoord { row: at.y as u64 / tile, column: at.x as u64 / tile };
                !matches!(slide.jpeg_tile(first, tile), Ok(None))
            })
        });
        let none_because = (!is_jpeg).then(|| "the slide does not hold its tiles as baseline JPEG in a TIFF".into());
        Self { slide, tile, levels, none_because }
    }

    /// The stored tile that is this one, if it is there and lies inside the level as a whole.
    fn tile(&self, depth: usize, tile: TileCoord) -> Result<Option<Vec<u8>>> {
        let Some(level) = self.levels[depth] else { return Ok(None) };
        let side = Size::new(self.tile, self.tile);
        let size = self.slide.info().level(level).map_err(Error::Read)?.size;
        if !size.rect().contains(tile.rect(side)) {
            return Ok(None);
        }
        self.slide.jpeg_tile(level, tile).map_err(Error::Read)
    }
}
