//! Segments gigapixel pathology slides in constant memory.
//!
//! A [`Segmenter`] runs a trained network (any nnU-Net v2 2D result, or a package of ours), or several together, over a whole slide of any
//! size: tiles with nnU-Net's overlap and weights, blended in strips that fit a byte budget, written as a multi-level OME-Zarr
//! label image. [`batch`] does so with the slides of an archive. [`preview`] makes small pictures of slides and masks.
//!
//! This crate never holds a slide, its logits or its mask as a whole, never guesses a resolution, never shows half a
//! result, and prints nothing: watch a run through an [`Observer`].
//!
//! # Example
//!
//! A tiny picture stands for the slide, and a network that finds dark pixels for the model.
//!
//! ```
//! use microtome::io::{Size, store::OmeZarr};
//! use microtome::{Existing, Outcome, Segmenter, Settings, Silent, TargetResolution};
//! use microtome_testkit::{FunctionModel, SyntheticSlide};
//!
//! let folder = tempfile::tempdir()?;
//! let slide = SyntheticSlide::new(Size::new(3000, 2000), 1);
//! let model = FunctionModel::new(Size::new(256, 256), &[60.5]);
//!
//! let mut settings = Settings::default();
//! settings.model_mpp = Some(TargetResolution::Native);
//! let segmenter = Segmenter::new(&model, settings)?;
//! let output = folder.path().join("mask.ome.zarr");
//! let Outcome::Done(summary) = segmenter.segment(&slide, &output, Existing::Keep, &Silent)? else { unreachable!() };
//! println!("{summary}");
//!
//! assert_eq!(OmeZarr::open(&output)?.info().levels[0].size.width, 3000);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod batch;
mod convert;
mod crop;
mod damaged;
mod distinct;
mod error;
mod forecast;
mod label;
mod members;
mod memory;
mod norm_stats;
mod output;
mod pipeline;
mod plan;
mod postprocess;
#[cfg(test)]
mod power_loss;
mod precision;
pub mod preview;
mod progress;
mod region;
mod report;
mod segment;
mod settings;
mod units;
mod validate;
mod verify;

pub use convert::{
    Conversion, ConvertMemory, ConvertOptions, ConvertPlan, ConvertSummary, LabelImage, Levels, OnBadPicture,
    VisitingOrder, convert,
};
pub use crop::{Crop, CropNonzero};
pub use distinct::distinct;
pub use error::{Error, Result};
pub use forecast::{DiskPlan, ExpectedTime, Forecast};
pub use memory::{Allowance, AllowanceSource, PeakMemory, allowance};
pub use microtome_io as io;
pub use microtome_stitch::{Accumulation, Product, UnreadableTile, WindowShape};
pub use microtome_tile::pyramid::Reduction;
pub use microtome_tile::{Resampling, TargetGrid, TargetResolution, TileCount};
pub use microtome_unet as unet;
pub use norm_stats::NormStats;
pub use output::{Existing, run_folder, store_of};
pub use plan::{Geometry, MemoryPlan, STRIP_TILES, Tiling};
pub use postprocess::{Postprocessed, postprocess};
pub use precision::measure_precision;
pub use progress::{Observer, Phase, Silent};
pub use region::{Region, RegionOrigin, RoiSource};
pub use report::{ClassArea, GivenRoi, RegionArea, RegionKind, StageTime, StageTimes, Summary};
pub use segment::{Destination, Outcome, Part, PartOutcome, PartSummary, Plan, Segmenter};
pub use settings::{OnBadTile, Settings, TissueMode};
pub use units::Bytes;
pub use validate::{Validation, validate};
pub use verify::{Verification, verify};
