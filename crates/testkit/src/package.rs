//! A model package whose network is so small that a run is more about reading and writing than about the network.

use std::path::Path;

use microtome_unet::Architecture;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// What the weights of a [small package](small_package) are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// Numbers that look random, the same on every machine.
    Plain,
    /// The same, but for one that is not a number: so is every logit.
    NotANumber,
    /// The same, but for one that is infinite.
    Infinite,
}

/// Writes a package: two classes, tiles of 256 x 256 pixels at any resolution, two stages of two channels.
///
/// # Panics
/// If it cannot be written.
pub fn small_package(folder: &Path, weights: Weights) {
    let manifest: Described = toml::from_str(MANIFEST).expect("the architecture of a package");
    let network = manifest.architecture.network();
    // Numerical Recipes' linear congruential generator.
    let mut state = 1_u32;
    let mut number = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as f32 / 65536.0 - 0.4
    };
    let (mut header, mut values) = (Map::new(), Vec::new());
    for weight in network.weights() {
        let n = weight.shape.iter().product::<usize>();
        let begin = values.len() * 4;
        values.extend((0..n).map(|_| number()));
        let place = json!({ "dtype": "F32", "shape": weight.shape, "data_offsets": [begin, values.len() * 4] });
        header.insert(format!("fold_0/{}", weight.name), place);
    }
    match weights {
        Weights::Plain => {}
        Weights::NotANumber => values[0] = f32::NAN,
        Weights::Infinite => values[0] = f32::INFINITY,
    }
    // https://huggingface.co/docs/safetensors: the length of the header, the header, the values.
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    let sha256: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    let manifest = format!("{MANIFEST}\n[weights]\nsha256 = \"{sha256}\"\n");
    std::fs::create_dir_all(folder).expect("a folder for the package");
    std::fs::write(folder.join("weights.safetensors"), bytes).expect("the package can be written");
    std::fs::write(folder.join("model.toml"), manifest).expect("the package can be written");
}

/// What is needed here of a manifest.
#[derive(serde::Deserialize)]
struct Described {
    architecture: Architecture,
}

const MANIFEST: &str = r#"format_version = 1
name = "small"
mpp = 0.5
step = 1.0
window = "gaussian"
channels = ["R", "G", "B"]
folds = ["fold_0"]
tile = { width = 256, height = 256 }
mirror_axes = { vertical = false, horizontal = false }
output = { kind = "labels" }
normalization = [{ scheme = "rgb-to01" }, { scheme = "rgb-to01" }, { scheme = "rgb-to01" }]
classes = [{ value = 0, name = "background", color = [0, 0, 0] }, { value = 1, name = "something", color = [230, 159, 0] }]

[architecture]
kind = "plain-conv-unet"
channels = 3
heads = 2
features = [2, 2]
kernels = [[1, 1], [3, 3]]
strides = [[1, 1], [2, 2]]
convolutions = [1, 1]
decoder_convolutions = [1]
bias = true
norm = { kind = "instance", epsilon = 0.00001, affine = true }
activation = { kind = "leaky-relu", slope = 0.01 }
"#;

#[cfg(test)]
mod tests {
    use microtome_unet::{Model, ModelOptions};

    use super::*;

    #[test]
    fn it_is_a_package() {
        let folder = tempfile::tempdir().unwrap();
        small_package(folder.path(), Weights::Plain);
        let model = Model::open(folder.path(), &ModelOptions::default()).unwrap();
        assert_eq!((model.card().classes.len(), model.card().tile.area()), (2, 256 * 256));
    }
}
