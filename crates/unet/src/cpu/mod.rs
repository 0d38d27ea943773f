//! The network on the CPU, by kernels of our own.
//!
//! A [`Plan`] is made once for a network, a tile size, an instruction set, a precision and an arithmetic. It turns the network into steps
//! ([`program`]), lays out the memory in which their tensors share room, and chooses an algorithm for each convolution from that layer's
//! shape and the instruction set alone; so the same plan gives the same bits whatever runs beside it. Folds share the plan; each
//! packs its weights in the order in which the kernels read them.
//!
//! Tensors lie channels last and hold what a step has written, before any normalisation. The next convolution's loader
//! normalises, bends, pads and joins while it copies rows into a scratch that second-level caches hold, in blocks of 4, 8 or 16 channels;
//! kernels then compute a few neighbouring pixels of up to two vectors of output channels in registers, and sum what the next
//! normalisation needs on the way out. A layer of up to half a vector of channels is computed with neighbouring lanes sharing a channel.
//!
//! What is no convolution and cannot be part of a loader (residual sums, curved activations, pooling, resizing, shuffling) goes through memory
//! once, a strip or a row at a time ([`elementwise`], [`neighbours`], [`shuffle`]), with the same reading and the same statistics.
//!
//! In bf16, weights and what the loader writes are rounded to pairs that share a word; tensors, sums and statistics stay f32.
//!
//! Passes run side by side, each in a [`Workspace`] of its own; threads that have no pass help others with theirs ([`crate::crew`]).
//! How a layer is divided among threads follows from its shape, and what is summed is summed in a fixed order: so the number of threads
//! changes no bit.

pub(crate) mod bf16;
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
mod shuffle;
mod strip;
#[cfg(test)]
mod tests;
mod winograd;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use buffer::Buffer;
use direct::Direct;
use elementwise::Elementwise;
pub(crate) use instructions::InstructionSet;
use kernel::Kernels;
pub(crate) use kernel::Words;
use layer::{Demands, Inputs, Operand, Others, Packed, Values, Work};
use moments::Moments;
use neighbours::Neighbours;
use program::{Bend, Map, Normalization, Program, Rule, Slope, Step, Tensor, View};
use shuffle::Shuffle;
use winograd::Winograd;

use crate::crew::Crew;
use crate::ensemble::Engine;
use crate::network::Affine;
use crate::weights::Weight;
use crate::{Arithmetic, Network, Result, StepTime};

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
    /// The most that any layer asks for, and of moments for all its pieces.
    demands: Demands,
    moments: usize,
    passes: AtomicU64,
    idle: Mutex<Vec<Workspace>>,
    idle_scratch: Mutex<Vec<Buffer>>,
}

/// One step with its places in memory.
#[derive(Debug)]
struct Layer {
    operands: Vec<Operand>,
    output: Range<usize>,
    algorithm: Algorithm,
    /// That it has taken so far, of the threads that lead.
    nanoseconds: AtomicU64,
}

#[derive(Debug)]
enum Algorithm {
    Direct(Direct),
    Winograd(Winograd),
    Elementwise(Elementwise),
    Neighbours(Neighbours),
    Shuffle(Shuffle),
}

/// The memory of one forward pass, allocated once and used again.
#[derive(Debug)]
struct Workspace {
    arena: Buffer,
    /// Of all threads that are at it.
    shared: Buffer,
    affines: Vec<f32>,
    moments: Vec<Moments>,
}

impl Plan {
    pub(crate) fn new(
        network: &Network,
        tile: microtome_io::Size,
        set: InstructionSet,
        words: Words,
        arithmetic: Arithmetic,
    ) -> Self {
        let kernels = Kernels::of(set, words);
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
                    if arithmetic == Arithmetic::Fast && Winograd::pays(kernels, convolution, &parts, size) {
                        Algorithm::Winograd(Winograd::new(kernels, convolution, &parts, size))
                    } else {
                        Algorithm::Direct(Direct::new(kernels, convolution, &parts, size))
                    }
                }
                Step::Write { map: Map::Separable(taps), .. } => {
                    Algorithm::Neighbours(Neighbours::new(&operands, taps.clone()))
                }
                Step::Write { map: Map::Shuffle(factor), .. } => Algorithm::Shuffle(Shuffle::new(&operands, *factor)),
                Step::Write { map, views, .. } => {
                    let curve = if let Map::Curve(curve) = map { Some(*curve) } else { None };
                    let output = range(step.output());
                    Algorithm::Elementwise(Elementwise::new(&operands, views[0].parts.len(), curve, &output))
                }
            };
            Layer { operands, output: range(step.output()), algorithm, nanoseconds: AtomicU64::new(0) }
        };
        let layers: Vec<Layer> = program.steps.iter().map(layer).collect();
        let result = operands(std::slice::from_ref(&program.result));
        let most = |of: fn(Demands) -> usize| layers.iter().map(|l| of(l.algorithm.demands())).max().unwrap_or(0);
        let demands = Demands { pieces: most(|d| d.pieces), shared: most(|d| d.shared), scratch: most(|d| d.scratch) };
        let measured = program.steps.iter().zip(&layers).map(|(step, layer)| {
            let tensor = &program.tensors[step.output()];
            if tensor.statistics { tensor.shape.channels * layer.algorithm.demands().pieces } else { 0 }
        });
        let moments = measured.max().unwrap_or(0);
        let input = range(0);
        Self {
            kernels,
            program,
            layers,
            input,
            result,
            affines,
            slopes,
            arena,
            demands,
            moments,
            passes: AtomicU64::new(0),
            idle: Mutex::default(),
            idle_scratch: Mutex::default(),
        }
    }

    /// Bytes that one forward pass works in, besides its input, its result, and those of its threads.
    pub(crate) fn forward_bytes(&self) -> u64 {
        let affines = self.coefficients() * size_of::<f32>();
        let moments = self.moments * size_of::<Moments>();
        Buffer::bytes(self.arena) + Buffer::bytes(self.demands.shared) + (affines + moments) as u64
    }

    /// Bytes that each thread works in.
    pub(crate) fn thread_bytes(&self) -> u64 {
        Buffer::bytes(self.demands.scratch)
    }

    /// Factors, summands and slopes of all views.
    fn coefficients(&self) -> usize {
        self.affines.iter().chain(&self.slopes).last().map_or(0, |last| last.end)
    }

    /// What each step is, and how long it has taken so far.
    fn times(&self) -> Vec<StepTime> {
        let time = |(step, layer): (&Step, &Layer)| {
            let shape = self.program.tensors[step.output()].shape;
            let multiplications = match step {
                Step::Convolve { convolution, .. } => convolution.multiplications(shape.elements()),
                Step::Write { .. } => 0,
            };
            StepTime {
                name: format!("{step} at {}", shape.size),
                algorithm: layer.algorithm.name(),
                multiplications,
                seconds: layer.nanoseconds.load(Ordering::Relaxed) as f64 * 1e-9,
            }
        };
        self.program.steps.iter().zip(&self.layers).map(time).collect()
    }

    fn workspace(&self) -> Workspace {
        take(&self.idle).unwrap_or_else(|| Workspace {
            arena: Buffer::zeros(self.arena),
            shared: Buffer::zeros(self.demands.shared),
            affines: Vec::with_capacity(self.coefficients()),
            moments: Vec::with_capacity(self.moments),
        })
    }

    fn scratch(&self) -> Buffer {
        take(&self.idle_scratch).unwrap_or_else(|| Buffer::zeros(self.demands.scratch))
    }
}

/// Takes what lies idle.
fn take<T>(idle: &Mutex<Vec<T>>) -> Option<T> {
    idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
}

/// Puts back what may be used again.
fn keep<T>(idle: &Mutex<Vec<T>>, kept: T) {
    idle.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
}

impl Algorithm {
    fn name(&self) -> &'static str {
        match self {
            Self::Direct(_) => "direct",
            Self::Winograd(_) => "winograd",
            Self::Elementwise(_) => "pixels",
            Self::Neighbours(_) => "resample",
            Self::Shuffle(_) => "shuffle",
        }
    }

    fn demands(&self) -> Demands {
        match self {
            Self::Direct(direct) => direct.demands(),
            Self::Winograd(winograd) => winograd.demands(),
            Self::Elementwise(elementwise) => elementwise.demands(),
            Self::Neighbours(neighbours) => neighbours.demands(),
            Self::Shuffle(shuffle) => shuffle.demands(),
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

    fn run(&self, input: &[f32], workspace: &mut Workspace, scratch: &mut [f32], crew: &Crew) -> Vec<f32> {
        let plan = &*self.plan;
        workspace.affines.clear();
        workspace.affines.extend_from_slice(&self.affines);
        workspace.arena[plan.input.clone()].copy_from_slice(input);
        for (index, layer) in plan.layers.iter().enumerate() {
            let started = Instant::now();
            self.step(index, workspace, scratch, crew);
            layer.nanoseconds.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
        plan.passes.fetch_add(1, Ordering::Relaxed);
        let Workspace { arena, affines, .. } = workspace;
        planes::planes(plan.result.iter().map(|o| o.source(&arena[o.place.clone()], affines)))
    }

    /// Writes one tensor, and what follows from its statistics.
    fn step(&self, index: usize, workspace: &mut Workspace, scratch: &mut [f32], crew: &Crew) {
        let plan = &*self.plan;
        let Workspace { arena, shared, affines, moments } = workspace;
        let layer = &plan.layers[index];
        let written = plan.program.steps[index].output();
        let Tensor { shape, statistics, .. } = plan.program.tensors[written];
        moments.clear();
        if statistics {
            moments.resize(shape.channels * layer.algorithm.demands().pieces, Moments::default());
        }
        let (others, tensor) = Others::split(arena, &layer.output);
        let inputs = Inputs { operands: &layer.operands, others, affines };
        let work = Work { crew, tensor, moments: statistics.then_some(&mut moments[..]), shared, scratch };
        match (&layer.algorithm, &self.layers[index]) {
            (Algorithm::Direct(direct), Some(packed)) => direct.run(plan.kernels, packed, inputs, work),
            (Algorithm::Winograd(winograd), Some(packed)) => winograd.run(plan.kernels, packed, inputs, work),
            (Algorithm::Elementwise(step), _) => step.run(plan.kernels, inputs, work),
            (Algorithm::Neighbours(step), _) => step.run(plan.kernels, inputs, work),
            (Algorithm::Shuffle(step), _) => step.run(plan.kernels, inputs, work),
            (Algorithm::Direct(_) | Algorithm::Winograd(_), None) => unreachable!("convolutions have weights"),
        }
        if statistics {
            let (all, pieces) = moments.split_at_mut(shape.channels);
            for piece in pieces.chunks_exact(shape.channels) {
                all.iter_mut().zip(piece).for_each(|(all, piece)| *all = all.merged(piece));
            }
            self.normalize(written, all, affines);
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
    fn forward(&self, input: &[f32], crew: &Crew) -> Result<Vec<f32>> {
        let (mut workspace, mut scratch) = (self.plan.workspace(), self.plan.scratch());
        let logits = self.run(input, &mut workspace, &mut scratch, crew);
        keep(&self.plan.idle, workspace);
        keep(&self.plan.idle_scratch, scratch);
        Ok(logits)
    }

    fn steps(&self) -> Option<(u64, Vec<StepTime>)> {
        Some((self.plan.passes.load(Ordering::Relaxed), self.plan.times()))
    }

    fn help(&self, crew: &Crew) {
        let mut scratch = self.plan.scratch();
        crew.help(&mut scratch);
        keep(&self.plan.idle_scratch, scratch);
    }
}
