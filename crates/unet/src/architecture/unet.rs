//! What the UNets of dynamic-network-architectures have in common: limits, blocks of convolution, normalisation and nonlinearity,
//! and the decoder.
//!
//! Structure and weight names: dynamic-network-architectures 0.4.4,
//! `building_blocks/{simple_conv_blocks,unet_decoder,unet_residual_decoder}.py`; residual blocks are in `residual.rs`.

use microtome_io::Size;

use super::layers::{Convolution, check_channels, check_repetitions, check_stages, product};
use super::{Activation, Norm};
use crate::network::{Extent, Network, Operation, Source};

/// The parameters that all of them have. Lists run from the finest stage to the coarsest, but for `decoder_convolutions`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Common<'a> {
    pub(super) heads: usize,
    pub(super) features: &'a [usize],
    pub(super) kernels: &'a [Extent],
    pub(super) strides: &'a [Extent],
    pub(super) decoder_convolutions: &'a [usize],
    pub(super) bias: bool,
    pub(super) norm: Norm,
    pub(super) activation: Activation,
    /// Whether the nonlinearity comes before the normalisation.
    pub(super) nonlin_first: bool,
}

/// What the stages of a decoder consist of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stages {
    /// Convolutions, each with normalisation and nonlinearity.
    Plain,
    /// Residual blocks, basic ones whatever those of the encoder are.
    Residual,
}

impl Common<'_> {
    /// What is wrong with the parameters; `encoder` is how many of what each stage of the encoder has.
    pub(super) fn check(&self, encoder: (&str, &[usize])) -> Result<(), String> {
        let stages = self.features.len();
        check_stages(stages)?;
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
        check_channels(self.features)?;
        check_repetitions(encoder.0, encoder.1)?;
        check_repetitions("convolutions", self.decoder_convolutions)?;
        if self.strides[0] != Extent::ONE {
            return Err(format!("a stride of {} in the first stage; it must be 1x1", self.strides[0]));
        }
        Ok(())
    }

    /// What a tile must be a multiple of.
    pub(super) fn multiple(&self) -> Size {
        product(self.strides.iter())
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
        let nonlin = format!("{name}.nonlin");
        if !self.nonlin_first {
            let at = self.normalized(network, name, channels, (kernel, stride, self.bias), at);
            return network.activate(&nonlin, self.activation, channels.1, at);
        }
        let (input, output) = channels;
        let convolution = Convolution { input, output, kernel, stride, bias: self.bias };
        let at = network.convolve(&format!("{name}.conv"), convolution, at);
        let at = network.activate(&nonlin, self.activation, output, at);
        network.normalize(&format!("{name}.norm"), self.norm, output, at)
    }

    /// The same without the nonlinearity, and with a bias or without one.
    pub(super) fn normalized(
        &self,
        network: &mut Network,
        name: &str,
        (input, output): (usize, usize),
        (kernel, stride, bias): (Extent, Extent, bool),
        at: Source,
    ) -> Source {
        let convolution = Convolution { input, output, kernel, stride, bias };
        let at = network.convolve(&format!("{name}.conv"), convolution, at);
        network.normalize(&format!("{name}.norm"), self.norm, output, at)
    }

    /// `UNetDecoder` or `UNetResDecoder` without deep supervision, given the output of each stage of the encoder: the logits.
    pub(super) fn decode(&self, network: &mut Network, stages: Stages, mut skips: Vec<Source>) {
        let Some(mut at) = skips.pop() else { return };
        for (d, (skip, &convolutions)) in skips.into_iter().rev().zip(self.decoder_convolutions).enumerate() {
            let finer = self.features.len() - 2 - d;
            let (below, features) = (self.features[finer + 1], self.features[finer]);
            let name = format!("decoder.transpconvs.{d}");
            let up = network.expand(&name, (below, features), self.strides[finer + 1], self.bias, at);
            at = network.push(Operation::Concatenate, &[up, skip]);
            for j in 0..convolutions {
                let channels = (if j == 0 { 2 * features } else { features }, features);
                let kernel = (self.kernels[finer], Extent::ONE);
                at = match stages {
                    Stages::Plain => {
                        self.block(network, &format!("decoder.stages.{d}.convs.{j}"), channels, kernel, at)
                    }
                    Stages::Residual => {
                        self.basic_block(network, &format!("decoder.stages.{d}.blocks.{j}"), channels, kernel, at)
                    }
                };
            }
        }
        let head = format!("decoder.seg_layers.{}", self.decoder_convolutions.len() - 1);
        network.convolve(&head, Convolution::pointwise(self.features[0], self.heads, true), at);
    }

    /// True for the second names under which the same tensors are saved, and for heads of deep supervision, which are trained with the
    /// network and left alone at inference.
    pub(super) fn is_unused(name: &str) -> bool {
        name.contains(".all_modules.")
            || name.starts_with("decoder.encoder.")
            || name.starts_with("decoder.seg_layers.")
    }

    /// One line for people.
    pub(super) fn describe(&self, name: &str) -> String {
        let features: Vec<String> = self.features.iter().map(ToString::to_string).collect();
        format!("{name} 2D, {} stages of {} features, {}", self.features.len(), features.join(", "), self.norm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_names_are_recognised() {
        assert!(!Common::is_unused("encoder.stages.0.0.convs.0.conv.weight"));
        assert!(Common::is_unused("encoder.stages.0.0.convs.0.all_modules.0.weight"));
        assert!(Common::is_unused("decoder.encoder.stages.0.0.convs.0.conv.weight"));
        assert!(Common::is_unused("decoder.seg_layers.0.weight"));
    }
}
