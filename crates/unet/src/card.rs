//! What a model says about itself.

use microtome_io::{Class, Size};
use serde::{Deserialize, Serialize};

use crate::arguments::nothing_else;
use crate::{ChannelStatistics, Normalization, PrecisionNote};

/// What a caller needs to know about a model to run it over a slide, and a reader to judge it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Card {
    /// The model's name: the package's, or nnU-Net's data set.
    pub name: String,
    /// The network in one line.
    pub architecture: String,
    /// Pixels of one network input. A network with instance normalisation must never see another size.
    pub tile: Size,
    /// Names of the input channels, in order.
    pub channels: Vec<String>,
    /// What the values of the mask mean, ascending by value; 0, background, is always the first.
    pub classes: Vec<Class>,
    /// How logits become values of the mask.
    pub output: Output,
    /// Along which axes the network was trained to be mirrored.
    pub mirror_axes: MirrorAxes,
    /// How each input channel is normalised.
    pub normalization: Vec<Normalization>,
    /// The training set's foreground, per input channel, where the model says: nnU-Net's plans do. Nothing depends on it but what a caller
    /// chooses to normalise with.
    pub training: Option<Vec<ChannelStatistics>>,
    /// Micrometres per pixel that the network was trained at, or `None` where the model does not say (nnU-Net never does).
    pub mpp: Option<f64>,
    /// Distance between tile origins as a fraction of the tile.
    pub step: f64,
    /// Whose rule says how far tiles are apart, given `step`.
    pub placement: Placement,
    /// How overlapping tiles are weighted.
    pub window: Window,
    /// What the model's authors found to improve their masks, in the order in which it is applied: `None` if they did not look, empty if
    /// nothing did. It is never applied unasked, and no part of the model's identity.
    pub postprocessing: Option<Vec<Postprocessing>>,
    /// Whether images are cropped to the pixels that are not 0 before anything else: then statistics and tiles are those of the crop, and
    /// what lies outside is background. nnU-Net does so.
    pub crop_to_nonzero: bool,
    /// Names of the folds, whose logits are averaged.
    pub folds: Vec<String>,
    /// Parameters of one fold that are used at inference.
    pub parameters: u64,
    /// Of the used weights and of every setting that changes the logits of a tile or their meaning
    /// (architecture, normalisation, tile, mirroring axes, mask values), in lower-case hexadecimal.
    ///
    /// It is the same for an nnU-Net folder and for the package made from it, unless that keeps its weights in bf16; names, colours,
    /// resolution, step, placement, window, cropping and the training set's statistics are not part of it.
    pub sha256: String,
    /// The licence of the weights.
    pub licence: Option<String>,
    /// Who trained the model, with what, on what.
    pub provenance: Option<String>,
    /// What the model is for, and what it is not for.
    pub intended_use: Option<String>,
    /// Who computed the test vector that travels with the model, if one does.
    pub test_vector: Option<String>,
    /// In which numbers the weights are kept, and in which the network should compute.
    pub precision: PrecisionNote,
}

impl Card {
    /// Number of logit planes that the network gives per tile.
    #[must_use]
    pub fn heads(&self) -> usize {
        self.output.heads(self.classes.len())
    }

    /// True if a channel is normalised by a scheme for samples of 8 bits ([`Normalization::presumes_8_bits`]): a slide of more bits is none
    /// for this model.
    #[must_use]
    pub fn presumes_8_bits(&self) -> bool {
        self.normalization.iter().any(|scheme| scheme.presumes_8_bits())
    }
}

impl Output {
    /// Number of logit planes for so many classes.
    pub(crate) fn heads(&self, classes: usize) -> usize {
        match self {
            Self::Labels => classes,
            Self::Regions { class_order } => class_order.len(),
        }
    }
}

/// How the logits of a pixel become its value in the mask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", deny_unknown_fields)]
pub enum Output {
    /// One logit per class: the value is the index of the largest, the first of several equal ones.
    #[serde(deserialize_with = "nothing_else")]
    Labels,
    /// One logit per region, regions may overlap: in order, each region whose logit is positive (probability above one half)
    /// sets the value, so that later ones overwrite earlier ones; 0 where none is.
    Regions {
        /// The value that each region sets, one per logit.
        class_order: Vec<u16>,
    },
}

/// The axes of test-time mirroring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirrorAxes {
    /// Spatial axis 0 of nnU-Net, y: rows in reverse order (upside down).
    pub vertical: bool,
    /// Spatial axis 1 of nnU-Net, x: columns in reverse order (left to right).
    pub horizontal: bool,
}

impl MirrorAxes {
    /// No mirroring.
    pub const NONE: Self = Self { vertical: false, horizontal: false };
    /// Both axes, as nnU-Net trains 2D networks by default.
    pub const BOTH: Self = Self { vertical: true, horizontal: true };

    /// The passes in nnU-Net's order: as it is, then the single axes ascending, then both.
    #[must_use]
    pub fn passes(self) -> Vec<Self> {
        let mut passes = vec![Self::NONE];
        if self.vertical {
            passes.push(Self { vertical: true, horizontal: false });
        }
        if self.horizontal {
            passes.push(Self { vertical: false, horizontal: true });
        }
        if self == Self::BOTH {
            passes.push(Self::BOTH);
        }
        passes
    }
}

/// A change of the whole mask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Postprocessing {
    /// Of the pixels that have one of these values, whichever, all become 0 that are not in the largest of their connected components.
    ///
    /// Pixels that share a corner are connected; of several largest components all stay.
    KeepLargest {
        /// Values of the mask, ascending; 0, background, is not among them.
        values: Vec<u16>,
    },
}

/// One clause for people.
impl std::fmt::Display for Postprocessing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::KeepLargest { values } => {
                let names: Vec<String> = values.iter().map(ToString::to_string).collect();
                write!(f, "keep only the largest component of {}", names.join(", "))
            }
        }
    }
}

/// The weights with which overlapping tiles are blended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Window {
    /// nnU-Net's: a Gaussian of one eighth of the tile along each axis, centred on pixel `n / 2`, its smallest value positive.
    Gaussian,
    /// MONAI's: a Gaussian of one eighth of the tile along each axis, symmetric, raised to 0.001 where it is less.
    GaussianMonai,
    /// Every pixel counts the same.
    Constant,
}

/// Where tiles lie. Both rules put the first at the beginning of an axis and the last flush with its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// nnU-Net's: as many tiles as are needed, the steps between them stretched evenly.
    #[default]
    Nnunet,
    /// MONAI's: a tile every `floor(tile * step)` pixels, but for the last.
    Monai,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_come_in_nnunets_order() {
        let axis = |vertical, horizontal| MirrorAxes { vertical, horizontal };
        assert_eq!(MirrorAxes::NONE.passes(), [MirrorAxes::NONE]);
        assert_eq!(axis(false, true).passes(), [MirrorAxes::NONE, axis(false, true)]);
        assert_eq!(
            MirrorAxes::BOTH.passes(),
            [MirrorAxes::NONE, axis(true, false), axis(false, true), MirrorAxes::BOTH]
        );
    }
}
