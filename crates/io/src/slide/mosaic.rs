//! A rectangle put together from the cells of a grid that it touches.
//!
//! Who fetches a cell that another thread is decoding goes on with the others first, and comes back for it: so threads that
//! want the same cells, such as the strips as wide as the slide under a row of regions, share the work in place of waiting for each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::cache::{Found, Wait};
use crate::pixels::{Pixels, Samples};
use crate::{Rect, Result, Size, TileCoord};

/// Where the columns or the rows of a grid begin.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Axis {
    /// Every so many pixels.
    Even(u64),
    /// At `k × step - skip` times `advance`, rounded, but for the first one, which begins at 0. The last one has no end.
    Spread {
        advance: f64,
        step: u64,
        skip: u64,
        /// How many there are, at least one.
        count: u64,
    },
}

impl Axis {
    /// Where a column or row begins.
    pub(super) fn start(self, index: u64) -> u64 {
        match self {
            Self::Even(length) => index * length,
            Self::Spread { .. } if index == 0 => 0,
            Self::Spread { advance, step, skip, .. } => spread(advance, index * step - skip),
        }
    }

    /// Where it ends.
    fn end(self, index: u64) -> u64 {
        match self {
            Self::Spread { count, .. } if index + 1 >= count => u64::MAX,
            _ => self.start(index + 1),
        }
    }

    /// The column or row that holds a pixel.
    fn at(self, pixel: u64) -> u64 {
        match self {
            Self::Even(length) => pixel / length,
            Self::Spread { advance, step, skip, count } => {
                // Rounding moves an edge by a pixel at most, so that the estimate is off by one at most.
                let mut index = ((pixel as f64 / advance + skip as f64) / step as f64) as u64;
                index = index.min(count - 1);
                while index > 0 && self.start(index) > pixel {
                    index -= 1;
                }
                while index + 1 < count && self.start(index + 1) <= pixel {
                    index += 1;
                }
                index
            }
        }
    }

    /// Those that hold the pixels `from..to`, of which there is one at least.
    fn range(self, from: u64, to: u64) -> std::ops::Range<u64> {
        self.at(from)..self.at(to - 1) + 1
    }
}

/// Where the `index`th of pieces lies that follow each other every `advance` pixels.
pub(super) fn spread(advance: f64, index: u64) -> u64 {
    (index as f64 * advance).round() as u64
}

/// A grid of cells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Grid {
    /// The columns.
    pub(crate) x: Axis,
    /// The rows.
    pub(crate) y: Axis,
}

impl Grid {
    /// The part of a raster of the size `bounds` that is a cell's.
    pub(super) fn rect(self, cell: TileCoord, bounds: Size) -> Rect {
        let (x, y) = (self.x.start(cell.column), self.y.start(cell.row));
        let (right, bottom) = (self.x.end(cell.column).min(bounds.width), self.y.end(cell.row).min(bounds.height));
        Rect::new(x as i64, y as i64, right.saturating_sub(x), bottom.saturating_sub(y))
    }
}

impl From<Size> for Grid {
    fn from(cell: Size) -> Self {
        Self { x: Axis::Even(cell.width), y: Axis::Even(cell.height) }
    }
}

/// The cells of a grid over `bounds` that a rectangle touches, row by row.
pub(super) fn cells(at: Rect, bounds: Size, grid: impl Into<Grid>) -> impl Iterator<Item = TileCoord> {
    let grid = grid.into();
    let area = at.intersect(bounds.rect());
    // The area lies inside the level: none of its coordinates is negative.
    let rows = area.map_or(0..0, |area| grid.y.range(area.y as u64, area.bottom() as u64));
    let columns = area.map_or(0..0, |area| grid.x.range(area.x as u64, area.right() as u64));
    rows.flat_map(move |row| columns.clone().map(move |column| TileCoord { row, column }))
}

/// Decoded cells of up to so many bytes are held at once by a read that puts a rectangle together from them.
pub const GATHERED: u64 = 4 << 20;

/// True if all cells that a rectangle touches are so few that [`gather`] may hold them at once.
/// `kept` are the bytes that the cache may hold for the asking thread, which are the same cells.
pub(super) fn few(at: Rect, bounds: Size, cell: Size, cell_bytes: u64, kept: u64) -> bool {
    let most = GATHERED.min(kept) / cell_bytes.max(1);
    // The sides first: a rectangle may touch more cells than anybody wants to count.
    at.width / cell.width < most
        && at.height / cell.height < most
        && cells(at, bounds, cell).take(most as usize + 1).count() as u64 <= most
}

/// Fetches all cells, those that other threads are decoding last; `fetch` gives `None` for those.
///
/// # Errors
/// That of the first cell, in the order of `cells`, that could not be fetched.
fn each<C: Send, R: Send>(cells: &mut [C], fetch: impl Fn(&mut C, Wait) -> Result<Option<R>> + Sync) -> Result<Vec<R>> {
    // What comes behind a cell that has failed is not wanted any more.
    let failed = AtomicUsize::new(usize::MAX);
    let fetch = |index: usize, cell: &mut C, wait: Wait| {
        if index > failed.load(Ordering::Relaxed) {
            return Ok(None);
        }
        fetch(cell, wait).inspect_err(|_| {
            failed.fetch_min(index, Ordering::Relaxed);
        })
    };
    let mut results: Vec<Result<Option<R>>> = match &mut *cells {
        // Alone, there is nothing to do meanwhile.
        [cell] => vec![fetch(0, cell, Wait::Yes)],
        cells => cells.par_iter_mut().enumerate().map(|(index, cell)| fetch(index, cell, Wait::No)).collect(),
    };
    for (index, (cell, result)) in cells.iter_mut().zip(&mut results).enumerate() {
        if matches!(result, Ok(None)) {
            *result = fetch(index, cell, Wait::Yes);
        }
    }
    // Before the first failure there is a result for each cell: who waits is told of no other thread.
    results
        .into_iter()
        .map(|result| Ok(result?.unwrap_or_else(|| unreachable!("who waits is not told to come back"))))
        .collect()
}

/// The pixels of `at`, out of the cells of a grid over `bounds`; elsewhere, and where `fetch` finds a cell to be left out, `background`.
///
/// As [`fill`], but all cells are fetched, from many threads at once, before the first pixel is written, so that each is written once and
/// no memory is filled with what does not stay: a tenth of the time that JPEG tiles take.
///
/// # Errors
/// That of the first cell, row by row, that could not be fetched.
pub(super) fn gather<F>(at: Rect, bounds: Size, cell: Size, blank: &Pixels, fetch: F) -> Result<Pixels>
where
    F: Fn(TileCoord, Wait) -> Result<Found> + Sync,
{
    let mut touched: Vec<TileCoord> = cells(at, bounds, cell).collect();
    let fetched = each(&mut touched, |tile, wait| {
        Ok(match fetch(*tile, wait)? {
            Found::Tile(pixels) => Some(pixels),
            Found::Busy => None,
        })
    })?;
    let area = at.intersect(bounds.rect()).unwrap_or(Rect::new(at.x, at.y, 0, 0));
    let channels = blank.channels();
    Ok(match blank.samples() {
        Samples::U8(blank) => {
            let samples = lay(at, area, cell, blank, &fetched, |pixels| match pixels.samples() {
                Samples::U8(samples) => samples,
                Samples::U16(_) => unreachable!("all cells of a level have one sample type"),
            });
            Pixels::from_u8(at.size(), channels, samples)
        }
        Samples::U16(blank) => {
            let samples = lay(at, area, cell, blank, &fetched, |pixels| match pixels.samples() {
                Samples::U16(samples) => samples,
                Samples::U8(_) => unreachable!("all cells of a level have one sample type"),
            });
            Pixels::from_u16(at.size(), channels, samples)
        }
    })
}

/// Row after row of `at`, of which `area` lies inside the level; `blank` is one pixel, `fetched` the cells that the area touches, row by row.
fn lay<T: Copy>(
    at: Rect,
    area: Rect,
    cell: Size,
    blank: &[T],
    fetched: &[Option<Arc<Pixels>>],
    samples: impl Fn(&Pixels) -> &[T],
) -> Vec<T> {
    let channels = blank.len();
    let mut out = Vec::with_capacity(at.size().area() as usize * channels);
    let fill = |out: &mut Vec<T>, pixels: u64| (0..pixels).for_each(|_| out.extend_from_slice(blank));
    // The area lies inside the level: none of its coordinates is negative.
    let (left, right) = (area.x as u64, area.right() as u64);
    let columns = left / cell.width..right.div_ceil(cell.width);
    let per_band = (columns.end - columns.start) as usize;
    for y in at.y..at.bottom() {
        if area.size().is_empty() || !(area.y..area.bottom()).contains(&y) {
            fill(&mut out, at.width);
            continue;
        }
        fill(&mut out, (area.x - at.x) as u64);
        let band = (y as u64 / cell.height - area.y as u64 / cell.height) as usize * per_band;
        for (column, pixels) in columns.clone().zip(&fetched[band..band + per_band]) {
            let (start, end) = (left.max(column * cell.width), right.min((column + 1) * cell.width));
            let Some(pixels) = pixels else {
                fill(&mut out, end - start);
                continue;
            };
            let row = (y as u64 % cell.height) * pixels.size().width;
            let first = (row + start - column * cell.width) as usize * channels;
            out.extend_from_slice(&samples(pixels)[first..first + (end - start) as usize * channels]);
        }
        fill(&mut out, (at.right() - area.right()) as u64);
    }
    out
}

/// Copies into `to`, which lies at `at`, what the cells of a grid over `bounds` hold of it.
///
/// `fetch` is called for each cell that is touched, from many threads at once if there are several, and again for those that were busy;
/// cells that are left out leave the pixels as they are. No lock is held: the rows of `to` are cut along the grid
/// before the work starts, so that each cell has its own part to write to.
///
/// # Errors
/// That of the first cell, row by row, that could not be fetched.
pub(super) fn fill<F>(to: &mut Pixels, at: Rect, bounds: Size, grid: impl Into<Grid>, fetch: F) -> Result<()>
where
    F: Fn(TileCoord, Wait) -> Result<Found> + Sync,
{
    let grid = grid.into();
    let Some(area) = at.intersect(bounds.rect()) else { return Ok(()) };
    let channels = to.channels();
    match to.samples_mut() {
        Samples::U8(samples) => {
            let pieces = cut(samples, at, area, grid, channels);
            paste(pieces, grid, channels, &fetch, |pixels| match pixels.samples() {
                Samples::U8(samples) => samples,
                Samples::U16(_) => unreachable!("all cells of a level have one sample type"),
            })
        }
        Samples::U16(samples) => {
            let pieces = cut(samples, at, area, grid, channels);
            paste(pieces, grid, channels, &fetch, |pixels| match pixels.samples() {
                Samples::U16(samples) => samples,
                Samples::U8(_) => unreachable!("all cells of a level have one sample type"),
            })
        }
    }
}

/// The part of the target that one cell fills: row by row from `(x, y)`, in the coordinates of the level.
struct Piece<'a, T> {
    tile: TileCoord,
    x: u64,
    y: u64,
    rows: Vec<&'a mut [T]>,
}

/// Cuts the rows of `samples`, a picture that lies at `at`, along the grid; only what lies in `area` is handed out.
fn cut<'a, T>(samples: &'a mut [T], at: Rect, area: Rect, grid: Grid, channels: usize) -> Vec<Piece<'a, T>> {
    // The area lies inside the level: none of its coordinates is negative.
    let (left, top) = (area.x as u64, area.y as u64);
    let (right, bottom) = (area.right() as u64, area.bottom() as u64);
    let (columns, bands) = (grid.x.range(left, right), grid.y.range(top, bottom));
    let mut pieces: Vec<Piece<'a, T>> = bands
        .clone()
        .flat_map(|row| columns.clone().map(move |column| TileCoord { row, column }))
        .map(|tile| Piece {
            tile,
            x: left.max(grid.x.start(tile.column)),
            y: top.max(grid.y.start(tile.row)),
            rows: Vec::new(),
        })
        .collect();
    let per_band = (columns.end - columns.start) as usize;
    let skip = (area.x - at.x) as usize * channels;
    let first = (area.y - at.y) as usize;
    let rows = samples.chunks_exact_mut(at.width as usize * channels).skip(first);
    for (y, row) in (top..bottom).zip(rows) {
        let band = (grid.y.at(y) - bands.start) as usize * per_band;
        let mut rest = &mut row[skip..];
        for piece in &mut pieces[band..band + per_band] {
            let end = right.min(grid.x.end(piece.tile.column));
            let (mine, others) = rest.split_at_mut((end - piece.x) as usize * channels);
            piece.rows.push(mine);
            rest = others;
        }
    }
    pieces
}

fn paste<T: Copy + Send>(
    mut pieces: Vec<Piece<'_, T>>,
    grid: Grid,
    channels: usize,
    fetch: &(impl Fn(TileCoord, Wait) -> Result<Found> + Sync),
    samples: impl Fn(&Pixels) -> &[T] + Sync,
) -> Result<()> {
    each(&mut pieces, |piece, wait| {
        let pixels = match fetch(piece.tile, wait)? {
            Found::Busy => return Ok(None),
            Found::Tile(None) => return Ok(Some(())),
            Found::Tile(Some(pixels)) => pixels,
        };
        let stride = pixels.size().width as usize * channels;
        let offset = (piece.x - grid.x.start(piece.tile.column)) as usize * channels;
        let first = (piece.y - grid.y.start(piece.tile.row)) as usize;
        let source = samples(&pixels).chunks_exact(stride).skip(first);
        for (to, from) in piece.rows.iter_mut().zip(source) {
            let n = to.len();
            to.copy_from_slice(&from[offset..offset + n]);
        }
        Ok(Some(()))
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SampleType;

    /// A level whose pixel (x, y) has the value 10 y + x, cut into cells.
    fn cell_pixels(tile: TileCoord, cell: Size) -> Pixels {
        let at = tile.rect(cell);
        let values = (at.y..at.bottom()).flat_map(|y| (at.x..at.right()).map(move |x| (10 * y + x) as u8));
        Pixels::from_u8(cell, 1, values.collect())
    }

    #[test]
    fn every_rectangle_is_the_same_as_pixel_by_pixel() {
        let (level, cell) = (Size::new(9, 7), Size::new(4, 3));
        for (x, y) in [(-3, -2), (0, 0), (3, 2), (5, 1), (8, 6), (9, 7), (-20, 0)] {
            for (width, height) in [(1, 1), (4, 3), (6, 5), (14, 12)] {
                let at = Rect::new(x, y, width, height);
                let mut pixels = Pixels::filled(at.size(), SampleType::U8, &[255]);
                fill(&mut pixels, at, level, cell, |tile, _| Ok(Found::Tile(Some(Arc::new(cell_pixels(tile, cell))))))
                    .unwrap();
                let blank = Pixels::filled(Size::new(1, 1), SampleType::U8, &[255]);
                let gathered =
                    gather(at, level, cell, &blank, |tile, _| Ok(Found::Tile(Some(Arc::new(cell_pixels(tile, cell))))))
                        .unwrap();
                assert!(pixels == gathered, "{at}");
                let expected: Vec<u8> = (at.y..at.bottom())
                    .flat_map(|y| (at.x..at.right()).map(move |x| (x, y)))
                    .map(|(x, y)| if (0..9).contains(&x) && (0..7).contains(&y) { (10 * y + x) as u8 } else { 255 })
                    .collect();
                assert_eq!(pixels.as_u8().unwrap(), expected, "{at}");
            }
        }
    }

    #[test]
    fn what_others_are_decoding_is_fetched_last() {
        let (level, cell) = (Size::new(9, 7), Size::new(4, 3));
        let at = level.rect();
        let (asked, whole) = (AtomicUsize::new(0), Pixels::filled(at.size(), SampleType::U8, &[0]));
        let fetch = |tile: TileCoord, wait| {
            let before = asked.fetch_add(1, Ordering::Relaxed);
            let busy = tile.column == 1;
            match wait {
                Wait::No if busy => Ok(Found::Busy),
                Wait::No => Ok(Found::Tile(Some(Arc::new(cell_pixels(tile, cell))))),
                Wait::Yes => {
                    assert!(busy && before >= 9, "{tile} after {before}");
                    Ok(Found::Tile(Some(Arc::new(cell_pixels(tile, cell)))))
                }
            }
        };
        let mut filled = whole.clone();
        fill(&mut filled, at, level, cell, fetch).unwrap();
        assert_eq!(asked.swap(0, Ordering::Relaxed), 12);
        let expected: Vec<u8> = (0..7).flat_map(|y| (0..9).map(move |x| 10 * y + x)).collect();
        assert_eq!(filled.as_u8().unwrap(), expected);
        let blank = Pixels::filled(Size::new(1, 1), SampleType::U8, &[0]);
        assert_eq!(gather(at, level, cell, &blank, fetch).unwrap(), filled);
        assert_eq!(asked.into_inner(), 12);
    }

    #[test]
    fn a_spread_axis_is_a_partition() {
        for (advance, step, skip, count) in
            [(7.0, 1, 0, 5), (6.5, 1, 0, 9), (3.25, 4, 3, 6), (0.97, 16, 5, 4), (1.0, 1, 0, 1), (12.49, 2, 1, 3)]
        {
            let axis = Axis::Spread { advance, step, skip, count };
            for index in 0..count {
                let (start, end) = (axis.start(index), axis.end(index).min(axis.start(index) + 40));
                assert!(start < end, "{axis:?}: {index}");
                assert!((start..end).all(|pixel| axis.at(pixel) == index), "{axis:?}: {index}");
            }
        }
    }

    #[test]
    fn cells_that_are_left_out_stay_background_and_few_are_counted() {
        let (level, cell) = (Size::new(9, 7), Size::new(4, 3));
        let odd = |tile: TileCoord| (tile.column + tile.row) % 2 == 1;
        let fetch = |tile: TileCoord, _| Ok(Found::Tile(odd(tile).then(|| Arc::new(cell_pixels(tile, cell)))));
        let at = Rect::new(-2, -1, 13, 10);
        let mut filled = Pixels::filled(at.size(), SampleType::U8, &[200]);
        fill(&mut filled, at, level, cell, fetch).unwrap();
        let blank = Pixels::filled(Size::new(1, 1), SampleType::U8, &[200]);
        assert_eq!(gather(at, level, cell, &blank, fetch).unwrap(), filled);

        assert!(few(at, level, cell, GATHERED / 9, u64::MAX) && !few(at, level, cell, GATHERED / 8, u64::MAX));
        let far = Rect::new(0, 0, 1 << 40, 1 << 40);
        assert!(!few(far, far.size(), cell, 1, u64::MAX), "and nobody counts for years");
        assert!(!few(at, level, cell, 100, 0), "without a cache nothing is held");
        assert!(!few(at, level, cell, GATHERED + 1, u64::MAX));
    }

    #[test]
    fn the_first_failure_is_reported_whatever_the_threads_do() {
        let at = Rect::new(0, 0, 100, 100);
        // The first to fail is busy at first.
        let fetch = |tile: TileCoord, wait| match tile.column + tile.row {
            5 if tile.row == 0 && wait == Wait::No => Ok(Found::Busy),
            5.. => Err(crate::Error::format("x", tile.to_string())),
            _ => Ok(Found::Tile(None)),
        };
        for _ in 0..20 {
            let mut pixels = Pixels::filled(at.size(), SampleType::U8, &[0]);
            let error = fill(&mut pixels, at, at.size(), Size::new(10, 10), fetch);
            assert_eq!(error.unwrap_err().to_string(), "x: column 5 row 0");
            let error = gather(at, at.size(), Size::new(10, 10), &pixels, fetch);
            assert_eq!(error.unwrap_err().to_string(), "x: column 5 row 0");
        }
    }
}
