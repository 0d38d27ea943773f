//! What a run will do, and what it will take, said before it is done.

use std::fmt;
use std::time::Instant;

use microtome_io::Rect;
use microtome_stitch::Product;
use microtome_tile::{Lockstep, Reader, Schedule, TileCount, TileRow};
use microtome_unet::Tile;
use rayon::prelude::*;
use serde::Serialize;

use crate::Result;
use crate::pipeline::{Member, Pools, network_tile};
use crate::plan::{Geometry, MemoryPlan};
use crate::units::Bytes;

/// What a run will do, and what it will take.
#[derive(Debug, Clone, Serialize)]
pub struct Forecast {
    /// Target grid, step, weights.
    pub geometry: Geometry,
    /// Tiles of the grid (of several models, of all of theirs), those that touch the region, and those that do not.
    pub tiles: TileCount,
    /// Share of the slide that the region covers, 0 to 1; `None` where every tile runs.
    pub region_share: Option<f64>,
    /// Strips that the grid is worked through in.
    pub strips: u64,
    /// Blocks of the mask that the region touches.
    pub blocks: u64,
    /// Bytes of memory that each part holds at most.
    pub memory: MemoryPlan,
    /// All of them together.
    pub memory_total: u64,
    /// Bytes of memory that may be used.
    pub budget: u64,
    /// Bytes of disk.
    pub disk: DiskPlan,
    /// Threads.
    pub threads: usize,
    /// Expected time, from a short calibration; `None` where there was none.
    pub seconds: Option<ExpectedTime>,
}

/// Bytes of disk that a run takes at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DiskPlan {
    /// The stores, all levels, as if nothing could be compressed. Masks take a small part of it.
    pub stores: u64,
    /// The scratch folder, while the run lasts.
    pub scratch: u64,
}

/// Seconds that a run will take, from one batch of its own tiles for each model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ExpectedTime {
    /// Reading all tiles.
    pub reading: f64,
    /// The networks over all tiles.
    pub inference: f64,
    /// The first pass over the slide, where the normalisation needs one.
    pub statistics: f64,
    /// From start to end: reading and the network overlap.
    pub total: f64,
}

impl DiskPlan {
    /// What a schedule takes that writes these products.
    pub(crate) fn of(
        schedule: &Lockstep<'_>,
        geometry: &Geometry,
        products: &[Product],
        shard: u64,
        scratch: bool,
    ) -> Self {
        let image = geometry.target.size;
        let cells = image.cells(microtome_io::Size::new(shard, shard));
        let wanted: u64 = (0..cells.area())
            .filter_map(|i| {
                let at = microtome_io::TileCoord { row: i / cells.width, column: i % cells.width };
                at.rect(microtome_io::Size::new(shard, shard)).intersect(image.rect())
            })
            .filter(|rect| schedule.wants(*rect))
            .map(|rect| rect.size().area())
            .sum();
        let bytes = |product: &Product| {
            (product.channels(&geometry.decision) * product.sample(&geometry.decision).bytes()) as u64
        };
        // Each level has a quarter of the pixels of the one below.
        let stores = products.iter().map(bytes).sum::<u64>() * wanted * 4 / 3;
        let kept = |strip: &microtome_tile::Strip| -> u64 {
            let part = |rect: Rect| (rect.right() - strip.rect.right()).max(0) as u64 * rect.height;
            let of = |(model, row): (usize, TileRow)| -> u64 {
                let tiles = row.tiles.iter().filter(|tile| tile.again);
                tiles.map(|tile| part(schedule.grid(model).rect(tile.index))).sum()
            };
            schedule.rows(strip).map(of).sum()
        };
        let widest = if scratch { schedule.strips().map(|strip| kept(&strip)).max().unwrap_or(0) } else { 0 };
        // Two strips' worth at once: what is taken, and what is kept.
        Self { stores, scratch: 2 * widest * geometry.decision.planes().logits() as u64 * 4 }
    }
}

/// Runs one batch of tiles of each model from the middle of its schedule, and reckons with that. `first_pass` says whether the slide is
/// read once more.
pub(crate) fn calibrate(
    reader: Reader<'_>,
    schedule: &Lockstep<'_>,
    members: &[Member<'_>],
    pools: &Pools,
    first_pass: FirstPass,
) -> Result<ExpectedTime> {
    let mut time = ExpectedTime { reading: 0.0, inference: 0.0, statistics: 0.0, total: 0.0 };
    for (n, (member, schedule)) in members.iter().zip(schedule.schedules()).enumerate() {
        let first_pass = if n == 0 { first_pass } else { FirstPass::Not };
        let own = calibrate_one(reader, schedule, member, pools, first_pass)?;
        time.reading += own.reading;
        time.inference += own.inference;
        time.statistics += own.statistics;
    }
    Ok(ExpectedTime { total: time.statistics + time.reading.max(time.inference), ..time })
}

fn calibrate_one(
    reader: Reader<'_>,
    schedule: &Schedule<'_>,
    member: &Member<'_>,
    pools: &Pools,
    first_pass: FirstPass,
) -> Result<ExpectedTime> {
    let batch = member.batch;
    let count = schedule.count();
    let all = count.run + count.repeated;
    let covered = schedule.grid().covered();
    let tiles: Vec<(Rect, Rect)> = schedule
        .strips()
        .flat_map(|strip| schedule.rows(&strip).flat_map(|row| row.tiles).collect::<Vec<_>>())
        .skip(usize::try_from(all / 2).unwrap_or(0).saturating_sub(batch))
        .take(batch)
        .filter_map(|tile| {
            let rect = schedule.grid().rect(tile.index);
            Some((rect, rect.intersect(covered)?))
        })
        .collect();
    if tiles.is_empty() {
        return Ok(ExpectedTime { reading: 0.0, inference: 0.0, statistics: 0.0, total: 0.0 });
    }
    let start = Instant::now();
    let pixels = pools.pixels.install(|| {
        tiles.par_iter().map(|(_, visible)| reader.read(*visible)).collect::<microtome_tile::Result<Vec<_>>>()
    })?;
    let reading = start.elapsed().as_secs_f64() / tiles.len() as f64;
    let inputs: Vec<Tile<'_>> =
        tiles.iter().zip(&pixels).map(|((rect, _), pixels)| network_tile(*rect, covered, pixels)).collect();
    let start = Instant::now();
    pools.network.install(|| member.predictor.predict(&inputs, &member.normalizer))?;
    let inference = start.elapsed().as_secs_f64() / tiles.len() as f64;
    let pixels_read: u64 = tiles.iter().map(|(_, visible)| visible.size().area()).sum();
    let statistics = match first_pass {
        FirstPass::Needed => reading * tiles.len() as f64 * covered.size().area() as f64 / pixels_read as f64,
        FirstPass::Not => 0.0,
    };
    let (reading, inference) = (reading * all as f64, inference * all as f64);
    Ok(ExpectedTime { reading, inference, statistics, total: statistics + reading.max(inference) })
}

/// Whether the slide is read once before the tiles are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FirstPass {
    Needed,
    Not,
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = &self.geometry.target;
        write!(f, "target grid  {} pixels", target.size)?;
        if let Some(mpp) = target.mpp {
            write!(f, " of {:.4} x {:.4} um", mpp.x, mpp.y)?;
        }
        writeln!(f, ", from level {}", target.level)?;
        if let Some(crop) = &self.geometry.crop {
            writeln!(f, "crop         {crop}")?;
        }
        let t = self.tiles;
        write!(f, "tiles        {} of {} run, {} skipped", t.run, t.grid, t.skipped)?;
        match self.region_share {
            Some(share) => writeln!(f, "; the region covers {:.1} % of the slide", share * 100.0)?,
            None => writeln!(f)?,
        }
        let twice = if self.disk.scratch > 0 { "kept between them" } else { "run twice between them" };
        writeln!(
            f,
            "strips       {} of {} pixels, {} tiles {twice}; {} blocks; {} tiles at a time",
            self.strips, self.memory.strip_width, t.repeated, self.blocks, self.memory.batch
        )?;
        write!(f, "memory       {} of {}:", Bytes(self.memory_total), Bytes(self.budget))?;
        let parts: Vec<String> = self
            .memory
            .named()
            .into_iter()
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(name, bytes)| format!(" {name} {}", Bytes(bytes)))
            .collect();
        writeln!(f, "{}", parts.join(","))?;
        write!(f, "disk         at most {}", Bytes(self.disk.stores))?;
        if self.disk.scratch > 0 {
            write!(f, ", and {} of scratch", Bytes(self.disk.scratch))?;
        }
        if let Some(time) = self.seconds {
            write!(
                f,
                "\ntime         about {:.0} s: {:.0} s for the network and {:.0} s for reading, at the same time, after {:.0} s for statistics; {} threads",
                time.total, time.inference, time.reading, time.statistics, self.threads
            )?;
        }
        Ok(())
    }
}
