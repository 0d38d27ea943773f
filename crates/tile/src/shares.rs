//! Which of several workers computes which cells of an image.
//!
//! Cells are dealt out column by column, each column from top to bottom, in runs that take about the same work. So a share is a band of whole
//! columns but for its ends, and few tiles reach into two shares. What it is depends on the image, the tiles and what is wanted of them, and on
//! nothing else: not on how wide strips are, nor on the machine.

use std::collections::BTreeSet;

use microtome_io::{Size, TileCoord};

use crate::lockstep::Lockstep;
use crate::{Error, Result};

/// The shares of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shares {
    cells: Size,
    /// Whose each cell is, column by column.
    owners: Vec<u32>,
}

impl Shares {
    /// Deals out the cells of an image to `of` workers. The work of a cell are the pixels of the tiles that run and have their middle in it.
    ///
    /// # Errors
    /// [`Error::Usage`] if there are no workers, or cells are empty.
    pub fn new(schedule: &Lockstep<'_>, cell: Size, of: u32) -> Result<Self> {
        if of == 0 || cell.is_empty() {
            return Err(Error::Usage("an image is shared by at least one worker, in cells that are not empty".into()));
        }
        let cells = schedule.image().cells(cell);
        let mut work = vec![0_u64; cells.area() as usize];
        for (model, alone) in schedule.schedules().iter().enumerate() {
            let grid = schedule.grid(model);
            for strip in alone.strips() {
                // A tile that an earlier strip has had is counted there.
                for tile in alone.rows(&strip).flat_map(|row| row.tiles).filter(|tile| !tile.before) {
                    let Some(rect) = grid.rect(tile.index).intersect(grid.covered()) else { continue };
                    let column = (rect.x as u64 + rect.width / 2) / cell.width;
                    let row = (rect.y as u64 + rect.height / 2) / cell.height;
                    work[(column * cells.height + row) as usize] += grid.tile().area();
                }
            }
        }
        let total: u128 = work.iter().map(|&work| u128::from(work)).sum();
        let mut before = 0_u128;
        let owners = work.iter().map(|&work| {
            // Whose share the middle of the cell's work falls into, if all of it lay on a line that is cut into equal pieces.
            let middle = 2 * before + u128::from(work);
            before += u128::from(work);
            (middle * u128::from(of)).checked_div(2 * total).map_or(0, |owner| owner.min(u128::from(of - 1)) as u32)
        });
        Ok(Self { cells, owners: owners.collect() })
    }

    /// Who computes a cell; `None` if there is no such cell.
    #[must_use]
    pub fn owner(&self, cell: TileCoord) -> Option<u32> {
        let inside = cell.row < self.cells.height && cell.column < self.cells.width;
        inside.then(|| self.owners[(cell.column * self.cells.height + cell.row) as usize])
    }

    /// The cells of all workers but this one.
    #[must_use]
    pub fn others(&self, worker: u32) -> BTreeSet<TileCoord> {
        let height = self.cells.height;
        let cells = self.owners.iter().zip(0_u64..).filter(|(owner, _)| **owner != worker);
        cells.map(|(_, i)| TileCoord { row: i % height, column: i / height }).collect()
    }

    /// How many cells a worker has.
    #[must_use]
    pub fn count(&self, worker: u32) -> u64 {
        self.owners.iter().filter(|owner| **owner == worker).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use microtome_io::Downsample;

    use super::*;
    use crate::grid::TileGrid;
    use crate::roi::Roi;
    use crate::schedule::{Finished, Schedule};

    const BLOCK: Size = Size::new(8, 8);
    const CELL: Size = Size::new(16, 16);

    /// Shares of an image as it is dealt out by somebody who works in strips of so many blocks.
    fn shares(grid: &TileGrid, roi: Option<&Roi>, strip: u64, of: u32) -> Shares {
        let schedule = Schedule::new(grid, roi, BLOCK, strip).unwrap();
        Shares::new(&Lockstep::new(vec![schedule]).unwrap(), CELL, of).unwrap()
    }

    proptest::proptest! {
        #[test]
        fn every_cell_is_in_one_share_whatever_the_strips(
            (width, height) in (1u64..400, 1u64..400), tile in 1u64..60, tenths in 2u32..=10, of in 1u32..9, strips in (1u64..9, 1u64..60),
        ) {
            let grid = TileGrid::new(Size::new(width, height), Size::new(tile, tile), f64::from(tenths) / 10.0).unwrap();
            let shares = [strips.0, strips.1].map(|strip| shares(&grid, None, strip, of));
            proptest::prop_assert_eq!(&shares[0], &shares[1]);
            let shares = &shares[0];
            let cells = Size::new(width, height).cells(CELL);
            let owners: Vec<u32> = (0..cells.area())
                .map(|i| shares.owner(TileCoord { row: i % cells.height, column: i / cells.height }).unwrap())
                .collect();
            proptest::prop_assert!(owners.is_sorted() && owners.iter().all(|&owner| owner < of));
            let counted: u64 = (0..of).map(|worker| shares.count(worker)).sum();
            proptest::prop_assert_eq!(counted, cells.area());
            for worker in 0..of {
                let others = shares.others(worker);
                proptest::prop_assert_eq!(others.len() as u64, cells.area() - shares.count(worker));
                proptest::prop_assert!(others.iter().all(|&cell| shares.owner(cell) != Some(worker)));
            }
        }
    }

    #[test]
    fn work_is_shared_evenly_where_only_a_part_is_wanted() {
        let image = Size::new(640, 640);
        let grid = TileGrid::new(image, Size::new(16, 16), 0.5).unwrap();
        // Tissue in the right third only: shares by area would leave most workers without any.
        let mut roi = Roi::builder(Size::new(30, 30), Downsample { x: 640.0 / 30.0, y: 640.0 / 30.0 });
        for _ in 0..30 {
            roi.push_row(std::iter::once(20..30)).unwrap();
        }
        let roi = roi.finish();
        let all = Schedule::new(&grid, Some(&roi), BLOCK, 10).unwrap().count().run;
        let shares = shares(&grid, Some(&roi), 10, 4);
        let counts = (0..4).map(|worker| {
            let others = shares.others(worker);
            let schedule = Schedule::new(&grid, Some(&roi), BLOCK, 10).unwrap();
            schedule.without(Finished { cells: &others, cell: CELL }).count().run
        });
        // A quarter each, and the tiles at seams twice: two columns of them for each of the three cuts.
        for run in counts {
            assert!(run * 4 > all && run * 4 < all + all / 2, "{run} of {all}");
        }
    }

    #[test]
    fn more_workers_than_cells_leave_some_without_work() {
        let grid = TileGrid::new(Size::new(32, 16), Size::new(16, 16), 1.0).unwrap();
        let shares = shares(&grid, None, 4, 5);
        let counts: Vec<u64> = (0..5).map(|worker| shares.count(worker)).collect();
        assert_eq!(counts.iter().sum::<u64>(), 2);
        assert_eq!(shares.owner(TileCoord { row: 1, column: 0 }), None);
        let schedule = Schedule::new(&grid, None, BLOCK, 4).unwrap();
        assert!(Shares::new(&Lockstep::new(vec![schedule]).unwrap(), CELL, 0).is_err());
    }

    #[test]
    fn where_nothing_is_wanted_one_has_it_all() {
        let grid = TileGrid::new(Size::new(64, 64), Size::new(16, 16), 1.0).unwrap();
        let mut roi = Roi::builder(Size::new(1, 1), Downsample { x: 64.0, y: 64.0 });
        roi.push_row(std::iter::empty()).unwrap();
        let shares = shares(&grid, Some(&roi.finish()), 4, 3);
        assert_eq!([0, 1, 2].map(|worker| shares.count(worker)), [16, 0, 0]);
    }
}
