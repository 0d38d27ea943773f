//! Regions of interest: which pixels of the target grid are wanted.

use microtome_io::{Downsample, Rect, Size};

/// A mask of one bit per cell over the target grid; a cell spans [`step`](Self::step) target pixels per axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Roi {
    size: Size,
    step: Downsample,
    bits: Vec<u64>,
    words_per_row: usize,
}

impl Roi {
    /// A region with no pixel, of `size` cells, each `step` target pixels wide and high (any factor above 0).
    #[must_use]
    pub fn empty(size: Size, step: Downsample) -> Self {
        let words_per_row = size.width.div_ceil(64) as usize;
        Self { size, step, bits: vec![0; words_per_row * size.height as usize], words_per_row }
    }

    /// Cells of the mask.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    /// Target pixels per cell.
    #[must_use]
    pub fn step(&self) -> Downsample {
        self.step
    }

    /// Marks the cell at column `x` and row `y`.
    ///
    /// # Panics
    /// If there is no such cell.
    pub fn insert(&mut self, x: u64, y: u64) {
        assert!(x < self.size.width && y < self.size.height, "a cell of the mask");
        self.bits[y as usize * self.words_per_row + x as usize / 64] |= 1 << (x % 64);
    }

    /// True if the cell at column `x` and row `y` is wanted.
    #[must_use]
    pub fn cell(&self, x: u64, y: u64) -> bool {
        x < self.size.width
            && y < self.size.height
            && self.bits[y as usize * self.words_per_row + x as usize / 64] >> (x % 64) & 1 == 1
    }

    /// The number of wanted cells.
    #[must_use]
    pub fn cells(&self) -> u64 {
        self.bits.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// The cell that a target pixel's centre lies in, along one axis.
    fn cell_of(pixel: i64, step: f64, n: u64) -> u64 {
        (((pixel.max(0) as f64 + 0.5) / step) as u64).min(n - 1)
    }

    fn cells_of(&self, rect: Rect) -> (std::ops::RangeInclusive<u64>, std::ops::RangeInclusive<u64>) {
        let x = |v| Self::cell_of(v, self.step.x, self.size.width);
        let y = |v| Self::cell_of(v, self.step.y, self.size.height);
        (x(rect.x)..=x(rect.right() - 1), y(rect.y)..=y(rect.bottom() - 1))
    }

    /// True if a pixel of `rect` (target pixels, inside the grid) is wanted. Where cells are smaller than pixels it is also true for wanted
    /// cells between the pixels' centres.
    #[must_use]
    pub fn touches(&self, rect: Rect) -> bool {
        let (columns, rows) = self.cells_of(rect);
        rows.into_iter().any(|y| columns.clone().any(|x| self.cell(x, y)))
    }

    /// Calls `clear` with every run of pixels of `rect` that are not wanted: row, first column and one past the last,
    /// counted from the rectangle's corner.
    pub fn for_each_outside(&self, rect: Rect, mut clear: impl FnMut(usize, std::ops::Range<usize>)) {
        for row in 0..rect.height as usize {
            let y = Self::cell_of(rect.y + row as i64, self.step.y, self.size.height);
            let mut run: Option<usize> = None;
            for column in 0..rect.width as usize {
                let x = Self::cell_of(rect.x + column as i64, self.step.x, self.size.width);
                match (self.cell(x, y), run) {
                    (false, None) => run = Some(column),
                    (true, Some(start)) => {
                        clear(row, start..column);
                        run = None;
                    }
                    _ => {}
                }
            }
            if let Some(start) = run {
                clear(row, start..rect.width as usize);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// `touches` and `for_each_outside` are two views of one thing.
        #[test]
        fn a_rectangle_touches_where_not_all_is_outside(
            cells in proptest::collection::vec((0u64..9, 0u64..7), 0..12),
            step in 0.4f64..9.0,
            x in 0i64..40, y in 0i64..30, width in 1u64..20, height in 1u64..20,
        ) {
            let mut roi = Roi::empty(Size::new(9, 7), Downsample { x: step, y: step * 1.3 });
            for (x, y) in cells {
                roi.insert(x, y);
            }
            let rect = Rect::new(x, y, width, height);
            let mut outside = 0;
            roi.for_each_outside(rect, |_, run| outside += run.len() as u64);
            let wanted = outside < rect.size().area();
            proptest::prop_assert!(roi.touches(rect) || !wanted);
            if step >= 1.0 {
                proptest::prop_assert_eq!(roi.touches(rect), wanted);
            }
        }
    }
}
