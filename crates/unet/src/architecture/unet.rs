//! What the UNets of dynamic-network-architectures have in common: limits, blocks of convolution, normalisation and nonlinearity,
//! and the decoder.
//!
//! Structure and weight names: dynamic-network-architectures 0.4.4, `building_blocks/{simple_conv_blocks,unet_decoder}.py`.

use microtome_io::Size;

use super::{Activation, Norm};
use crate::network::{Affine, Extent, Function, Network, Operation, Source};

/// Larger than any published configuration by far, small enough that no product of them overflows.
const MAX_STAGES: usize = 16;
pub(super) const MAX_CHANNELS: usize = 1 << 14;
const MAX_CONVOLUTIONS: usize = 64;
const MAX_KERNEL: usize = 31;
const MAX_STRIDE: usize = 16;
const MAX_TILE: u64 = 1 << 14;
/// Weights of one fold, in values: 8 GiB as f32.
const MAX_PARAMETERS: u64 = 1 << 31;

/// The parameters that all of them have. Lists run from the finest stage to the coarsest, but for `decoder_convolutions`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Common<'a> {
    pub(super) channels: usize,
    pub(super) heads: usize,
    pub(super) features: &'a [usize],
    pub(super) kernels: &'a [Extent],
    pub(super) strides: &'a [Extent],
    pub(super) decoder_convolutions: &'a [usize],
    pub(super) bias: bool,
    pub(super) norm: Norm,
    pub(super) activation: Activation,
}

impl Common<'_> {
    /// What is wrong with the parameters, for a tile of this size; `encoder` is how many of what each stage of the encoder has.
    /// What the network has in all is the caller's to check, with [`check_network`].
    pub(super) fn check(&self, encoder: (&str, &[usize]), tile: Size) -> Result<(), String> {
        let stages = self.features.len();
        if !(1..=MAX_STAGES).contains(&stages) {
            return Err(format!("{stages} stages; 1 to {MAX_STAGES} are supported"));
        }
        let lists = [
            ("kernels", self.kernels.len(), stages),
            ("strides", self.strides.len(), stages),
            (encoder.0, encoder.1.len(), stages),
            ("decoder_convolutions", self.decoder_convolutions.len(), stages - 1),
        ];
        if let Some((name, found, expected)) = lists.into_iter().find(|(_, found, expected)| found != expected) {
            return Err(format!("{found} {name} for {stages} stages; there must be {expected}"));
        }
        if stages < 2 {
            return Err("a single stage, which leaves no decoder".into());
        }
        let counts = self.features.iter().chain([&self.channels, &self.heads]);
        if let Some(count) = counts.into_iter().find(|c| !(1..=MAX_CHANNELS).contains(*c)) {
            return Err(format!("{count} channels in a layer; 1 to {MAX_CHANNELS} are supported"));
        }
        for (name, counts) in [encoder, ("convolutions", self.decoder_convolutions)] {
            if let Some(count) = counts.iter().find(|c| !(1..=MAX_CONVOLUTIONS).contains(*c)) {
                return Err(format!("{count} {name} in a stage; 1 to {MAX_CONVOLUTIONS} are supported"));
            }
        }
        let even = |k: &&Extent| [k.height, k.width].iter().any(|n| n % 2 == 0 || *n > MAX_KERNEL);
        if let Some(kernel) = self.kernels.iter().find(even) {
            return Err(format!("a {kernel} kernel; odd kernels up to {MAX_KERNEL} are supported"));
        }
        let wild = |s: &&Extent| [s.height, s.width].iter().any(|n| !(1..=MAX_STRIDE).contains(n));
        if let Some(stride) = self.strides.iter().find(wild) {
            return Err(format!("a stride of {stride}; 1 to {MAX_STRIDE} are supported"));
        }
        if self.strides[0] != Extent::ONE {
            return Err(format!("a stride of {} in the first stage; it must be 1x1", self.strides[0]));
        }
        if let Norm::Instance { epsilon, .. } | Norm::Batch { epsilon, .. } = self.norm
            && !(epsilon.is_finite() && epsilon > 0.0)
        {
            return Err(format!("a normalisation epsilon of {epsilon}; it must be positive"));
        }
        if let Activation::LeakyRelu { slope } = self.activation
            && !slope.is_finite()
        {
            return Err(format!("an activation slope of {slope}"));
        }
        if tile.width.max(tile.height) > MAX_TILE {
            return Err(format!("a tile of {tile}; up to {MAX_TILE} pixels along an axis are supported"));
        }
        let product = |of: fn(&Extent) -> usize| self.strides.iter().map(|s| of(s) as u64).fold(1, u64::saturating_mul);
        let divisor = Size::new(product(|s| s.width), product(|s| s.height));
        if tile.is_empty() || !tile.width.is_multiple_of(divisor.width) || !tile.height.is_multiple_of(divisor.height) {
            return Err(format!("a tile of {tile}; with these strides it must be a multiple of {divisor}"));
        }
        Ok(())
    }

    /// `ConvDropoutNormReLU`: convolution, normalisation, nonlinearity (dropout is the identity at inference).
    pub(super) fn block(
        &self,
        network: &mut Network,
        name: &str,
        channels: (usize, usize),
        (kernel, stride): (Extent, Extent),
        at: Source,
    ) -> Source {
        let bias = self.bias.then(|| format!("{name}.conv.bias"));
        let at = self.normalized(network, name, channels, (kernel, stride, bias), at);
        self.activate(network, at)
    }

    /// The same without the nonlinearity, and with a bias of the caller's choice.
    pub(super) fn normalized(
        &self,
        network: &mut Network,
        name: &str,
        (input, output): (usize, usize),
        (kernel, stride, bias): (Extent, Extent, Option<String>),
        at: Source,
    ) -> Source {
        let weight = format!("{name}.conv.weight");
        let at = network.push(Operation::Convolution { weight, bias, input, output, kernel, stride }, &[at]);
        let names = |affine: bool| {
            affine.then(|| Affine { weight: format!("{name}.norm.weight"), bias: format!("{name}.norm.bias") })
        };
        match self.norm {
            Norm::Instance { epsilon, affine } => {
                let norm = Operation::InstanceNorm { affine: names(affine), channels: output, epsilon };
                network.push(norm, &[at])
            }
            Norm::Batch { epsilon, affine } => {
                let norm = Operation::BatchNorm {
                    mean: format!("{name}.norm.running_mean"),
                    variance: format!("{name}.norm.running_var"),
                    affine: names(affine),
                    channels: output,
                    epsilon,
                };
                network.push(norm, &[at])
            }
            Norm::None => at,
        }
    }

    /// The nonlinearity.
    pub(super) fn activate(&self, network: &mut Network, at: Source) -> Source {
        match self.activation {
            Activation::LeakyRelu { slope } => {
                let function = Function::LeakyRelu { slope };
                network.push(Operation::Activation { function }, &[at])
            }
            Activation::None => at,
        }
    }

    /// `UNetDecoder` without deep supervision, given the output of each stage of the encoder: the logits.
    pub(super) fn decode(&self, network: &mut Network, mut skips: Vec<Source>) {
        let Some(mut at) = skips.pop() else { return };
        for (d, (skip, &convolutions)) in skips.into_iter().rev().zip(self.decoder_convolutions).enumerate() {
            let finer = self.features.len() - 2 - d;
            let (below, features) = (self.features[finer + 1], self.features[finer]);
            let up = Operation::Upsampling {
                weight: format!("decoder.transpconvs.{d}.weight"),
                bias: self.bias.then(|| format!("decoder.transpconvs.{d}.bias")),
                input: below,
                output: features,
                stride: self.strides[finer + 1],
            };
            let up = network.push(up, &[at]);
            at = network.push(Operation::Concatenate, &[up, skip]);
            for j in 0..convolutions {
                let name = format!("decoder.stages.{d}.convs.{j}");
                let input = if j == 0 { 2 * features } else { features };
                at = self.block(network, &name, (input, features), (self.kernels[finer], Extent::ONE), at);
            }
        }
        let head = format!("decoder.seg_layers.{}", self.decoder_convolutions.len() - 1);
        let head = Operation::Convolution {
            weight: format!("{head}.weight"),
            bias: Some(format!("{head}.bias")),
            input: self.features[0],
            output: self.heads,
            kernel: Extent::ONE,
            stride: Extent::ONE,
        };
        network.push(head, &[at]);
    }

    /// One line for people.
    pub(super) fn describe(&self, name: &str) -> String {
        let features: Vec<String> = self.features.iter().map(ToString::to_string).collect();
        let norm = match self.norm {
            Norm::Instance { .. } => "instance norm",
            Norm::Batch { .. } => "batch norm",
            Norm::None => "no normalisation",
        };
        format!("{name} 2D, {} stages of {} features, {norm}", self.features.len(), features.join(", "))
    }
}

/// What is wrong with a network as a whole, whose parameters are right.
pub(super) fn check_network(network: &Network) -> Result<(), String> {
    let parameters = network.parameters();
    if parameters > MAX_PARAMETERS {
        return Err(format!("{parameters} parameters; up to {MAX_PARAMETERS} are supported"));
    }
    Ok(())
}
