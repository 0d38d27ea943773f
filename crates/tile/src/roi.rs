//! Regions of interest: which pixels of the target grid are wanted.

use std::ops::Range;

use microtome_io::{Downsample, Rect, Size};

use crate::{Error, Result};

/// A mask over the target grid, kept as runs: for each row of cells the sorted, disjoint, maximal ranges of wanted cells. A cell spans
/// [`step`](Self::step) target pixels per axis; a target pixel belongs to the cell in which its centre lies, and those beyond the last
/// cell to the last.
///
/// Memory: 8 bytes per row and 8 per run, at most [`MAX_RUNS`](Self::MAX_RUNS) of them; a row that equals the one above takes no runs.
/// Half a billion cells of tissue take a few megabytes, and so does a polygon at full resolution.
#[derive(Clone, PartialEq)]
pub struct Roi {
    size: Size,
    step: Downsample,
    rows: Rows,
    /// The union of each [`BAND`] rows, so that a tall rectangle is looked up in few steps.
    bands: Rows,
}

/// Rows of cells whose union is kept.
const BAND: u64 = 32;

/// Wanted cells of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    start: u32,
    end: u32,
}

/// Where the runs of a row lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    first: u32,
    end: u32,
}

/// Runs row by row; rows behind the last have none.
#[derive(Debug, Clone, PartialEq, Default)]
struct Rows {
    rows: Vec<Row>,
    runs: Vec<Run>,
}

impl Rows {
    fn get(&self, y: u64) -> &[Run] {
        self.rows.get(y as usize).map_or(&[], |row| &self.runs[row.first as usize..row.end as usize])
    }

    /// The runs of a row from the first that ends behind `column`.
    fn from(&self, y: u64, column: u64) -> &[Run] {
        let runs = self.get(y);
        &runs[runs.partition_point(|run| u64::from(run.end) <= column)..]
    }

    /// True if the row has a run within the columns.
    fn touches(&self, y: u64, columns: &Range<u64>) -> bool {
        self.from(y, columns.start).first().is_some_and(|run| u64::from(run.start) < columns.end)
    }

    /// Appends a row of sorted, disjoint, maximal runs.
    fn push(&mut self, runs: &[Run]) {
        let row = match self.rows.last() {
            Some(&above) if self.runs[above.first as usize..above.end as usize] == *runs => above,
            _ => {
                let first = self.runs.len() as u32;
                self.runs.extend_from_slice(runs);
                Row { first, end: self.runs.len() as u32 }
            }
        };
        self.rows.push(row);
    }

    /// Forgets empty rows at the end, so that equal regions have equal rows, and gives back spare memory.
    fn shrink(&mut self) {
        while self.rows.pop_if(|row| row.first == row.end).is_some() {}
        self.rows.shrink_to_fit();
        self.runs.shrink_to_fit();
    }

    fn bytes(&self) -> u64 {
        (self.rows.capacity() * size_of::<Row>() + self.runs.capacity() * size_of::<Run>()) as u64
    }
}

/// Sorts runs, and joins those that overlap or touch.
fn normalize(runs: &mut Vec<Run>) {
    runs.retain(|run| run.start < run.end);
    // The stable sort takes sorted stretches as they are: the union of two rows is merged, not sorted.
    runs.sort_by_key(|run| run.start);
    runs.dedup_by(|next, run| {
        let joins = next.start <= run.end;
        if joins {
            run.end = run.end.max(next.end);
        }
        joins
    });
}

/// A region in the making: rows from the top.
#[derive(Debug)]
pub struct RoiBuilder {
    size: Size,
    step: Downsample,
    rows: Rows,
    bands: Rows,
    row: Vec<Run>,
    /// The union of the rows of the band at hand.
    band: Vec<Run>,
}

impl RoiBuilder {
    /// Appends the next row: ranges of wanted cells, in any order, overlapping or not; what lies behind the last column is cut off.
    ///
    /// # Errors
    /// [`Error::Usage`] if there are more rows than the region has, more cells in a row than 32 bits count, or more than
    /// [`Roi::MAX_RUNS`] runs in all.
    pub fn push_row(&mut self, runs: impl IntoIterator<Item = Range<u64>>) -> Result<()> {
        let Size { width, height } = self.size;
        let y = self.rows.rows.len() as u64;
        if y >= height || width > u64::from(u32::MAX) || height > u64::from(u32::MAX) {
            return Err(Error::Usage(format!("a region of {} cells has no room for row {y}", self.size)));
        }
        self.row.clear();
        for run in runs {
            if self.row.len() == Roi::MAX_RUNS {
                return Err(too_many());
            }
            // Both fit 32 bits, because the width does.
            self.row.push(Run { start: run.start.min(width) as u32, end: run.end.min(width) as u32 });
        }
        normalize(&mut self.row);
        if self.rows.runs.len() + self.row.len() > Roi::MAX_RUNS {
            return Err(too_many());
        }
        self.rows.push(&self.row);
        self.band.extend_from_slice(&self.row);
        normalize(&mut self.band);
        if (y + 1).is_multiple_of(BAND) {
            self.bands.push(&self.band);
            self.band.clear();
        }
        Ok(())
    }

    /// The region. Rows that were not pushed are empty.
    #[must_use]
    pub fn finish(mut self) -> Roi {
        self.bands.push(&self.band);
        self.rows.shrink();
        self.bands.shrink();
        Roi { size: self.size, step: self.step, rows: self.rows, bands: self.bands }
    }
}

impl std::fmt::Debug for Roi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (runs, cells) = (self.rows.runs.len(), self.cells());
        f.debug_struct("Roi")
            .field("size", &self.size)
            .field("step", &self.step)
            .field("runs", &runs)
            .field("cells", &cells)
            .finish_non_exhaustive()
    }
}

fn too_many() -> Error {
    Error::Usage(format!(
        "the region is too ragged: its rows have more than {} separate runs of pixels in all; a coarser mask would do",
        Roi::MAX_RUNS
    ))
}

impl Roi {
    /// Runs of a region at most: 64 MiB of them, and as much again for the unions of rows.
    pub const MAX_RUNS: usize = 8 << 20;

    /// Begins a region of `size` cells, each `step` target pixels wide and high (any factor above 0).
    #[must_use]
    pub fn builder(size: Size, step: Downsample) -> RoiBuilder {
        RoiBuilder { size, step, rows: Rows::default(), bands: Rows::default(), row: Vec::new(), band: Vec::new() }
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

    /// The wanted cells of a row: sorted, disjoint, and never touching.
    pub fn runs(&self, y: u64) -> impl ExactSizeIterator<Item = Range<u64>> + '_ {
        self.rows.get(y).iter().map(|run| u64::from(run.start)..u64::from(run.end))
    }

    /// True if the cell at column `x` and row `y` is wanted.
    #[must_use]
    pub fn cell(&self, x: u64, y: u64) -> bool {
        self.rows.touches(y, &(x..x + 1))
    }

    /// The number of wanted cells.
    #[must_use]
    pub fn cells(&self) -> u64 {
        let rows = 0..self.rows.rows.len() as u64;
        rows.map(|y| self.runs(y).map(|run| run.end - run.start).sum::<u64>()).sum()
    }

    /// The number of wanted pixels of a target grid of this size, over which the region lies.
    #[must_use]
    pub fn pixels(&self, grid: Size) -> u64 {
        let length = |axis: Axis, cells: Range<u64>, n: u64| {
            let [first, end] = [cells.start, cells.end].map(|cell| axis.first_pixel(cell).min(n as i64));
            (end - first) as u64
        };
        let row = |y| {
            let width: u64 = self.runs(y).map(|run| length(self.horizontal(), run, grid.width)).sum();
            width * length(self.vertical(), y..y + 1, grid.height)
        };
        (0..self.rows.rows.len() as u64).map(row).sum()
    }

    /// Bytes that the region holds.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.rows.bytes() + self.bands.bytes()
    }

    /// True if a pixel of `rect` (target pixels, inside the grid) is wanted. Where cells are smaller than pixels it is also true for wanted
    /// cells between the pixels' centres.
    #[must_use]
    pub fn touches(&self, rect: Rect) -> bool {
        let Some((columns, rows)) = self.cells_of(rect) else { return false };
        // Whole bands are looked up in their unions, what is above and below them row by row.
        let bands = rows.start.div_ceil(BAND)..rows.end / BAND;
        let by_row = |mut rows: Range<u64>| rows.any(|y| self.rows.touches(y, &columns));
        if bands.is_empty() {
            return by_row(rows);
        }
        bands.clone().any(|band| self.bands.touches(band, &columns))
            || by_row(rows.start..bands.start * BAND)
            || by_row(bands.end * BAND..rows.end)
    }

    /// True if every pixel of `rect` (target pixels, inside the grid) is wanted.
    #[must_use]
    pub fn covers(&self, rect: Rect) -> bool {
        let mut rows = rect.y..rect.bottom();
        rows.all(|y| self.outside_of_row(self.vertical().cell_of(y), rect).next().is_none())
    }

    /// Calls `clear` with every run of pixels of `rect` that are not wanted: row, first column and one past the last,
    /// counted from the rectangle's corner.
    pub fn for_each_outside(&self, rect: Rect, mut clear: impl FnMut(usize, Range<usize>)) {
        for row in 0..rect.height as usize {
            let y = self.vertical().cell_of(rect.y + row as i64);
            for run in self.outside_of_row(y, rect) {
                clear(row, (run.start - rect.x) as usize..(run.end - rect.x) as usize);
            }
        }
    }

    /// The columns of `rect`, in target pixels, that a row of cells does not want.
    fn outside_of_row(&self, y: u64, rect: Rect) -> impl Iterator<Item = Range<i64>> + '_ {
        let axis = self.horizontal();
        let (mut at, end) = (rect.x, rect.right());
        let runs = if rect.is_empty() { &[] } else { self.rows.from(y, axis.cell_of(rect.x)) };
        let wanted =
            runs.iter().map(move |run| axis.first_pixel(u64::from(run.start))..axis.first_pixel(u64::from(run.end)));
        // A run of cells smaller than pixels may hold no pixel's centre.
        let wanted = wanted.filter(|pixels| !pixels.is_empty()).take_while(move |pixels| pixels.start < end);
        wanted.chain(std::iter::once(end..end)).filter_map(move |pixels| {
            let outside = at..pixels.start;
            at = at.max(pixels.end);
            (!outside.is_empty()).then_some(outside)
        })
    }

    fn horizontal(&self) -> Axis {
        Axis { step: self.step.x, cells: self.size.width }
    }

    fn vertical(&self) -> Axis {
        Axis { step: self.step.y, cells: self.size.height }
    }

    /// Columns and rows of cells from the one that holds the first pixel's centre to the one that holds the last's.
    fn cells_of(&self, rect: Rect) -> Option<(Range<u64>, Range<u64>)> {
        if rect.is_empty() || self.size.is_empty() {
            return None;
        }
        let span = |axis: Axis, first: i64, end: i64| axis.cell_of(first)..axis.cell_of(end - 1) + 1;
        Some((span(self.horizontal(), rect.x, rect.right()), span(self.vertical(), rect.y, rect.bottom())))
    }
}

/// Cells and pixels along one axis.
#[derive(Debug, Clone, Copy)]
struct Axis {
    /// Pixels per cell.
    step: f64,
    cells: u64,
}

impl Axis {
    /// The cell that a target pixel's centre lies in.
    fn cell_of(self, pixel: i64) -> u64 {
        (((pixel.max(0) as f64 + 0.5) / self.step) as u64).min(self.cells.saturating_sub(1))
    }

    /// The first pixel whose centre lies in this cell or behind it; that of the cell behind the last is beyond every pixel.
    fn first_pixel(self, cell: u64) -> i64 {
        if cell == 0 || cell >= self.cells {
            return if cell == 0 { 0 } else { i64::MAX };
        }
        // `cell_of` grows with the pixel, and rounding may put this guess beside its step; `cell_of` is what counts.
        let mut pixel = (cell as f64 * self.step - 0.5).ceil().max(0.0) as i64;
        while pixel > 0 && self.cell_of(pixel - 1) >= cell {
            pixel -= 1;
        }
        while self.cell_of(pixel) < cell {
            pixel += 1;
        }
        pixel
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CELLS: Size = Size::new(23, 150);

    /// The region that holds these rectangles of cells, as runs and as a plain bitmap.
    fn both(rects: &[(u64, u64, u64, u64)], step: Downsample) -> (Roi, Vec<bool>) {
        let mut bitmap = vec![false; CELLS.area() as usize];
        let mut builder = Roi::builder(CELLS, step);
        for y in 0..CELLS.height {
            let here = rects.iter().filter(|r| (r.1..r.1 + r.3).contains(&y));
            for r in here.clone() {
                (r.0..(r.0 + r.2).min(CELLS.width)).for_each(|x| bitmap[(y * CELLS.width + x) as usize] = true);
            }
            builder.push_row(here.map(|r| r.0..r.0 + r.2)).unwrap();
        }
        (builder.finish(), bitmap)
    }

    proptest! {
        #[test]
        fn runs_say_what_a_bitmap_says(
            rects in prop::collection::vec((0u64..25, 0u64..150, 0u64..9, 1u64..60), 0..8),
            step in 0.3f64..4.0,
            at in (0i64..60, 0i64..300), size in (1u64..40, 1u64..300),
        ) {
            let step = Downsample { x: step, y: step * 1.3 };
            let (roi, bitmap) = both(&rects, step);
            let cell = |x: u64, y: u64| bitmap[(y * CELLS.width + x) as usize];
            prop_assert_eq!(roi.cells(), bitmap.iter().filter(|&&w| w).count() as u64);
            for y in 0..CELLS.height {
                let runs: Vec<_> = roi.runs(y).collect();
                prop_assert!(runs.iter().all(|r| r.start < r.end && r.end <= CELLS.width));
                prop_assert!(runs.windows(2).all(|w| w[0].end < w[1].start), "sorted and maximal");
                for x in 0..CELLS.width {
                    prop_assert_eq!(roi.cell(x, y), cell(x, y));
                    prop_assert_eq!(runs.iter().any(|r| r.contains(&x)), cell(x, y));
                }
            }

            let rect = Rect::new(at.0, at.1, size.0, size.1);
            let cell_of = |p: i64, step: f64, n: u64| (((p as f64 + 0.5) / step) as u64).min(n - 1);
            let pixel = |x: i64, y: i64| cell(cell_of(x, step.x, CELLS.width), cell_of(y, step.y, CELLS.height));
            let mut outside = vec![false; rect.size().area() as usize];
            roi.for_each_outside(rect, |row, run| {
                assert!(!run.is_empty() && run.end <= rect.width as usize);
                outside[row * rect.width as usize..][run].fill(true);
            });
            for (i, outside) in outside.iter().enumerate() {
                let (x, y) = (i as u64 % rect.width, i as u64 / rect.width);
                prop_assert_eq!(*outside, !pixel(rect.x + x as i64, rect.y + y as i64), "pixel {} {}", x, y);
            }
            let wanted = outside.iter().any(|o| !o);
            prop_assert!(roi.touches(rect) || !wanted);
            if step.x >= 1.0 {
                prop_assert_eq!(roi.touches(rect), wanted);
            }
            prop_assert_eq!(roi.covers(rect), outside.iter().all(|o| !o));

            let grid = Size::new((CELLS.width as f64 * step.x) as u64 + 1, (CELLS.height as f64 * step.y) as u64 + 1);
            let mut unwanted = 0;
            roi.for_each_outside(grid.rect(), |_, run| unwanted += run.len() as u64);
            prop_assert_eq!(roi.pixels(grid), grid.area() - unwanted);
        }
    }

    #[test]
    fn rows_that_were_not_pushed_are_empty() {
        let mut builder = Roi::builder(Size::new(10, 1 << 31), Downsample { x: 1.0, y: 1.0 });
        builder.push_row([2..5, 4..7, 7..8, 9..9]).unwrap();
        let roi = builder.finish();
        assert!(roi.runs(0).eq(std::iter::once(2..8)));
        assert_eq!((roi.cells(), roi.runs(1 << 30).len()), (6, 0));
        assert!(!roi.touches(Rect::new(0, 1, 10, 1 << 30)));
        assert!(roi.bytes() < 100, "{} bytes", roi.bytes());
    }

    #[test]
    fn equal_rows_share_their_runs() {
        let mut builder = Roi::builder(Size::new(200_000, 160_000), Downsample { x: 1.0, y: 1.0 });
        for _ in 0..160_000 {
            builder.push_row((0..100).map(|i| i * 2000..i * 2000 + 999)).unwrap();
        }
        let roi = builder.finish();
        assert_eq!(roi.cells(), 160_000 * 100 * 999);
        assert!(roi.bytes() < 2 << 20, "{} bytes", roi.bytes());
    }

    #[test]
    fn too_many_runs_and_rows_are_refused() {
        let step = Downsample { x: 1.0, y: 1.0 };
        let mut builder = Roi::builder(Size::new(1 << 25, 2), step);
        let dots = |n: u64, from: u64| (0..n).map(move |i| from + 2 * i..from + 2 * i + 1);
        builder.push_row(dots(Roi::MAX_RUNS as u64, 0)).unwrap();
        let message = builder.push_row(dots(1, 1)).unwrap_err().to_string();
        assert!(message.contains("8388608 separate runs"), "{message}");

        let mut builder = Roi::builder(Size::new(3, 1), step);
        builder.push_row([]).unwrap();
        assert!(builder.push_row([]).is_err(), "a row too many");
    }
}
