//! `Unet` of segmentation-models-pytorch with a ResNet of torchvision as its encoder.
//!
//! Structure and weight names: segmentation-models-pytorch 0.6.0, `decoders/unet/{model,decoder}.py`, `base/{modules,heads}.py` and
//! `encoders/resnet.py`, on torchvision's `models/resnet.py`. State dicts of its versions from 0.1 on have the same names.

use microtome_io::Size;
use serde::{Deserialize, Serialize};

use super::layers::{Convolution, MAX_STAGES, check_channels};
use super::{Activation, Constructor, Family, Norm};
use crate::Result;
use crate::arguments::{Object, as_count};
use crate::network::{Extent, Factor, Interpolation, Network, Operation, Padding, Source};

/// Parameters of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmpUnet {
    /// Input channels.
    pub channels: usize,
    /// Logit planes.
    pub heads: usize,
    /// What the input is encoded by.
    pub encoder: Resnet,
    /// Channels of the decoder's blocks, from the coarsest: 3 to 5 blocks, as many as times that the encoder halves its input.
    pub decoder: Vec<usize>,
    /// After each convolution of the decoder, which has a bias if there is none; the encoder has batch norm.
    pub norm: Norm,
    /// How each block of the decoder doubles what it reads.
    pub enlargement: Enlargement,
}

/// The residual networks of He et al. (2016) as torchvision builds them: a bottleneck strides in its 3x3 convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resnet {
    /// Blocks of two 3x3 convolutions: 2, 2, 2, 2.
    Resnet18,
    /// Blocks of two 3x3 convolutions: 3, 4, 6, 3.
    Resnet34,
    /// Bottlenecks: 3, 4, 6, 3.
    Resnet50,
}

/// How the decoder doubles width and height.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enlargement {
    /// Every pixel four times.
    Nearest,
    /// Weighted means of neighbours; pixels are areas.
    Bilinear,
}

const BATCH_NORM: Norm = Norm::Batch { epsilon: 1e-5, affine: true };
const RELU: Activation = Activation::LeakyRelu { slope: 0.0 };
/// Channels of the first convolution, and of the first layer before a bottleneck widens them.
const WIDTH: usize = 64;

/// The same extent along both axes.
const fn square(extent: usize) -> Extent {
    Extent { height: extent, width: extent }
}

impl Resnet {
    const ALL: [Self; 3] = [Self::Resnet18, Self::Resnet34, Self::Resnet50];

    const fn name(self) -> &'static str {
        match self {
            Self::Resnet18 => "resnet18",
            Self::Resnet34 => "resnet34",
            Self::Resnet50 => "resnet50",
        }
    }

    /// Residual blocks of each layer.
    const fn blocks(self) -> [usize; 4] {
        match self {
            Self::Resnet18 => [2, 2, 2, 2],
            Self::Resnet34 | Self::Resnet50 => [3, 4, 6, 3],
        }
    }

    /// How many times wider a block's output is than its 3x3 convolution.
    const fn expansion(self) -> usize {
        match self {
            Self::Resnet18 | Self::Resnet34 => 1,
            Self::Resnet50 => 4,
        }
    }

    /// Appends the encoder, which halves its input `depth` times; returns each half with its channels, the finest first.
    fn encode(self, network: &mut Network, channels: usize, depth: usize) -> Vec<(Source, usize)> {
        let stem = Convolution { input: channels, output: WIDTH, kernel: square(7), stride: square(2), bias: false };
        let at = normalized(network, ("encoder.conv1", "encoder.bn1"), stem, Source::Input);
        let mut at = network.activate("", RELU, WIDTH, at);
        let mut input = WIDTH;
        let mut halves = vec![(at, input)];
        let padding = Padding { height: 1, width: 1 };
        let pool = Operation::MaxPool { kernel: square(3), stride: square(2), padding };
        for (layer, blocks) in self.blocks().into_iter().enumerate().take(depth - 1) {
            if layer == 0 {
                at = network.push(pool.clone(), &[at]);
            }
            for block in 0..blocks {
                let stride = if layer > 0 && block == 0 { square(2) } else { Extent::ONE };
                let name = format!("encoder.layer{}.{block}", layer + 1);
                at = self.block(network, &name, (input, WIDTH << layer), stride, at);
                input = (WIDTH << layer) * self.expansion();
            }
            halves.push((at, input));
        }
        halves
    }

    /// `BasicBlock` or `Bottleneck`: convolutions, added to a shortcut that projects where the shape changes.
    fn block(
        self,
        network: &mut Network,
        name: &str,
        (input, planes): (usize, usize),
        stride: Extent,
        at: Source,
    ) -> Source {
        let output = planes * self.expansion();
        let convolution = |input, output, kernel, stride| Convolution { input, output, kernel, stride, bias: false };
        let chain = match self {
            Self::Resnet18 | Self::Resnet34 => {
                vec![convolution(input, planes, square(3), stride), convolution(planes, planes, square(3), Extent::ONE)]
            }
            Self::Resnet50 => vec![
                convolution(input, planes, Extent::ONE, Extent::ONE),
                convolution(planes, planes, square(3), stride),
                convolution(planes, output, Extent::ONE, Extent::ONE),
            ],
        };
        let mut last = at;
        for (i, convolution) in chain.into_iter().enumerate() {
            if i > 0 {
                last = network.activate("", RELU, planes, last);
            }
            let (conv, norm) = (format!("{name}.conv{}", i + 1), format!("{name}.bn{}", i + 1));
            last = normalized(network, (&conv, &norm), convolution, last);
        }
        let mut shortcut = at;
        if stride != Extent::ONE || input != output {
            let names = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
            let projection = convolution(input, output, Extent::ONE, stride);
            shortcut = normalized(network, (&names.0, &names.1), projection, at);
        }
        let sum = network.push(Operation::Add, &[last, shortcut]);
        network.activate("", RELU, output, sum)
    }
}

/// A convolution and the batch norm behind it.
fn normalized(network: &mut Network, names: (&str, &str), convolution: Convolution, at: Source) -> Source {
    let at = network.convolve(names.0, convolution, at);
    network.normalize(names.1, BATCH_NORM, convolution.output, at)
}

impl SmpUnet {
    /// `Conv2dReLU` of three by three pixels.
    fn convolve(&self, network: &mut Network, name: &str, (input, output): (usize, usize), at: Source) -> Source {
        let bias = self.norm == Norm::None;
        let convolution = Convolution { input, output, kernel: square(3), stride: Extent::ONE, bias };
        let at = network.convolve(&format!("{name}.0"), convolution, at);
        let at = network.normalize(&format!("{name}.1"), self.norm, output, at);
        network.activate("", RELU, output, at)
    }
}

impl Family for SmpUnet {
    fn channels(&self) -> usize {
        self.channels
    }

    fn heads(&self) -> usize {
        self.heads
    }

    fn multiple(&self) -> Size {
        let halvings = 1 << self.decoder.len().min(MAX_STAGES);
        Size::new(halvings, halvings)
    }

    fn check(&self) -> Result<(), String> {
        let blocks = self.decoder.len();
        if !(3..=5).contains(&blocks) {
            return Err(format!("{blocks} blocks in its decoder; 3 to 5 are supported"));
        }
        check_channels(&self.decoder)
    }

    fn network(&self) -> Network {
        let mut network = Network::new(self.channels);
        let mut halves = self.encoder.encode(&mut network, self.channels, self.decoder.len());
        let (mut at, mut input) = halves.pop().unwrap_or((Source::Input, self.channels));
        let factor = Factor { height: 2.0, width: 2.0 };
        let interpolation = match self.enlargement {
            Enlargement::Nearest => Interpolation::Nearest,
            Enlargement::Bilinear => Interpolation::Bilinear,
        };
        for (b, &features) in self.decoder.iter().enumerate() {
            at = network.push(Operation::Resize { factor, interpolation }, &[at]);
            if let Some((skip, channels)) = halves.pop() {
                at = network.push(Operation::Concatenate, &[at, skip]);
                input += channels;
            }
            for (name, input) in [("conv1", input), ("conv2", features)] {
                at = self.convolve(&mut network, &format!("decoder.blocks.{b}.{name}"), (input, features), at);
            }
            input = features;
        }
        let stride = Extent::ONE;
        let head = Convolution { input, output: self.heads, kernel: square(3), stride, bias: true };
        network.convolve("segmentation_head.0", head, at);
        network
    }

    /// The classification head, and layers of the encoder that a smaller `encoder_depth` leaves out but does not delete.
    fn is_unused(&self, name: &str) -> bool {
        let beyond = |layer: usize| name.starts_with(&format!("encoder.layer{layer}."));
        name.starts_with("classification_head.") || (self.decoder.len()..=4).any(beyond)
    }
}

impl std::fmt::Display for SmpUnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let decoder: Vec<String> = self.decoder.iter().map(ToString::to_string).collect();
        write!(f, "Unet 2D, {} and a decoder of {} features, {}", self.encoder.name(), decoder.join(", "), self.norm)
    }
}

impl Constructor for SmpUnet {
    const FRAMEWORK: &'static str = "segmentation-models-pytorch";
    const NAME: &'static str = "Unet";

    fn construct(arguments: &Object<'_>) -> Result<Self> {
        arguments.only(&[
            "encoder_name",
            "encoder_depth",
            "encoder_weights",
            "decoder_use_norm",
            "decoder_use_batchnorm",
            "decoder_channels",
            "decoder_attention_type",
            "decoder_interpolation",
            "in_channels",
            "classes",
            "activation",
            "aux_params",
            "output_stride",
            "_model_class",
        ])?;
        let count = |key: &str, default: usize| arguments.get(key).map_or(Ok(default), |_| arguments.count(key));
        // `encoder_weights` says what training started from and `aux_params` makes a head of its own: neither matters here.
        for (key, only) in [("decoder_attention_type", None), ("_model_class", Some(Self::NAME))] {
            if let Some(value) = arguments.text(key)?.filter(|v| Some(*v) != only) {
                let message = format!("is {value}; only {} is supported", only.unwrap_or("null"));
                return Err(arguments.unsupported(key, &message));
            }
        }
        if count("output_stride", 32)? != 32 {
            return Err(arguments.unsupported("output_stride", "asks for dilated convolutions; only 32 is supported"));
        }
        let name = arguments.text("encoder_name")?.unwrap_or("resnet34");
        let Some(encoder) = Resnet::ALL.into_iter().find(|e| e.name() == name) else {
            let known = Resnet::ALL.map(Resnet::name).join(", ");
            return Err(arguments.unsupported("encoder_name", &format!("is {name}; there are {known}")));
        };
        let depth = count("encoder_depth", 5)?;
        if !(3..=5).contains(&depth) {
            return Err(arguments.unsupported("encoder_depth", &format!("is {depth}; 3 to 5 are supported")));
        }
        let decoder = if arguments.get("decoder_channels").is_some() {
            let channels = arguments.list("decoder_channels")?.iter().map(as_count).collect::<Option<Vec<_>>>();
            channels.ok_or_else(|| arguments.wrong("decoder_channels", "must be a list of counts"))?
        } else {
            vec![256, 128, 64, 32, 16]
        };
        if decoder.len() != depth {
            let message = format!("has {} entries; encoder_depth is {depth}", decoder.len());
            return Err(arguments.wrong("decoder_channels", &message));
        }
        // At exactly twice the size, `area` and `nearest-exact` are `nearest`.
        let enlargement = match arguments.text("decoder_interpolation")?.unwrap_or("nearest") {
            "nearest" | "nearest-exact" | "area" => Enlargement::Nearest,
            "bilinear" => Enlargement::Bilinear,
            other => {
                let message = format!("is {other}; nearest, nearest-exact, area and bilinear are supported");
                return Err(arguments.unsupported("decoder_interpolation", &message));
            }
        };
        let heads = count("classes", 1)?;
        check_activation(arguments, heads)?;
        Ok(Self {
            channels: count("in_channels", 3)?,
            heads,
            encoder,
            decoder,
            norm: decoder_norm(arguments)?,
            enlargement,
        })
    }
}

/// The mask is made from logits, so an activation behind them is left out; it must be one that changes no pixel of the mask.
///
/// None of these changes which of several logits is the largest, and a sigmoid is above one half where its logit is above 0.
fn check_activation(arguments: &Object<'_>, heads: usize) -> Result<()> {
    match arguments.text("activation")? {
        Some(name @ ("softmax" | "softmax2d" | "logsoftmax")) if heads == 1 => {
            let message = format!("is {name} of a single class, which is the same everywhere");
            Err(arguments.unsupported("activation", &message))
        }
        None | Some("identity" | "sigmoid" | "softmax" | "softmax2d" | "logsoftmax") => Ok(()),
        Some(other) => {
            let message =
                format!("is {other}; null, identity, sigmoid, softmax, softmax2d and logsoftmax are supported");
            Err(arguments.unsupported("activation", &message))
        }
    }
}

/// `decoder_use_norm`, or what it was called before 0.5: `decoder_use_batchnorm`, which still wins where it is given.
fn decoder_norm(arguments: &Object<'_>) -> Result<Norm> {
    const SUPPORTED: &str = "true, false, batchnorm, identity and instancenorm with affine are supported";
    let key =
        if arguments.get("decoder_use_batchnorm").is_some() { "decoder_use_batchnorm" } else { "decoder_use_norm" };
    let (kind, table) = match arguments.get(key) {
        None | Some(serde_json::Value::Bool(true)) => ("batchnorm".to_owned(), None),
        Some(serde_json::Value::Bool(false)) => ("identity".to_owned(), None),
        Some(serde_json::Value::String(name)) => (name.to_lowercase(), None),
        Some(_) => {
            let table = arguments.child(key)?;
            (table.text("type")?.unwrap_or_default().to_owned(), Some(table))
        }
    };
    let (mut epsilon, mut affine) = (1e-5, kind != "instancenorm");
    if let Some(table) = &table {
        // Momentum matters in training only.
        table.only(&["type", "eps", "affine", "momentum", "track_running_stats"])?;
        epsilon = table.number("eps")?.unwrap_or(epsilon);
        affine = table.flag("affine")?.unwrap_or(affine);
        let tracks = kind == "batchnorm";
        if table.flag("track_running_stats")?.unwrap_or(tracks) != tracks {
            let message = format!("is {}, which is not supported for {kind}", !tracks);
            return Err(table.unsupported("track_running_stats", &message));
        }
    }
    match kind.as_str() {
        "batchnorm" => Ok(Norm::Batch { epsilon, affine }),
        "identity" => Ok(Norm::None),
        // The framework itself fails to build one without.
        "instancenorm" if affine => Ok(Norm::Instance { epsilon, affine }),
        other => Err(arguments.unsupported(key, &format!("is {other}; {SUPPORTED}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::Architecture;
    use crate::architecture::{Axes, construct};

    fn unet(arguments: &Value) -> Result<Architecture> {
        let map = arguments.as_object().unwrap();
        let arguments = Object { path: Path::new("recipe.json"), place: "arguments".into(), map };
        construct("segmentation-models-pytorch", "Unet", &arguments, Axes::YX)
    }

    #[test]
    fn missing_arguments_have_the_frameworks_defaults() {
        let expected = SmpUnet {
            channels: 3,
            heads: 1,
            encoder: Resnet::Resnet34,
            decoder: vec![256, 128, 64, 32, 16],
            norm: BATCH_NORM,
            enlargement: Enlargement::Nearest,
        };
        let found = unet(&json!({})).unwrap();
        assert_eq!(found, Architecture::SmpUnet(expected));
        assert_eq!(found.to_string(), "Unet 2D, resnet34 and a decoder of 256, 128, 64, 32, 16 features, batch norm");
        // The `config.json` that `save_pretrained` writes.
        let saved = json!({
            "_model_class": "Unet", "activation": null, "aux_params": { "classes": 2 }, "classes": 1,
            "decoder_attention_type": null, "decoder_channels": [256, 128, 64, 32, 16], "decoder_interpolation": "nearest",
            "decoder_use_norm": "batchnorm", "encoder_depth": 5, "encoder_name": "resnet34", "encoder_weights": "imagenet",
            "in_channels": 3
        });
        assert_eq!(unet(&saved).unwrap(), found);
    }

    /// Parameters as PyTorch counts them: `sum(p.numel() for p in smp.Unet(...).parameters())`, and the running statistics.
    #[test]
    fn parameters_are_as_many_as_the_frameworks() {
        for (name, parameters, statistics) in
            [("resnet18", 14_328_209, 11_584), ("resnet34", 24_436_369, 19_008), ("resnet50", 32_521_105, 55_104)]
        {
            let network = unet(&json!({ "encoder_name": name })).unwrap().network();
            assert_eq!(network.parameters(), parameters + statistics, "{name}");
        }
    }

    #[test]
    fn a_smaller_depth_leaves_layers_out_and_a_head_for_whole_pictures_plays_no_part() {
        let names = ["encoder.layer2.0.conv1.weight", "encoder.layer3.0.conv1.weight", "encoder.layer4.1.bn1.bias"];
        let unused = |architecture: &Architecture| names.map(|name| architecture.is_unused(name));
        let shallow = unet(&json!({ "encoder_depth": 3, "decoder_channels": [64, 32, 16] })).unwrap();
        assert_eq!(unused(&shallow), [false, true, true]);
        assert_eq!(unused(&unet(&json!({})).unwrap()), [false; 3]);
        assert!(shallow.is_unused("classification_head.3.weight"));
        assert_eq!(shallow.check(Size::new(40, 24)), Ok(()));
        let message = shallow.check(Size::new(36, 24)).unwrap_err();
        assert_eq!(message, "a tile of 36 x 24; with these strides it must be a multiple of 8 x 8");
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        let message = |arguments: &Value| unet(arguments).unwrap_err().to_string();
        let refused = |arguments: Value, expected: &str| {
            assert_eq!(message(&arguments), format!("recipe.json: arguments.{expected}"));
        };
        let encoders = "there are resnet18, resnet34, resnet50";
        refused(json!({ "encoder_name": "efficientnet-b0" }), &format!("encoder_name is efficientnet-b0; {encoders}"));
        refused(json!({ "encoder_depth": 2 }), "encoder_depth is 2; 3 to 5 are supported");
        refused(json!({ "encoder_depth": 4 }), "decoder_channels has 5 entries; encoder_depth is 4");
        refused(json!({ "decoder_channels": 16 }), "decoder_channels is no list");
        refused(json!({ "decoder_channels": [64, "32"] }), "decoder_channels must be a list of counts");
        refused(json!({ "decoder_attention_type": "scse" }), "decoder_attention_type is scse; only null is supported");
        refused(json!({ "_model_class": "FPN" }), "_model_class is FPN; only Unet is supported");
        refused(json!({ "output_stride": 16 }), "output_stride asks for dilated convolutions; only 32 is supported");
        refused(
            json!({ "decoder_interpolation": "bicubic" }),
            "decoder_interpolation is bicubic; nearest, nearest-exact, area and bilinear are supported",
        );
        let activations = "null, identity, sigmoid, softmax, softmax2d and logsoftmax are supported";
        refused(json!({ "activation": "tanh" }), &format!("activation is tanh; {activations}"));
        refused(
            json!({ "activation": "softmax" }),
            "activation is softmax of a single class, which is the same everywhere",
        );
        let norms = "true, false, batchnorm, identity and instancenorm with affine are supported";
        refused(json!({ "decoder_use_batchnorm": "inplace" }), &format!("decoder_use_batchnorm is inplace; {norms}"));
        refused(json!({ "decoder_use_norm": "instancenorm" }), &format!("decoder_use_norm is instancenorm; {norms}"));
        refused(
            json!({ "decoder_use_norm": { "type": "batchnorm", "track_running_stats": false } }),
            "decoder_use_norm.track_running_stats is false, which is not supported for batchnorm",
        );
        refused(json!({ "decoder_use_norm": 3 }), "decoder_use_norm is no object");
        assert!(
            message(&json!({ "classses": 3 })).starts_with("recipe.json: arguments.classses is unknown; there are ")
        );
        // Counts beyond all reason end before a layer is made.
        let wide = unet(&json!({ "encoder_depth": 3, "decoder_channels": [1e12, 4, 4] })).unwrap();
        assert_eq!(
            wide.check(Size::new(64, 64)).unwrap_err(),
            "1000000000000 channels in a layer; 1 to 16384 are supported"
        );
    }

    #[test]
    fn both_spellings_of_the_norm_are_read() {
        let norm = |arguments: Value| match unet(&arguments).unwrap() {
            Architecture::SmpUnet(parameters) => parameters.norm,
            other => panic!("{other}"),
        };
        assert_eq!(norm(json!({ "decoder_use_batchnorm": false })), Norm::None);
        assert_eq!(norm(json!({ "decoder_use_norm": "identity", "decoder_use_batchnorm": true })), BATCH_NORM);
        let instance = Norm::Instance { epsilon: 1e-3, affine: true };
        let table = json!({ "type": "instancenorm", "affine": true, "eps": 1e-3 });
        assert_eq!(norm(json!({ "decoder_use_norm": table })), instance);
    }

    #[test]
    fn other_classes_are_refused_with_those_that_there_are() {
        let map = serde_json::Map::new();
        let arguments = Object { path: Path::new("recipe.json"), place: "arguments".into(), map: &map };
        let message =
            construct("segmentation-models-pytorch", "UnetPlusPlus", &arguments, Axes::YX).unwrap_err().to_string();
        assert!(
            message.contains("the network UnetPlusPlus of segmentation-models-pytorch is not supported; there are ")
        );
        assert!(message.contains("Unet (segmentation-models-pytorch)"));
    }
}
