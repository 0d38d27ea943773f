//! Where the tiles lie: nnU-Net's sliding window, or MONAI's.

use microtome_io::{Rect, Size};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The number of a tile: row by row from the top left corner. Blending adds tiles in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TileIndex(pub u64);

/// Whose rule says how far tiles are apart. Along an axis of `n` pixels with tiles of `p` pixels and a step of `t` (a fraction of
/// the tile), `n > p`:
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepRule {
    /// `k = ceil((n - p) / (p t)) + 1` tiles, tile `i` starting at `round((n - p) / (k - 1) i)`, ties to even: the first tile lies at the
    /// beginning, the last one flush with the end, and the steps are stretched evenly between them.
    /// Source: nnU-Net 2.8.1, `compute_steps_for_sliding_window`.
    #[default]
    Nnunet,
    /// A tile every `max(1, floor(p t))` pixels from the beginning on, the last one, which would stick out, moved back until it is flush with
    /// the end. MONAI's overlap is `1 - t`.
    /// Source: MONAI 1.6.1, `monai.data.utils.dense_patch_slices` and `monai.inferers.utils._get_scan_interval`.
    Monai,
}

/// The tiles of an image, as nnU-Net v2 or MONAI places them.
///
/// An axis shorter than a tile is padded, `(p - n) / 2` pixels (rounded down) before it and the rest behind, by both alike.
/// Source: nnU-Net 2.8.1, `pad_nd_image`; MONAI 1.6.1, `sliding_window_inference`.
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
    /// Places tiles of `tile` pixels on an image as nnU-Net does, `step` being a fraction of the tile.
    ///
    /// # Errors
    /// As [`placed`](Self::placed).
    pub fn new(image: Size, tile: Size, step: f64) -> Result<Self> {
        Self::placed(image, image.rect(), tile, step, StepRule::Nnunet)
    }

    /// Places tiles of `tile` pixels on a part of an image, `step` being a fraction of the tile.
    ///
    /// # Errors
    /// [`Error::Usage`] if the part or the tile is empty, the part is not one of the image, or the step is not in `0.1..=1`.
    /// (nnU-Net allows any positive step; below a tenth a slide has over a hundred times its own area to compute.)
    pub fn placed(image: Size, covered: Rect, tile: Size, step: f64, rule: StepRule) -> Result<Self> {
        if covered.is_empty() || tile.is_empty() {
            let size = covered.size();
            return Err(Error::Usage(format!("cannot lay tiles of {tile} pixels over an image of {size} pixels")));
        }
        if !image.rect().contains(covered) {
            return Err(Error::Usage(format!("{covered} is no part of an image of {image} pixels")));
        }
        // One less an overlap of 0.9 is a little less than a tenth.
        if !(0.1 - 1e-9..=1.0).contains(&step) {
            return Err(Error::Usage(format!("the step between tiles is {step} of a tile; it must be in 0.1 to 1")));
        }
        let columns = starts(covered.width, tile.width, step, rule).into_iter().map(|x| covered.x + x).collect();
        let rows = starts(covered.height, tile.height, step, rule).into_iter().map(|y| covered.y + y).collect();
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
fn starts(n: u64, p: u64, step: f64, rule: StepRule) -> Vec<i64> {
    if n <= p {
        return vec![-(((p - n) / 2) as i64)];
    }
    if rule == StepRule::Monai {
        let (last, interval) = (n - p, ((p as f64 * step) as u64).max(1));
        return (0..=last.div_ceil(interval)).map(|i| (i * interval).min(last) as i64).collect();
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
        let starts = |n, p, step| starts(n, p, step, StepRule::Nnunet);
        assert_eq!(starts(110, 64, 0.5), [0, 23, 46]);
        let rows = starts(2967, 128, 0.5);
        assert_eq!((rows.len(), rows[1], rows[2], *rows.last().unwrap()), (46, 63, 126, 2967 - 128));
        for (p, k) in [(512, 390), (1024, 195), (1280, 156), (256, 781)] {
            assert_eq!(starts(100_000, p, 0.5).len(), k, "tile {p}");
        }
    }

    // From MONAI 1.6.1:
    //   from monai.data.utils import dense_patch_slices as d; from monai.inferers.utils import _get_scan_interval as g
    //   f = lambda n, p, o: [s[0].start for s in d((n, p), (p, p), g((n, p), (p, p), 2, (o, o)))]
    //   f(110, 64, .5); f(110, 64, .25); f(128, 64, 0.); f(65, 64, .9); f(100, 10, .85)[:3]; f(100, 10, .85)[-2:]
    #[test]
    fn starts_are_monais() {
        let starts = |n, p, overlap: f64| starts(n, p, 1.0 - overlap, StepRule::Monai);
        assert_eq!(starts(110, 64, 0.5), [0, 32, 46]);
        assert_eq!(starts(110, 64, 0.25), [0, 46]);
        assert_eq!(starts(128, 64, 0.0), [0, 64]);
        assert_eq!(starts(65, 64, 0.9), [0, 1]);
        let many = starts(100, 10, 0.85);
        assert_eq!((&many[..3], &many[many.len() - 2..]), (&[0, 1, 2][..], &[89, 90][..]));
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
            let (grid, alone) = (
                TileGrid::placed(image, part, tile, 0.5, StepRule::Nnunet).unwrap(),
                TileGrid::new(part.size(), tile, 0.5).unwrap(),
            );
            assert_eq!((grid.image(), grid.covered(), grid.len()), (image, part, alone.len()));
            for index in (0..grid.len()).map(TileIndex) {
                let (here, there) = (grid.rect(index), alone.rect(index));
                assert_eq!((here.x - part.x, here.y - part.y), (there.x, there.y), "{part}");
            }
        }
        for wrong in [Rect::new(690, 0, 11, 5), Rect::new(-1, 0, 5, 5), Rect::new(5, 5, 0, 5)] {
            assert!(TileGrid::placed(image, wrong, tile, 0.5, StepRule::Nnunet).is_err(), "{wrong}");
        }
    }

    proptest::proptest! {
        #[test]
        fn tiles_cover_the_image_and_overlap_as_asked(n in 1u64..5000, p in 1u64..300, tenths in 1u32..=10) {
            let step = f64::from(tenths) / 10.0;
            for rule in [StepRule::Nnunet, StepRule::Monai] {
                let s = starts(n, p, step, rule);
                proptest::prop_assert!(s[0] <= 0);
                proptest::prop_assert!(n <= p || s.last().unwrap() + p as i64 == n as i64);
                proptest::prop_assert!(n > p || s == [-(((p - n) / 2) as i64)]);
            }
            let s = starts(n, p, step, StepRule::Monai);
            for pair in s.windows(2) {
                let d = pair[1] - pair[0];
                proptest::prop_assert!(d > 0 && d as f64 <= (p as f64 * step).max(1.0));
            }
            let s = starts(n, p, step, StepRule::Nnunet);
            for pair in s.windows(2) {
                let d = pair[1] - pair[0];
                // Rounding may stretch a single step by one pixel beyond the nominal one.
                proptest::prop_assert!(d >= 0 && d as f64 <= (p as f64 * step).ceil() + 1.0 && d <= p as i64 + 1);
            }
        }
    }
}
