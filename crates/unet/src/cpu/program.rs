//! From a network's layers to the steps that the CPU takes.
//!
//! Normalisation, activation by two slopes and concatenation are no steps of their own: they become part of how the next step reads
//! its input. What a step reads is therefore a [`View`]: tensors in memory, one after the other, each through a factor and a summand per
//! channel and a slope for what is negative then. Where a network asks for something that no view can express, a tensor is written
//! ([`Step::Write`]): sums of views, curved activations, pooling, resizing, and views of views.

use super::kernel::Curve;
use crate::network::{Affine, Extent, Function, Network, Operation, Padding, Shape, Source};
use crate::taps::Separable;
use crate::transposed::Transposed;

/// A tensor in memory: channels last, so that a pixel's channels lie together.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) shape: Shape,
    /// Whether mean and variance of its channels are taken while it is written.
    pub(super) statistics: bool,
    /// Indices of the first and the last step that need it.
    pub(super) life: (usize, usize),
    /// The tensor in whose memory it is written, value by value as that one is read.
    pub(super) over: Option<usize>,
}

/// What a layer reads: the channels of its parts, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct View {
    pub(super) parts: Vec<Part>,
}

/// The channels of one tensor on their way into a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Part {
    pub(super) tensor: usize,
    /// Index of the normalisation whose factors and summands come first.
    pub(super) normalization: Option<usize>,
    /// Index of the slopes for negative values, after the normalisation.
    pub(super) bend: Option<usize>,
}

impl Part {
    fn whole(tensor: usize) -> Self {
        Self { tensor, normalization: None, bend: None }
    }
}

/// Where the factors and summands of a normalisation come from. Weights are named.
#[derive(Debug, Clone)]
pub(super) enum Rule {
    /// From the statistics of a tensor.
    Instance { tensor: usize, affine: Option<Affine>, epsilon: f64 },
    /// From the statistics of so many groups of a tensor's channels.
    Group { tensor: usize, groups: usize, affine: Option<Affine>, epsilon: f64 },
    /// From training.
    Batch { mean: String, variance: String, affine: Option<Affine>, epsilon: f64 },
}

/// A normalisation and its number of channels.
#[derive(Debug, Clone)]
pub(super) struct Normalization {
    pub(super) rule: Rule,
    pub(super) channels: usize,
}

/// Where the slopes for negative values come from.
#[derive(Debug, Clone)]
pub(super) enum Slope {
    /// The same for all channels.
    Constant(f32),
    /// A weight of one value, or a part of one with a value per channel, from this one on.
    Weight { name: String, first: usize },
}

/// Slopes of so many channels.
#[derive(Debug, Clone)]
pub(super) struct Bend {
    pub(super) slope: Slope,
    pub(super) channels: usize,
}

/// What is written where no convolution is.
#[derive(Debug, Clone)]
pub(super) enum Map {
    /// The sum of one or two views.
    Sum,
    /// A function of each value of a view.
    Curve(Curve),
    /// Neighbours, combined.
    Separable(Separable),
    /// Blocks of channels as blocks of so many pixels along each axis.
    Shuffle(usize),
}

/// One step: a tensor is written.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Convolve { view: View, output: usize, convolution: Convolution },
    Write { map: Map, views: Vec<View>, output: usize },
}

impl Step {
    pub(super) fn views(&self) -> &[View] {
        match self {
            Self::Convolve { view, .. } => std::slice::from_ref(view),
            Self::Write { views, .. } => views,
        }
    }

    pub(super) fn output(&self) -> usize {
        match self {
            Self::Convolve { output, .. } | Self::Write { output, .. } => *output,
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Convolve { convolution: Convolution { input, output, transposed: Some(transposed), .. }, .. } => {
                let Transposed { kernel, stride, .. } = transposed;
                write!(f, "transposed convolution {kernel}, ")?;
                if kernel != stride {
                    write!(f, "stride {stride}, ")?;
                }
                write!(f, "{input} to {output} channels")
            }
            Self::Convolve { convolution: Convolution { input, output, kernel, stride, .. }, .. } => {
                write!(f, "convolution {kernel}, stride {stride}, {input} to {output} channels")
            }
            Self::Write { map: Map::Sum, views, .. } if views.len() > 1 => f.write_str("sum"),
            Self::Write { map: Map::Sum, .. } => f.write_str("copy"),
            Self::Write { map: Map::Curve(_), .. } => f.write_str("activation"),
            Self::Write { map: Map::Separable(_), .. } => f.write_str("pooling or resizing"),
            Self::Write { map: Map::Shuffle(factor), .. } => write!(f, "pixel shuffle {factor}x{factor}"),
        }
    }
}

/// What both kinds of convolution have in common. A transposed one is a convolution of its taps whose output channels become pixels.
#[derive(Debug, Clone)]
pub(super) struct Convolution {
    pub(super) weight: String,
    /// Left out where an instance norm follows: that subtracts it again.
    pub(super) bias: Option<String>,
    pub(super) input: usize,
    pub(super) output: usize,
    /// What a position reads, and how much of it lies before the position; of a transposed one its taps.
    pub(super) kernel: Extent,
    pub(super) before: Padding,
    /// Distance between positions in the input; of a transposed one a pixel.
    pub(super) stride: Extent,
    pub(super) transposed: Option<Transposed>,
}

impl Convolution {
    /// How many output pixels each position of the kernel gives.
    pub(super) fn pixels(&self) -> Extent {
        self.transposed.map_or(Extent::ONE, |t| t.stride)
    }

    /// Products that so many output values are defined by: those with taps that weigh nothing do not count.
    pub(super) fn multiplications(&self, values: u64) -> u64 {
        let kernel = self.transposed.map_or(self.kernel, |t| t.kernel);
        values / self.pixels().area() as u64 * (self.input * kernel.area()) as u64
    }
}

/// All steps for tiles of one size.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// The first is the network's input.
    pub(super) tensors: Vec<Tensor>,
    pub(super) normalizations: Vec<Normalization>,
    pub(super) bends: Vec<Bend>,
    pub(super) steps: Vec<Step>,
    /// The logits.
    pub(super) result: View,
}

impl Program {
    pub(super) fn new(network: &Network, tile: microtome_io::Size) -> Self {
        let shapes = network.shapes(tile);
        let input = Tensor {
            shape: Shape { channels: network.channels(), size: tile },
            statistics: false,
            life: (0, 0),
            over: None,
        };
        let mut program = Self {
            tensors: vec![input],
            normalizations: Vec::new(),
            bends: Vec::new(),
            steps: Vec::new(),
            result: View { parts: vec![Part::whole(0)] },
        };
        let input = program.result.clone();
        let mut views: Vec<View> = Vec::with_capacity(shapes.len());
        for (index, layer) in network.layers().iter().enumerate() {
            let read = |source: Source| match source {
                Source::Input => input.clone(),
                Source::Layer(i) => views[i].clone(),
            };
            let view = read(layer.sources[0]);
            let view = match &layer.operation {
                Operation::Convolution { weight, bias, input, output, kernel, stride } => {
                    let convolution = Convolution {
                        weight: weight.clone(),
                        bias: bias.clone().filter(|_| !is_centred(network, index)),
                        input: *input,
                        output: *output,
                        kernel: *kernel,
                        before: Padding { height: (kernel.height - 1) / 2, width: (kernel.width - 1) / 2 },
                        stride: *stride,
                        transposed: None,
                    };
                    program.convolve(view, shapes[index], convolution)
                }
                Operation::Upsampling { weight, bias, input, output, kernel, stride, padding } => {
                    let transposed = Transposed { kernel: *kernel, stride: *stride, padding: *padding };
                    let convolution = Convolution {
                        weight: weight.clone(),
                        bias: bias.clone().filter(|_| !is_centred(network, index)),
                        input: *input,
                        output: *output,
                        kernel: transposed.taps(),
                        before: transposed.before(),
                        stride: Extent::ONE,
                        transposed: Some(transposed),
                    };
                    program.convolve(view, shapes[index], convolution)
                }
                Operation::InstanceNorm { affine, channels, epsilon } => {
                    let (view, tensor) = program.plain(view, shapes[index]);
                    program.tensors[tensor].statistics = true;
                    let rule = Rule::Instance { tensor, affine: affine.clone(), epsilon: *epsilon };
                    program.normalize(view, Normalization { rule, channels: *channels })
                }
                Operation::BatchNorm { mean, variance, affine, channels, epsilon } => {
                    let (view, _) = program.plain(view, shapes[index]);
                    let rule = Rule::Batch {
                        mean: mean.clone(),
                        variance: variance.clone(),
                        affine: affine.clone(),
                        epsilon: *epsilon,
                    };
                    program.normalize(view, Normalization { rule, channels: *channels })
                }
                Operation::GroupNorm { affine, groups, channels, epsilon } => {
                    let (view, tensor) = program.plain(view, shapes[index]);
                    program.tensors[tensor].statistics = true;
                    let (affine, epsilon) = (affine.clone(), *epsilon);
                    let rule = Rule::Group { tensor, groups: *groups, affine, epsilon };
                    program.normalize(view, Normalization { rule, channels: *channels })
                }
                Operation::Activation { function } => program.activate(view, shapes[index], function),
                Operation::Concatenate => View { parts: [view.parts, read(layer.sources[1]).parts].concat() },
                Operation::Add => program.write(Map::Sum, vec![view, read(layer.sources[1])], shapes[index]),
                Operation::PixelShuffle { factor } => program.write(Map::Shuffle(*factor), vec![view], shapes[index]),
                operation @ (Operation::AveragePool { .. } | Operation::MaxPool { .. } | Operation::Resize { .. }) => {
                    let from = program.tensors[view.parts[0].tensor].shape.size;
                    let taps = Separable::new(operation, from, shapes[index].size).expect("it is one of these");
                    program.write(Map::Separable(taps), vec![view], shapes[index])
                }
            };
            views.push(view);
        }
        program.result = views.pop().unwrap_or(input);
        program.set_lives();
        program.write_over();
        program
    }

    fn tensor(&mut self, shape: Shape) -> (View, usize) {
        self.tensors.push(Tensor { shape, statistics: false, life: (0, 0), over: None });
        let tensor = self.tensors.len() - 1;
        (View { parts: vec![Part::whole(tensor)] }, tensor)
    }

    fn convolve(&mut self, view: View, shape: Shape, convolution: Convolution) -> View {
        let (written, output) = self.tensor(shape);
        self.steps.push(Step::Convolve { view, output, convolution });
        written
    }

    fn write(&mut self, map: Map, views: Vec<View>, shape: Shape) -> View {
        let (written, output) = self.tensor(shape);
        self.steps.push(Step::Write { map, views, output });
        written
    }

    /// The view, if it is just a tensor that a step has written, or else a copy that is.
    fn plain(&mut self, view: View, shape: Shape) -> (View, usize) {
        match view.parts.as_slice() {
            [Part { tensor, normalization: None, bend: None }] if *tensor > 0 => {
                let tensor = *tensor;
                (view, tensor)
            }
            _ => {
                let view = self.write(Map::Sum, vec![view], shape);
                let tensor = view.parts[0].tensor;
                (view, tensor)
            }
        }
    }

    /// The view through a function of each value.
    fn activate(&mut self, view: View, shape: Shape, function: &Function) -> View {
        let curve = match function {
            Function::LeakyRelu { slope } => return self.bend(view, shape, |_| Slope::Constant(*slope as f32)),
            Function::PRelu { weight, values } => {
                let first = |channel: usize| if *values == 1 { 0 } else { channel };
                return self.bend(view, shape, |channel| Slope::Weight { name: weight.clone(), first: first(channel) });
            }
            Function::Silu => Curve::Silu,
            Function::Mish => Curve::Mish,
            Function::Gelu => Curve::Gelu,
            Function::GeluTanh => Curve::GeluTanh,
        };
        self.write(Map::Curve(curve), vec![view], shape)
    }

    /// The view with slopes for negative values, given those of the channels from a first one on.
    fn bend(&mut self, view: View, shape: Shape, slope: impl Fn(usize) -> Slope) -> View {
        let view =
            if view.parts.iter().any(|p| p.bend.is_some()) { self.write(Map::Sum, vec![view], shape) } else { view };
        let mut first = 0;
        let mut bend = |part: &Part| {
            let channels = self.tensors[part.tensor].shape.channels;
            self.bends.push(Bend { slope: slope(first), channels });
            first += channels;
            Part { bend: Some(self.bends.len() - 1), ..*part }
        };
        View { parts: view.parts.iter().map(&mut bend).collect() }
    }

    /// A plain view through a normalisation.
    fn normalize(&mut self, view: View, normalization: Normalization) -> View {
        self.normalizations.push(normalization);
        let index = self.normalizations.len() - 1;
        View { parts: view.parts.into_iter().map(|p| Part { normalization: Some(index), ..p }).collect() }
    }

    /// From the step that writes a tensor to the last that reads it; the input is there from the start, the result is read after the end.
    fn set_lives(&mut self) {
        for (index, step) in self.steps.iter().enumerate() {
            self.tensors[step.output()].life = (index, index);
            for part in step.views().iter().flat_map(|v| &v.parts) {
                self.tensors[part.tensor].life.1 = index;
            }
        }
        for part in &self.result.parts {
            self.tensors[part.tensor].life.1 = self.steps.len();
        }
    }

    /// What is written value by value goes where one of its operands was, if nothing reads that one any more:
    /// memory that has just been read is written faster than any other.
    fn write_over(&mut self) {
        for (index, step) in self.steps.iter_mut().enumerate() {
            let Step::Write { map: Map::Sum | Map::Curve(_), views, output } = step else { continue };
            let reads = |tensor: usize| views.iter().flat_map(|v| &v.parts).filter(|p| p.tensor == tensor).count();
            let done = |view: &View| match view.parts.as_slice() {
                [part] => self.tensors[part.tensor].life.1 == index && reads(part.tensor) == 1,
                _ => false,
            };
            let Some(first) = views.iter().position(done) else { continue };
            views.swap(0, first);
            self.tensors[*output].over = Some(views[0].parts[0].tensor);
        }
    }

    /// Where each tensor lies in one block of memory, in values, and the block's length.
    /// Tensors share memory if no step needs both. The largest are placed first, each as low as possible.
    pub(super) fn places(&self) -> (Vec<usize>, usize) {
        /// Tensors begin at cache lines.
        const LINE: usize = 16;
        let length = |t: usize| (self.tensors[t].shape.elements() as usize).next_multiple_of(LINE);
        // Tensors that are written over one another lie in the place of the first, for as long as any of them is needed.
        let mut lives: Vec<(usize, usize)> = self.tensors.iter().map(|t| t.life).collect();
        let mut homes: Vec<usize> = (0..self.tensors.len()).collect();
        for (t, tensor) in self.tensors.iter().enumerate() {
            if let Some(over) = tensor.over {
                homes[t] = homes[over];
                lives[homes[t]].1 = tensor.life.1;
            }
        }
        let mut order: Vec<usize> = (0..self.tensors.len()).filter(|&t| homes[t] == t).collect();
        order.sort_by_key(|&t| std::cmp::Reverse(length(t)));
        let mut places = vec![0; self.tensors.len()];
        let mut placed: Vec<usize> = Vec::new();
        for t in order {
            let (first, last) = lives[t];
            let meets = |&&o: &&usize| lives[o].0 <= last && first <= lives[o].1;
            let mut taken: Vec<(usize, usize)> =
                placed.iter().filter(meets).map(|&o| (places[o], places[o] + length(o))).collect();
            taken.sort_unstable();
            let mut place = 0;
            for (start, end) in taken {
                if place + length(t) <= start {
                    break;
                }
                place = place.max(end);
            }
            places[t] = place;
            placed.push(t);
        }
        (0..places.len()).for_each(|t| places[t] = places[homes[t]]);
        let end = (0..places.len()).map(|t| places[t] + length(t)).max().unwrap_or(0);
        (places, end)
    }
}

/// True if all that reads the layer is an instance norm, to which a constant added to a channel makes no difference.
fn is_centred(network: &Network, layer: usize) -> bool {
    let mut readers =
        network.layers().iter().filter(|l| l.sources.contains(&Source::Layer(layer))).map(|l| &l.operation).peekable();
    readers.peek().is_some() && readers.all(|o| matches!(o, Operation::InstanceNorm { .. }))
}

#[cfg(test)]
mod tests {
    use microtome_io::Size;

    use super::*;
    use crate::architecture::tests::tiny;
    use crate::{Architecture, Network};

    #[test]
    fn an_unet_has_one_step_per_convolution() {
        let network = Architecture::PlainConvUnet(tiny()).network();
        let program = Program::new(&network, Size::new(16, 24));
        let convolutions = |o: &Operation| matches!(o, Operation::Convolution { .. } | Operation::Upsampling { .. });
        assert_eq!(program.steps.len(), network.layers().iter().filter(|l| convolutions(&l.operation)).count());
        assert!(program.steps.iter().all(|s| matches!(s, Step::Convolve { .. })));
        let Step::Convolve { convolution, .. } = &program.steps[0] else { panic!() };
        assert_eq!(convolution.bias, None, "an instance norm follows");
        let Step::Convolve { convolution, .. } = program.steps.last().unwrap() else { panic!() };
        assert!(convolution.bias.is_some(), "of the head");
    }

    #[test]
    fn tensors_that_are_needed_at_once_do_not_overlap() {
        let program = Program::new(&Architecture::PlainConvUnet(tiny()).network(), Size::new(16, 24));
        let (places, length) = program.places();
        let range = |t: usize| places[t]..places[t] + program.tensors[t].shape.elements() as usize;
        for a in 0..places.len() {
            assert!(range(a).end <= length);
            for b in 0..a {
                let (la, lb) = (program.tensors[a].life, program.tensors[b].life);
                if la.0 <= lb.1 && lb.0 <= la.1 && program.tensors[a].over != Some(b) {
                    assert!(range(a).end <= range(b).start || range(b).end <= range(a).start, "{a} and {b}");
                }
            }
        }
        let all: u64 = program.tensors.iter().map(|t| t.shape.elements()).sum();
        assert!((length as u64) < all, "memory is used again: {length} of {all}");
    }

    #[test]
    fn a_sum_is_written_over_what_nothing_else_reads() {
        let mut network = Network::new(2);
        let bend = |slope| Operation::Activation { function: Function::LeakyRelu { slope } };
        let twice = |network: &mut Network, at: Source| {
            let bent = network.push(bend(0.5), &[at]);
            network.push(bend(0.5), &[bent])
        };
        let a = twice(&mut network, Source::Input);
        let b = twice(&mut network, a);
        let sum = network.push(Operation::Add, &[a, b]);
        network.push(Operation::Add, &[sum, sum]);
        let program = Program::new(&network, Size::new(4, 4));
        let over: Vec<Option<usize>> = program.tensors.iter().map(|t| t.over).collect();
        // 1 is read twice, by 2 and by the sum 4; 5 reads 4 twice.
        assert_eq!(over, [None, Some(0), None, Some(2), Some(1), None]);
        let (places, _) = program.places();
        assert!(places[0] == places[1] && places[1] == places[4] && places[2] == places[3]);
        assert!(places[2] != places[1] && places[4] != places[5]);
    }

    #[test]
    fn what_no_view_can_express_is_written_out() {
        let mut network = Network::new(2);
        let norm = Operation::InstanceNorm { affine: None, channels: 2, epsilon: 1e-5 };
        let bend = Operation::Activation { function: Function::LeakyRelu { slope: 0.5 } };
        let a = network.push(norm.clone(), &[Source::Input]);
        let b = network.push(bend.clone(), &[a]);
        let c = network.push(bend, &[b]);
        network.push(norm, &[c]);
        let program = Program::new(&network, Size::new(4, 4));
        assert_eq!(program.steps.len(), 3, "of the input, between the activations, before the last normalisation");
    }
}
