//! A network that is only a state dict, with a small JSON file that says the rest.
//!
//! The file names the framework, the class of the network and the arguments that its constructor was called with, and gives what a
//! package's `model.toml` gives, under the same keys: tile, normalisation, classes and so on. Format: `docs/model-package.md`.
//! Keys are read one by one, so that a message can say which is wrong and where.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use microtome_io::{Class, Size};
use serde_json::{Value, json};

use crate::architecture::Axes;
use crate::arguments::{Object, as_count, read_object};
use crate::model::{self, Model, ModelOptions};
use crate::network::{Operation, Source};
use crate::state_dict::{NESTED, StateDict};
use crate::weights::{Fold, Weight};
use crate::{Architecture, Card, MirrorAxes, Network, Normalization, Output, Placement, Result, Window, architecture};

/// The file's name in a folder.
const NAME: &str = "recipe.json";
/// The keys of the file.
const KEYS: [&str; 19] = [
    "framework",
    "network",
    "arguments",
    "weights",
    "tile",
    "normalization",
    "classes",
    "output",
    "channels",
    "axes",
    "mirror_axes",
    "mpp",
    "step",
    "placement",
    "window",
    "name",
    "licence",
    "provenance",
    "intended_use",
];
/// Mean and standard deviation of ImageNet's red, green and blue, in samples from 0 to 1, as torchvision gives them.
const IMAGENET: [(f64, f64); 3] = [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)];
/// More channels than any network may have: lists are not made longer, whatever a file claims.
const MOST_CHANNELS: usize = 1 << 16;

/// The recipe that a path is or holds.
pub(crate) fn find(path: &Path) -> Option<PathBuf> {
    let is_json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    let file = if path.is_dir() { path.join(NAME) } else { path.to_owned() };
    (file.is_file() && (is_json || path.is_dir())).then_some(file)
}

/// Loads the model that a recipe describes.
pub(crate) fn load(path: &Path, options: &ModelOptions) -> Result<Model> {
    let map = read_object(path)?;
    let recipe = Object::file(path, &map);
    let (card, networks) = describe(&recipe)?;
    load_described(path, card, &networks, &weights(&recipe)?, options)
}

/// A network as it sees pictures upright, and as its framework has it if that takes x for the first axis: then kernels are transposed.
#[derive(Debug)]
pub(crate) struct Networks {
    upright: Architecture,
    transposed: Option<Architecture>,
}

impl Networks {
    /// What the framework's class makes of these arguments.
    ///
    /// # Errors
    /// As [`architecture::construct`].
    pub(crate) fn construct(framework: &str, class: &str, arguments: &Object<'_>, axes: Axes) -> Result<Self> {
        let of = |axes| architecture::construct(framework, class, arguments, axes);
        Ok(Self { upright: of(axes)?, transposed: (axes == Axes::XY).then(|| of(Axes::YX)).transpose()? })
    }

    /// The network that runs.
    pub(crate) fn upright(&self) -> &Architecture {
        &self.upright
    }
}

/// Loads a model of which all is known but the weights: a fold in each of the files. `path` is the file that says so, for messages.
pub(crate) fn load_described(
    path: &Path,
    mut card: Card,
    networks: &Networks,
    files: &[PathBuf],
    options: &ModelOptions,
) -> Result<Model> {
    let architecture = &networks.upright;
    model::check(path, &card, architecture)?;
    let all: Vec<String> = (0..files.len()).map(|index| format!("fold_{index}")).collect();
    let wanted = options.folds.named(path, &all)?.unwrap_or_else(|| all.clone());
    let files: BTreeMap<String, &PathBuf> = all.into_iter().zip(files).collect();
    let fold = |name: String| {
        let state = StateDict::open(files[&name], &NESTED)?;
        let weights = match &networks.transposed {
            None => state.weights(architecture)?,
            Some(held) => upright(&held.network(), state.weights(held)?),
        };
        Ok(Fold { name, weights })
    };
    let folds = wanted.into_iter().map(fold).collect::<Result<Vec<_>>>()?;
    model::complete(&mut card, architecture, &folds);
    Ok(Model::new(card, architecture.clone(), folds, None))
}

/// The weights of a network that takes x for the first axis as those of the one that sees pictures upright.
///
/// Kernels are transposed. Where a convolution makes what is shuffled into blocks of pixels, its output channels change places, too:
/// those of a block lie row by row.
fn upright(held: &Network, weights: BTreeMap<String, Weight>) -> BTreeMap<String, Weight> {
    let mut factors: BTreeMap<&str, usize> = BTreeMap::new();
    for layer in held.layers() {
        if let (Operation::PixelShuffle { factor }, Source::Layer(i)) = (&layer.operation, layer.sources[0])
            && let Operation::Convolution { weight, bias, .. } = &held.layers()[i].operation
        {
            factors.insert(weight, *factor);
            factors.extend(bias.as_deref().map(|bias| (bias, *factor)));
        }
    }
    let one = |(name, weight): (String, Weight)| {
        let weight = weight.transposed();
        let weight = match factors.get(name.as_str()) {
            Some(&factor) => weight.with_transposed_blocks(factor),
            None => weight,
        };
        (name, weight)
    };
    weights.into_iter().map(one).collect()
}

/// The card, without what follows from the weights, and the network.
fn describe(recipe: &Object<'_>) -> Result<(Card, Networks)> {
    // First, so that any other JSON file is told what it is not.
    let Some(framework) = recipe.text("framework")? else {
        return Err(recipe.wrong("framework", "is missing: a recipe says which one the network comes from"));
    };
    recipe.only(&KEYS)?;
    let text = |key: &str| recipe.text(key).map(|t| t.map(str::to_owned));
    recipe.need("network")?;
    let network = recipe.text("network")?.unwrap_or_default();
    let networks = Networks::construct(framework, network, &recipe.child("arguments")?, axes(recipe)?)?;
    let architecture = networks.upright();
    let channels = architecture.channels().min(MOST_CHANNELS);
    let classes = classes(recipe)?;
    let folder = recipe.path.parent().unwrap_or(Path::new(""));
    let named = folder.file_name().filter(|_| recipe.path.ends_with(NAME)).or(recipe.path.file_stem());
    let card = Card {
        name: text("name")?.unwrap_or_else(|| named.map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()),
        architecture: String::new(),
        tile: tile(recipe)?,
        channels: match recipe.get("channels") {
            None => channel_names(channels),
            Some(_) => texts(recipe, "channels")?.into_iter().map(str::to_owned).collect(),
        },
        output: output(recipe, architecture.heads(), &classes)?,
        classes,
        mirror_axes: mirror_axes(recipe)?,
        normalization: normalization(recipe, channels)?,
        training: None,
        mpp: recipe.number("mpp")?,
        step: recipe.number("step")?.unwrap_or(0.5),
        placement: placement(recipe)?,
        window: window(recipe)?,
        folds: Vec::new(),
        parameters: 0,
        sha256: String::new(),
        licence: text("licence")?,
        provenance: text("provenance")?,
        intended_use: text("intended_use")?,
        test_vector: None,
        precision: crate::PrecisionNote::default(),
        postprocessing: None,
        crop_to_nonzero: false,
    };
    Ok((card, networks))
}

/// One file, or a list of them, a fold each, whose logits are averaged.
fn weights(recipe: &Object<'_>) -> Result<Vec<PathBuf>> {
    let folder = recipe.path.parent().unwrap_or(Path::new(""));
    let names = match recipe.need("weights")? {
        Value::String(name) => vec![name.as_str()],
        _ => texts(recipe, "weights")?,
    };
    if names.is_empty() {
        return Err(recipe.wrong("weights", "names no file"));
    }
    let beside = |name: &str| {
        let file = Path::new(name);
        let plain = |c| matches!(c, std::path::Component::Normal(_));
        if file.components().next().is_none() || !file.components().all(plain) {
            return Err(recipe.wrong("weights", &format!("names \"{name}\", which is no file beside this one")));
        }
        Ok(folder.join(file))
    };
    names.into_iter().map(beside).collect()
}

/// Width and height, or one number for both.
fn tile(recipe: &Object<'_>) -> Result<Size> {
    let value = recipe.get("tile").ok_or_else(|| {
        recipe.wrong("tile", "is missing: width and height in pixels of what the network is given, best as in training")
    })?;
    if let Some(side) = as_count(value) {
        return Ok(Size::new(side as u64, side as u64));
    }
    if !value.is_object() {
        return Err(recipe.wrong("tile", r#"is neither a number of pixels nor {"width": .., "height": ..}"#));
    }
    let tile = recipe.child("tile")?;
    tile.only(&["width", "height"])?;
    Ok(Size::new(tile.count("width")? as u64, tile.count("height")? as u64))
}

/// What so many channels are called if nobody says.
pub(crate) fn channel_names(channels: usize) -> Vec<String> {
    match channels {
        3 => ["red", "green", "blue"].map(str::to_owned).to_vec(),
        n => (0..n.min(MOST_CHANNELS)).map(|c| format!("channel {c}")).collect(),
    }
}

/// A list with an entry for each channel, one entry for all of them, or `imagenet`. An entry is a table, or only its scheme.
fn normalization(recipe: &Object<'_>, channels: usize) -> Result<Vec<Normalization>> {
    let value = recipe.get("normalization").ok_or_else(|| {
        recipe.wrong("normalization", "is missing: a scheme for each channel, one for all of them, or \"imagenet\"")
    })?;
    let scheme = |place: &str, value: &Value| {
        let table = if value.is_string() { json!({ "scheme": value }) } else { value.clone() };
        if !table.is_object() {
            return Err(recipe.wrong(place, "is neither the name of a scheme nor a table with one"));
        }
        serde_json::from_value::<Normalization>(table).map_err(|e| recipe.wrong(place, &format!("is wrong: {e}")))
    };
    match value {
        Value::String(name) if name == "imagenet" => {
            if channels != IMAGENET.len() {
                let message =
                    format!("is imagenet, which is for red, green and blue; the network has {channels} channels");
                return Err(recipe.wrong("normalization", &message));
            }
            Ok(IMAGENET.map(|(mean, std)| Normalization::standardized(255.0, mean, std)).to_vec())
        }
        Value::Array(entries) => {
            entries.iter().enumerate().map(|(c, entry)| scheme(&format!("normalization[{c}]"), entry)).collect()
        }
        one => Ok(vec![scheme("normalization", one)?; channels]),
    }
}

/// Each class is its name, then its value is its place in the list, or a table.
fn classes(recipe: &Object<'_>) -> Result<Vec<Class>> {
    let class = |(i, entry): (usize, &Value)| {
        let here = u16::try_from(i).unwrap_or(u16::MAX);
        let place = format!("classes[{i}]");
        let map = match entry {
            Value::String(name) => return Ok(Class::with_default_color(here, name)),
            Value::Object(map) => map,
            _ => return Err(recipe.wrong(&place, "is neither a name nor a table")),
        };
        let table = Object { path: recipe.path, place, map };
        table.only(&["value", "name", "color", "code"])?;
        table.need("name")?;
        let value = match table.get("value") {
            Some(value) => {
                mask_value(value).ok_or_else(|| table.wrong("value", "is no value of a mask, 0 to 65535"))?
            }
            None => here,
        };
        let mut class = Class::with_default_color(value, table.text("name")?.unwrap_or_default());
        if let Some(color) = table.get("color") {
            class.color = serde_json::from_value(color.clone())
                .map_err(|_| table.wrong("color", "must be a list of red, green and blue, each from 0 to 255"))?;
        }
        class.code = table.text("code")?.map(str::to_owned);
        Ok(class)
    };
    recipe.list("classes")?.iter().enumerate().map(class).collect()
}

/// What the logits mean. Where the file does not say: one for each class, the largest wins; or a single one for the second of two
/// classes, which is where it is positive (its sigmoid is above one half).
fn output(recipe: &Object<'_>, heads: usize, classes: &[Class]) -> Result<Output> {
    let foreground = || classes.iter().skip(1).map(|c| c.value).collect();
    match recipe.get("output") {
        None if heads == 1 && classes.len() == 2 => Ok(Output::Regions { class_order: foreground() }),
        None if heads == classes.len() => Ok(Output::Labels),
        None => {
            let message = format!(
                "is missing, and the network gives {heads} logits for {} classes: \"labels\" if one belongs to each class, \
                 \"regions\" if one belongs to each class but the first",
                classes.len()
            );
            Err(recipe.wrong("output", &message))
        }
        Some(Value::String(kind)) if kind == "labels" => Ok(Output::Labels),
        Some(Value::String(kind)) if kind == "regions" => Ok(Output::Regions { class_order: foreground() }),
        Some(Value::Object(map)) => {
            let table = Object { path: recipe.path, place: "output".into(), map };
            table.only(&["kind", "class_order"])?;
            match (table.text("kind")?, table.get("class_order")) {
                (Some("labels"), None) => Ok(Output::Labels),
                (Some("regions"), None) => Ok(Output::Regions { class_order: foreground() }),
                (Some("regions"), Some(_)) => {
                    let values: Option<_> = table.list("class_order")?.iter().map(mask_value).collect();
                    let class_order =
                        values.ok_or_else(|| table.wrong("class_order", "must be a list of values of classes"))?;
                    Ok(Output::Regions { class_order })
                }
                (Some("labels"), Some(_)) => Err(table.wrong("class_order", "is for regions only")),
                _ => Err(table.wrong("kind", "must be labels or regions")),
            }
        }
        Some(_) => Err(recipe.wrong("output", "must be labels or regions")),
    }
}

fn mirror_axes(recipe: &Object<'_>) -> Result<MirrorAxes> {
    if recipe.get("mirror_axes").is_none() {
        return Ok(MirrorAxes::NONE);
    }
    let axes = recipe.child("mirror_axes")?;
    axes.only(&["horizontal", "vertical"])?;
    let flag = |key: &str| axes.flag(key).map(Option::unwrap_or_default);
    Ok(MirrorAxes { vertical: flag("vertical")?, horizontal: flag("horizontal")? })
}

fn window(recipe: &Object<'_>) -> Result<Window> {
    match recipe.text("window")? {
        None | Some("gaussian") => Ok(Window::Gaussian),
        Some("gaussian-monai") => Ok(Window::GaussianMonai),
        Some("constant") => Ok(Window::Constant),
        Some(other) => {
            Err(recipe.wrong("window", &format!("is {other}; there are gaussian, gaussian-monai and constant")))
        }
    }
}

/// Which axis of a picture the network takes for its first; `tile` is of the picture itself.
fn axes(recipe: &Object<'_>) -> Result<Axes> {
    match recipe.text("axes")? {
        None | Some("yx") => Ok(Axes::YX),
        Some("xy") => Ok(Axes::XY),
        Some(other) => Err(recipe.wrong("axes", &format!("is {other}; there are yx and xy"))),
    }
}

fn placement(recipe: &Object<'_>) -> Result<Placement> {
    match recipe.text("placement")? {
        None | Some("nnunet") => Ok(Placement::Nnunet),
        Some("monai") => Ok(Placement::Monai),
        Some(other) => Err(recipe.wrong("placement", &format!("is {other}; there are nnunet and monai"))),
    }
}

fn mask_value(value: &Value) -> Option<u16> {
    as_count(value).and_then(|v| v.try_into().ok())
}

fn texts<'a>(recipe: &Object<'a>, key: &str) -> Result<Vec<&'a str>> {
    let texts = recipe.list(key)?.iter().map(Value::as_str).collect::<Option<_>>();
    texts.ok_or_else(|| recipe.wrong(key, "must be texts"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Folds;

    /// The least that a recipe must say.
    fn least() -> Value {
        json!({
            "framework": "segmentation-models-pytorch",
            "network": "Unet",
            "arguments": { "encoder_name": "resnet18", "encoder_weights": "imagenet" },
            "weights": "model.pth",
            "tile": 256,
            "normalization": "imagenet",
            "classes": ["background", "nucleus"],
        })
    }

    /// What a recipe comes to with these keys in place of the least ones.
    fn with(changes: Value) -> Result<(Card, Vec<PathBuf>)> {
        let (mut recipe, Value::Object(changes)) = (least(), changes) else { panic!("changes are no object") };
        recipe.as_object_mut().unwrap().extend(changes);
        let object = Object::file(Path::new("nuclei/recipe.json"), recipe.as_object().unwrap());
        let (card, networks) = describe(&object)?;
        model::check(object.path, &card, networks.upright())?;
        Ok((card, weights(&object)?))
    }

    fn message(changes: Value) -> String {
        let message = with(changes).unwrap_err().to_string();
        message.strip_prefix("nuclei/recipe.json: ").unwrap().to_owned()
    }

    #[test]
    fn what_is_missing_is_the_plain_case() {
        let (card, weights) = with(json!({})).unwrap();
        assert_eq!(weights, [Path::new("nuclei/model.pth")]);
        assert_eq!((card.name.as_str(), card.tile), ("nuclei", Size::new(256, 256)));
        assert_eq!(card.channels, ["red", "green", "blue"]);
        assert_eq!(card.output, Output::Regions { class_order: vec![1] }, "one logit for two classes");
        assert_eq!(
            (card.mirror_axes, card.mpp, card.step, card.window),
            (MirrorAxes::NONE, None, 0.5, Window::Gaussian)
        );
        assert_eq!(card.classes[1], Class::with_default_color(1, "nucleus"));
        let red = Normalization::Linear { shift: 255.0 * 0.485, divisor: 255.0 * 0.229, lower: None, upper: None };
        assert_eq!((card.normalization.len(), card.normalization[0]), (3, red));
    }

    #[test]
    fn every_key_is_read() {
        let stroma = json!({ "value": 1, "name": "stroma", "color": [1, 2, 3], "code": "SCT 65801008" });
        let (card, weights) = with(json!({
            "arguments": { "classes": 3, "in_channels": 2 },
            "weights": ["a.pth", "folds/b.pth"],
            "tile": { "width": 256, "height": 128 },
            "normalization": ["z-score", { "scheme": "ct", "lower": 1, "upper": 9, "mean": 4, "std": 2 }],
            "classes": ["background", stroma, "tumour"],
            "output": { "kind": "regions", "class_order": [2, 1, 2] },
            "channels": ["H", "E"],
            "mirror_axes": { "horizontal": true },
            "mpp": 0.5, "step": 0.25, "window": "constant",
            "name": "n", "licence": "l", "provenance": "p", "intended_use": "i",
        }))
        .unwrap();
        assert_eq!(weights, ["nuclei/a.pth", "nuclei/folds/b.pth"].map(Path::new));
        assert_eq!((card.tile, card.channels), (Size::new(256, 128), vec!["H".into(), "E".into()]));
        let ct = Normalization::Ct { lower: 1.0, upper: 9.0, mean: 4.0, std: 2.0 };
        assert_eq!(card.normalization, [Normalization::ZScore, ct]);
        assert_eq!((card.classes[1].color, card.classes[1].code.as_deref()), ([1, 2, 3], Some("SCT 65801008")));
        assert_eq!(card.output, Output::Regions { class_order: vec![2, 1, 2] });
        assert_eq!(card.mirror_axes, MirrorAxes { vertical: false, horizontal: true });
        assert_eq!((card.mpp, card.step, card.window), (Some(0.5), 0.25, Window::Constant));
        let texts = [Some(card.name), card.licence, card.provenance, card.intended_use].map(Option::unwrap);
        assert_eq!(texts, ["n", "l", "p", "i"]);
    }

    #[test]
    fn logits_and_classes_decide_the_output_where_the_file_does_not() {
        let output = |heads: usize, classes: &[&str], output: Value| {
            with(json!({ "arguments": { "classes": heads }, "classes": classes, "output": output }))
                .map(|(c, _)| c.output)
        };
        let regions = |values: &[u16]| Output::Regions { class_order: values.to_vec() };
        assert_eq!(output(2, &["none", "a"], Value::Null).unwrap(), Output::Labels);
        assert_eq!(output(2, &["none", "a"], json!("labels")).unwrap(), Output::Labels);
        assert_eq!(output(1, &["none", "a"], json!("regions")).unwrap(), regions(&[1]));
        assert_eq!(output(2, &["none", "a", "b"], json!({ "kind": "regions" })).unwrap(), regions(&[1, 2]));
        assert_eq!(
            output(2, &["none", "a", "b"], Value::Null).unwrap_err().to_string(),
            "nuclei/recipe.json: output is missing, and the network gives 2 logits for 3 classes: \"labels\" if one belongs to \
             each class, \"regions\" if one belongs to each class but the first"
        );
        let message = output(2, &["none", "a", "b"], json!("labels")).unwrap_err().to_string();
        assert_eq!(message, "nuclei/recipe.json: 2 logits, but 3 classes or regions");
    }

    #[test]
    fn one_normalization_serves_all_channels() {
        let of = |value: Value| with(json!({ "normalization": value })).unwrap().0.normalization;
        assert_eq!(of(json!("rgb-to01")), [Normalization::RgbTo01; 3]);
        let scheme = Normalization::Linear { shift: 127.5, divisor: 127.5, lower: None, upper: None };
        assert_eq!(of(json!({ "scheme": "linear", "shift": 127.5, "divisor": 127.5 })), [scheme; 3]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let missing = "is missing: width and height in pixels of what the network is given, best as in training";
        assert_eq!(message(json!({ "tile": null })), format!("tile {missing}"));
        assert_eq!(
            message(json!({ "normalization": null })),
            "normalization is missing: a scheme for each channel, one for all of them, or \"imagenet\""
        );
        assert_eq!(
            message(json!({ "framework": null })),
            "framework is missing: a recipe says which one the network comes from"
        );
        for (key, expected) in [("network", "is missing"), ("arguments", "is missing"), ("classes", "is missing")] {
            assert_eq!(message(json!({ key: null })), format!("{key} {expected}"));
        }
        assert!(
            message(json!({ "titel": 3 })).starts_with("titel is unknown; there are framework, network, arguments, ")
        );
        let wrong: [(Value, &str); 22] = [
            (json!({ "tile": [256, 256] }), r#"tile is neither a number of pixels nor {"width": .., "height": ..}"#),
            (json!({ "tile": { "width": 64 } }), "tile.height is missing"),
            (
                json!({ "tile": { "width": 64, "height": 64, "depth": 1 } }),
                "tile.depth is unknown; there are width, height",
            ),
            (
                json!({ "tile": 100 }),
                "the network has a tile of 100 x 100; with these strides it must be a multiple of 32 x 32",
            ),
            (json!({ "weights": [] }), "weights names no file"),
            (json!({ "weights": "../model.pth" }), "weights names \"../model.pth\", which is no file beside this one"),
            (json!({ "weights": "" }), "weights names \"\", which is no file beside this one"),
            (json!({ "weights": [3] }), "weights must be texts"),
            (
                json!({ "arguments": { "in_channels": 1 } }),
                "normalization is imagenet, which is for red, green and blue; the network has 1 channels",
            ),
            (
                json!({ "normalization": ["rgb-to01", { "scheme": "ct", "lower": 0 }, "none"] }),
                "normalization[1] is wrong: missing field `upper`",
            ),
            (
                json!({ "normalization": [255] }),
                "normalization[0] is neither the name of a scheme nor a table with one",
            ),
            (json!({ "normalization": ["none"] }), "3 input channels, but 3 names and 1 normalisations"),
            (json!({ "classes": ["background", 7] }), "classes[1] is neither a name nor a table"),
            (json!({ "classes": ["background", { "value": 1 }] }), "classes[1].name is missing"),
            (
                json!({ "classes": ["background", { "name": "a", "value": 70_000 }] }),
                "classes[1].value is no value of a mask, 0 to 65535",
            ),
            (
                json!({ "classes": ["background", { "name": "a", "color": [0, 0, 256] }] }),
                "classes[1].color must be a list of red, green and blue, each from 0 to 255",
            ),
            (json!({ "output": "softmax" }), "output must be labels or regions"),
            (json!({ "output": { "kind": "labels", "class_order": [1] } }), "output.class_order is for regions only"),
            (json!({ "mirror_axes": { "horizontal": 1 } }), "mirror_axes.horizontal is neither true nor false"),
            (json!({ "window": "hann" }), "window is hann; there are gaussian, gaussian-monai and constant"),
            (json!({ "placement": "mine" }), "placement is mine; there are nnunet and monai"),
            (json!({ "axes": "zyx" }), "axes is zyx; there are yx and xy"),
        ];
        for (changes, expected) in wrong {
            assert_eq!(message(changes), expected);
        }
        let scheme = message(json!({ "normalization": "zscore" }));
        assert!(scheme.starts_with("normalization is wrong: unknown variant `zscore`, expected one of `z-score`, "));
    }

    #[test]
    fn a_claim_of_many_channels_makes_no_long_list() {
        let arguments = json!({ "in_channels": 1e14 });
        let message = message(json!({ "arguments": arguments, "normalization": "none" }));
        assert_eq!(message, "the network has 100000000000000 channels in a layer; 1 to 16384 are supported");
    }

    #[test]
    fn a_recipe_is_a_json_file_or_a_folder_with_one() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(find(folder.path()), None);
        let file = folder.path().join(NAME);
        std::fs::write(&file, least().to_string()).unwrap();
        let other = folder.path().join("other.JSON");
        std::fs::write(&other, "[]").unwrap();
        assert_eq!(find(folder.path()), Some(file.clone()));
        assert_eq!(find(&file), Some(file.clone()));
        let open = |path: &Path, options: &ModelOptions| Model::open(path, options).unwrap_err().to_string();
        assert!(open(&other, &ModelOptions::default()).ends_with("other.JSON: not a JSON object"));
        assert!(open(folder.path(), &ModelOptions::default()).contains("model.pth: No such file"));
        let folds = |folds: Folds| open(&file, &ModelOptions { folds, ..ModelOptions::default() });
        assert!(folds(Folds::List(vec![1])).ends_with("fold_1 is missing; there are fold_0"));
        assert!(folds(Folds::All).ends_with("fold_all is missing; there are fold_0"));
        assert!(folds(Folds::List(vec![0, 0])).contains("the fold 0 is asked for twice"));
    }
}
