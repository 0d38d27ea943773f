//! What a conversion did, in numbers with units.

use std::path::Path;

use microtome_io::slide::Resolution;
use microtome_io::store::Encoding;
use microtome_io::{SampleType, Size};
use serde::Serialize;

use super::plan::ConvertPlan;
use crate::memory::PeakMemory;
use crate::output::put;
use crate::units::Bytes;
use crate::{Error, Result};

/// The summary of one conversion.
#[derive(Debug, Clone, Serialize)]
pub struct ConvertSummary {
    /// The slide's format.
    pub format: String,
    /// Size of its level 0, in pixels.
    pub slide: Size,
    /// Physical size of a level-0 pixel of the slide, and who says so.
    pub resolution: Option<Resolution>,
    /// What was planned: levels, order, memory.
    pub plan: ConvertPlan,
    /// Samples per pixel.
    pub channels: usize,
    /// How a sample is stored.
    pub sample: SampleType,
    /// Version of OME-Zarr and compression.
    pub encoding: Encoding,
    /// Pictures that travelled with the slide and were written, by name.
    pub associated: Vec<String>,
    /// Shards of the levels that are read from the slide.
    pub shards: u64,
    /// Those of them that an earlier process had finished.
    pub resumed_shards: u64,
    /// Pixels that were read from the slide, of all levels together; those that an earlier process had finished are not counted.
    pub pixels: u64,
    /// Bytes of all files of the output.
    pub bytes: u64,
    /// Bytes of all levels without compression.
    pub raw_bytes: u64,
    /// Seconds from start to end.
    pub seconds: f64,
    /// Millions of pixels read per second.
    pub mpx_per_second: f64,
    /// Memory used, in bytes.
    pub peak_memory: Option<PeakMemory>,
    /// What a user should know of what was written, and what was left out.
    pub notes: Vec<String>,
}

impl ConvertSummary {
    pub(super) fn set_seconds(&mut self, seconds: f64) {
        self.seconds = seconds;
        self.mpx_per_second = self.pixels as f64 / 1e6 / seconds;
    }

    /// Writes it as JSON.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(|e| Error::Io { path: path.into(), source: e.into() })?;
        put(path, &text)
    }
}

impl std::fmt::Display for ConvertSummary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "slide        {} pixels, {}", self.slide, self.format)?;
        match &self.resolution {
            Some(r) => writeln!(f, ", {} x {} um per pixel ({})", r.mpp.x, r.mpp.y, r.source)?,
            None => writeln!(f, ", resolution unknown")?,
        }
        let (plan, finest) = (&self.plan, &self.plan.levels[0]);
        let bits = self.sample.bytes() * 8;
        writeln!(
            f,
            "image        {} pixels, {} channels of {bits} bits, level {} of the slide",
            finest.size, self.channels, plan.level
        )?;
        write!(f, "levels       {}", plan.levels.len())?;
        if plan.copied.len() > 1 {
            write!(f, ", {} of them copied", plan.copied.len())?;
        }
        writeln!(f, "; OME-Zarr {}, {}", self.encoding.format, self.encoding.compression)?;
        if !self.associated.is_empty() {
            writeln!(f, "associated   {}", self.associated.join(", "))?;
        }
        if self.resumed_shards > 0 {
            writeln!(f, "resumed      {} of {} shards were finished before", self.resumed_shards, self.shards)?;
        }
        let share = self.bytes as f64 / self.raw_bytes.max(1) as f64 * 100.0;
        writeln!(f, "written      {}, {share:.0} % of {}", Bytes(self.bytes), Bytes(self.raw_bytes))?;
        writeln!(f, "time         {:.1} s, {:.1} Mpx/s, {} threads", self.seconds, self.mpx_per_second, plan.threads)?;
        write!(f, "memory       {} planned", Bytes(plan.memory.total()))?;
        if let Some(peak) = self.peak_memory {
            write!(
                f,
                ", peak {} anonymous, {} resident with mapped files",
                Bytes(peak.anonymous),
                Bytes(peak.resident)
            )?;
        }
        Ok(())
    }
}

/// Bytes of all files under a path; 0 of what cannot be looked at: it is for people.
pub(super) fn size_of(path: &Path) -> u64 {
    if microtome_io::remote::is_remote(path) {
        return microtome_io::store::stored_bytes(path).unwrap_or(0);
    }
    let mut bytes = 0;
    let mut paths = vec![path.to_owned()];
    while let Some(path) = paths.pop() {
        match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => {
                let entries = std::fs::read_dir(&path).into_iter().flatten();
                paths.extend(entries.filter_map(|entry| entry.ok().map(|entry| entry.path())));
            }
            Ok(found) => bytes += found.len(),
            Err(_) => {}
        }
    }
    bytes
}
