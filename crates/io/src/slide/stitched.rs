//! A page whose tiles overlap on the slide: each shows up to where the next one begins.
//!
//! OpenSlide paints tiles from the bottom right corner to the top left one and keeps what is there already, so that of
//! two tiles that overlap the one to the right, or below, is seen. Here each cell is the part of one tile of the page that
//! is seen, and no tile is decoded for the sake of another one.
//!
//! A page of a coarser level may be the whole page of level 0 made smaller, overlaps and all: then each of its tiles holds
//! several tiles of level 0 (`per_tile`), which must be moved over each other like those of level 0.
//!
//! Where tiles follow each other at fractions of a pixel, each is put at the nearest whole one. OpenSlide resamples them
//! instead, so that its pixels are mixtures of neighbours there.

use std::sync::Arc;

use super::mosaic::{Axis, Grid, spread};
use super::raster::{Raster, Shape};
use super::tiff::Page;
use crate::{Pixels, Result, Samples, Size, TileCoord};

/// How tiles lie along one axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Placing {
    /// The first small tile, counted from the edge of the page.
    pub(super) first: u64,
    /// How many small tiles there are; at least one.
    pub(super) count: u64,
    /// How many small tiles there are in a tile of the page.
    pub(super) per_tile: u64,
    /// Pixels of a small tile.
    pub(super) length: u64,
    /// Pixels from one small tile to the next.
    pub(super) advance: f64,
}

/// Pixels that lie side by side both in a tile of the page and in a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    from: usize,
    to: usize,
    length: usize,
}

impl Placing {
    fn skip(&self) -> u64 {
        self.first % self.per_tile
    }

    fn axis(&self) -> Axis {
        let tiles = (self.first + self.count - 1) / self.per_tile - self.first / self.per_tile + 1;
        Axis::Spread { advance: self.advance, step: self.per_tile, skip: self.skip(), count: tiles }
    }

    /// Pixels that all of them take.
    fn extent(&self) -> u64 {
        spread(self.advance, self.count - 1) + self.length
    }

    /// Pixels of the largest cell: tiles that do not touch have background between them.
    fn largest(&self) -> u64 {
        let advance = (self.advance * self.per_tile as f64).ceil() as u64 + 1;
        advance.max(self.length * self.per_tile)
    }

    /// The small tiles in a cell, as pixels of the tile and of the cell; `page` is where the page ends.
    fn runs(&self, cell: u64, page: u64) -> Vec<Run> {
        let begin = (cell * self.per_tile).saturating_sub(self.skip());
        let end = ((cell + 1) * self.per_tile - self.skip()).min(self.count);
        let origin = spread(self.advance, begin);
        let tile = (self.first / self.per_tile + cell) * self.per_tile * self.length;
        let mut runs: Vec<Run> = Vec::new();
        for index in begin..end {
            let at = spread(self.advance, index);
            let seen = if index + 1 < self.count { spread(self.advance, index + 1) - at } else { self.length };
            let from = (self.first + index) % self.per_tile * self.length;
            let length = seen.min(self.length).min(page.saturating_sub(tile + from));
            let run = Run { from: from as usize, to: (at - origin) as usize, length: length as usize };
            match runs.last_mut() {
                Some(last) if last.from + last.length == run.from && last.to + last.length == run.to => {
                    last.length += run.length;
                }
                _ => runs.push(run),
            }
        }
        runs
    }
}

/// Part of a page, with its tiles moved over each other.
#[derive(Debug)]
pub(super) struct Stitched {
    page: Arc<Page>,
    shape: Shape,
    columns: Placing,
    rows: Placing,
}

impl Stitched {
    /// The page's tiles at their places, over `background`. The caller sees to it that the page has all of them, that an
    /// advance is above zero and not more than twice the length, and that a tile of the page is `per_tile` small ones long.
    pub(super) fn new(page: Arc<Page>, columns: Placing, rows: Placing, background: Vec<u16>) -> Self {
        let shape = Shape {
            size: Size::new(columns.extent(), rows.extent()),
            cell: Size::new(columns.largest(), rows.largest()),
            background,
            ..page.shape().clone()
        };
        Self { page, shape, columns, rows }
    }

    fn tile(&self, cell: TileCoord) -> TileCoord {
        let first = |placing: &Placing| placing.first / placing.per_tile;
        TileCoord { row: first(&self.rows) + cell.row, column: first(&self.columns) + cell.column }
    }
}

impl Raster for Stitched {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn grid(&self) -> Grid {
        Grid { x: self.columns.axis(), y: self.rows.axis() }
    }

    fn decode(&self, cell: TileCoord) -> Result<Option<Pixels>> {
        let Some(tile) = self.page.decode(self.tile(cell))? else { return Ok(None) };
        let (x, y) = (
            self.columns.runs(cell.column, self.page.layout.size.width),
            self.rows.runs(cell.row, self.page.layout.size.height),
        );
        let extent = |runs: &[Run]| runs.last().map_or(0, |run| run.to + run.length) as u64;
        // Cells end where their last small tile does, or later: where tiles do not touch.
        let size = |axis: Axis, index: u64, total: u64, runs: &[Run]| {
            let end = axis.start(index + 1).min(total);
            end.saturating_sub(axis.start(index)).max(extent(runs))
        };
        let size = Size::new(
            size(self.columns.axis(), cell.column, self.shape.size.width, &x),
            size(self.rows.axis(), cell.row, self.shape.size.height, &y),
        );
        let mut pixels = Pixels::filled(size, self.shape.sample, &self.shape.background);
        let strides = (tile.size().width as usize, size.width as usize);
        match (tile.samples(), pixels.samples_mut()) {
            (Samples::U8(from), Samples::U8(to)) => copy(from, to, strides, self.shape.channels, &x, &y),
            (Samples::U16(from), Samples::U16(to)) => copy(from, to, strides, self.shape.channels, &x, &y),
            _ => unreachable!("both have the sample type of the page"),
        }
        Ok(Some(pixels))
    }

    fn prefetch(&self, cell: TileCoord) {
        self.page.prefetch(self.tile(cell));
    }
}

fn copy<T: Copy>(from: &[T], to: &mut [T], strides: (usize, usize), channels: usize, x: &[Run], y: &[Run]) {
    for rows in y {
        for row in 0..rows.length {
            let (a, b) = ((rows.from + row) * strides.0, (rows.to + row) * strides.1);
            for columns in x {
                let (a, b, n) = ((a + columns.from) * channels, (b + columns.to) * channels, columns.length * channels);
                to[b..b + n].copy_from_slice(&from[a..a + n]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_seen_up_to_the_next_one() {
        let placing = Placing { first: 6, count: 5, per_tile: 4, length: 16, advance: 14.0 };
        // Small tiles 6 and 7 are in tile 1 of the page, 8 to 10 in tile 2; the page ends inside of the last one.
        let run = |from, to, length| Run { from, to, length };
        assert_eq!(placing.runs(0, 1000), [run(32, 0, 14), run(48, 14, 14)]);
        assert_eq!(placing.runs(1, 170), [run(0, 0, 14), run(16, 14, 14), run(32, 28, 10)]);
        assert_eq!(placing.extent(), 4 * 14 + 16);
        assert_eq!(placing.axis().start(1), 28);
        // Without overlaps a tile is one run.
        let even = Placing { advance: 16.0, first: 4, ..placing };
        assert_eq!(even.runs(0, 1000), [run(0, 0, 64)]);
    }
}
