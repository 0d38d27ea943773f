//! `BasicUNet` of MONAI in two dimensions: max pooling down, five levels.
//!
//! Structure and weight names: MONAI 1.6.1, `monai/networks/nets/basic_unet.py`.

use microtome_io::Size;
use serde::{Deserialize, Serialize};

use super::layers::{Convolution, check_channels};
use super::monai::{Adn, Arguments, FRAMEWORK, THREE, TWO, UpsampleMode, double};
use super::{Activation, Constructor, Family, Norm};
use crate::Result;
use crate::arguments::Object;
use crate::network::{Extent, Interpolation, Network, Operation, Padding, Source};

/// Parameters of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BasicUnet {
    /// Input channels.
    pub channels: usize,
    /// Logit planes.
    pub heads: usize,
    /// Channels of the five levels from the finest to the coarsest, and of what comes before the logits.
    pub features: [usize; 6],
    /// Whether convolutions of 3 x 3 pixels have a bias; all others have one.
    pub bias: bool,
    /// How the decoder doubles.
    pub upsample: UpsampleMode,
    /// After each convolution.
    pub norm: Norm,
    /// After each normalisation.
    pub activation: Activation,
}

impl BasicUnet {
    /// `TwoConv`.
    fn twice(&self, network: &mut Network, name: &str, (input, output): (usize, usize), at: Source) -> Source {
        let adn = Adn { norm: self.norm, activation: self.activation, activation_first: false };
        let convolution = Convolution { input, output, kernel: THREE, stride: Extent::ONE, bias: self.bias };
        let at = adn.convolve(network, &format!("{name}.conv_0"), convolution, at);
        adn.convolve(network, &format!("{name}.conv_1"), Convolution { input: output, ..convolution }, at)
    }
}

impl Constructor for BasicUnet {
    const FRAMEWORK: &'static str = FRAMEWORK;
    const NAME: &'static str = "BasicUNet";

    fn construct(arguments: &Object<'_>) -> Result<Self> {
        let known = ["features", "act", "norm", "bias", "dropout", "upsample"];
        let arguments = Arguments::new(arguments, &known)?;
        let features = arguments.counts("features", &[32, 32, 64, 128, 256, 32])?;
        let features = <[usize; 6]>::try_from(features)
            .map_err(|f| arguments.object().wrong("features", &format!("are {}; there must be 6", f.len())))?;
        Ok(Self {
            channels: arguments.count("in_channels", 1)?,
            heads: arguments.count("out_channels", 2)?,
            features,
            bias: arguments.flag("bias", true)?,
            upsample: arguments.upsample("upsample", UpsampleMode::Deconv)?,
            norm: arguments.norm("norm", Norm::Instance { epsilon: 1e-5, affine: true })?,
            activation: arguments.activation("act", Activation::LeakyRelu { slope: 0.1 })?,
        })
    }
}

impl Family for BasicUnet {
    fn channels(&self) -> usize {
        self.channels
    }

    fn heads(&self) -> usize {
        self.heads
    }

    fn multiple(&self) -> Size {
        Size::new(16, 16)
    }

    fn check(&self) -> Result<(), String> {
        check_channels(&self.features)
    }

    fn network(&self) -> Network {
        let f = self.features;
        let mut network = Network::new(self.channels);
        let mut at = self.twice(&mut network, "conv_0", (self.channels, f[0]), Source::Input);
        let mut skips = vec![at];
        for level in 1..5 {
            let pool = Operation::MaxPool { kernel: TWO, stride: TWO, padding: Padding::default() };
            at = network.push(pool, &[at]);
            at = self.twice(&mut network, &format!("down_{level}.convs"), (f[level - 1], f[level]), at);
            skips.push(at);
        }
        skips.pop();
        for (level, skip) in (1..5).rev().zip(skips.into_iter().rev()) {
            // The finest level keeps its channels, and makes as many as are wanted at the end.
            let (up, output) = if level == 1 { (f[1], f[5]) } else { (f[level] / 2, f[level - 1]) };
            let name = format!("upcat_{level}");
            let way = (self.upsample, Interpolation::BilinearCorners);
            at = double(&mut network, &format!("{name}.upsample"), (f[level], up), way, at);
            at = network.push(Operation::Concatenate, &[skip, at]);
            at = self.twice(&mut network, &format!("{name}.convs"), (f[level - 1] + up, output), at);
        }
        network.convolve("final_conv", Convolution::pointwise(f[5], self.heads, true), at);
        network
    }
}

impl std::fmt::Display for BasicUnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let features = self.features.map(|n| n.to_string()).join(", ");
        write!(f, "BasicUNet 2D of MONAI, {features} features, {}", self.norm)
    }
}
