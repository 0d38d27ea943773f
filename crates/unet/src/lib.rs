//! UNets for tiled segmentation, on CPUs by kernels of our own and on GPUs by candle: nnU-Net v2 results and microtome packages in, logits of tiles out.
//!
//! [`Model::open`] loads a model and refuses by name what it cannot honour; [`Model::predictor`] puts it on a device;
//! a [`Predictor`] turns the pixels of tiles into [`Logits`], and its [`Card`] says how to cut a slide into such tiles.
//! Behind that, a network is plain data ([`Network`]), made from the parameters of its family ([`Architecture`]) and run by an engine.
//!
//! This crate knows no slide and no store: it never reads a slide, never resamples, never blends, and takes the statistics that
//! normalisation needs from its caller, who has seen the whole slide.
//! It never runs code from a checkpoint, never opens a file outside the model's folder, and never allocates what a file merely claims.
//! Files with weights are mapped while they are read, and must not change meanwhile: [`Map`](microtome_io::bytes::Map) says what happens then.
//! The logits of a tile depend on its pixels, the normaliser, the model and the [`Execution`], not on batch or threads.
//!
//! ```
//! use microtome_io::{Pixels, SampleType};
//! use microtome_unet::{ChannelStatistics, Execution, Model, ModelOptions, Normalizer, Tile};
//!
//! let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/nuclei");
//! let model = Model::open(folder, &ModelOptions::default())?;
//! let predictor = model.predictor(&Execution::default())?;
//!
//! // A tile of empty glass, on a slide whose statistics are these.
//! let card = model.card();
//! let pixels = Pixels::filled(card.tile, SampleType::U8, &[240, 240, 240]);
//! let statistics = ChannelStatistics { mean: 214.0, std: 31.0, min: 3.0, max: 255.0 };
//! let normalizer = Normalizer::new(&card.normalization, &[statistics; 3])?;
//!
//! let logits = predictor.predict(&[Tile::full(&pixels)], &normalizer)?;
//! assert_eq!(logits[0].values.len() as u64, card.heads() as u64 * card.tile.area());
//! # Ok::<(), microtome_unet::Error>(())
//! ```

#![warn(missing_docs)]

pub mod architecture;
mod arguments;
mod bounded;
mod bundle;
mod candle;
mod card;
mod cpu;
mod crew;
mod device;
mod ensemble;
mod error;
#[cfg(any(test, feature = "cuda"))]
mod gpu;
mod model;
pub mod network;
mod nnunet;
mod normalization;
mod package;
mod precision;
mod predictor;
mod profile;
mod recipe;
mod safetensors_file;
mod state_dict;
mod stored;
mod summary;
mod taps;
mod torch;
mod transposed;
mod weights;

#[doc(hidden)]
pub mod fuzz;

pub use architecture::Architecture;
pub use card::{Card, MirrorAxes, Output, Placement, Postprocessing, Window};
pub use device::{ChosenDevice, Device, DeviceUse, Gpus};
pub use error::{Error, Result};
pub use model::{Agreement, Checkpoint, Folds, Model, ModelOptions};
pub use network::Network;
pub use normalization::{ChannelStatistics, Normalization, Normalizer, needs_statistics};
pub use package::{ClassChange, PackageOptions, StagedPackage, TestVector};
pub use precision::{Disagreement, Measurement, PrecisionChoice, PrecisionNote, WeightFormat};
pub use predictor::{Arithmetic, Execution, Logits, MemoryEstimate, Mirroring, Precision, Predictor, Tile};
pub use profile::{Profile, StepTime};
pub use summary::{LayerSummary, ReceptiveField, Summary};
