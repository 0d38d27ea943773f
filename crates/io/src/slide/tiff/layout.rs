//! How a page is cut into tiles or strips, and where their bytes lie.

use std::borrow::Cow;
use std::ops::Range;

use super::ifd::{Ifd, Table};
use super::{Container, Tag};
use crate::{Error, Result, Size, TileCoord};

/// What a page is cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Tiles, all of one size; those at the right and bottom edge are padded.
    Tiles,
    /// Strips as wide as the page; the last one is as high as what remains.
    Strips,
}

/// The grid of tiles or strips of a page.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Tiles or strips.
    pub(crate) cut: Cut,
    /// The page in pixels.
    pub(crate) size: Size,
    /// One tile or strip in pixels.
    pub(crate) cell: Size,
    /// How many times the page is stored: once, or once for each channel.
    pub(crate) planes: u64,
    offsets: Table,
    byte_counts: Table,
}

impl Layout {
    /// Reads the layout of a page of `planes` planes: 1 if the samples of a pixel lie side by side.
    pub(crate) fn read(file: &Container, ifd: &Ifd, planes: u64) -> Result<Self> {
        let corrupt = |what: String| Error::format(file.path(), format!("TIFF page at byte {}: {what}", ifd.offset()));
        let need = |tag: Tag, name: &str| match ifd.unsigned(file, tag)? {
            Some(0) => Err(corrupt(format!("{name} is 0"))),
            // Wider than any format allows; also keeps sums and products far from overflow.
            Some(value) if value > u64::from(u32::MAX) => Err(corrupt(format!("{name} is {value}"))),
            Some(value) => Ok(value),
            None => Err(corrupt(format!("has no {name}"))),
        };
        let size = Size::new(need(Tag::IMAGE_WIDTH, "ImageWidth")?, need(Tag::IMAGE_LENGTH, "ImageLength")?);
        // Some old files keep the tables of their tiles under the tags of strips, and libtiff reads them.
        let table = |tag: Tag, old: Tag, name: &str| match ifd.table(file, tag)? {
            Some(table) => Ok(table),
            None => ifd.table(file, old)?.ok_or_else(|| corrupt(format!("has no {name}"))),
        };
        let (cut, cell, offsets, byte_counts) = if ifd.has(Tag::TILE_WIDTH) || ifd.has(Tag::TILE_OFFSETS) {
            (
                Cut::Tiles,
                Size::new(need(Tag::TILE_WIDTH, "TileWidth")?, need(Tag::TILE_LENGTH, "TileLength")?),
                table(Tag::TILE_OFFSETS, Tag::STRIP_OFFSETS, "TileOffsets")?,
                table(Tag::TILE_BYTE_COUNTS, Tag::STRIP_BYTE_COUNTS, "TileByteCounts")?,
            )
        } else {
            let rows = match ifd.unsigned(file, Tag::ROWS_PER_STRIP)? {
                Some(0) => return Err(corrupt("RowsPerStrip is 0".into())),
                Some(rows) => rows.min(size.height),
                None => size.height,
            };
            (
                Cut::Strips,
                Size::new(size.width, rows),
                table(Tag::STRIP_OFFSETS, Tag::STRIP_OFFSETS, "StripOffsets")?,
                table(Tag::STRIP_BYTE_COUNTS, Tag::STRIP_BYTE_COUNTS, "StripByteCounts")?,
            )
        };
        let cells = size.cells(cell).area().saturating_mul(planes);
        if offsets.count() < cells || byte_counts.count() < cells {
            return Err(corrupt(format!(
                "{size} pixels in {cell} pieces make {cells} pieces, but there are {} offsets and {} byte counts",
                offsets.count(),
                byte_counts.count()
            )));
        }
        Ok(Self { cut, size, cell, planes, offsets, byte_counts })
    }

    /// The size of a piece as it is stored: all tiles are alike, the last strip may be lower.
    pub(crate) fn stored_size(&self, tile: TileCoord) -> Size {
        match self.cut {
            Cut::Tiles => self.cell,
            Cut::Strips => Size::new(
                self.cell.width,
                self.cell.height.min(self.size.height.saturating_sub(tile.row * self.cell.height)),
            ),
        }
    }

    /// Where the bytes of a piece of a plane are stored, or `None` if the file leaves it out, which it says by an offset or a
    /// byte count of 0.
    pub(crate) fn range(&self, file: &Container, tile: TileCoord, plane: u64) -> Result<Option<Range<u64>>> {
        let cells = self.size.cells(self.cell);
        let index = plane * cells.area() + tile.row * cells.width + tile.column;
        let (Some(offset), Some(count)) = (self.offsets.get(file, index)?, self.byte_counts.get(file, index)?) else {
            return Err(Error::usage(file.path(), format!("there is no {tile}")));
        };
        // An end that overflows is outside the file like any other that is too large.
        Ok((offset != 0 && count != 0).then(|| offset..offset.saturating_add(count)))
    }

    /// The stored bytes of a piece of a plane, or `None` if the file leaves it out.
    pub(crate) fn bytes<'a>(&self, file: &'a Container, tile: TileCoord, plane: u64) -> Result<Option<Cow<'a, [u8]>>> {
        self.range(file, tile, plane)?.map(|range| file.source().read_at(range)).transpose()
    }
}
