//! What families build their networks with: the modules of PyTorch, by the names that they have in a state dict.

use microtome_io::Size;

use super::{Activation, Norm};
use crate::network::{Affine, Extent, Function, Network, Operation, Padding, Source};

/// Larger than any published configuration by far, small enough that no product of them overflows.
pub(super) const MAX_STAGES: usize = 16;
/// Convolutions, blocks or other repetitions in one stage.
pub(super) const MAX_REPETITIONS: usize = 64;
const MAX_CHANNELS: usize = 1 << 14;
const MAX_TILE: u64 = 1 << 14;

/// A convolution: its channels, its kernel and the distance between the kernel's positions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Convolution {
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) kernel: Extent,
    pub(super) stride: Extent,
    pub(super) bias: bool,
}

impl Convolution {
    /// A convolution of single pixels.
    pub(super) const fn pointwise(input: usize, output: usize, bias: bool) -> Self {
        Self { input, output, kernel: Extent::ONE, stride: Extent::ONE, bias }
    }
}

/// A transposed convolution that makes its input `stride` times larger.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expansion {
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) kernel: Extent,
    pub(super) stride: Extent,
    /// The module's `output_padding` follows: `2 * padding + stride - kernel`, which must not be negative and is smaller than the stride.
    pub(super) padding: Padding,
    pub(super) bias: bool,
}

/// Each appends what a module does and returns where its output is read from. `name` is the module's in the state dict.
impl Network {
    /// `Conv2d` with zero padding `(k - 1) / 2`.
    pub(super) fn convolve(&mut self, name: &str, convolution: Convolution, at: Source) -> Source {
        let Convolution { input, output, kernel, stride, bias } = convolution;
        let weight = format!("{name}.weight");
        let bias = bias.then(|| format!("{name}.bias"));
        self.push(Operation::Convolution { weight, bias, input, output, kernel, stride }, &[at])
    }

    /// `ConvTranspose2d` whose kernel is its stride.
    pub(super) fn expand(
        &mut self,
        name: &str,
        (input, output): (usize, usize),
        stride: Extent,
        bias: bool,
        at: Source,
    ) -> Source {
        let padding = Padding::default();
        self.expand_with(name, Expansion { input, output, kernel: stride, stride, padding, bias }, at)
    }

    /// `ConvTranspose2d` whose output is its input times its stride.
    pub(super) fn expand_with(&mut self, name: &str, expansion: Expansion, at: Source) -> Source {
        let Expansion { input, output, kernel, stride, padding, bias } = expansion;
        let weight = format!("{name}.weight");
        let bias = bias.then(|| format!("{name}.bias"));
        self.push(Operation::Upsampling { weight, bias, input, output, kernel, stride, padding }, &[at])
    }

    /// `PixelShuffle`; it has no name, and no weights.
    pub(super) fn shuffle_pixels(&mut self, factor: usize, at: Source) -> Source {
        self.push(Operation::PixelShuffle { factor }, &[at])
    }

    /// `InstanceNorm2d`, `BatchNorm2d` or `GroupNorm`.
    pub(super) fn normalize(&mut self, name: &str, norm: Norm, channels: usize, at: Source) -> Source {
        let names =
            |affine: bool| affine.then(|| Affine { weight: format!("{name}.weight"), bias: format!("{name}.bias") });
        let operation = match norm {
            Norm::Instance { epsilon, affine } => Operation::InstanceNorm { affine: names(affine), channels, epsilon },
            Norm::Batch { epsilon, affine } => Operation::BatchNorm {
                mean: format!("{name}.running_mean"),
                variance: format!("{name}.running_var"),
                affine: names(affine),
                channels,
                epsilon,
            },
            Norm::Group { groups, epsilon, affine } => {
                Operation::GroupNorm { affine: names(affine), groups, channels, epsilon }
            }
            Norm::None => return at,
        };
        self.push(operation, &[at])
    }

    /// `LeakyReLU` and its like; only `PReLU` has a name, and a weight.
    pub(super) fn activate(&mut self, name: &str, activation: Activation, channels: usize, at: Source) -> Source {
        let function = match activation {
            Activation::LeakyRelu { slope } => Function::LeakyRelu { slope },
            Activation::PRelu { per_channel } => {
                Function::PRelu { weight: format!("{name}.weight"), values: if per_channel { channels } else { 1 } }
            }
            Activation::Silu => Function::Silu,
            Activation::Mish => Function::Mish,
            Activation::Gelu => Function::Gelu,
            Activation::GeluTanh => Function::GeluTanh,
            Activation::None => return at,
        };
        self.push(Operation::Activation { function }, &[at])
    }
}

/// What is wrong with the outside of a network, before its layers are made.
pub(super) fn check_counts(channels: usize, heads: usize, tile: Size) -> Result<(), String> {
    check_channels(&[channels, heads])?;
    if tile.width.max(tile.height) > MAX_TILE {
        return Err(format!("a tile of {tile}; up to {MAX_TILE} pixels along an axis are supported"));
    }
    if tile.is_empty() {
        return Err(format!("a tile of {tile}"));
    }
    Ok(())
}

/// What is wrong with the channels of layers.
pub(super) fn check_channels<'a>(counts: impl IntoIterator<Item = &'a usize>) -> Result<(), String> {
    match counts.into_iter().find(|c| !(1..=MAX_CHANNELS).contains(*c)) {
        Some(count) => Err(format!("{count} channels in a layer; 1 to {MAX_CHANNELS} are supported")),
        None => Ok(()),
    }
}

/// What is wrong with the number of stages.
pub(super) fn check_stages(stages: usize) -> Result<(), String> {
    if !(1..=MAX_STAGES).contains(&stages) {
        return Err(format!("{stages} stages; 1 to {MAX_STAGES} are supported"));
    }
    Ok(())
}

/// What is wrong with how many of `what` stages have.
pub(super) fn check_repetitions<'a>(what: &str, counts: impl IntoIterator<Item = &'a usize>) -> Result<(), String> {
    match counts.into_iter().find(|c| !(1..=MAX_REPETITIONS).contains(*c)) {
        Some(count) => Err(format!("{count} {what} in a stage; 1 to {MAX_REPETITIONS} are supported")),
        None => Ok(()),
    }
}

/// The product of strides along both axes, as the extent of a tile that they divide.
pub(super) fn product<'a>(strides: impl Iterator<Item = &'a Extent> + Clone) -> Size {
    let of = |axis: fn(&Extent) -> usize| strides.clone().map(|s| axis(s) as u64).fold(1, u64::saturating_mul).max(1);
    Size::new(of(|s| s.width), of(|s| s.height))
}
