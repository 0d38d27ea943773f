//! Where the tiles lie: nnU-Net's sliding window.

use microtome_io::{Rect, Size};

use crate::{Error, Result};

/// The number of a tile: row by row from the top left corner. Blending adds tiles in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TileIndex(pub u64);

/// The tiles of an image, as nnU-Net v2 places them.
///
/// Along an axis of `n` pixels with tiles of `p` pixels and a step of `t` (a fraction of the tile) there are
/// `k = ceil((n - p) / (p t)) + 1` tiles, tile `i` starting at `round((n - p) / (k - 1) i)`, ties to even: the first
/// tile lies at the beginning, the last one flush with the end, and the steps are stretched evenly between them.
/// An axis shorter than a tile is padded, `(p - n) / 2` pixels (rounded down) before it and the rest behind.
/// Source: nnU-Net 2.8.1, `compute_steps_for_sliding_window` and `pad_nd_image`.
///
/// The grid may cover a part of the image only: then the tiles lie as they would on that part alone, and what lies outside is no
/// part of any of them, but positions remain the image's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TileGrid {
    image: Size,
    covered: Rect,
    tile: Size,
    columns: Vec<i64>,
    rows: Vec<i64>,
}

impl TileGrid {
    /// Places tiles of `tile` pixels on an image, `step` being a fraction of the tile.
    ///
    /// # Errors
    /// [`Error::Usage`] if the image or the tile is empty, or the step is not in `0.1..=1`.
    /// (nnU-Net allows any positive step; below a tenth a slide has over a hundred times its own area to compute.)
    pub fn new(image: Size, tile: Size, step: f64) -> Result<Self> {
        Self::within(image, image.rect(), tile, step)
    }

    /// Places tiles on a part of an image.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Error::Usage`] also if the part is not one of the image.
    pub fn within(image: Size, covered: Rect, tile: Size, step: f64) -> Result<Self> {
        if covered.is_empty() || tile.is_empty() {
            let size = covered.size();
            return Err(Error::Usage(format!("cannot lay tiles of {tile} pixels over an image of {size} pixels")));
        }
        if !image.rect().contains(covered) {
            return Err(Error::Usage(format!("{covered} is no part of an image of {image} pixels")));
        }
        if !(0.1..=1.0).contains(&step) {
            return Err(Error::Usage(format!("the step between tiles is {step} of a tile; it must be in 0.1 to 1")));
        }
        let columns = starts(covered.width, tile.width, step).into_iter().map(|x| covered.x + x).collect();
        let rows = starts(covered.height, tile.height, step).into_iter().map(|y| covered.y + y).collect();
        Ok(Self { image, covered, tile, columns, rows })
    }

    /// The image that the tiles lie on.
    #[must_use]
    pub fn image(&self) -> Size {
        self.image
    }

    /// The part of it that they cover: all of it, unless they were placed on less.
    #[must_use]
    pub fn covered(&self) -> Rect {
        self.covered
    }

    /// The size of every tile.
    #[must_use]
    pub fn tile(&self) -> Size {
        self.tile
    }

    /// The first pixel column of each column of tiles, ascending; before what is covered only where that is padded.
    #[must_use]
    pub fn columns(&self) -> &[i64] {
        &self.columns
    }

    /// The first pixel row of each row of tiles, ascending; before what is covered only where that is padded.
    #[must_use]
    pub fn rows(&self) -> &[i64] {
        &self.rows
    }

    /// The number of tiles.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.columns.len() as u64 * self.rows.len() as u64
    }

    /// Never true: there is at least one tile.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tile at a column and row of the grid.
    #[must_use]
    pub fn index(&self, row: usize, column: usize) -> TileIndex {
        TileIndex(row as u64 * self.columns.len() as u64 + column as u64)
    }

    /// The pixels of a tile. They stick out of what is covered only where an axis of that is shorter than the tile.
    ///
    /// # Panics
    /// If there is no such tile.
    #[must_use]
    pub fn rect(&self, index: TileIndex) -> Rect {
        let columns = self.columns.len() as u64;
        let (row, column) = ((index.0 / columns) as usize, (index.0 % columns) as usize);
        Rect::new(self.columns[column], self.rows[row], self.tile.width, self.tile.height)
    }
}

/// Tile origins along one axis.
fn starts(n: u64, p: u64, step: f64) -> Vec<i64> {
    if n <= p {
        return vec![-(((p - n) / 2) as i64)];
    }
    let span = (n - p) as f64;
    let k = (span / (p as f64 * step)).ceil() as u64 + 1;
    let stride = span / (k - 1) as f64;
    (0..k).map(|i| (stride * i as f64).round_ties_even() as i64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // From nnU-Net 2.8.1:
    //   from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window as f
    //   f((110,), (64,), .5); f((2967, 2220), (128, 128), .5)
    #[test]
    fn starts_are_nnunets() {
        assert_eq!(starts(110, 64, 0.5), [0, 23, 46]);
        let rows = starts(2967, 128, 0.5);
        assert_eq!((rows.len(), rows[1], rows[2], *rows.last().unwrap()), (46, 63, 126, 2967 - 128));
        for (p, k) in [(512, 390), (1024, 195), (1280, 156), (256, 781)] {
            assert_eq!(starts(100_000, p, 0.5).len(), k, "tile {p}");
        }
    }

    #[test]
    fn a_small_image_is_padded_on_both_sides() {
        let grid = TileGrid::new(Size::new(5, 200), Size::new(64, 64), 0.5).unwrap();
        assert_eq!(grid.columns(), [-29]);
        assert_eq!(grid.rect(TileIndex(0)), Rect::new(-29, 0, 64, 64));
        assert_eq!(grid.rect(TileIndex(grid.len() - 1)).bottom(), 200);
    }

    #[test]
    fn a_part_has_the_tiles_that_it_would_have_alone() {
        let (image, tile) = (Size::new(700, 300), Size::new(64, 64));
        for part in [Rect::new(37, 11, 211, 187), Rect::new(601, 290, 30, 10), Rect::new(0, 0, 700, 300)] {
            let (grid, alone) =
                (TileGrid::within(image, part, tile, 0.5).unwrap(), TileGrid::new(part.size(), tile, 0.5).unwrap());
            assert_eq!((grid.image(), grid.covered(), grid.len()), (image, part, alone.len()));
            for index in (0..grid.len()).map(TileIndex) {
                let (here, there) = (grid.rect(index), alone.rect(index));
                assert_eq!((here.x - part.x, here.y - part.y), (there.x, there.y), "{part}");
            }
        }
        for wrong in [Rect::new(690, 0, 11, 5), Rect::new(-1, 0, 5, 5), Rect::new(5, 5, 0, 5)] {
            assert!(TileGrid::within(image, wrong, tile, 0.5).is_err(), "{wrong}");
        }
    }

    proptest::proptest! {
        #[test]
        fn tiles_cover_the_image_and_overlap_as_asked(n in 1u64..5000, p in 1u64..300, tenths in 1u32..=10) {
            let step = f64::from(tenths) / 10.0;
            let s = starts(n, p, step);
            proptest::prop_assert!(s[0] <= 0);
            proptest::prop_assert!(s.last().unwrap() + p as i64 >= n as i64);
            for pair in s.windows(2) {
                let d = pair[1] - pair[0];
                // Rounding may stretch a single step by one pixel beyond the nominal one.
                proptest::prop_assert!(d >= 0 && d as f64 <= (p as f64 * step).ceil() + 1.0 && d <= p as i64 + 1);
            }
        }
    }
}
