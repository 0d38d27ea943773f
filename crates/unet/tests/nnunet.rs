//! Result folders of nnU-Net with every kind of network that its plans can ask for, small and with random weights: with nothing but the
//! repository.
//!
//! `nnunet` beside this file, with logits by PyTorch 2.15, nnunetv2 2.8.1 and dynamic-network-architectures 0.4.4, comes from
//! `tests/python/unet_fixtures.py`.

use microtome_io::Pixels;
use microtome_unet::{
    Arithmetic, Device, Execution, Mirroring, Model, ModelOptions, Normalizer, PackageOptions, Precision, Tile,
};

/// The largest difference of a logit by the largest logit. Measured: 1.4e-6 with AVX-512, by both arithmetics, which do the same with so
/// few channels; other instructions sum in other orders.
const BOUND: f32 = 2e-5;

/// Folder, what the card says of the network.
const NETWORKS: [(&str, &str); 6] = [
    ("residual-encoder", "ResidualEncoderUNet 2D, 3 stages of 4, 5, 5 features, instance norm"),
    ("bottleneck", "ResidualEncoderUNet 2D, 2 stages of 6, 6 features, instance norm"),
    ("residual", "ResidualUNet 2D, 2 stages of 4, 5 features, instance norm"),
    ("nonlin-first", "PlainConvUNet 2D, 3 stages of 4, 5, 5 features, instance norm"),
    ("batch-norm", "PlainConvUNet 2D, 3 stages of 4, 5, 5 features, batch norm"),
    ("prelu", "ResidualUNet 2D, 2 stages of 4, 4 features, batch norm"),
];

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
fn logits_of_every_network_are_pytorchs() {
    for (name, architecture) in NETWORKS {
        let folder = format!("{}/tests/nnunet/{name}", env!("CARGO_MANIFEST_DIR"));
        let model = Model::open(&folder, &ModelOptions::default()).unwrap();
        assert!(model.card().architecture.starts_with(architecture), "{name}: {}", model.card().architecture);
        let expected = std::fs::read_to_string(format!("{folder}/logits.json")).unwrap();
        let expected: Vec<f32> = serde_json::from_str(&expected).unwrap();
        let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
            let found = logits(&model, arithmetic);
            assert_eq!(found.len(), expected.len());
            let difference = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest;
            println!("{name}, {arithmetic}: {difference:e} of the largest logit, {largest}");
            assert!(difference < BOUND, "{name}, {arithmetic}: {difference:e}");
        }
        // The package made of it says the same.
        let temporary = tempfile::tempdir().unwrap();
        let package = temporary.path().join("package");
        model.save_package(&package, &PackageOptions::default()).unwrap();
        let copy = Model::open(&package, &ModelOptions::default()).unwrap();
        assert_eq!(logits(&copy, Arithmetic::Exact), logits(&model, Arithmetic::Exact), "{name}");
        assert_eq!(copy.card().sha256, model.card().sha256, "{name}");
    }
}
