//! Each device that answers gives the logits of the CPU: CUDA devices are tested where there are some, and skipped with a word elsewhere.

use microtome_io::{Pixels, Size};
use microtome_unet::{
    Arithmetic, ChannelStatistics, Device, Execution, Gpus, Logits, Mirroring, Model, ModelOptions, Normalizer,
    Precision, Tile,
};

/// The devices of this machine.
fn devices() -> Vec<Device> {
    let gpu = Device::Cuda(Gpus::one(0));
    match gpu.choose() {
        Ok(chosen) => vec![Device::Cpu, chosen.device],
        Err(error) => {
            println!("without CUDA: {error}");
            vec![Device::Cpu]
        }
    }
}

fn bundled() -> Model {
    Model::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/nuclei"), &ModelOptions::default()).unwrap()
}

/// A network with residual blocks, and nnU-Net's trained one, where the real files are.
fn models() -> Vec<(&'static str, Model)> {
    let mut models = vec![("nuclei", bundled())];
    let trained = "models/nnunet-v2-plain/Dataset501_DSBStained/nnUNetTrainer_10epochs__tinyPlans__2d";
    if let Some(folder) = microtome_testkit::data(trained) {
        models.push(("nnunet-v2-plain", Model::open(folder, &ModelOptions::default()).unwrap()));
    }
    models
}

/// The picture of nuclei that travels with the bundled model, cut or repeated to the tile's size.
fn tile(size: Size, shift: usize) -> Pixels {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/nuclei/test/input.png");
    let image = image::open(path).unwrap().to_rgb8();
    let (width, height) = (image.width() as usize, image.height() as usize);
    let pixel = |i: usize| {
        let (x, y) = (i % size.width as usize + shift, i / size.width as usize);
        image.get_pixel((x % width) as u32, (y % height) as u32).0
    };
    Pixels::from_u8(size, 3, (0..size.area() as usize).flat_map(pixel).collect())
}

fn predict(model: &Model, execution: &Execution, tiles: usize) -> Vec<Logits> {
    let predictor = model.predictor(execution).unwrap();
    println!("{}", predictor.identity());
    let schemes = &model.card().normalization;
    let statistics = ChannelStatistics { mean: 200.0, std: 40.0, min: 0.0, max: 255.0 };
    let normalizer = Normalizer::new(schemes, &vec![statistics; schemes.len()]).unwrap();
    let pictures: Vec<Pixels> = (0..tiles).map(|shift| tile(model.card().tile, shift * 5)).collect();
    predictor.predict(&pictures.iter().map(Tile::full).collect::<Vec<_>>(), &normalizer).unwrap()
}

/// The largest difference, relative to the largest logit.
fn difference(found: &[Logits], expected: &[Logits]) -> f32 {
    let largest = expected.iter().flat_map(|l| &l.values).fold(0.0_f32, |m, v| m.max(v.abs()));
    let both = found.iter().zip(expected).flat_map(|(a, b)| a.values.iter().zip(&b.values));
    both.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

#[test]
fn f32_is_within_a_ten_thousandth_on_every_device() {
    for (name, model) in models() {
        for mirroring in [Mirroring::Off, Mirroring::AsTrained] {
            let exact =
                Execution { device: Device::Cpu, mirroring, precision: Precision::F32, arithmetic: Arithmetic::Exact };
            let expected = predict(&model, &exact, 3);
            for device in devices() {
                let found = predict(&model, &Execution { device, arithmetic: Arithmetic::Fast, ..exact }, 3);
                let difference = difference(&found, &expected);
                println!("{name} on {device}: {difference:e}");
                assert!(difference <= 1e-4, "{name} on {device}: {difference:e}");
            }
        }
    }
}

/// Of the 16 384 pixels of the tile that travels with the model, PyTorch's automatic mixed precision changes 2, and bf16 everywhere 11:
/// `tests/python/torch_bf16.py`.
#[test]
fn bf16_changes_no_more_pixels_than_pytorchs_does() {
    let model = bundled();
    for device in devices() {
        let execution = Execution { device, precision: Precision::Bf16, ..Execution::default() };
        let agreement = model.check_test_vector(&execution).unwrap().unwrap();
        println!("{device}: {agreement:?}");
        assert!(agreement.differing_pixels <= 2, "{device}: {agreement:?}");
    }
}

#[test]
fn two_runs_give_the_same_bits_on_every_device() {
    let model = bundled();
    for device in devices() {
        for precision in [Precision::F32, Precision::Bf16] {
            let execution = Execution { device, precision, ..Execution::default() };
            let first = predict(&model, &execution, 5);
            assert_eq!(predict(&model, &execution, 5), first, "{precision} on {device}");
            // Alone, a tile has the same logits.
            assert_eq!(predict(&model, &execution, 1)[0], first[0], "{precision} on {device}");
        }
    }
}
