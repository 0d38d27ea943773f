//! `SegResNet` of MONAI in two dimensions: residual blocks that normalise first, features that double from level to level.
//!
//! Structure and weight names: MONAI 1.6.1, `monai/networks/nets/segresnet.py`, `monai/networks/blocks/segresnet_block.py`.

use microtome_io::Size;
use serde::{Deserialize, Serialize};

use super::layers::{Convolution, check_channels, check_repetitions, check_stages, product};
use super::monai::{Arguments, FRAMEWORK, THREE, TWO, UpsampleMode, double};
use super::{Activation, Constructor, Family, Norm};
use crate::Result;
use crate::arguments::Object;
use crate::network::{Extent, Interpolation, Network, Operation, Source};

/// Parameters of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegResNet {
    /// Input channels.
    pub channels: usize,
    /// Logit planes; without the last convolution as many as `features`.
    pub heads: usize,
    /// Channels of the finest level; each level has twice those of the one before.
    pub features: usize,
    /// Blocks of each level of the encoder, from the finest.
    pub blocks_down: Vec<usize>,
    /// Blocks of each level of the decoder, from the coarsest.
    pub blocks_up: Vec<usize>,
    /// How the decoder doubles.
    pub upsample: UpsampleMode,
    /// Whether normalisation, nonlinearity and a convolution of single pixels come at the end.
    pub last_convolution: bool,
    /// Before each convolution of a block.
    pub norm: Norm,
    /// After each normalisation.
    pub activation: Activation,
}

impl SegResNet {
    /// Channels of a level.
    fn features(&self, level: usize) -> usize {
        self.features << level
    }

    /// `ResBlock`.
    fn block(&self, network: &mut Network, name: &str, channels: usize, at: Source) -> Source {
        let mut inner = at;
        let convolution =
            Convolution { input: channels, output: channels, kernel: THREE, stride: Extent::ONE, bias: false };
        for n in 1..=2 {
            inner = network.normalize(&format!("{name}.norm{n}"), self.norm, channels, inner);
            inner = network.activate(&format!("{name}.act"), self.activation, channels, inner);
            inner = network.convolve(&format!("{name}.conv{n}.conv"), convolution, inner);
        }
        network.push(Operation::Add, &[inner, at])
    }
}

impl Constructor for SegResNet {
    const FRAMEWORK: &'static str = FRAMEWORK;
    const NAME: &'static str = "SegResNet";

    fn construct(arguments: &Object<'_>) -> Result<Self> {
        let known = [
            "init_filters",
            "dropout_prob",
            "act",
            "norm",
            "norm_name",
            "num_groups",
            "use_conv_final",
            "blocks_down",
            "blocks_up",
            "upsample_mode",
        ];
        let arguments = Arguments::new(arguments, &known)?;
        let object = arguments.object();
        let group = |groups| Norm::Group { groups, epsilon: 1e-5, affine: true };
        // An older way to say the same, which goes first.
        let norm = match object.text("norm_name")?.unwrap_or_default() {
            "" => arguments.norm("norm", group(8))?,
            name if name.eq_ignore_ascii_case("group") => group(arguments.count("num_groups", 8)?),
            other => return Err(object.unsupported("norm_name", &format!("is {other}; group is supported"))),
        };
        // Where nothing comes before it, such a nonlinearity is given the very tensor that the shortcut carries.
        if norm == Norm::None && arguments.is_in_place("act", true)? {
            let message = "works in place, as it does by default: without a norm it changes what shortcuts carry, which is not supported";
            return Err(object.unsupported("act", message));
        }
        let features = arguments.count("init_filters", 8)?;
        let last_convolution = arguments.flag("use_conv_final", true)?;
        Ok(Self {
            channels: arguments.count("in_channels", 1)?,
            heads: if last_convolution { arguments.count("out_channels", 2)? } else { features },
            features,
            blocks_down: arguments.counts("blocks_down", &[1, 2, 2, 4])?,
            blocks_up: arguments.counts("blocks_up", &[1, 1, 1])?,
            upsample: arguments.upsample("upsample_mode", UpsampleMode::Nontrainable)?,
            last_convolution,
            norm,
            activation: arguments.activation("act", Activation::LeakyRelu { slope: 0.0 })?,
        })
    }
}

impl Family for SegResNet {
    fn channels(&self) -> usize {
        self.channels
    }

    fn heads(&self) -> usize {
        self.heads
    }

    fn multiple(&self) -> Size {
        product(self.blocks_up.iter().map(|_| &TWO))
    }

    fn check(&self) -> Result<(), String> {
        let levels = self.blocks_down.len();
        check_stages(levels)?;
        if self.blocks_up.len() != levels - 1 {
            let found = self.blocks_up.len();
            return Err(format!("{found} blocks_up for {levels} blocks_down; there must be {}", levels - 1));
        }
        check_repetitions("blocks", self.blocks_down.iter().chain(&self.blocks_up))?;
        check_channels([&self.features])?;
        check_channels([&self.features(levels - 1)])
    }

    fn network(&self) -> Network {
        let mut network = Network::new(self.channels);
        let convolution = |input, output, stride| Convolution { input, output, kernel: THREE, stride, bias: false };
        let first = convolution(self.channels, self.features, Extent::ONE);
        let mut at = network.convolve("convInit.conv", first, Source::Input);
        let mut skips = Vec::with_capacity(self.blocks_down.len());
        for (level, &blocks) in self.blocks_down.iter().enumerate() {
            let name = format!("down_layers.{level}");
            let features = self.features(level);
            if level > 0 {
                at = network.convolve(&format!("{name}.0.conv"), convolution(features / 2, features, TWO), at);
            }
            for block in 1..=blocks {
                at = self.block(&mut network, &format!("{name}.{block}"), features, at);
            }
            skips.push(at);
        }
        skips.pop();
        for (d, (&blocks, (level, skip))) in self.blocks_up.iter().zip((0..skips.len()).zip(skips).rev()).enumerate() {
            let features = self.features(level);
            let fewer = Convolution::pointwise(2 * features, features, false);
            at = network.convolve(&format!("up_samples.{d}.0.conv"), fewer, at);
            let way = (self.upsample, Interpolation::Bilinear);
            at = double(&mut network, &format!("up_samples.{d}.1"), (features, features), way, at);
            at = network.push(Operation::Add, &[at, skip]);
            for block in 0..blocks {
                at = self.block(&mut network, &format!("up_layers.{d}.{block}"), features, at);
            }
        }
        if self.last_convolution {
            at = network.normalize("conv_final.0", self.norm, self.features, at);
            at = network.activate("conv_final.1", self.activation, self.features, at);
            network.convolve("conv_final.2.conv", Convolution::pointwise(self.features, self.heads, true), at);
        }
        network
    }

    /// `act_mod` is another name of the last nonlinearity; the last convolution is there even where it is not used.
    fn is_unused(&self, name: &str) -> bool {
        name.starts_with("act_mod.") || (!self.last_convolution && name.starts_with("conv_final."))
    }
}

impl std::fmt::Display for SegResNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (levels, blocks) = (self.blocks_down.len(), self.blocks_down.iter().chain(&self.blocks_up));
        let blocks = blocks.fold(0, |n: usize, b| n.saturating_add(*b));
        write!(
            f,
            "SegResNet 2D of MONAI, {levels} levels from {} features, {blocks} blocks, {}",
            self.features, self.norm
        )
    }
}
