//! How long the networks take that people have.
//!
//! `MICROTOME_DATA=... cargo test -p microtome-unet --lib -- --ignored --nocapture measurements`

use std::sync::Barrier;
use std::time::Instant;

use microtome_io::Size;

use super::*;
use crate::architecture::{Activation, Norm, PlainConvUnet, ResidualEncoderUnet};
use crate::ensemble::Ensemble;
use crate::model::tests::random;
use crate::model::{Model, ModelOptions};
use crate::network::{Extent, Factor, Function, Interpolation, Operation, Padding, Source};
use crate::{Architecture, Execution, Mirroring, candle, ensemble};

/// The network that nnU-Net 2 plans for large 2D images.
fn stock() -> Model {
    let features = vec![32, 64, 128, 256, 512, 512, 512, 512];
    let square = |n| Extent { height: n, width: n };
    let parameters = PlainConvUnet {
        channels: 3,
        heads: 2,
        kernels: vec![square(3); 8],
        strides: [vec![Extent::ONE], vec![square(2); 7]].concat(),
        convolutions: vec![2; 8],
        decoder_convolutions: vec![2; 7],
        features,
        bias: true,
        norm: Norm::Instance { epsilon: 1e-5, affine: true },
        activation: Activation::LeakyRelu { slope: 0.01 },
    };
    random(Architecture::PlainConvUnet(parameters), Size::new(512, 512))
}

/// The network that nnU-Net 2 plans for them with its preset ResEnc M.
fn residual() -> Model {
    let Architecture::PlainConvUnet(plain) = stock().architecture().clone() else { unreachable!("stock is plain") };
    let parameters = ResidualEncoderUnet {
        channels: 3,
        heads: 2,
        stem: 32,
        features: plain.features,
        kernels: plain.kernels,
        strides: plain.strides,
        blocks: vec![1, 3, 4, 6, 6, 6, 6, 6],
        decoder_convolutions: vec![1; 7],
        bias: true,
        norm: plain.norm,
        activation: plain.activation,
    };
    random(Architecture::ResidualEncoderUnet(parameters), Size::new(512, 512))
}

fn nuclei() -> Model {
    Model::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/nuclei"), &ModelOptions::default()).unwrap()
}

fn execution(arithmetic: Arithmetic) -> Execution {
    Execution { mirroring: Mirroring::Off, arithmetic, ..Execution::default() }
}

/// Milliseconds per tile: so many threads run `repeats` forward passes each at the same time.
fn time<E: Engine>(engine: &Ensemble<E>, input: &[f32], threads: usize, repeats: usize) -> f64 {
    let barrier = Barrier::new(threads + 1);
    std::thread::scope(|scope| {
        let work = || {
            barrier.wait();
            (0..repeats).for_each(|_| drop(engine.run(input, &Crew::default()).unwrap()));
            barrier.wait();
        };
        (0..threads).for_each(|_| drop(scope.spawn(work)));
        barrier.wait();
        let started = Instant::now();
        barrier.wait();
        started.elapsed().as_secs_f64() * 1e3 / (threads * repeats) as f64
    })
}

fn line(name: &str, times: &mut [f64], multiplications: u64) {
    times.sort_by(f64::total_cmp);
    let (least, median) = (times[0], times[times.len() / 2]);
    println!(
        "{name:24} min {least:9.2} ms, median {median:9.2} ms, {:7.1} GFLOP/s",
        multiplications as f64 * 2e-6 / least
    );
}

fn compare(name: &str, model: &Model, rounds: usize, repeats: usize) {
    let tile = model.card().tile;
    let multiplications = model.network().multiplications(tile);
    println!("{name}: {} at {tile}, {:.2} GFLOP per tile", model.card().architecture, multiplications as f64 * 2e-9);
    let input = vec![0.5_f32; tile.area() as usize * 3];
    let plain = candle::ensemble(model, &execution(Arithmetic::Exact), &candle_core::Device::Cpu).unwrap();
    let ours: Vec<_> = InstructionSet::available()
        .filter(|set| *set != InstructionSet::Portable)
        .flat_map(|set| [Arithmetic::Exact, Arithmetic::Fast].map(|a| (set, a)))
        .map(|(set, a)| (format!("{set} {a}"), ensemble::on_cpu(model, &execution(a), set).unwrap()))
        .collect();
    for (name, engine) in &ours {
        use crate::Predictor;
        let memory = engine.memory(1);
        println!(
            "{name:24} {:.1} MB packed, {:.1} MB per pass",
            memory.weights as f64 / 1e6,
            memory.activations as f64 / 1e6
        );
    }
    for threads in [1, 2] {
        println!("{threads} thread(s), {rounds} rounds in turn of {repeats} tiles per thread; per tile:");
        let mut times = vec![Vec::new(); ours.len() + 1];
        for _ in 0..rounds {
            times[0].push(time(&plain, &input, threads, 1));
            for (times, (_, engine)) in times[1..].iter_mut().zip(&ours) {
                times.push(time(engine, &input, threads, repeats));
            }
        }
        line("candle's operations", &mut times[0], multiplications);
        for (times, (name, _)) in times[1..].iter_mut().zip(&ours) {
            line(name, times, multiplications);
        }
    }
}

/// Time and rate of each step, the least of some passes.
fn profile(name: &str, model: &Model, arithmetic: Arithmetic, passes: usize) {
    let set = InstructionSet::choose().unwrap();
    let (network, tile) = (model.network(), model.card().tile);
    let plan = Arc::new(Plan::new(&network, tile, set, Words::F32, arithmetic));
    let packed = PackedNetwork::new(plan.clone(), &model.folds()[0].weights);
    let (mut workspace, mut scratch, crew) = (plan.workspace(), plan.scratch(), Crew::default());
    let input = vec![0.5; tile.area() as usize * network.channels()];
    packed.run(&input, &mut workspace, &mut scratch, &crew);
    let mut times = vec![f64::MAX; plan.layers.len()];
    for _ in 0..passes {
        for (index, least) in times.iter_mut().enumerate() {
            let started = Instant::now();
            packed.step(index, &mut workspace, &mut scratch, &crew);
            *least = least.min(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    let all: f64 = times.iter().sum();
    println!("{name}, {set}, {arithmetic}: {all:.2} ms in steps");
    for ((step, layer), time) in plan.program.steps.iter().zip(&plan.layers).zip(times) {
        let shape = plan.program.tensors[step.output()].shape;
        let Step::Convolve { convolution: c, .. } = step else {
            let (name, share) =
                (if matches!(layer.algorithm, Algorithm::Neighbours(_)) { "pool" } else { "sum" }, 100.0 * time / all);
            println!(
                "  {name:4} of {:4} channels at {:>9}: {time:8.3} ms {share:5.1} %",
                shape.channels,
                shape.size.to_string()
            );
            continue;
        };
        let products = shape.elements() as f64 * (c.input * c.kernel.area()) as f64;
        let algorithm = match layer.algorithm {
            Algorithm::Winograd(_) => "winograd",
            _ => "direct",
        };
        println!(
            "  {:4} to {:4} channels, {}, stride {}, up {}, at {:>9}: {algorithm:8} {time:8.3} ms {:5.1} % {:6.1} GFLOP/s",
            c.input,
            c.output,
            c.kernel,
            c.stride,
            c.pixels(),
            shape.size.to_string(),
            100.0 * time / all,
            2e-6 * products / time
        );
    }
}

/// What is no convolution, on 32 channels at 512 x 512 that a convolution, an instance norm and a leaky ReLU come from.
#[test]
#[ignore = "a measurement"]
fn measure_writes() {
    let (channels, tile, two) = (32, Size::new(512, 512), Extent { height: 2, width: 2 });
    let up = |interpolation| Operation::Resize { factor: Factor { height: 2.0, width: 2.0 }, interpolation };
    let activation = |function| Operation::Activation { function };
    for (name, operation) in [
        ("residual add", Operation::Add),
        ("average pool", Operation::AveragePool { kernel: two, stride: two }),
        ("max pool", Operation::MaxPool { kernel: two, stride: two, padding: Padding::default() }),
        ("nearest", up(Interpolation::Nearest)),
        ("bilinear", up(Interpolation::Bilinear)),
        ("SiLU", activation(Function::Silu)),
        ("Mish", activation(Function::Mish)),
        ("GELU", activation(Function::Gelu)),
    ] {
        let mut network = Network::new(channels);
        let convolution = Operation::Convolution {
            weight: "weight".into(),
            bias: None,
            input: channels,
            output: channels,
            kernel: Extent::ONE,
            stride: Extent::ONE,
        };
        let at = network.push(convolution, &[Source::Input]);
        let at = network.push(Operation::InstanceNorm { affine: None, channels, epsilon: 1e-5 }, &[at]);
        let bent = network.push(activation(Function::LeakyRelu { slope: 0.01 }), &[at]);
        let sources = if operation == Operation::Add { vec![at, bent] } else { vec![bent] };
        network.push(operation, &sources);
        let weight = Weight { shape: vec![channels, channels, 1, 1], values: vec![0.1; channels * channels].into() };
        let weights = BTreeMap::from([("weight".to_owned(), weight)]);
        for set in InstructionSet::available() {
            let packed =
                PackedNetwork::new(Arc::new(Plan::new(&network, tile, set, Words::F32, Arithmetic::Exact)), &weights);
            let (mut workspace, mut scratch, crew) = (packed.plan.workspace(), packed.plan.scratch(), Crew::default());
            packed.run(&vec![0.5; tile.area() as usize * channels], &mut workspace, &mut scratch, &crew);
            let last = packed.plan.layers.len() - 1;
            let mut least = f64::MAX;
            for _ in 0..9 {
                let started = Instant::now();
                packed.step(last, &mut workspace, &mut scratch, &crew);
                least = least.min(started.elapsed().as_secs_f64() * 1e3);
            }
            println!("{name:14} {set:9} {least:7.2} ms");
        }
    }
    let values = vec![1.0; 2 * tile.area() as usize];
    let source = loader::Source { values: &values, channels: 2, size: tile, affine: None, slopes: None };
    let started = Instant::now();
    let values = planes::planes(std::iter::once(source)).len();
    println!("{:14} {:9} {:7.2} ms", "two planes", values, started.elapsed().as_secs_f64() * 1e3);
}

#[test]
#[ignore = "a measurement"]
fn measure_small() {
    let model = nuclei();
    compare("nuclei", &model, 9, 20);
    profile("nuclei", &model, Arithmetic::Fast, 50);
    profile("nuclei", &model, Arithmetic::Exact, 50);
}

#[test]
#[ignore = "a measurement"]
fn measure_stock() {
    let model = stock();
    compare("stock", &model, 3, 2);
    profile("stock", &model, Arithmetic::Fast, 3);
    profile("stock", &model, Arithmetic::Exact, 3);
}

#[test]
#[ignore = "a measurement"]
fn measure_residual() {
    profile("ResEnc M", &residual(), Arithmetic::Fast, 2);
}
