//! A network that is only a state dict, with a small JSON file that says the rest.
//!
//! The file names the framework, the class of the network and the arguments that its constructor was called with, and gives what a
//! package's `model.toml` gives, under the same keys: tile, normalisation, classes and so on. Format: `docs/model-package.md`.

use std::path::{Path, PathBuf};

use microtome_io::{Class, Size};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::architecture;
use crate::arguments::{Object, read_object};
use crate::model::{self, Folds, Model, ModelOptions};
use crate::state_dict::StateDict;
use crate::weights::Fold;
use crate::{Card, Error, MirrorAxes, Normalization, Output, Result, Window};

/// The file's name in a folder.
const NAME: &str = "recipe.json";
/// Keys under which frameworks and their users put the state dict.
const NESTED: [&str; 6] = ["state_dict", "model_state_dict", "model", "network", "net", "network_weights"];

/// What the file holds. Optional keys have the value that is the plain case.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    /// `monai` or `segmentation-models-pytorch`.
    framework: String,
    /// The class, such as `UNet`.
    network: String,
    /// The arguments of its constructor by their names; those that are missing have the framework's defaults.
    arguments: Map<String, Value>,
    /// Files beside this one, a fold each; their logits are averaged.
    weights: Vec<PathBuf>,
    tile: Size,
    normalization: Vec<Normalization>,
    classes: Vec<ClassEntry>,
    #[serde(default)]
    channels: Option<Vec<String>>,
    #[serde(default)]
    output: Option<Output>,
    #[serde(default)]
    mirror_axes: MirrorAxes,
    #[serde(default)]
    mpp: Option<f64>,
    #[serde(default = "half")]
    step: f64,
    #[serde(default = "gaussian")]
    window: Window,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    licence: Option<String>,
    #[serde(default)]
    provenance: Option<String>,
    #[serde(default)]
    intended_use: Option<String>,
}

/// A class, or only its name: then its value is its place in the list.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
enum ClassEntry {
    Name(String),
    Class(Class),
}

fn half() -> f64 {
    0.5
}

fn gaussian() -> Window {
    Window::Gaussian
}

/// The recipe that a path is or holds.
pub(crate) fn find(path: &Path) -> Option<PathBuf> {
    let is_json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    let file = if path.is_dir() { path.join(NAME) } else { path.to_owned() };
    (file.is_file() && (is_json || path.is_dir())).then_some(file)
}

/// Loads the model that a recipe describes.
pub(crate) fn load(path: &Path, options: &ModelOptions) -> Result<Model> {
    let map = read_object(path)?;
    let recipe: Recipe = serde_json::from_value(Value::Object(map)).map_err(|e| Error::format(path, e.to_string()))?;
    let arguments = Object { path, place: "arguments".into(), map: &recipe.arguments };
    let architecture = architecture::construct(&recipe.framework, &recipe.network, &arguments)?;
    let entry = |(place, entry): (usize, ClassEntry)| match entry {
        ClassEntry::Name(name) => Class::with_default_color(place.try_into().unwrap_or(u16::MAX), name),
        ClassEntry::Class(class) => class,
    };
    let channels = architecture.channels();
    let names = |count: usize| match count {
        3 => ["red", "green", "blue"].map(Into::into).to_vec(),
        n => (0..n.min(1 << 16)).map(|c| format!("channel {c}")).collect(),
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let named = |f: &Path| f.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut card = Card {
        name: recipe.name.unwrap_or_else(|| named(if path.ends_with(NAME) { folder } else { path })),
        architecture: String::new(),
        tile: recipe.tile,
        channels: recipe.channels.unwrap_or_else(|| names(channels)),
        classes: recipe.classes.into_iter().enumerate().map(entry).collect(),
        output: recipe.output.unwrap_or(Output::Labels),
        mirror_axes: recipe.mirror_axes,
        normalization: recipe.normalization,
        training: None,
        mpp: recipe.mpp,
        step: recipe.step,
        window: recipe.window,
        postprocessing: None,
        crop_to_nonzero: false,
        folds: Vec::new(),
        parameters: 0,
        sha256: String::new(),
        licence: recipe.licence,
        provenance: recipe.provenance,
        intended_use: recipe.intended_use,
        test_vector: None,
        precision: crate::PrecisionNote::default(),
    };
    model::check(path, &card, &architecture)?;
    let wanted: Vec<usize> = match &options.folds {
        Folds::Auto | Folds::All => (0..recipe.weights.len()).collect(),
        Folds::List(numbers) => numbers.iter().map(|n| *n as usize).collect(),
    };
    if wanted.is_empty() {
        return Err(Error::format(path, "weights must name a file"));
    }
    let fold = |index: usize| {
        let Some(file) = recipe.weights.get(index) else {
            let message = format!("fold_{index} is missing; there are {}", recipe.weights.len());
            return Err(Error::format(path, message));
        };
        if file.components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
            return Err(Error::format(path, format!("weights: {} is not beside this file", file.display())));
        }
        let weights = StateDict::open(&folder.join(file), &NESTED)?.weights(&architecture)?;
        Ok(Fold { name: format!("fold_{index}"), weights })
    };
    let folds = wanted.into_iter().map(fold).collect::<Result<Vec<_>>>()?;
    model::complete(&mut card, &architecture, &folds);
    Ok(Model::new(card, architecture, folds, None))
}
