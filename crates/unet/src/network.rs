//! A network as plain data, independent of the framework it came from and of the engine that runs it.
//!
//! A [`Network`] is a list of layers, each reading the input or earlier layers; weights are referred to by name.
//! An engine lowers it: with candle on any device, in place on the CPU. What can be said about a network without running it
//! (shapes, parameters, multiplications, memory) is computed here, once for all engines.

use std::collections::BTreeSet;

use microtome_io::Size;
use serde::{Deserialize, Serialize};

use crate::transposed::Transposed;

// Larger than any published configuration by far, small enough that no product of them overflows.
const MAX_LAYERS: usize = 1 << 13;
const MAX_CHANNELS: usize = 1 << 15;
const MAX_KERNEL: usize = 31;
const MAX_STRIDE: usize = 16;
/// Weights of one fold, in values: 8 GiB as f32.
const MAX_PARAMETERS: u64 = 1 << 31;

/// A kernel's or a stride's extent along both axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[usize; 2]", into = "[usize; 2]")]
pub struct Extent {
    /// Along y, axis 0 in PyTorch's order.
    pub height: usize,
    /// Along x, axis 1.
    pub width: usize,
}

impl Extent {
    /// One pixel.
    pub const ONE: Self = Self { height: 1, width: 1 };

    /// Number of pixels.
    #[must_use]
    pub const fn area(self) -> usize {
        self.height.saturating_mul(self.width)
    }

    /// With the axes exchanged.
    #[must_use]
    pub const fn transposed(self) -> Self {
        Self { height: self.width, width: self.height }
    }
}

impl From<[usize; 2]> for Extent {
    fn from([height, width]: [usize; 2]) -> Self {
        Self { height, width }
    }
}

impl From<Extent> for [usize; 2] {
    fn from(extent: Extent) -> Self {
        [extent.height, extent.width]
    }
}

impl std::fmt::Display for Extent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.height, self.width)
    }
}

/// Where a layer reads from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The network's input.
    Input,
    /// The output of the layer with this index.
    Layer(usize),
}

/// One step of the network.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// What it computes.
    pub operation: Operation,
    /// What it reads: two sources for [`Operation::Concatenate`] and [`Operation::Add`], one for all others.
    pub sources: Vec<Source>,
}

/// What a layer computes. Tensors are channels × height × width; formulas are PyTorch's in `eval` mode.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// Cross-correlation with zero padding `(k - 1) / 2`, dilation 1, one group.
    Convolution {
        /// Name of the weight, output × input × kernel height × kernel width.
        weight: String,
        /// Name of the bias, if there is one.
        bias: Option<String>,
        /// Input channels.
        input: usize,
        /// Output channels.
        output: usize,
        /// Extent of the kernel, odd along both axes.
        kernel: Extent,
        /// Distance between the kernel's positions.
        stride: Extent,
    },
    /// Transposed convolution that makes its input `stride` times larger, no pixel more or less:
    /// `ConvTranspose2d(kernel, stride, padding, output_padding=2 * padding + stride - kernel)`.
    Upsampling {
        /// Name of the weight, input × output × kernel height × kernel width.
        weight: String,
        /// Name of the bias, if there is one.
        bias: Option<String>,
        /// Input channels.
        input: usize,
        /// Output channels.
        output: usize,
        /// Extent of what one input pixel adds to the output.
        kernel: Extent,
        /// How many times larger the output is along each axis.
        stride: Extent,
        /// How far the first input pixel's part sticks out of the output: less than half of the kernel, and at least as far that
        /// `2 * padding + stride` is not smaller than the kernel. Where it is 0 and the kernel is the stride, nothing overlaps.
        padding: Padding,
    },
    /// `(x - mean) / sqrt(variance + epsilon) * weight + bias` with mean and biased variance of each channel of the tile itself.
    InstanceNorm {
        /// Names of weight and bias, if the layer has them.
        affine: Option<Affine>,
        /// Channels.
        channels: usize,
        /// Added to the variance.
        epsilon: f64,
    },
    /// `(x - mean) / sqrt(variance + epsilon) * weight + bias` with mean and variance from training.
    BatchNorm {
        /// Name of the running mean.
        mean: String,
        /// Name of the running variance.
        variance: String,
        /// Names of weight and bias, if the layer has them.
        affine: Option<Affine>,
        /// Channels.
        channels: usize,
        /// Added to the variance.
        epsilon: f64,
    },
    /// `(x - mean) / sqrt(variance + epsilon) * weight + bias` with mean and biased variance of each group of neighbouring channels
    /// of the tile itself; weight and bias are each channel's.
    GroupNorm {
        /// Names of weight and bias, if the layer has them.
        affine: Option<Affine>,
        /// Groups, all of `channels / groups` channels.
        groups: usize,
        /// Channels.
        channels: usize,
        /// Added to the variance.
        epsilon: f64,
    },
    /// A function of each value.
    Activation {
        /// Which.
        function: Function,
    },
    /// The channels of the first source, then those of the second.
    Concatenate,
    /// The sum of two sources of one shape.
    Add,
    /// The mean under a kernel: `AvgPool2d(kernel, stride)`, behind `ConstantPad2d` with zeros above and on the left.
    AveragePool {
        /// Extent of the kernel.
        kernel: Extent,
        /// Distance between the kernel's positions.
        stride: Extent,
        /// How many rows of zeros come before the source, and how many columns, less than the kernel's extent; they count.
        before: Padding,
    },
    /// The largest value under a kernel: `MaxPool2d(kernel, stride, padding)`.
    MaxPool {
        /// Extent of the kernel.
        kernel: Extent,
        /// Distance between the kernel's positions.
        stride: Extent,
        /// How far the kernel may stick out on each side, at most half of its extent; what lies outside does not count.
        padding: Padding,
    },
    /// Another number of pixels: `interpolate(x, scale_factor=(height, width), mode, align_corners)`.
    Resize {
        /// How many times larger the output is, rounded down to whole pixels.
        factor: Factor,
        /// What lies between pixels.
        interpolation: Interpolation,
    },
    /// Blocks of `factor` × `factor` neighbouring channels, row by row, become blocks of pixels: `PixelShuffle(factor)`.
    PixelShuffle {
        /// How many times larger the output is along each axis.
        factor: usize,
    },
}

impl Operation {
    /// The weights that it uses.
    #[must_use]
    pub fn weights(&self) -> Vec<WeightShape> {
        let mut weights = Vec::new();
        let mut add = |name: &String, shape: &[usize]| {
            weights.push(WeightShape { name: name.clone(), shape: shape.to_vec() });
        };
        match self {
            Self::Convolution { weight, bias, input, output, kernel, .. } => {
                add(weight, &[*output, *input, kernel.height, kernel.width]);
                bias.iter().for_each(|bias| add(bias, &[*output]));
            }
            Self::Upsampling { weight, bias, input, output, kernel, .. } => {
                add(weight, &[*input, *output, kernel.height, kernel.width]);
                bias.iter().for_each(|bias| add(bias, &[*output]));
            }
            Self::InstanceNorm { affine, channels, .. } | Self::GroupNorm { affine, channels, .. } => {
                affine.iter().flat_map(|a| [&a.weight, &a.bias]).for_each(|name| add(name, &[*channels]));
            }
            Self::BatchNorm { mean, variance, affine, channels, .. } => {
                [mean, variance]
                    .into_iter()
                    .chain(affine.iter().flat_map(|a| [&a.weight, &a.bias]))
                    .for_each(|name| add(name, &[*channels]));
            }
            Self::Activation { function: Function::PRelu { weight, values } } => add(weight, &[*values]),
            Self::Activation { .. }
            | Self::Concatenate
            | Self::Add
            | Self::AveragePool { .. }
            | Self::MaxPool { .. }
            | Self::Resize { .. }
            | Self::PixelShuffle { .. } => {}
        }
        weights
    }

    /// Multiplications, each with its addition, that such an output is defined by; 0 where it is no convolution.
    #[must_use]
    pub fn multiplications(&self, output: Shape) -> u64 {
        match self {
            Self::Convolution { input, kernel, .. } => {
                output.elements().saturating_mul(input.saturating_mul(kernel.area()) as u64)
            }
            // As many as there are weights, for each input pixel.
            Self::Upsampling { input, kernel, stride, .. } => {
                let pixels = output.elements() / (stride.area() as u64).max(1);
                pixels.saturating_mul(input.saturating_mul(kernel.area()) as u64)
            }
            _ => 0,
        }
    }
}

/// A function of one value.
#[derive(Debug, Clone, PartialEq)]
pub enum Function {
    /// `x` where it is positive, `slope * x` elsewhere; slope 0 is ReLU.
    LeakyRelu {
        /// Factor for negative values.
        slope: f64,
    },
    /// The same with a slope from training.
    PRelu {
        /// Name of the slope.
        weight: String,
        /// Values of the slope: one, or one for each channel.
        values: usize,
    },
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x * tanh(ln(1 + exp(x)))`.
    Mish,
    /// `x / 2 * (1 + erf(x / sqrt(2)))`.
    Gelu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`.
    GeluTanh,
}

/// How far a kernel sticks out on each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Padding {
    /// Above and below.
    pub height: usize,
    /// On the left and the right.
    pub width: usize,
}

/// How many times larger something becomes along both axes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factor {
    /// Along y.
    pub height: f64,
    /// Along x.
    pub width: f64,
}

/// What lies between pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// The pixel at the position rounded down, PyTorch's `nearest`.
    Nearest,
    /// Weighted means of the neighbours; pixels are areas (`align_corners=False`).
    Bilinear,
    /// The same, but pixels are points, and the outermost of input and output coincide (`align_corners=True`).
    BilinearCorners,
}

/// Names of the per-channel factor and summand of a normalisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affine {
    /// Name of the factor.
    pub weight: String,
    /// Name of the summand.
    pub bias: String,
}

/// Name and shape of a weight that a network uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightShape {
    /// The name, unique in the network.
    pub name: String,
    /// Extent of each dimension, outermost first.
    pub shape: Vec<usize>,
}

impl WeightShape {
    /// Number of values.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |n, &d| n.saturating_mul(d as u64))
    }
}

/// Channels, height and width of a tensor of one tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// Channels.
    pub channels: usize,
    /// Width and height.
    pub size: Size,
}

impl Shape {
    /// Number of values.
    #[must_use]
    pub const fn elements(self) -> u64 {
        self.size.area().saturating_mul(self.channels as u64)
    }
}

/// A network: layers in the order in which they run; the last one's output is the logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    channels: usize,
    layers: Vec<Layer>,
}

impl Network {
    /// An empty network that reads `channels` channels.
    #[must_use]
    pub fn new(channels: usize) -> Self {
        Self { channels, layers: Vec::new() }
    }

    /// Appends a layer and returns where its output is read from.
    ///
    /// # Panics
    /// If a source lies ahead, or the number of sources is not the operation's: those are mistakes of the architecture.
    pub fn push(&mut self, operation: Operation, sources: &[Source]) -> Source {
        let expected = if matches!(operation, Operation::Concatenate | Operation::Add) { 2 } else { 1 };
        assert_eq!(sources.len(), expected, "sources of {operation:?}");
        let known = |source: &Source| {
            matches!(source, Source::Input) || matches!(source, Source::Layer(i) if *i < self.layers.len())
        };
        assert!(sources.iter().all(known), "{operation:?} reads what has not been computed yet");
        self.layers.push(Layer { operation, sources: sources.to_vec() });
        Source::Layer(self.layers.len() - 1)
    }

    /// Number of input channels.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The layers in the order in which they run.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Every weight that the network uses, in the order of its layers; one that several layers share comes once.
    #[must_use]
    pub fn weights(&self) -> Vec<WeightShape> {
        let mut seen: BTreeSet<(String, Vec<usize>)> = BTreeSet::new();
        let all = self.layers.iter().flat_map(|layer| layer.operation.weights());
        all.filter(|w| seen.insert((w.name.clone(), w.shape.clone()))).collect()
    }

    /// Number of parameters: values of all weights together.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.weights().iter().map(WeightShape::elements).fold(0, u64::saturating_add)
    }

    /// The shape of every layer's output for a tile of this size.
    #[must_use]
    pub fn shapes(&self, tile: Size) -> Vec<Shape> {
        let mut shapes: Vec<Shape> = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let of = |source: Source| match source {
                Source::Input => Shape { channels: self.channels, size: tile },
                Source::Layer(i) => shapes[i],
            };
            let first = of(layer.sources[0]);
            let shape = match &layer.operation {
                Operation::Convolution { output, stride, .. } => {
                    // floor((n + 2 * ((k - 1) / 2) - k) / s) + 1 for odd k.
                    Shape {
                        channels: *output,
                        size: first.size.cells(Size::new(stride.width as u64, stride.height as u64)),
                    }
                }
                Operation::Upsampling { output, stride, .. } => Shape {
                    channels: *output,
                    size: Size::new(
                        first.size.width.saturating_mul(stride.width as u64),
                        first.size.height.saturating_mul(stride.height as u64),
                    ),
                },
                Operation::Concatenate => {
                    Shape { channels: first.channels.saturating_add(of(layer.sources[1]).channels), size: first.size }
                }
                Operation::AveragePool { kernel, stride, before } => {
                    Shape { size: pooled(first.size, *kernel, *stride, *before), ..first }
                }
                Operation::MaxPool { kernel, stride, padding } => {
                    // On both sides.
                    let both = |p: usize| p.saturating_mul(2);
                    let padding = Padding { height: both(padding.height), width: both(padding.width) };
                    Shape { size: pooled(first.size, *kernel, *stride, padding), ..first }
                }
                Operation::Resize { factor, .. } => {
                    let times = |n: u64, factor: f64| (n as f64 * factor) as u64;
                    let Size { width, height } = first.size;
                    Shape { size: Size::new(times(width, factor.width), times(height, factor.height)), ..first }
                }
                Operation::PixelShuffle { factor } => {
                    let Size { width, height } = first.size;
                    let times = |n: u64| n.saturating_mul(*factor as u64);
                    Shape {
                        channels: first.channels / factor.saturating_mul(*factor).max(1),
                        size: Size::new(times(width), times(height)),
                    }
                }
                Operation::InstanceNorm { .. }
                | Operation::GroupNorm { .. }
                | Operation::BatchNorm { .. }
                | Operation::Activation { .. }
                | Operation::Add => first,
            };
            shapes.push(shape);
        }
        shapes
    }

    /// Multiplications, each with its addition, that convolutions take for one tile of this size.
    #[must_use]
    pub fn multiplications(&self, tile: Size) -> u64 {
        let of = |(layer, shape): (&Layer, Shape)| layer.operation.multiplications(shape);
        self.layers.iter().zip(self.shapes(tile)).map(of).fold(0, u64::saturating_add)
    }

    /// What is wrong with the network for a tile of this size, if its logits are to be `heads` planes as large as the tile.
    ///
    /// # Errors
    /// A clause that names the first thing that is wrong.
    pub fn check(&self, tile: Size, heads: usize) -> Result<(), String> {
        if self.layers.len() > MAX_LAYERS {
            return Err(format!("{} layers; up to {MAX_LAYERS} are supported", self.layers.len()));
        }
        self.layers.iter().try_for_each(|layer| check_operation(&layer.operation))?;
        let shapes = self.shapes(tile);
        for (layer, shape) in self.layers.iter().zip(&shapes) {
            let of = |source: &Source| match source {
                Source::Input => Shape { channels: self.channels, size: tile },
                Source::Layer(i) => shapes[*i],
            };
            check_shapes(&layer.operation, &layer.sources.iter().map(of).collect::<Vec<_>>(), *shape)?;
        }
        let last = shapes.last().copied().unwrap_or(Shape { channels: self.channels, size: tile });
        if last != (Shape { channels: heads, size: tile }) {
            return Err(format!(
                "{} planes of {} at its end for a tile of {tile}; there must be {heads} of {tile}",
                last.channels, last.size
            ));
        }
        let parameters = self.parameters();
        if parameters > MAX_PARAMETERS {
            return Err(format!("{parameters} parameters; up to {MAX_PARAMETERS} are supported"));
        }
        Ok(())
    }

    /// For each layer, the index of the last layer that reads it; a layer that nothing reads keeps its own index.
    #[must_use]
    pub fn last_reads(&self) -> Vec<usize> {
        let mut last: Vec<usize> = (0..self.layers.len()).collect();
        for (reader, layer) in self.layers.iter().enumerate() {
            for source in &layer.sources {
                if let Source::Layer(i) = source {
                    last[*i] = reader;
                }
            }
        }
        last
    }
}

/// What is wrong with an operation in itself.
fn check_operation(operation: &Operation) -> Result<(), String> {
    let possible = |e: &Extent, most: usize| (1..=most).contains(&e.height) && (1..=most).contains(&e.width);
    let strides = |stride: &Extent| {
        let message = || format!("a stride of {stride}; 1 to {MAX_STRIDE} are supported");
        if possible(stride, MAX_STRIDE) { Ok(()) } else { Err(message()) }
    };
    let kernels = |kernel: &Extent, odd: bool| {
        let even = kernel.height.is_multiple_of(2) || kernel.width.is_multiple_of(2);
        let kind = if odd { "odd kernels" } else { "kernels" };
        let message = || format!("a {kernel} kernel; {kind} up to {MAX_KERNEL} are supported");
        if possible(kernel, MAX_KERNEL) && !(odd && even) { Ok(()) } else { Err(message()) }
    };
    match operation {
        Operation::Convolution { kernel, stride, .. } => {
            kernels(kernel, true)?;
            strides(stride)
        }
        Operation::Upsampling { kernel, stride, padding, .. } => {
            kernels(kernel, false)?;
            strides(stride)?;
            if (Transposed { kernel: *kernel, stride: *stride, padding: *padding }).is_possible() {
                return Ok(());
            }
            let Padding { height, width } = padding;
            Err(format!(
                "a transposed convolution of {kernel} with stride {stride} and padding {height}x{width}; \
                 supported are those whose output is the input times the stride and whose stride is at most the kernel's extent plus 1"
            ))
        }
        Operation::InstanceNorm { epsilon, .. }
        | Operation::BatchNorm { epsilon, .. }
        | Operation::GroupNorm { epsilon, .. }
            if !(epsilon.is_finite() && *epsilon > 0.0) =>
        {
            Err(format!("a normalisation epsilon of {epsilon}; it must be positive"))
        }
        Operation::GroupNorm { groups, channels, .. } if *groups == 0 || !channels.is_multiple_of(*groups) => {
            Err(format!("{groups} groups of {channels} channels"))
        }
        Operation::Activation { function: Function::LeakyRelu { slope } } if !slope.is_finite() => {
            Err(format!("an activation slope of {slope}"))
        }
        Operation::AveragePool { kernel, stride, before } => {
            kernels(kernel, false)?;
            strides(stride)?;
            if before.height >= kernel.height || before.width >= kernel.width {
                return Err(format!("a padding of a whole {kernel} kernel"));
            }
            Ok(())
        }
        Operation::MaxPool { kernel, stride, padding } => {
            kernels(kernel, false)?;
            strides(stride)?;
            if padding.height > kernel.height / 2 || padding.width > kernel.width / 2 {
                return Err(format!("a padding of more than half a {kernel} kernel"));
            }
            Ok(())
        }
        Operation::Resize { factor: Factor { height, width }, .. } => {
            let possible = |f: &f64| *f > 0.0 && *f <= MAX_STRIDE as f64;
            if possible(height) && possible(width) {
                return Ok(());
            }
            Err(format!("resizing by {height} x {width}; factors up to {MAX_STRIDE} are supported"))
        }
        Operation::PixelShuffle { factor } if !(1..=MAX_STRIDE).contains(factor) => {
            Err(format!("a pixel shuffle of {factor}; 1 to {MAX_STRIDE} are supported"))
        }
        Operation::InstanceNorm { .. }
        | Operation::BatchNorm { .. }
        | Operation::GroupNorm { .. }
        | Operation::Activation { .. }
        | Operation::Concatenate
        | Operation::Add
        | Operation::PixelShuffle { .. } => Ok(()),
    }
}

/// What is wrong with how an operation fits what it reads, given that and what it makes.
fn check_shapes(operation: &Operation, sources: &[Shape], output: Shape) -> Result<(), String> {
    let found = sources[0].channels;
    let reads = |channels: usize| {
        if found == channels { Ok(()) } else { Err(format!("a layer for {channels} channels that reads {found}")) }
    };
    match operation {
        Operation::Convolution { input, .. } | Operation::Upsampling { input, .. } => reads(*input)?,
        Operation::InstanceNorm { channels, .. }
        | Operation::BatchNorm { channels, .. }
        | Operation::GroupNorm { channels, .. } => reads(*channels)?,
        Operation::Activation { function: Function::PRelu { values, .. } } if *values != 1 => reads(*values)?,
        Operation::Concatenate | Operation::Add => {
            let [a, b] = [sources[0], sources[1]];
            if a.size != b.size || matches!(operation, Operation::Add) && a.channels != b.channels {
                let shape = |s: Shape| format!("{} channels of {}", s.channels, s.size);
                return Err(format!("layers that do not fit each other: {} and {}", shape(a), shape(b)));
            }
        }
        Operation::PixelShuffle { factor } if !found.is_multiple_of(factor * factor) => {
            return Err(format!("a pixel shuffle of {factor} that reads {found} channels"));
        }
        Operation::Activation { .. }
        | Operation::AveragePool { .. }
        | Operation::MaxPool { .. }
        | Operation::Resize { .. }
        | Operation::PixelShuffle { .. } => {}
    }
    if !(1..=MAX_CHANNELS).contains(&output.channels) {
        return Err(format!("{} channels in a layer; 1 to {MAX_CHANNELS} are supported", output.channels));
    }
    if output.size.is_empty() {
        return Err("a tile of which its strides leave nothing".into());
    }
    Ok(())
}

/// Positions of a kernel over a source and its padding: `floor((n + p - k) / s) + 1`, none where it does not fit.
fn pooled(size: Size, kernel: Extent, stride: Extent, padding: Padding) -> Size {
    let positions = |n: u64, kernel: usize, stride: usize, padding: usize| {
        n.saturating_add(padding as u64).checked_sub(kernel as u64).map_or(0, |rest| rest / stride as u64 + 1)
    };
    Size::new(
        positions(size.width, kernel.width, stride.width, padding.width),
        positions(size.height, kernel.height, stride.height, padding.height),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two convolutions, the second with stride 2, then back up and joined with the first.
    fn small() -> Network {
        let convolution = |name: &str, input, output, stride| Operation::Convolution {
            weight: format!("{name}.weight"),
            bias: Some(format!("{name}.bias")),
            input,
            output,
            kernel: Extent { height: 3, width: 3 },
            stride,
        };
        let mut network = Network::new(3);
        let fine = network.push(convolution("fine", 3, 4, Extent::ONE), &[Source::Input]);
        let coarse = network.push(convolution("coarse", 4, 8, Extent { height: 2, width: 2 }), &[fine]);
        let stride = Extent { height: 2, width: 2 };
        let (weight, padding) = ("up.weight".into(), Padding::default());
        let up = Operation::Upsampling { weight, bias: None, input: 8, output: 4, kernel: stride, stride, padding };
        let up = network.push(up, &[coarse]);
        network.push(Operation::Concatenate, &[up, fine]);
        network
    }

    #[test]
    fn shapes_and_counts_follow_from_the_layers() {
        let network = small();
        let shapes = network.shapes(Size::new(6, 4));
        let of = |channels, width, height| Shape { channels, size: Size::new(width, height) };
        assert_eq!(shapes, [of(4, 6, 4), of(8, 3, 2), of(4, 6, 4), of(8, 6, 4)]);
        assert_eq!(network.parameters(), (4 * 3 * 9 + 4) + (8 * 4 * 9 + 8) + 8 * 4 * 4);
        assert_eq!(network.multiplications(Size::new(6, 4)), 24 * 4 * 27 + 6 * 8 * 36 + 24 * 4 * 8);
        assert_eq!(network.last_reads(), [3, 2, 3, 3]);
    }

    #[test]
    fn a_transposed_convolution_multiplies_each_pixel_with_its_kernel() {
        let mut network = Network::new(3);
        let (kernel, stride) = (Extent { height: 3, width: 3 }, Extent { height: 2, width: 2 });
        let (weight, padding) = ("up.weight".to_owned(), Padding { height: 1, width: 1 });
        let up = Operation::Upsampling { weight, bias: None, input: 3, output: 5, kernel, stride, padding };
        network.push(up, &[Source::Input]);
        let tile = Size::new(6, 4);
        assert_eq!(network.shapes(tile), [Shape { channels: 5, size: Size::new(12, 8) }]);
        assert_eq!((network.parameters(), network.multiplications(tile)), (3 * 5 * 9, 24 * 3 * 5 * 9));
    }

    #[test]
    fn channels_become_pixels() {
        let mut network = Network::new(12);
        network.push(Operation::PixelShuffle { factor: 2 }, &[Source::Input]);
        let tile = Size::new(3, 5);
        assert_eq!(network.shapes(tile), [Shape { channels: 3, size: Size::new(6, 10) }]);
        assert_eq!((network.parameters(), network.multiplications(tile)), (0, 0));
    }

    #[test]
    fn pools_and_resizing_round_down() {
        let mut network = Network::new(2);
        let (two, three) = (Extent { height: 2, width: 2 }, Extent { height: 3, width: 3 });
        let (stride, before) = (Extent { height: 2, width: 1 }, Padding { height: 0, width: 1 });
        network.push(Operation::AveragePool { kernel: two, stride, before }, &[Source::Input]);
        let padding = Padding { height: 1, width: 1 };
        network.push(Operation::MaxPool { kernel: three, stride: two, padding }, &[Source::Input]);
        let factor = Factor { height: 2.0, width: 0.7 };
        network.push(Operation::Resize { factor, interpolation: Interpolation::Nearest }, &[Source::Input]);
        network.push(Operation::Add, &[Source::Input, Source::Input]);
        let weight = "slope".to_owned();
        network.push(Operation::Activation { function: Function::PRelu { weight, values: 2 } }, &[Source::Input]);
        let shapes = network.shapes(Size::new(8, 5));
        let sizes = [(8, 2), (4, 3), (5, 10), (8, 5), (8, 5)].map(|(width, height)| Size::new(width, height));
        assert_eq!(shapes, sizes.map(|size| Shape { channels: 2, size }));
        assert_eq!((network.parameters(), network.multiplications(Size::new(8, 5))), (2, 0));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let tile = Size::new(6, 4);
        assert_eq!(small().check(tile, 8), Ok(()));
        assert_eq!(
            small().check(tile, 2).unwrap_err(),
            "8 planes of 6 x 4 at its end for a tile of 6 x 4; there must be 2 of 6 x 4"
        );
        assert_eq!(
            small().check(Size::new(7, 4), 8).unwrap_err(),
            "layers that do not fit each other: 4 channels of 8 x 4 and 4 channels of 7 x 4"
        );
        let with = |operation: Operation| {
            let mut network = Network::new(3);
            let sources = if operation == Operation::Add { vec![Source::Input; 2] } else { vec![Source::Input] };
            network.push(operation, &sources);
            network.check(tile, 3).unwrap_err()
        };
        let norm = |groups, channels, epsilon| Operation::GroupNorm { affine: None, groups, channels, epsilon };
        assert_eq!(with(norm(2, 3, 1e-5)), "2 groups of 3 channels");
        assert_eq!(with(norm(2, 4, 1e-5)), "a layer for 4 channels that reads 3");
        assert_eq!(with(norm(1, 3, 0.0)), "a normalisation epsilon of 0; it must be positive");
        let pool = |kernel, stride, padding| Operation::MaxPool {
            kernel: Extent { height: kernel, width: 2 },
            stride: Extent { height: 2, width: stride },
            padding: Padding { height: padding, width: 0 },
        };
        assert_eq!(with(pool(32, 2, 0)), "a 32x2 kernel; kernels up to 31 are supported");
        assert_eq!(with(pool(2, 0, 0)), "a stride of 2x0; 1 to 16 are supported");
        assert_eq!(with(pool(2, 2, 2)), "a padding of more than half a 2x2 kernel");
        assert_eq!(with(pool(7, 2, 0)), "a tile of which its strides leave nothing");
        let transposed = |kernel, stride, padding| Operation::Upsampling {
            weight: String::new(),
            bias: None,
            input: 3,
            output: 3,
            kernel: Extent { height: kernel, width: 2 },
            stride: Extent { height: stride, width: 2 },
            padding: Padding { height: padding, width: 0 },
        };
        assert_eq!(
            with(transposed(3, 2, 0)),
            "a transposed convolution of 3x2 with stride 2x2 and padding 0x0; \
             supported are those whose output is the input times the stride and whose stride is at most the kernel's extent plus 1"
        );
        let refused = |kernel, stride, padding| with(transposed(kernel, stride, padding)).starts_with("a transposed");
        assert!(refused(3, 5, 1) && refused(2, 2, 1) && refused(2, 2, usize::MAX) && refused(4, 1, 1));
        assert_eq!(
            with(transposed(3, 2, 1)),
            "3 planes of 12 x 8 at its end for a tile of 6 x 4; there must be 3 of 6 x 4"
        );
        let shuffle = |factor| with(Operation::PixelShuffle { factor });
        assert_eq!(shuffle(0), "a pixel shuffle of 0; 1 to 16 are supported");
        assert_eq!(shuffle(2), "a pixel shuffle of 2 that reads 3 channels");
        let factor = Factor { height: f64::NAN, width: 2.0 };
        let resize = Operation::Resize { factor, interpolation: Interpolation::Nearest };
        assert_eq!(with(resize), "resizing by NaN x 2; factors up to 16 are supported");
    }

    #[test]
    #[should_panic(expected = "not been computed yet")]
    fn a_layer_cannot_read_ahead() {
        Network::new(1).push(Operation::Add, &[Source::Input, Source::Layer(0)]);
    }
}
