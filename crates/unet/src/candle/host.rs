//! The lowering for the CPU in f32: candle's matrix product, and everything around it in place on plain rows.
//!
//! candle's own CPU convolution gathers its columns value by value and copies every input channels-last; its normalisation makes
//! eight passes over memory. Here columns are gathered row by row, and normalisation and activation work where the values lie.
//! What is computed is the same, and so is the arithmetic: f32 products and sums, normalisation statistics in f64.

use std::collections::BTreeMap;

use candle_core::{CpuStorage, Device, Result, Storage, Tensor};
use microtome_io::Size;

use crate::network::{Extent, Network, Operation, Shape, Source};
use crate::weights::Weight;

/// Columns are gathered for so many values at a time (1 MiB, which second-level caches hold), but for no fewer pixels than the second number,
/// so that a product's matrix of weights is read often enough to pay. Both depend on nothing that changes between runs.
const COLUMN_VALUES: usize = 1 << 18;
const COLUMN_PIXELS: usize = 512;

/// The network of one fold for tiles of one size, ready to run.
#[derive(Debug)]
pub(super) struct HostLowering {
    steps: Vec<Step>,
    sources: Vec<Vec<Source>>,
    shapes: Vec<Shape>,
    last_reads: Vec<usize>,
    input: Shape,
}

#[derive(Debug)]
enum Step {
    Convolution { matrix: Tensor, bias: Option<Vec<f32>>, kernel: Extent, stride: Extent },
    Upsampling { matrix: Tensor, bias: Option<Vec<f32>>, stride: Extent },
    InstanceNorm { affine: Option<(Vec<f32>, Vec<f32>)>, epsilon: f64 },
    Affine { factor: Vec<f32>, summand: Vec<f32> },
    LeakyRelu { slope: f32 },
    Concatenate,
}

impl HostLowering {
    /// # Panics
    /// If a weight is missing: they have been matched with the network before.
    pub(super) fn new(network: &Network, weights: &BTreeMap<String, Weight>, tile: Size) -> Result<Self> {
        let values = |name: &String| weights[name].values.to_vec();
        let affine = |names: &crate::network::Affine| (values(&names.weight), values(&names.bias));
        let step = |operation: &Operation| -> Result<Step> {
            Ok(match operation {
                Operation::Convolution { weight, bias, input, output, kernel, stride } => Step::Convolution {
                    matrix: Tensor::from_vec(values(weight), (*output, input * kernel.area()), &Device::Cpu)?,
                    bias: bias.as_ref().map(values),
                    kernel: *kernel,
                    stride: *stride,
                },
                Operation::Upsampling { weight, bias, input, output, stride } => Step::Upsampling {
                    matrix: Tensor::from_vec(values(weight), (*input, output * stride.area()), &Device::Cpu)?
                        .t()?
                        .contiguous()?,
                    bias: bias.as_ref().map(values),
                    stride: *stride,
                },
                Operation::InstanceNorm { affine: names, epsilon, .. } => {
                    Step::InstanceNorm { affine: names.as_ref().map(affine), epsilon: *epsilon }
                }
                Operation::BatchNorm { mean, variance, affine: names, channels, epsilon } => {
                    let (weight, bias) =
                        names.as_ref().map_or_else(|| (vec![1.0; *channels], vec![0.0; *channels]), affine);
                    let (mean, variance) = (values(mean), values(variance));
                    let factor = |i: usize| f64::from(weight[i]) / (f64::from(variance[i]) + epsilon).sqrt();
                    let summand = |i: usize| f64::from(bias[i]) - f64::from(mean[i]) * factor(i);
                    Step::Affine {
                        factor: (0..*channels).map(|i| factor(i) as f32).collect(),
                        summand: (0..*channels).map(|i| summand(i) as f32).collect(),
                    }
                }
                Operation::LeakyRelu { slope } => Step::LeakyRelu { slope: *slope as f32 },
                Operation::Concatenate => Step::Concatenate,
            })
        };
        let layers = network.layers();
        Ok(Self {
            steps: layers.iter().map(|l| step(&l.operation)).collect::<Result<_>>()?,
            sources: layers.iter().map(|l| l.sources.clone()).collect(),
            shapes: network.shapes(tile),
            last_reads: network.last_reads(),
            input: Shape { channels: network.channels(), size: tile },
        })
    }

    /// Logits of one tile: channels × height × width values in, heads × height × width out.
    pub(super) fn forward(&self, input: &[f32]) -> Result<Vec<f32>> {
        let mut outputs: Vec<Option<Vec<f32>>> = Vec::with_capacity(self.steps.len());
        for (i, (step, sources)) in self.steps.iter().zip(&self.sources).enumerate() {
            let first = sources[0];
            let output = match step {
                Step::Convolution { matrix, bias, kernel, stride } => {
                    let x = read(&outputs, first, input);
                    convolve(x, self.shape(first), self.shapes[i], matrix, bias.as_deref(), *kernel, *stride)?
                }
                Step::Upsampling { matrix, bias, stride } => {
                    upsample(read(&outputs, first, input), self.shape(first), matrix, bias.as_deref(), *stride)?
                }
                Step::Concatenate => [read(&outputs, first, input), read(&outputs, sources[1], input)].concat(),
                Step::InstanceNorm { affine, epsilon } => {
                    let mut x = self.take(&mut outputs, first, i, input);
                    instance_norm(&mut x, self.shapes[i], affine.as_ref(), *epsilon);
                    x
                }
                Step::Affine { factor, summand } => {
                    let mut x = self.take(&mut outputs, first, i, input);
                    for (plane, (f, s)) in planes(&mut x, self.shapes[i]).zip(factor.iter().zip(summand)) {
                        for v in plane {
                            *v = *v * f + s;
                        }
                    }
                    x
                }
                Step::LeakyRelu { slope } => {
                    let mut x = self.take(&mut outputs, first, i, input);
                    for v in &mut x {
                        *v = if *v > 0.0 { *v } else { *v * slope };
                    }
                    x
                }
            };
            for source in sources {
                if let Source::Layer(s) = source
                    && self.last_reads[*s] == i
                {
                    outputs[*s] = None;
                }
            }
            outputs.push(Some(output));
        }
        Ok(outputs.pop().flatten().unwrap_or_else(|| input.to_vec()))
    }

    fn shape(&self, source: Source) -> Shape {
        match source {
            Source::Input => self.input,
            Source::Layer(i) => self.shapes[i],
        }
    }

    /// The values of a source for a layer that overwrites them: a copy only if another layer still reads them.
    fn take(&self, outputs: &mut [Option<Vec<f32>>], source: Source, reader: usize, input: &[f32]) -> Vec<f32> {
        match source {
            Source::Layer(s) if self.last_reads[s] == reader => outputs[s].take().unwrap_or_default(),
            source => read(outputs, source, input).to_vec(),
        }
    }
}

fn read<'a>(outputs: &'a [Option<Vec<f32>>], source: Source, input: &'a [f32]) -> &'a [f32] {
    match source {
        Source::Input => input,
        Source::Layer(i) => outputs[i].as_deref().expect("a layer's output lives until its last reader has run"),
    }
}

fn planes(values: &mut [f32], shape: Shape) -> std::slice::ChunksExactMut<'_, f32> {
    values.chunks_exact_mut(shape.size.area() as usize)
}

/// The values of `matrix` × `columns`, handed to `then` without a copy.
fn multiply<T>(matrix: &Tensor, columns: Vec<f32>, pixels: usize, then: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let rows = matrix.dim(1)?;
    let product = matrix.matmul(&Tensor::from_vec(columns, (rows, pixels), &Device::Cpu)?)?;
    let (storage, _) = product.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => Ok(then(values)),
        _ => Err(candle_core::Error::Msg("a product on the CPU that is not f32".into())),
    }
}

fn convolve(
    x: &[f32],
    from: Shape,
    to: Shape,
    matrix: &Tensor,
    bias: Option<&[f32]>,
    kernel: Extent,
    stride: Extent,
) -> Result<Vec<f32>> {
    let (width, height) = (to.size.width as usize, to.size.height as usize);
    let area = width * height;
    let rows_of_matrix = from.channels * kernel.area();
    let pixels = (COLUMN_VALUES / rows_of_matrix).max(COLUMN_PIXELS);
    let band = (pixels / width).clamp(1, height);
    let mut y = vec![0.0; to.channels * area];
    for top in (0..height).step_by(band) {
        let rows = band.min(height - top);
        let columns = gather(x, from, width, top..top + rows, kernel, stride);
        multiply(matrix, columns, rows * width, |product| {
            for (channel, values) in product.chunks_exact(rows * width).enumerate() {
                let plane = &mut y[channel * area + top * width..][..rows * width];
                let bias = bias.map_or(0.0, |b| b[channel]);
                plane.iter_mut().zip(values).for_each(|(to, v)| *to = v + bias);
            }
        })?;
    }
    Ok(y)
}

/// For each weight of one output channel, the input values that it meets in these rows of the output.
fn gather(
    x: &[f32],
    from: Shape,
    width: usize,
    rows: std::ops::Range<usize>,
    kernel: Extent,
    stride: Extent,
) -> Vec<f32> {
    let (from_width, from_height) = (from.size.width as usize, from.size.height as usize);
    let (pad_y, pad_x) = ((kernel.height - 1) / 2, (kernel.width - 1) / 2);
    let pixels = rows.len() * width;
    let mut columns = vec![0.0; from.channels * kernel.area() * pixels];
    let mut column = columns.chunks_exact_mut(pixels);
    for plane in x.chunks_exact(from_width * from_height) {
        for ky in 0..kernel.height {
            for kx in 0..kernel.width {
                let Some(column) = column.next() else { break };
                // Output columns whose input lies inside: pad_x <= ox * stride + kx < from_width + pad_x.
                let first = pad_x.saturating_sub(kx).div_ceil(stride.width).min(width);
                let end = (from_width + pad_x).saturating_sub(kx).div_ceil(stride.width).clamp(first, width);
                for (line, oy) in column.chunks_exact_mut(width).zip(rows.clone()) {
                    let Some(iy) = (oy * stride.height + ky).checked_sub(pad_y).filter(|iy| *iy < from_height) else {
                        continue;
                    };
                    if first == end {
                        continue;
                    }
                    let source = &plane[iy * from_width..][..from_width][first * stride.width + kx - pad_x..];
                    if stride.width == 1 {
                        line[first..end].copy_from_slice(&source[..end - first]);
                    } else {
                        line[first..end]
                            .iter_mut()
                            .zip(source.iter().step_by(stride.width))
                            .for_each(|(to, v)| *to = *v);
                    }
                }
            }
        }
    }
    columns
}

fn upsample(x: &[f32], from: Shape, matrix: &Tensor, bias: Option<&[f32]>, stride: Extent) -> Result<Vec<f32>> {
    let (width, height) = (from.size.width as usize, from.size.height as usize);
    let (area, wide) = (width * height, width * stride.width);
    let channels = matrix.dim(0)? / stride.area();
    let mut y = vec![0.0; channels * area * stride.area()];
    multiply(matrix, x.to_vec(), area, |product| {
        // A row of the product holds, for one output channel and one position in the stride's block, that pixel of all blocks.
        for (row, values) in product.chunks_exact(area).enumerate() {
            let (channel, position) = (row / stride.area(), row % stride.area());
            let (sy, sx) = (position / stride.width, position % stride.width);
            let bias = bias.map_or(0.0, |b| b[channel]);
            let plane = &mut y[channel * area * stride.area()..][..area * stride.area()];
            for (line, values) in
                plane.chunks_exact_mut(wide).skip(sy).step_by(stride.height).zip(values.chunks_exact(width))
            {
                line.iter_mut().skip(sx).step_by(stride.width).zip(values).for_each(|(to, v)| *to = v + bias);
            }
        }
    })?;
    Ok(y)
}

fn instance_norm(x: &mut [f32], shape: Shape, affine: Option<&(Vec<f32>, Vec<f32>)>, epsilon: f64) {
    for (channel, plane) in planes(x, shape).enumerate() {
        let n = plane.len() as f64;
        let mean = sum(plane, f64::from) / n;
        let variance = sum(plane, |v| (f64::from(v) - mean) * (f64::from(v) - mean)) / n;
        let (weight, bias) = affine.map_or((1.0, 0.0), |(w, b)| (w[channel], b[channel]));
        let factor = (f64::from(weight) / (variance + epsilon).sqrt()) as f32;
        let mean = mean as f32;
        for v in plane {
            *v = (*v - mean) * factor + bias;
        }
    }
}

/// A sum in f64, in eight strands so that additions need not wait for each other; the order is always the same.
fn sum(values: &[f32], of: impl Fn(f32) -> f64) -> f64 {
    let (chunks, rest) = values.as_chunks::<8>();
    let mut strands = [0.0_f64; 8];
    for chunk in chunks {
        strands.iter_mut().zip(chunk).for_each(|(s, v)| *s += of(*v));
    }
    strands.iter().sum::<f64>() + rest.iter().map(|v| of(*v)).sum::<f64>()
}

/// Bytes that one forward over one tile needs at its widest: what waits to be read, the layer's input and output, and its scratch.
pub(super) fn activation_bytes(network: &Network, tile: Size) -> u64 {
    let shapes = network.shapes(tile);
    let last_reads = network.last_reads();
    let input = Shape { channels: network.channels(), size: tile };
    let mut most = 0_u64;
    for (i, layer) in network.layers().iter().enumerate() {
        let waiting: u64 = (0..i).filter(|&j| last_reads[j] >= i).map(|j| shapes[j].elements()).sum();
        let source = |s: Source| match s {
            Source::Input => input,
            Source::Layer(s) => shapes[s],
        };
        let own = match &layer.operation {
            Operation::Convolution { input, output, kernel, .. } => {
                let rows = (input * kernel.area()) as u64;
                let pixels = (COLUMN_VALUES as u64 / rows).max(COLUMN_PIXELS as u64).max(shapes[i].size.width);
                let pixels = pixels.min(shapes[i].size.area());
                // Columns, their packed copy inside the matrix product, the product.
                shapes[i].elements() + pixels * (2 * rows + *output as u64)
            }
            Operation::Upsampling { .. } => 2 * shapes[i].elements() + 2 * source(layer.sources[0]).elements(),
            Operation::Concatenate => shapes[i].elements(),
            // In place; the input counts as waiting.
            Operation::InstanceNorm { .. } | Operation::BatchNorm { .. } | Operation::LeakyRelu { .. } => 0,
        };
        most = most.max(input.elements().saturating_add(waiting).saturating_add(own));
    }
    most.saturating_mul(4)
}
