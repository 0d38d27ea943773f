//! Residual blocks of dynamic-network-architectures, and the encoder that consists of them.
//!
//! Structure and weight names: dynamic-network-architectures 0.4.4, `building_blocks/{residual,residual_encoders}.py`.

use super::layers::check_channels;
use super::unet::Common;
use crate::network::{Extent, Network, Operation, Padding, Source};

impl Common<'_> {
    /// `BasicBlockD`: two convolutions, added to a shortcut.
    pub(super) fn basic_block(
        &self,
        network: &mut Network,
        name: &str,
        (input, output): (usize, usize),
        (kernel, stride): (Extent, Extent),
        at: Source,
    ) -> Source {
        let shortcut = self.shortcut(network, name, (input, output), stride, at);
        let first = self.block(network, &format!("{name}.conv1"), (input, output), (kernel, stride), at);
        let second = (kernel, Extent::ONE, self.bias);
        let second = self.normalized(network, &format!("{name}.conv2"), (output, output), second, first);
        let sum = network.push(Operation::Add, &[second, shortcut]);
        network.activate(&format!("{name}.nonlin2"), self.activation, output, sum)
    }

    /// `BottleneckD`: a convolution between two of single pixels, which narrow and widen, added to a shortcut.
    fn bottleneck(
        &self,
        network: &mut Network,
        name: &str,
        (input, narrow, output): (usize, usize, usize),
        (kernel, stride): (Extent, Extent),
        at: Source,
    ) -> Source {
        let shortcut = self.shortcut(network, name, (input, output), stride, at);
        let one = (Extent::ONE, Extent::ONE);
        let first = self.block(network, &format!("{name}.conv1"), (input, narrow), one, at);
        let second = self.block(network, &format!("{name}.conv2"), (narrow, narrow), (kernel, stride), first);
        let third = (Extent::ONE, Extent::ONE, self.bias);
        let third = self.normalized(network, &format!("{name}.conv3"), (narrow, output), third, second);
        let sum = network.push(Operation::Add, &[third, shortcut]);
        network.activate(&format!("{name}.nonlin3"), self.activation, output, sum)
    }

    /// Pools where the block strides, and projects where it changes the channels.
    fn shortcut(
        &self,
        network: &mut Network,
        name: &str,
        channels: (usize, usize),
        stride: Extent,
        mut at: Source,
    ) -> Source {
        let mut place = 0;
        if stride != Extent::ONE {
            at = network.push(Operation::AveragePool { kernel: stride, stride, before: Padding::default() }, &[at]);
            place += 1;
        }
        if channels.0 != channels.1 {
            let one = (Extent::ONE, Extent::ONE, false);
            at = self.normalized(network, &format!("{name}.skip.{place}"), channels, one, at);
        }
        at
    }
}

/// `ResidualEncoder` with its stem.
#[derive(Debug, Clone, Copy)]
pub(super) struct ResidualEncoder<'a> {
    pub(super) common: Common<'a>,
    pub(super) channels: usize,
    pub(super) stem: usize,
    pub(super) blocks: &'a [usize],
    pub(super) bottlenecks: Option<&'a [Vec<usize>]>,
}

impl ResidualEncoder<'_> {
    /// What is wrong with the parameters.
    pub(super) fn check(&self) -> Result<(), String> {
        self.common.check(("blocks", self.blocks))?;
        check_channels([&self.stem])?;
        let Some(bottlenecks) = self.bottlenecks else { return Ok(()) };
        let stages = self.blocks.len();
        if bottlenecks.len() != stages {
            return Err(format!("{} bottlenecks for {stages} stages; there must be {stages}", bottlenecks.len()));
        }
        for (narrow, &blocks) in bottlenecks.iter().zip(self.blocks) {
            if narrow.len() != blocks {
                let found = narrow.len();
                return Err(format!("{found} bottlenecks for the {blocks} blocks of a stage; there must be as many"));
            }
            check_channels(narrow)?;
        }
        Ok(())
    }

    /// The output of each stage.
    pub(super) fn encode(&self, network: &mut Network) -> Vec<Source> {
        let common = &self.common;
        let kernel = (common.kernels[0], Extent::ONE);
        let mut at = common.block(network, "encoder.stem.convs.0", (self.channels, self.stem), kernel, Source::Input);
        let mut input = self.stem;
        let mut skips = Vec::with_capacity(common.features.len());
        for (s, &features) in common.features.iter().enumerate() {
            for j in 0..self.blocks[s] {
                let kernel = (common.kernels[s], if j == 0 { common.strides[s] } else { Extent::ONE });
                let name = format!("encoder.stages.{s}.blocks.{j}");
                at = match self.bottlenecks {
                    None => common.basic_block(network, &name, (input, features), kernel, at),
                    Some(narrow) => common.bottleneck(network, &name, (input, narrow[s][j], features), kernel, at),
                };
                input = features;
            }
            skips.push(at);
        }
        skips
    }
}
