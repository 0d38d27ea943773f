//! Connected components of a mask that is never in memory as a whole.
//!
//! The mask comes cell by cell (its shards), twice. The first time each cell's own components are found, get numbers, and are joined with
//! those of the cells to the left and above along their common borders, by union and find; of those cells only the last row and the last
//! column are kept. The second time a cell's components, found and numbered in the same way, are looked up. Pixels that share a corner
//! are connected, as in nnU-Net's post-processing (`skimage.measure.label` with full connectivity).

use microtome_io::{Pixels, Rect, Samples, Size, TileCoord};

use crate::{Error, Result};

/// Components of single cells, before they are joined: 12 bytes each.
const MAX_COMPONENTS: usize = 1 << 26;
/// No component: the pixel's value is not among those that are looked for.
const NONE: u32 = u32::MAX;

/// The components of all pixels that have one of a few values, whichever.
#[derive(Debug)]
pub struct Components {
    image: Size,
    cell: Size,
    /// Ascending.
    values: Vec<u16>,
    /// The first component of each cell, row by row, as far as they have been pushed.
    first: Vec<u32>,
    /// For each component the one that it was joined with, or itself.
    parents: Vec<u32>,
    /// Pixels of each component that is its own parent.
    sizes: Vec<u64>,
    /// Components of the last row of the cells above, and of this row of cells as far as it goes.
    above: Vec<u32>,
    below: Vec<u32>,
    /// Components of the last column of the cell to the left.
    left: Vec<u32>,
    /// The largest component's pixels; known when all cells have been pushed.
    largest: u64,
}

impl Components {
    /// Begins with no cell: those of an image of `image` pixels in cells of `cell` are pushed row by row.
    #[must_use]
    pub fn new(image: Size, cell: Size, mut values: Vec<u16>) -> Self {
        values.sort_unstable();
        let width = image.width as usize;
        Self {
            image,
            cell,
            values,
            first: Vec::new(),
            parents: Vec::new(),
            sizes: Vec::new(),
            above: vec![NONE; width],
            below: vec![NONE; width],
            left: Vec::new(),
            largest: 0,
        }
    }

    /// Takes the next cell: exactly its pixels that lie inside the image, one channel.
    ///
    /// # Errors
    /// [`Error::Usage`] for a cell of another size, one too many, or more components than can be told apart.
    pub fn push(&mut self, pixels: &Pixels) -> Result<()> {
        let cells = self.image.cells(self.cell);
        let index = self.first.len() as u64;
        if index >= cells.area() {
            return Err(Error::Usage(format!("more than {} cells of a mask", cells.area())));
        }
        let at = TileCoord { row: index / cells.width, column: index % cells.width };
        let rect = self.rect(at);
        if at.column == 0 {
            std::mem::swap(&mut self.above, &mut self.below);
            self.left.clear();
        }
        let (labels, sizes) = self.of_cell(rect, pixels)?;
        let first = self.parents.len();
        if first + sizes.len() > MAX_COMPONENTS {
            let message =
                format!("the mask has more than {MAX_COMPONENTS} components in its cells; no more are told apart");
            return Err(Error::Usage(message));
        }
        self.first.push(first as u32);
        self.parents.extend((first..first + sizes.len()).map(|n| n as u32));
        self.sizes.extend(sizes);

        let (width, height) = (rect.width as usize, rect.height as usize);
        let of = |label: u32| if label == NONE { NONE } else { label + first as u32 };
        for (x, &label) in labels[..width].iter().enumerate() {
            let here = of(label);
            let column = rect.x as usize + x;
            let reach = column.saturating_sub(1)..(column + 2).min(self.above.len());
            if here != NONE && at.row > 0 {
                for other in reach {
                    self.join(here, self.above[other]);
                }
            }
        }
        for y in 0..self.left.len().min(height) {
            let here = of(labels[y * width]);
            if here != NONE {
                for other in y.saturating_sub(1)..(y + 2).min(self.left.len()) {
                    self.join(here, self.left[other]);
                }
            }
        }
        for x in 0..width {
            self.below[rect.x as usize + x] = of(labels[(height - 1) * width + x]);
        }
        self.left.clear();
        self.left.extend((0..height).map(|y| of(labels[y * width + width - 1])));
        if index + 1 == cells.area() {
            self.largest = self.sizes.iter().copied().max().unwrap_or(0);
            // Parents come before their children: now each is a root.
            for n in 0..self.parents.len() {
                self.parents[n] = self.parents[self.parents[n] as usize];
            }
            (self.above, self.below, self.left) = (Vec::new(), Vec::new(), Vec::new());
        }
        Ok(())
    }

    /// Pixels of the largest component; 0 if no pixel has one of the values.
    #[must_use]
    pub fn largest(&self) -> u64 {
        self.largest
    }

    /// How many components there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.parents.iter().enumerate().filter(|&(n, &parent)| n as u32 == parent).count() as u64
    }

    /// Makes 0 of all pixels of a cell that have one of the values and belong to a component smaller than the largest, and says how many
    /// those were.
    ///
    /// # Errors
    /// [`Error::Usage`] for a cell of another size, or before all cells have been pushed.
    pub fn keep_largest(&self, at: TileCoord, pixels: &mut Pixels) -> Result<u64> {
        let cells = self.image.cells(self.cell);
        if (self.first.len() as u64) < cells.area() || at.row >= cells.height || at.column >= cells.width {
            return Err(Error::Usage("a cell of a mask whose cells have not all been pushed".into()));
        }
        let (labels, _) = self.of_cell(self.rect(at), pixels)?;
        let first = self.first[(at.row * cells.width + at.column) as usize];
        let root = |label: u32| self.parents[(label + first) as usize];
        let small = |label: u32| label != NONE && self.sizes[root(label) as usize] < self.largest;
        let mut changed = 0;
        match pixels.samples_mut() {
            Samples::U8(samples) => {
                for (sample, _) in samples.iter_mut().zip(&labels).filter(|(_, label)| small(**label)) {
                    *sample = 0;
                    changed += 1;
                }
            }
            Samples::U16(samples) => {
                for (sample, _) in samples.iter_mut().zip(&labels).filter(|(_, label)| small(**label)) {
                    *sample = 0;
                    changed += 1;
                }
            }
        }
        Ok(changed)
    }

    fn rect(&self, at: TileCoord) -> Rect {
        let (x, y) = (at.column * self.cell.width, at.row * self.cell.height);
        let (width, height) = (self.image.width - x, self.image.height - y);
        Rect::new(x as i64, y as i64, width.min(self.cell.width), height.min(self.cell.height))
    }

    /// The components within a cell: the number of each pixel's, counted from 0 in the order of their first pixels, and their sizes.
    fn of_cell(&self, rect: Rect, pixels: &Pixels) -> Result<(Vec<u32>, Vec<u64>)> {
        let size = pixels.size();
        if size != rect.size() || pixels.channels() != 1 {
            return Err(Error::Usage(format!("a cell of {size} in place of {}", rect.size())));
        }
        let (width, height) = (size.width as usize, size.height as usize);
        let mut labels = vec![NONE; width * height];
        let mut parents: Vec<u32> = Vec::new();
        let wanted = |index: usize| match pixels.samples() {
            Samples::U8(v) => self.values.binary_search(&v[index].into()).is_ok(),
            Samples::U16(v) => self.values.binary_search(&v[index]).is_ok(),
        };
        for y in 0..height {
            for x in 0..width {
                let index = y * width + x;
                if !wanted(index) {
                    continue;
                }
                // The neighbours that have been seen: to the left, and the three above.
                let left = if x > 0 { labels[index - 1] } else { NONE };
                let mut label = left;
                if y > 0 {
                    let above = index - width;
                    for &other in &labels[above - usize::from(x > 0)..=above + usize::from(x + 1 < width)] {
                        match (label, other) {
                            (_, NONE) => {}
                            (NONE, other) => label = other,
                            (label, other) => union(&mut parents, label, other),
                        }
                    }
                }
                if label == NONE {
                    label = parents.len() as u32;
                    parents.push(label);
                }
                labels[index] = label;
            }
        }
        // Numbers without gaps: a root comes before all that were joined with it.
        let mut numbers = vec![0_u32; parents.len()];
        let mut sizes: Vec<u64> = Vec::new();
        for n in 0..parents.len() {
            if parents[n] == n as u32 {
                numbers[n] = sizes.len() as u32;
                sizes.push(0);
            } else {
                numbers[n] = numbers[parents[n] as usize];
            }
        }
        for label in labels.iter_mut().filter(|label| **label != NONE) {
            *label = numbers[*label as usize];
            sizes[*label as usize] += 1;
        }
        Ok((labels, sizes))
    }

    /// Joins two components of the whole mask; the second may be none.
    fn join(&mut self, a: u32, b: u32) {
        if b == NONE {
            return;
        }
        let (a, b) = (find(&mut self.parents, a), find(&mut self.parents, b));
        if a != b {
            let (root, other) = (a.min(b), a.max(b));
            self.parents[other as usize] = root;
            self.sizes[root as usize] += std::mem::take(&mut self.sizes[other as usize]);
        }
    }
}

/// The root of a component; the way there is shortened.
fn find(parents: &mut [u32], mut n: u32) -> u32 {
    while parents[n as usize] != n {
        let grandparent = parents[parents[n as usize] as usize];
        parents[n as usize] = grandparent;
        n = grandparent;
    }
    n
}

/// The lower number becomes the root.
fn union(parents: &mut [u32], a: u32, b: u32) {
    let (a, b) = (find(parents, a), find(parents, b));
    parents[a.max(b) as usize] = a.min(b);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every pixel's component by flooding, of the mask as a whole: nothing in common with the above.
    fn flooded(mask: &[u8], width: usize, values: &[u16]) -> Vec<u8> {
        let height = mask.len() / width;
        let mut component = vec![0_usize; mask.len()];
        let mut sizes = vec![0];
        for start in 0..mask.len() {
            if component[start] > 0 || !values.contains(&mask[start].into()) {
                continue;
            }
            let number = sizes.len();
            sizes.push(0);
            let mut open = vec![start];
            component[start] = number;
            while let Some(at) = open.pop() {
                sizes[number] += 1;
                let (x, y) = (at % width, at / width);
                for ny in y.saturating_sub(1)..(y + 2).min(height) {
                    for nx in x.saturating_sub(1)..(x + 2).min(width) {
                        let next = ny * width + nx;
                        if component[next] == 0 && values.contains(&mask[next].into()) {
                            component[next] = number;
                            open.push(next);
                        }
                    }
                }
            }
        }
        let largest = sizes.iter().copied().max().unwrap();
        let keep = |(&value, &n): (&u8, &usize)| if n > 0 && sizes[n] < largest { 0 } else { value };
        mask.iter().zip(&component).map(keep).collect()
    }

    fn cell_of(mask: &[u8], width: usize, rect: Rect) -> Pixels {
        let (x, y) = (rect.x as usize, rect.y as usize);
        let rows = (y..y + rect.height as usize).flat_map(|y| &mask[y * width + x..][..rect.width as usize]);
        Pixels::from_u8(rect.size(), 1, rows.copied().collect())
    }

    fn in_cells(mask: &[u8], width: usize, cell: Size, values: &[u16]) -> Vec<u8> {
        let image = Size::new(width as u64, (mask.len() / width) as u64);
        let mut components = Components::new(image, cell, values.to_vec());
        let cells = image.cells(cell);
        let all: Vec<TileCoord> =
            (0..cells.area()).map(|n| TileCoord { row: n / cells.width, column: n % cells.width }).collect();
        for &at in &all {
            components.push(&cell_of(mask, width, components.rect(at))).unwrap();
        }
        let mut out = mask.to_vec();
        for &at in &all {
            let rect = components.rect(at);
            let mut kept = cell_of(mask, width, rect);
            components.keep_largest(at, &mut kept).unwrap();
            let samples = kept.as_u8().unwrap();
            for (row, samples) in samples.chunks(rect.width as usize).enumerate() {
                let start = (rect.y as usize + row) * width + rect.x as usize;
                out[start..start + samples.len()].copy_from_slice(samples);
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn cells_of_any_size_give_what_flooding_the_whole_gives(
            (width, mask) in (1_usize..24).prop_flat_map(|width| {
                let pixel = prop::sample::select(vec![0_u8, 0, 0, 1, 1, 2, 3]);
                (Just(width), prop::collection::vec(pixel, 1..20).prop_flat_map(move |column| {
                    let pixel = prop::sample::select(vec![0_u8, 0, 0, 1, 1, 2, 3]);
                    prop::collection::vec(pixel, column.len() * width)
                }))
            }),
            cell in (1_u64..9, 1_u64..9),
            values in prop::sample::subsequence(vec![1_u16, 2, 3], 1..=3),
        ) {
            let cell = Size::new(cell.0, cell.1);
            prop_assert_eq!(in_cells(&mask, width, cell, &values), flooded(&mask, width, &values));
        }
    }

    #[test]
    fn of_equally_large_components_all_stay() {
        let mask = [1, 1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0];
        let kept = [1, 1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        // Of 3 and 1 pixels, and one of the other value, which is not looked at.
        assert_eq!(in_cells(&mask, 5, Size::new(2, 2), &[1]), kept);
        let two = [1, 0, 1, 0, 1];
        assert_eq!(in_cells(&two, 5, Size::new(2, 1), &[1]), two);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut components = Components::new(Size::new(4, 2), Size::new(3, 2), vec![1]);
        let cell = |width| Pixels::from_u8(Size::new(width, 2), 1, vec![1; 2 * width as usize]);
        assert!(components.push(&cell(4)).is_err());
        components.push(&cell(3)).unwrap();
        assert!(components.keep_largest(TileCoord { row: 0, column: 0 }, &mut cell(3)).is_err(), "one is missing");
        components.push(&cell(1)).unwrap();
        assert!(components.push(&cell(1)).is_err());
        assert_eq!((components.largest(), components.count()), (8, 1));
    }
}
