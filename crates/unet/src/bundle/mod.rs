//! Bundles of MONAI: a folder with `configs/metadata.json`, `configs/inference.json` and `models/model.pt`.
//!
//! `inference.json` is a program. What matters here is read from it by a whitelist: the network, the sliding window, the intensities of
//! pictures, and how logits become labels. All else is either known to make no difference or refused by name.
//! Layout: MONAI 1.6.1, <https://docs.monai.io/en/stable/mb_specification.html>. Bundles that hold an nnU-Net result are read by `nnunet`.

mod config;
mod transforms;

use std::path::{Path, PathBuf};

use microtome_io::{Class, Size};
use serde_json::{Map, Value};

use crate::architecture::Axes;
use crate::arguments::{Object, as_count, read_object};
use crate::model::{Model, ModelOptions};
use crate::recipe::{Networks, channel_names, load_described};
use crate::{Card, Error, MirrorAxes, Output, Placement, Result, Window};
use config::{Component, Config};
use transforms::Decision;

const CONFIGURATION: &str = "configs/inference.json";
const METADATA: &str = "configs/metadata.json";
const WEIGHTS: &str = "models/model.pt";

/// True for a folder that looks like a bundle, though something may be missing from it.
pub(crate) fn is_bundle(folder: &Path) -> bool {
    let configuration = ["json", "yaml", "yml"].iter().any(|e| folder.join(format!("configs/inference.{e}")).is_file());
    folder.join(METADATA).is_file() || configuration
}

/// The folder of nnU-Net's files in a bundle, if it holds them.
pub(crate) fn nnunet_folder(folder: &Path) -> Option<PathBuf> {
    let models = folder.join("models");
    models.join(crate::nnunet::BUNDLE_SETTINGS).is_file().then_some(models)
}

/// Loads a bundle.
pub(crate) fn load(folder: &Path, options: &ModelOptions) -> Result<Model> {
    let path = folder.join(CONFIGURATION);
    if !path.is_file() {
        let message = if ["yaml", "yml"].iter().any(|e| folder.join(format!("configs/inference.{e}")).is_file()) {
            "configs/inference.yaml is not read; write it as configs/inference.json \
             (python: json.dump(yaml.safe_load(open(\"inference.yaml\")), open(\"inference.json\", \"w\")))"
        } else {
            "configs/inference.json is missing from this MONAI bundle"
        };
        return Err(Error::unsupported(folder, message));
    }
    let weights = folder.join(WEIGHTS);
    if !weights.is_file() {
        let message = if folder.join("models/model.ts").is_file() {
            "models/model.pt is missing from this MONAI bundle; models/model.ts is a TorchScript program, which is not run: \
             save its state dict (torch.save(torch.jit.load(\"model.ts\").state_dict(), \"model.pt\"))"
        } else {
            "models/model.pt is missing from this MONAI bundle; large weights are downloaded with it (python -m monai.bundle download)"
        };
        return Err(Error::unsupported(folder, message));
    }
    let root = read_object(&path)?;
    let config = Config::new(&path, &root);
    let metadata_path = folder.join(METADATA);
    let metadata = if metadata_path.is_file() { read_object(&metadata_path)? } else { Map::new() };
    let metadata = Object::file(&metadata_path, &metadata);

    let missing = |name: &str| Error::format(&path, format!("{name} is missing"));
    let network = config.find("network_def")?.ok_or_else(|| missing("network_def"))?;
    let network = config.component(network, "network_def")?.ok_or_else(|| missing("network_def"))?;
    let framed = Networks::construct("monai", &network.class, &network.object(&path), Axes::YX)?;
    let (channels, heads) = (framed.upright().channels(), framed.upright().heads());
    let window = sliding_window(&path, &config)?;
    let before = transforms::before(&path, &preprocessing(&path, &config)?, channels)?;
    let behind = transforms::behind(&path, &postprocessing(&path, &config)?)?;
    let decision = match behind.decision {
        Some(decision) => decision,
        None if heads > 1 => Decision::Argmax,
        None => {
            let message = "postprocessing says neither argmax nor a threshold, and the network has one output";
            return Err(Error::unsupported(&path, message));
        }
    };
    let text = |key: &str| -> Result<Option<String>> { Ok(metadata.text(key)?.map(ToOwned::to_owned)) };
    let name = text("name")?.unwrap_or_else(|| {
        let name = folder.file_name().or_else(|| folder.parent().and_then(Path::file_name));
        name.map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    });
    let (classes, output) = meaning(&described(&metadata, "outputs", "pred"), heads, decision);
    let networks = if before.transposed {
        Networks::construct("monai", &network.class, &network.object(&path), Axes::XY)?
    } else {
        framed
    };
    let named = described(&metadata, "inputs", "image");
    let card = Card {
        provenance: Some(provenance(&name, &metadata, before.transposed, &behind.left_out)?),
        name,
        architecture: String::new(),
        // The first axis is x where pictures are transposed.
        tile: if before.transposed { Size::new(window.tile.height, window.tile.width) } else { window.tile },
        normalization: before.normalization,
        classes,
        channels: if named.len() == channels { named } else { channel_names(channels) },
        output,
        training: None,
        mirror_axes: MirrorAxes::NONE,
        mpp: metadata.number("mpp")?,
        step: window.step,
        placement: Placement::Monai,
        window: window.window,
        licence: text("license")?.or(text("copyright")?),
        intended_use: text("intended_use")?,
        postprocessing: None,
        crop_to_nonzero: false,
        folds: Vec::new(),
        parameters: 0,
        sha256: String::new(),
        test_vector: None,
        precision: crate::PrecisionNote::default(),
    };
    load_described(&path, card, &networks, &[weights], options)
}

/// The transforms before the network: those that `dataset` is given, which are the ones that MONAI runs, or else those under the name
/// that bundles have for them.
fn preprocessing(path: &Path, config: &Config<'_>) -> Result<Vec<Component>> {
    let Some(found) = config.argument_or("dataset", "transform", "preprocessing")? else {
        let message = "preprocessing is missing, and so is dataset.transform: write the transforms there that load a picture and \
                       change its intensities";
        return Err(Error::format(path, message));
    };
    config.transforms(&found, &transforms::wanted)
}

/// The transforms behind the network: those that `evaluator` is given, or else those under the name that bundles have for them, and then
/// those of its handlers.
fn postprocessing(path: &Path, config: &Config<'_>) -> Result<Vec<Component>> {
    let own = config.argument_or("evaluator", "postprocessing", "postprocessing")?;
    let handled = config.handled()?;
    if own.is_none() && handled.is_empty() {
        let message = "postprocessing is missing, and so is evaluator.postprocessing: write the transforms there that make labels of \
                       the network's output (AsDiscreted with argmax, or Activationsd with sigmoid and AsDiscreted with a threshold of 0.5)";
        return Err(Error::format(path, message));
    }
    let mut transforms = Vec::new();
    for found in own.iter().chain(&handled) {
        transforms.extend(config.transforms(found, &transforms::wanted)?);
    }
    Ok(transforms)
}

/// The sliding window of `inferer`.
#[derive(Debug)]
struct Sliding {
    tile: Size,
    step: f64,
    window: Window,
}

fn sliding_window(path: &Path, config: &Config<'_>) -> Result<Sliding> {
    let missing = || Error::format(path, "inferer is missing");
    let inferer = config.component(config.find("inferer")?.ok_or_else(missing)?, "inferer")?.ok_or_else(missing)?;
    let object = inferer.object(path);
    if !["SlidingWindowInferer", "SlidingWindowInfererAdapt"].contains(&inferer.class.as_str()) {
        let message = format!(
            "inferer is {}; only SlidingWindowInferer says how a slide is divided into tiles: write it there, with its roi_size",
            inferer.class
        );
        return Err(Error::unsupported(path, message));
    }
    let known =
        ["roi_size", "overlap", "mode", "sigma_scale", "padding_mode", "cval", "cache_roi_weight_map", "buffer_dim"];
    let others = ["roi_weight_map", "with_coord"];
    for name in object.map.keys() {
        let off = others.contains(&name.as_str()) && matches!(object.map[name], Value::Null | Value::Bool(false));
        if !off && !known.contains(&name.as_str()) {
            return Err(object.unsupported(name, "is no argument that is supported"));
        }
    }
    let both = |key: &str, value: &Value| match value {
        Value::Array(items) => match items.as_slice() {
            [y, x] => Ok((y.clone(), x.clone())),
            _ => Err(object
                .unsupported(key, &format!("has {} entries; networks of 2 dimensions are supported", items.len()))),
        },
        one => Ok((one.clone(), one.clone())),
    };
    let (height, width) = both("roi_size", object.need("roi_size")?)?;
    let extent = |value: &Value| {
        let extent = as_count(value).filter(|n| *n > 0);
        extent.ok_or_else(|| object.unsupported("roi_size", "must be positive along both axes"))
    };
    let tile = Size::new(extent(&width)? as u64, extent(&height)? as u64);
    let overlap = match object.get("overlap") {
        None => 0.25,
        Some(value) => match both("overlap", value)? {
            (y, x) if y == x => y.as_f64().ok_or_else(|| object.wrong("overlap", "is no finite number"))?,
            _ => return Err(object.unsupported("overlap", "differs between the axes")),
        },
    };
    if !(0.0..1.0).contains(&overlap) {
        return Err(object.wrong("overlap", &format!("is {overlap}; it must be at least 0 and less than 1")));
    }
    let window = match object.text("mode")?.unwrap_or("constant") {
        "constant" => Window::Constant,
        "gaussian" => Window::GaussianMonai,
        other => return Err(object.unsupported("mode", &format!("is {other}; constant and gaussian are supported"))),
    };
    for (key, expected) in [("sigma_scale", 0.125), ("cval", 0.0)] {
        if object.number(key)?.is_some_and(|found| (found - expected).abs() > 0.0) {
            return Err(object.unsupported(key, &format!("must be {expected}")));
        }
    }
    match object.text("padding_mode")?.unwrap_or("constant") {
        "constant" => Ok(Sliding { tile, step: 1.0 - overlap, window }),
        other => Err(object.unsupported("padding_mode", &format!("is {other}; constant is supported"))),
    }
}

/// The names that `network_data_format.KIND.NAME.channel_def` gives to channels, in order. Files without them, or with others than
/// `0`, `1`, ..., give none.
fn described(metadata: &Object<'_>, kind: &str, name: &str) -> Vec<String> {
    let format = metadata.map.get("network_data_format").and_then(|f| f.get(kind)).and_then(|k| k.get(name));
    let Some(Value::Object(names)) = format.and_then(|f| f.get("channel_def")) else { return Vec::new() };
    let name = |place: usize| names.get(&place.to_string()).and_then(Value::as_str).map(ToOwned::to_owned);
    (0..names.len()).map(name).collect::<Option<_>>().unwrap_or_default()
}

/// Classes and output of a network with so many logit planes, given the names of its outputs where there are any.
fn meaning(names: &[String], heads: usize, decision: Decision) -> (Vec<Class>, Output) {
    // Values of a mask have 16 bits; what has more heads is refused later.
    let heads = heads.min(1 << 15);
    match decision {
        Decision::Argmax => {
            let named = names.len() == heads;
            let name = |i: usize| if named { names[i].clone() } else { format!("class {i}") };
            ((0..heads).map(|i| Class::with_default_color(i as u16, name(i))).collect(), Output::Labels)
        }
        Decision::Positive => {
            // Some name the background, too, which has no output of its own.
            let names = if names.len() == heads + 1 { &names[1..] } else { names };
            let named = names.len() == heads;
            let name = |i: usize| if named { names[i].clone() } else { format!("region {}", i + 1) };
            let class = |i: usize| Class::with_default_color(i as u16 + 1, name(i));
            let background = Class::with_default_color(0, "background");
            let classes = std::iter::once(background).chain((0..heads).map(class)).collect();
            (classes, Output::Regions { class_order: (1..=heads as u16).collect() })
        }
    }
}

fn provenance(name: &str, metadata: &Object<'_>, transposed: bool, left_out: &[String]) -> Result<String> {
    let part = |key: &str, words: &str| -> Result<String> {
        Ok(metadata.text(key)?.map(|text| format!(", {words} {text}")).unwrap_or_default())
    };
    let mut text = format!("MONAI bundle {name}{}{}.", part("version", "version")?, part("authors", "by")?);
    if transposed {
        text.push_str(" It was trained on pictures with x as their first axis; kernels and tile are transposed here.");
    }
    if !left_out.is_empty() {
        text.push_str(" Its post-processing is not applied: ");
        text.push_str(&left_out.join(", "));
        text.push('.');
    }
    Ok(text)
}
