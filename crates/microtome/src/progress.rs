//! Telling somebody how far a run is, and being told to stop.

use crate::forecast::Forecast;

/// The parts of a run that take time, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Looking for black borders.
    Crop,
    /// Looking for tissue.
    Tissue,
    /// The first pass over the whole slide.
    Statistics,
    /// Tiles through the network into the mask.
    Segmentation,
    /// Decoding every tile of a slide.
    Validation,
    /// A slide into an image of another format.
    Conversion,
    /// A finished mask through a change of the whole.
    Postprocessing,
    /// Tiles of a DeepZoom image. Pixels that are counted are those that are read, of the slide and of the levels between.
    Tiles,
}

/// Watches a run. Its methods are called from several threads and should return at once.
pub trait Observer: Sync {
    /// A phase begins.
    fn phase(&self, phase: Phase) {
        let _ = phase;
    }

    /// It is decided what the run does and takes.
    fn planned(&self, forecast: &Forecast) {
        let _ = forecast;
    }

    /// So many pixels of so many are done in this phase.
    fn progress(&self, done: u64, total: u64) {
        let _ = (done, total);
    }

    /// True if the run should stop as soon as it can.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {}
