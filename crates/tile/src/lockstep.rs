//! Several schedules over one image, for models that look at it through tiles of their own.
//!
//! Rows of tiles of all schedules run from top to bottom, by their first pixel. So no schedule is further ahead of another than a row of
//! tiles is high: whatever becomes final in all of them becomes so at once, and each holds no more rows of blocks than it would alone.

use microtome_io::{Rect, Size, TileCoord};

use crate::grid::TileGrid;
use crate::schedule::{Schedule, Strip, TileCount, TileRow};
use crate::{Error, Result};

/// The order of work over one slide for several models, or for one.
#[derive(Debug, Clone)]
pub struct Lockstep<'a> {
    schedules: Vec<Schedule<'a>>,
}

impl<'a> Lockstep<'a> {
    /// Schedules of the same image, blocks and strips, that want and have finished the same: they differ in their tiles.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is none, or image, blocks or strips differ.
    pub fn new(schedules: Vec<Schedule<'a>>) -> Result<Self> {
        let Some(first) = schedules.first() else {
            return Err(Error::Usage("there is no schedule to work through".into()));
        };
        let parts = |schedule: &Schedule<'a>| {
            (schedule.grid().image(), schedule.block(), schedule.strips().map(|s| s.rect).collect::<Vec<_>>())
        };
        if schedules.iter().any(|schedule| parts(schedule) != parts(first)) {
            return Err(Error::Usage("schedules of other images, blocks or strips cannot run together".into()));
        }
        Ok(Self { schedules })
    }

    /// The schedules, in the order of their models.
    #[must_use]
    pub fn schedules(&self) -> &[Schedule<'a>] {
        &self.schedules
    }

    /// The tile grid of a model.
    ///
    /// # Panics
    /// If there is no such model.
    #[must_use]
    pub fn grid(&self, model: usize) -> &'a TileGrid {
        self.schedules[model].grid()
    }

    /// The image that all of them cover.
    #[must_use]
    pub fn image(&self) -> Size {
        self.schedules[0].grid().image()
    }

    /// The size of a block.
    #[must_use]
    pub fn block(&self) -> Size {
        self.schedules[0].block()
    }

    /// The strips, from left to right.
    pub fn strips(&self) -> impl Iterator<Item = Strip> + use<> {
        self.schedules[0].strips()
    }

    /// The rows of tiles of a strip with the model that each belongs to, from top to bottom; of those that begin at the same pixel the
    /// first model's comes first. `finished_blocks` are the rows of blocks that are final for all models.
    pub fn rows<'s>(&'s self, strip: &Strip) -> impl Iterator<Item = (usize, TileRow)> + use<'s, 'a> {
        let mut rows: Vec<_> = self.schedules.iter().map(|schedule| schedule.rows(strip)).collect();
        let mut next = vec![0; rows.len()];
        let mut finished = vec![0; rows.len()];
        let mut together = 0;
        std::iter::from_fn(move || {
            let top = |model: usize| self.grid(model).rows().get(next[model]);
            let (_, model) = (0..rows.len()).filter_map(|model| Some((top(model)?, model))).min()?;
            let mut row = rows[model].next()?;
            next[model] += 1;
            finished[model] = row.finished_blocks.end;
            let end = finished.iter().copied().min().unwrap_or(together);
            row.finished_blocks = together..end;
            together = end;
            Some((model, row))
        })
    }

    /// True if a rectangle of the image holds pixels that are wanted, finished or not.
    #[must_use]
    pub fn wants(&self, rect: Rect) -> bool {
        self.schedules[0].wants(rect)
    }

    /// True if a block holds pixels that are wanted and not finished.
    #[must_use]
    pub fn wants_block(&self, block: TileCoord) -> bool {
        self.schedules[0].wants_block(block)
    }

    /// Counts the tiles of all models.
    #[must_use]
    pub fn count(&self) -> TileCount {
        self.schedules.iter().map(Schedule::count).fold(TileCount::default(), |a, b| TileCount {
            grid: a.grid + b.grid,
            run: a.run + b.run,
            skipped: a.skipped + b.skipped,
            repeated: a.repeated + b.repeated,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Schedule;

    proptest::proptest! {
        #[test]
        fn blocks_are_finished_once_and_after_the_last_tile_of_any_model(
            (width, height) in (1u64..300, 1u64..300),
            tiles in proptest::collection::vec((1u64..80, 1u64..80, 2u32..=10), 1..4),
            block in 1u64..70, strip in 1u64..5,
        ) {
            let image = Size::new(width, height);
            let grids: Vec<TileGrid> = tiles
                .iter()
                .map(|&(w, h, tenths)| TileGrid::new(image, Size::new(w, h), f64::from(tenths) / 10.0).unwrap())
                .collect();
            let schedule = |grid| Schedule::new(grid, None, Size::new(block, block), strip).unwrap();
            let lockstep = Lockstep::new(grids.iter().map(schedule).collect()).unwrap();
            for strip in lockstep.strips() {
                let (mut finished, mut tops) = (0, vec![i64::MIN; grids.len()]);
                let mut found = vec![Vec::new(); grids.len()];
                let mut touched = vec![0; grids.len()];
                for (model, row) in lockstep.rows(&strip) {
                    for tile in &row.tiles {
                        let rect = grids[model].rect(tile.index).intersect(image.rect()).unwrap();
                        proptest::prop_assert!(rect.y as u64 / block >= finished, "no tile touches a finished block");
                        proptest::prop_assert!(rect.y >= tops[model]);
                        tops[model] = rect.y;
                        touched[model] = touched[model].max((rect.bottom() as u64).div_ceil(block));
                    }
                    // What each model holds is what it would hold alone, however far the others are.
                    for (model, &bottom) in touched.iter().enumerate() {
                        let held = u64::saturating_sub(bottom, finished);
                        proptest::prop_assert!(held <= lockstep.schedules()[model].block_rows_in_flight());
                    }
                    found[model].extend(row.tiles);
                    proptest::prop_assert_eq!(row.finished_blocks.start, finished);
                    finished = row.finished_blocks.end;
                }
                proptest::prop_assert_eq!(finished, height.div_ceil(block));
                for (schedule, found) in lockstep.schedules().iter().zip(found) {
                    let alone: Vec<_> = schedule.rows(&strip).flat_map(|row| row.tiles).collect();
                    proptest::prop_assert_eq!(found, alone, "each model has its tiles, in their order");
                }
            }
            let grid: u64 = grids.iter().map(TileGrid::len).sum();
            let count = lockstep.count();
            proptest::prop_assert_eq!((count.grid, count.run, count.skipped), (grid, grid, 0));
        }
    }

    #[test]
    fn one_schedule_is_worked_through_as_it_is() {
        let grid = TileGrid::new(Size::new(100, 90), Size::new(20, 30), 0.5).unwrap();
        let schedule = Schedule::new(&grid, None, Size::new(16, 16), 3).unwrap();
        let lockstep = Lockstep::new(vec![schedule.clone()]).unwrap();
        for strip in schedule.strips() {
            let alone: Vec<_> = schedule.rows(&strip).map(|row| (0, row)).collect();
            assert_eq!(lockstep.rows(&strip).collect::<Vec<_>>(), alone);
        }
    }

    #[test]
    fn schedules_that_do_not_fit_together_are_refused() {
        let tile = Size::new(20, 20);
        let [a, b] = [Size::new(100, 90), Size::new(100, 91)].map(|image| TileGrid::new(image, tile, 0.5).unwrap());
        let schedule = |grid, block, strip| Schedule::new(grid, None, Size::new(block, block), strip).unwrap();
        assert!(Lockstep::new(Vec::new()).is_err());
        assert!(Lockstep::new(vec![schedule(&a, 16, 3), schedule(&a, 16, 3)]).is_ok());
        for other in [schedule(&b, 16, 3), schedule(&a, 32, 3), schedule(&a, 16, 4)] {
            assert!(Lockstep::new(vec![schedule(&a, 16, 3), other]).is_err());
        }
    }
}
