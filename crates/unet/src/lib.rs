//! UNets for tiled segmentation on candle.

#![warn(missing_docs)]

pub mod architecture;
mod bounded;
mod candle;
mod card;
mod cpu;
mod ensemble;
mod error;
mod model;
pub mod network;
mod nnunet;
mod normalization;
mod package;
mod predictor;
mod torch;
mod weights;

pub use architecture::Architecture;
pub use card::{Card, MirrorAxes, Output, Window};
pub use error::{Error, Result};
pub use model::{Agreement, Checkpoint, Folds, Model, ModelOptions};
pub use network::Network;
pub use normalization::{ChannelStatistics, Normalization, Normalizer, needs_statistics};
pub use package::{PackageOptions, TestVector};
pub use predictor::{Arithmetic, Device, Execution, Logits, MemoryEstimate, Mirroring, Precision, Predictor, Tile};
