//! What the fuzz targets run, so that the tests run the same on bytes of their own. Not part of the interface.

pub(crate) mod archive;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use microtome_io::bytes::Memory;

use crate::state_dict::{NESTED, StateDict};
use crate::torch::Pickle;
use crate::{Architecture, Model, ModelOptions, nnunet};

/// Opens arbitrary bytes as a state dict, in whatever format they seem to be, and reads all of its tensors. Must return, whatever the
/// bytes are.
pub fn open_checkpoint(bytes: &[u8]) {
    let source = Arc::new(Memory::new("fuzz", bytes.to_vec()));
    let Ok(state) = StateDict::read(source, &NESTED) else { return };
    // An error is as good as values.
    let _ = state.read_each(|_, weight| {
        // A value takes at least two bytes of the file.
        assert!(weight.values.len() <= bytes.len() / 2, "{} values of {} bytes", weight.values.len(), bytes.len());
    });
    let _ = state.weights(&smallest());
    nnunet::read_settings(state);
}

/// The same with arbitrary bytes as the pickle of a checkpoint that is otherwise in order.
pub fn open_pickle(bytes: &[u8]) {
    let _ = Pickle::parse(bytes);
    open_checkpoint(&archive::pickled(bytes));
}

/// The same with arbitrary bytes as the header of safetensors, before 32 bytes of values.
pub fn open_safetensors(header: &[u8]) {
    open_checkpoint(&[&(header.len() as u64).to_le_bytes(), header, &[0; 32]].concat());
}

/// Opens a package with this manifest in a folder, which is made if need be; there are no weights. Must return, whatever the bytes are.
pub fn open_package(folder: &Path, manifest: &[u8]) {
    open(folder, &[("model.toml", manifest)]);
}

/// Opens a recipe in a folder, which is made if need be; there are no weights. Must return, whatever the bytes are.
pub fn open_recipe(folder: &Path, recipe: &[u8]) {
    open(folder, &[("recipe.json", recipe)]);
}

/// Opens a result folder of nnU-Net, which is made if need be: the plans, a byte 0, the data set. Must return, whatever the bytes are.
pub fn open_results(folder: &Path, bytes: &[u8]) {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let (plans, dataset) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    open(
        folder,
        &[("plans.json", plans), ("dataset.json", dataset), ("fold_0/checkpoint_final.pth", &archive::checkpoint())],
    );
}

/// Writes files into a folder and opens it as a model.
fn open(folder: &Path, files: &[(&str, &[u8])]) {
    for (name, bytes) in files {
        let path = folder.join(name);
        let parent = path.parent().expect("a file in a folder");
        if std::fs::create_dir_all(parent).and_then(|()| std::fs::write(&path, bytes)).is_err() {
            return;
        }
    }
    // A model would be as good as an error, but its weights are missing.
    let _ = Model::open(folder, &ModelOptions::default());
}

/// A network whose weights a file of a few bytes can hold.
fn smallest() -> Architecture {
    let extent = [1, 1];
    serde_json::from_value(serde_json::json!({
        "kind": "plain-conv-unet",
        "channels": 1,
        "heads": 1,
        "features": [1, 1],
        "kernels": [extent, extent],
        "strides": [extent, extent],
        "convolutions": [1, 1],
        "decoder_convolutions": [1],
        "bias": false,
        "norm": {"kind": "none"},
        "activation": {"kind": "none"},
    }))
    .expect("parameters of the family")
}
