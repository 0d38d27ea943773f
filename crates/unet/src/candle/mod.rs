//! The network on candle: one lowering of [`Network`](crate::Network), and the predictor around it.

mod device;
mod host;
mod lowering;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use microtome_io::{Rect, Samples, Size};

use crate::model::Model;
use crate::weights::Fold;
use crate::{
    Card, Error, Execution, Logits, MemoryEstimate, MirrorAxes, Mirroring, Network, Normalizer, Precision, Predictor,
    Result, Tile,
};
use host::HostLowering;
use lowering::Lowering;

/// A model on a device of candle's.
#[derive(Debug)]
pub(crate) struct CandlePredictor {
    card: Card,
    network: Network,
    device: Device,
    dtype: DType,
    folds: Vec<Engine>,
    passes: Vec<MirrorAxes>,
}

/// How a fold is run.
#[derive(Debug)]
enum Engine {
    /// By candle's operations, on any device.
    Tensors(Lowering),
    /// By candle's matrix product and rows in place, on the CPU in f32.
    Host(HostLowering),
}

impl CandlePredictor {
    pub(crate) fn new(model: &Model, execution: &Execution) -> Result<Self> {
        let device = device::open(execution.device)?;
        let dtype = match execution.precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 | Precision::F16 if device.is_cpu() => {
                let message = format!("{:?} is not supported on the CPU; F32 is", execution.precision);
                return Err(Error::Device { message });
            }
            Precision::Bf16 => DType::BF16,
            Precision::F16 => DType::F16,
        };
        let network = model.network();
        let tile = model.card().tile;
        let lower = |fold: &Fold| match device {
            Device::Cpu => HostLowering::new(&network, &fold.weights, tile).map(Engine::Host),
            _ => Lowering::new(&network, &fold.weights, dtype, &device).map(Engine::Tensors),
        };
        let folds = model.folds().iter().map(lower).collect::<candle_core::Result<_>>()?;
        let passes = match execution.mirroring {
            Mirroring::AsTrained => model.card().mirror_axes.passes(),
            Mirroring::Off => vec![MirrorAxes::NONE],
        };
        Ok(Self { card: model.card().clone(), network, device, dtype, folds, passes })
    }

    /// The sum over folds of the logits of one mirrored pass over one tile, still mirrored.
    fn run(&self, input: &[f32]) -> candle_core::Result<Vec<f32>> {
        let mut sum: Option<Vec<f32>> = None;
        for fold in &self.folds {
            let logits = match fold {
                Engine::Host(network) => network.forward(input)?,
                Engine::Tensors(network) => {
                    let Size { width, height } = self.card.tile;
                    let shape = (1, self.network.channels(), height as usize, width as usize);
                    let input = Tensor::from_slice(input, shape, &Device::Cpu)?;
                    let input = input.to_device(&self.device)?.to_dtype(self.dtype)?;
                    network.forward(&input)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?
                }
            };
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

    /// How many passes are in flight at once. A GPU is driven by one thread.
    fn workers(&self, passes: usize) -> usize {
        if self.device.is_cpu() { rayon::current_num_threads().min(passes) } else { 1 }
    }
}

impl Predictor for CandlePredictor {
    fn card(&self) -> &Card {
        &self.card
    }

    /// Every pass over every tile is a forward of its own, so that nothing depends on the batch;
    /// as many run at once as rayon has threads.
    fn predict(&self, tiles: &[Tile<'_>], normalizer: &Normalizer) -> Result<Vec<Logits>> {
        for (index, tile) in tiles.iter().enumerate() {
            check_tile(index, tile, &self.card, normalizer)?;
        }
        let passes = self.passes.len();
        let forwards = tiles.len() * passes;
        let next = AtomicUsize::new(0);
        let done = Mutex::new((0..forwards).map(|_| None).collect::<Vec<_>>());
        rayon::scope(|scope| {
            for _ in 0..self.workers(forwards) {
                scope.spawn(|_| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= forwards {
                            break;
                        }
                        let input = normalize(&tiles[i / passes], self.card.tile, normalizer, self.passes[i % passes]);
                        let result = self.run(&input);
                        // A poisoned lock means that another worker panicked; the scope passes that on.
                        if let Ok(mut done) = done.lock() {
                            done[i] = Some(result);
                        }
                    }
                });
            }
        });
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
        Ok(all)
    }

    fn identity(&self) -> String {
        let place = device::arithmetic(&self.device);
        format!("candle 0.11, {} on {place}, {} passes", self.dtype.as_str(), self.passes.len())
    }

    fn memory(&self, batch: usize) -> MemoryEstimate {
        let width = self.dtype.size_in_bytes() as u64;
        let weights = self.network.parameters().saturating_mul(width).saturating_mul(self.folds.len() as u64);
        let forwards = batch.saturating_mul(self.passes.len());
        let in_flight = self.workers(forwards) as u64;
        let forward = match self.device {
            Device::Cpu => host::activation_bytes(&self.network, self.card.tile),
            _ => lowering::activation_bytes(&self.network, self.card.tile, width),
        };
        let logits = 4 * self.card.tile.area() * self.card.heads() as u64;
        // The logits of every pass wait for the others of their tile.
        let activations = forward.saturating_mul(in_flight).saturating_add(logits.saturating_mul(forwards as u64));
        MemoryEstimate { weights, activations }
    }
}

fn check_tile(index: usize, tile: &Tile<'_>, card: &Card, normalizer: &Normalizer) -> Result<()> {
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
        for v in values {
            *v /= of as f32;
        }
    }
}

/// The network's input for one pass: planar, normalised, mirrored, 0 where the tile holds no pixels.
fn normalize(tile: &Tile<'_>, size: Size, normalizer: &Normalizer, pass: MirrorAxes) -> Vec<f32> {
    let channels = tile.pixels.channels();
    let mut input = vec![0.0; size.area() as usize * channels];
    for (channel, plane) in input.chunks_exact_mut(size.area() as usize).enumerate() {
        match tile.pixels.samples() {
            Samples::U8(samples) => {
                let table: [f32; 256] = std::array::from_fn(|v| normalizer.apply(channel, v as f32));
                fill(plane, size, tile, &samples[channel..], pass, |v| table[usize::from(v)]);
            }
            Samples::U16(samples) => {
                fill(plane, size, tile, &samples[channel..], pass, |v| normalizer.apply(channel, f32::from(v)));
            }
        }
    }
    input
}

fn fill<T: Copy>(
    plane: &mut [f32],
    size: Size,
    tile: &Tile<'_>,
    samples: &[T],
    pass: MirrorAxes,
    apply: impl Fn(T) -> f32,
) {
    let (width, channels) = (size.width as usize, tile.pixels.channels());
    let Rect { x, y, .. } = tile.at;
    let (x, y, columns, rows) = (x as usize, y as usize, tile.at.width as usize, tile.at.height as usize);
    for row in 0..rows {
        let to = if pass.vertical { size.height as usize - 1 - (y + row) } else { y + row };
        let line = &mut plane[to * width..][..width];
        let values = samples[row * columns * channels..].iter().step_by(channels).take(columns).map(|v| apply(*v));
        if pass.horizontal {
            line.iter_mut().rev().skip(x).zip(values).for_each(|(to, v)| *to = v);
        } else {
            line.iter_mut().skip(x).zip(values).for_each(|(to, v)| *to = v);
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
    use microtome_io::Pixels;

    use super::*;
    use crate::architecture::tests::tiny;
    use crate::architecture::{Activation, Norm};
    use crate::model::tests::{random, reference_model};
    use crate::network::Extent;
    use crate::{Architecture, ModelOptions, Normalization};

    /// The logits of one input by candle's operations and by the CPU's lowering, without mirroring.
    fn both(model: &Model, input: &[f32]) -> [Vec<f32>; 2] {
        let predictor =
            CandlePredictor::new(model, &Execution { mirroring: Mirroring::Off, ..Execution::default() }).unwrap();
        let lowering = Lowering::new(&predictor.network, &model.folds()[0].weights, DType::F32, &Device::Cpu).unwrap();
        let plain = CandlePredictor {
            folds: vec![Engine::Tensors(lowering)],
            card: predictor.card.clone(),
            network: predictor.network.clone(),
            device: Device::Cpu,
            dtype: DType::F32,
            passes: predictor.passes.clone(),
        };
        [plain.run(input).unwrap(), predictor.run(input).unwrap()]
    }

    fn max_difference(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    /// `reference/forward_logits.npy`: nnU-Net 2.8.1 with torch 2.15 on the CPU.
    #[test]
    fn logits_are_nnunets_own() {
        let Some(folder) = reference_model() else { return };
        let model = Model::open(&folder, &ModelOptions::default()).unwrap();
        let read = |name: &str| {
            let tensor = Tensor::read_npy(folder.join("reference").join(name)).unwrap();
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let (input, expected) = (read("forward_input.npy"), read("forward_logits.npy"));
        let [plain, host] = both(&model, &input);
        let differences = [max_difference(&plain, &expected), max_difference(&host, &expected)];
        println!(
            "largest difference from nnU-Net: candle's operations {:e}, the CPU's lowering {:e}",
            differences[0], differences[1]
        );
        assert!(differences.iter().all(|d| *d <= 1e-4), "{differences:?}");
    }

    /// `cargo test -p microtome-unet --lib -- --ignored --nocapture measure`
    #[test]
    #[ignore = "a measurement"]
    fn measure() {
        let Some(folder) = reference_model() else { return };
        let model = Model::open(&folder, &ModelOptions::default()).unwrap();
        let execution = Execution { mirroring: Mirroring::Off, ..Execution::default() };
        let predictor = CandlePredictor::new(&model, &execution).unwrap();
        let lowering = Lowering::new(&predictor.network, &model.folds()[0].weights, DType::F32, &Device::Cpu).unwrap();
        let input = vec![0.5_f32; 3 * 128 * 128];
        let tensor = Tensor::from_slice(&input, (1, 3, 128, 128), &Device::Cpu).unwrap();
        let median = |mut run: Box<dyn FnMut() + '_>| {
            let mut times: Vec<_> = (0..31)
                .map(|_| {
                    let started = std::time::Instant::now();
                    run();
                    started.elapsed()
                })
                .collect();
            times.sort();
            times[15]
        };
        println!("multiplications per tile: {}", predictor.network.multiplications(model.card().tile));
        println!("candle's operations: {:?}", median(Box::new(|| drop(lowering.forward(&tensor).unwrap()))));
        println!("the CPU's lowering: {:?}", median(Box::new(|| drop(predictor.run(&input).unwrap()))));
        let pixels = vec![Pixels::filled(model.card().tile, microtome_io::SampleType::U8, &[9, 99, 200]); 16];
        let tiles: Vec<Tile<'_>> = pixels.iter().map(Tile::full).collect();
        let normalizer = Normalizer::new(&[Normalization::RgbTo01; 3], &[]).unwrap();
        let batch = median(Box::new(|| drop(predictor.predict(&tiles, &normalizer).unwrap())));
        println!("a batch of 16 on {} threads, per tile: {:?}", rayon::current_num_threads(), batch / 16);
    }

    #[test]
    fn both_lowerings_agree_on_every_kind_of_layer() {
        let square = |n| Extent { height: n, width: n };
        let mut batch = tiny();
        batch.norm = Norm::Batch { epsilon: 1e-3, affine: true };
        batch.activation = Activation::LeakyRelu { slope: 0.0 };
        let mut bare = tiny();
        bare.norm = Norm::None;
        bare.activation = Activation::None;
        bare.bias = false;
        let mut odd = tiny();
        odd.kernels = vec![Extent { height: 1, width: 3 }, square(5), Extent { height: 3, width: 1 }];
        odd.strides = vec![Extent::ONE, Extent { height: 1, width: 3 }, square(2)];
        odd.norm = Norm::Instance { epsilon: 1e-5, affine: false };
        for parameters in [tiny(), batch, bare, odd] {
            let model = random(Architecture::PlainConvUnet(parameters), Size::new(24, 16));
            let input: Vec<f32> = (0..3 * 24 * 16).map(|i| ((i * 7919) % 113) as f32 / 50.0 - 1.0).collect();
            let [plain, host] = both(&model, &input);
            let largest = plain.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            let difference = max_difference(&plain, &host);
            println!("{difference:e} of {largest}");
            assert!(largest > 1e-3 && difference <= 1e-5 * largest.max(1.0), "{difference:e} of {largest}");
        }
    }

    #[test]
    fn what_the_cpu_cannot_do_is_said() {
        let model = random(Architecture::PlainConvUnet(tiny()), Size::new(8, 8));
        let message = |device, precision| {
            let execution = Execution { device, precision, ..Execution::default() };
            model.predictor(&execution).unwrap_err().to_string()
        };
        assert_eq!(message(crate::Device::Cpu, Precision::Bf16), "Bf16 is not supported on the CPU; F32 is");
        assert_eq!(message(crate::Device::Cpu, Precision::F16), "F16 is not supported on the CPU; F32 is");
        #[cfg(not(feature = "cuda"))]
        assert_eq!(
            message(crate::Device::Cuda(1), Precision::F32),
            "CUDA device 1 cannot be used: this build has no CUDA support (cargo feature `cuda` or `cudnn`)"
        );
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
        assert_eq!(one.weights, 4 * model.card().parameters);
        assert!(one.activations > 4 * 64 * 64 * 4 && many.activations >= one.activations);
    }

    #[test]
    fn pixels_are_placed_mirrored_and_padded_with_zero() {
        let pixels = Pixels::from_u8(Size::new(2, 1), 2, vec![1, 10, 2, 20]);
        let tile = Tile { pixels: &pixels, at: Rect::new(1, 0, 2, 1) };
        let normalizer = Normalizer::new(&[Normalization::None; 2], &[]).unwrap();
        let input =
            |vertical, horizontal| normalize(&tile, Size::new(4, 2), &normalizer, MirrorAxes { vertical, horizontal });
        assert_eq!(input(false, false), [0., 1., 2., 0., 0., 0., 0., 0., 0., 10., 20., 0., 0., 0., 0., 0.]);
        assert_eq!(input(false, true), [0., 2., 1., 0., 0., 0., 0., 0., 0., 20., 10., 0., 0., 0., 0., 0.]);
        assert_eq!(input(true, false), [0., 0., 0., 0., 0., 1., 2., 0., 0., 0., 0., 0., 0., 10., 20., 0.]);
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
