//! What can go wrong between a slide and its tiles.

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The slide could not be read.
    #[error(transparent)]
    Slide(#[from] microtome_io::Error),
    /// The slide does not say how large its pixels are, and the caller did not either.
    #[error(
        "{path}: the slide does not state its resolution; give it (--mpp, micrometres per level-0 pixel) or ask for native resolution (--model-mpp native)"
    )]
    NoResolution {
        /// The file.
        path: String,
    },
    /// A resolution outside what a microscope makes.
    #[error("{what} of {mpp} um per pixel is not plausible (0.05 to 100)")]
    ImplausibleResolution {
        /// Whose resolution.
        what: String,
        /// The value.
        mpp: f64,
    },
    /// The target is finer than the slide by more than the caller allows.
    #[error(
        "{path}: the slide has {slide_mpp:.4} um per pixel and the model wants {target_mpp:.4}: pixels would have to be enlarged {factor:.2} times (at most {allowed:.2} unless --max-enlargement says more)"
    )]
    Enlargement {
        /// The file.
        path: String,
        /// The slide's finest resolution.
        slide_mpp: f64,
        /// The resolution asked for.
        target_mpp: f64,
        /// `slide_mpp / target_mpp`.
        factor: f64,
        /// The caller's bound.
        allowed: f64,
    },
    /// The caller's settings contradict each other or are out of range.
    #[error("{0}")]
    Usage(String),
}
