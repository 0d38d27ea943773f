//! The CPU's lowering against formulas in f64, against candle's operations, and against nnU-Net.

use microtome_io::Size;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::*;
use crate::architecture::tests::tiny;
use crate::architecture::{Activation, Norm, residual_tests as residual};
use crate::model::tests::{random, reference_model};
use crate::model::{Model, ModelOptions};
use crate::network::{Extent, Factor, Function, Interpolation, Operation, Padding, Shape, Source};
use crate::{Architecture, Execution, Mirroring, Precision, candle, ensemble, gpu};

/// Numbers that look random, are the same on every machine, and lie in -1..1.
fn noise(seed: u32) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from((state >> 16) as u16) / 32768.0 - 1.0
    }
}

/// Weights for any network: of a size that keeps sums near 1, positive where a root is taken.
fn weights(network: &Network, seed: u32) -> BTreeMap<String, Weight> {
    let mut next = noise(seed);
    let mut weight = |name: &str, shape: Vec<usize>| {
        let n: usize = shape.iter().product();
        let width = (3.0 * shape[0] as f32 / n as f32).sqrt();
        let values = (0..n).map(|_| match name {
            _ if name.ends_with("variance") => 1.0 + 0.5 * next(),
            _ if shape.len() == 1 => next(),
            _ => next() * width,
        });
        Weight { values: values.collect(), shape }
    };
    network.weights().into_iter().map(|w| (w.name.clone(), weight(&w.name, w.shape))).collect()
}

/// The network by the formulas of [`Operation`], in f64, plane by plane; what convolutions multiply is rounded as `words` hold it.
fn by_formula(
    network: &Network,
    tile: Size,
    weights: &BTreeMap<String, Weight>,
    input: &[f32],
    words: Words,
) -> Vec<f64> {
    let held = |x: f64| match words {
        Words::F32 => x,
        Words::Bf16 => f64::from(bf16::round(x as f32)),
    };
    let shapes = network.shapes(tile);
    let channels = network.channels();
    let area = tile.area() as usize;
    // Channels last becomes planes.
    let planar: Vec<f64> = (0..channels * area).map(|i| f64::from(input[(i % area) * channels + i / area])).collect();
    let value = |name: &String, i: usize| f64::from(weights[name].values[i]);
    let mut outputs: Vec<Vec<f64>> = Vec::new();
    for (layer, to) in network.layers().iter().zip(&shapes) {
        let read = |source: Source| match source {
            Source::Input => (planar.clone(), Shape { channels, size: tile }),
            Source::Layer(i) => (outputs[i].clone(), shapes[i]),
        };
        let (x, from) = read(layer.sources[0]);
        let (width, height) = (from.size.width as usize, from.size.height as usize);
        let (columns, rows) = (to.size.width as usize, to.size.height as usize);
        let mut y = vec![0.0; to.elements() as usize];
        let normalize = |y: &mut [f64], affine: &Option<Affine>, epsilon: f64, of: &dyn Fn(usize) -> (f64, f64)| {
            for (c, (y, x)) in y.chunks_mut(width * height).zip(x.chunks(width * height)).enumerate() {
                let (mean, variance) = of(c);
                let (w, b) = affine.as_ref().map_or((1.0, 0.0), |a| (value(&a.weight, c), value(&a.bias, c)));
                y.iter_mut().zip(x).for_each(|(y, x)| *y = (x - mean) / (variance + epsilon).sqrt() * w + b);
            }
        };
        match &layer.operation {
            Operation::Convolution { weight, bias, input, output, kernel, stride } => {
                for o in 0..*output {
                    for (oy, ox) in (0..rows).flat_map(|oy| (0..columns).map(move |ox| (oy, ox))) {
                        let mut sum = bias.as_ref().map_or(0.0, |b| value(b, o));
                        for i in 0..*input {
                            for (ky, kx) in (0..kernel.height).flat_map(|ky| (0..kernel.width).map(move |kx| (ky, kx)))
                            {
                                let iy = (oy * stride.height + ky).wrapping_sub((kernel.height - 1) / 2);
                                let ix = (ox * stride.width + kx).wrapping_sub((kernel.width - 1) / 2);
                                if iy < height && ix < width {
                                    let at = ((o * input + i) * kernel.height + ky) * kernel.width + kx;
                                    sum += held(value(weight, at)) * held(x[(i * height + iy) * width + ix]);
                                }
                            }
                        }
                        y[(o * rows + oy) * columns + ox] = sum;
                    }
                }
            }
            Operation::Upsampling { weight, bias, input, output, kernel, stride, padding } => {
                // Every input pixel adds to the pixels under its kernel, as far as they lie inside.
                for (o, plane) in y.chunks_mut(rows * columns).enumerate() {
                    plane.fill(bias.as_ref().map_or(0.0, |b| value(b, o)));
                    for (i, iy, ix) in
                        (0..*input).flat_map(|i| (0..height).flat_map(move |iy| (0..width).map(move |ix| (i, iy, ix))))
                    {
                        let from = held(x[(i * height + iy) * width + ix]);
                        for (ky, kx) in (0..kernel.height).flat_map(|ky| (0..kernel.width).map(move |kx| (ky, kx))) {
                            let oy = (iy * stride.height + ky).wrapping_sub(padding.height);
                            let ox = (ix * stride.width + kx).wrapping_sub(padding.width);
                            if oy < rows && ox < columns {
                                let at = ((i * output + o) * kernel.height + ky) * kernel.width + kx;
                                plane[oy * columns + ox] += held(value(weight, at)) * from;
                            }
                        }
                    }
                }
            }
            Operation::InstanceNorm { affine, epsilon, .. } => {
                let n = (width * height) as f64;
                let statistics = |c: usize| {
                    let plane = &x[c * width * height..][..width * height];
                    let mean = plane.iter().sum::<f64>() / n;
                    (mean, plane.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n)
                };
                normalize(&mut y, affine, *epsilon, &statistics);
            }
            Operation::BatchNorm { mean, variance, affine, epsilon, .. } => {
                normalize(&mut y, affine, *epsilon, &|c| (value(mean, c), value(variance, c)));
            }
            Operation::GroupNorm { affine, groups, channels, epsilon } => {
                let together = channels / groups * width * height;
                let statistics = |c: usize| {
                    let group = &x[c / (channels / groups) * together..][..together];
                    let mean = group.iter().sum::<f64>() / together as f64;
                    (mean, group.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / together as f64)
                };
                normalize(&mut y, affine, *epsilon, &statistics);
            }
            Operation::Activation { function } => {
                for (i, (y, x)) in y.iter_mut().zip(&x).enumerate() {
                    let bent = |slope: f64| if *x > 0.0 { *x } else { x * slope };
                    *y = match function {
                        Function::LeakyRelu { slope } => bent(f64::from(*slope as f32)),
                        Function::PRelu { weight, values } => bent(value(weight, i / (width * height) % values)),
                        Function::Silu => x / (1.0 + (-x).exp()),
                        Function::Mish => x * x.exp().ln_1p().tanh(),
                        Function::Gelu => x / 2.0 * (1.0 + erf(x / std::f64::consts::SQRT_2)),
                        Function::GeluTanh => {
                            x / 2.0 * (1.0 + (std::f64::consts::FRAC_2_PI.sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
                        }
                    };
                }
            }
            Operation::Concatenate => y = [x, read(layer.sources[1]).0].concat(),
            Operation::Add => y = x.iter().zip(read(layer.sources[1]).0).map(|(a, b)| a + b).collect(),
            Operation::AveragePool { kernel, stride, before } => {
                pool(&mut y, to, |c: usize, oy: usize, ox: usize| {
                    let under = (0..kernel.height).flat_map(|ky| (0..kernel.width).map(move |kx| (ky, kx)));
                    let place = |(ky, kx): (usize, usize)| {
                        let iy = (oy * stride.height + ky).checked_sub(before.height)?;
                        let ix = (ox * stride.width + kx).checked_sub(before.width)?;
                        Some(x[(c * height + iy) * width + ix])
                    };
                    under.filter_map(place).sum::<f64>() / kernel.area() as f64
                });
            }
            Operation::MaxPool { kernel, stride, padding } => {
                pool(&mut y, to, |c: usize, oy: usize, ox: usize| {
                    let under = (0..kernel.height).flat_map(|ky| (0..kernel.width).map(move |kx| (ky, kx)));
                    let place = |(ky, kx): (usize, usize)| {
                        let iy: usize = (oy * stride.height + ky).wrapping_sub(padding.height);
                        let ix: usize = (ox * stride.width + kx).wrapping_sub(padding.width);
                        (iy < height && ix < width).then(|| x[(c * height + iy) * width + ix])
                    };
                    under.filter_map(place).fold(f64::NEG_INFINITY, f64::max)
                });
            }
            Operation::PixelShuffle { factor: f } => {
                pool(&mut y, to, |c: usize, oy: usize, ox: usize| {
                    let channel = (c * f + oy % f) * f + ox % f;
                    x[(channel * height + oy / f) * width + ox / f]
                });
            }
            Operation::Resize { factor, interpolation } => {
                let axis = |o: usize, outputs: usize, inputs: usize, factor: f64| {
                    let at = match interpolation {
                        // PyTorch's f32 never falls short of a whole number with the factors of these tests.
                        Interpolation::Nearest => (o as f64 / factor + 1e-9).floor(),
                        Interpolation::Bilinear => ((o as f64 + 0.5) / factor - 0.5).max(0.0),
                        Interpolation::BilinearCorners if outputs > 1 => {
                            o as f64 * (inputs - 1) as f64 / (outputs - 1) as f64
                        }
                        Interpolation::BilinearCorners => 0.0,
                    }
                    .min((inputs - 1) as f64);
                    let lower = at.floor();
                    (lower as usize, (lower as usize + 1).min(inputs - 1), at - lower)
                };
                pool(&mut y, to, |c: usize, oy: usize, ox: usize| {
                    let (top, bottom, down) = axis(oy, rows, height, factor.height);
                    let (left, right, across) = axis(ox, columns, width, factor.width);
                    let at = |iy: usize, ix: usize| x[(c * height + iy) * width + ix];
                    let row = |iy: usize| at(iy, left) * (1.0 - across) + at(iy, right) * across;
                    row(top) * (1.0 - down) + row(bottom) * down
                });
            }
        }
        outputs.push(y);
    }
    outputs.pop().unwrap_or(planar)
}

/// Fills planes from channel, row and column.
fn pool(y: &mut [f64], shape: &Shape, of: impl Fn(usize, usize, usize) -> f64) {
    let (columns, rows) = (shape.size.width as usize, shape.size.height as usize);
    y.iter_mut().enumerate().for_each(|(i, y)| *y = of(i / (rows * columns), i / columns % rows, i % columns));
}

/// The error function in f64, by the series of `erf(x) * exp(x^2)`, whose terms all have one sign.
pub(in crate::cpu) fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

/// Whose work is compared with the formulas.
#[derive(Debug, Clone, Copy)]
enum Worker {
    Ours(InstructionSet, Words, Arithmetic),
    Candle,
    /// The engine of GPUs, on candle's CPU device.
    Gpu,
}

impl Worker {
    fn all() -> impl Iterator<Item = Self> {
        InstructionSet::available().flat_map(Self::with).chain([Self::Candle, Self::Gpu])
    }

    /// What we can do with some instructions.
    fn with(set: InstructionSet) -> impl Iterator<Item = Self> {
        let words = [Words::F32, Words::Bf16].into_iter();
        words.flat_map(move |words| [Arithmetic::Exact, Arithmetic::Fast].map(|a| Self::Ours(set, words, a)))
    }

    /// What is multiplied.
    fn words(self) -> Words {
        if let Self::Ours(_, words, _) = self { words } else { Words::F32 }
    }

    /// How far it may be from the formulas, relative to the largest value. [`how_large_the_errors_become`] found, over 3000 networks,
    /// 3.5e-6 and 1.0e-5 in f32, 1.0e-3 and 6.6e-3 in bf16. The formulas round what the definition's convolutions round:
    /// what is left are numbers that f32 and f64 round to different sides.
    fn tolerance(self) -> f64 {
        match self {
            Self::Ours(_, Words::F32, Arithmetic::Fast) => 3e-5,
            Self::Ours(_, Words::Bf16, Arithmetic::Fast) => 3e-2,
            Self::Ours(_, Words::Bf16, _) => 5e-3,
            Self::Candle | Self::Gpu | Self::Ours(_, Words::F32, _) => EXACT,
        }
    }
}

impl std::fmt::Display for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ours(set, words, arithmetic) => write!(f, "{set} {words:?} {arithmetic}"),
            Self::Candle => f.write_str("candle's operations"),
            Self::Gpu => f.write_str("the engine of GPUs"),
        }
    }
}

/// The logits of a pass that some threads help with.
fn with_helpers(packed: &PackedNetwork, input: &[f32], helpers: usize) -> Vec<f32> {
    let crew = Crew::default();
    let leadership = crew.lead();
    std::thread::scope(|scope| {
        (0..helpers).for_each(|_| drop(scope.spawn(|| packed.help(&crew))));
        let logits = packed.forward(input, &crew).unwrap();
        drop(leadership);
        logits
    })
}

/// The largest difference from the formulas, relative to the largest value.
fn error(network: &Network, tile: Size, seed: u32, worker: Worker) -> f64 {
    let weights = weights(network, seed);
    let input: Vec<f32> =
        std::iter::repeat_with(noise(!seed)).take(tile.area() as usize * network.channels()).collect();
    let expected = by_formula(network, tile, &weights, &input, worker.words());
    let largest = expected.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
    let difference = |found: &[f32]| {
        assert_eq!(found.len(), expected.len());
        found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max) / largest
    };
    let (set, words, arithmetic) = match worker {
        Worker::Ours(set, words, arithmetic) => (set, words, arithmetic),
        Worker::Candle => return difference(&candle::run_on_cpu(network, tile, &weights, &input).unwrap()),
        Worker::Gpu => return difference(&gpu::run_on_cpu(network, tile, &weights, &input).unwrap()),
    };
    let packed = PackedNetwork::new(Arc::new(Plan::new(network, tile, set, words, arithmetic)), &weights);
    // Twice, because the second pass finds what the first has left in memory; and nobody who helps changes a bit.
    let found = packed.forward(&input, &Crew::default()).unwrap();
    assert_eq!(found, with_helpers(&packed, &input, 2));
    difference(&found)
}

fn convolution(index: usize, input: usize, output: usize, kernel: Extent, stride: Extent, bias: bool) -> Operation {
    Operation::Convolution {
        weight: format!("{index}.weight"),
        bias: bias.then(|| format!("{index}.bias")),
        input,
        output,
        kernel,
        stride,
    }
}

fn extent(height: usize, width: usize) -> Extent {
    Extent { height, width }
}

/// What a random network appends.
#[derive(Debug, Clone)]
enum Choice {
    Convolution {
        output: usize,
        kernel: (usize, usize),
        stride: (usize, usize),
        bias: bool,
    },
    /// For each axis kernel, stride and padding.
    Upsampling {
        output: usize,
        axes: [(usize, usize, usize); 2],
        bias: bool,
    },
    Instance {
        affine: bool,
    },
    Batch {
        affine: bool,
    },
    /// With the greatest number of groups up to this one that divides the channels.
    Group {
        groups: usize,
        affine: bool,
    },
    Bend,
    PRelu {
        single: bool,
    },
    Curve(Function),
    /// Kernel, stride, padding if there is room for it.
    Pool {
        kernel: (usize, usize),
        stride: (usize, usize),
        largest: bool,
        padded: bool,
    },
    Resize {
        factor: (f64, f64),
        interpolation: Interpolation,
    },
    Shuffle {
        factor: usize,
    },
    /// With an earlier tensor of the same shape.
    Add {
        back: usize,
    },
    /// With an earlier tensor of the same size.
    Join {
        back: usize,
    },
}

fn choice() -> impl Strategy<Value = Choice> {
    let odd = || prop::sample::select(vec![1_usize, 3, 3, 5, 7]);
    let channels = || prop_oneof![1_usize..=20, prop::sample::select(vec![8_usize, 16, 17, 24, 32, 40, 48, 64])];
    prop_oneof![
        6 => (channels(), (odd(), odd()), (1_usize..=3, 1_usize..=3), any::<bool>())
            .prop_map(|(output, kernel, stride, bias)| Choice::Convolution { output, kernel, stride, bias }),
        3 => (channels(), any::<bool>()).prop_map(|(output, bias)| {
            Choice::Convolution { output, kernel: (3, 3), stride: (1, 1), bias }
        }),
        2 => (channels(), (1_usize..=3, 1_usize..=3), any::<bool>()).prop_map(|(output, (y, x), bias)| {
            Choice::Upsampling { output, axes: [(y, y, 0), (x, x, 0)], bias }
        }),
        3 => (channels(), transposed(), transposed(), any::<bool>())
            .prop_map(|(output, y, x, bias)| Choice::Upsampling { output, axes: [y, x], bias }),
        3 => any::<bool>().prop_map(|affine| Choice::Instance { affine }),
        2 => any::<bool>().prop_map(|affine| Choice::Batch { affine }),
        2 => (1_usize..=8, any::<bool>()).prop_map(|(groups, affine)| Choice::Group { groups, affine }),
        4 => Just(Choice::Bend),
        2 => any::<bool>().prop_map(|single| Choice::PRelu { single }),
        2 => prop::sample::select(vec![Function::Silu, Function::Mish, Function::Gelu, Function::GeluTanh])
            .prop_map(Choice::Curve),
        2 => ((1_usize..=3, 1_usize..=3), (1_usize..=3, 1_usize..=3), any::<bool>(), any::<bool>())
            .prop_map(|(kernel, stride, largest, padded)| Choice::Pool { kernel, stride, largest, padded }),
        2 => (factors(), factors(), interpolations())
            .prop_map(|(y, x, interpolation)| Choice::Resize { factor: (y, x), interpolation }),
        2 => (1_usize..=3).prop_map(|factor| Choice::Shuffle { factor }),
        4 => (0_usize..4).prop_map(|back| Choice::Add { back }),
        3 => (0_usize..4).prop_map(|back| Choice::Join { back }),
    ]
}

/// Kernel, stride and padding of a transposed convolution along one axis.
fn transposed() -> impl Strategy<Value = (usize, usize, usize)> {
    prop::sample::select(vec![
        (3, 2, 1),
        (3, 2, 1),
        (3, 1, 1),
        (2, 2, 0),
        (4, 2, 1),
        (5, 2, 2),
        (3, 3, 1),
        (1, 2, 0),
        (3, 4, 0),
    ])
}

/// What decoders do: one part after another through a norm and an activation, both joined, and what reads that.
fn choices() -> impl Strategy<Value = Vec<Choice>> {
    let odd = || prop::sample::select(vec![3_usize, 5, 17]);
    let kernel = || prop::sample::select(vec![1_usize, 3]);
    let part = move || {
        let convolution = (odd(), kernel(), any::<bool>()).prop_map(|(output, side, bias)| Choice::Convolution {
            output,
            kernel: (side, side),
            stride: (1, 1),
            bias,
        });
        let norm = prop_oneof![
            any::<bool>().prop_map(|affine| Choice::Instance { affine }),
            any::<bool>().prop_map(|affine| Choice::Batch { affine }),
            (1_usize..=3, any::<bool>()).prop_map(|(groups, affine)| Choice::Group { groups, affine }),
        ];
        let bend = prop_oneof![Just(Choice::Bend), any::<bool>().prop_map(|single| Choice::PRelu { single })];
        (convolution, prop::option::weighted(0.8, norm), prop::option::weighted(0.8, bend))
            .prop_map(|(convolution, norm, bend)| [Some(convolution), norm, bend].into_iter().flatten())
    };
    let decoder = (part(), part(), 1_usize..=4, prop::collection::vec(choice(), 1..=3)).prop_map(
        |(first, second, back, readers)| first.chain(second).chain([Choice::Join { back }]).chain(readers).collect(),
    );
    prop_oneof![3 => prop::collection::vec(choice(), 1..=7), 2 => decoder]
}

fn factors() -> impl Strategy<Value = f64> {
    prop::sample::select(vec![0.5, 0.7, 1.0, 1.5, 1.7, 2.0, 3.0, 4.0])
}

fn interpolations() -> impl Strategy<Value = Interpolation> {
    prop::sample::select(vec![Interpolation::Nearest, Interpolation::Bilinear, Interpolation::BilinearCorners])
}

fn build(channels: usize, tile: Size, choices: &[Choice]) -> Network {
    let mut network = Network::new(channels);
    let mut made: Vec<(Source, Shape)> = vec![(Source::Input, Shape { channels, size: tile })];
    for (index, choice) in choices.iter().enumerate() {
        let (at, shape) = *made.last().unwrap();
        let affine =
            |has: bool| has.then(|| Affine { weight: format!("{index}.weight"), bias: format!("{index}.bias") });
        let channels = shape.channels;
        let (operation, sources) = match choice {
            Choice::Convolution { output, kernel, stride, bias } => {
                let (kernel, stride) = (extent(kernel.0, kernel.1), extent(stride.0, stride.1));
                (convolution(index, channels, *output, kernel, stride, *bias), vec![at])
            }
            Choice::Upsampling { axes: [(_, y, _), (_, x, _)], .. }
                if shape.size.width.max(shape.size.height) * *y.max(x) as u64 > 40 =>
            {
                continue;
            }
            Choice::Upsampling { output, axes: [y, x], bias } => {
                let operation = Operation::Upsampling {
                    weight: format!("{index}.weight"),
                    bias: bias.then(|| format!("{index}.bias")),
                    input: channels,
                    output: *output,
                    kernel: extent(y.0, x.0),
                    stride: extent(y.1, x.1),
                    padding: Padding { height: y.2, width: x.2 },
                };
                (operation, vec![at])
            }
            // A large epsilon: rounding errors of channels without any variance are not to be enlarged.
            Choice::Instance { affine: has } => {
                (Operation::InstanceNorm { affine: affine(*has), channels, epsilon: 0.1 }, vec![at])
            }
            Choice::Batch { affine: has } => {
                let (mean, variance) = (format!("{index}.mean"), format!("{index}.variance"));
                (Operation::BatchNorm { mean, variance, affine: affine(*has), channels, epsilon: 0.1 }, vec![at])
            }
            Choice::Group { groups, affine: has } => {
                let groups = (1..=*groups).rev().find(|g| channels.is_multiple_of(*g)).unwrap_or(1);
                (Operation::GroupNorm { affine: affine(*has), groups, channels, epsilon: 0.1 }, vec![at])
            }
            Choice::Bend => (Operation::Activation { function: Function::LeakyRelu { slope: 0.2 } }, vec![at]),
            Choice::PRelu { single } => {
                let values = if *single { 1 } else { channels };
                let function = Function::PRelu { weight: format!("{index}.slope"), values };
                (Operation::Activation { function }, vec![at])
            }
            Choice::Curve(function) => (Operation::Activation { function: function.clone() }, vec![at]),
            Choice::Pool { kernel, stride, largest, padded } => {
                let (kernel, stride) = (extent(kernel.0, kernel.1), extent(stride.0, stride.1));
                if kernel.height as u64 > shape.size.height || kernel.width as u64 > shape.size.width {
                    continue;
                }
                let padding = Padding { height: kernel.height / 2, width: kernel.width / 2 };
                let padding = if *padded { padding } else { Padding::default() };
                let pool = if *largest {
                    Operation::MaxPool { kernel, stride, padding }
                } else {
                    let before = Padding { height: kernel.height / 2, width: 0 };
                    let before = if *padded { before } else { Padding::default() };
                    Operation::AveragePool { kernel, stride, before }
                };
                (pool, vec![at])
            }
            Choice::Resize { factor: (y, x), .. }
                if shape.size.width.max(shape.size.height) as f64 * y.max(*x) > 40.0
                    || (shape.size.height as f64 * y) < 1.0
                    || (shape.size.width as f64 * x) < 1.0 =>
            {
                continue;
            }
            Choice::Resize { factor, interpolation } => {
                let factor = Factor { height: factor.0, width: factor.1 };
                (Operation::Resize { factor, interpolation: *interpolation }, vec![at])
            }
            Choice::Shuffle { factor }
                if !channels.is_multiple_of(factor * factor)
                    || shape.size.width.max(shape.size.height) * *factor as u64 > 40 =>
            {
                continue;
            }
            Choice::Shuffle { factor } => (Operation::PixelShuffle { factor: *factor }, vec![at]),
            Choice::Add { back } => {
                let same = made.iter().rev().filter(|(_, s)| *s == shape);
                let Some((other, _)) = same.clone().nth(*back).or(same.clone().next()) else { continue };
                (Operation::Add, vec![at, *other])
            }
            Choice::Join { back } => {
                let same = made.iter().rev().filter(|(_, s)| s.size == shape.size && s.channels + channels < 150);
                let Some((other, _)) = same.clone().nth(*back).or(same.clone().next()) else { continue };
                (Operation::Concatenate, vec![at, *other])
            }
        };
        let at = network.push(operation, &sources);
        made.push((at, *network.shapes(tile).last().unwrap()));
    }
    network
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_network_is_computed_as_its_formulas_say(
        channels in 1_usize..=20,
        (width, height) in (1_u64..=27, 1_u64..=27),
        choices in choices(),
        seed in any::<u32>(),
    ) {
        let tile = Size::new(width, height);
        let network = build(channels, tile, &choices);
        for worker in Worker::all() {
            let tolerance = worker.tolerance();
            let error = error(&network, tile, seed, worker);
            prop_assert!(error <= tolerance, "{error:e} by {worker}");
        }
    }
}

/// The largest difference where no number is rounded on the way that f64 would round to another side.
const EXACT: f64 = 1e-5;

/// `cargo test -p microtome-unet --lib -- --ignored --nocapture how_large`
#[test]
#[ignore = "a measurement"]
fn how_large_the_errors_become() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let drawn = (1_usize..=20, (1_u64..=27, 1_u64..=27), choices(), any::<u32>());
    let mut largest = BTreeMap::new();
    for _ in 0..3000 {
        let (channels, (width, height), choices, seed) = drawn.new_tree(&mut runner).unwrap().current();
        let tile = Size::new(width, height);
        let network = build(channels, tile, &choices);
        for worker in Worker::all() {
            let most: &mut f64 = largest.entry(worker.to_string()).or_default();
            *most = most.max(error(&network, tile, seed, worker));
        }
    }
    println!("{largest:?}");
}

/// `tests/operations.json`, which `tests/python/unet_fixtures.py` made with PyTorch 2.15.
#[test]
fn operations_are_pytorchs() {
    #[derive(serde::Deserialize)]
    struct Fixture {
        input: Vec<f32>,
        outputs: BTreeMap<String, Vec<f32>>,
    }
    let fixture: Fixture = serde_json::from_str(include_str!("../../tests/operations.json")).unwrap();
    // Two channels of 5 x 7 pixels.
    let (channels, tile) = (2, Size::new(7, 5));
    let resize = |height, width, interpolation| Operation::Resize { factor: Factor { height, width }, interpolation };
    let function = |function| Operation::Activation { function };
    let affine = Some(Affine { weight: "weight".into(), bias: "bias".into() });
    // For each axis kernel, stride and padding.
    let transposed = |y: (usize, usize, usize), x: (usize, usize, usize)| Operation::Upsampling {
        weight: format!("transposed {}x{}", y.0, x.0),
        bias: Some("transposed bias".into()),
        input: 2,
        output: 3,
        kernel: extent(y.0, x.0),
        stride: extent(y.1, x.1),
        padding: Padding { height: y.2, width: x.2 },
    };
    let (pair, padding) = (extent(3, 2), Padding { height: 1, width: 1 });
    let operations = [
        (
            "average pool",
            Operation::AveragePool { kernel: pair, stride: extent(2, 2), before: Padding::default() },
            1e-6,
        ),
        (
            "average pool, padded",
            Operation::AveragePool { kernel: extent(2, 2), stride: Extent::ONE, before: padding },
            1e-6,
        ),
        ("max pool", Operation::MaxPool { kernel: pair, stride: extent(2, 1), padding }, 0.0),
        ("nearest", resize(2.0, 1.7, Interpolation::Nearest), 0.0),
        ("nearest, smaller", resize(0.7, 0.5, Interpolation::Nearest), 0.0),
        ("bilinear", resize(2.0, 1.7, Interpolation::Bilinear), 1e-6),
        ("bilinear, smaller", resize(0.7, 0.5, Interpolation::Bilinear), 1e-6),
        ("bilinear, corners", resize(2.0, 1.7, Interpolation::BilinearCorners), 1e-6),
        ("bilinear, one row", resize(0.2, 2.0, Interpolation::BilinearCorners), 1e-6),
        ("group norm", Operation::GroupNorm { affine, groups: 1, channels, epsilon: 1e-5 }, 2e-6),
        ("silu", function(Function::Silu), 1e-6),
        ("mish", function(Function::Mish), 1e-6),
        ("gelu", function(Function::Gelu), 1e-6),
        ("gelu, tanh", function(Function::GeluTanh), 1e-6),
        ("prelu", function(Function::PRelu { weight: "slope".into(), values: 2 }), 0.0),
        ("pixel shuffle", Operation::PixelShuffle { factor: 2 }, 0.0),
        ("transposed", transposed((3, 2, 1), (4, 3, 1)), 2e-6),
        ("transposed, five", transposed((5, 2, 2), (2, 2, 0)), 2e-6),
        ("transposed, one", transposed((3, 1, 1), (5, 1, 2)), 2e-6),
        ("transposed, shifted", transposed((3, 3, 1), (2, 2, 0)), 2e-6),
        ("transposed, gaps", transposed((1, 2, 0), (3, 4, 0)), 2e-6),
    ];
    assert_eq!(operations.len(), fixture.outputs.len());
    let pair = |a, b| Weight { shape: vec![2], values: vec![a, b].into() };
    let weights = [("weight", pair(1.5, -0.5)), ("bias", pair(0.25, 2.0)), ("slope", pair(0.25, -0.75))];
    let mut weights: BTreeMap<String, Weight> = weights.map(|(name, weight)| (name.to_owned(), weight)).into();
    // `weight` of the script.
    let plain = |shape: &[usize]| Weight {
        shape: shape.to_vec(),
        values: (0..shape.iter().product()).map(|i: usize| ((i * 37 % 19) as f32 - 9.0) / 8.0).collect(),
    };
    weights.insert("transposed bias".into(), plain(&[3]));
    for (_, operation, _) in &operations {
        if let Operation::Upsampling { weight, kernel, .. } = operation {
            weights.insert(weight.clone(), plain(&[2, 3, kernel.height, kernel.width]));
        }
    }
    let area = tile.area() as usize;
    let input: Vec<f32> = (0..2 * area).map(|i| fixture.input[i % 2 * area + i / 2]).collect();
    for (name, operation, tolerance) in operations {
        let mut network = Network::new(channels);
        let mut at = Source::Input;
        if matches!(operation, Operation::PixelShuffle { .. }) {
            // Of eight channels: the input four times.
            at = network.push(Operation::Concatenate, &[at, at]);
            at = network.push(Operation::Concatenate, &[at, at]);
            assert_eq!(network.shapes(tile)[1].channels, 8);
        }
        network.push(operation, &[at]);
        let expected = &fixture.outputs[name];
        let check = |found: &[f32], by: &str| {
            let difference = max_difference(found, expected);
            println!("{name}, {by}: {difference:e}");
            assert!(difference <= tolerance, "{name}: {difference:e} by {by}");
        };
        check(&candle::run_on_cpu(&network, tile, &weights, &input).unwrap(), "candle's operations");
        check(&gpu::run_on_cpu(&network, tile, &weights, &input).unwrap(), "the engine of GPUs");
        for set in InstructionSet::available() {
            let plan = Arc::new(Plan::new(&network, tile, set, Words::F32, Arithmetic::Exact));
            check(&PackedNetwork::new(plan, &weights).forward(&input, &Crew::default()).unwrap(), &set.to_string());
        }
    }
}

/// Every number of output channels and every width once, because groups and pieces of rows depend on them.
#[test]
fn all_widths_and_channels() {
    for set in InstructionSet::available() {
        for n in 1..=50 {
            for (input, output, width) in [(n, 5, 9), (5, n, 9), (4, 9, n)] {
                for kernel in [1, 3] {
                    let mut network = Network::new(input);
                    let operation = convolution(0, input, output, extent(kernel, kernel), Extent::ONE, true);
                    let at = network.push(operation, &[Source::Input]);
                    network.push(Operation::InstanceNorm { affine: None, channels: output, epsilon: 0.1 }, &[at]);
                    for worker in Worker::with(set) {
                        let error = error(&network, Size::new(width as u64, 6), n as u32, worker);
                        assert!(error < EXACT, "{error:e} by {worker} for {input} to {output} channels, {width} wide");
                    }
                }
            }
        }
    }
}

/// The difference from candle's operations, relative to the largest logit.
fn difference_from_candle(model: &Model, set: InstructionSet, arithmetic: Arithmetic) -> f32 {
    let execution = Execution { mirroring: Mirroring::Off, arithmetic, ..Execution::default() };
    let n = model.card().tile.area() as usize * model.card().channels.len();
    let input: Vec<f32> = std::iter::repeat_with(noise(3)).take(n).collect();
    let plain =
        candle::ensemble(model, &execution, &candle_core::Device::Cpu).unwrap().run(&input, &Crew::default()).unwrap();
    let ours = ensemble::on_cpu(model, &execution, set).unwrap().run(&input, &Crew::default()).unwrap();
    assert_eq!(plain.len(), ours.len());
    let largest = plain.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    assert!(largest > 1e-3);
    max_difference(&plain, &ours) / largest
}

fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn candle_agrees_on_every_kind_of_layer() {
    let square = |n| extent(n, n);
    let mut batch = tiny();
    batch.norm = Norm::Batch { epsilon: 1e-3, affine: true };
    batch.activation = Activation::LeakyRelu { slope: 0.0 };
    let mut bare = tiny();
    bare.norm = Norm::None;
    bare.activation = Activation::None;
    bare.bias = false;
    let mut odd = tiny();
    odd.kernels = vec![extent(1, 3), square(5), extent(3, 1)];
    odd.strides = vec![Extent::ONE, extent(1, 3), square(2)];
    odd.norm = Norm::Instance { epsilon: 1e-5, affine: false };
    let plain = [tiny(), batch, bare, odd].map(Architecture::PlainConvUnet);
    for architecture in plain.into_iter().chain([Architecture::ResidualEncoderUnet(residual::tiny())]) {
        let model = random(architecture, Size::new(24, 16));
        for set in InstructionSet::available() {
            let difference = difference_from_candle(&model, set, Arithmetic::Exact);
            assert!(difference <= 1e-5, "{difference:e} by {set}");
        }
    }
}

/// `reference/forward_logits.npy`: nnU-Net 2.8.1 with torch 2.15 on the CPU.
#[test]
fn logits_are_nnunets_own() {
    let Some(folder) = reference_model() else { return };
    let model = Model::open(&folder, &ModelOptions::default()).unwrap();
    let read = |name: &str| {
        let tensor = candle_core::Tensor::read_npy(folder.join("reference").join(name)).unwrap();
        tensor.squeeze(0).unwrap()
    };
    let input = read("forward_input.npy").permute((1, 2, 0)).unwrap().flatten_all().unwrap();
    let input = input.to_vec1::<f32>().unwrap();
    let expected = read("forward_logits.npy").flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let execution = Execution { mirroring: Mirroring::Off, ..Execution::default() };
    let plain =
        candle::ensemble(&model, &execution, &candle_core::Device::Cpu).unwrap().run(&input, &Crew::default()).unwrap();
    println!("largest difference from nnU-Net: candle's operations {:e}", max_difference(&plain, &expected));
    // Pixels of another class.
    let flips = |logits: &[f32]| {
        let (one, other) = expected.split_at(expected.len() / 2);
        let (a, b) = logits.split_at(logits.len() / 2);
        one.iter().zip(other).zip(a.iter().zip(b)).filter(|((one, other), (a, b))| (one < other) != (a < b)).count()
    };
    for set in InstructionSet::available() {
        for (precision, arithmetic, tolerance) in [
            (Precision::F32, Arithmetic::Exact, 1e-4),
            (Precision::F32, Arithmetic::Fast, 1e-3),
            (Precision::Bf16, Arithmetic::Exact, 1.0),
            (Precision::Bf16, Arithmetic::Fast, 1.0),
        ] {
            let execution = Execution { precision, arithmetic, ..execution };
            let logits = ensemble::on_cpu(&model, &execution, set).unwrap().run(&input, &Crew::default()).unwrap();
            let difference = max_difference(&logits, &expected);
            let name = format!("{set}, {precision:?} {arithmetic}");
            println!("largest difference from nnU-Net: {name} {difference:e}, {} pixels change", flips(&logits));
            assert!(difference <= tolerance, "{difference:e} by {name}");
        }
    }
}

/// The vector that travels with the package of nnU-Net's model, which nnU-Net 2.8.1 computed.
#[test]
fn nnunets_package_gives_the_mask_that_came_with_it() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/models/nnunet-nuclei");
    let model = Model::open(path, &ModelOptions::default()).unwrap();
    for (arithmetic, tolerance) in [(Arithmetic::Exact, 1e-4), (Arithmetic::Fast, 1e-3)] {
        let execution = Execution { arithmetic, device: crate::Device::Cpu, ..Execution::default() };
        let agreement = model.check_test_vector(&execution).unwrap().unwrap();
        println!("{arithmetic}: {agreement:?}");
        assert!(agreement.max_logit_difference <= tolerance, "{arithmetic}: {agreement:?}");
        assert!(agreement.differing_pixels == 0, "{arithmetic}: {agreement:?}");
    }
}

#[test]
fn the_identity_names_engine_instructions_and_arithmetic() {
    use crate::Predictor;
    let model = random(Architecture::PlainConvUnet(tiny()), Size::new(8, 8));
    let on = |precision, arithmetic, set| {
        let execution = Execution { precision, arithmetic, ..Execution::default() };
        ensemble::on_cpu(&model, &execution, set).unwrap()
    };
    let identity = |precision, arithmetic| on(precision, arithmetic, InstructionSet::Portable).identity();
    assert_eq!(identity(Precision::F32, Arithmetic::Exact), "microtome cpu 2, portable, f32 exact, 4 passes");
    assert_eq!(identity(Precision::F32, Arithmetic::Fast), "microtome cpu 2, portable, f32 fast, 4 passes");
    assert_eq!(identity(Precision::Bf16, Arithmetic::Fast), "microtome cpu 2, portable, bf16 by fma fast, 4 passes");
    // Runs in f32 go on with the same bits on CPUs with and without instructions for bf16.
    if InstructionSet::Avx512Bf16.is_available() {
        let of = |precision| on(precision, Arithmetic::Fast, InstructionSet::Avx512Bf16);
        let (single, half) = (of(Precision::F32), of(Precision::Bf16));
        assert_eq!(single.identity(), "microtome cpu 2, avx512, f32 fast, 4 passes");
        assert_eq!(half.identity(), "microtome cpu 2, avx512bf16, bf16 by vdpbf16ps fast, 4 passes");
        assert_eq!((single.advice(), half.advice()), (None, None));
    }
    let slow = on(Precision::Bf16, Arithmetic::Fast, InstructionSet::Portable);
    assert!(slow.advice().is_some_and(|advice| advice.contains("f32 is both faster")));
}
