//! The target grid: the virtual image at the model's resolution on which everything after reading happens.

use microtome_io::slide::SlideInfo;
use microtome_io::{Downsample, Level, Microns, Size};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The resolution that a model asks for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetResolution {
    /// Level 0 as it is, whatever its resolution: no resampling.
    Native,
    /// This level as it is, whatever its resolution: no resampling.
    Level(Level),
    /// Micrometres per pixel, along both axes.
    Mpp(f64),
}

/// How pixels of a level become pixels of the target grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resampling {
    /// The level is the target grid.
    None,
    /// Each target pixel is the mean of the level's pixels under it, weighted by the area that they share.
    Area,
    /// The four nearest pixels, weighted by distance, where the target is finer than the slide.
    Bilinear,
}

/// What decides the target grid.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TargetOptions {
    /// What the model asks for.
    pub resolution: TargetResolution,
    /// A level whose resolution is off by no more than this fraction is taken as it is.
    pub tolerance: f64,
    /// How many times pixels may be enlarged where the slide is coarser than the target.
    pub max_enlargement: f64,
}

impl Default for TargetOptions {
    fn default() -> Self {
        Self { resolution: TargetResolution::Native, tolerance: 0.02, max_enlargement: 1.25 }
    }
}

/// The target grid of a slide.
///
/// Target pixel `(x, y)` covers `[x s, (x + 1) s)` of the pixels of [`level`](Self::level), `s` being
/// [`step`](Self::step): both images share their top left corner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetGrid {
    /// Pixels of the target grid.
    pub size: Size,
    /// Micrometres per target pixel, if known.
    pub mpp: Option<Microns>,
    /// The level that is read.
    pub level: Level,
    /// Pixels of that level per target pixel.
    pub step: Downsample,
    /// How they are combined.
    pub resampling: Resampling,
    /// Level-0 pixels per target pixel.
    pub downsample: Downsample,
}

impl TargetGrid {
    /// Lays the target grid over a slide whose level-0 pixels measure `mpp` (if that is known).
    ///
    /// The level read is the one within the tolerance of the target, else the coarsest one that is finer than the
    /// target, else level 0 (enlarged).
    ///
    /// # Errors
    /// [`Error::Slide`] if the slide has not the level that is asked for, [`Error::NoResolution`] if a resolution is asked for and the slide's is not known, [`Error::Enlargement`] if
    /// the slide is too coarse, [`Error::ImplausibleResolution`] for values outside 0.05 to 100 um per pixel.
    pub fn plan(slide: &SlideInfo, mpp: Option<Microns>, options: &TargetOptions) -> Result<Self> {
        let as_it_is = |level: Level| -> Result<Self> {
            let info = slide.level(level)?;
            Ok(Self {
                size: info.size,
                mpp: mpp.map(|mpp| mpp.at(info.downsample)),
                level,
                step: Downsample { x: 1.0, y: 1.0 },
                resampling: Resampling::None,
                downsample: info.downsample,
            })
        };
        let target = match options.resolution {
            TargetResolution::Native => return as_it_is(Level::FINEST),
            TargetResolution::Level(level) => return as_it_is(level),
            TargetResolution::Mpp(target) => target,
        };
        let path = || slide.path.display().to_string();
        let mpp = mpp.ok_or_else(|| Error::NoResolution { path: path() })?;
        for (what, value) in
            [("a target resolution", target), ("a slide resolution", mpp.x), ("a slide resolution", mpp.y)]
        {
            if !(0.05..=100.0).contains(&value) {
                return Err(Error::ImplausibleResolution { what: what.into(), mpp: value });
            }
        }
        let tolerated = |level_mpp: Microns| {
            [level_mpp.x, level_mpp.y].iter().all(|v| (v / target - 1.0).abs() <= options.tolerance)
        };
        let finer = |level_mpp: Microns| level_mpp.x <= target && level_mpp.y <= target;
        let at = |level: usize| mpp.at(slide.levels[level].downsample);

        if let Some(level) = (0..slide.levels.len()).find(|&l| tolerated(at(l))) {
            return Ok(Self { mpp: Some(at(level)), ..as_it_is(Level(level))? });
        }
        let (level, resampling) = match (0..slide.levels.len()).rev().find(|&l| finer(at(l))) {
            Some(level) => (level, Resampling::Area),
            None => (0, Resampling::Bilinear),
        };
        let level_mpp = at(level);
        let factor = level_mpp.x.max(level_mpp.y) / target;
        if resampling == Resampling::Bilinear && factor > options.max_enlargement {
            return Err(Error::Enlargement {
                path: path(),
                slide_mpp: level_mpp.x.max(level_mpp.y),
                target_mpp: target,
                factor,
                allowed: options.max_enlargement,
            });
        }
        let size = slide.size();
        let pixels = |n: u64, mpp: f64| ((n as f64 * mpp / target).round() as u64).max(1);
        Ok(Self {
            size: Size::new(pixels(size.width, mpp.x), pixels(size.height, mpp.y)),
            mpp: Some(Microns::square(target)),
            level: Level(level),
            step: Downsample { x: target / level_mpp.x, y: target / level_mpp.y },
            resampling,
            downsample: Downsample { x: target / mpp.x, y: target / mpp.y },
        })
    }

    /// A grid `factor` times coarser than level 0, from the best level for it. For overviews, where the physical
    /// resolution does not matter.
    ///
    /// # Panics
    /// If the factor is below 1.
    #[must_use]
    pub fn coarse(slide: &SlideInfo, mpp: Option<Microns>, factor: f64) -> Self {
        assert!(factor >= 1.0, "a coarse grid is not finer than level 0");
        let fits = |l: &usize| {
            let d = slide.levels[*l].downsample;
            d.x <= factor * (1.0 + 1e-9) && d.y <= factor * (1.0 + 1e-9)
        };
        let level = (0..slide.levels.len()).rev().find(fits).unwrap_or(0);
        let d = slide.levels[level].downsample;
        let step = Downsample { x: (factor / d.x).max(1.0), y: (factor / d.y).max(1.0) };
        let size = slide.levels[level].size;
        // A whole number of pixels must not become one more because the quotient was rounded.
        let pixels = |n: u64, step: f64| ((n as f64 / step - 1e-6).ceil() as u64).max(1);
        let exact = (step.x - 1.0).abs() < 1e-9 && (step.y - 1.0).abs() < 1e-9;
        let downsample = Downsample { x: d.x * step.x, y: d.y * step.y };
        Self {
            size: if exact { size } else { Size::new(pixels(size.width, step.x), pixels(size.height, step.y)) },
            mpp: mpp.map(|m| m.at(downsample)),
            level: Level(level),
            step: if exact { Downsample { x: 1.0, y: 1.0 } } else { step },
            resampling: if exact { Resampling::None } else { Resampling::Area },
            downsample: if exact { d } else { downsample },
        }
    }
}
