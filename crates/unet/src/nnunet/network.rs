//! The network that a configuration of the plans asks for.
//!
//! Arguments and their defaults: dynamic-network-architectures 0.4.4, `architectures/unet.py` and `building_blocks`.

use serde_json::{Map, Value};

use super::plans::Counts;
use crate::architecture::{Activation, Norm, PlainConvUnet, ResidualEncoderUnet, ResidualUnet};
use crate::arguments::{Object, as_count};
use crate::network::Extent;
use crate::{Architecture, Result};

/// Reads `architecture`, or the flat keys of older plans. A normalisation given replaces that of the plans.
pub(super) fn read(configuration: &Object<'_>, counts: Counts, norm: Option<Norm>) -> Result<Architecture> {
    match configuration.get("architecture") {
        Some(_) => new_form(configuration, counts, norm),
        None => old_form(configuration, counts, norm),
    }
}

/// The classes of networks that this crate knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Plain,
    ResidualEncoder,
    Residual,
}

impl Class {
    fn read(object: &Object<'_>, key: &str) -> Result<Self> {
        match class_name(object, key)? {
            Some("PlainConvUNet") => Ok(Self::Plain),
            Some("ResidualEncoderUNet") => Ok(Self::ResidualEncoder),
            Some("ResidualUNet") => Ok(Self::Residual),
            Some(other) => {
                let message =
                    format!("{other} is not supported; PlainConvUNet, ResidualEncoderUNet and ResidualUNet are");
                Err(object.unsupported(key, &message))
            }
            None => Err(object.wrong(key, "is missing")),
        }
    }

    /// The keyword arguments that are its own.
    fn keywords(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &["n_conv_per_stage", "nonlin_first"],
            Self::ResidualEncoder | Self::Residual => {
                &["n_blocks_per_stage", "block", "bottleneck_channels", "stem_channels"]
            }
        }
    }
}

/// The keyword arguments of all classes.
const KEYWORDS: [&str; 14] = [
    "n_stages",
    "features_per_stage",
    "conv_op",
    "kernel_sizes",
    "strides",
    "n_conv_per_stage_decoder",
    "conv_bias",
    "norm_op",
    "norm_op_kwargs",
    "dropout_op",
    "dropout_op_kwargs",
    "nonlin",
    "nonlin_kwargs",
    "deep_supervision",
];

/// What does nothing at inference.
const DROPOUT: [&str; 6] = ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"];

/// `architecture`, as nnU-Net 2.4 and later write it.
fn new_form(configuration: &Object<'_>, counts: Counts, replaced: Option<Norm>) -> Result<Architecture> {
    let architecture = configuration.child("architecture")?;
    let class = Class::read(&architecture, "network_class_name")?;
    let keywords = &architecture.child("arch_kwargs")?;
    let known = |key: &str| KEYWORDS.contains(&key) || class.keywords().contains(&key);
    if let Some(key) = keywords.map.keys().find(|key| !known(key)) {
        return Err(keywords.unsupported(key, "is not supported"));
    }
    match class_name(keywords, "conv_op")? {
        Some("Conv2d") => {}
        Some(other) => return Err(keywords.unsupported("conv_op", &format!("{other} is not supported; Conv2d is"))),
        None => return Err(keywords.wrong("conv_op", "is missing")),
    }
    if let Some(other) = class_name(keywords, "dropout_op")?.filter(|n| !DROPOUT.contains(n)) {
        return Err(
            keywords.unsupported("dropout_op", &format!("{other} is not supported; {} are", DROPOUT.join(", ")))
        );
    }
    let stages = keywords.count("n_stages")?;
    // The architecture's own check is the one that names the limit; here a count only must not become a large list.
    let length = stages.min(64);
    let plain = PlainConvUnet {
        channels: counts.channels,
        heads: counts.heads,
        features: per_stage(keywords, "features_per_stage", length, as_count)?,
        kernels: per_stage(keywords, "kernel_sizes", length, as_extent)?,
        strides: per_stage(keywords, "strides", length, as_extent)?,
        convolutions: match class {
            Class::Plain => per_stage(keywords, "n_conv_per_stage", length, as_count)?,
            Class::ResidualEncoder | Class::Residual => per_stage(keywords, "n_blocks_per_stage", length, as_count)?,
        },
        decoder_convolutions: per_stage(keywords, "n_conv_per_stage_decoder", length.saturating_sub(1), as_count)?,
        bias: keywords.flag("conv_bias")?.unwrap_or(false),
        norm: replaced.map_or_else(|| norm(keywords), Ok)?,
        activation: activation(keywords)?,
        nonlin_first: keywords.flag("nonlin_first")?.unwrap_or(false),
    };
    let stem = keywords.get("stem_channels").map(|_| keywords.count("stem_channels")).transpose()?;
    let bottlenecks = match class_name(keywords, "block")? {
        None | Some("BasicBlockD") => None,
        Some("BottleneckD") => Some(bottlenecks(keywords, &plain.convolutions)?),
        Some(other) => {
            let message = format!("{other} is not supported; BasicBlockD and BottleneckD are");
            return Err(keywords.unsupported("block", &message));
        }
    };
    Ok(of_class(class, plain, stem, bottlenecks))
}

/// `bottleneck_channels`: one number for all stages, or one per stage, or one per block of a stage.
fn bottlenecks(keywords: &Object<'_>, blocks: &[usize]) -> Result<Vec<Vec<usize>>> {
    const KEY: &str = "bottleneck_channels";
    let stages = per_stage(keywords, KEY, blocks.len(), |v| Some(v.clone()))?;
    let stage = |(channels, &blocks): (&Value, &usize)| match channels {
        Value::Array(list) => list.iter().map(as_count).collect(),
        // A stage of more blocks than are supported is refused later.
        single => as_count(single).map(|channels| vec![channels; blocks.min(1 << 10)]),
    };
    let channels: Option<Vec<_>> = stages.iter().zip(blocks).map(stage).collect();
    channels.ok_or_else(|| keywords.wrong(KEY, "holds what is no count"))
}

/// The flat keys of nnU-Net 2.0 to 2.3, which knew no other blocks than the default ones.
fn old_form(configuration: &Object<'_>, counts: Counts, replaced: Option<Norm>) -> Result<Architecture> {
    let class = Class::read(configuration, "UNet_class_name")?;
    let stages = configuration.list("n_conv_per_stage_encoder")?.len();
    let (base, most) = (configuration.count("UNet_base_num_features")?, configuration.count("unet_max_num_features")?);
    let features = |s: usize| base.saturating_mul(1_usize.checked_shl(s as u32).unwrap_or(usize::MAX)).min(most);
    let length = stages.min(64);
    let plain = PlainConvUnet {
        channels: counts.channels,
        heads: counts.heads,
        features: (0..length).map(features).collect(),
        kernels: per_stage(configuration, "conv_kernel_sizes", length, as_extent)?,
        strides: per_stage(configuration, "pool_op_kernel_sizes", length, as_extent)?,
        convolutions: per_stage(configuration, "n_conv_per_stage_encoder", length, as_count)?,
        decoder_convolutions: per_stage(configuration, "n_conv_per_stage_decoder", length.saturating_sub(1), as_count)?,
        bias: true,
        norm: replaced.unwrap_or(Norm::Instance { epsilon: 1e-5, affine: true }),
        activation: Activation::LeakyRelu { slope: 0.01 },
        nonlin_first: false,
    };
    Ok(of_class(class, plain, None, None))
}

/// The network of a class with the parameters of a plain one, whose convolutions are blocks if it is residual.
fn of_class(
    class: Class,
    plain: PlainConvUnet,
    stem: Option<usize>,
    bottlenecks: Option<Vec<Vec<usize>>>,
) -> Architecture {
    if class == Class::Plain {
        return plain.into();
    }
    let residual = ResidualEncoderUnet {
        channels: plain.channels,
        heads: plain.heads,
        stem: stem.or(plain.features.first().copied()).unwrap_or(0),
        features: plain.features,
        kernels: plain.kernels,
        strides: plain.strides,
        blocks: plain.convolutions,
        bottlenecks,
        decoder_convolutions: plain.decoder_convolutions,
        bias: plain.bias,
        norm: plain.norm,
        activation: plain.activation,
    };
    if class == Class::Residual { ResidualUnet(residual).into() } else { residual.into() }
}

/// The last component of a dotted Python path; the modules before it have moved over time.
fn class_name<'a>(object: &Object<'a>, key: &str) -> Result<Option<&'a str>> {
    Ok(object.text(key)?.map(|path| path.rsplit('.').next().unwrap_or(path)))
}

/// A list with one entry per stage, or one value for all stages.
fn per_stage<T: Clone>(
    object: &Object<'_>,
    key: &str,
    stages: usize,
    parse: fn(&Value) -> Option<T>,
) -> Result<Vec<T>> {
    let wrong = || object.wrong(key, "does not hold one entry per stage");
    match object.need(key)? {
        Value::Array(list) if list.len() == stages => list.iter().map(|v| parse(v).ok_or_else(wrong)).collect(),
        Value::Array(list) => Err(object.wrong(key, &format!("has {} entries; there must be {stages}", list.len()))),
        single => Ok(vec![parse(single).ok_or_else(wrong)?; stages]),
    }
}

/// `[height, width]`, or one number for both.
fn as_extent(value: &Value) -> Option<Extent> {
    match value {
        Value::Array(list) => match list.as_slice() {
            [height, width] => Some(Extent { height: as_count(height)?, width: as_count(width)? }),
            _ => None,
        },
        single => as_count(single).map(|n| Extent { height: n, width: n }),
    }
}

/// Keyword arguments of a module, which may be missing altogether. One that is not among `known` is refused.
fn keywords<'a>(object: &Object<'a>, key: &str, empty: &'a Map<String, Value>, known: &[&str]) -> Result<Object<'a>> {
    if object.get(key).is_none() {
        return Ok(Object::file(object.path, empty));
    }
    let keywords = object.child(key)?;
    match keywords.map.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(keywords.unsupported(key, "is not supported")),
        None => Ok(keywords),
    }
}

/// Defaults are PyTorch's: `InstanceNorm2d(eps=1e-5, affine=False)`, `BatchNorm2d(eps=1e-5, affine=True)`.
fn norm(object: &Object<'_>) -> Result<Norm> {
    let empty = Map::new();
    let known = ["eps", "affine", "track_running_stats", "momentum"];
    let keywords = keywords(object, "norm_op_kwargs", &empty, &known)?;
    let epsilon = keywords.number_or("eps", 1e-5)?;
    let affine = keywords.flag("affine")?;
    let tracks = keywords.flag("track_running_stats")?;
    // What tells the two apart at inference is whose statistics they use; nnU-Net gives the network one tile at a time.
    let (affine, tracks) = match class_name(object, "norm_op")? {
        None => return Ok(Norm::None),
        Some("InstanceNorm2d") => (affine.unwrap_or(false), tracks.unwrap_or(false)),
        Some("BatchNorm2d") => (affine.unwrap_or(true), tracks.unwrap_or(true)),
        Some(other) => {
            let message = format!("{other} is not supported; InstanceNorm2d and BatchNorm2d are");
            return Err(object.unsupported("norm_op", &message));
        }
    };
    Ok(if tracks { Norm::Batch { epsilon, affine } } else { Norm::Instance { epsilon, affine } })
}

fn activation(object: &Object<'_>) -> Result<Activation> {
    let empty = Map::new();
    let class = class_name(object, "nonlin")?;
    let known: &[&str] = match class {
        None => return Ok(Activation::None),
        Some("LeakyReLU") => &["inplace", "negative_slope"],
        Some("ReLU" | "SiLU" | "Mish") => &["inplace"],
        Some("GELU") => &["approximate"],
        Some("PReLU") => &["num_parameters", "init"],
        Some(other) => {
            let message = format!("{other} is not supported; LeakyReLU, ReLU, PReLU, SiLU, Mish and GELU are");
            return Err(object.unsupported("nonlin", &message));
        }
    };
    let keywords = keywords(object, "nonlin_kwargs", &empty, known)?;
    Ok(match class {
        Some("ReLU") => Activation::LeakyRelu { slope: 0.0 },
        Some("SiLU") => Activation::Silu,
        Some("Mish") => Activation::Mish,
        Some("GELU") => match keywords.text("approximate")? {
            None | Some("none") => Activation::Gelu,
            Some("tanh") => Activation::GeluTanh,
            Some(other) => {
                let message = format!("{other} is not supported; none and tanh are");
                return Err(keywords.unsupported("approximate", &message));
            }
        },
        Some("PReLU") => {
            let values = keywords.get("num_parameters").map(|_| keywords.count("num_parameters")).transpose()?;
            Activation::PRelu { per_channel: values.is_some_and(|n| n != 1) }
        }
        _ => Activation::LeakyRelu { slope: keywords.number_or("negative_slope", 0.01)? },
    })
}
