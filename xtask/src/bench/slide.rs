//! The slides that are measured: made on the first call, under the target directory.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use super::Bench;
use crate::shell;

/// The generator, in `tests/python`.
const SCRIPT: &str = "big_slide.py";

/// Whether tiles share their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tiles {
    /// A few tiles over and over: a slide of any size in some megabytes.
    Repeated,
    /// Every tile of tissue has bytes of its own.
    Distinct,
}

/// A slide on disk, 0.25 micrometres per pixel, about 36 % of it tissue.
#[derive(Debug, Clone)]
pub(super) struct Slide {
    pub(super) path: PathBuf,
    pub(super) width: u64,
    pub(super) height: u64,
    pub(super) tiles: Tiles,
}

impl Slide {
    /// A slide of so many pixels across, five to four.
    pub(super) fn make(bench: &Bench<'_>, width: u64, tiles: Tiles) -> Result<Self> {
        Self::sized(bench, width, width * 4 / 5, tiles)
    }

    /// A slide of so many pixels.
    pub(super) fn sized(bench: &Bench<'_>, width: u64, height: u64, tiles: Tiles) -> Result<Self> {
        let suffix = if tiles == Tiles::Distinct { "-distinct" } else { "" };
        let path = bench.work.join(format!("{width}x{height}{suffix}.svs"));
        let modified = |path: &PathBuf| path.metadata().and_then(|m| m.modified()).ok();
        let script = bench.workspace.root.join("tests/python").join(SCRIPT);
        // The generator renames a finished file, so one that is there and newer than the generator is what it would make.
        if modified(&path).is_none_or(|made| modified(&script).is_none_or(|written| made < written)) {
            let mut command = bench.python("venv", "requirements.txt")?;
            command.arg(script).arg(&path).arg(bench.workspace.demo_slide()?).arg(format!("{width}x{height}"));
            if tiles == Tiles::Distinct {
                command.arg("--distinct");
            }
            shell::run(&mut command)?;
            // Pages that are not on the disk yet would count as a reader's own.
            let file = std::fs::File::open(&path).with_context(|| path.display().to_string())?;
            file.sync_all().with_context(|| path.display().to_string())?;
        }
        Ok(Self { path, width, height, tiles })
    }

    /// Megapixels of level 0.
    pub(super) fn megapixels(&self) -> f64 {
        self.width as f64 * self.height as f64 / 1e6
    }

    pub(super) fn bytes(&self) -> Result<u64> {
        Ok(self.path.metadata().with_context(|| self.path.display().to_string())?.len())
    }

    /// In words, for tables.
    pub(super) fn name(&self) -> String {
        let distinct = if self.tiles == Tiles::Distinct { ", distinct tiles" } else { "" };
        format!("{} x {}{distinct}", self.width, self.height)
    }

    /// A GeoJSON file with a square of so many level-0 pixels in the middle of the slide.
    pub(super) fn square(&self, bench: &Bench<'_>, side: u64) -> Result<PathBuf> {
        let (left, top) = ((self.width - side) / 2, (self.height - side) / 2);
        let (right, bottom) = (left + side, top + side);
        let ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]];
        let path = bench.work.join(format!("{}-square-{side}.geojson", self.width));
        std::fs::write(&path, json!({"type": "Polygon", "coordinates": [ring]}).to_string())
            .with_context(|| path.display().to_string())?;
        Ok(path)
    }
}
