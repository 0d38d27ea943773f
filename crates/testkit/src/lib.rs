//! What the tests of the workspace share: slides that are formulas, models whose answer is known, adapters that fail on
//! purpose, and the way to real files.
//!
//! For tests only: it is never published and no other crate depends on it outside its tests.
//!
//! ```
//! use microtome_io::Size;
//! use microtome_testkit::{FunctionModel, SyntheticSlide};
//!
//! // Glass is class 0, light tissue class 1, dark tissue class 2.
//! let slide = SyntheticSlide::new(Size::new(5000, 4000), 7);
//! let model = FunctionModel::new(Size::new(128, 128), &[20.5, 85.5]);
//! let expected = model.class(&slide.pixel(2500, 2000));
//! assert!(expected <= 2);
//! ```
#![warn(missing_docs)]

mod adapters;
pub mod assets;
mod data;
mod models;
mod package;
mod picture;
mod power;
mod specimen;
mod synthetic;
pub mod tiff;

pub use adapters::{CountingSlide, FailingModel, FailingSlide};
pub use data::{data, skip};
pub use models::{ConstantModel, FunctionModel};
pub use package::{Weights, small_package};
pub use picture::PictureSlide;
pub use power::PowerLoss;
pub use specimen::{SPECIMEN_MPP, Specimen, View};
pub use synthetic::{GLASS, Rgb, SyntheticSlide, TEXTURE, TISSUE};
