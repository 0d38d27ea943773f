//! A network as a list of candle operations, with its weights on a device.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Result, Tensor};
use microtome_io::Size;

use crate::network::{Affine, Extent, Function, Layer, Network, Operation, Shape, Source};
use crate::taps::{Combination, Separable, Taps};
use crate::transposed::Transposed;
use crate::weights::Weight;

/// The network of one fold, ready to run.
#[derive(Debug)]
pub(super) struct Lowering {
    steps: Vec<Step>,
    sources: Vec<Vec<Source>>,
    last_reads: Vec<usize>,
}

#[derive(Debug)]
enum Step {
    Convolution {
        weight: Tensor,
        bias: Option<Tensor>,
        kernel: Extent,
        stride: Extent,
    },
    /// A transposed convolution without overlap is a product of matrices, followed by a permutation.
    Upsampling {
        matrix: Tensor,
        bias: Option<Tensor>,
        stride: Extent,
    },
    /// One with overlap is a convolution of its taps, followed by the same permutation.
    Overlapping {
        weight: Tensor,
        bias: Option<Tensor>,
        transposed: Transposed,
    },
    /// Statistics of each channel, or of groups of them.
    Norm {
        scale: Option<(Tensor, Tensor)>,
        groups: Option<usize>,
        epsilon: f64,
    },
    /// Batch normalisation with its statistics folded into one factor and one summand.
    Affine {
        factor: Tensor,
        summand: Tensor,
    },
    Activation(Curve),
    Concatenate,
    Add,
    Separable(Separable),
    Shuffle(Extent),
}

#[derive(Debug)]
pub(crate) enum Curve {
    LeakyRelu(f64),
    PRelu(Tensor),
    Silu,
    Mish,
    Gelu,
    GeluTanh,
}

impl Curve {
    /// `slopes` makes a tensor of a weight's name.
    pub(crate) fn new(function: &Function, slopes: impl FnOnce(&String) -> Result<Tensor>) -> Result<Self> {
        Ok(match function {
            Function::LeakyRelu { slope } => Self::LeakyRelu(*slope),
            Function::PRelu { weight, .. } => Self::PRelu(slopes(weight)?),
            Function::Silu => Self::Silu,
            Function::Mish => Self::Mish,
            Function::Gelu => Self::Gelu,
            Function::GeluTanh => Self::GeluTanh,
        })
    }
}

impl Lowering {
    /// # Panics
    /// If a weight is missing: they have been matched with the network before.
    pub(super) fn new(
        network: &Network,
        tile: Size,
        weights: &BTreeMap<String, Weight>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let host = |name: &String| {
            let weight = &weights[name];
            Tensor::from_slice(&weight.values, weight.shape.as_slice(), &Device::Cpu)
        };
        let place = |tensor: &Tensor, dtype: DType| tensor.to_device(device)?.to_dtype(dtype)?.contiguous();
        let per_channel = |name: &String, dtype: DType| place(&host(name)?.reshape((1, (), 1, 1))?, dtype);
        let scale = |affine: &Option<Affine>| -> Result<Option<(Tensor, Tensor)>> {
            let pair =
                |a: &Affine| Result::Ok((per_channel(&a.weight, DType::F32)?, per_channel(&a.bias, DType::F32)?));
            affine.as_ref().map(pair).transpose()
        };
        let layers = network.layers();
        let shapes = network.shapes(tile);
        let step = |(layer, to): (&Layer, &Shape)| -> Result<Step> {
            Ok(match &layer.operation {
                Operation::Convolution { weight, bias, kernel, stride, .. } => Step::Convolution {
                    weight: place(&host(weight)?, dtype)?,
                    bias: bias.as_ref().map(|b| per_channel(b, dtype)).transpose()?,
                    kernel: *kernel,
                    stride: *stride,
                },
                Operation::Upsampling { weight, bias, input, output, kernel, stride, padding } => {
                    let transposed = Transposed { kernel: *kernel, stride: *stride, padding: *padding };
                    let bias = bias.as_ref().map(|b| per_channel(b, dtype)).transpose()?;
                    if transposed.is_blocks() {
                        let matrix = host(weight)?.permute((1, 2, 3, 0))?.reshape((output * stride.area(), *input))?;
                        Step::Upsampling { matrix: place(&matrix, dtype)?, bias, stride: *stride }
                    } else {
                        let weight = as_convolution(&weights[weight], (*input, *output), transposed)?;
                        Step::Overlapping { weight: place(&weight, dtype)?, bias, transposed }
                    }
                }
                Operation::InstanceNorm { affine, epsilon, .. } => {
                    Step::Norm { scale: scale(affine)?, groups: None, epsilon: *epsilon }
                }
                Operation::GroupNorm { affine, groups, epsilon, .. } => {
                    Step::Norm { scale: scale(affine)?, groups: Some(*groups), epsilon: *epsilon }
                }
                Operation::BatchNorm { mean, variance, affine, epsilon, .. } => {
                    let value = |name: &String| per_channel(name, DType::F32);
                    let (factor, summand) = batch_norm([mean, variance], affine.as_ref(), *epsilon, value)?;
                    Step::Affine { factor: place(&factor, dtype)?, summand: place(&summand, dtype)? }
                }
                Operation::Activation { function } => {
                    Step::Activation(Curve::new(function, |slopes| per_channel(slopes, dtype))?)
                }
                Operation::Concatenate => Step::Concatenate,
                Operation::Add => Step::Add,
                Operation::PixelShuffle { factor } => Step::Shuffle(Extent { height: *factor, width: *factor }),
                operation @ (Operation::AveragePool { .. } | Operation::MaxPool { .. } | Operation::Resize { .. }) => {
                    let from = match layer.sources[0] {
                        Source::Input => tile,
                        Source::Layer(i) => shapes[i].size,
                    };
                    Step::Separable(Separable::new(operation, from, to.size).expect("it is one of these"))
                }
            })
        };
        Ok(Self {
            steps: layers.iter().zip(&shapes).map(step).collect::<Result<_>>()?,
            sources: layers.iter().map(|l| l.sources.clone()).collect(),
            last_reads: network.last_reads(),
        })
    }

    /// Logits of tiles × channels × height × width inputs. A layer's output is dropped after the last layer that reads it.
    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let mut outputs: Vec<Option<Tensor>> = Vec::with_capacity(self.steps.len());
        for (i, step) in self.steps.iter().enumerate() {
            let read = |source: &Source| match source {
                Source::Input => input.clone(),
                Source::Layer(i) => outputs[*i].clone().expect("a layer's output lives until its last reader has run"),
            };
            let sources: Vec<Tensor> = self.sources[i].iter().map(read).collect();
            let output = step.run(&sources)?;
            for source in &self.sources[i] {
                if let Source::Layer(s) = source
                    && self.last_reads[*s] == i
                {
                    outputs[*s] = None;
                }
            }
            outputs.push(Some(output));
        }
        Ok(outputs.pop().flatten().unwrap_or_else(|| input.clone()))
    }
}

impl Step {
    fn run(&self, sources: &[Tensor]) -> Result<Tensor> {
        let x = &sources[0];
        match self {
            Self::Convolution { weight, bias, kernel, stride } => with_bias(
                convolve(x, weight, [(kernel.height - 1) / 2, (kernel.width - 1) / 2], *stride)?,
                bias.as_ref(),
            ),
            Self::Upsampling { matrix, bias, stride } => with_bias(upsample(x, matrix, *stride)?, bias.as_ref()),
            Self::Overlapping { weight, bias, transposed } => {
                with_bias(overlap(x, weight, *transposed)?, bias.as_ref())
            }
            Self::Norm { scale, groups, epsilon } => normalize(x, scale.as_ref(), *groups, *epsilon),
            Self::Affine { factor, summand } => x.broadcast_mul(factor)?.broadcast_add(summand),
            Self::Activation(curve) => curve.run(x),
            Self::Concatenate => Tensor::cat(&[x, &sources[1]], 1),
            Self::Add => x + &sources[1],
            Self::Shuffle(factor) => shuffle(x, *factor),
            Self::Separable(Separable { combination, rows, columns }) => {
                combine(&combine(x, rows, *combination, 2)?, columns, *combination, 3)
            }
        }
    }
}

impl Curve {
    pub(crate) fn run(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::LeakyRelu(slope) => candle_nn::ops::leaky_relu(x, *slope),
            Self::PRelu(slopes) => {
                let positive = x.relu()?;
                let negative = (x - &positive)?.broadcast_mul(slopes)?;
                positive + negative
            }
            Self::Silu => x.silu(),
            Self::Mish => mish(x),
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
        }
    }
}

/// `tanh(ln(1 + e))` is `n / (n + 2)` with `n = e * (e + 2)` and `e = exp(x)`; from 20 on that is 1 in f32.
fn mish(x: &Tensor) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let e = wide.minimum(20.0)?.exp()?;
    let n = (&e * (&e + 2.0)?)?;
    let ratio = (&n / (&n + 2.0)?)?;
    (wide * ratio)?.to_dtype(x.dtype())
}

/// One axis of pooling or resizing, in f32 where there are weights.
pub(crate) fn combine(x: &Tensor, taps: &Taps, combination: Combination, axis: usize) -> Result<Tensor> {
    let outputs = taps.positions.len() / taps.each;
    let mut extents = [1; 4];
    extents[axis] = outputs;
    let mut all: Option<Tensor> = None;
    for tap in 0..taps.each {
        let positions: Vec<u32> = taps.positions.iter().skip(tap).step_by(taps.each).map(|p| *p as u32).collect();
        let taken = x.index_select(&Tensor::new(positions, x.device())?, axis)?;
        let weights: Vec<f32> = taps.weights.iter().skip(tap).step_by(taps.each).copied().collect();
        let taken = if weights.iter().all(|w| *w == 1.0) {
            taken
        } else {
            taken.to_dtype(DType::F32)?.broadcast_mul(&Tensor::from_vec(weights, &extents, x.device())?)?
        };
        all = Some(match (all, combination) {
            (None, _) => taken,
            (Some(all), Combination::Sum) => (all + taken)?,
            (Some(all), Combination::Maximum) => all.maximum(&taken)?,
        });
    }
    all.unwrap_or_else(|| x.clone()).to_dtype(x.dtype())
}

/// With zeros above and below, left and right. candle knows one padding and one stride for both axes; where they differ, padding becomes
/// explicit and the stride a choice of rows and columns.
pub(crate) fn convolve(x: &Tensor, weight: &Tensor, padding: [usize; 2], stride: Extent) -> Result<Tensor> {
    let [rows, columns] = padding;
    if rows == columns && stride.height == stride.width {
        return x.conv2d(weight, rows, stride.height, 1, 1);
    }
    let y = x.pad_with_zeros(2, rows, rows)?.pad_with_zeros(3, columns, columns)?.conv2d(weight, 0, 1, 1, 1)?;
    let every = |y: Tensor, axis: usize, step: usize| {
        if step == 1 {
            return Ok(y);
        }
        let indices: Vec<u32> = (0..y.dim(axis)? as u32).step_by(step).collect();
        y.index_select(&Tensor::new(indices, y.device())?, axis)
    };
    every(every(y, 2, stride.height)?, 3, stride.width)
}

fn upsample(x: &Tensor, matrix: &Tensor, stride: Extent) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let y = matrix.broadcast_matmul(&x.reshape((n, c, h * w))?)?;
    let channels = y.dim(1)?;
    shuffle(&y.reshape((n, channels, h, w))?, stride)
}

/// Channels become pixels: those of one output channel, row by row, follow each other.
fn shuffle(x: &Tensor, factor: Extent) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let (down, across) = (factor.height, factor.width);
    let output = c / factor.area();
    let y = x.reshape(&[n, output, down, across, h, w])?.permute([0, 1, 4, 2, 5, 3])?;
    y.reshape((n, output, h * down, w * across))
}

/// The weight of a transposed convolution as that of the convolution of its taps, whose output channels are for [`shuffle`].
pub(crate) fn as_convolution(
    weight: &Weight,
    (input, output): (usize, usize),
    transposed: Transposed,
) -> Result<Tensor> {
    let (kernel, taps) = (transposed.kernel, transposed.taps());
    let pixels = transposed.stride;
    let mut values = Vec::with_capacity(output * pixels.area() * input * taps.area());
    let grid = |extent: Extent| (0..extent.height).flat_map(move |y| (0..extent.width).map(move |x| (y, x)));
    for (o, pixel) in (0..output).flat_map(|o| grid(pixels).map(move |pixel| (o, pixel))) {
        for (i, tap) in (0..input).flat_map(|i| grid(taps).map(move |tap| (i, tap))) {
            let value = |(y, x)| weight.values[((i * output + o) * kernel.height + y) * kernel.width + x];
            values.push(transposed.weight(tap, pixel).map_or(0.0, value));
        }
    }
    Tensor::from_vec(values, (output * pixels.area(), input, taps.height, taps.width), &Device::Cpu)
}

/// Factor and summand of batch normalisation, f32.
pub(crate) fn batch_norm(
    [mean, variance]: [&String; 2],
    affine: Option<&Affine>,
    epsilon: f64,
    value: impl Fn(&String) -> Result<Tensor>,
) -> Result<(Tensor, Tensor)> {
    let mut factor = (value(variance)? + epsilon)?.sqrt()?.recip()?;
    if let Some(affine) = affine {
        factor = (factor * value(&affine.weight)?)?;
    }
    let mut summand = (value(mean)? * &factor)?.neg()?;
    if let Some(affine) = affine {
        summand = (summand + value(&affine.bias)?)?;
    }
    Ok((factor, summand))
}

pub(crate) fn with_bias(y: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

fn overlap(x: &Tensor, weight: &Tensor, transposed: Transposed) -> Result<Tensor> {
    let (taps, before) = (transposed.taps(), transposed.before());
    let x = x.pad_with_zeros(2, before.height, taps.height - 1 - before.height)?;
    let x = x.pad_with_zeros(3, before.width, taps.width - 1 - before.width)?;
    shuffle(&x.conv2d(weight, 0, 1, 1, 1)?, transposed.stride)
}

/// In f32 whatever the precision. Sums run first along rows, then over rows, so that no long sum loses small summands.
fn normalize(x: &Tensor, scale: Option<&(Tensor, Tensor)>, groups: Option<usize>, epsilon: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let shape = x.dims4()?;
    let (n, channels, height, width) = shape;
    let groups = groups.unwrap_or(channels);
    let x = x.to_dtype(DType::F32)?.reshape((n, groups, channels / groups * height, width))?;
    let mean = |t: &Tensor| t.mean_keepdim(D::Minus1)?.mean_keepdim(D::Minus2);
    let centred = x.broadcast_sub(&mean(&x)?)?;
    let variance = mean(&centred.sqr()?)?;
    let factor = (variance + epsilon)?.sqrt()?.recip()?;
    let y = match scale {
        // One product in place of two where a group is a channel.
        Some((weight, bias)) if groups == channels => {
            centred.broadcast_mul(&factor.broadcast_mul(weight)?)?.broadcast_add(bias)?
        }
        Some((weight, bias)) => {
            centred.broadcast_mul(&factor)?.reshape(shape)?.broadcast_mul(weight)?.broadcast_add(bias)?
        }
        None => centred.broadcast_mul(&factor)?,
    };
    y.reshape(shape)?.to_dtype(dtype)
}

/// Bytes that one forward over one tile needs at its widest: what waits to be read, the layer's input and output, and its scratch.
pub(crate) fn activation_bytes(network: &Network, tile: Size, width: u64) -> u64 {
    let shapes = network.shapes(tile);
    let last_reads = network.last_reads();
    let input = tile.area().saturating_mul(network.channels() as u64);
    let mut most = 0_u64;
    for (i, layer) in network.layers().iter().enumerate() {
        let waiting: u64 = (0..i).filter(|&j| last_reads[j] >= i).map(|j| shapes[j].elements()).sum();
        let output = shapes[i].elements();
        let read = match layer.sources[0] {
            Source::Input => input,
            Source::Layer(s) => shapes[s].elements(),
        };
        // candle's operations are not fused: bias, normalisation and activation each hold their operands and result,
        // and a convolution copies its input channels-last.
        let scratch = match &layer.operation {
            Operation::Convolution { .. }
            | Operation::InstanceNorm { .. }
            | Operation::GroupNorm { .. }
            | Operation::BatchNorm { .. }
            | Operation::Activation { .. }
            | Operation::AveragePool { .. }
            | Operation::MaxPool { .. }
            | Operation::Resize { .. } => output.saturating_mul(2).max(read),
            // A copy of the input with a border, and the output twice, before and after its permutation.
            Operation::Upsampling { kernel, stride, padding, .. }
                if !(Transposed { kernel: *kernel, stride: *stride, padding: *padding }).is_blocks() =>
            {
                output.saturating_mul(2).saturating_add(read.saturating_mul(2))
            }
            _ => output,
        };
        most = most.max(input.saturating_add(waiting).saturating_add(output).saturating_add(scratch));
    }
    most.saturating_mul(width)
}
