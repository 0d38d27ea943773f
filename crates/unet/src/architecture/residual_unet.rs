//! `ResidualUNet` of dynamic-network-architectures in two dimensions: `ResidualEncoderUNet` with residual blocks in the decoder too.
//!
//! Structure and weight names: dynamic-network-architectures 0.4.4, `architectures/unet.py`; what it shares with others is in `unet.rs`
//! and `residual.rs`.

use microtome_io::Size;
use serde::{Deserialize, Serialize};

use super::unet::{Common, Stages};
use super::{Family, ResidualEncoderUnet};
use crate::network::Network;

/// The parameters are those of the other network, but `decoder_convolutions` counts residual blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ResidualUnet(pub ResidualEncoderUnet);

impl Family for ResidualUnet {
    fn channels(&self) -> usize {
        self.0.channels
    }

    fn heads(&self) -> usize {
        self.0.heads
    }

    fn multiple(&self) -> Size {
        self.0.multiple()
    }

    fn check(&self) -> Result<(), String> {
        self.0.check()
    }

    fn network(&self) -> Network {
        let mut network = Network::new(self.0.channels);
        let skips = self.0.encoder().encode(&mut network);
        self.0.common().decode(&mut network, Stages::Residual, skips);
        network
    }

    fn is_unused(&self, name: &str) -> bool {
        Common::is_unused(name)
    }
}

impl std::fmt::Display for ResidualUnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.common().describe("ResidualUNet"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Architecture;
    use crate::architecture::{Activation, residual_tests};

    fn tiny() -> ResidualUnet {
        ResidualUnet(ResidualEncoderUnet {
            bottlenecks: Some(vec![vec![2], vec![3, 2], vec![3, 3]]),
            activation: Activation::PRelu { per_channel: false },
            ..residual_tests::tiny()
        })
    }

    #[test]
    fn weights_are_named_as_nnunet_names_them() {
        let weights = tiny().network().weights();
        let find = |name: &str| weights.iter().find(|w| w.name == name).map(|w| w.shape.clone());
        assert_eq!(find("encoder.stages.1.blocks.0.conv1.conv.weight"), Some(vec![3, 6, 1, 1]));
        assert_eq!(find("encoder.stages.1.blocks.0.conv2.conv.weight"), Some(vec![3, 3, 3, 3]));
        assert_eq!(find("encoder.stages.1.blocks.1.conv3.conv.weight"), Some(vec![8, 2, 1, 1]));
        assert_eq!(find("encoder.stages.1.blocks.1.nonlin3.weight"), Some(vec![1]));
        assert_eq!(find("encoder.stages.1.blocks.0.conv3.nonlin.weight"), None, "the sum is what is activated");
        assert_eq!(find("decoder.stages.1.blocks.0.conv1.conv.weight"), Some(vec![6, 12, 3, 3]));
        assert_eq!(find("decoder.stages.1.blocks.0.skip.0.conv.weight"), Some(vec![6, 12, 1, 1]));
        assert_eq!(find("decoder.stages.1.blocks.0.nonlin2.weight"), Some(vec![1]), "no bottlenecks in the decoder");
    }

    #[test]
    fn parameters_survive_a_file() {
        let tile = Size::new(16, 24);
        let architecture = Architecture::ResidualUnet(tiny());
        assert_eq!(architecture.check(tile), Ok(()));
        let text = toml::to_string(&architecture).unwrap();
        assert!(text.starts_with("kind = \"residual-unet\"\n"), "{text}");
        assert_eq!(toml::from_str::<Architecture>(&text).unwrap(), architecture);
        assert_eq!(architecture.network().shapes(tile).last().map(|s| (s.channels, s.size)), Some((2, tile)));
    }
}
