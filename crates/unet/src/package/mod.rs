//! microtome's own model package: one folder that says everything about a model. Format: `docs/model-package.md`.

mod manifest;
mod test_vector;

pub use test_vector::TestVector;

use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use sha2::{Digest, Sha256};

use crate::model::{self, Folds, Model, ModelOptions, hexadecimal};
use crate::weights::{Fold, Weight, match_names};
use crate::{Error, Result, bounded};
use manifest::Manifest;

const MANIFEST: &str = "model.toml";
const WEIGHTS: &str = "weights.safetensors";
/// Far more than a card needs.
const MAX_MANIFEST: u64 = 1 << 20;
/// Room for names and shapes beside the values.
const MAX_HEADER: u64 = 16 << 20;

/// What a package says beyond what the model knows of itself. `None` keeps what the model says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PackageOptions {
    /// The package's name.
    pub name: Option<String>,
    /// Micrometres per pixel that the network was trained at.
    pub mpp: Option<f64>,
    /// The licence of the weights.
    pub licence: Option<String>,
    /// Who trained the model, with what, on what.
    pub provenance: Option<String>,
    /// What the model is for, and what it is not for.
    pub intended_use: Option<String>,
    /// A test vector, preferably computed by the framework that trained the model.
    pub test_vector: Option<TestVector>,
}

pub(crate) fn is_package(folder: &Path) -> bool {
    folder.join(MANIFEST).is_file()
}

pub(crate) fn load(folder: &Path, options: &ModelOptions) -> Result<Model> {
    let path = folder.join(MANIFEST);
    let manifest = Manifest::parse(&path, &bounded::read_text(&path, MAX_MANIFEST)?)?;
    let (mut card, architecture) = manifest.card();
    model::check(&path, &card, &architecture)?;
    let network = architecture.network();

    let wanted: Vec<String> = match &options.folds {
        Folds::Auto | Folds::All => manifest.folds.clone(),
        Folds::List(numbers) => numbers.iter().map(|n| format!("fold_{n}")).collect(),
    };
    if let Some(name) = wanted.iter().find(|name| !manifest.folds.contains(name)) {
        return Err(Error::format(&path, format!("{name} is missing; there are {}", manifest.folds.join(", "))));
    }
    let mut names = manifest.folds.clone();
    names.sort();
    names.dedup();
    if names.len() != manifest.folds.len() || wanted.is_empty() {
        return Err(Error::format(&path, "folds must be named, each once"));
    }

    let values = network.parameters().saturating_mul(4).saturating_mul(manifest.folds.len() as u64);
    let file = folder.join(WEIGHTS);
    let bytes = bounded::read(&file, values.saturating_add(MAX_HEADER))?;
    let found = hexadecimal(&Sha256::digest(&bytes));
    if found != manifest.weights.sha256 {
        let message = format!("its sha256 is {found}, but {MANIFEST} says {}", manifest.weights.sha256);
        return Err(Error::format(&file, message));
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| Error::format(&file, e.to_string()))?;
    let mut held: Vec<(String, TensorView<'_>)> = tensors.tensors();
    if let Some((name, tensor)) = held.iter().find(|(_, t)| t.dtype() != Dtype::F32) {
        return Err(Error::unsupported(&file, format!("{name} is {:?}; F32 is supported", tensor.dtype())));
    }
    let mut folds = Vec::new();
    for name in &manifest.folds {
        let prefix = format!("{name}/");
        let (of_fold, others) = held.into_iter().partition(|(name, _)| name.starts_with(&prefix));
        let of_fold: Vec<(String, TensorView<'_>)> = of_fold;
        held = others;
        match_names(&file, &network, of_fold.iter().map(|(name, tensor)| (&name[prefix.len()..], tensor.shape())))?;
        if wanted.contains(name) {
            let weight = |(name, tensor): (String, TensorView<'_>)| {
                let values = tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
                (name[prefix.len()..].to_owned(), Weight { shape: tensor.shape().to_vec(), values })
            };
            folds.push(Fold { name: name.clone(), weights: of_fold.into_iter().map(weight).collect() });
        }
    }
    if let Some((name, _)) = held.first() {
        return Err(Error::format(&file, format!("{name} belongs to no fold of {MANIFEST}")));
    }
    drop(held);
    drop(bytes);
    let test_vector = manifest.test.as_ref().map(|test| TestVector::read(folder, test, &card)).transpose()?;
    model::complete(&mut card, &architecture, &folds);
    Ok(Model::new(card, architecture, folds, test_vector))
}

pub(crate) fn save(model: &Model, folder: &Path, options: &PackageOptions) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    if std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.next().is_some() {
        return Err(Error::usage(format!("{}: the folder is not empty", folder.display())));
    }
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|e| Error::io(&path, e))
    };
    let weights = weights_file(model.folds()).map_err(|e| Error::format(folder.join(WEIGHTS), e))?;
    let test_vector = options.test_vector.as_ref().or(model.test_vector());
    let manifest = Manifest::new(model, options, hexadecimal(&Sha256::digest(&weights)), test_vector);
    let text = manifest.to_text();
    // What is written must be readable: the same checks as on loading.
    let path = folder.join(MANIFEST);
    let (card, architecture) = Manifest::parse(&path, &text)?.card();
    model::check(&path, &card, &architecture)?;
    write(WEIGHTS, &weights)?;
    if let Some(vector) = test_vector {
        vector.write(folder)?;
    }
    write(MANIFEST, text.as_bytes())
}

/// All folds in one safetensors file, `fold_0/encoder.stages...`.
fn weights_file(folds: &[Fold]) -> Result<Vec<u8>, String> {
    let mut bytes: Vec<(String, &[usize], Vec<u8>)> = Vec::new();
    for fold in folds {
        for (name, weight) in &fold.weights {
            let values = weight.values.iter().flat_map(|v| v.to_le_bytes()).collect();
            bytes.push((format!("{}/{name}", fold.name), &weight.shape, values));
        }
    }
    let views = bytes
        .iter()
        .map(|(name, shape, values)| Ok((name, TensorView::new(Dtype::F32, shape.to_vec(), values)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|e| e.to_string())?;
    safetensors::serialize(views, None).map_err(|e| e.to_string())
}
