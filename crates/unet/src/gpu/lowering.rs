//! A network as operations on tensors that lie channels last, with its weights on a device.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Result, Tensor};
use microtome_io::Size;

use super::blocks::Blocks;
use super::convolution::{Convolution, Convolver};
use super::norm::NormActivation;
use crate::candle::{Curve, as_convolution, batch_norm, combine, with_bias};
use crate::network::{Affine, Extent, Function, Layer, Network, Operation, Shape, Source};
use crate::taps::Separable;
use crate::transposed::Transposed;
use crate::weights::Weight;

/// The network of one fold, ready to run.
#[derive(Debug)]
pub(super) struct Lowering {
    /// One for each layer; `None` where a later one does its work.
    steps: Vec<Option<Step>>,
    sources: Vec<Vec<Source>>,
    last_reads: Vec<usize>,
    /// The input is filled up with channels of zeros to this number.
    channels: usize,
}

#[derive(Debug)]
enum Step {
    Convolution(Convolution, Option<Tensor>),
    /// A kernel of one pixel is a product of matrices.
    Product {
        matrix: Tensor,
        bias: Option<Tensor>,
    },
    /// So is a transposed convolution without overlap, whose values are then blocks of pixels.
    Upsampling {
        matrix: Tensor,
        bias: Tensor,
        blocks: Blocks,
    },
    /// One with overlap is a convolution of its taps.
    Overlapping {
        taps: Convolution,
        bias: Option<Tensor>,
        transposed: Transposed,
    },
    /// Instance normalisation with what follows it: the second source, if there is one, is added before the activation.
    NormActivation(NormActivation, Tensor),
    GroupNorm {
        scale: Option<(Tensor, Tensor)>,
        groups: usize,
        epsilon: f64,
    },
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

/// What becomes of a normalisation in what follows it.
#[derive(Debug, Clone, Copy)]
struct Fusion {
    /// The layer that takes its place: itself, or the last one that belongs to it.
    at: usize,
    residual: Option<Source>,
    slope: f32,
}

/// Finds the sum and the leaky ReLU that can be computed together with a normalisation: each read by nothing but the next.
fn fusion(layers: &[Layer], readers: &[Vec<usize>], taken: &[bool], norm: usize) -> Fusion {
    let only = |layer: usize| match readers[layer][..] {
        [reader] => Some(reader),
        _ => None,
    };
    let slope = |layer: usize| match layers[layer].operation {
        Operation::Activation { function: Function::LeakyRelu { slope } } => Some(slope as f32),
        _ => None,
    };
    let alone = Fusion { at: norm, residual: None, slope: 1.0 };
    // A sum of two normalisations belongs to the first of them.
    let Some(next) = only(norm).filter(|next| !taken[*next]) else { return alone };
    if let Some(slope) = slope(next) {
        return Fusion { at: next, residual: None, slope };
    }
    if layers[next].operation != Operation::Add {
        return alone;
    }
    // Not the normalisation itself: then it would have two readers.
    let residual = layers[next].sources.iter().copied().find(|source| *source != Source::Layer(norm));
    match only(next).and_then(|last| Some((last, slope(last)?))) {
        Some((at, slope)) => Fusion { at, residual, slope },
        None => Fusion { at: next, residual, slope: 1.0 },
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
        let layers = network.layers();
        let shapes = network.shapes(tile);
        let mut readers: Vec<Vec<usize>> = vec![Vec::new(); layers.len()];
        for (reader, layer) in layers.iter().enumerate() {
            for source in &layer.sources {
                if let Source::Layer(i) = source {
                    readers[*i].push(reader);
                }
            }
        }
        // Tensor cores take eight channels at once; an RGB image has three.
        let channels = if dtype == DType::F32 { network.channels() } else { network.channels().next_multiple_of(8) };
        let maker = Maker { weights, dtype, device };
        let mut steps: Vec<Option<Step>> = Vec::new();
        steps.resize_with(layers.len(), || None);
        let mut sources: Vec<Vec<Source>> = layers.iter().map(|layer| layer.sources.clone()).collect();
        let mut taken = vec![false; layers.len()];
        for (i, (layer, to)) in layers.iter().zip(&shapes).enumerate() {
            if taken[i] {
                continue;
            }
            let step = if let Operation::InstanceNorm { affine, epsilon, channels } = &layer.operation {
                let Fusion { at, residual, slope } = fusion(layers, &readers, &taken, i);
                for layer in i + 1..=at {
                    let between = readers[i].contains(&layer) || layer == at;
                    taken[layer] |= between;
                    if between {
                        sources[layer].clear();
                    }
                }
                let first = layer.sources[0];
                sources[i].clear();
                sources[at] = std::iter::once(first).chain(residual).collect();
                let norm = NormActivation { epsilon: *epsilon as f32, slope };
                steps[at] = Some(Step::NormActivation(norm, maker.affine(affine.as_ref(), *channels)?));
                continue;
            } else {
                // What is the same for a whole channel falls out of the normalisation that follows.
                let normalized = matches!(readers[i][..], [next] if matches!(layers[next].operation, Operation::InstanceNorm { .. }));
                let from = match layer.sources[0] {
                    Source::Input => Shape { channels: network.channels(), size: tile },
                    Source::Layer(s) => shapes[s],
                };
                let padded = if layer.sources[0] == Source::Input { channels } else { from.channels };
                maker.step(&layer.operation, from, *to, padded, !normalized)?
            };
            steps[i] = Some(step);
        }
        let mut last_reads: Vec<usize> = (0..layers.len()).collect();
        for (reader, sources) in sources.iter().enumerate() {
            for source in sources {
                if let Source::Layer(i) = source {
                    last_reads[*i] = reader;
                }
            }
        }
        Ok(Self { steps, sources, last_reads, channels })
    }

    /// Tiles × rows × columns × heads of tiles × rows × columns × channels.
    pub(super) fn forward(&self, input: &Tensor, convolver: &mut Convolver) -> Result<Tensor> {
        let lacking = self.channels - input.dim(D::Minus1)?;
        let reads_padded = |step: &Option<Step>| matches!(step, Some(Step::Convolution(..) | Step::Product { .. }));
        let padded = if lacking > 0 { input.pad_with_zeros(D::Minus1, 0, lacking)? } else { input.clone() };
        let mut outputs: Vec<Option<Tensor>> = Vec::with_capacity(self.steps.len());
        for (i, step) in self.steps.iter().enumerate() {
            let read = |source: &Source| match source {
                Source::Input if reads_padded(step) => padded.clone(),
                Source::Input => input.clone(),
                Source::Layer(i) => outputs[*i].clone().expect("a layer's output lives until its last reader has run"),
            };
            let sources: Vec<Tensor> = self.sources[i].iter().map(read).collect();
            outputs.push(step.as_ref().map(|step| step.run(&sources, convolver)).transpose()?);
            drop(sources);
            for source in &self.sources[i] {
                if let Source::Layer(s) = source
                    && self.last_reads[*s] == i
                {
                    outputs[*s] = None;
                }
            }
        }
        Ok(outputs.pop().flatten().unwrap_or_else(|| input.clone()))
    }
}

/// Makes steps of layers.
struct Maker<'a> {
    weights: &'a BTreeMap<String, Weight>,
    dtype: DType,
    device: &'a Device,
}

impl Maker<'_> {
    fn host(&self, name: &str) -> Result<Tensor> {
        let weight = &self.weights[name];
        Tensor::from_slice(&weight.values, weight.shape.as_slice(), &Device::Cpu)
    }

    fn place(&self, tensor: &Tensor, dtype: DType) -> Result<Tensor> {
        tensor.contiguous()?.to_device(self.device)?.to_dtype(dtype)
    }

    fn per_channel(&self, name: &str, dtype: DType) -> Result<Tensor> {
        self.place(&self.host(name)?.reshape((1, 1, 1, ()))?, dtype)
    }

    fn bias(&self, bias: Option<&String>) -> Result<Option<Tensor>> {
        bias.map(|bias| self.per_channel(bias, self.dtype)).transpose()
    }

    /// Factors, then summands, 2 × channels, f32.
    fn affine(&self, affine: Option<&Affine>, channels: usize) -> Result<Tensor> {
        let pair = match affine {
            Some(affine) => Tensor::cat(&[self.host(&affine.weight)?, self.host(&affine.bias)?], 0)?,
            None => Tensor::cat(
                &[
                    Tensor::ones(channels, DType::F32, &Device::Cpu)?,
                    Tensor::zeros(channels, DType::F32, &Device::Cpu)?,
                ],
                0,
            )?,
        };
        self.place(&pair.reshape((2, channels))?, DType::F32)
    }

    /// A kernel, output × rows × columns × input, for so many input channels.
    fn kernel(&self, weight: &Tensor, channels: usize) -> Result<Tensor> {
        let kernel = weight.permute((0, 2, 3, 1))?.contiguous()?;
        let lacking = channels - kernel.dim(3)?;
        let kernel = if lacking > 0 { kernel.pad_with_zeros(3, 0, lacking)? } else { kernel };
        self.place(&kernel, self.dtype)
    }

    fn step(&self, operation: &Operation, from: Shape, to: Shape, padded: usize, with_bias: bool) -> Result<Step> {
        Ok(match operation {
            Operation::Convolution { weight, bias, kernel, stride, .. } => {
                let bias = self.bias(bias.as_ref().filter(|_| with_bias))?;
                let weight = self.kernel(&self.host(weight)?, padded)?;
                if kernel.area() == 1 && stride.area() == 1 {
                    let (output, input) = (weight.dim(0)?, weight.dim(3)?);
                    let matrix = weight.reshape((output, input))?.t()?.contiguous()?;
                    return Ok(Step::Product { matrix, bias });
                }
                let padding = [(kernel.height - 1) / 2, (kernel.width - 1) / 2];
                Step::Convolution(Convolution::new(weight, *kernel, *stride, padding), bias)
            }
            Operation::Upsampling { weight, bias, input, output, kernel, stride, padding } => {
                let bias = self.bias(bias.as_ref().filter(|_| with_bias))?;
                let transposed = Transposed { kernel: *kernel, stride: *stride, padding: *padding };
                if transposed.is_blocks() {
                    // Input × output × rows × columns becomes input × (rows × columns × output).
                    let matrix = self.host(weight)?.permute((0, 2, 3, 1))?;
                    let matrix = matrix.contiguous()?.reshape((*input, stride.area() * output))?;
                    let bias = match bias {
                        Some(bias) => bias,
                        None => Tensor::zeros(*output, self.dtype, self.device)?,
                    };
                    let matrix = self.place(&matrix, self.dtype)?;
                    return Ok(Step::Upsampling { matrix, bias, blocks: Blocks { extent: *stride } });
                }
                let taps = as_convolution(&self.weights[weight], (*input, *output), transposed)?;
                let taps = self.kernel(&taps, *input)?;
                let taps = Convolution::new(taps, transposed.taps(), Extent::ONE, [0, 0]);
                Step::Overlapping { taps, bias, transposed }
            }
            Operation::GroupNorm { affine, groups, epsilon, .. } => {
                let pair = |a: &Affine| {
                    Result::Ok((self.per_channel(&a.weight, DType::F32)?, self.per_channel(&a.bias, DType::F32)?))
                };
                let scale = affine.as_ref().map(pair).transpose()?;
                Step::GroupNorm { scale, groups: *groups, epsilon: *epsilon }
            }
            Operation::BatchNorm { mean, variance, affine, epsilon, .. } => {
                let value = |name: &String| self.per_channel(name, DType::F32);
                let (factor, summand) = batch_norm([mean, variance], affine.as_ref(), *epsilon, value)?;
                Step::Affine { factor, summand }
            }
            Operation::Activation { function } => {
                Step::Activation(Curve::new(function, |slopes| self.per_channel(slopes, self.dtype))?)
            }
            Operation::Concatenate => Step::Concatenate,
            Operation::Add => Step::Add,
            Operation::PixelShuffle { factor } => Step::Shuffle(Extent { height: *factor, width: *factor }),
            Operation::AveragePool { .. } | Operation::MaxPool { .. } | Operation::Resize { .. } => {
                Step::Separable(Separable::new(operation, from.size, to.size).expect("it is one of these"))
            }
            Operation::InstanceNorm { .. } => unreachable!("made together with what follows"),
        })
    }
}

impl Step {
    fn run(&self, sources: &[Tensor], convolver: &mut Convolver) -> Result<Tensor> {
        let x = &sources[0];
        match self {
            Self::Convolution(convolution, bias) => with_bias(convolver.run(x, convolution)?, bias.as_ref()),
            Self::Product { matrix, bias } => with_bias(product(x, matrix)?, bias.as_ref()),
            Self::Upsampling { matrix, bias, blocks } => blocks.run(&product(x, matrix)?, bias),
            Self::Overlapping { taps, bias, transposed } => {
                let (extent, before) = (transposed.taps(), transposed.before());
                let x = x.pad_with_zeros(1, before.height, extent.height - 1 - before.height)?;
                let x = x.pad_with_zeros(2, before.width, extent.width - 1 - before.width)?;
                with_bias(shuffle(&convolver.run(&x, taps)?, transposed.stride)?, bias.as_ref())
            }
            Self::NormActivation(norm, scale) => norm.run(x, scale, sources.get(1)),
            Self::GroupNorm { scale, groups, epsilon } => group_norm(x, scale.as_ref(), *groups, *epsilon),
            // In f32 whatever the precision: product and summand may be large against their sum.
            Self::Affine { factor, summand } => {
                x.to_dtype(DType::F32)?.broadcast_mul(factor)?.broadcast_add(summand)?.to_dtype(x.dtype())
            }
            Self::Activation(curve) => curve.run(x),
            Self::Concatenate => Tensor::cat(&[x, &sources[1]], D::Minus1),
            Self::Add => x + &sources[1],
            Self::Separable(Separable { combination, rows, columns }) => {
                combine(&combine(x, rows, *combination, 1)?, columns, *combination, 2)
            }
            Self::Shuffle(factor) => shuffle(x, *factor),
        }
    }
}

/// The channels of each pixel times a matrix, input × output.
fn product(x: &Tensor, matrix: &Tensor) -> Result<Tensor> {
    let (n, h, w, input) = x.dims4()?;
    x.reshape((n * h * w, input))?.matmul(matrix)?.reshape((n, h, w, matrix.dim(1)?))
}

/// Blocks of neighbouring channels, row by row, become blocks of pixels.
fn shuffle(x: &Tensor, factor: Extent) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    let (down, across) = (factor.height, factor.width);
    let output = c / factor.area();
    let y = x.reshape(&[n, h, w, output, down, across])?.permute([0, 1, 4, 2, 5, 3])?;
    y.reshape((n, h * down, w * across, output))
}

/// In f32 whatever the precision. Sums run first over rows of a group, then over rows, so that no long sum loses small summands.
fn group_norm(x: &Tensor, scale: Option<&(Tensor, Tensor)>, groups: usize, epsilon: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let (n, h, w, c) = x.dims4()?;
    let wide = x.to_dtype(DType::F32)?;
    let rows = wide.reshape(&[n, h, w, groups, c / groups])?.permute([0, 3, 1, 2, 4])?;
    let rows = rows.reshape((n, groups, h, w * (c / groups)))?;
    let mean = |t: &Tensor| t.mean_keepdim(3)?.mean_keepdim(2);
    let centred = rows.broadcast_sub(&mean(&rows)?)?;
    let variance = mean(&centred.sqr()?)?;
    let y = centred.broadcast_mul(&(variance + epsilon)?.sqrt()?.recip()?)?;
    let y = y.reshape(&[n, groups, h, w, c / groups])?.permute([0, 2, 3, 1, 4])?.reshape((n, h, w, c))?;
    let y = match scale {
        Some((factor, summand)) => y.broadcast_mul(factor)?.broadcast_add(summand)?,
        None => y,
    };
    y.to_dtype(dtype)
}

/// Logits of any network on candle's CPU device, to compare with.
///
/// # Errors
/// If candle fails.
#[cfg(test)]
pub(crate) fn run_on_cpu(
    network: &Network,
    tile: Size,
    weights: &BTreeMap<String, Weight>,
    input: &[f32],
) -> Result<Vec<f32>> {
    let lowering = Lowering::new(network, tile, weights, DType::F32, &Device::Cpu)?;
    let shape = (1, tile.height as usize, tile.width as usize, network.channels());
    let input = Tensor::from_slice(input, shape, &Device::Cpu)?;
    let logits = lowering.forward(&input, &mut Convolver::default())?;
    logits.permute((0, 3, 1, 2))?.flatten_all()?.to_vec1()
}
