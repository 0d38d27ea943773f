//! `ResidualEncoderUNet` of dynamic-network-architectures, the network of nnU-Net's presets ResEnc M, L and XL, in two dimensions.
//!
//! Structure and weight names: dynamic-network-architectures 0.4.4, `architectures/unet.py`,
//! `building_blocks/residual_encoders.py`; what it shares with others is in `unet.rs` and `residual.rs`.

use microtome_io::Size;
use serde::{Deserialize, Serialize};

use super::residual::ResidualEncoder;
use super::unet::{Common, Stages};
use super::{Activation, Family, Norm};
use crate::network::{Extent, Network};

/// Parameters of the network. Lists run from the finest stage to the coarsest, but for `decoder_convolutions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResidualEncoderUnet {
    /// Input channels.
    pub channels: usize,
    /// Logit planes.
    pub heads: usize,
    /// Channels of the convolution before the first stage.
    pub stem: usize,
    /// Channels of each stage.
    pub features: Vec<usize>,
    /// Kernel of each stage's convolutions, but for those of shortcuts and bottlenecks.
    pub kernels: Vec<Extent>,
    /// Stride of each stage's first block; the first stage has none.
    pub strides: Vec<Extent>,
    /// Residual blocks of each stage of the encoder.
    pub blocks: Vec<usize>,
    /// Channels in each block of each stage of the encoder between a convolution of single pixels that narrows and one that widens, if
    /// its blocks are such bottlenecks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bottlenecks: Option<Vec<Vec<usize>>>,
    /// Convolutions of each stage of the decoder, from the coarsest to the finest.
    pub decoder_convolutions: Vec<usize>,
    /// Whether convolutions have a bias; those of shortcuts have none.
    pub bias: bool,
    /// After each convolution.
    pub norm: Norm,
    /// After each normalisation, or after the sum with the shortcut.
    pub activation: Activation,
}

impl ResidualEncoderUnet {
    pub(super) fn common(&self) -> Common<'_> {
        Common {
            heads: self.heads,
            features: &self.features,
            kernels: &self.kernels,
            strides: &self.strides,
            decoder_convolutions: &self.decoder_convolutions,
            bias: self.bias,
            norm: self.norm,
            activation: self.activation,
            nonlin_first: false,
        }
    }

    pub(super) fn encoder(&self) -> ResidualEncoder<'_> {
        ResidualEncoder {
            common: self.common(),
            channels: self.channels,
            stem: self.stem,
            blocks: &self.blocks,
            bottlenecks: self.bottlenecks.as_deref(),
        }
    }
}

impl Family for ResidualEncoderUnet {
    fn channels(&self) -> usize {
        self.channels
    }

    fn heads(&self) -> usize {
        self.heads
    }

    fn multiple(&self) -> Size {
        self.common().multiple()
    }

    fn check(&self) -> Result<(), String> {
        self.encoder().check()
    }

    fn network(&self) -> Network {
        let mut network = Network::new(self.channels);
        let skips = self.encoder().encode(&mut network);
        self.common().decode(&mut network, Stages::Plain, skips);
        network
    }

    fn is_unused(&self, name: &str) -> bool {
        Common::is_unused(name)
    }
}

impl std::fmt::Display for ResidualEncoderUnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.common().describe("ResidualEncoderUNet"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Architecture;

    /// Three stages: blocks with a stride and a projection, with a stride alone, with a projection alone, and with neither.
    pub(crate) fn tiny() -> ResidualEncoderUnet {
        ResidualEncoderUnet {
            channels: 3,
            heads: 2,
            stem: 4,
            features: vec![6, 8, 8],
            kernels: vec![Extent { height: 3, width: 3 }; 3],
            strides: vec![Extent::ONE, Extent { height: 2, width: 2 }, Extent { height: 2, width: 1 }],
            blocks: vec![1, 2, 2],
            bottlenecks: None,
            decoder_convolutions: vec![1, 1],
            bias: true,
            norm: Norm::Instance { epsilon: 1e-5, affine: true },
            activation: Activation::LeakyRelu { slope: 0.01 },
        }
    }

    #[test]
    fn weights_are_named_as_nnunet_names_them() {
        let weights = tiny().network().weights();
        let find = |name: &str| weights.iter().find(|w| w.name == name).map(|w| w.shape.clone());
        assert_eq!(find("encoder.stem.convs.0.conv.weight"), Some(vec![4, 3, 3, 3]));
        assert_eq!(find("encoder.stages.0.blocks.0.skip.0.conv.weight"), Some(vec![6, 4, 1, 1]), "projects, no stride");
        assert_eq!(find("encoder.stages.1.blocks.0.skip.1.norm.bias"), Some(vec![8]), "projects behind the pool");
        assert_eq!(find("encoder.stages.1.blocks.0.skip.1.conv.bias"), None);
        assert!(!weights.iter().any(|w| w.name.contains("stages.2.blocks.0.skip")), "pools only");
        assert_eq!(find("encoder.stages.2.blocks.1.conv2.conv.bias"), Some(vec![8]));
        assert_eq!(find("decoder.stages.1.convs.0.conv.weight"), Some(vec![6, 12, 3, 3]));
    }

    #[test]
    fn the_logits_have_the_size_of_the_tile() {
        let tile = Size::new(16, 24);
        let shapes = tiny().network().shapes(tile);
        assert_eq!(shapes.last().map(|s| (s.channels, s.size)), Some((2, tile)));
    }

    #[test]
    fn impossible_parameters_are_refused_by_name() {
        let message = |change: fn(&mut ResidualEncoderUnet)| {
            let mut parameters = tiny();
            change(&mut parameters);
            Architecture::ResidualEncoderUnet(parameters).check(Size::new(16, 16)).unwrap_err()
        };
        assert_eq!(Architecture::ResidualEncoderUnet(tiny()).check(Size::new(16, 16)), Ok(()));
        assert_eq!(message(|p| p.blocks[1] = 0), "0 blocks in a stage; 1 to 64 are supported");
        assert_eq!(message(|p| p.blocks.truncate(1)), "1 blocks for 3 stages; there must be 3");
        assert_eq!(message(|p| p.stem = 1 << 20), "1048576 channels in a layer; 1 to 16384 are supported");
        assert_eq!(message(|p| p.bottlenecks = Some(vec![vec![2]])), "1 bottlenecks for 3 stages; there must be 3");
        assert_eq!(
            message(|p| p.bottlenecks = Some(vec![vec![2], vec![2], vec![2, 2]])),
            "1 bottlenecks for the 2 blocks of a stage; there must be as many"
        );
        assert_eq!(
            message(|p| p.bottlenecks = Some(vec![vec![2], vec![2, 0], vec![2, 2]])),
            "0 channels in a layer; 1 to 16384 are supported"
        );
        assert!(message(|p| (p.stem, p.features) = (1 << 14, vec![1 << 14; 3])).contains("parameters; up to"));
    }
}
