//! The network on the CPU, in f32, by kernels of our own.
//!
//! A [`Plan`] is made once for a network, a tile size, an instruction set and an arithmetic. It turns the network into steps
//! ([`program`]), lays out the memory in which their tensors share room, and chooses an algorithm for each convolution from that layer's
//! shape and the instruction set alone; so the same plan gives the same bits whatever runs beside it. Folds share the plan; each
//! packs its weights in the order in which the kernels read them.
//!
//! Tensors lie channels last and hold what a step has written, before any normalisation. The next convolution's loader
//! normalises, bends, pads and joins while it copies rows into a scratch that second-level caches hold, in blocks of 4, 8 or 16 channels;
//! kernels then compute a few neighbouring pixels of up to two vectors of output channels in registers, and sum what the next
//! normalisation needs on the way out. A layer of up to half a vector of channels is computed with neighbouring lanes sharing a channel.
//!
//! What is no convolution and cannot be part of a loader (residual sums, curved activations, pooling, resizing) goes through memory once,
//! a strip or a row at a time ([`elementwise`], [`neighbours`]), with the same reading and the same statistics.
//!
//! One forward pass runs on one thread; passes run side by side, each in a [`Workspace`] of its own.

mod buffer;
mod direct;
mod elementwise;
mod instructions;
mod kernel;
mod layer;
mod loader;
#[cfg(test)]
mod measurements;
mod moments;
mod neighbours;
mod planes;
mod program;
mod strip;
#[cfg(test)]
mod tests;
mod winograd;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use buffer::Buffer;
use direct::Direct;
use elementwise::Elementwise;
pub(crate) use instructions::InstructionSet;
use kernel::Kernels;
use layer::{Memory, Operand, Packed, Values};
use moments::Moments;
use neighbours::Neighbours;
use program::{Bend, Map, Normalization, Program, Rule, Slope, Step, View};
use winograd::Winograd;

use crate::ensemble::Engine;
use crate::network::Affine;
use crate::weights::Weight;
use crate::{Arithmetic, Network, Result};

/// How a network is run on tiles of one size.
#[derive(Debug)]
pub(crate) struct Plan {
    kernels: &'static Kernels,
    program: Program,
    layers: Vec<Layer>,
    /// Where the network's input lies in the arena.
    input: Range<usize>,
    result: Vec<Operand>,
    /// Where each normalisation's factors and summands lie, then where each activation's slopes do.
    affines: Vec<Range<usize>>,
    slopes: Vec<Range<usize>>,
    arena: usize,
    scratch: usize,
    idle: Mutex<Vec<Workspace>>,
}

/// One step with its places in memory.
#[derive(Debug)]
struct Layer {
    operands: Vec<Operand>,
    output: Range<usize>,
    algorithm: Algorithm,
}

#[derive(Debug)]
enum Algorithm {
    Direct(Direct),
    Winograd(Winograd),
    Elementwise(Elementwise),
    Neighbours(Neighbours),
}

/// The memory of one forward pass, allocated once and used again.
#[derive(Debug)]
struct Workspace {
    arena: Buffer,
    scratch: Buffer,
    affines: Vec<f32>,
    moments: Vec<Moments>,
}

impl Plan {
    pub(crate) fn new(
        network: &Network,
        tile: microtome_io::Size,
        set: InstructionSet,
        arithmetic: Arithmetic,
    ) -> Self {
        let kernels = Kernels::of(set);
        let program = Program::new(network, tile);
        let (places, arena) = program.places();
        let mut end = 0;
        let mut next = |length: usize| {
            end += length;
            end - length..end
        };
        let affines: Vec<Range<usize>> = program.normalizations.iter().map(|n| next(2 * n.channels)).collect();
        let slopes: Vec<Range<usize>> = program.bends.iter().map(|b| next(b.channels)).collect();
        let range = |t: usize| places[t]..places[t] + program.tensors[t].shape.elements() as usize;
        let operands = |views: &[View]| -> Vec<Operand> {
            let operand = |part: &program::Part| {
                let shape = program.tensors[part.tensor].shape;
                Operand {
                    place: range(part.tensor),
                    channels: shape.channels,
                    size: shape.size,
                    affine: part.normalization.map(|n| affines[n].clone()),
                    slopes: part.bend.map(|b| slopes[b].clone()),
                }
            };
            views.iter().flat_map(|v| &v.parts).map(operand).collect()
        };
        let layer = |step: &Step| {
            let operands = operands(step.views());
            let parts: Vec<usize> = operands.iter().map(|o| o.channels).collect();
            let size = program.tensors[step.output()].shape.size;
            let algorithm = match step {
                Step::Convolve { convolution, .. } => {
                    if arithmetic == Arithmetic::Fast && Winograd::pays(convolution, &parts, size) {
                        Algorithm::Winograd(Winograd::new(kernels, convolution, &parts, size))
                    } else {
                        Algorithm::Direct(Direct::new(kernels, convolution, &parts, size))
                    }
                }
                Step::Write { map: Map::Separable(taps), .. } => {
                    Algorithm::Neighbours(Neighbours::new(&operands, taps.clone()))
                }
                Step::Write { map, views, .. } => {
                    let curve = if let Map::Curve(curve) = map { Some(*curve) } else { None };
                    let output = range(step.output());
                    Algorithm::Elementwise(Elementwise::new(&operands, views[0].parts.len(), curve, &output))
                }
            };
            Layer { operands, output: range(step.output()), algorithm }
        };
        let layers: Vec<Layer> = program.steps.iter().map(layer).collect();
        let result = operands(std::slice::from_ref(&program.result));
        let scratch = layers.iter().map(|l| l.algorithm.scratch()).max().unwrap_or(0);
        let input = range(0);
        Self { kernels, program, layers, input, result, affines, slopes, arena, scratch, idle: Mutex::default() }
    }

    /// Bytes that one forward pass works in, besides its input and its result.
    pub(crate) fn bytes(&self) -> u64 {
        let affines = self.coefficients() * size_of::<f32>();
        let moments = self.most_channels() * size_of::<Moments>();
        Buffer::bytes(self.arena) + Buffer::bytes(self.scratch) + (affines + moments) as u64
    }

    /// Factors, summands and slopes of all views.
    fn coefficients(&self) -> usize {
        self.affines.iter().chain(&self.slopes).last().map_or(0, |last| last.end)
    }

    fn most_channels(&self) -> usize {
        self.program.tensors.iter().map(|t| t.shape.channels).max().unwrap_or(0)
    }

    fn workspace(&self) -> Workspace {
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| Workspace {
            arena: Buffer::zeros(self.arena),
            scratch: Buffer::zeros(self.scratch),
            affines: Vec::new(),
            moments: Vec::with_capacity(self.most_channels()),
        })
    }

    fn keep(&self, workspace: Workspace) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
    }
}

impl Algorithm {
    fn scratch(&self) -> usize {
        match self {
            Self::Direct(direct) => direct.scratch(),
            Self::Winograd(winograd) => winograd.scratch(),
            Self::Elementwise(elementwise) => elementwise.scratch(),
            Self::Neighbours(neighbours) => neighbours.scratch(),
        }
    }
}

/// The network of one fold, ready to run.
#[derive(Debug)]
pub(crate) struct PackedNetwork {
    plan: Arc<Plan>,
    /// For each step; none for those that have no weights.
    layers: Vec<Option<Packed>>,
    /// Factors, summands and slopes of all views; those that depend on the tile are filled in during a forward pass.
    affines: Vec<f32>,
    /// Factor and summand of each normalisation after statistics are divided out, if it has them.
    scales: Vec<Option<(Vec<f32>, Vec<f32>)>>,
}

impl PackedNetwork {
    /// # Panics
    /// If a weight is missing: they have been matched with the network before.
    pub(crate) fn new(plan: Arc<Plan>, weights: &BTreeMap<String, Weight>) -> Self {
        let pack = |(step, layer): (&Step, &Layer)| match (step, &layer.algorithm) {
            (Step::Convolve { convolution, .. }, Algorithm::Direct(direct)) => {
                Some(direct.pack(&Values::new(convolution, weights)))
            }
            (Step::Convolve { convolution, .. }, Algorithm::Winograd(winograd)) => {
                Some(winograd.pack(&Values::new(convolution, weights)))
            }
            _ => None,
        };
        let layers = plan.program.steps.iter().zip(&plan.layers).map(pack).collect();
        let values = |name: &String| weights[name].values.to_vec();
        let scale = |affine: &Option<Affine>| affine.as_ref().map(|a| (values(&a.weight), values(&a.bias)));
        let rules = plan.program.normalizations.iter().map(|n| &n.rule);
        let scales: Vec<_> = rules
            .map(|rule| match rule {
                Rule::Instance { affine, .. } | Rule::Group { affine, .. } | Rule::Batch { affine, .. } => {
                    scale(affine)
                }
            })
            .collect();
        let mut affines = vec![0.0; plan.coefficients()];
        for ((normalization, range), scale) in plan.program.normalizations.iter().zip(&plan.affines).zip(&scales) {
            if let Rule::Batch { mean, variance, epsilon, .. } = &normalization.rule {
                let (mean, variance) = (values(mean), values(variance));
                let statistics = |c: usize| (f64::from(mean[c]), f64::from(variance[c]));
                fill(&mut affines[range.clone()], *epsilon, scale.as_ref(), statistics);
            }
        }
        for (Bend { slope, .. }, range) in plan.program.bends.iter().zip(&plan.slopes) {
            match slope {
                Slope::Constant(slope) => affines[range.clone()].fill(*slope),
                Slope::Weight { name, first } => match &*weights[name].values {
                    [slope] => affines[range.clone()].fill(*slope),
                    slopes => affines[range.clone()].copy_from_slice(&slopes[*first..][..range.len()]),
                },
            }
        }
        Self { plan, layers, affines, scales }
    }

    /// Bytes of packed weights.
    pub(crate) fn bytes(&self) -> u64 {
        let scales: usize = self.scales.iter().flatten().map(|(w, b)| w.len() + b.len()).sum();
        let values = ((self.affines.len() + scales) * size_of::<f32>()) as u64;
        self.layers.iter().flatten().map(Packed::bytes).sum::<u64>() + values
    }

    fn run(&self, input: &[f32], workspace: &mut Workspace) -> Vec<f32> {
        let plan = &*self.plan;
        workspace.affines.clear();
        workspace.affines.extend_from_slice(&self.affines);
        workspace.arena[plan.input.clone()].copy_from_slice(input);
        (0..plan.layers.len()).for_each(|index| self.step(index, workspace));
        planes::planes(plan.result.iter().map(|o| o.source(&workspace.arena, &workspace.affines)))
    }

    /// Writes one tensor, and what follows from its statistics.
    fn step(&self, index: usize, workspace: &mut Workspace) {
        let plan = &*self.plan;
        let Workspace { arena, scratch, affines, moments } = workspace;
        let layer = &plan.layers[index];
        let written = plan.program.steps[index].output();
        let tensor = &plan.program.tensors[written];
        moments.clear();
        if tensor.statistics {
            moments.resize(tensor.shape.channels, Moments::default());
        }
        let wanted = tensor.statistics.then_some(&mut moments[..]);
        let mut memory = Memory { arena, affines, scratch, moments: wanted };
        match (&layer.algorithm, &self.layers[index]) {
            (Algorithm::Direct(direct), Some(packed)) => {
                direct.run(plan.kernels, packed, &layer.operands, &layer.output, &mut memory);
            }
            (Algorithm::Winograd(winograd), Some(packed)) => {
                winograd.run(plan.kernels, packed, &layer.operands, &layer.output, &mut memory);
            }
            (Algorithm::Elementwise(step), _) => step.run(plan.kernels, &layer.operands, &layer.output, &mut memory),
            (Algorithm::Neighbours(step), _) => step.run(plan.kernels, &layer.operands, &layer.output, &mut memory),
            (Algorithm::Direct(_) | Algorithm::Winograd(_), None) => unreachable!("convolutions have weights"),
        }
        if tensor.statistics {
            self.normalize(written, moments, affines);
        }
    }

    /// Turns the statistics of a tensor into the factors and summands of the normalisations that wait for them.
    fn normalize(&self, written: usize, moments: &[Moments], affines: &mut [f32]) {
        let normalizations = self.plan.program.normalizations.iter().zip(&self.plan.affines).zip(&self.scales);
        for ((Normalization { rule, .. }, range), scale) in normalizations {
            match rule {
                Rule::Instance { tensor, epsilon, .. } if *tensor == written => {
                    let statistics = |c: usize| moments[c].mean_and_variance();
                    fill(&mut affines[range.clone()], *epsilon, scale.as_ref(), statistics);
                }
                Rule::Group { tensor, groups, epsilon, .. } if *tensor == written => {
                    let channels = moments.len() / groups;
                    let statistics = |c: usize| {
                        let group = &moments[c / channels * channels..][..channels];
                        group.iter().fold(Moments::default(), |all, m| all.merged(m)).mean_and_variance()
                    };
                    fill(&mut affines[range.clone()], *epsilon, scale.as_ref(), statistics);
                }
                _ => {}
            }
        }
    }
}

/// `(x - mean) / sqrt(variance + epsilon) * weight + bias` as a factor and a summand per channel.
fn fill(
    affine: &mut [f32],
    epsilon: f64,
    scale: Option<&(Vec<f32>, Vec<f32>)>,
    statistics: impl Fn(usize) -> (f64, f64),
) {
    let channels = affine.len() / 2;
    let (factors, summands) = affine.split_at_mut(channels);
    for c in 0..channels {
        let (mean, variance) = statistics(c);
        let (weight, bias) = scale.map_or((1.0, 0.0), |(w, b)| (f64::from(w[c]), f64::from(b[c])));
        let factor = weight / (variance + epsilon).sqrt();
        factors[c] = factor as f32;
        summands[c] = (bias - mean * factor) as f32;
    }
}

impl Engine for PackedNetwork {
    fn forward(&self, input: &[f32]) -> Result<Vec<f32>> {
        let mut workspace = self.plan.workspace();
        let logits = self.run(input, &mut workspace);
        self.plan.keep(workspace);
        Ok(logits)
    }
}
