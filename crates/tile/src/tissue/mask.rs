//! Masks of cells, and the filters over them: each is a count of the cells in a window, and a bound.

use std::ops::Range;

/// Cells, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mask {
    width: usize,
    cells: Vec<bool>,
}

/// The cells of a window, from so many to the left (above) to so many to the right (below).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) before: usize,
    pub(super) behind: usize,
}

impl Window {
    /// As far to both sides.
    pub(super) const fn around(radius: usize) -> Self {
        Self { before: radius, behind: radius }
    }

    /// The same seen from the other side.
    pub(super) const fn mirrored(self) -> Self {
        Self { before: self.behind, behind: self.before }
    }

    /// Of `n` in a line, those in the window of the one at `i`.
    fn clip(self, i: usize, n: usize) -> Range<usize> {
        i.saturating_sub(self.before)..(i + self.behind + 1).min(n)
    }
}

impl Mask {
    /// A mask of rows of `width` cells.
    pub(super) fn new(width: usize, cells: Vec<bool>) -> Self {
        debug_assert!(width > 0 && cells.len().is_multiple_of(width), "whole rows");
        Self { width, cells }
    }

    fn height(&self) -> usize {
        self.cells.len() / self.width
    }

    /// True where more than half of the cells in the window are, as a median filter has it.
    pub(super) fn majority(&self, window: Window) -> Self {
        self.filter(window, |count, cells| count * 2 > cells)
    }

    /// True where any cell in the window is.
    pub(super) fn dilate(&self, window: Window) -> Self {
        self.filter(window, |count, _| count > 0)
    }

    /// True where all cells in the window are; beyond the borders everything is.
    pub(super) fn erode(&self, window: Window) -> Self {
        self.filter(window, |count, cells| count == cells)
    }

    /// What `keep` says of how many cells in the window (clipped at the borders) are set, and how many there are.
    fn filter(&self, window: Window, keep: impl Fn(u32, u32) -> bool) -> Self {
        let (width, height) = (self.width, self.height());
        // Counts along rows, then their sums along columns: both slide, so that the window may be of any size.
        let mut counts = vec![0u32; self.cells.len()];
        for (line, counts) in self.cells.chunks_exact(width).zip(counts.chunks_exact_mut(width)) {
            let (mut at, mut count) = (0..0, 0);
            for (x, out) in counts.iter_mut().enumerate() {
                let next = window.clip(x, width);
                count += line[at.end..next.end].iter().map(|&set| u32::from(set)).sum::<u32>();
                count -= line[at.start..next.start].iter().map(|&set| u32::from(set)).sum::<u32>();
                *out = count;
                at = next;
            }
        }
        let mut cells = Vec::with_capacity(self.cells.len());
        let mut sums = vec![0u32; width];
        let row = |y: usize| &counts[y * width..(y + 1) * width];
        let mut at = 0..0;
        for y in 0..height {
            let next = window.clip(y, height);
            for y in at.end..next.end {
                sums.iter_mut().zip(row(y)).for_each(|(sum, n)| *sum += n);
            }
            for y in at.start..next.start {
                sums.iter_mut().zip(row(y)).for_each(|(sum, n)| *sum -= n);
            }
            let rows = next.len() as u32;
            cells.extend((0..width).map(|x| keep(sums[x], rows * window.clip(x, width).len() as u32)));
            at = next;
        }
        Self { width, cells }
    }

    /// The runs of set cells of a row, within these columns and counted from their first.
    pub(super) fn runs(&self, y: usize, columns: Range<usize>) -> impl Iterator<Item = Range<usize>> + '_ {
        let line = &self.cells[y * self.width..(y + 1) * self.width][columns];
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = at + line[at..].iter().position(|&set| set)?;
            at = line[start..].iter().position(|&set| !set).map_or(line.len(), |n| start + n);
            Some(start..at)
        })
    }

    /// Bytes that a filter of a mask of so many cells holds, the mask included.
    pub(super) const fn bytes(cells: u64) -> u64 {
        // Two masks and the counts.
        cells * (2 + 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(mask: &Mask) -> Vec<(usize, usize)> {
        (0..mask.height()).flat_map(|y| mask.runs(y, 0..mask.width).flatten().map(move |x| (x, y))).collect()
    }

    fn mask(width: usize, height: usize, set: &[(usize, usize)]) -> Mask {
        Mask::new(width, (0..width * height).map(|i| set.contains(&(i % width, i / width))).collect())
    }

    #[test]
    fn closing_fills_a_gap_and_moves_nothing() {
        let even = Window { before: 2, behind: 1 };
        let closed = mask(11, 11, &[(4, 5), (6, 5)]).dilate(even).erode(even.mirrored());
        assert_eq!(set(&closed), [(4, 5), (5, 5), (6, 5)]);
    }

    #[test]
    fn the_majority_ignores_specks() {
        assert!(set(&mask(7, 7, &[(3, 3)]).majority(Window::around(1))).is_empty());
        assert_eq!(set(&Mask::new(7, vec![true; 49]).majority(Window::around(3))).len(), 49);
    }

    proptest::proptest! {
        /// Sliding sums count what looking at every cell of the window counts.
        #[test]
        fn filters_are_what_their_windows_hold(
            cells in proptest::collection::vec(proptest::bool::weighted(0.3), 1..80), width in 1usize..12, before in 0usize..5, behind in 0usize..5,
        ) {
            let height = cells.len().div_ceil(width);
            let cells: Vec<bool> = cells.into_iter().chain(std::iter::repeat(false)).take(width * height).collect();
            let mask = Mask::new(width, cells.clone());
            let window = Window { before, behind };
            let (majority, dilated, eroded) = (mask.majority(window), mask.dilate(window), mask.erode(window));
            for y in 0..height {
                for x in 0..width {
                    let near: Vec<bool> = window.clip(y, height).flat_map(|v| window.clip(x, width).map(move |u| (u, v)))
                        .map(|(u, v)| cells[v * width + u]).collect();
                    let count = near.iter().filter(|&&set| set).count();
                    let i = y * width + x;
                    proptest::prop_assert_eq!(majority.cells[i], count * 2 > near.len());
                    proptest::prop_assert_eq!(dilated.cells[i], count > 0);
                    proptest::prop_assert_eq!(eroded.cells[i], count == near.len());
                }
            }
        }
    }
}
