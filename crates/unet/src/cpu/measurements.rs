//! How long the steps take that are no convolution; `cargo xtask bench net` and `microtome segment --profile` measure whole networks.
//!
//! `cargo test -p microtome-unet --lib -- --ignored --nocapture measure_writes`

use std::time::Instant;

use microtome_io::Size;

use super::*;
use crate::network::{Extent, Factor, Function, Interpolation, Operation, Padding, Source};

/// What is no convolution, on 32 channels at 512 x 512 that a convolution, an instance norm and a leaky ReLU come from.
#[test]
#[ignore = "a measurement"]
fn measure_writes() {
    let (channels, tile, two) = (32, Size::new(512, 512), Extent { height: 2, width: 2 });
    let up = |interpolation| Operation::Resize { factor: Factor { height: 2.0, width: 2.0 }, interpolation };
    let activation = |function| Operation::Activation { function };
    for (name, operation) in [
        ("residual add", Operation::Add),
        ("average pool", Operation::AveragePool { kernel: two, stride: two, before: Padding::default() }),
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

/// Transposed convolutions of 32 to 16 channels at 256 x 256, and the plain convolution that does as many products.
#[test]
#[ignore = "a measurement"]
fn measure_transposed_convolutions() {
    let (input, output, tile) = (32, 16, Size::new(256, 256));
    let square = |n| Extent { height: n, width: n };
    let up = |kernel, stride, padding| Operation::Upsampling {
        weight: "weight".into(),
        bias: None,
        input,
        output,
        kernel: square(kernel),
        stride: square(stride),
        padding: Padding { height: padding, width: padding },
    };
    let plain = |kernel| Operation::Convolution {
        weight: "weight".into(),
        bias: None,
        input,
        output,
        kernel: square(kernel),
        stride: Extent::ONE,
    };
    for (name, operation) in [
        ("transposed 2x2, stride 2", up(2, 2, 0)),
        ("transposed 3x3, stride 2", up(3, 2, 1)),
        ("transposed 4x4, stride 2", up(4, 2, 1)),
        ("transposed 5x5, stride 2", up(5, 2, 2)),
        ("transposed 3x3, stride 1", up(3, 1, 1)),
        ("convolution 3x3", plain(3)),
    ] {
        let mut network = Network::new(input);
        network.push(operation, &[Source::Input]);
        let shape = network.weights().remove(0).shape;
        let values = vec![0.1; shape.iter().product()].into();
        let weights = BTreeMap::from([("weight".to_owned(), Weight { shape, values })]);
        let products = network.multiplications(tile) as f64;
        for set in InstructionSet::available() {
            for (words, arithmetic) in
                [(Words::F32, Arithmetic::Exact), (Words::F32, Arithmetic::Fast), (Words::Bf16, Arithmetic::Exact)]
            {
                let packed = PackedNetwork::new(Arc::new(Plan::new(&network, tile, set, words, arithmetic)), &weights);
                let (mut workspace, mut scratch, crew) =
                    (packed.plan.workspace(), packed.plan.scratch(), Crew::default());
                let mut least = f64::MAX;
                for _ in 0..15 {
                    let started = Instant::now();
                    packed.step(0, &mut workspace, &mut scratch, &crew);
                    least = least.min(started.elapsed().as_secs_f64());
                }
                let (milliseconds, rate) = (least * 1e3, 2e-9 * products / least);
                println!("{name:24} {set:10} {words:?} {arithmetic:6} {milliseconds:7.2} ms, {rate:6.1} GFLOP/s");
            }
        }
    }
}
