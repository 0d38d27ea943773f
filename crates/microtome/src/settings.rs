//! What a user may decide about a segmentation.

use std::path::PathBuf;
use std::time::Duration;

use microtome_io::store::Format;
use microtome_stitch::{Accumulation, Product, WindowShape};
use microtome_tile::TargetResolution;
use microtome_unet::PrecisionChoice;
use serde::{Deserialize, Serialize};

use crate::crop::CropNonzero;
use crate::memory;
use crate::norm_stats::NormStats;
use crate::region::RoiSource;

/// Whether glass is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TissueMode {
    /// Only tiles that touch tissue run, and outside the tissue the mask is background.
    #[default]
    Auto,
    /// Every tile runs.
    None,
}

/// What to do about a tile of the slide that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBadTile {
    /// The run fails, and says which.
    #[default]
    Fail,
    /// Whatever the network would have seen it for is background; the report lists it, and the run counts as one with faults.
    Fill,
}

/// Settings of a segmentation. Those left at their default follow the model.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// Micrometres per level-0 pixel, in place of what the slide says.
    pub mpp: Option<f64>,
    /// Where neither the user nor the slide gives a resolution: 10 micrometres divided by the magnification of the objective, which is
    /// often inaccurate. Without this such a slide is refused.
    pub mpp_from_objective: bool,
    /// The resolution to run at, in place of what the model says. A model that does not say must be told.
    pub model_mpp: Option<TargetResolution>,
    /// A level whose resolution is off by no more than this fraction is taken as it is.
    pub mpp_tolerance: f64,
    /// How many times pixels may be enlarged where the slide is coarser than the model.
    pub max_enlargement: f64,
    /// Distance between tiles as a fraction of the tile, in place of the model's.
    pub step: Option<f64>,
    /// How much each pixel of a tile counts where tiles overlap, in place of the model's.
    pub window: Option<WindowShape>,
    /// With which numbers logits are summed: f32, or for comparison as nnU-Net does.
    pub accumulate: Accumulation,
    /// Whether black borders are cut off before anything else, in place of what the model says.
    pub crop_nonzero: CropNonzero,
    /// Whether glass is left out. Without effect where a region is given.
    pub tissue: TissueMode,
    /// A region to run in, in place of the tissue: only tiles that touch it run, and outside it the mask is background.
    pub roi: Option<RoiSource>,
    /// Whose statistics the image is normalised with.
    pub norm_stats: NormStats,
    /// Bytes that the run may use: anonymous memory plus dirty file pages. The default is half of what the control group or the machine
    /// allows ([`Allowance`](crate::Allowance)).
    pub memory: u64,
    /// What to do about a tile of the slide that cannot be read.
    pub on_bad_tile: OnBadTile,
    /// Write the probabilities of classes or regions, too: beside `mask.ome.zarr` into `mask.probabilities.ome.zarr`.
    pub probabilities: bool,
    /// Write how far the most probable class is ahead, too: beside `mask.ome.zarr` into `mask.confidence.ome.zarr`.
    pub confidence: bool,
    /// A folder on a fast disk for logits that the next strip needs, in place of computing them twice. Never changes the result.
    pub scratch: Option<PathBuf>,
    /// How much time a crash may cost at most, besides what is in flight: finished shards are made durable this often.
    pub sync_every: Duration,
    /// Tiles per call of the network. Never changes the result. `None`: as many as there are threads, and at least four
    /// (sixteen if they are small), but no more than fit into the memory; threads without a tile help with those of others.
    pub batch: Option<usize>,
    /// Threads that decode, infer, blend and encode. Never changes the result. `None`: one per core.
    pub threads: Option<usize>,
    /// In which numbers the network computes, and why: for the summary. It is the predictor that computes in them.
    pub precision: Option<PrecisionChoice>,
    /// Side of a chunk of the mask, in pixels.
    pub chunk: u64,
    /// Side of a shard of the mask, in pixels: an even multiple of the chunk.
    pub shard: u64,
    /// Which version of OME-Zarr is written; `None`: 0.5, or that of the image into which labels are put.
    pub format: Option<Format>,
    /// Name of the mask within its metadata, and of labels that are put into an image; `None`: the model's name.
    pub name: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mpp: None,
            mpp_from_objective: false,
            model_mpp: None,
            mpp_tolerance: 0.02,
            max_enlargement: 1.25,
            step: None,
            window: None,
            accumulate: Accumulation::F32,
            crop_nonzero: CropNonzero::Auto,
            tissue: TissueMode::Auto,
            roi: None,
            norm_stats: NormStats::Slide,
            memory: memory::allowance().budget(),
            on_bad_tile: OnBadTile::Fail,
            probabilities: false,
            confidence: false,
            scratch: None,
            sync_every: Duration::from_secs(2),
            batch: None,
            threads: None,
            precision: None,
            chunk: 512,
            shard: 2048,
            format: None,
            name: None,
        }
    }
}

impl Settings {
    /// What a run writes, in the order in which it does.
    #[must_use]
    pub fn products(&self) -> Vec<Product> {
        let extra = [(self.probabilities, Product::Probabilities), (self.confidence, Product::Confidence)];
        let extra = extra.into_iter().filter_map(|(wanted, product)| wanted.then_some(product));
        extra.chain([Product::Labels]).collect()
    }
}
