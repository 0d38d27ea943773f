//! Masks of other resolutions as regions of interest.

use std::ops::Range;

use microtome_io::{Downsample, Size};

use crate::Result;
use crate::roi::{Roi, RoiBuilder};

/// Where a mask lies over a target grid: the mask's pixels become cells of a region.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placement {
    /// Pixels of the mask.
    pub size: Size,
    /// Target pixels per pixel of the mask, above 0.
    pub step: Downsample,
    /// The mask's left border, in target pixels from the grid's.
    pub left: f64,
    /// The mask's upper border, in target pixels from the grid's.
    pub top: f64,
}

/// A region in the making, from the rows of a mask.
#[derive(Debug)]
pub struct PlacedRoi {
    placement: Placement,
    target: Size,
    builder: RoiBuilder,
    way: Way,
}

/// How rows of the mask become rows of the region.
#[derive(Debug)]
enum Way {
    /// The mask has the grid's corner and covers it: its pixels are the region's cells.
    Cells,
    /// The region's cells are target pixels, each of which takes the mask's pixel under its centre.
    Pixels {
        /// The next row of the mask.
        row: u64,
        /// Rows of the region so far.
        done: u64,
    },
}

impl Placement {
    /// A mask of `size` pixels that covers a grid of `target` pixels from corner to corner.
    #[must_use]
    pub fn stretched(size: Size, target: Size) -> Self {
        let step =
            Downsample { x: target.width as f64 / size.width as f64, y: target.height as f64 / size.height as f64 };
        Self { size, step, left: 0.0, top: 0.0 }
    }

    /// True if the mask's corner is the grid's, and it ends where the grid does, give or take one of its pixels or of the grid's.
    #[must_use]
    pub fn covers(&self, target: Size) -> bool {
        let ends = |n: u64, step: f64, end: u64| (n as f64 * step - end as f64).abs() <= step.max(1.0);
        self.left.abs() < 1e-3
            && self.top.abs() < 1e-3
            && ends(self.size.width, self.step.x, target.width)
            && ends(self.size.height, self.step.y, target.height)
    }

    /// Begins a region over a grid of `target` pixels. Outside the mask nothing is wanted.
    #[must_use]
    pub fn builder(self, target: Size) -> PlacedRoi {
        let (builder, way) = if self.covers(target) {
            (Roi::builder(self.size, self.step), Way::Cells)
        } else {
            (Roi::builder(target, Downsample { x: 1.0, y: 1.0 }), Way::Pixels { row: 0, done: 0 })
        };
        PlacedRoi { placement: self, target, builder, way }
    }
}

impl PlacedRoi {
    /// Appends the next row of the mask: its wanted pixels, as [`RoiBuilder::push_row`] takes them.
    ///
    /// # Errors
    /// As [`RoiBuilder::push_row`].
    pub fn push_row(&mut self, runs: impl IntoIterator<Item = Range<u64>>) -> Result<()> {
        let Placement { step, left, top, .. } = self.placement;
        let Way::Pixels { row, done } = &mut self.way else { return self.builder.push_row(runs) };
        let columns = |x: u64| first_pixel(x, step.x, left, self.target.width);
        let (first, end) = (
            first_pixel(*row, step.y, top, self.target.height),
            first_pixel(*row + 1, step.y, top, self.target.height),
        );
        *row += 1;
        if first >= end {
            // No centre of a target pixel lies in this row of the mask.
            return Ok(());
        }
        while *done < first {
            self.builder.push_row([])?;
            *done += 1;
        }
        let runs: Vec<_> = runs.into_iter().map(|run| columns(run.start)..columns(run.end)).collect();
        while *done < end {
            self.builder.push_row(runs.iter().cloned())?;
            *done += 1;
        }
        Ok(())
    }

    /// The region. Rows that were not pushed are empty.
    #[must_use]
    pub fn finish(self) -> Roi {
        self.builder.finish()
    }
}

/// The first target pixel whose centre lies in this pixel of the mask or behind it, clipped to the `n` that there are.
fn first_pixel(of: u64, step: f64, offset: f64, n: u64) -> u64 {
    (of as f64 * step + offset - 0.5).ceil().clamp(0.0, n as f64) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mask_from_corner_to_corner_keeps_its_pixels() {
        let placement = Placement::stretched(Size::new(3, 2), Size::new(100, 70));
        let mut placed = placement.builder(Size::new(100, 70));
        placed.push_row([]).unwrap();
        placed.push_row(std::iter::once(1..3)).unwrap();
        let roi = placed.finish();
        assert_eq!((roi.size(), roi.cells()), (Size::new(3, 2), 2));
    }

    proptest! {
        /// Whatever the offset: a target pixel takes the mask's pixel under its centre.
        #[test]
        fn a_mask_somewhere_else_is_looked_up_at_centres(
            mask in prop::collection::vec(any::<bool>(), 35),
            step in 0.4f64..6.0, left in -20.0f64..20.0, top in -20.0f64..20.0,
        ) {
            let size = Size::new(7, 5);
            let target = Size::new(23, 19);
            let step = Downsample { x: step, y: step * 0.8 };
            let placement = Placement { size, step, left, top };
            prop_assume!(!placement.covers(target));
            let mut placed = placement.builder(target);
            for row in mask.chunks(7) {
                placed.push_row((0..7u64).filter(|&x| row[x as usize]).map(|x| x..x + 1)).unwrap();
            }
            let roi = placed.finish();
            prop_assert_eq!((roi.size(), roi.step()), (target, Downsample { x: 1.0, y: 1.0 }));
            for y in 0..target.height {
                for x in 0..target.width {
                    let column = (x as f64 + 0.5 - left) / step.x;
                    let row = (y as f64 + 0.5 - top) / step.y;
                    // On a border between two pixels rounding may choose either.
                    if (column - column.round()).abs() < 1e-9 || (row - row.round()).abs() < 1e-9 {
                        continue;
                    }
                    let inside = (0.0..7.0).contains(&column) && (0.0..5.0).contains(&row);
                    let wanted = inside && mask[row as usize * 7 + column as usize];
                    prop_assert_eq!(roi.cell(x, y), wanted, "pixel {} {}", x, y);
                }
            }
        }
    }
}
