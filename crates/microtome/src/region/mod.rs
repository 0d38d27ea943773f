//! Where a run is to look: the tissue that was found, or a region that the user gives in a file.

mod geojson;
pub(crate) mod labels;
pub(crate) mod picture;
mod values;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use microtome_io::slide::SlideInfo;
use microtome_io::store::Translation;
use microtome_io::{Microns, Size};
use microtome_tile::{Roi, TargetGrid};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// A region that a user gives: a file, and which of its values mean "wanted".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoiSource {
    /// A PNG picture of one channel, an OME-Zarr label image, or GeoJSON.
    #[serde(serialize_with = "crate::error::as_text")]
    pub path: PathBuf,
    /// The wanted values: numbers for a picture; numbers or names of classes for labels; names of classes, or `any`, for GeoJSON whose
    /// features have classes, and none for GeoJSON whose features have not.
    #[serde(default)]
    pub values: Vec<String>,
}

impl std::fmt::Display for RoiSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())?;
        if !self.values.is_empty() {
            write!(f, ", {}", self.values.join(" or "))?;
        }
        Ok(())
    }
}

/// Where a region comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RegionOrigin {
    /// The tissue detector found it.
    Tissue,
    /// The user gave it.
    File(RoiSource),
}

/// What is wanted of a slide.
#[derive(Debug, Clone, PartialEq)]
pub struct Region {
    /// The region, over the target grid.
    pub roi: Roi,
    /// The share of its cells that are wanted, 0 to 1.
    pub share: f64,
    /// Where it comes from.
    pub origin: RegionOrigin,
}

impl Region {
    pub(crate) fn new(roi: Roi, origin: RegionOrigin) -> Self {
        let share = roi.cells() as f64 / roi.size().area().max(1) as f64;
        Self { roi, share, origin }
    }

    /// The SHA-256 of what is wanted: size, step, and the runs row by row. It does not depend on where the region was found.
    pub(crate) fn digest(&self) -> String {
        let (size, step) = (self.roi.size(), self.roi.step());
        let mut hash = Sha256::new();
        for n in [size.width, size.height, step.x.to_bits(), step.y.to_bits()] {
            hash.update(n.to_le_bytes());
        }
        for y in 0..size.height {
            let runs = self.roi.runs(y);
            hash.update((runs.len() as u64).to_le_bytes());
            for run in runs {
                hash.update(run.start.to_le_bytes());
                hash.update(run.end.to_le_bytes());
            }
        }
        hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// The slide and the grid that a region is wanted for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Pixels of level 0.
    pub(crate) slide: Size,
    /// Where the slide's first pixel lies in the coordinates that it states, in level-0 pixels.
    pub(crate) origin: Translation,
    /// Micrometres per level-0 pixel, where known.
    pub(crate) mpp: Option<Microns>,
    pub(crate) target: &'a TargetGrid,
}

impl<'a> Place<'a> {
    /// Of a slide whose level-0 pixels are taken for so many micrometres.
    pub(crate) fn of(slide: &SlideInfo, mpp: Option<Microns>, target: &'a TargetGrid) -> Self {
        Self { slide: slide.size(), origin: slide.translation, mpp, target }
    }
}

/// Reads a user's region. It may be empty where the grid is so coarse that no pixel's centre lies inside.
///
/// # Errors
/// [`Error::Region`] with a sentence for what cannot be read, does not fit the slide, or does not say what is wanted.
pub(crate) fn load(source: &RoiSource, place: Place<'_>) -> Result<Region> {
    let path = &source.path;
    let roi = if path.is_dir() || microtome_io::remote::is_remote(path) {
        labels::read(path, &source.values, place)?
    } else {
        let mut start = [0; 8];
        let mut file = File::open(path).map_err(|error| refuse(path, error))?;
        let n = read_start(&mut file, &mut start).map_err(|error| refuse(path, error))?;
        match &start[..n] {
            b"\x89PNG\r\n\x1a\n" => picture::read(path, &source.values, place)?,
            text if is_json(text) => geojson::read(path, &source.values, place)?,
            _ => {
                return Err(refuse(
                    path,
                    "a region is a PNG, an OME-Zarr label image or GeoJSON, and this is none of them",
                ));
            }
        }
    };
    Ok(Region::new(roi, RegionOrigin::File(source.clone())))
}

/// As much of the file's beginning as there is.
fn read_start(file: &mut File, start: &mut [u8]) -> std::io::Result<usize> {
    let mut n = 0;
    while n < start.len() {
        match file.read(&mut start[n..])? {
            0 => break,
            more => n += more,
        }
    }
    Ok(n)
}

/// True for text that may be the beginning of a JSON object or list.
fn is_json(start: &[u8]) -> bool {
    matches!(start.iter().find(|b| !b.is_ascii_whitespace()), Some(b'{' | b'['))
}

fn refuse(path: &Path, message: impl std::fmt::Display) -> Error {
    Error::Region { path: path.into(), message: message.to_string() }
}

#[cfg(test)]
mod tests;
