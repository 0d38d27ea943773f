//! Which tiles run, and in which order, so that little has to be remembered.
//!
//! The grid is worked through in *strips*: vertical bands of whole blocks, from left to right, each from top to bottom.
//! Only the rows of blocks under the tiles in flight are held, so the memory needed is strip width × a few block rows,
//! whatever the size of the slide. A tile that reaches into two strips adds to both: it runs once for each, or what it says of the
//! second is kept meanwhile. At every pixel the tiles are still added in ascending order, so the strips' width does not change a single
//! bit of the result.

use std::collections::BTreeSet;
use std::ops::Range;

use microtome_io::{Rect, Size, TileCoord};

use crate::grid::{TileGrid, TileIndex};
use crate::roi::Roi;
use crate::{Error, Result};

/// The order of work over one slide.
#[derive(Debug, Clone)]
pub struct Schedule<'a> {
    grid: &'a TileGrid,
    roi: Option<&'a Roi>,
    block: Size,
    strip_blocks: u64,
    finished: Option<Finished<'a>>,
}

/// Parts of the image that need no more work: cells of a regular grid.
#[derive(Debug, Clone, Copy)]
pub struct Finished<'a> {
    /// The cells.
    pub cells: &'a BTreeSet<TileCoord>,
    /// Their size: a whole multiple of a block.
    pub cell: Size,
}

/// One strip: a range of block columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strip {
    /// Columns of blocks.
    pub block_columns: Range<u64>,
    /// The strip's pixels.
    pub rect: Rect,
}

/// A row of tiles within a strip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TileRow {
    /// The tiles to add, ascending. Empty where the row touches nothing that is wanted.
    pub tiles: Vec<ScheduledTile>,
    /// Rows of blocks that are final once these tiles (and all before) have been added.
    pub finished_blocks: Range<u64>,
}

/// A tile within a strip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScheduledTile {
    /// Which.
    pub index: TileIndex,
    /// It was added to an earlier strip, too.
    pub before: bool,
    /// It will be added to a later strip, too.
    pub again: bool,
}

/// How many tiles there are, and what becomes of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct TileCount {
    /// All tiles of the grid.
    pub grid: u64,
    /// Tiles that touch what is wanted.
    pub run: u64,
    /// The others: `grid - run`.
    pub skipped: u64,
    /// How often a tile is added once more because it reaches into another strip.
    pub repeated: u64,
}

impl<'a> Schedule<'a> {
    /// A schedule over `grid`, blending into blocks of `block` pixels in strips of `strip_blocks` columns of blocks.
    /// Without a region of interest every tile runs.
    ///
    /// # Errors
    /// [`Error::Usage`] if blocks or strips are empty.
    pub fn new(grid: &'a TileGrid, roi: Option<&'a Roi>, block: Size, strip_blocks: u64) -> Result<Self> {
        if block.is_empty() || strip_blocks == 0 {
            return Err(Error::Usage("blocks and strips must not be empty".into()));
        }
        Ok(Self { grid, roi, block, strip_blocks, finished: None })
    }

    /// The same schedule less what is finished already. Blocks that are not finished still get all their tiles.
    #[must_use]
    pub fn without(mut self, finished: Finished<'a>) -> Self {
        self.finished = Some(finished);
        self
    }

    /// The tile grid.
    #[must_use]
    pub fn grid(&self) -> &'a TileGrid {
        self.grid
    }

    /// The size of a block.
    #[must_use]
    pub fn block(&self) -> Size {
        self.block
    }

    /// The strips, from left to right.
    pub fn strips(&self) -> impl Iterator<Item = Strip> + use<> {
        let blocks = self.grid.image().cells(self.block);
        let (width, step, image) = (blocks.width, self.strip_blocks, self.grid.image());
        let block_width = self.block.width;
        (0..width.div_ceil(step)).map(move |i| {
            let block_columns = i * step..((i + 1) * step).min(width);
            let x = block_columns.start * block_width;
            let right = (block_columns.end * block_width).min(image.width);
            Strip { rect: Rect::new(x as i64, 0, right - x, image.height), block_columns }
        })
    }

    /// The rows of tiles of a strip, from top to bottom. Together their `finished_blocks` are all rows of blocks.
    pub fn rows<'s>(&'s self, strip: &Strip) -> impl Iterator<Item = TileRow> + use<'s, 'a> {
        let grid = self.grid;
        let strip = strip.rect;
        let tile_width = grid.tile().width as i64;
        let first = grid.columns().partition_point(|&x| x + tile_width <= strip.x);
        let last = grid.columns().partition_point(|&x| x < strip.right());
        let block_rows = grid.image().cells(self.block).height;
        let mut finished = 0;
        (0..grid.rows().len()).map(move |row| {
            let tiles = (first..last).filter_map(|column| self.tile_in(strip, grid.index(row, column))).collect();
            // What lies above the next row's first pixel gets no more contributions.
            let end = grid.rows().get(row + 1).map_or(block_rows, |&y| y as u64 / self.block.height);
            let finished_blocks = finished..end.max(finished);
            finished = finished_blocks.end;
            TileRow { tiles, finished_blocks }
        })
    }

    /// The tile as a part of the strip, if it touches anything there that is wanted and not finished.
    fn tile_in(&self, strip: Rect, index: TileIndex) -> Option<ScheduledTile> {
        let tile = self.grid.rect(index).intersect(self.grid.covered())?;
        let columns = |from: i64, to: i64| {
            let (from, to) = (from.max(tile.x), to.min(tile.right()));
            from < to && self.wanted(Rect::new(from, tile.y, (to - from) as u64, tile.height))
        };
        columns(strip.x, strip.right()).then(|| ScheduledTile {
            index,
            before: columns(tile.x, strip.x),
            again: columns(strip.right(), tile.right()),
        })
    }

    /// True if a rectangle of the image touches what is wanted and not finished.
    fn wanted(&self, rect: Rect) -> bool {
        let touches = |rect: Rect| self.roi.is_none_or(|roi| roi.touches(rect));
        let Some(Finished { cells, cell }) = self.finished else { return touches(rect) };
        let rows = rect.y as u64 / cell.height..(rect.bottom() as u64).div_ceil(cell.height);
        let columns = rect.x as u64 / cell.width..(rect.right() as u64).div_ceil(cell.width);
        rows.flat_map(|row| columns.clone().map(move |column| TileCoord { row, column }))
            .filter(|at| !cells.contains(at))
            .any(|at| at.rect(cell).intersect(rect).is_some_and(touches))
    }

    /// True if a rectangle of the image holds pixels that are wanted, finished or not.
    #[must_use]
    pub fn wants(&self, rect: Rect) -> bool {
        self.roi.is_none_or(|roi| roi.touches(rect))
    }

    /// True if a block holds pixels that are wanted and not finished, and that tiles cover.
    #[must_use]
    pub fn wants_block(&self, block: TileCoord) -> bool {
        let Some(rect) = self.block_rect(block).filter(|rect| rect.intersect(self.grid.covered()).is_some()) else {
            return false;
        };
        let finished = self.finished.is_some_and(|Finished { cells, cell }| {
            cells.contains(&TileCoord { row: rect.y as u64 / cell.height, column: rect.x as u64 / cell.width })
        });
        !finished && self.roi.is_none_or(|roi| roi.touches(rect))
    }

    /// The pixels of a block that lie inside the image.
    #[must_use]
    pub fn block_rect(&self, block: TileCoord) -> Option<Rect> {
        block.rect(self.block).intersect(self.grid.image().rect())
    }

    /// Counts the tiles, strip by strip.
    #[must_use]
    pub fn count(&self) -> TileCount {
        let (mut run, mut repeated) = (0, 0);
        for strip in self.strips() {
            for tile in self.rows(&strip).flat_map(|row| row.tiles) {
                if tile.before {
                    repeated += 1;
                } else {
                    run += 1;
                }
            }
        }
        let grid = self.grid.len();
        TileCount { grid, run, skipped: grid - run, repeated }
    }

    /// Rows of blocks that can be touched and not yet finished at once: what blending must hold, per column of blocks.
    #[must_use]
    pub fn block_rows_in_flight(&self) -> u64 {
        let (tile, block, covered) = (self.grid.tile().height, self.block.height, self.grid.covered());
        let rows = self.grid.rows();
        // Before a row of tiles is added, everything above it is finished; its own blocks are held, as far as tiles cover them.
        rows.iter()
            .map(|&y| {
                let (top, bottom) = (y.max(covered.y), (y + tile as i64).min(covered.bottom()));
                (bottom as u64).div_ceil(block) - top as u64 / block
            })
            .max()
            .unwrap_or(1)
    }

    /// The same, whatever part of the image the tiles cover: for plans that are made before that is known.
    #[must_use]
    pub fn most_block_rows_in_flight(&self) -> u64 {
        let (image, block) = (self.grid.image().height, self.block.height);
        // So many rows of pixels, of which the first may be the last of a block.
        let rows = self.grid.tile().height.min(image);
        (1 + (rows + block - 2) / block).min(image.div_ceil(block))
    }
}

#[cfg(test)]
mod tests {
    use microtome_io::Downsample;

    use super::*;
    use crate::StepRule;

    proptest::proptest! {
        #[test]
        fn every_block_is_finished_once_and_after_its_last_tile(
            width in 1u64..300, height in 1u64..300, tile in 1u64..80, tenths in 2u32..=10, block in 1u64..70, strip in 1u64..5,
            cut in proptest::array::uniform4(0u64..300),
        ) {
            // From none to all but one of the columns and rows are cut off, on both sides.
            let (left, top) = (cut[0] % width, cut[1] % height);
            let part = Size::new(width - left - cut[2] % (width - left), height - top - cut[3] % (height - top));
            let covered = Rect::new(left as i64, top as i64, part.width, part.height);
            let (tile, step) = (Size::new(tile, tile), f64::from(tenths) / 10.0);
            let grid = TileGrid::placed(Size::new(width, height), covered, tile, step, StepRule::Nnunet).unwrap();
            let schedule = Schedule::new(&grid, None, Size::new(block, block), strip).unwrap();
            let mut covered = 0;
            for s in schedule.strips() {
                covered += s.rect.width;
                let mut finished = 0;
                let mut last = None;
                let mut held = 0;
                for row in schedule.rows(&s) {
                    for &t in &row.tiles {
                        proptest::prop_assert!(last < Some(t.index), "ascending");
                        last = Some(t.index);
                        let rect = grid.rect(t.index).intersect(grid.covered()).unwrap();
                        proptest::prop_assert!(rect.y as u64 / block >= finished, "no tile touches a finished block");
                        held = held.max((rect.bottom() as u64).div_ceil(block) - finished.max(rect.y as u64 / block));
                    }
                    proptest::prop_assert_eq!(row.finished_blocks.start, finished);
                    finished = row.finished_blocks.end;
                }
                proptest::prop_assert_eq!(finished, height.div_ceil(block));
                proptest::prop_assert!(held <= schedule.block_rows_in_flight());
                proptest::prop_assert!(held <= schedule.most_block_rows_in_flight());
            }
            proptest::prop_assert_eq!(covered, width);
            let count = schedule.count();
            proptest::prop_assert_eq!((count.grid, count.run, count.skipped), (grid.len(), grid.len(), 0));
        }
    }

    #[test]
    fn only_tiles_that_touch_the_region_run() {
        let grid = TileGrid::new(Size::new(100, 100), Size::new(20, 20), 0.5).unwrap();
        let mut roi = Roi::builder(Size::new(10, 10), Downsample { x: 10.0, y: 10.0 });
        for y in 0..10 {
            roi.push_row((y == 9).then_some(9..10)).unwrap();
        }
        let roi = roi.finish();
        let schedule = Schedule::new(&grid, Some(&roi), Size::new(32, 32), 100).unwrap();
        // Tiles start every 10 pixels: only the last one reaches into the last ten.
        assert_eq!(schedule.count(), TileCount { grid: 81, run: 1, skipped: 80, repeated: 0 });
    }
}
