//! `Unet` of segmentation-models-pytorch, by recipes: with nothing but the repository.
//!
//! `smp.json` beside this file, with logits by PyTorch 2.15 and segmentation-models-pytorch 0.6.0, comes from
//! `tests/python/smp_fixtures.py`. The weights, too many to commit, are made here and there by one formula from their names.

use std::collections::BTreeMap;
use std::path::Path;

use microtome_io::{Pixels, Size};
use microtome_unet::{
    Arithmetic, Device, Execution, Mirroring, Model, ModelOptions, Normalizer, Output, PackageOptions, Precision, Tile,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::fixture::Item;

#[allow(dead_code)]
#[path = "../src/fuzz/archive.rs"]
mod archive;
#[path = "../src/torch/fixture.rs"]
#[expect(dead_code, reason = "values that a state dict does not hold")]
mod fixture;

/// Where the fixture looks for its archives.
mod fuzz {
    pub(crate) use crate::archive;
}

#[derive(Deserialize)]
struct Fixtures {
    checked: Vec<Checked>,
    /// Every which of the logits is written down.
    step: usize,
    cases: Vec<Case>,
}

/// The first values of a weight.
#[derive(Deserialize)]
struct Checked {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

#[derive(Deserialize)]
struct Case {
    arguments: Value,
    tile: Size,
    /// Shapes in the framework's state dict by their names.
    weights: BTreeMap<String, Vec<usize>>,
    /// The largest magnitude of a logit.
    largest: f32,
    logits: Vec<f32>,
}

fn fixtures() -> Fixtures {
    serde_json::from_str(include_str!("smp.json")).unwrap()
}

/// The script's `weight`.
fn weight(name: &str, shape: &[usize]) -> Vec<f32> {
    let seed = name.bytes().fold(0x811C_9DC5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let length: usize = shape.iter().product();
    let deviation = (24.0 / (length / shape[0]) as f64).sqrt();
    let is_scale = shape.len() == 1 && (name.ends_with("weight") || name.ends_with("running_var"));
    let is_last = name.ends_with("bn2.weight") || name.ends_with("bn3.weight");
    let value = |i: u32| {
        let mut x = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9));
        x = (x ^ (x >> 16)).wrapping_mul(0x85EB_CA6B);
        x = (x ^ (x >> 13)).wrapping_mul(0xC2B2_AE35);
        x ^= x >> 16;
        let uniform = f64::from(x >> 8) / 16_777_216.0 - 0.5;
        let uniform = if shape.len() > 1 { deviation * uniform } else { uniform };
        let uniform = if is_scale { 1.0 + uniform } else { uniform };
        (if is_last { 0.25 * uniform } else { uniform }) as f32
    };
    (0..length as u32).map(value).collect()
}

/// The samples of the script's `picture`.
fn picture(tile: Size, channels: usize) -> Pixels {
    let mut state = 5_u32;
    let sample = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    Pixels::from_u8(tile, channels, std::iter::repeat_with(sample).take(tile.area() as usize * channels).collect())
}

impl Case {
    fn channels(&self) -> usize {
        self.arguments["in_channels"].as_u64().unwrap_or(3) as usize
    }

    fn write_recipe(&self, folder: &Path) {
        let classes =
            if self.arguments["classes"].is_null() { vec!["background", "nucleus"] } else { vec!["a", "b", "c"] };
        let recipe = json!({
            "framework": "segmentation-models-pytorch",
            "network": "Unet",
            "arguments": self.arguments,
            "weights": "model.pth",
            "tile": self.tile,
            "normalization": if self.channels() == 3 { "imagenet" } else { "rgb-to01" },
            "classes": classes,
        });
        std::fs::write(folder.join("recipe.json"), recipe.to_string()).unwrap();
    }

    /// Writes the recipe and the state dict into a folder and loads them.
    fn model(&self, folder: &Path) -> Model {
        self.write_recipe(folder);
        let tensor = |(name, shape): (&String, &Vec<usize>)| {
            (format!("module.{name}"), Item::Tensor(shape.clone(), weight(name, shape)))
        };
        let state = Item::Dict(self.weights.iter().map(tensor).collect());
        fixture::save(&folder.join("model.pth"), &fixture::dict([("epoch", Item::Int(9)), ("state_dict", state)]));
        Model::open(folder, &ModelOptions::default()).unwrap()
    }
}

fn logits(model: &Model, arithmetic: Arithmetic) -> Vec<f32> {
    let (device, mirroring, precision) = (Device::Cpu, Mirroring::Off, Precision::F32);
    let predictor = model.predictor(&Execution { device, mirroring, precision, arithmetic }).unwrap();
    let normalizer = Normalizer::new(&model.card().normalization, &[]).unwrap();
    let picture = picture(model.card().tile, model.card().channels.len());
    predictor.predict(&[Tile::full(&picture)], &normalizer).unwrap().remove(0).values
}

/// All cases of an encoder.
fn compare(encoder: &str) {
    let Fixtures { step, cases, .. } = fixtures();
    let cases: Vec<Case> = cases.into_iter().filter(|c| c.arguments["encoder_name"] == encoder).collect();
    assert_eq!(cases.len(), 2);
    for case in cases {
        let folder = tempfile::tempdir().unwrap();
        let model = case.model(folder.path());
        assert!(
            model.card().architecture.starts_with(&format!("Unet 2D, {encoder} ")),
            "{}",
            model.card().architecture
        );
        for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
            let all = logits(&model, arithmetic);
            let found: Vec<f32> = all.iter().copied().step_by(step).collect();
            assert_eq!(found.len(), case.logits.len());
            let difference =
                found.iter().zip(&case.logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / case.largest;
            let largest = all.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            println!("{}, {arithmetic}: {difference:e} of the largest logit, {largest}", case.arguments);
            // 1e-4 is promised. Measured with AVX-512, AVX2 and plain Rust: up to 3.0e-6 exact and 4.3e-6 fast; with instance norm,
            // on the few pixels of coarse blocks, 1.3e-5 and 1.1e-5.
            assert!((largest - case.largest).abs() < 2e-5 * case.largest, "{arithmetic}: {largest}");
            assert!(difference < 2e-5, "{}, {arithmetic}: {difference:e}", case.arguments);
        }
    }
}

#[test]
fn both_formulas_make_the_same_weights() {
    for Checked { name, shape, values } in fixtures().checked {
        assert_eq!(weight(&name, &shape)[..values.len()], values, "{name}");
    }
}

#[test]
fn logits_with_resnet18_are_pytorchs() {
    compare("resnet18");
}

#[test]
fn logits_with_resnet34_are_pytorchs() {
    compare("resnet34");
}

#[test]
fn logits_with_resnet50_are_pytorchs() {
    compare("resnet50");
}

#[test]
fn a_package_of_it_is_the_same_model() {
    let case = fixtures().cases.swap_remove(1);
    let folder = tempfile::tempdir().unwrap();
    let model = case.model(folder.path());
    let package = folder.path().join("package");
    model.save_package(&package, &PackageOptions::default()).unwrap();
    let copy = Model::open(&package, &ModelOptions::default()).unwrap();
    assert_eq!((copy.architecture(), &copy.card().sha256), (model.architecture(), &model.card().sha256));
    assert_eq!(logits(&copy, Arithmetic::Fast), logits(&model, Arithmetic::Fast));
}

#[test]
fn a_recipe_that_does_not_fit_its_weights_is_told_which() {
    let mut case = fixtures().cases.swap_remove(1);
    let folder = tempfile::tempdir().unwrap();
    let model = case.model(folder.path());
    assert_eq!(model.card().output, Output::Labels);
    case.arguments["decoder_use_norm"] = json!(true);
    case.write_recipe(folder.path());
    let message = Model::open(folder.path(), &ModelOptions::default()).unwrap_err().to_string();
    assert!(message.contains("missing decoder.blocks.0.conv1.1.running_mean, "), "{message}");
    assert!(message.contains("unused decoder.blocks.0.conv1.0.bias, "), "{message}");
}
