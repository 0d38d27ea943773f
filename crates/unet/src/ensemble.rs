//! The predictor that all engines share: tiles become inputs, passes and folds become one mean.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use microtome_io::{Samples, Size};

use crate::cpu::{InstructionSet, PackedNetwork, Plan, Words};
use crate::crew::Crew;
use crate::model::Model;
use crate::{
    Arithmetic, Card, ChosenDevice, Device, Error, Execution, Logits, MemoryEstimate, MirrorAxes, Mirroring,
    Normalizer, Precision, Predictor, Profile, Result, StepTime, Tile, candle,
};

/// The network of one fold on one device.
pub(crate) trait Engine: Send + Sync + std::fmt::Debug {
    /// The logits of one tile: height × width × channels values in, heads × height × width out.
    /// The calling thread leads the crew.
    fn forward(&self, input: &[f32], crew: &Crew) -> Result<Vec<f32>>;

    /// The passes so far of all folds that share a plan with this one, and the time of each step, if that is known.
    fn steps(&self) -> Option<(u64, Vec<StepTime>)> {
        None
    }

    /// Helps the crew's leader until it leaves. Engines whose passes cannot be shared are never asked to.
    fn help(&self, _crew: &Crew) {}
}

/// Bytes that an engine needs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Needs {
    /// Weights of all folds.
    pub(crate) weights: u64,
    /// Of each forward pass at a time, besides input and logits.
    pub(crate) forward: u64,
    /// Of each thread.
    pub(crate) thread: u64,
}

/// All folds of a model with the mirrored passes over them.
#[derive(Debug)]
pub(crate) struct Ensemble<E> {
    card: Card,
    folds: Vec<E>,
    passes: Vec<MirrorAxes>,
    /// Engine, device or instruction set, and arithmetic.
    engine: String,
    advice: Option<String>,
    needs: Needs,
    /// Of the threads that lead passes.
    nanoseconds: AtomicU64,
    concurrency: Concurrency,
}

/// How many forward passes run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Concurrency {
    /// As many as rayon has threads; those without a pass of their own help others with theirs.
    Crews,
    /// As many as rayon has threads, each with passes of its own.
    Threads,
    /// A GPU is driven by one thread.
    One,
}

/// Puts a model on a device.
///
/// # Errors
/// If the device is not there or cannot compute with the precision asked for.
pub(crate) fn predictor(model: &Model, execution: &Execution) -> Result<Box<dyn Predictor>> {
    let ChosenDevice { device, note } = execution.device.choose()?;
    if device == Device::Cpu && execution.precision == Precision::F16 {
        return Err(Error::Device { message: WITHOUT_F16.into() });
    }
    match device {
        _ if execution.arithmetic == Arithmetic::Reference => {
            Ok(Box::new(candle::ensemble(model, execution, &candle::open(device)?)?))
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(gpus) => Ok(Box::new(crate::gpu::predictor(model, execution, gpus)?)),
        _ => {
            let mut ensemble = on_cpu(model, execution, InstructionSet::choose()?)?;
            ensemble.advice = match (note, ensemble.advice) {
                (Some(note), Some(advice)) => Some(format!("{note}; {advice}")),
                (note, advice) => note.or(advice),
            };
            Ok(Box::new(ensemble))
        }
    }
}

/// A model on the CPU with these instructions.
///
/// # Errors
/// If the precision is f16.
pub(crate) fn on_cpu(model: &Model, execution: &Execution, set: InstructionSet) -> Result<Ensemble<PackedNetwork>> {
    let words = match execution.precision {
        Precision::F32 => Words::F32,
        Precision::Bf16 => Words::Bf16,
        Precision::F16 => {
            return Err(Error::Device { message: WITHOUT_F16.into() });
        }
    };
    let set = set.with(words);
    let plan = Arc::new(Plan::new(&model.network(), model.card().tile, set, words, execution.arithmetic));
    let folds: Vec<_> = model.folds().iter().map(|f| PackedNetwork::new(plan.clone(), &f.weights)).collect();
    let needs = Needs {
        weights: folds.iter().map(PackedNetwork::bytes).sum(),
        forward: plan.forward_bytes(),
        thread: plan.thread_bytes(),
    };
    let (products, advice) = match (words, set.multiplies_bf16()) {
        (Words::F32, _) => ("f32", None),
        (Words::Bf16, true) => ("bf16 by vdpbf16ps", None),
        (Words::Bf16, false) => ("bf16 by fma", Some(WITHOUT_BF16.to_owned())),
    };
    let engine = format!("microtome cpu 2, {set}, {products} {}", execution.arithmetic);
    let ensemble = Ensemble::new(model, execution, folds, engine, needs, Concurrency::Crews);
    Ok(Ensemble { advice, ..ensemble })
}

const WITHOUT_F16: &str = "f16 needs a GPU; the CPU computes in f32 or bf16";
const WITHOUT_BF16: &str = "this CPU has no instructions for bf16: f32 is both faster and more exact on it";

/// What is mirrored in each pass.
pub(crate) fn passes(card: &Card, execution: &Execution) -> Vec<MirrorAxes> {
    match execution.mirroring {
        Mirroring::AsTrained => card.mirror_axes.passes(),
        Mirroring::Off => vec![MirrorAxes::NONE],
    }
}

impl<E: Engine> Ensemble<E> {
    pub(crate) fn new(
        model: &Model,
        execution: &Execution,
        folds: Vec<E>,
        engine: String,
        needs: Needs,
        concurrency: Concurrency,
    ) -> Self {
        let passes = passes(model.card(), execution);
        Self {
            card: model.card().clone(),
            folds,
            passes,
            engine,
            advice: None,
            needs,
            nanoseconds: AtomicU64::new(0),
            concurrency,
        }
    }

    /// The sum over folds of the logits of one mirrored pass over one tile, still mirrored.
    pub(crate) fn run(&self, input: &[f32], crew: &Crew) -> Result<Vec<f32>> {
        let mut sum: Option<Vec<f32>> = None;
        for fold in &self.folds {
            let logits = fold.forward(input, crew)?;
            sum = Some(match sum {
                None => logits,
                Some(mut sum) => {
                    sum.iter_mut().zip(logits).for_each(|(s, l)| *s += l);
                    sum
                }
            });
        }
        Ok(sum.unwrap_or_default())
    }

    fn threads(&self) -> usize {
        match self.concurrency {
            Concurrency::Crews | Concurrency::Threads => rayon::current_num_threads(),
            Concurrency::One => 1,
        }
    }

    /// Adds the time since then to that of the leading threads.
    fn took(&self, since: Instant) {
        self.nanoseconds.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    /// Calls `forward` with 0, 1, 2, ... below `forwards`, on as many threads at once as there are.
    /// Who finds none left helps the others with theirs.
    fn share(&self, forwards: usize, forward: impl Fn(usize, &Crew) + Sync) {
        let next = AtomicUsize::new(0);
        let crews: Vec<Crew> = (0..self.threads()).map(|_| Crew::default()).collect();
        rayon::scope(|scope| {
            for own in &crews {
                let (next, crews, forward) = (&next, &crews, &forward);
                scope.spawn(move |_| {
                    let leadership = own.lead();
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= forwards {
                            break;
                        }
                        forward(i, own);
                    }
                    drop(leadership);
                    if self.concurrency != Concurrency::Crews {
                        return;
                    }
                    let fewest_helpers =
                        || crews.iter().filter_map(|c| Some((c.helpers()?, c))).min_by_key(|(n, _)| *n);
                    while let (Some((_, crew)), Some(fold)) = (fewest_helpers(), self.folds.first()) {
                        fold.help(crew);
                    }
                });
            }
        });
    }
}

impl<E: Engine> Predictor for Ensemble<E> {
    fn card(&self) -> &Card {
        &self.card
    }

    /// Every pass over every tile is a forward of its own, so that nothing depends on the batch.
    fn predict(&self, tiles: &[Tile<'_>], normalizer: &Normalizer) -> Result<Vec<Logits>> {
        for (index, tile) in tiles.iter().enumerate() {
            check_tile(index, tile, &self.card, normalizer)?;
        }
        let passes = self.passes.len();
        let forwards = tiles.len() * passes;
        let done = Mutex::new((0..forwards).map(|_| None).collect::<Vec<_>>());
        self.share(forwards, |i, crew| {
            let started = Instant::now();
            let input = normalize(&tiles[i / passes], self.card.tile, normalizer, self.passes[i % passes]);
            let result = self.run(&input, crew);
            self.took(started);
            // A poisoned lock means that another thread panicked; that is passed on.
            if let Ok(mut done) = done.lock() {
                done[i] = Some(result);
            }
        });
        let started = Instant::now();
        let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).into_iter();
        let mut all = Vec::with_capacity(tiles.len());
        for index in 0..tiles.len() {
            let mut logits = Logits { heads: self.card.heads(), size: self.card.tile, values: Vec::new() };
            for (pass, result) in self.passes.iter().zip(done.by_ref()) {
                let values = result.ok_or_else(|| Error::Inference { message: "a pass was lost".into() })??;
                if logits.values.is_empty() {
                    logits.values = values;
                } else {
                    add_mirrored(&mut logits, &values, *pass);
                }
            }
            average(&mut logits.values, passes);
            average(&mut logits.values, self.folds.len());
            if !logits.values.iter().all(|v| v.is_finite()) {
                return Err(Error::NotFinite { index });
            }
            all.push(logits);
        }
        self.took(started);
        Ok(all)
    }

    fn profile(&self) -> Option<Profile> {
        let (passes, steps) = self.folds.first()?.steps()?;
        let all = self.nanoseconds.load(Ordering::Relaxed) as f64 * 1e-9;
        let around = (all - steps.iter().map(|step| step.seconds).sum::<f64>()).max(0.0);
        Some(Profile { passes, steps, around })
    }

    fn identity(&self) -> String {
        format!("{}, {} passes", self.engine, self.passes.len())
    }

    fn advice(&self) -> Option<&str> {
        self.advice.as_deref()
    }

    fn memory(&self, batch: usize) -> MemoryEstimate {
        let forwards = batch.saturating_mul(self.passes.len());
        let threads = self.threads();
        let in_flight = threads.min(forwards) as u64;
        let area = self.card.tile.area();
        let logits = 4 * area * self.card.heads() as u64;
        let input = 4 * area * self.card.channels.len() as u64;
        // Several folds are summed; the logits of every pass wait for the others of their tile.
        let sum = if self.folds.len() > 1 { logits } else { 0 };
        let forward = self.needs.forward.saturating_add(input).saturating_add(sum);
        let activations = forward
            .saturating_mul(in_flight)
            .saturating_add(self.needs.thread.saturating_mul(threads as u64))
            .saturating_add(logits.saturating_mul(forwards as u64));
        MemoryEstimate { weights: self.needs.weights, activations }
    }
}

pub(crate) fn check_tile(index: usize, tile: &Tile<'_>, card: &Card, normalizer: &Normalizer) -> Result<()> {
    let channels = card.channels.len();
    let found = tile.pixels.channels();
    if found != channels || normalizer.channels() != channels {
        let message = format!(
            "tile {index} of the batch has {found} channels and the normaliser {}; the model has {channels}",
            normalizer.channels()
        );
        return Err(Error::usage(message));
    }
    if tile.at.size() != tile.pixels.size() || !card.tile.rect().contains(tile.at) || tile.at.is_empty() {
        let message = format!("tile {index} of the batch lies at {}; the model's tile is {}", tile.at, card.tile);
        return Err(Error::usage(message));
    }
    Ok(())
}

fn average(values: &mut [f32], of: usize) {
    if of > 1 {
        for value in values {
            *value /= of as f32;
        }
    }
}

/// The network's input for one pass: channels last, normalised, mirrored, 0 where the tile holds no pixels.
fn normalize(tile: &Tile<'_>, size: Size, normalizer: &Normalizer, pass: MirrorAxes) -> Vec<f32> {
    let channels = tile.pixels.channels();
    let mut input = vec![0.0; size.area() as usize * channels];
    match tile.pixels.samples() {
        Samples::U8(samples) => {
            let table = |channel| std::array::from_fn(|v| normalizer.apply(channel, v as f32));
            let tables: Vec<[f32; 256]> = (0..channels).map(table).collect();
            fill(&mut input, size, tile, samples, pass, |channel, v| tables[channel][usize::from(v)]);
        }
        Samples::U16(samples) => {
            fill(&mut input, size, tile, samples, pass, |channel, v| normalizer.apply(channel, f32::from(v)));
        }
    }
    input
}

fn fill<T: Copy>(
    input: &mut [f32],
    size: Size,
    tile: &Tile<'_>,
    samples: &[T],
    pass: MirrorAxes,
    apply: impl Fn(usize, T) -> f32,
) {
    let (width, height, channels) = (size.width as usize, size.height as usize, tile.pixels.channels());
    let (x, y, columns) = (tile.at.x as usize, tile.at.y as usize, tile.at.width as usize);
    for (row, samples) in samples.chunks_exact(columns * channels).enumerate() {
        let to = if pass.vertical { height - 1 - (y + row) } else { y + row };
        let line = &mut input[to * width * channels..][..width * channels];
        let pixels = samples.chunks_exact(channels);
        let write = |(to, from): (&mut [f32], &[T])| {
            to.iter_mut().zip(from).enumerate().for_each(|(c, (to, v))| *to = apply(c, *v));
        };
        if pass.horizontal {
            line.chunks_exact_mut(channels).rev().skip(x).zip(pixels).for_each(write);
        } else {
            line.chunks_exact_mut(channels).skip(x).zip(pixels).for_each(write);
        }
    }
}

/// Adds the logits of a mirrored pass, mirrored back.
fn add_mirrored(sum: &mut Logits, values: &[f32], pass: MirrorAxes) {
    let (width, height) = (sum.size.width as usize, sum.size.height as usize);
    for (plane, from) in sum.values.chunks_exact_mut(width * height).zip(values.chunks_exact(width * height)) {
        for (y, line) in plane.chunks_exact_mut(width).enumerate() {
            let row = if pass.vertical { height - 1 - y } else { y };
            let from = &from[row * width..][..width];
            if pass.horizontal {
                line.iter_mut().zip(from.iter().rev()).for_each(|(s, v)| *s += v);
            } else {
                line.iter_mut().zip(from).for_each(|(s, v)| *s += v);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use microtome_io::{Pixels, Rect};

    use super::*;
    use crate::architecture::PlainConvUnet;
    use crate::architecture::tests::tiny;
    use crate::model::tests::random;
    use crate::{Architecture, Normalization};

    #[test]
    fn what_the_cpu_cannot_do_is_said() {
        let model = random(Architecture::PlainConvUnet(tiny()), Size::new(8, 8));
        let message = |device, precision| {
            let execution = Execution { device, precision, ..Execution::default() };
            model.predictor(&execution).unwrap_err().to_string()
        };
        assert_eq!(message(crate::Device::Cpu, Precision::F16), "f16 needs a GPU; the CPU computes in f32 or bf16");
        let reference =
            Execution { device: crate::Device::Cpu, arithmetic: Arithmetic::Reference, ..Execution::default() };
        let f16 = model.predictor(&Execution { precision: Precision::F16, ..reference });
        assert!(f16.is_err_and(|e| e.to_string().starts_with("f16 needs a GPU")));
        #[cfg(not(feature = "cuda"))]
        assert_eq!(
            message(crate::Device::Cuda(crate::Gpus::one(1)), Precision::F32),
            "CUDA device 1 cannot be used: this build has no CUDA support (cargo feature `cuda` or `cudnn`)"
        );
    }

    #[test]
    fn the_reference_is_candles() {
        let model = random(Architecture::PlainConvUnet(tiny()), Size::new(8, 8));
        let identity = |arithmetic| {
            let execution = Execution { device: crate::Device::Cpu, arithmetic, ..Execution::default() };
            model.predictor(&execution).unwrap().identity()
        };
        assert_eq!(identity(Arithmetic::Reference), "candle 0.11, f32 on cpu, 4 passes");
        assert!(identity(Arithmetic::Exact).starts_with("microtome cpu"));
    }

    #[test]
    fn a_tile_that_does_not_fit_is_refused() {
        let model = random(Architecture::PlainConvUnet(tiny()), Size::new(8, 8));
        let predictor = model.predictor(&Execution::default()).unwrap();
        let normalizer = Normalizer::new(&[Normalization::None; 3], &[]).unwrap();
        let message = |size: Size, channels: usize, at: Rect| {
            let pixels = Pixels::from_u8(size, channels, vec![0; size.area() as usize * channels]);
            predictor.predict(&[Tile { pixels: &pixels, at }], &normalizer).unwrap_err().to_string()
        };
        let size = Size::new(8, 8);
        assert_eq!(
            message(size, 4, size.rect()),
            "tile 0 of the batch has 4 channels and the normaliser 3; the model has 3"
        );
        assert_eq!(
            message(size, 3, Rect::new(1, 0, 8, 8)),
            "tile 0 of the batch lies at 8 x 8 at (1, 0); the model's tile is 8 x 8"
        );
    }

    #[test]
    fn a_logit_that_is_not_finite_is_an_error() {
        let mut model = random(Architecture::PlainConvUnet(tiny()), Size::new(8, 8));
        model.change_weight("decoder.seg_layers.1.bias", f32::NAN);
        let predictor = model.predictor(&Execution::default()).unwrap();
        let normalizer = Normalizer::new(&[Normalization::None; 3], &[]).unwrap();
        let pixels = Pixels::from_u8(Size::new(8, 8), 3, vec![1; 192]);
        let error = predictor.predict(&[Tile::full(&pixels)], &normalizer).unwrap_err();
        assert!(matches!(error, Error::NotFinite { index: 0 }), "{error}");
    }

    #[test]
    fn memory_grows_with_the_batch_until_all_threads_work() {
        let model = random(Architecture::PlainConvUnet(tiny()), Size::new(64, 64));
        let predictor = model.predictor(&Execution::default()).unwrap();
        let [one, many] = [1, 64].map(|batch| predictor.memory(batch));
        // Packing pads channels to whole blocks and vectors.
        assert!(one.weights >= 4 * model.card().parameters);
        assert!(one.activations > 4 * 64 * 64 * 4 && many.activations >= one.activations);
    }

    #[test]
    fn weights_in_bf16_take_half() {
        let parameters = PlainConvUnet { features: vec![16, 32, 64], ..tiny() };
        let model = random(Architecture::PlainConvUnet(parameters), Size::new(64, 64));
        let [single, half] = [Precision::F32, Precision::Bf16].map(|precision| {
            let execution = Execution { precision, arithmetic: Arithmetic::Exact, ..Execution::default() };
            on_cpu(&model, &execution, InstructionSet::Portable).unwrap().memory(1).weights
        });
        // But for biases, which stay f32, and channels that fill up a block.
        assert!(half >= 2 * model.card().parameters && half < single * 6 / 10, "{half} of {single}");
    }

    #[test]
    fn pixels_are_placed_mirrored_and_padded_with_zero() {
        let pixels = Pixels::from_u8(Size::new(2, 1), 2, vec![1, 10, 2, 20]);
        let tile = Tile { pixels: &pixels, at: Rect::new(1, 0, 2, 1) };
        let normalizer = Normalizer::new(&[Normalization::None; 2], &[]).unwrap();
        let input =
            |vertical, horizontal| normalize(&tile, Size::new(4, 2), &normalizer, MirrorAxes { vertical, horizontal });
        let row = |pixels: [f32; 8]| [pixels, [0.0; 8]].concat();
        assert_eq!(input(false, false), row([0., 0., 1., 10., 2., 20., 0., 0.]));
        assert_eq!(input(false, true), row([0., 0., 2., 20., 1., 10., 0., 0.]));
        let mut below = row([0., 0., 1., 10., 2., 20., 0., 0.]);
        below.rotate_right(8);
        assert_eq!(input(true, false), below);
        let wide = Pixels::from_u16(Size::new(2, 1), 2, vec![1, 10, 2, 20]);
        let wide = Tile { pixels: &wide, at: tile.at };
        assert_eq!(normalize(&wide, Size::new(4, 2), &normalizer, MirrorAxes::NONE), input(false, false));
    }

    #[test]
    fn mirrored_logits_are_mirrored_back() {
        let size = Size::new(2, 2);
        let mut sum = Logits { heads: 1, size, values: vec![0.0; 4] };
        add_mirrored(&mut sum, &[1., 2., 3., 4.], MirrorAxes { vertical: true, horizontal: false });
        assert_eq!(sum.values, [3., 4., 1., 2.]);
        add_mirrored(&mut sum, &[10., 20., 30., 40.], MirrorAxes::BOTH);
        assert_eq!(sum.values, [43., 34., 21., 12.]);
    }
}
