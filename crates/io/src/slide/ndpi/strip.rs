//! A level of an NDPI: one JPEG, read in pieces.
//!
//! Restart markers cut the JPEG into intervals, all of the same number of units: as many as are side by side in the picture,
//! or a part of that (or a multiple). A cell is a rectangle of intervals of about 512 x 512 pixels; their bytes are put
//! together to a JPEG of their own.
//!
//! Where chroma is stored coarser than luma, a decoder interpolates it between neighbours. OpenSlide and tifffile decode
//! each interval by itself, so that there is nothing to interpolate across its edge. The intervals of a cell are
//! decoded together only where that makes no difference, so that pixels do not depend on what a cell is here.
//!
//! A JPEG without restart markers, or with markers that make no grid, is one cell, within the limits.

use super::super::codec::jpeg::{self, Color, restart::Prelude};
use super::super::codec::{Compression, jpeg::Header};
use super::super::pyramid::check_limit;
use super::super::raster::{Raster, Shape};
use super::super::tiff::{Container, Ifd, Tag};
use super::intervals::Intervals;
use crate::{Error, Pixels, Rect, Result, SampleType, Size, TileCoord};

/// Pixels along a side of a cell, where intervals allow a choice.
const CELL: u64 = 512;
/// Bytes of the strip in which its header must lie.
const MOST_HEADER: u64 = 1 << 16;
/// What a picture can measure at most for decoders to take it.
const MOST_SIDE: u64 = 65_500;

/// A level that is stored.
#[derive(Debug)]
pub(super) struct Strip {
    file: Container,
    shape: Shape,
    color: Color,
    prelude: Prelude,
    pieces: Pieces,
}

/// How a strip is taken apart.
#[derive(Debug)]
enum Pieces {
    /// Not at all. Where it lies, and whether the frame header must be told the size.
    Whole {
        start: u64,
        end: u64,
    },
    Grid(Box<Grid>),
}

/// The intervals of a picture.
#[derive(Debug)]
struct Grid {
    intervals: Intervals,
    /// An interval in pixels.
    interval: Size,
    /// Intervals across and down the picture.
    counts: Size,
    /// Intervals across and down a cell.
    cell: Size,
    /// The picture in whole units, in pixels.
    padded: Size,
}

impl Strip {
    /// Reads how a level is stored.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming what cannot be read, [`Error::Format`] for a page that contradicts itself,
    /// [`Error::Limits`] for one that must be decoded in one piece which is too large.
    pub(super) fn read(file: &Container, ifd: &Ifd) -> Result<Self> {
        let page = format!("TIFF page at byte {}", ifd.offset());
        let corrupt = |what: String| Error::format(file.path(), format!("{page}: {what}"));
        let unsupported = |what: String| Error::unsupported(file.path(), format!("{page}: {what}"));
        let need = |tag: Tag, name: &str| {
            ifd.unsigned(file, tag)?.filter(|&value| value > 0).ok_or_else(|| corrupt(format!("has no {name}")))
        };
        let code = need(Tag::COMPRESSION, "Compression")?;
        match Compression::from_code(code) {
            Ok(Compression::Jpeg) => {}
            Ok(_) => {
                return Err(unsupported(format!("compression {code} cannot be read in levels of an NDPI, JPEG can")));
            }
            Err(what) => return Err(unsupported(what)),
        }
        let size = Size::new(need(Tag::IMAGE_WIDTH, "ImageWidth")?, need(Tag::IMAGE_LENGTH, "ImageLength")?);
        // Also keeps sums and products far from overflow.
        if size.width.max(size.height) > i32::MAX as u64 {
            return Err(corrupt(format!("measures {size} pixels")));
        }
        if ifd.field(Tag::STRIP_OFFSETS).is_some_and(|field| field.count != 1) || ifd.is_tiled() {
            return Err(unsupported("a level of an NDPI must be one strip, this one is not".into()));
        }
        let start = need(Tag::STRIP_OFFSETS, "StripOffsets")?;
        let end = start.saturating_add(need(Tag::STRIP_BYTE_COUNTS, "StripByteCounts")?);
        // Of a file that was cut off, what is there can be read.
        let end = end.min(file.source().len());
        if start >= end {
            return Err(corrupt("its strip lies outside the file, which may be truncated".into()));
        }
        let color = match ifd.unsigned(file, Tag::PHOTOMETRIC_INTERPRETATION)? {
            Some(0 | 1) => Color::Grey,
            Some(2) => Color::Rgb,
            Some(6) | None => Color::YCbCr,
            Some(code) => {
                return Err(unsupported(format!("PhotometricInterpretation {code} cannot be read in an NDPI")));
            }
        };
        let prelude = {
            let head = file.source().read_at(start..end.min(start.saturating_add(MOST_HEADER)))?;
            Prelude::read(&head, color)
        };
        let prelude = prelude.map_err(&corrupt)?;
        let Header { width, height, components } = prelude.header;
        if components != if color == Color::Grey { 1 } else { 3 } {
            return Err(corrupt(format!("holds a JPEG of {components} channels, which cannot be its colours")));
        }
        for (stored, side) in [(width, size.width), (height, size.height)] {
            if stored != 0 && side <= MOST_SIDE && u64::from(stored) != side {
                return Err(corrupt(format!("has {size} pixels, but its JPEG {width} x {height}")));
            }
        }
        let grid = Grid::new(file, ifd, size, &prelude, start..end)?;
        let (cell, pieces) = match grid {
            Some(grid) => (
                Size::new(grid.cell.width * grid.interval.width, grid.cell.height * grid.interval.height),
                Pieces::Grid(Box::new(grid)),
            ),
            None if size.width.max(size.height) > MOST_SIDE => {
                let markers =
                    if prelude.interval == 0 { "no restart markers" } else { "restart markers that make no grid" };
                return Err(unsupported(format!(
                    "{size} pixels in one JPEG with {markers} cannot be read, {MOST_SIDE} a side can"
                )));
            }
            None => (size, Pieces::Whole { start, end }),
        };
        let channels = usize::from(components);
        let background = if color == Color::Grey { 0 } else { u16::from(u8::MAX) };
        let shape = Shape { size, cell, channels, sample: SampleType::U8, background: vec![background; channels] };
        check_limit(file.path(), &shape, cell, file.limits().decoded_bytes)?;
        Ok(Self { file: file.clone(), shape, color, prelude, pieces })
    }

    /// True if OpenSlide shows this level at `1 / by` of its size: if that divides the pieces that it decodes.
    pub(super) fn can_be_reduced(&self, by: u64) -> bool {
        match &self.pieces {
            Pieces::Whole { .. } => divided(self.shape.size, by),
            Pieces::Grid(grid) => divided(grid.interval, by),
        }
    }

    /// Decodes the strip in one piece.
    fn decode_whole(&self, start: u64, end: u64) -> Result<Result<Pixels, String>> {
        let mut stream = self.file.source().read_at(start..end)?.into_owned();
        // Both sides were checked when the level was read.
        let Size { width, height } = self.shape.size;
        let at = self.prelude.size_at;
        stream[at..at + 2].copy_from_slice(&(height as u16).to_be_bytes());
        stream[at + 2..at + 4].copy_from_slice(&(width as u16).to_be_bytes());
        let header = Header { width: width as u16, height: height as u16, ..self.prelude.header };
        let samples = jpeg::decode(None, &stream, header, self.color);
        Ok(samples.map(|samples| Pixels::from_u8(self.shape.size, self.shape.channels, samples)))
    }

    fn decode_cell(&self, grid: &Grid, cell: TileCoord) -> Result<Result<Pixels, String>> {
        let Grid { counts, interval, .. } = grid;
        let columns = grid.columns(cell);
        let rows = grid.rows(cell);
        let (width, top) = (columns.end - columns.start, rows.start * interval.height);
        let bottom = (rows.end * interval.height).min(grid.padded.height);
        let size = Size::new(width * interval.width, bottom - top);
        let mut found = Vec::new();
        for row in rows.clone() {
            match grid.intervals.read(&self.file, &self.prelude, row * counts.width + columns.start, width)? {
                Ok(run) => found.push(run),
                Err(what) => return Ok(Err(what)),
            }
        }
        // Intervals that share no chroma across their edges can be decoded at once.
        let across = if self.prelude.unit.0 > 8 { 1 } else { width };
        let down = if self.prelude.unit.1 > 8 { 1 } else { rows.end - rows.start };
        let mut pixels = None;
        for (band, runs) in (0_u64..).zip(found.chunks(down as usize)) {
            for column in (0..width).step_by(across as usize) {
                let y = band * down * interval.height;
                let at = Rect::new(
                    (column * interval.width) as i64,
                    y as i64,
                    across * interval.width,
                    (down * interval.height).min(size.height - y),
                );
                let pieces = runs.iter().flat_map(|run| run.pieces(column as usize, across as usize));
                // No side is longer than that of an interval, which was checked, or that of a cell of several.
                let samples = match self.prelude.decode(at.width as u16, at.height as u16, pieces) {
                    Ok(samples) => samples,
                    Err(what) => return Ok(Err(what)),
                };
                let piece = Pixels::from_u8(at.size(), self.shape.channels, samples);
                if piece.size() == size {
                    return Ok(Ok(piece));
                }
                pixels.get_or_insert_with(|| Pixels::filled(size, SampleType::U8, &self.shape.background)).blit(
                    size.rect(),
                    &piece,
                    at,
                );
            }
        }
        Ok(pixels.ok_or_else(|| "holds no interval".into()))
    }
}

/// True if both sides are multiples of `by`.
fn divided(size: Size, by: u64) -> bool {
    size.width.is_multiple_of(by) && size.height.is_multiple_of(by)
}

impl Grid {
    /// The grid that restart markers make of a picture, or `None` if they make none.
    fn new(
        file: &Container,
        ifd: &Ifd,
        size: Size,
        prelude: &Prelude,
        strip: std::ops::Range<u64>,
    ) -> Result<Option<Self>> {
        let unit = Size::new(prelude.unit.0.into(), prelude.unit.1.into());
        let (units, run) = (size.cells(unit), u64::from(prelude.interval));
        if run == 0 || !prelude.one_scan || (units.width % run != 0 && run % units.width != 0) {
            return Ok(None);
        }
        let padded = Size::new(units.width * unit.width, units.height * unit.height);
        // More rows than the picture has are none that an interval holds.
        let rows = (run / units.width).clamp(1, units.height);
        let interval = Size::new(run.min(units.width) * unit.width, rows * unit.height);
        if interval.width.max(interval.height) > MOST_SIDE {
            return Ok(None);
        }
        let counts = padded.cells(interval);
        let across = (CELL / interval.width).clamp(1, counts.width);
        let down = CELL * CELL / (across * interval.area());
        let cell = Size::new(across, down.clamp(1, (MOST_SIDE / interval.height).min(counts.height)));
        let intervals = Intervals::new(file, ifd, strip, prelude, counts.area())?;
        Ok(Some(Self { intervals, interval, counts, cell, padded }))
    }

    /// The columns of intervals that a cell holds.
    fn columns(&self, cell: TileCoord) -> std::ops::Range<u64> {
        cell.column * self.cell.width..((cell.column + 1) * self.cell.width).min(self.counts.width)
    }

    /// The rows of intervals that a cell holds.
    fn rows(&self, cell: TileCoord) -> std::ops::Range<u64> {
        cell.row * self.cell.height..((cell.row + 1) * self.cell.height).min(self.counts.height)
    }
}

impl Raster for Strip {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn decode(&self, cell: TileCoord) -> Result<Option<Pixels>> {
        let pixels = match &self.pieces {
            Pieces::Whole { start, end } => self.decode_whole(*start, *end)?,
            Pieces::Grid(grid) => self.decode_cell(grid, cell)?,
        };
        // Bytes that vanished meanwhile read as zeros: neither these samples nor what is said against them counts then.
        self.file.source().still_whole()?;
        pixels.map(Some).map_err(|what| Error::format(self.file.path(), what))
    }

    fn prefetch(&self, cell: TileCoord) {
        match &self.pieces {
            Pieces::Whole { start, end } => self.file.source().prefetch(*start..*end),
            Pieces::Grid(grid) => {
                let (columns, rows) = (grid.columns(cell), grid.rows(cell));
                for row in rows {
                    let first = row * grid.counts.width + columns.start;
                    grid.intervals.prefetch(&self.file, first, columns.end - columns.start);
                }
            }
        }
    }
}
