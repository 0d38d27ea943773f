//! `DynUNet` of MONAI in two dimensions: nnU-Net's networks in MONAI's words.
//!
//! Structure and weight names: MONAI 1.6.1, `monai/networks/nets/dynunet.py`, `monai/networks/blocks/dynunet_block.py`.

use microtome_io::Size;
use serde::{Deserialize, Serialize};

use super::layers::{Convolution, check_channels, check_stages, product};
use super::monai::{Arguments, FRAMEWORK};
use super::{Activation, Constructor, Family, Norm};
use crate::Result;
use crate::arguments::Object;
use crate::network::{Extent, Network, Operation, Source};

/// Parameters of the network. Lists run from the finest stage to the coarsest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynUnet {
    /// Input channels.
    pub channels: usize,
    /// Logit planes.
    pub heads: usize,
    /// Channels of each stage.
    pub features: Vec<usize>,
    /// Kernel of each stage's convolutions.
    pub kernels: Vec<Extent>,
    /// Stride of each stage's first convolution, 1 or 2 along both axes.
    pub strides: Vec<Extent>,
    /// Kernel and stride of the transposed convolutions, one less than stages.
    pub upsample: Vec<Extent>,
    /// Whether blocks of the encoder have shortcuts.
    pub residual: bool,
    /// Whether transposed convolutions have a bias; other convolutions have none, but for the last.
    pub upsample_bias: bool,
    /// After each convolution.
    pub norm: Norm,
    /// After each normalisation, or after the sum with the shortcut.
    pub activation: Activation,
}

impl DynUnet {
    /// `UnetBasicBlock`, or with a shortcut `UnetResBlock`.
    fn block(
        &self,
        network: &mut Network,
        name: &str,
        (input, output): (usize, usize),
        (kernel, stride, residual): (Extent, Extent, bool),
        at: Source,
    ) -> Source {
        // One module serves both nonlinearities.
        let activate =
            |network: &mut Network, at| network.activate(&format!("{name}.lrelu"), self.activation, output, at);
        let normalized = |network: &mut Network, n: usize, convolution: Convolution, at: Source| {
            let at = network.convolve(&format!("{name}.conv{n}.conv"), convolution, at);
            network.normalize(&format!("{name}.norm{n}"), self.norm, output, at)
        };
        let first = Convolution { input, output, kernel, stride, bias: false };
        let mut inner = normalized(network, 1, first, at);
        inner = activate(network, inner);
        inner = normalized(network, 2, Convolution { input: output, stride: Extent::ONE, ..first }, inner);
        if residual {
            let projects = input != output || stride != Extent::ONE;
            let projection = Convolution { kernel: Extent::ONE, ..first };
            let shortcut = if projects { normalized(network, 3, projection, at) } else { at };
            inner = network.push(Operation::Add, &[inner, shortcut]);
        }
        activate(network, inner)
    }
}

impl Constructor for DynUnet {
    const FRAMEWORK: &'static str = FRAMEWORK;
    const NAME: &'static str = "DynUNet";

    fn construct(arguments: &Object<'_>) -> Result<Self> {
        let known = [
            "kernel_size",
            "strides",
            "upsample_kernel_size",
            "filters",
            "dropout",
            "norm_name",
            "act_name",
            "deep_supervision",
            "deep_supr_num",
            "res_block",
            "trans_bias",
        ];
        let arguments = Arguments::new(arguments, &known)?;
        let object = arguments.object();
        let strides = arguments.extents("strides")?;
        let stages = strides.len();
        check_stages(stages).map_err(|message| object.wrong("strides", &format!("are {message}")))?;
        let default: Vec<usize> = (0..stages).map(|s| 512.min(1 << (5 + s))).collect();
        let mut features = arguments.counts("filters", &default)?;
        if features.len() < stages {
            let message = format!("are {} for {stages} strides; there must be no less", features.len());
            return Err(object.wrong("filters", &message));
        }
        features.truncate(stages);
        Ok(Self {
            channels: object.count("in_channels")?,
            heads: object.count("out_channels")?,
            features,
            kernels: arguments.extents("kernel_size")?,
            strides,
            upsample: arguments.extents("upsample_kernel_size")?,
            residual: arguments.flag("res_block", false)?,
            upsample_bias: arguments.flag("trans_bias", false)?,
            norm: arguments.norm("norm_name", Norm::Instance { epsilon: 1e-5, affine: true })?,
            activation: arguments.activation("act_name", Activation::LeakyRelu { slope: 0.01 })?,
        })
    }

    fn transpose(&mut self) {
        let lists = [&mut self.kernels, &mut self.strides, &mut self.upsample];
        lists.into_iter().flatten().for_each(|e| *e = e.transposed());
    }
}

impl Family for DynUnet {
    fn channels(&self) -> usize {
        self.channels
    }

    fn heads(&self) -> usize {
        self.heads
    }

    fn multiple(&self) -> Size {
        product(self.strides.iter())
    }

    fn check(&self) -> Result<(), String> {
        let stages = self.features.len();
        check_stages(stages)?;
        if stages < 3 {
            return Err(format!("{stages} stages; there must be 3"));
        }
        let lists = [
            ("kernels", self.kernels.len(), stages),
            ("strides", self.strides.len(), stages),
            ("kernels of transposed convolutions", self.upsample.len(), stages - 1),
        ];
        if let Some((name, found, expected)) = lists.into_iter().find(|(_, found, expected)| found != expected) {
            return Err(format!("{found} {name} for {stages} stages; there must be {expected}"));
        }
        // MONAI pads by (kernel - stride + 1) / 2, rounded down: (kernel - 1) / 2 for these strides and no others.
        let odd = |s: &&Extent| !(1..=2).contains(&s.height) || !(1..=2).contains(&s.width);
        if let Some(stride) = self.strides.iter().find(odd) {
            return Err(format!("a stride of {stride}; 1 and 2 are supported"));
        }
        check_channels(&self.features)
    }

    fn network(&self) -> Network {
        let mut network = Network::new(self.channels);
        let coarsest = self.features.len() - 1;
        let (mut at, mut input) = (Source::Input, self.channels);
        let mut skips = Vec::with_capacity(coarsest);
        for (s, &output) in self.features.iter().enumerate() {
            let name = match s {
                0 => "input_block".to_owned(),
                s if s == coarsest => "bottleneck".to_owned(),
                s => format!("downsamples.{}", s - 1),
            };
            let shape = (self.kernels[s], self.strides[s], self.residual);
            at = self.block(&mut network, &name, (input, output), shape, at);
            input = output;
            skips.push(at);
        }
        skips.pop();
        for (d, (s, skip)) in (0..coarsest).zip(skips).rev().enumerate() {
            let (below, features) = (self.features[s + 1], self.features[s]);
            let name = format!("upsamples.{d}");
            let up = format!("{name}.transp_conv.conv");
            at = network.expand(&up, (below, features), self.upsample[s], self.upsample_bias, at);
            at = network.push(Operation::Concatenate, &[at, skip]);
            let shape = (self.kernels[s + 1], Extent::ONE, false);
            at = self.block(&mut network, &format!("{name}.conv_block"), (2 * features, features), shape, at);
        }
        network.convolve("output_block.conv.conv", Convolution::pointwise(self.features[0], self.heads, true), at);
        network
    }

    /// `skip_layers` holds every tensor a second time; the heads of deep supervision are trained and left alone at inference.
    fn is_unused(&self, name: &str) -> bool {
        name.starts_with("skip_layers.") || name.starts_with("deep_supervision_heads.")
    }
}

impl std::fmt::Display for DynUnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let features: Vec<String> = self.features.iter().map(ToString::to_string).collect();
        let shortcuts = if self.residual { " with shortcuts" } else { "" };
        let stages = features.len();
        write!(f, "DynUNet 2D of MONAI, {stages} stages of {} features{shortcuts}, {}", features.join(", "), self.norm)
    }
}
