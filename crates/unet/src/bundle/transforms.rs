//! What a bundle does to pictures before the network, and to logits behind it.
//!
//! Formulas and defaults: MONAI 1.6.1, `monai/transforms/{intensity,io,post}/array.py`, `monai/data/image_reader.py`.

use std::path::Path;

use serde_json::Value;

use super::config::{Arguments, Component, UNKNOWN_TYPE};
use crate::arguments::Object;
use crate::{Error, Normalization, Result};

/// What comes before the network.
#[derive(Debug, PartialEq)]
pub(super) struct Preprocessing {
    pub(super) normalization: Vec<Normalization>,
    /// The network sees pictures with x as the first axis.
    pub(super) transposed: bool,
}

/// What comes behind the network.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Postprocessing {
    pub(super) decision: Option<Decision>,
    /// Transforms of the mask that are not applied.
    pub(super) left_out: Vec<String>,
}

/// How logits become labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// The largest wins.
    Argmax,
    /// Each that is positive: its sigmoid is above one half.
    Positive,
}

/// Transforms before the network whose arguments say nothing about values: kinds of numbers, where the channels are, files, and what goes on.
const PLAIN_BEFORE: [&str; 11] = [
    "DeleteItems",
    "FromMetaTensor",
    "SaveImage",
    "EnsureChannelFirst",
    "AsChannelFirst",
    "EnsureType",
    "ToTensor",
    "CastToType",
    "ToDevice",
    "SelectItems",
    "Identity",
];
/// Transforms behind the network that change no label: kinds of numbers, files, and ways back that are not gone here.
const PLAIN_BEHIND: [&str; 11] = [
    "EnsureType",
    "ToTensor",
    "CastToType",
    "ToDevice",
    "SelectItems",
    "DeleteItems",
    "Invert",
    "SaveImage",
    "Identity",
    "FromMetaTensor",
    "Transpose",
];
/// Transforms of masks that are named and not applied.
const LEFT_OUT: [&str; 3] = ["KeepLargestConnectedComponent", "RemoveSmallObjects", "FillHoles"];

/// What the network's output is called in a dictionary.
const OUTPUT: &str = "pred";
/// What entries of a dictionary are called that no network sees.
const LABELS: [&str; 4] = ["label", "labels", "mask", "seg"];

/// Which arguments of a class are looked at.
pub(super) fn wanted(class: &str) -> Arguments {
    let plain = plain(class);
    let known = PLAIN_BEFORE.contains(&plain) || PLAIN_BEHIND.contains(&plain) || LEFT_OUT.contains(&plain);
    if known && plain != "Transpose" { Arguments::Keys } else { Arguments::All }
}

/// The class without what marks transforms of dictionaries. `Pad` and the like end in a d of their own; none of them is known here.
fn plain(class: &str) -> &str {
    class.strip_suffix("Dict").or_else(|| class.strip_suffix(['d', 'D'])).unwrap_or(class)
}

/// The entries of a dictionary that a transform is about; none of one that is given a picture itself.
fn keys(component: &Component) -> Vec<&str> {
    match component.arguments.get("keys") {
        Some(Value::String(key)) => vec![key.as_str()],
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// The same without labels.
fn entries(component: &Component) -> Vec<&str> {
    keys(component).into_iter().filter(|key| !LABELS.contains(key)).collect()
}

/// What the picture is called in a dictionary: as what loads it says, or else the first transform of anything but labels.
fn picture<'a>(path: &Path, transforms: &'a [Component]) -> Result<&'a str> {
    let loading = transforms.iter().filter(|t| plain(&t.class) == "LoadImage");
    let Some(first) = loading.chain(transforms).find(|t| !entries(t).is_empty()) else { return Ok("image") };
    match entries(first).as_slice() {
        &[one] => Ok(one),
        several => {
            let message = format!("{} is of {}; one picture is supported", first.place, several.join(", "));
            Err(Error::unsupported(path, message))
        }
    }
}

/// Whether a transform is about this entry of a dictionary. One of another entry that is neither a label nor left as it is may have a
/// part in what becomes of this one, and is refused; `what` says what the entry is.
fn concerns(path: &Path, component: &Component, entry: &str, what: &str, harmless: &[&str]) -> Result<bool> {
    let about = keys(component);
    if about.is_empty() || about.contains(&entry) {
        return Ok(true);
    }
    if harmless.contains(&plain(&component.class)) || about.iter().all(|key| LABELS.contains(key)) {
        return Ok(false);
    }
    let (place, class) = (&component.place, &component.class);
    let message = format!("{place} is {class} of {}, which is not supported: {what} is {entry}", about.join(", "));
    Err(Error::unsupported(path, message))
}

/// Where this entry of a dictionary stands among those that a transform is about.
fn place(component: &Component, key: &str) -> usize {
    let keys = component.arguments.get("keys").and_then(Value::as_array);
    keys.and_then(|keys| keys.iter().position(|k| k.as_str() == Some(key))).unwrap_or(0)
}

/// Refuses to make whole numbers of what has been scaled: little would be left of it.
fn keeps_fractions(object: &Object<'_>, place: usize, intensity: &Intensity) -> Result<()> {
    let untouched = matches!(intensity, Intensity::Fixed(linear) if linear.iter().all(|l| *l == Linear::IDENTITY));
    let name = match object.get("dtype") {
        Some(Value::Array(each)) => each.get(place).and_then(Value::as_str).unwrap_or_default(),
        one => one.and_then(Value::as_str).unwrap_or_default(),
    };
    let whole = ["int", "long", "short", "byte", "char", "bool"].into_iter().any(|kind| name.contains(kind));
    if (whole || name == UNKNOWN_TYPE) && !untouched {
        let message = format!("is {name}, and intensities are changed before it, which is not supported");
        return Err(object.unsupported("dtype", &message));
    }
    Ok(())
}

fn refused(path: &Path, component: &Component, why: &str) -> Error {
    Error::unsupported(path, format!("{} is {}, which is not supported{why}", component.place, component.class))
}

/// Refuses arguments other than these, those of all dictionary transforms, and those that say nothing about values.
fn only(object: &Object<'_>, known: &[&str]) -> Result<()> {
    let common = ["keys", "allow_missing_keys", "track_meta", "meta_keys", "meta_key_postfix", "meta_dicts", "dtype"];
    match object.map.keys().find(|k| !common.contains(&k.as_str()) && !known.contains(&k.as_str())) {
        Some(name) => Err(object.unsupported(name, "is no argument that is supported")),
        None => Ok(()),
    }
}

/// `factor * clip(x, lower, upper) + summand`, the factor positive.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Linear {
    factor: f64,
    summand: f64,
    lower: f64,
    upper: f64,
}

impl Linear {
    const IDENTITY: Self = Self { factor: 1.0, summand: 0.0, lower: f64::NEG_INFINITY, upper: f64::INFINITY };

    /// This, and then `factor * y + summand`.
    fn then(self, factor: f64, summand: f64) -> Self {
        Self { factor: self.factor * factor, summand: self.summand * factor + summand, ..self }
    }

    /// This, and then `clip(y, lower, upper)`.
    fn clipped(self, lower: f64, upper: f64) -> Self {
        let before = |y: f64| (y - self.summand) / self.factor;
        Self { lower: self.lower.max(before(lower)), upper: self.upper.min(before(upper)), ..self }
    }

    fn is_clipped(self) -> bool {
        self.lower > f64::NEG_INFINITY || self.upper < f64::INFINITY
    }

    fn normalization(self) -> Normalization {
        if self == Self::IDENTITY {
            return Normalization::None;
        }
        let bound = |b: f64| Some(b).filter(|b| b.is_finite());
        Normalization::Linear {
            shift: -self.summand / self.factor,
            divisor: 1.0 / self.factor,
            lower: bound(self.lower),
            upper: bound(self.upper),
        }
    }
}

/// What is done to samples so far.
#[derive(Debug, Clone, PartialEq)]
enum Intensity {
    /// With fixed numbers, for each channel.
    Fixed(Vec<Linear>),
    /// With statistics of the image.
    Measured(Normalization),
}

/// Reads the transforms before the network.
pub(super) fn before(path: &Path, transforms: &[Component], channels: usize) -> Result<Preprocessing> {
    let mut intensity = Intensity::Fixed(vec![Linear::IDENTITY; channels]);
    let mut transposed = false;
    let picture = picture(path, transforms)?;
    for transform in transforms {
        if !concerns(path, transform, picture, "the picture", &PLAIN_BEFORE)? {
            continue;
        }
        let object = transform.object(path);
        match plain(&transform.class) {
            "LoadImage" => transposed = loads_transposed(&object)?,
            "Transpose" => {
                only(&object, &["indices"])?;
                let indices: Vec<Option<u64>> = object.list("indices")?.iter().map(Value::as_u64).collect();
                match indices[..] {
                    [Some(0), Some(1), Some(2)] => {}
                    [Some(0), Some(2), Some(1)] => transposed = !transposed,
                    _ => return Err(object.unsupported("indices", "are neither [0, 1, 2] nor [0, 2, 1]")),
                }
            }
            name if PLAIN_BEFORE.contains(&name) => {}
            "ScaleIntensityRange" => intensity = scale_range(&object, intensity)?,
            "ScaleIntensity" => intensity = scale(&object, intensity, channels)?,
            "NormalizeIntensity" => intensity = normalize(&object, intensity, channels)?,
            "Resize" | "Spacing" | "Zoom" => {
                return Err(refused(path, transform, ": pictures are resampled to the model's micrometres per pixel"));
            }
            _ => return Err(refused(path, transform, "")),
        }
        keeps_fractions(&object, place(transform, picture), &intensity)?;
    }
    let normalization = match intensity {
        Intensity::Fixed(linear) => linear.into_iter().map(Linear::normalization).collect(),
        Intensity::Measured(scheme) => vec![scheme; channels],
    };
    Ok(Preprocessing { normalization, transposed })
}

/// Readers of pictures give x as the first axis, as ITK does, unless they are told not to.
fn loads_transposed(object: &Object<'_>) -> Result<bool> {
    let known = [
        "reader",
        "image_only",
        "ensure_channel_first",
        "simple_keys",
        "reverse_indexing",
        "overwriting",
        "expanduser",
        "converter",
    ];
    only(object, &known)?;
    if object.get("converter").is_some() {
        return Err(object.unsupported("converter", "is not supported"));
    }
    let reversed = object.flag("reverse_indexing")?.unwrap_or(true);
    match object.text("reader")?.map(|r| r.rsplit('.').next().unwrap_or(r)) {
        None | Some("PILReader" | "ITKReader") => Ok(reversed),
        Some("WSIReader" | "NumpyReader") => Ok(false),
        Some(other) => {
            let message = format!("is {other}; PILReader, ITKReader, WSIReader and NumpyReader are known");
            Err(object.unsupported("reader", &message))
        }
    }
}

fn after_measuring(object: &Object<'_>) -> Error {
    Error::unsupported(
        object.path,
        format!("{} comes after a normalisation with the image's own statistics", object.place),
    )
}

fn scale_range(object: &Object<'_>, before: Intensity) -> Result<Intensity> {
    only(object, &["a_min", "a_max", "b_min", "b_max", "clip"])?;
    let Intensity::Fixed(linear) = before else { return Err(after_measuring(object)) };
    let need = |key: &str| object.number(key)?.ok_or_else(|| object.wrong(key, "is missing"));
    let (a_min, a_max) = (need("a_min")?, need("a_max")?);
    let target = object.number("b_min")?.zip(object.number("b_max")?);
    let (b_min, b_max) = target.unwrap_or((0.0, 1.0));
    let factor = (b_max - b_min) / (a_max - a_min);
    if !(factor.is_finite() && factor > 0.0) {
        return Err(object
            .unsupported("a_max", &format!("is {a_max}: the range {a_min} to {a_max} becomes {b_min} to {b_max}")));
    }
    let clip = object.flag("clip")?.unwrap_or(false);
    if clip && target.is_none() {
        return Err(object.wrong("clip", "is true without b_min and b_max"));
    }
    let one = |linear: Linear| {
        let scaled = linear.then(factor, b_min - a_min * factor);
        if clip { scaled.clipped(b_min, b_max) } else { scaled }
    };
    Ok(Intensity::Fixed(linear.into_iter().map(one).collect()))
}

/// A normalisation with statistics undoes whatever is linear and the same for all samples, so that nothing is left of what came before.
fn measured(object: &Object<'_>, before: &Intensity, scheme: Normalization) -> Result<Intensity> {
    match before {
        Intensity::Fixed(linear) if !linear.iter().any(|l| l.is_clipped()) => Ok(Intensity::Measured(scheme)),
        Intensity::Fixed(_) => {
            let message = format!("{} comes after clipping, and measures the image behind it", object.place);
            Err(Error::unsupported(object.path, message))
        }
        Intensity::Measured(_) => Err(after_measuring(object)),
    }
}

fn together(object: &Object<'_>, channels: usize) -> Result<()> {
    if channels > 1 && !object.flag("channel_wise")?.unwrap_or(false) {
        return Err(
            object.unsupported("channel_wise", "is false: statistics of all channels together are not supported")
        );
    }
    Ok(())
}

fn scale(object: &Object<'_>, before: Intensity, channels: usize) -> Result<Intensity> {
    only(object, &["minv", "maxv", "factor", "channel_wise"])?;
    if object.get("factor").is_some() {
        return Err(object.unsupported("factor", "is not supported"));
    }
    for (key, expected) in [("minv", 0.0), ("maxv", 1.0)] {
        let found = object.number(key)?.unwrap_or(expected);
        if object.map.get(key).is_some_and(Value::is_null) || (found - expected).abs() > 0.0 {
            return Err(object.unsupported(key, &format!("must be {expected}")));
        }
    }
    together(object, channels)?;
    measured(object, &before, Normalization::RescaleTo01)
}

fn normalize(object: &Object<'_>, before: Intensity, channels: usize) -> Result<Intensity> {
    only(object, &["subtrahend", "divisor", "nonzero", "channel_wise"])?;
    if object.flag("nonzero")?.unwrap_or(false) {
        return Err(object.unsupported("nonzero", "is true: statistics without black pixels are not supported"));
    }
    let channel_wise = object.flag("channel_wise")?.unwrap_or(false);
    let numbers = |key: &str| -> Result<Option<Vec<f64>>> {
        let wrong = || object.wrong(key, "is neither a number nor, with channel_wise, one for each channel");
        match object.get(key) {
            None => Ok(None),
            Some(Value::Array(items)) if channel_wise && items.len() == channels => {
                items.iter().map(|v| v.as_f64().ok_or_else(wrong)).collect::<Result<_>>().map(Some)
            }
            Some(Value::Number(n)) if !channel_wise => Ok(n.as_f64().map(|n| vec![n; channels])),
            Some(_) => Err(wrong()),
        }
    };
    match (numbers("subtrahend")?, numbers("divisor")?) {
        (None, None) => {
            together(object, channels)?;
            measured(object, &before, Normalization::ZScore)
        }
        (Some(subtrahends), Some(divisors)) => {
            let Intensity::Fixed(linear) = before else { return Err(after_measuring(object)) };
            if divisors.iter().any(|d| !(d.is_finite() && *d > 0.0)) {
                return Err(object.unsupported("divisor", "must be positive"));
            }
            let numbers = subtrahends.into_iter().zip(divisors);
            let fixed = linear.into_iter().zip(numbers).map(|(l, (s, d))| l.then(1.0 / d, -s / d));
            Ok(Intensity::Fixed(fixed.collect()))
        }
        (Some(_), None) => Err(object.unsupported("subtrahend", "is given without divisor")),
        (None, Some(_)) => Err(object.unsupported("divisor", "is given without subtrahend")),
    }
}

/// Reads the transforms behind the network.
pub(super) fn behind(path: &Path, transforms: &[Component]) -> Result<Postprocessing> {
    let mut post = Postprocessing::default();
    let mut sigmoid = false;
    for transform in transforms {
        if !concerns(path, transform, OUTPUT, "the network's output", &PLAIN_BEHIND)? {
            continue;
        }
        let object = transform.object(path);
        // A list holds an entry for each of the keys.
        let place = place(transform, OUTPUT);
        let value = |key: &str| -> Result<Option<&Value>> {
            match object.get(key) {
                Some(Value::Array(items)) => match items.get(place) {
                    Some(value) => Ok(Some(value).filter(|v| !v.is_null())),
                    None => Err(object.wrong(key, "has fewer entries than keys")),
                },
                other => Ok(other),
            }
        };
        let flag = |key: &str| -> Result<bool> {
            let flag = |v: &Value| v.as_bool().ok_or_else(|| object.wrong(key, "is neither true nor false"));
            Ok(value(key)?.map(flag).transpose()?.unwrap_or(false))
        };
        match plain(&transform.class) {
            "Activations" => {
                only(&object, &["sigmoid", "softmax", "other", "dim"])?;
                if object.get("other").is_some() {
                    return Err(object.unsupported("other", "is not supported; sigmoid and softmax are"));
                }
                if flag("sigmoid")? {
                    sigmoid = true;
                    post.decision = Some(Decision::Positive);
                }
                if flag("softmax")? {
                    post.decision = Some(Decision::Argmax);
                }
            }
            "AsDiscrete" => {
                only(
                    &object,
                    &[
                        "argmax",
                        "threshold",
                        "threshold_values",
                        "logit_thresh",
                        "to_onehot",
                        "n_classes",
                        "num_classes",
                    ],
                )?;
                let threshold = match value("threshold")?.filter(|v| **v != Value::Bool(false)) {
                    Some(value) => Some(value.as_f64()),
                    None if flag("threshold_values")? => Some(Some(object.number("logit_thresh")?.unwrap_or(0.5))),
                    None => None,
                };
                if flag("argmax")? {
                    // It would make one class of all but the first.
                    if threshold.is_some() {
                        return Err(object.unsupported("threshold", "comes after argmax, which is not supported"));
                    }
                    post.decision = Some(Decision::Argmax);
                    continue;
                }
                let Some(threshold) = threshold else { continue };
                if !sigmoid || threshold != Some(0.5) {
                    return Err(object.unsupported("threshold", "must be 0.5, of a sigmoid"));
                }
                post.decision = Some(Decision::Positive);
            }
            name if PLAIN_BEHIND.contains(&name) => {}
            name if LEFT_OUT.contains(&name) => post.left_out.push(transform.class.clone()),
            _ => return Err(refused(path, transform, "")),
        }
    }
    Ok(post)
}
