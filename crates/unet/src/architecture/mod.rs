//! The families of networks that this crate knows: parameters in, [`Network`] out.
//!
//! A new architecture is one file here and one variant of [`Architecture`].

mod plain_conv_unet;
mod residual_encoder_unet;
mod unet;

pub use plain_conv_unet::PlainConvUnet;
pub use residual_encoder_unet::ResidualEncoderUnet;
#[cfg(test)]
pub(crate) use {plain_conv_unet::tests, residual_encoder_unet::tests as residual};

use microtome_io::Size;
use serde::{Deserialize, Serialize};

use crate::Network;

/// A network by the parameters of its family, as a package stores it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Architecture {
    /// nnU-Net's `PlainConvUNet` in two dimensions.
    PlainConvUnet(PlainConvUnet),
    /// nnU-Net's `ResidualEncoderUNet` in two dimensions.
    ResidualEncoderUnet(ResidualEncoderUnet),
}

impl Architecture {
    /// Number of input channels.
    #[must_use]
    pub fn channels(&self) -> usize {
        match self {
            Self::PlainConvUnet(parameters) => parameters.channels,
            Self::ResidualEncoderUnet(parameters) => parameters.channels,
        }
    }

    /// Number of logit planes.
    #[must_use]
    pub fn heads(&self) -> usize {
        match self {
            Self::PlainConvUnet(parameters) => parameters.heads,
            Self::ResidualEncoderUnet(parameters) => parameters.heads,
        }
    }

    /// The same for other numbers of channels and logit planes.
    #[must_use]
    pub(crate) fn with_counts(mut self, channels: usize, heads: usize) -> Self {
        match &mut self {
            Self::PlainConvUnet(parameters) => (parameters.channels, parameters.heads) = (channels, heads),
            Self::ResidualEncoderUnet(parameters) => (parameters.channels, parameters.heads) = (channels, heads),
        }
        self
    }

    /// The same with another normalisation.
    #[must_use]
    pub(crate) fn with_norm(mut self, norm: Norm) -> Self {
        match &mut self {
            Self::PlainConvUnet(parameters) => parameters.norm = norm,
            Self::ResidualEncoderUnet(parameters) => parameters.norm = norm,
        }
        self
    }

    /// What is wrong with the parameters, for a tile of this size.
    ///
    /// # Errors
    /// A clause that names the parameter. After `Ok`, [`network`](Self::network) makes sense and its arithmetic cannot overflow.
    pub fn check(&self, tile: Size) -> Result<(), String> {
        match self {
            Self::PlainConvUnet(parameters) => parameters.check(tile),
            Self::ResidualEncoderUnet(parameters) => parameters.check(tile),
        }
    }

    /// The network, layer by layer.
    #[must_use]
    pub fn network(&self) -> Network {
        match self {
            Self::PlainConvUnet(parameters) => parameters.network(),
            Self::ResidualEncoderUnet(parameters) => parameters.network(),
        }
    }
}

/// One line for people.
impl std::fmt::Display for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PlainConvUnet(parameters) => parameters.fmt(f),
            Self::ResidualEncoderUnet(parameters) => parameters.fmt(f),
        }
    }
}

/// The normalisation after a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Norm {
    /// Statistics of each channel of the tile itself.
    Instance {
        /// Added to the variance.
        epsilon: f64,
        /// With factor and summand per channel.
        affine: bool,
    },
    /// Statistics from training.
    Batch {
        /// Added to the variance.
        epsilon: f64,
        /// With factor and summand per channel.
        affine: bool,
    },
    /// No normalisation.
    None,
}

/// The nonlinearity after a normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Activation {
    /// Leaky ReLU; slope 0 is ReLU.
    LeakyRelu {
        /// Factor for negative values.
        slope: f64,
    },
    /// No nonlinearity.
    None,
}
