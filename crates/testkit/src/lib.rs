//! testkit

pub mod assets;
pub mod tiff;
