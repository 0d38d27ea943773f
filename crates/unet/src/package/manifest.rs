//! `model.toml`.

use std::path::Path;

use microtome_io::{Class, Size};
use serde::{Deserialize, Serialize};

use super::classes::change;
use super::{PackageOptions, TestVector};
use crate::model::Model;
use crate::{
    Architecture, Card, ChannelStatistics, Error, Measurement, MirrorAxes, Normalization, Output, Placement,
    Postprocessing, Precision, PrecisionNote, Result, WeightFormat, Window,
};

/// The version that this build writes, and the only one that it reads.
const FORMAT_VERSION: u32 = 1;

/// Scalars come before tables, as TOML wants it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format_version: u32,
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    licence: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    provenance: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    intended_use: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mpp: Option<f64>,
    step: f64,
    #[serde(default)]
    placement: Placement,
    window: Window,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    crop_to_nonzero: bool,
    channels: Vec<String>,
    pub(super) folds: Vec<String>,
    tile: Size,
    mirror_axes: MirrorAxes,
    output: Output,
    pub(super) weights: Weights,
    architecture: Architecture,
    normalization: Vec<Normalization>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    training: Option<Vec<ChannelStatistics>>,
    classes: Vec<Class>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    postprocessing: Option<Vec<Postprocessing>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) test: Option<Test>,
    #[serde(default, skip_serializing_if = "Recommendation::is_empty")]
    precision: Recommendation,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Weights {
    pub(super) sha256: String,
    #[serde(default, skip_serializing_if = "is_plain")]
    pub(super) kernels: WeightFormat,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature.
fn is_plain(format: &WeightFormat) -> bool {
    *format == WeightFormat::F32
}

/// In which numbers the network should compute.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recommendation {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recommended: Option<Precision>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    measured: Option<Measurement>,
}

impl Recommendation {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Where the test vector comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Test {
    pub(super) computed_by: String,
    pub(super) method: String,
}

impl Manifest {
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self> {
        // The version first: another version's file need not have this one's keys.
        #[derive(Deserialize)]
        struct Version {
            format_version: Option<u32>,
        }
        let wrong = |error: toml::de::Error| {
            let line = error.span().map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            let place = line.map_or_else(String::new, |line| format!("line {line}: "));
            Error::format(path, format!("{place}{}", error.message().replace('\n', "; ")))
        };
        let version: Version = toml::from_str(text).map_err(wrong)?;
        match version.format_version {
            Some(FORMAT_VERSION) => toml::from_str(text).map_err(wrong),
            Some(other) => {
                let message = format!("format_version {other} is not supported; this build reads {FORMAT_VERSION}");
                Err(Error::unsupported(path, message))
            }
            None => Err(Error::format(path, "format_version is missing")),
        }
    }

    pub(super) fn new(model: &Model, options: &PackageOptions, sha256: String, test: Option<&TestVector>) -> Self {
        let card = model.card().clone();
        let PrecisionNote { weights, recommended, measured } = card.precision;
        Self {
            format_version: FORMAT_VERSION,
            name: options.name.clone().unwrap_or(card.name),
            licence: options.licence.clone().or(card.licence),
            provenance: options.provenance.clone().or(card.provenance),
            intended_use: options.intended_use.clone().or(card.intended_use),
            mpp: options.mpp.or(card.mpp),
            step: card.step,
            placement: card.placement,
            window: card.window,
            crop_to_nonzero: card.crop_to_nonzero,
            channels: card.channels,
            folds: card.folds,
            tile: card.tile,
            mirror_axes: card.mirror_axes,
            output: card.output,
            weights: Weights { sha256, kernels: weights },
            architecture: model.architecture().clone(),
            normalization: card.normalization,
            training: card.training,
            classes: card.classes.into_iter().map(|class| change(class, &options.classes)).collect(),
            postprocessing: card.postprocessing,
            test: test.map(|t| Test { computed_by: t.computed_by.clone(), method: t.method.clone() }),
            precision: Recommendation {
                recommended: options.recommended.or(recommended),
                measured: options.measured.clone().or(measured),
            },
        }
    }

    pub(super) fn to_text(&self) -> String {
        toml::to_string(self).expect("plain data whose keys are texts")
    }

    /// The card, without what follows from the weights, and the network.
    pub(super) fn card(&self) -> (Card, Architecture) {
        let manifest = self.clone();
        let card = Card {
            name: manifest.name,
            architecture: String::new(),
            tile: manifest.tile,
            channels: manifest.channels,
            classes: manifest.classes,
            output: manifest.output,
            mirror_axes: manifest.mirror_axes,
            normalization: manifest.normalization,
            training: manifest.training,
            mpp: manifest.mpp,
            step: manifest.step,
            placement: manifest.placement,
            window: manifest.window,
            postprocessing: manifest.postprocessing,
            crop_to_nonzero: manifest.crop_to_nonzero,
            folds: manifest.folds,
            parameters: 0,
            sha256: String::new(),
            licence: manifest.licence,
            provenance: manifest.provenance,
            intended_use: manifest.intended_use,
            test_vector: manifest.test.map(|t| t.computed_by),
            precision: PrecisionNote {
                weights: manifest.weights.kernels,
                recommended: manifest.precision.recommended,
                measured: manifest.precision.measured,
            },
        };
        (card, manifest.architecture)
    }
}
