//! `plans.json`: what a configuration's network and preprocessing are.

use std::path::{Path, PathBuf};

use microtome_io::Size;
use serde_json::{Map, Value};

use super::network;
use crate::architecture::Norm;
use crate::arguments::{Object, as_count, read_object};
use crate::{Architecture, ChannelStatistics, Error, Normalization, Result};

/// The readers of pictures that nnU-Net has; it looks for any other one among its own files. Of slides ours gives the same samples.
const READERS: [&str; 6] =
    ["NaturalImage2DIO", "SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient", "Tiff3DIO"];

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plans {
    path: PathBuf,
    map: Map<String, Value>,
}

/// One configuration, such as `2d`, as far as inference needs it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Configuration {
    pub(super) tile: Size,
    pub(super) normalization: Vec<Normalization>,
    /// The training set's foreground, if the plans tell of all channels.
    pub(super) training: Option<Vec<ChannelStatistics>>,
    pub(super) network: Architecture,
}

/// What the data set decides of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    /// Input channels.
    pub(super) channels: usize,
    /// Logit planes.
    pub(super) heads: usize,
}

impl Plans {
    pub(super) fn read(path: &Path) -> Result<Self> {
        Ok(Self { path: path.into(), map: read_object(path)? })
    }

    fn file(&self) -> Object<'_> {
        Object::file(&self.path, &self.map)
    }

    /// nnU-Net's name of the data set, if the plans have it.
    pub(super) fn dataset_name(&self) -> Result<Option<&str>> {
        self.file().text("dataset_name")
    }

    /// The configuration with this name, for the data set's channels and logit planes. A normalisation given replaces that of the plans.
    pub(super) fn configuration(&self, name: &str, counts: Counts, norm: Option<Norm>) -> Result<Configuration> {
        let Counts { channels, .. } = counts;
        let map = self.resolve(name)?;
        let configuration = &Object { path: &self.path, place: format!("configurations.{name}"), map: &map };
        // First of all, so that a volumetric model is called one whatever else it asks for.
        let tile = self.tile(configuration, name)?;
        self.check_globals()?;
        check_preprocessing(configuration)?;
        let normalization = normalization(&self.file(), configuration, channels)?;
        let network = network::read(configuration, counts, norm)?;
        let training = (0..channels).map(|channel| training(&self.file(), channel)).collect();
        Ok(Configuration { tile, normalization, training, network })
    }

    /// `patch_size`, of two dimensions.
    fn tile(&self, configuration: &Object<'_>, name: &str) -> Result<Size> {
        let patch = configuration.list("patch_size")?;
        let extents: Option<Vec<usize>> = patch.iter().map(as_count).collect();
        match extents.as_deref() {
            Some([height, width]) => Ok(Size::new(*width as u64, *height as u64)),
            Some([_, _, _]) => {
                let kind = if configuration.get("previous_stage").is_some() {
                    "the second stage of a cascade"
                } else {
                    "a network"
                };
                let times = |key: &str| {
                    let list = configuration.list(key).unwrap_or_default();
                    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ")
                };
                let (patch, spacing) = (times("patch_size"), times("spacing"));
                let spacing = if spacing.is_empty() { String::new() } else { format!(" of {spacing} mm") };
                let all = self.file().child("configurations")?;
                let is_flat = |name: &&String| {
                    let map = self.resolve(name).ok();
                    map.and_then(|m| Some(m.get("patch_size")?.as_array()?.len() == 2)).unwrap_or(false)
                };
                let flat: Vec<&str> = all.map.keys().filter(is_flat).take(4).map(String::as_str).collect();
                let flat = match flat[..] {
                    [] => "2d".into(),
                    _ => format!("such as this data set's {}", flat.join(", ")),
                };
                Err(Error::unsupported(
                    configuration.path,
                    format!(
                        "the configuration {name} is {kind} for volumes, with patches of {patch} voxels{spacing}; \
                         two-dimensional configurations ({flat}) are supported"
                    ),
                ))
            }
            _ => Err(configuration.wrong("patch_size", "is no pair of counts")),
        }
    }

    /// Settings for all configurations that would change the result.
    fn check_globals(&self) -> Result<()> {
        let file = self.file();
        if let Some(manager) = file.text("label_manager")?.filter(|m| *m != "LabelManager") {
            return Err(file.unsupported("label_manager", &format!("{manager} is not supported; LabelManager is")));
        }
        if let Some(reader) = file.text("image_reader_writer")?.filter(|r| !READERS.contains(r)) {
            let message = format!("{reader} is not supported: it is none of nnU-Net's own, and may change pictures");
            return Err(file.unsupported("image_reader_writer", &message));
        }
        if file.get("transpose_forward").is_some() {
            let order = file.list("transpose_forward")?;
            if order.iter().enumerate().any(|(i, v)| as_count(v) != Some(i)) {
                let order: Vec<String> = order.iter().map(ToString::to_string).collect();
                let message = format!("[{}] is not supported; axes must stay in order", order.join(", "));
                return Err(file.unsupported("transpose_forward", &message));
            }
        }
        Ok(())
    }

    /// A configuration with everything that it inherits: a child's keys replace its parent's, whole.
    fn resolve(&self, name: &str) -> Result<Map<String, Value>> {
        let all = self.file().child("configurations")?;
        let mut chain: Vec<&str> = Vec::new();
        let mut next = Some(name);
        while let Some(name) = next {
            if chain.contains(&name) {
                let message = format!("inherits from itself: {} -> {name}", chain.join(" -> "));
                return Err(all.wrong(chain[0], &message));
            }
            chain.push(name);
            if all.get(name).is_none() {
                let known: Vec<&str> = all.map.keys().map(String::as_str).collect();
                return Err(all.wrong(name, &format!("is missing; there are {}", known.join(", "))));
            }
            next = all.child(name)?.text("inherits_from")?;
        }
        let mut resolved = Map::new();
        for name in chain.into_iter().rev() {
            let keys = all.object(name)?.iter().filter(|(key, _)| *key != "inherits_from");
            resolved.extend(keys.map(|(key, value)| (key.clone(), value.clone())));
        }
        Ok(resolved)
    }
}

/// Steps before and after the network that would change the result.
fn check_preprocessing(configuration: &Object<'_>) -> Result<()> {
    if let Some(name) = configuration.text("preprocessor_name")?.filter(|n| *n != "DefaultPreprocessor") {
        return Err(
            configuration.unsupported("preprocessor_name", &format!("{name} is not supported; DefaultPreprocessor is"))
        );
    }
    if let Some(stage) = configuration.get("previous_stage") {
        let message = format!("{stage} makes this a cascade, which is not supported");
        return Err(configuration.unsupported("previous_stage", &message));
    }
    if configuration.get("spacing").is_some() {
        let spacing: Option<Vec<f64>> = configuration.list("spacing")?.iter().map(Value::as_f64).collect();
        match spacing.as_deref() {
            // Less than a thousandth is rounding.
            Some([.., y, x]) if (y - x).abs() <= 1e-3 * y.max(*x) => {}
            Some([.., y, x]) => {
                let message =
                    format!("is {y} x {x}, to which nnU-Net would resample; only square pixels are supported");
                return Err(configuration.unsupported("spacing", &message));
            }
            _ => return Err(configuration.wrong("spacing", "is no list of two finite numbers or more")),
        }
    }
    for key in ["resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities"] {
        // None of them runs on pictures, whose spacing is always the plans'; one that is not nnU-Net's own might do more than resample.
        const KNOWN: [&str; 4] = [
            "resample_data_or_seg_to_shape",
            "resample_torch_fornnunet",
            "resample_torch_simple",
            "no_resampling_hack",
        ];
        if let Some(name) = configuration.text(key)?.filter(|n| !KNOWN.contains(n)) {
            return Err(configuration.unsupported(key, &format!("{name} is not supported; {} are", KNOWN.join(", "))));
        }
    }
    Ok(())
}

fn normalization(file: &Object<'_>, configuration: &Object<'_>, channels: usize) -> Result<Vec<Normalization>> {
    let schemes = configuration.list("normalization_schemes")?;
    if schemes.len() != channels {
        let message = format!("has {} entries, but dataset.json has {channels} channels", schemes.len());
        return Err(configuration.wrong("normalization_schemes", &message));
    }
    // As Python sees it: 1 is as good as true.
    let is_set = |v: &Value| !matches!(v, Value::Bool(false) | Value::Null) && v.as_f64() != Some(0.0);
    let masked = match configuration.get("use_mask_for_norm") {
        Some(Value::Object(map)) => map.values().any(is_set),
        Some(_) => configuration.list("use_mask_for_norm")?.iter().any(is_set),
        None => false,
    };
    if masked {
        return Err(configuration.unsupported("use_mask_for_norm", "is true, which is not supported"));
    }
    let scheme = |(channel, scheme): (usize, &Value)| match scheme.as_str() {
        Some("ZScoreNormalization") => Ok(Normalization::ZScore),
        Some("CTNormalization") => intensities(file, channel),
        Some("RescaleTo01Normalization") => Ok(Normalization::RescaleTo01),
        Some("RGBTo01Normalization") => Ok(Normalization::RgbTo01),
        Some("NoNormalization") => Ok(Normalization::None),
        _ => Err(configuration.unsupported("normalization_schemes", &format!("{scheme} is not supported"))),
    };
    schemes.iter().enumerate().map(scheme).collect()
}

/// The training set's foreground intensities of a channel, under today's name or that of nnU-Net 2.0.
fn properties<'a>(file: &Object<'a>, channel: usize) -> Result<Object<'a>> {
    const NAMES: [&str; 2] =
        ["foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality"];
    let key = NAMES.into_iter().find(|key| file.get(key).is_some()).unwrap_or(NAMES[0]);
    file.child(key)?.child(&channel.to_string())
}

/// What the plans tell of a channel's foreground. Only a caller's choice needs it, so that what is missing or wrong is no error here.
fn training(file: &Object<'_>, channel: usize) -> Option<ChannelStatistics> {
    let properties = properties(file, channel).ok()?;
    let number = |key: &str| properties.number(key).ok().flatten();
    let statistics =
        ChannelStatistics { mean: number("mean")?, std: number("std")?, min: number("min")?, max: number("max")? };
    statistics.is_possible().then_some(statistics)
}

/// The training set's foreground intensities of a channel, which CT normalisation uses.
fn intensities(file: &Object<'_>, channel: usize) -> Result<Normalization> {
    let properties = properties(file, channel)?;
    let number = |key: &str| properties.number(key)?.ok_or_else(|| properties.wrong(key, "is no finite number"));
    Ok(Normalization::Ct {
        lower: number("percentile_00_5")?,
        upper: number("percentile_99_5")?,
        mean: number("mean")?,
        std: number("std")?,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::architecture::Activation;

    /// Plans of a two-stage network in the form of nnU-Net 2.4 and later.
    pub(crate) fn plans() -> Value {
        json!({
            "dataset_name": "Dataset001_Test",
            "transpose_forward": [0, 1, 2],
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {
                "0": {"mean": 5.0, "std": 2.0, "percentile_00_5": 1.0, "percentile_99_5": 9.0, "median": null}
            },
            "configurations": {"2d": {
                "preprocessor_name": "DefaultPreprocessor",
                "patch_size": [8, 16],
                "normalization_schemes": ["ZScoreNormalization"],
                "use_mask_for_norm": [false],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "architecture": {
                    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                    "arch_kwargs": {
                        "n_stages": 2,
                        "features_per_stage": [4, 8],
                        "conv_op": "torch.nn.modules.conv.Conv2d",
                        "kernel_sizes": [[3, 3], [3, 3]],
                        "strides": [[1, 1], [2, 2]],
                        "n_conv_per_stage": [2, 2],
                        "n_conv_per_stage_decoder": [2],
                        "conv_bias": true,
                        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
                        "norm_op_kwargs": {"eps": 1e-5, "affine": true},
                        "dropout_op": null,
                        "dropout_op_kwargs": null,
                        "nonlin": "torch.nn.LeakyReLU",
                        "nonlin_kwargs": {"inplace": true}
                    }
                }
            }}
        })
    }

    /// The same in the flat form of nnU-Net 2.0 to 2.3.
    fn old_plans() -> Value {
        let mut plans = plans();
        let configuration = plans["configurations"]["2d"].as_object_mut().unwrap();
        configuration.remove("architecture");
        configuration.extend(
            json!({
                "UNet_class_name": "PlainConvUNet",
                "UNet_base_num_features": 4,
                "unet_max_num_features": 512,
                "n_conv_per_stage_encoder": [2, 2],
                "n_conv_per_stage_decoder": [2],
                "num_pool_per_axis": [1, 1],
                "pool_op_kernel_sizes": [[1, 1], [2, 2]],
                "conv_kernel_sizes": [[3, 3], [3, 3]]
            })
            .as_object()
            .unwrap()
            .clone(),
        );
        plans
    }

    fn parse(value: Value, name: &str) -> Result<Configuration> {
        let Value::Object(map) = value else { panic!("an object") };
        Plans { path: "plans.json".into(), map }.configuration(name, Counts { channels: 1, heads: 2 }, None)
    }

    #[test]
    fn old_and_new_form_describe_the_same_network() {
        let new = parse(plans(), "2d").unwrap();
        assert_eq!(new.tile, Size::new(16, 8), "patch_size is rows first");
        let Architecture::PlainConvUnet(network) = &new.network else { panic!("plain") };
        assert_eq!(network.features, [4, 8]);
        assert_eq!(new, parse(old_plans(), "2d").unwrap());
    }

    /// The same stages with residual blocks in the encoder, as the presets ResEnc M, L and XL write them.
    fn residual_plans() -> Value {
        let mut plans = plans();
        let architecture = &mut plans["configurations"]["2d"]["architecture"];
        architecture["network_class_name"] =
            json!("dynamic_network_architectures.architectures.unet.ResidualEncoderUNet");
        let keywords = architecture["arch_kwargs"].as_object_mut().unwrap();
        keywords.remove("n_conv_per_stage");
        keywords.insert("n_blocks_per_stage".into(), json!([1, 3]));
        plans
    }

    #[test]
    fn residual_encoders_are_read_in_both_forms() {
        let new = parse(residual_plans(), "2d").unwrap();
        let Architecture::ResidualEncoderUnet(network) = &new.network else { panic!("residual") };
        assert_eq!((network.stem, network.blocks.as_slice()), (4, [1, 3].as_slice()));
        let mut old = old_plans();
        old["configurations"]["2d"]["UNet_class_name"] = json!("ResidualEncoderUNet");
        old["configurations"]["2d"]["n_conv_per_stage_encoder"] = json!([1, 3]);
        assert_eq!(new, parse(old, "2d").unwrap());

        let keyword = |key: &str, value: Value| {
            let mut plans = residual_plans();
            plans["configurations"]["2d"]["architecture"]["arch_kwargs"][key] = value;
            parse(plans, "2d").map(|c| c.network).map_err(|e| e.to_string())
        };
        let Ok(Architecture::ResidualEncoderUnet(network)) = keyword("stem_channels", json!(7)) else { panic!("stem") };
        assert_eq!(network.stem, 7);
        assert_eq!(keyword("block", json!("a.b.BasicBlockD")), Ok(new.network));
        let prefix = "plans.json: configurations.2d.architecture.arch_kwargs.";
        assert_eq!(
            keyword("block", json!("a.b.Block")),
            Err(format!("{prefix}block Block is not supported; BasicBlockD and BottleneckD are"))
        );
        assert_eq!(keyword("block", json!("a.b.BottleneckD")), Err(format!("{prefix}bottleneck_channels is missing")));
        for key in ["nonlin_first", "n_conv_per_stage"] {
            assert_eq!(keyword(key, json!(false)), Err(format!("{prefix}{key} is not supported")), "a plain network's");
        }
    }

    #[test]
    fn bottlenecks_are_counted_for_all_for_stages_or_for_blocks() {
        let found = |channels: Value| {
            let mut plans = residual_plans();
            let architecture = &mut plans["configurations"]["2d"]["architecture"];
            architecture["network_class_name"] = json!("somewhere.else.ResidualUNet");
            architecture["arch_kwargs"]["block"] = json!("a.b.BottleneckD");
            architecture["arch_kwargs"]["bottleneck_channels"] = channels;
            match parse(plans, "2d").map(|c| c.network) {
                Ok(Architecture::ResidualUnet(network)) => Ok(network.0.bottlenecks.unwrap()),
                Ok(_) => panic!("residual"),
                Err(error) => Err(error.to_string()),
            }
        };
        assert_eq!(found(json!(2)), Ok(vec![vec![2], vec![2, 2, 2]]));
        assert_eq!(found(json!([2, 3])), Ok(vec![vec![2], vec![3, 3, 3]]));
        assert_eq!(found(json!([2, [3, 4, 5]])), Ok(vec![vec![2], vec![3, 4, 5]]));
        let prefix = "plans.json: configurations.2d.architecture.arch_kwargs.bottleneck_channels";
        assert_eq!(found(json!([2])), Err(format!("{prefix} has 1 entries; there must be 2")));
        assert_eq!(found(json!([2, ["x"]])), Err(format!("{prefix} holds what is no count")));
    }

    /// The features and blocks that nnU-Net's planners of the presets ResEnc M, L and XL give 2D networks, which differ in the tile and
    /// the number of stages.
    #[test]
    fn presets_of_residual_encoders_are_supported() {
        for (stages, tile) in [(7, [448, 576]), (8, [768, 1024]), (9, [1280, 1536])] {
            let mut plans = residual_plans();
            plans["configurations"]["2d"]["patch_size"] = json!(tile);
            let keywords = &mut plans["configurations"]["2d"]["architecture"]["arch_kwargs"];
            keywords["n_stages"] = json!(stages);
            keywords["features_per_stage"] = (0..stages).map(|s| (32 << s).min(512)).collect();
            keywords["kernel_sizes"] = json!(vec![[3, 3]; stages]);
            keywords["strides"] = (0..stages).map(|s| if s == 0 { json!([1, 1]) } else { json!([2, 2]) }).collect();
            keywords["n_blocks_per_stage"] = [1, 3, 4, 6, 6, 6, 6, 6, 6][..stages].into();
            keywords["n_conv_per_stage_decoder"] = json!(vec![1; stages - 1]);
            let configuration = parse(plans, "2d").unwrap();
            assert_eq!(configuration.network.check(configuration.tile), Ok(()), "{stages} stages");
        }
    }

    #[test]
    fn norms_and_activations_are_pytorchs() {
        let keywords = |new: Value| {
            let mut plans = plans();
            let keywords = plans["configurations"]["2d"]["architecture"]["arch_kwargs"].as_object_mut().unwrap();
            keywords.extend(new.as_object().unwrap().clone());
            match parse(plans, "2d").map(|c| c.network) {
                Ok(Architecture::PlainConvUnet(network)) => Ok((network.norm, network.activation)),
                Ok(_) => panic!("plain"),
                Err(error) => Err(error.to_string()),
            }
        };
        let norm = |class: &str, arguments: Value| {
            keywords(json!({"norm_op": format!("torch.nn.{class}"), "norm_op_kwargs": arguments})).map(|(norm, _)| norm)
        };
        let instance = |affine| Ok(Norm::Instance { epsilon: 1e-5, affine });
        let batch = |affine| Ok(Norm::Batch { epsilon: 1e-5, affine });
        assert_eq!(norm("InstanceNorm2d", json!({})), instance(false));
        assert_eq!(norm("InstanceNorm2d", json!({"affine": true, "momentum": 0.1})), instance(true));
        assert_eq!(norm("InstanceNorm2d", json!({"track_running_stats": true})), batch(false));
        assert_eq!(norm("BatchNorm2d", Value::Null), batch(true));
        assert_eq!(norm("BatchNorm2d", json!({"eps": 1e-3})), Ok(Norm::Batch { epsilon: 1e-3, affine: true }));
        assert_eq!(norm("BatchNorm2d", json!({"track_running_stats": false, "affine": false})), instance(false));
        let activation = |class: &str, arguments: Value| {
            keywords(json!({"nonlin": format!("torch.nn.{class}"), "nonlin_kwargs": arguments})).map(|(_, a)| a)
        };
        let slope = |slope| Ok(Activation::LeakyRelu { slope });
        assert_eq!(activation("LeakyReLU", Value::Null), slope(0.01));
        assert_eq!(activation("LeakyReLU", json!({"inplace": true, "negative_slope": 0.2})), slope(0.2));
        assert_eq!(activation("ReLU", json!({"inplace": true})), slope(0.0));
        assert_eq!(activation("SiLU", Value::Null), Ok(Activation::Silu));
        assert_eq!(activation("Mish", Value::Null), Ok(Activation::Mish));
        assert_eq!(activation("GELU", Value::Null), Ok(Activation::Gelu));
        assert_eq!(activation("GELU", json!({"approximate": "tanh"})), Ok(Activation::GeluTanh));
        assert_eq!(activation("PReLU", json!({"init": 0.1})), Ok(Activation::PRelu { per_channel: false }));
        assert_eq!(activation("PReLU", json!({"num_parameters": 4})), Ok(Activation::PRelu { per_channel: true }));
        // `None` is no number, but it is a momentum; what is not finite is read as a text.
        assert_eq!(norm("InstanceNorm2d", json!({"momentum": null})), instance(false));
        let number = "is no finite number";
        for wrong in [Value::Null, json!("nan")] {
            assert_eq!(
                norm("InstanceNorm2d", json!({ "eps": wrong })),
                Err(format!("plans.json: configurations.2d.architecture.arch_kwargs.norm_op_kwargs.eps {number}"))
            );
            assert_eq!(
                activation("LeakyReLU", json!({ "negative_slope": wrong })),
                Err(format!(
                    "plans.json: configurations.2d.architecture.arch_kwargs.nonlin_kwargs.negative_slope {number}"
                ))
            );
        }

        let prefix = "plans.json: configurations.2d.architecture.arch_kwargs.";
        assert_eq!(norm("BatchNorm2d", json!({"x": 1})), Err(format!("{prefix}norm_op_kwargs.x is not supported")));
        assert_eq!(
            activation("GELU", json!({"approximate": "x"})),
            Err(format!("{prefix}nonlin_kwargs.approximate x is not supported; none and tanh are"))
        );
        assert_eq!(
            activation("ReLU", json!({"negative_slope": 1})),
            Err(format!("{prefix}nonlin_kwargs.negative_slope is not supported"))
        );
    }

    #[test]
    fn one_number_stands_for_all_stages() {
        let mut value = plans();
        let keywords = &mut value["configurations"]["2d"]["architecture"]["arch_kwargs"];
        keywords["kernel_sizes"] = json!(3);
        keywords["n_conv_per_stage"] = json!(2);
        keywords["n_conv_per_stage_decoder"] = json!(2);
        assert_eq!(parse(value, "2d").unwrap(), parse(plans(), "2d").unwrap());
    }

    #[test]
    fn a_child_replaces_whole_keys_of_its_parent() {
        let mut value = plans();
        value["configurations"]["wide"] = json!({"inherits_from": "2d", "patch_size": [32, 32]});
        value["configurations"]["wider"] =
            json!({"inherits_from": "wide", "normalization_schemes": ["CTNormalization"]});
        let child = parse(value, "wider").unwrap();
        assert_eq!(child.tile, Size::new(32, 32));
        assert_eq!(child.normalization, [Normalization::Ct { lower: 1.0, upper: 9.0, mean: 5.0, std: 2.0 }]);
        assert_eq!(child.network, parse(plans(), "2d").unwrap().network);
    }

    #[test]
    fn inheritance_in_a_circle_is_an_error() {
        let mut value = plans();
        value["configurations"]["a"] = json!({"inherits_from": "b"});
        value["configurations"]["b"] = json!({"inherits_from": "a"});
        let error = parse(value, "a").unwrap_err().to_string();
        assert_eq!(error, "plans.json: configurations.a inherits from itself: a -> b -> a");
    }

    #[test]
    fn everything_that_cannot_be_honoured_is_refused_by_name() {
        let message = |path: &str, new: Value| {
            let mut value = plans();
            *value.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = new;
            parse(value, "2d").unwrap_err().to_string()
        };
        let two = "/configurations/2d";
        let keyword = |key: &str| format!("{two}/architecture/arch_kwargs/{key}");
        let cases = [
            ("/label_manager".into(), json!("Mine"), "label_manager Mine is not supported; LabelManager is"),
            (
                "/transpose_forward".into(),
                json!([0, 2, 1]),
                "transpose_forward [0, 2, 1] is not supported; axes must stay in order",
            ),
            (
                format!("{two}/preprocessor_name"),
                json!("P"),
                "configurations.2d.preprocessor_name P is not supported; DefaultPreprocessor is",
            ),
            (
                format!("{two}/patch_size"),
                json!([8, 8, 8]),
                "the configuration 2d is a network for volumes, with patches of 8 x 8 x 8 voxels; two-dimensional configurations (2d) are supported",
            ),
            (format!("{two}/patch_size"), json!("x"), "configurations.2d.patch_size is no list"),
            (
                format!("{two}/use_mask_for_norm"),
                json!([true]),
                "configurations.2d.use_mask_for_norm is true, which is not supported",
            ),
            (
                format!("{two}/use_mask_for_norm"),
                json!({"0": 1}),
                "configurations.2d.use_mask_for_norm is true, which is not supported",
            ),
            (
                format!("{two}/normalization_schemes"),
                json!(["Mine"]),
                "configurations.2d.normalization_schemes \"Mine\" is not supported",
            ),
            (
                format!("{two}/normalization_schemes"),
                json!([]),
                "configurations.2d.normalization_schemes has 0 entries, but dataset.json has 1 channels",
            ),
            (
                format!("{two}/resampling_fn_data"),
                json!("mine"),
                "configurations.2d.resampling_fn_data mine is not supported; resample_data_or_seg_to_shape, resample_torch_fornnunet, resample_torch_simple, no_resampling_hack are",
            ),
            (
                format!("{two}/architecture/network_class_name"),
                json!("a.b.Primus"),
                "configurations.2d.architecture.network_class_name Primus is not supported; PlainConvUNet, ResidualEncoderUNet and ResidualUNet are",
            ),
            (
                keyword("conv_op"),
                json!("torch.nn.Conv3d"),
                "configurations.2d.architecture.arch_kwargs.conv_op Conv3d is not supported; Conv2d is",
            ),
            (
                keyword("norm_op"),
                json!("torch.nn.LayerNorm"),
                "configurations.2d.architecture.arch_kwargs.norm_op LayerNorm is not supported; InstanceNorm2d and BatchNorm2d are",
            ),
            (
                keyword("nonlin"),
                json!("torch.nn.ELU"),
                "configurations.2d.architecture.arch_kwargs.nonlin ELU is not supported; LeakyReLU, ReLU, PReLU, SiLU, Mish and GELU are",
            ),
            (
                keyword("dropout_op"),
                json!("torch.nn.Noise"),
                "configurations.2d.architecture.arch_kwargs.dropout_op Noise is not supported; Dropout, Dropout1d, Dropout2d, Dropout3d, AlphaDropout, FeatureAlphaDropout are",
            ),
            (
                keyword("strides"),
                json!([[1, 1]]),
                "configurations.2d.architecture.arch_kwargs.strides has 1 entries; there must be 2",
            ),
            (
                keyword("kernel_sizes"),
                json!([[3, 3], "x"]),
                "configurations.2d.architecture.arch_kwargs.kernel_sizes does not hold one entry per stage",
            ),
        ];
        for (path, new, expected) in cases {
            assert_eq!(message(&path, new), format!("plans.json: {expected}"), "{path}");
        }

        let add = |place: &str, key: &str, new: Value| {
            let mut value = plans();
            value.pointer_mut(place).unwrap()[key] = new;
            parse(value, "2d").unwrap_err().to_string()
        };
        let keywords = "/configurations/2d/architecture/arch_kwargs";
        let prefix = "plans.json: configurations.2d.";
        assert_eq!(
            add(two, "previous_stage", json!("2d_low")),
            format!("{prefix}previous_stage \"2d_low\" makes this a cascade, which is not supported")
        );
        assert_eq!(
            add(two, "spacing", json!([1.0, 0.5])),
            format!("{prefix}spacing is 1 x 0.5, to which nnU-Net would resample; only square pixels are supported")
        );
        assert_eq!(
            add(two, "spacing", json!(["nan", 1])),
            format!("{prefix}spacing is no list of two finite numbers or more")
        );
        assert_eq!(
            add("", "image_reader_writer", json!("MyStainSeparatingReader")),
            "plans.json: image_reader_writer MyStainSeparatingReader is not supported: it is none of nnU-Net's own, and may change \
             pictures"
        );
        assert_eq!(
            add(keywords, "squeeze_excitation", json!(true)),
            format!("{prefix}architecture.arch_kwargs.squeeze_excitation is not supported")
        );
        assert_eq!(
            parse(plans(), "3d").unwrap_err().to_string(),
            "plans.json: configurations.3d is missing; there are 2d"
        );
    }

    #[test]
    fn square_pixels_and_readers_of_nnunets_own_are_accepted() {
        for spacing in [json!([1.0, 1.0]), json!([0.25, 0.250_01]), json!([999, 0.5, 0.5])] {
            for reader in ["NaturalImage2DIO", "SimpleITKIOWithReorient", "Tiff3DIO"] {
                let mut value = plans();
                value["image_reader_writer"] = json!(reader);
                value["configurations"]["2d"]["spacing"] = spacing.clone();
                assert_eq!(parse(value, "2d").unwrap(), parse(plans(), "2d").unwrap());
            }
        }
    }

    #[test]
    fn a_model_for_volumes_is_called_one() {
        let mut value = plans();
        // What else is wrong with it does not matter.
        value["transpose_forward"] = json!([2, 0, 1]);
        value["configurations"]["3d_fullres"] = json!({"patch_size": [64, 192, 160], "spacing": [2.5, 0.8, 0.8]});
        value["configurations"]["3d_cascade_fullres"] =
            json!({"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"});
        let rest = "for volumes, with patches of 64 x 192 x 160 voxels of 2.5 x 0.8 x 0.8 mm; two-dimensional configurations \
                    (such as this data set's 2d) are supported";
        let message = |name: &str| parse(value.clone(), name).unwrap_err().to_string();
        let fullres = format!("plans.json: the configuration 3d_fullres is a network {rest}");
        assert_eq!(message("3d_fullres"), fullres);
        let cascade =
            format!("plans.json: the configuration 3d_cascade_fullres is the second stage of a cascade {rest}");
        assert_eq!(message("3d_cascade_fullres"), cascade);
    }

    #[test]
    fn ct_normalisation_needs_finite_numbers() {
        let mut value = plans();
        value["configurations"]["2d"]["normalization_schemes"] = json!(["CTNormalization"]);
        value["foreground_intensity_properties_per_channel"]["0"]["std"] = Value::Null;
        let error = parse(value, "2d").unwrap_err().to_string();
        assert_eq!(error, "plans.json: foreground_intensity_properties_per_channel.0.std is no finite number");
    }

    #[test]
    fn a_huge_stage_count_makes_no_huge_list() {
        let mut value = plans();
        let keywords = &mut value["configurations"]["2d"]["architecture"]["arch_kwargs"];
        keywords["n_stages"] = json!(1e14);
        for key in ["features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage", "n_conv_per_stage_decoder"] {
            keywords[key] = json!(2);
        }
        let network = parse(value, "2d").unwrap().network;
        let Architecture::PlainConvUnet(network) = network else { panic!("plain") };
        assert_eq!(network.features.len(), 64, "which the architecture's own check refuses");
    }
}
