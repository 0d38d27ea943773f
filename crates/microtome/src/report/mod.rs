//! What a run did, in numbers with units.

pub(crate) mod html;
mod page;
mod pictures;

use std::collections::BTreeSet;
use std::time::Duration;

use microtome_io::Class;
use microtome_stitch::UnreadableTile;
use microtome_tile::{Resampling, StepRule, TargetGrid, TileCount};
use microtome_unet::{DeviceUse, PrecisionChoice};
use serde::{Deserialize, Serialize};

use crate::memory::PeakMemory;
use crate::plan::{Geometry, MemoryPlan, Tiling};
use crate::region::RoiSource;
use crate::segment::PartSummary;

pub(crate) use page::Page;
pub(crate) use pictures::thumbnail;

/// How long a stage worked, and how long it waited for its neighbours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct StageTime {
    /// Seconds of work.
    #[serde(with = "seconds")]
    pub busy: Duration,
    /// Seconds of waiting for the stage before.
    #[serde(with = "seconds")]
    pub starved: Duration,
    /// Seconds of waiting for the stage behind.
    #[serde(with = "seconds")]
    pub blocked: Duration,
}

/// Durations as numbers of seconds.
mod seconds {
    use std::time::Duration;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature.
    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(duration.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// The stages of a run. Reading, inference, blending and writing overlap; the others come before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct StageTimes {
    /// Looking for black borders, where the image is cropped.
    pub crop: StageTime,
    /// Looking for tissue.
    pub tissue: StageTime,
    /// The first pass over the whole slide, where the normalization needs one.
    pub statistics: StageTime,
    /// Decoding and resampling tiles.
    pub reading: StageTime,
    /// The network.
    pub inference: StageTime,
    /// Weighted sums and labels.
    pub blending: StageTime,
    /// Coarser levels, encoding, storing.
    pub writing: StageTime,
}

impl StageTimes {
    /// All stages by name, in the order of the data.
    #[must_use]
    pub fn named(&self) -> [(&'static str, StageTime); 7] {
        [
            ("crop", self.crop),
            ("tissue", self.tissue),
            ("statistics", self.statistics),
            ("reading", self.reading),
            ("inference", self.inference),
            ("blending", self.blending),
            ("writing", self.writing),
        ]
    }
}

/// What a run worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RegionKind {
    /// The tissue that was found.
    Tissue,
    /// The region that the user gave.
    Region,
    /// The whole slide.
    Slide,
}

impl std::fmt::Display for RegionKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tissue => "tissue",
            Self::Region => "region",
            Self::Slide => "slide",
        })
    }
}

/// How much of the slide was wanted: outside of it everything is background.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RegionArea {
    /// What it is.
    pub kind: RegionKind,
    /// Pixels of the target grid.
    pub pixels: u64,
    /// Square millimetres, where the resolution is known.
    pub mm2: Option<f64>,
}

/// How much of the slide a class covers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassArea {
    /// The class.
    pub class: Class,
    /// Pixels of the target grid.
    pub pixels: u64,
    /// Square millimetres, where the resolution is known.
    pub mm2: Option<f64>,
    /// Share of [`Summary::region`], 0 to 1; 0 where that is empty.
    pub share: f64,
}

/// A user's region.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GivenRoi {
    /// The file, and which of its values were wanted.
    #[serde(flatten)]
    pub source: RoiSource,
    /// Share of the slide that it covers, 0 to 1.
    pub share: f64,
}

/// The summary of one slide.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The slide's format.
    pub format: String,
    /// Size of level 0, in pixels.
    pub slide: microtome_io::Size,
    /// Name of the model, or names of several; more of each is in [`Geometry::tilings`].
    pub model: String,
    /// In which numbers the network computed, and why, where whoever chose them said so.
    pub precision: Option<PrecisionChoice>,
    /// Target grid, tiles, weights.
    pub geometry: Geometry,
    /// Tiles run and skipped, of all models.
    pub tiles: TileCount,
    /// Shards of level 0 that an earlier process had finished; the tiles above count as run all the same.
    pub resumed_shards: u64,
    /// Share of the slide that is tissue, 0 to 1, where that was looked for.
    pub tissue_share: Option<f64>,
    /// Why all of the slide counts as tissue, where it does for want of anything else.
    pub tissue_note: Option<&'static str>,
    /// The region that the user gave in place of the tissue.
    pub roi: Option<GivenRoi>,
    /// Area of what was wanted: tissue, region or the whole slide.
    pub region: RegionArea,
    /// Area of each class but background.
    pub areas: Vec<ClassArea>,
    /// Who worked and who waited, in seconds.
    pub stages: StageTimes,
    /// Seconds from start to end.
    pub seconds: f64,
    /// Memory planned, in bytes.
    pub memory_plan: MemoryPlan,
    /// Memory used, in bytes.
    pub peak_memory: Option<PeakMemory>,
    /// Threads used.
    pub threads: usize,
    /// What GPUs did, one entry for each model on each.
    pub devices: Vec<DeviceUse>,
    /// Seconds in which reading, inference, blending and writing went on.
    pub segmentation: f64,
    /// Stored tiles of the slide that could not be read: what they touch is background.
    pub unreadable: Vec<UnreadableTile>,
    /// Bytes that went through the scratch folder.
    pub scratch_bytes: u64,
    /// Where several workers computed the parts: what each says of its own. Times and memory above are then of what was left to do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartSummary>,
}

impl Summary {
    /// Megapixels of the target grid.
    #[must_use]
    pub fn megapixels(&self) -> f64 {
        self.geometry.target.size.area() as f64 / 1e6
    }

    /// The share of the time of segmentation in which a GPU had something to do, the mean over all, 0 to 1; `None` without GPUs.
    #[must_use]
    pub fn gpu_share(&self) -> Option<f64> {
        // Several models take turns on a device.
        let names: BTreeSet<&str> = self.devices.iter().map(|device| device.name.as_str()).collect();
        let busy: f64 = self.devices.iter().map(|device| device.busy.as_secs_f64()).sum();
        (!names.is_empty() && self.segmentation > 0.0).then(|| busy / (self.segmentation * names.len() as f64))
    }

    /// Area of all classes together, in square millimetres, where the resolution is known.
    #[must_use]
    pub fn foreground_mm2(&self) -> Option<f64> {
        self.areas.iter().map(|a| a.mm2).sum()
    }
}

/// A GPU that is busy for less than this share of the time is waited for by nobody: then the summary says who makes it wait.
const BUSY: f64 = 0.9;

impl StageTimes {
    /// The stage that keeps the network from working, and why.
    fn starving(&self) -> &'static str {
        let Self { reading, inference, blending, .. } = self;
        if inference.starved >= inference.blocked {
            // The reader waits for the network only where it is ahead.
            return if reading.blocked > reading.busy {
                "the host's own work around the network kept it waiting"
            } else {
                "reading kept it waiting: more cores, or a faster disk"
            };
        }
        if blending.blocked > blending.busy { "writing kept it waiting" } else { "blending kept it waiting" }
    }
}

impl Summary {
    fn write_devices(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for DeviceUse { name, batch, tiles, busy, notes } in &self.devices {
            writeln!(f, "device       {name}: {tiles} tiles, {batch} at once, {:.2} s busy", busy.as_secs_f64())?;
            for note in notes {
                writeln!(f, "             {note}")?;
            }
        }
        let Some(share) = self.gpu_share() else { return Ok(()) };
        write!(f, "GPU          busy {:.1} % of {:.1} s", share * 100.0, self.segmentation)?;
        if share < BUSY {
            write!(f, "; {}", self.stages.starving())?;
        }
        writeln!(f)
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Geometry { resolution, target, tilings, .. } = &self.geometry;
        write!(f, "slide        {} pixels, {}", self.slide, self.format)?;
        match resolution {
            Some(r) => writeln!(f, ", {} x {} um per pixel ({})", r.mpp.x, r.mpp.y, r.source)?,
            None => writeln!(f, ", resolution unknown")?,
        }
        write!(f, "target grid  {} pixels", target.size)?;
        if let Some(mpp) = target.mpp {
            write!(f, " of {:.4} x {:.4} um", mpp.x, mpp.y)?;
        }
        writeln!(f, ", from {}", level_and_resampling(target))?;
        if let Some(crop) = &self.geometry.crop {
            writeln!(f, "crop         {crop}")?;
        }
        let t = self.tiles;
        write!(f, "tiles        {} of {} run, {} skipped", t.run, t.grid, t.skipped)?;
        if t.repeated > 0 {
            let how = if self.scratch_bytes > 0 { "kept" } else { "run twice" };
            write!(f, ", {} {how} between strips", t.repeated)?;
        }
        let rule = |placement: StepRule| match placement {
            StepRule::Nnunet => "",
            StepRule::Monai => " placed as MONAI does",
        };
        match tilings.as_slice() {
            [Tiling { tile, step, model, placement, .. }] => {
                writeln!(f, "; {tile} pixels, step {step}{}, model {model}", rule(*placement))?;
            }
            several => {
                writeln!(f, "; {} models, the mean of their probabilities", several.len())?;
                for Tiling { tile, step, model, placement, grid, .. } in several {
                    let rule = rule(*placement);
                    writeln!(f, "model        {model}: {} tiles of {tile} pixels, step {step}{rule}", grid.len())?;
                }
            }
        }
        if let Some(choice) = &self.precision {
            writeln!(f, "precision    {choice}")?;
        }
        if self.resumed_shards > 0 {
            writeln!(f, "resumed      {} shards were finished before", self.resumed_shards)?;
        }
        match (self.tissue_share, self.tissue_note) {
            (Some(_), Some(note)) => writeln!(f, "tissue       {note}")?,
            (Some(share), None) => writeln!(f, "tissue       {:.1} % of the slide", share * 100.0)?,
            (None, _) if self.roi.is_some() => {}
            (None, _) => writeln!(f, "tissue       not looked for")?,
        }
        if let Some(GivenRoi { source, share }) = &self.roi {
            writeln!(f, "region       {:.1} % of the slide, from {source}", share * 100.0)?;
        }
        for tile in &self.unreadable {
            writeln!(f, "unreadable   level {}, {}: {}; background there", tile.level, tile.tile, tile.cause)?;
        }
        for area in &self.areas {
            write!(f, "area         {}: {} pixels", area.class.name, area.pixels)?;
            if let Some(mm2) = area.mm2 {
                write!(f, ", {mm2:.4} mm2")?;
            }
            let kind = self.region.kind;
            write!(f, ", {:.1} % of the {kind}", area.share * 100.0)?;
            if let (Some(_), Some(all)) = (area.mm2, self.region.mm2) {
                write!(f, " ({:.4} mm2 per mm2, of {all:.4} mm2)", area.share)?;
            }
            writeln!(f)?;
        }
        for PartSummary { part, shards, tiles, seconds, threads, .. } in &self.parts {
            let name = format!("part {part}");
            writeln!(f, "{name:<13}{shards} shards, {} tiles, {seconds:.1} s, {threads} threads", tiles.run)?;
        }
        writeln!(
            f,
            "time         {:.1} s, {:.2} Mpx/s of the target grid, {} threads",
            self.seconds,
            self.megapixels() / self.seconds,
            self.threads
        )?;
        for (name, stage) in self.stages.named().into_iter().filter(|(_, s)| !s.busy.is_zero()) {
            let busy = stage.busy.as_secs_f64();
            write!(f, "  {name:<10} {busy:>8.2} s busy {:>8.2} Mpx/s", self.megapixels() / busy)?;
            if !(stage.starved.is_zero() && stage.blocked.is_zero()) {
                write!(
                    f,
                    "; waited {:.2} s for input, {:.2} s for output",
                    stage.starved.as_secs_f64(),
                    stage.blocked.as_secs_f64()
                )?;
            }
            writeln!(f)?;
        }
        self.write_devices(f)?;
        write!(f, "memory       {} planned", crate::units::Bytes(self.memory_plan.total()))?;
        if let Some(peak) = self.peak_memory {
            write!(
                f,
                ", peak {} anonymous, {} resident with mapped files",
                crate::units::Bytes(peak.anonymous),
                crate::units::Bytes(peak.resident)
            )?;
        }
        Ok(())
    }
}

/// Which level is read, and what becomes of its pixels: `level 1 (area average)`.
fn level_and_resampling(target: &TargetGrid) -> String {
    let how = match target.resampling {
        Resampling::None => "as it is",
        Resampling::Area => "area average",
        Resampling::Bilinear => "enlarged, bilinear",
    };
    format!("level {} ({how})", target.level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_kept_the_network_waiting_follows_from_who_waited() {
        let stage = |busy, starved, blocked| {
            let of = Duration::from_secs;
            StageTime { busy: of(busy), starved: of(starved), blocked: of(blocked) }
        };
        let starving = |reading, inference, blending| {
            StageTimes { reading, inference, blending, ..StageTimes::default() }.starving()
        };
        let reading = starving(stage(9, 0, 1), stage(4, 6, 0), stage(2, 8, 0));
        assert_eq!(reading, "reading kept it waiting: more cores, or a faster disk");
        let blending = starving(stage(2, 0, 8), stage(4, 0, 6), stage(9, 0, 1));
        assert_eq!(blending, "blending kept it waiting");
        let writing = starving(stage(2, 0, 8), stage(4, 0, 6), stage(1, 0, 9));
        assert_eq!(writing, "writing kept it waiting");
        let host = starving(stage(2, 0, 8), stage(9, 1, 0), stage(3, 7, 0));
        assert_eq!(host, "the host's own work around the network kept it waiting");
    }
}
