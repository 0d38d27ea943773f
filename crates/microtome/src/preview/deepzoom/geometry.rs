//! Levels, tiles and cells of a DeepZoom image: arithmetic alone.
//!
//! Levels are counted here by their *depth*, the halvings from the whole image (depth 0) to them. DeepZoom counts from the other end: its
//! level 0 is the single pixel that is left at last.
//!
//! The image is worked through in *hops*. A hop reads one level, the *source*, cell by cell, and makes of each cell the tiles of up to
//! [`MOST_HALVINGS`] levels from the source on, and a piece of the level after them, which is the source of the next hop. The side of a cell is a
//! multiple of tiles of all levels of its hop, so that each tile belongs to one cell. Tiles overlap, so a cell is read with a rim around it
//! that is wide enough for the tiles of the coarsest level.

use microtome_io::{Rect, Size, TileCoord};
use microtome_tile::pyramid::level_sizes;

/// Levels that one hop makes at most. The level that is kept between hops has 4^4 = 256 times fewer pixels than the one that is read.
const MOST_HALVINGS: u32 = 4;

/// The side that a cell has, or comes near to from below, in pixels: at it the rim is 3 % of what is read, and a cell of RGB pixels takes 12 MiB.
pub(super) const CELL: u64 = 2048;

/// How an image is cut into levels and tiles.
#[derive(Debug, Clone)]
pub(super) struct Geometry {
    /// The size of each level, by depth.
    levels: Vec<Size>,
    /// The side of a tile without its overlap.
    tile: u64,
    overlap: u64,
    /// What [`CELL`] is, but for tests.
    cell: u64,
}

impl Geometry {
    pub(super) fn new(size: Size, tile: u64, overlap: u64, cell: u64) -> Self {
        Self { levels: level_sizes(size, 1), tile, overlap, cell }
    }

    /// The sizes of all levels by depth.
    pub(super) fn levels(&self) -> &[Size] {
        &self.levels
    }

    /// What DeepZoom calls the level of this depth.
    pub(super) fn number(&self, depth: usize) -> usize {
        self.levels.len() - 1 - depth
    }

    /// The pixels of a tile, in those of its level: its own and up to the overlap on each side, as far as the level goes.
    pub(super) fn tile(&self, depth: usize, tile: TileCoord) -> Rect {
        let level = self.levels[depth].rect();
        grown(tile.rect(Size::new(self.tile, self.tile)), self.overlap).intersect(level).unwrap_or(level)
    }

    /// The hops, from the whole image to the single pixel.
    pub(super) fn hops(&self) -> Vec<Hop> {
        let mut hops = Vec::new();
        let mut source = 0;
        let (halvings, side) = self.cell_side();
        while source < self.levels.len() {
            let size = self.levels[source];
            let last = size.width <= side && size.height <= side;
            let depths = if last { self.levels.len() - source } else { halvings as usize };
            hops.push(Hop { source, depths, side, size, last, rim: self.rim(halvings) });
            source += depths;
        }
        hops
    }

    /// Levels that a hop makes, and the side of its cells.
    fn cell_side(&self) -> (u32, u64) {
        // The piece of the level after those of the hop is a whole number of pixels, too.
        let least = |n: u32| if self.tile.is_multiple_of(2) { self.tile << (n - 1) } else { self.tile << n };
        let fits = |n: &u32| least(*n) <= self.cell && self.rim(*n) <= self.cell / 8;
        let halvings = (1..=MOST_HALVINGS).rev().find(fits).unwrap_or(1);
        let least = least(halvings);
        (halvings, least * (self.cell / least).max(1))
    }

    /// The width of the rim of a cell: the overlap of the coarsest level of a hop, up to a whole number of pixels of the level after it.
    fn rim(&self, halvings: u32) -> u64 {
        (self.overlap << (halvings - 1)).next_multiple_of(1 << halvings)
    }

    /// Pixels that a cell has with its rim and all that is made of it, at most: what a thread holds while it works on one.
    pub(super) fn most_pixels(&self) -> u64 {
        let (halvings, side) = self.cell_side();
        let whole = side + 2 * self.rim(halvings);
        let read = Size::new(whole.min(self.levels[0].width), whole.min(self.levels[0].height));
        level_sizes(read, 1).iter().map(|size| size.area()).sum()
    }
}

/// Some levels that are made together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Hop {
    /// The depth of the level that is read.
    pub(super) source: usize,
    /// The levels whose tiles are made: `source` and those after it.
    pub(super) depths: usize,
    /// The side of a cell in pixels of the source.
    side: u64,
    /// The size of the source.
    size: Size,
    /// True if nothing is left to make after it: the source is a single cell.
    pub(super) last: bool,
    /// The width of the rim around a cell.
    rim: u64,
}

impl Hop {
    /// Columns and rows of cells.
    pub(super) fn cells(&self) -> Size {
        self.size.cells(Size::new(self.side, self.side))
    }

    /// The pixels of the source that are a cell's own.
    pub(super) fn core(&self, cell: TileCoord) -> Rect {
        let level = self.size.rect();
        cell.rect(Size::new(self.side, self.side)).intersect(level).unwrap_or(level)
    }

    /// The pixels of the source that are read for a cell: its own, and the rim as far as the level goes.
    pub(super) fn read(&self, cell: TileCoord) -> Rect {
        let level = self.size.rect();
        grown(self.core(cell), self.rim).intersect(level).unwrap_or(level)
    }
}

/// Where a rectangle of a level lies on one that is `halvings` coarser. Its left and top edges are whole pixels there, and so are the others
/// but at the ends of the level, which round up.
pub(super) fn halved(rect: Rect, halvings: usize) -> Rect {
    let end = |n: i64| (n as u64).div_ceil(1 << halvings);
    let (x, y) = ((rect.x >> halvings) as u64, (rect.y >> halvings) as u64);
    Rect::new(x as i64, y as i64, end(rect.right()) - x, end(rect.bottom()) - y)
}

/// The tiles of side `tile` that begin in a rectangle.
pub(super) fn tiles_in(rect: Rect, tile: u64) -> impl Iterator<Item = TileCoord> {
    let range = |from: i64, to: i64| from as u64 / tile..(to as u64).div_ceil(tile);
    let (rows, columns) = (range(rect.y, rect.bottom()), range(rect.x, rect.right()));
    rows.flat_map(move |row| columns.clone().map(move |column| TileCoord { row, column }))
}

fn grown(rect: Rect, by: u64) -> Rect {
    let by_signed = by as i64;
    Rect::new(rect.x - by_signed, rect.y - by_signed, rect.width + 2 * by, rect.height + 2 * by)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Columns and rows of tiles of a level.
    fn tiles(geometry: &Geometry, depth: usize) -> Size {
        geometry.levels[depth].cells(Size::new(geometry.tile, geometry.tile))
    }

    #[test]
    fn levels_are_counted_as_deepzoom_does() {
        // openslide.deepzoom.DeepZoomGenerator of openslide-python 1.4.7 on a slide of 2220 x 2967 pixels, tile_size=254, overlap=1:
        // level_count 13; level_dimensions and level_tiles of the last levels.
        let geometry = Geometry::new(Size::new(2220, 2967), 254, 1, CELL);
        assert_eq!(geometry.levels().len(), 13);
        assert_eq!((geometry.number(0), geometry.number(12)), (12, 0));
        assert_eq!(geometry.levels()[1], Size::new(1110, 1484));
        assert_eq!(geometry.levels()[3], Size::new(278, 371));
        assert_eq!((tiles(&geometry, 0), tiles(&geometry, 3)), (Size::new(9, 12), Size::new(2, 2)));
        assert_eq!(geometry.tile(0, TileCoord { row: 0, column: 0 }), Rect::new(0, 0, 255, 255));
        assert_eq!(geometry.tile(0, TileCoord { row: 11, column: 8 }), Rect::new(2031, 2793, 189, 174));
        assert_eq!(geometry.tile(0, TileCoord { row: 1, column: 1 }), Rect::new(253, 253, 256, 256));
        assert_eq!(Geometry::new(Size::new(1, 1), 254, 1, CELL).levels(), [Size::new(1, 1)]);
    }

    #[test]
    fn a_cell_of_the_default_tiles_is_8_by_8_of_them() {
        let geometry = Geometry::new(Size::new(100_000, 80_000), 254, 1, CELL);
        let hops = geometry.hops();
        assert_eq!(hops.iter().map(|hop| hop.depths).collect::<Vec<_>>(), [4, 4, 10]);
        assert_eq!((hops[0].cells(), hops[0].rim), (Size::new(50, 40), 16));
        assert_eq!(hops[0].core(TileCoord { row: 1, column: 2 }), Rect::new(4064, 2032, 2032, 2032));
        assert_eq!(hops[0].read(TileCoord { row: 1, column: 0 }), Rect::new(0, 2016, 2048, 2064));
        assert_eq!(hops[0].side >> hops[0].depths, 127);
        // Of RGB of 8 bits 17 MB, whatever the size of the slide.
        assert_eq!(geometry.most_pixels(), Geometry::new(Size::new(20_000, 15_000), 254, 1, CELL).most_pixels());
        assert!(geometry.most_pixels() * 3 < 18_000_000, "{}", geometry.most_pixels());
    }

    proptest! {
        #[test]
        fn every_tile_belongs_to_one_cell_that_holds_it(
            (width, height) in (1..700_u64, 1..300_u64),
            (tile, overlap) in (1..70_u64).prop_flat_map(|tile| (Just(tile), 0..=tile / 2)),
            cell in 16..128_u64,
        ) {
            let geometry = Geometry::new(Size::new(width, height), tile, overlap, cell);
            let mut seen = BTreeSet::new();
            let mut next = 0;
            for hop in geometry.hops() {
                prop_assert_eq!(hop.source, next);
                next += hop.depths;
                let mut kept = 0;
                for cell in (0..hop.cells().area()).map(|i| TileCoord { row: i / hop.cells().width, column: i % hop.cells().width }) {
                    let (core, read) = (hop.core(cell), hop.read(cell));
                    prop_assert!(read.contains(core));
                    for depth in 0..hop.depths {
                        let (here, at) = (halved(read, depth), hop.source + depth);
                        // Whole pixels, but at the ends of the level.
                        prop_assert!(read.x % (1 << depth) == 0 && read.y % (1 << depth) == 0);
                        let level = geometry.levels()[at];
                        prop_assert!(level.rect().contains(here));
                        for tile_at in tiles_in(halved(core, depth), tile) {
                            prop_assert!(seen.insert((at, tile_at)), "a tile twice");
                            prop_assert!(here.contains(geometry.tile(at, tile_at)));
                        }
                    }
                    let size = level_sizes(read.size(), 1).iter().map(|size| size.area()).sum::<u64>();
                    prop_assert!(size <= geometry.most_pixels());
                    if !hop.last {
                        let piece = halved(core, hop.depths);
                        prop_assert!(halved(read, hop.depths).contains(piece));
                        prop_assert!(piece.width.max(piece.height) <= hop.side >> hop.depths);
                        kept += piece.size().area();
                    }
                }
                prop_assert_eq!(kept, if hop.last { 0 } else { geometry.levels()[next].area() });
            }
            prop_assert_eq!(next, geometry.levels().len());
            let all: u64 = (0..next).map(|depth| tiles(&geometry, depth).area()).sum();
            prop_assert_eq!(seen.len() as u64, all);
        }
    }
}
