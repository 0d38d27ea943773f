//! A result folder of nnU-Net's ResEnc presets, small and with random weights: with nothing but the repository.
//!
//! `residual-encoder-unet` beside this file, with logits by PyTorch 2.15 and dynamic-network-architectures 0.4.4, comes from
//! `tests/python/unet_fixtures.py`.

use microtome_io::Pixels;
use microtome_unet::{
    Arithmetic, Device, Execution, Mirroring, Model, ModelOptions, Normalizer, PackageOptions, Precision, Tile,
};

/// The samples of the script's `picture`.
fn picture(model: &Model) -> Pixels {
    let mut state = 5_u32;
    let sample = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let tile = model.card().tile;
    Pixels::from_u8(tile, 3, std::iter::repeat_with(sample).take(tile.area() as usize * 3).collect())
}

fn logits(model: &Model, arithmetic: Arithmetic) -> Vec<f32> {
    let (device, mirroring, precision) = (Device::Cpu, Mirroring::Off, Precision::F32);
    let predictor = model.predictor(&Execution { device, mirroring, precision, arithmetic }).unwrap();
    let normalizer = Normalizer::new(&model.card().normalization, &[]).unwrap();
    predictor.predict(&[Tile::full(&picture(model))], &normalizer).unwrap().remove(0).values
}

#[test]
fn logits_of_a_residual_encoder_are_pytorchs() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/residual-encoder-unet");
    let model = Model::open(folder, &ModelOptions::default()).unwrap();
    assert!(model.card().architecture.starts_with("ResidualEncoderUNet 2D, 3 stages of 4, 5, 5 features"));
    let expected = std::fs::read_to_string(format!("{folder}/logits.json")).unwrap();
    let expected: Vec<f32> = serde_json::from_str(&expected).unwrap();
    let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
        let found = logits(&model, arithmetic);
        assert_eq!(found.len(), expected.len());
        let difference = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest;
        println!("{arithmetic}: {difference:e} of the largest logit, {largest}");
        // Measured: 2.4e-6 with AVX-512, 7.1e-6 with AVX2, 5.5e-6 in plain Rust.
        assert!(difference < 2e-5, "{arithmetic}: {difference:e}");
    }
    // The package made of it says the same.
    let temporary = tempfile::tempdir().unwrap();
    let package = temporary.path().join("package");
    model.save_package(&package, &PackageOptions::default()).unwrap();
    let copy = Model::open(&package, &ModelOptions::default()).unwrap();
    assert_eq!(logits(&copy, Arithmetic::Exact), logits(&model, Arithmetic::Exact));
    assert_eq!(copy.card().sha256, model.card().sha256);
}
