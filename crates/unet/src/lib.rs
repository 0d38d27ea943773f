//! UNets for tiled segmentation on candle.

#![warn(missing_docs)]

mod card;
mod error;
mod normalization;
mod predictor;

pub use card::{Card, MirrorAxes, Output, Window};
pub use error::{Error, Result};
pub use normalization::{ChannelStatistics, Normalization, Normalizer, needs_statistics};
pub use predictor::{Device, Execution, Logits, MemoryEstimate, Mirroring, Precision, Predictor, Tile};
