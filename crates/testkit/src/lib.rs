//! What the tests of the workspace share: slides that are formulas, models whose answer is known, adapters that fail on
//! purpose, and the way to real files.
//!
//! For tests only: it is never published and no other crate depends on it outside its tests.
//!
//! ```
//! use microtome_io::Size;
//! use microtome_testkit::SyntheticSlide;
//!
//! let slide = SyntheticSlide::new(Size::new(5000, 4000), 7);
//! assert_eq!(slide.pixel(2500, 2000), slide.pixel(2500, 2000), "a formula, whoever asks and whenever");
//! ```
#![warn(missing_docs)]

mod adapters;
pub mod assets;
mod data;
#[cfg(feature = "models")]
mod device_model;
#[cfg(feature = "models")]
mod failing_model;
#[cfg(feature = "models")]
mod models;
pub mod ndpi;
#[cfg(feature = "models")]
mod package;
mod picture;
mod power;
mod specimen;
mod synthetic;
pub mod tiff;

pub use adapters::{CountingSlide, FailingSlide};
pub use data::{data, skip};
#[cfg(feature = "models")]
pub use device_model::DeviceModel;
#[cfg(feature = "models")]
pub use failing_model::FailingModel;
#[cfg(feature = "models")]
pub use models::{ConstantModel, FunctionModel};
#[cfg(feature = "models")]
pub use package::{Weights, small_package};
pub use picture::PictureSlide;
pub use power::PowerLoss;
pub use specimen::{SPECIMEN_MPP, Specimen, View};
pub use synthetic::{GLASS, Rgb, SyntheticSlide, TEXTURE, TISSUE};
