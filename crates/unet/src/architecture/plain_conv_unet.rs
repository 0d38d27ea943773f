//! `PlainConvUNet` of dynamic-network-architectures, the default network of nnU-Net, in two dimensions.
//!
//! Structure and weight names: dynamic-network-architectures 0.4.4, `architectures/unet.py`,
//! `building_blocks/plain_conv_encoder.py`; what it shares with others is in `unet.rs`.

use microtome_io::Size;
use serde::{Deserialize, Serialize};

use super::unet::{Common, Stages};
use super::{Activation, Family, Norm};
use crate::network::{Extent, Network, Source};

/// Parameters of the network. Lists run from the finest stage to the coarsest, but for `decoder_convolutions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlainConvUnet {
    /// Input channels.
    pub channels: usize,
    /// Logit planes.
    pub heads: usize,
    /// Channels of each stage.
    pub features: Vec<usize>,
    /// Kernel of each stage's convolutions.
    pub kernels: Vec<Extent>,
    /// Stride of each stage's first convolution; the first stage has none.
    pub strides: Vec<Extent>,
    /// Convolutions of each stage of the encoder.
    pub convolutions: Vec<usize>,
    /// Convolutions of each stage of the decoder, from the coarsest to the finest.
    pub decoder_convolutions: Vec<usize>,
    /// Whether convolutions have a bias.
    pub bias: bool,
    /// After each convolution.
    pub norm: Norm,
    /// After each normalisation.
    pub activation: Activation,
    /// Whether the activation comes before the normalisation.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nonlin_first: bool,
}

impl PlainConvUnet {
    fn common(&self) -> Common<'_> {
        Common {
            heads: self.heads,
            features: &self.features,
            kernels: &self.kernels,
            strides: &self.strides,
            decoder_convolutions: &self.decoder_convolutions,
            bias: self.bias,
            norm: self.norm,
            activation: self.activation,
            nonlin_first: self.nonlin_first,
        }
    }
}

impl Family for PlainConvUnet {
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
        self.common().check(("convolutions", &self.convolutions))
    }

    fn network(&self) -> Network {
        let common = self.common();
        let mut network = Network::new(self.channels);
        let mut skips = Vec::with_capacity(self.features.len());
        let mut at = Source::Input;
        let mut input = self.channels;
        for (s, &features) in self.features.iter().enumerate() {
            for j in 0..self.convolutions[s] {
                let stride = if j == 0 { self.strides[s] } else { Extent::ONE };
                let name = format!("encoder.stages.{s}.0.convs.{j}");
                at = common.block(&mut network, &name, (input, features), (self.kernels[s], stride), at);
                input = features;
            }
            skips.push(at);
        }
        common.decode(&mut network, Stages::Plain, skips);
        network
    }

    fn is_unused(&self, name: &str) -> bool {
        Common::is_unused(name)
    }
}

impl std::fmt::Display for PlainConvUnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.common().describe("PlainConvUNet"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Architecture;

    /// Three stages, one of them with a stride along y only.
    pub(crate) fn tiny() -> PlainConvUnet {
        PlainConvUnet {
            channels: 3,
            heads: 2,
            features: vec![4, 6, 8],
            kernels: vec![Extent { height: 3, width: 3 }; 3],
            strides: vec![Extent::ONE, Extent { height: 2, width: 2 }, Extent { height: 2, width: 1 }],
            convolutions: vec![2, 1, 2],
            decoder_convolutions: vec![1, 2],
            bias: true,
            norm: Norm::Instance { epsilon: 1e-5, affine: true },
            activation: Activation::LeakyRelu { slope: 0.01 },
            nonlin_first: false,
        }
    }

    #[test]
    fn weights_are_named_as_nnunet_names_them() {
        let weights = tiny().network().weights();
        let find = |name: &str| weights.iter().find(|w| w.name == name).map(|w| w.shape.clone());
        assert_eq!(find("encoder.stages.1.0.convs.0.conv.weight"), Some(vec![6, 4, 3, 3]));
        assert_eq!(find("encoder.stages.2.0.convs.1.norm.bias"), Some(vec![8]));
        assert_eq!(find("decoder.transpconvs.0.weight"), Some(vec![8, 6, 2, 1]), "the coarsest comes first");
        assert_eq!(find("decoder.stages.1.convs.0.conv.weight"), Some(vec![4, 8, 3, 3]));
        assert_eq!(find("decoder.seg_layers.1.weight"), Some(vec![2, 4, 1, 1]));
        assert_eq!(find("decoder.seg_layers.0.weight"), None, "deep supervision plays no part at inference");
        let mut names: Vec<_> = weights.iter().map(|w| &w.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), weights.len());
    }

    #[test]
    fn the_logits_have_the_size_of_the_tile() {
        let tile = Size::new(16, 24);
        let shapes = tiny().network().shapes(tile);
        assert_eq!(shapes.last().map(|s| (s.channels, s.size)), Some((2, tile)));
    }

    #[test]
    fn impossible_parameters_are_refused_by_name() {
        let tile = Size::new(16, 16);
        assert_eq!(Architecture::PlainConvUnet(tiny()).check(tile), Ok(()));
        let message = |change: fn(&mut PlainConvUnet)| {
            let mut parameters = tiny();
            change(&mut parameters);
            Architecture::PlainConvUnet(parameters).check(tile).unwrap_err()
        };
        assert_eq!(message(|p| p.features.clear()), "0 stages; 1 to 16 are supported");
        assert_eq!(message(|p| p.strides.truncate(2)), "2 strides for 3 stages; there must be 3");
        assert_eq!(message(|p| p.features[1] = 1 << 40), "1099511627776 channels in a layer; 1 to 16384 are supported");
        assert_eq!(message(|p| p.convolutions[0] = 0), "0 convolutions in a stage; 1 to 64 are supported");
        assert_eq!(message(|p| p.kernels[0].width = 4), "a 3x4 kernel; odd kernels up to 31 are supported");
        assert_eq!(message(|p| p.strides[1].width = 0), "a stride of 2x0; 1 to 16 are supported");
        assert_eq!(message(|p| p.strides[0].width = 2), "a stride of 1x2 in the first stage; it must be 1x1");
        assert_eq!(
            Architecture::PlainConvUnet(tiny()).check(Size::new(17, 16)).unwrap_err(),
            "a tile of 17 x 16; with these strides it must be a multiple of 2 x 4"
        );
        assert_eq!(
            message(|p| p.norm = Norm::Instance { epsilon: f64::NAN, affine: true }),
            "a normalisation epsilon of NaN; it must be positive"
        );
        assert!(message(|p| p.features = vec![1 << 14; 3]).contains("parameters; up to"));
    }
}
