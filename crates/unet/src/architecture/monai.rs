//! How MONAI's constructors take arguments, and the block of convolution, normalisation and nonlinearity that its networks share.
//!
//! Names and defaults: MONAI 1.6.1, `monai/networks/layers/{factories,utils}.py`, `monai/networks/blocks/{convolutions,upsample}.py`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::layers::Convolution;
use super::{Activation, Norm};
use crate::arguments::{Object, as_count};
use crate::network::{Extent, Factor, Interpolation, Network, Operation, Padding, Source};
use crate::{Error, Result};

/// As recipes name it.
pub(super) const FRAMEWORK: &str = "monai";

/// Three by three pixels.
pub(super) const THREE: Extent = Extent { height: 3, width: 3 };
/// Two by two pixels.
pub(super) const TWO: Extent = Extent { height: 2, width: 2 };

/// How a decoder's `UpSample` doubles what it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpsampleMode {
    /// A transposed convolution whose kernel is its stride.
    Deconv,
    /// Bilinear interpolation.
    Nontrainable,
    /// A convolution of 3 x 3 pixels, a pixel shuffle, and the mean of each pixel and those above and on the left.
    Pixelshuffle,
}

/// The arguments of one of MONAI's constructors.
#[derive(Debug)]
pub(super) struct Arguments<'a>(&'a Object<'a>);

impl<'a> Arguments<'a> {
    /// Those of a network in two dimensions; any that is not in the list is refused. `dimensions` is how MONAI before 0.9 calls
    /// `spatial_dims`.
    pub(super) fn new(object: &'a Object<'a>, known: &[&str]) -> Result<Self> {
        let common = ["spatial_dims", "dimensions", "in_channels", "out_channels"];
        if let Some(name) = object.map.keys().find(|k| !common.contains(&k.as_str()) && !known.contains(&k.as_str())) {
            return Err(object.unsupported(name, "is no argument that is known"));
        }
        let key = if object.get("dimensions").is_some() { "dimensions" } else { "spatial_dims" };
        match object.count(key)? {
            2 => Ok(Self(object)),
            other => Err(object.unsupported(key, &format!("is {other}; networks of 2 dimensions are supported"))),
        }
    }

    pub(super) fn object(&self) -> &'a Object<'a> {
        self.0
    }

    pub(super) fn count(&self, key: &str, default: usize) -> Result<usize> {
        if self.0.get(key).is_some() { self.0.count(key) } else { Ok(default) }
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.0.flag(key)?.unwrap_or(default))
    }

    /// A list of counts, or `default`.
    pub(super) fn counts(&self, key: &str, default: &[usize]) -> Result<Vec<usize>> {
        if self.0.get(key).is_none() {
            return Ok(default.to_vec());
        }
        let count = |v: &Value| as_count(v).ok_or_else(|| self.0.wrong(key, "is no list of counts"));
        self.0.list(key)?.iter().map(count).collect()
    }

    /// An extent: a count for both axes, or one for each.
    pub(super) fn extent(&self, key: &str, default: usize) -> Result<Extent> {
        self.0.get(key).map_or(Ok(Extent { height: default, width: default }), |v| self.as_extent(key, v))
    }

    /// A list of extents.
    pub(super) fn extents(&self, key: &str) -> Result<Vec<Extent>> {
        self.0.list(key)?.iter().map(|v| self.as_extent(key, v)).collect()
    }

    fn as_extent(&self, key: &str, value: &Value) -> Result<Extent> {
        let pair = || match value.as_array()?.as_slice() {
            [height, width] => Some([as_count(height)?, as_count(width)?]),
            _ => None,
        };
        let extent = as_count(value).map(|n| [n, n]).or_else(pair);
        extent.map(Extent::from).ok_or_else(|| self.0.wrong(key, "is neither a count nor one for each of two axes"))
    }

    /// A layer that is a name, or a name with arguments; `None` where it is left out, by `null` or an empty name.
    fn layer(&self, key: &str, default: &Value) -> Result<Option<(String, Object<'a>)>> {
        // The arguments of a layer that has none.
        static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
        let wrong = || self.0.wrong(key, "is neither a name nor a name with arguments");
        let object = |map| Object { path: self.0.path, place: format!("{}.{key}", self.0.place), map };
        let Some(value) = self.0.map.get(key) else {
            return match default {
                Value::String(name) => Ok(Some((name.clone(), object(&NONE)))),
                _ => Ok(None),
            };
        };
        let (name, map) = match value {
            Value::Null => return Ok(None),
            Value::String(name) => (name, &*NONE),
            Value::Array(parts) => match parts.as_slice() {
                [Value::String(name), Value::Object(map)] => (name, map),
                _ => return Err(wrong()),
            },
            _ => return Err(wrong()),
        };
        Ok((!name.is_empty()).then(|| (name.to_ascii_lowercase(), object(map))))
    }

    /// A normalisation.
    pub(super) fn norm(&self, key: &str, default: Norm) -> Result<Norm> {
        if !self.0.map.contains_key(key) {
            return Ok(default);
        }
        let Some((name, arguments)) = self.layer(key, &Value::Null)? else { return Ok(Norm::None) };
        let has = |known: &[&str]| only(&arguments, known);
        let epsilon = arguments.number_or("eps", 1e-5)?;
        let flag = |key: &str, default: bool| Ok::<_, Error>(arguments.flag(key)?.unwrap_or(default));
        match name.as_str() {
            "instance" | "instance_nvfuser" => {
                has(&["eps", "momentum", "affine", "track_running_stats"])?;
                let affine = flag("affine", false)?;
                // With statistics from training it is at inference what batch normalisation is.
                let tracked = flag("track_running_stats", false)?;
                Ok(if tracked { Norm::Batch { epsilon, affine } } else { Norm::Instance { epsilon, affine } })
            }
            "batch" | "syncbatch" => {
                has(&["eps", "momentum", "affine", "track_running_stats", "process_group"])?;
                if !flag("track_running_stats", true)? {
                    let message = "is false: such a batch normalisation depends on what else is in the batch";
                    return Err(arguments.unsupported("track_running_stats", message));
                }
                Ok(Norm::Batch { epsilon, affine: flag("affine", true)? })
            }
            "group" => {
                has(&["num_groups", "eps", "affine"])?;
                Ok(Norm::Group { groups: arguments.count("num_groups")?, epsilon, affine: flag("affine", true)? })
            }
            other => {
                Err(self.0.unsupported(key, &format!("is {other}; instance, batch, syncbatch and group are supported")))
            }
        }
    }

    /// A nonlinearity.
    pub(super) fn activation(&self, key: &str, default: Activation) -> Result<Activation> {
        if !self.0.map.contains_key(key) {
            return Ok(default);
        }
        let Some((name, arguments)) = self.layer(key, &Value::Null)? else { return Ok(Activation::None) };
        let has = |known: &[&str]| only(&arguments, known);
        match name.as_str() {
            "relu" => has(&["inplace"]).map(|()| Activation::LeakyRelu { slope: 0.0 }),
            "leakyrelu" => {
                has(&["negative_slope", "inplace"])?;
                Ok(Activation::LeakyRelu { slope: arguments.number_or("negative_slope", 0.01)? })
            }
            "prelu" => {
                has(&["num_parameters", "init"])?;
                let values = arguments.get("num_parameters").map_or(Ok(1), |_| arguments.count("num_parameters"))?;
                Ok(Activation::PRelu { per_channel: values != 1 })
            }
            "swish" | "memswish" | "silu" => {
                has(&["alpha", "inplace"])?;
                match arguments.number_or("alpha", 1.0)? {
                    1.0 => Ok(Activation::Silu),
                    other => Err(arguments.unsupported("alpha", &format!("is {other}; 1 is supported"))),
                }
            }
            "mish" => has(&["inplace"]).map(|()| Activation::Mish),
            "gelu" => {
                has(&["approximate"])?;
                match arguments.text("approximate")?.unwrap_or("none") {
                    "none" => Ok(Activation::Gelu),
                    "tanh" => Ok(Activation::GeluTanh),
                    other => Err(arguments.unsupported("approximate", &format!("is {other}; none and tanh are known"))),
                }
            }
            other => {
                let known = "relu, leakyrelu, prelu, swish, memswish, mish and gelu are supported";
                Err(self.0.unsupported(key, &format!("is {other}; {known}")))
            }
        }
    }

    /// Whether a nonlinearity overwrites what it is given; `default` says it of the one that is meant where none is named.
    pub(super) fn is_in_place(&self, key: &str, default: bool) -> Result<bool> {
        if !self.0.map.contains_key(key) {
            return Ok(default);
        }
        let named = self.layer(key, &Value::Null)?;
        Ok(named.map_or(Ok(None), |(_, arguments)| arguments.flag("inplace"))?.unwrap_or(false))
    }

    /// How a decoder doubles.
    pub(super) fn upsample(&self, key: &str, default: UpsampleMode) -> Result<UpsampleMode> {
        match self.0.text(key)? {
            None => Ok(default),
            Some("deconv") => Ok(UpsampleMode::Deconv),
            Some("nontrainable") => Ok(UpsampleMode::Nontrainable),
            Some("pixelshuffle") => Ok(UpsampleMode::Pixelshuffle),
            Some(other) => Err(self
                .0
                .unsupported(key, &format!("is {other}; deconv, nontrainable and pixelshuffle are supported"))),
        }
    }
}

/// Refuses arguments that are not in the list.
fn only(arguments: &Object<'_>, known: &[&str]) -> Result<()> {
    match arguments.map.keys().find(|k| !known.contains(&k.as_str())) {
        Some(name) => Err(arguments.unsupported(name, "is no argument that is supported")),
        None => Ok(()),
    }
}

/// What follows a convolution in an `ADN`; dropout is the identity at inference.
#[derive(Debug, Clone, Copy)]
pub(super) struct Adn {
    pub(super) norm: Norm,
    pub(super) activation: Activation,
    /// The nonlinearity comes before the normalisation.
    pub(super) activation_first: bool,
}

impl Adn {
    /// `Convolution`: a convolution and its `ADN`.
    pub(super) fn convolve(self, network: &mut Network, name: &str, convolution: Convolution, at: Source) -> Source {
        let at = network.convolve(&format!("{name}.conv"), convolution, at);
        self.after(network, name, convolution.output, at)
    }

    /// The `ADN` alone.
    pub(super) fn after(self, network: &mut Network, name: &str, channels: usize, at: Source) -> Source {
        let norm = |network: &mut Network, at| network.normalize(&format!("{name}.adn.N"), self.norm, channels, at);
        let activation =
            |network: &mut Network, at| network.activate(&format!("{name}.adn.A"), self.activation, channels, at);
        if self.activation_first {
            let at = activation(network, at);
            return norm(network, at);
        }
        let at = norm(network, at);
        activation(network, at)
    }
}

/// `UpSample` by two with biases. Without a transposed convolution, a `preconv` of single pixels comes first where the number of channels
/// changes.
pub(super) fn double(
    network: &mut Network,
    name: &str,
    (input, output): (usize, usize),
    (mode, interpolation): (UpsampleMode, Interpolation),
    at: Source,
) -> Source {
    match mode {
        UpsampleMode::Deconv => network.expand(&format!("{name}.deconv"), (input, output), TWO, true, at),
        UpsampleMode::Nontrainable => {
            let changes = input != output;
            let convolution = Convolution::pointwise(input, output, true);
            let at = if changes { network.convolve(&format!("{name}.preconv"), convolution, at) } else { at };
            let factor = Factor { height: 2.0, width: 2.0 };
            network.push(Operation::Resize { factor, interpolation }, &[at])
        }
        UpsampleMode::Pixelshuffle => {
            let convolution = Convolution { input, output: 4 * output, kernel: THREE, stride: Extent::ONE, bias: true };
            let at = network.convolve(&format!("{name}.pixelshuffle.conv_block"), convolution, at);
            let at = network.shuffle_pixels(2, at);
            let before = Padding { height: 1, width: 1 };
            network.push(Operation::AveragePool { kernel: TWO, stride: Extent::ONE, before }, &[at])
        }
    }
}
