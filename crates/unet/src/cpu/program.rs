//! From a network's layers to the steps that the CPU takes.
//!
//! Normalisation, activation and concatenation are no steps of their own: they become part of how the next convolution reads its input.
//! What a layer reads is therefore a [`View`]: tensors in memory, one after the other, each through a factor and a summand per channel
//! and a leaky ReLU. Only where a network asks for something that no view can express is a view written out ([`Step::Copy`]).

use crate::network::{Affine, Extent, Network, Operation, Shape, Source};

/// A tensor in memory: channels last, so that a pixel's channels lie together.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) shape: Shape,
    /// Whether mean and variance of its channels are taken while it is written.
    pub(super) statistics: bool,
    /// Indices of the first and the last step that need it.
    pub(super) life: (usize, usize),
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
    /// The factor for negative values, after the normalisation.
    pub(super) slope: Option<f32>,
}

/// Where the factors and summands of a normalisation come from. Weights are named.
#[derive(Debug, Clone)]
pub(super) enum Rule {
    /// From the statistics of a tensor.
    Instance { tensor: usize, affine: Option<Affine>, epsilon: f64 },
    /// From training.
    Batch { mean: String, variance: String, affine: Option<Affine>, epsilon: f64 },
}

/// A normalisation and its number of channels.
#[derive(Debug, Clone)]
pub(super) struct Normalization {
    pub(super) rule: Rule,
    pub(super) channels: usize,
}

/// One step: a tensor is written.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Convolve {
        view: View,
        output: usize,
        convolution: Convolution,
    },
    /// The view, written out.
    Copy {
        view: View,
        output: usize,
    },
}

impl Step {
    pub(super) fn view(&self) -> &View {
        match self {
            Self::Convolve { view, .. } | Self::Copy { view, .. } => view,
        }
    }

    pub(super) fn output(&self) -> usize {
        match self {
            Self::Convolve { output, .. } | Self::Copy { output, .. } => *output,
        }
    }
}

/// What both kinds of convolution have in common. A transposed one is a convolution of 1 x 1 whose output channels become pixels.
#[derive(Debug, Clone)]
pub(super) struct Convolution {
    pub(super) weight: String,
    /// Left out where an instance norm follows: that subtracts it again.
    pub(super) bias: Option<String>,
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) kernel: Extent,
    pub(super) stride: Extent,
    /// Of a transposed convolution: every input pixel becomes so many output pixels.
    pub(super) expansion: Option<Extent>,
}

impl Convolution {
    /// How many output pixels each position of the kernel gives.
    pub(super) fn pixels(&self) -> Extent {
        self.expansion.unwrap_or(Extent::ONE)
    }
}

/// All steps for tiles of one size.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// The first is the network's input.
    pub(super) tensors: Vec<Tensor>,
    pub(super) normalizations: Vec<Normalization>,
    pub(super) steps: Vec<Step>,
    /// The logits.
    pub(super) result: View,
}

impl Program {
    pub(super) fn new(network: &Network, tile: microtome_io::Size) -> Self {
        let shapes = network.shapes(tile);
        let input =
            Tensor { shape: Shape { channels: network.channels(), size: tile }, statistics: false, life: (0, 0) };
        let mut program = Self {
            tensors: vec![input],
            normalizations: Vec::new(),
            steps: Vec::new(),
            result: View { parts: vec![Part { tensor: 0, normalization: None, slope: None }] },
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
                        stride: *stride,
                        expansion: None,
                    };
                    program.convolve(view, shapes[index], convolution)
                }
                Operation::Upsampling { weight, bias, input, output, stride } => {
                    let convolution = Convolution {
                        weight: weight.clone(),
                        bias: bias.clone().filter(|_| !is_centred(network, index)),
                        input: *input,
                        output: *output,
                        kernel: Extent::ONE,
                        stride: Extent::ONE,
                        expansion: Some(*stride),
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
                Operation::LeakyRelu { slope } => {
                    let view = if view.parts.iter().any(|p| p.slope.is_some()) {
                        program.write_out(view, shapes[index])
                    } else {
                        view
                    };
                    let bend = |p: &Part| Part { slope: Some(*slope as f32), ..*p };
                    View { parts: view.parts.iter().map(bend).collect() }
                }
                Operation::Concatenate => View { parts: [view.parts, read(layer.sources[1]).parts].concat() },
            };
            views.push(view);
        }
        program.result = views.pop().unwrap_or(input);
        program.set_lives();
        program
    }

    fn tensor(&mut self, shape: Shape) -> (View, usize) {
        self.tensors.push(Tensor { shape, statistics: false, life: (0, 0) });
        let tensor = self.tensors.len() - 1;
        (View { parts: vec![Part { tensor, normalization: None, slope: None }] }, tensor)
    }

    fn convolve(&mut self, view: View, shape: Shape, convolution: Convolution) -> View {
        let (written, output) = self.tensor(shape);
        self.steps.push(Step::Convolve { view, output, convolution });
        written
    }

    fn write_out(&mut self, view: View, shape: Shape) -> View {
        let (written, output) = self.tensor(shape);
        self.steps.push(Step::Copy { view, output });
        written
    }

    /// The view, if it is just a tensor that a step has written, or else a copy that is.
    fn plain(&mut self, view: View, shape: Shape) -> (View, usize) {
        match view.parts.as_slice() {
            [Part { tensor, normalization: None, slope: None }] if *tensor > 0 => {
                let tensor = *tensor;
                (view, tensor)
            }
            _ => {
                let view = self.write_out(view, shape);
                let tensor = view.parts[0].tensor;
                (view, tensor)
            }
        }
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
            for part in &step.view().parts {
                self.tensors[part.tensor].life.1 = index;
            }
        }
        for part in &self.result.parts {
            self.tensors[part.tensor].life.1 = self.steps.len();
        }
    }

    /// Where each tensor lies in one block of memory, in values, and the block's length.
    /// Tensors share memory if no step needs both. The largest are placed first, each as low as possible.
    pub(super) fn places(&self) -> (Vec<usize>, usize) {
        /// Tensors begin at cache lines.
        const LINE: usize = 16;
        let length = |t: usize| (self.tensors[t].shape.elements() as usize).next_multiple_of(LINE);
        let mut order: Vec<usize> = (0..self.tensors.len()).collect();
        order.sort_by_key(|&t| std::cmp::Reverse(length(t)));
        let mut places = vec![0; self.tensors.len()];
        let mut placed: Vec<usize> = Vec::new();
        for t in order {
            let (first, last) = self.tensors[t].life;
            let meets = |&&o: &&usize| self.tensors[o].life.0 <= last && first <= self.tensors[o].life.1;
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
                if la.0 <= lb.1 && lb.0 <= la.1 {
                    assert!(range(a).end <= range(b).start || range(b).end <= range(a).start, "{a} and {b}");
                }
            }
        }
        let all: u64 = program.tensors.iter().map(|t| t.shape.elements()).sum();
        assert!((length as u64) < all, "memory is used again: {length} of {all}");
    }

    #[test]
    fn what_no_view_can_express_is_written_out() {
        let mut network = Network::new(2);
        let norm = Operation::InstanceNorm { affine: None, channels: 2, epsilon: 1e-5 };
        let bend = Operation::LeakyRelu { slope: 0.5 };
        let a = network.push(norm.clone(), &[Source::Input]);
        let b = network.push(bend.clone(), &[a]);
        let c = network.push(bend, &[b]);
        network.push(norm, &[c]);
        let program = Program::new(&network, Size::new(4, 4));
        assert_eq!(program.steps.len(), 3, "of the input, between the activations, before the last normalisation");
    }
}
