//! `PlainConvUNet` of dynamic-network-architectures, the default network of nnU-Net, in two dimensions.
//!
//! Structure and weight names: dynamic-network-architectures 0.4.4, `architectures/unet.py`,
//! `building_blocks/{plain_conv_encoder,unet_decoder,simple_conv_blocks}.py`.

use microtome_io::Size;
use serde::{Deserialize, Serialize};

use super::{Activation, Norm};
use crate::network::{Affine, Extent, Function, Network, Operation, Source};

/// Parameters of the network. Lists run from the finest stage to the coarsest, but for `decoder_convolutions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlainConvUnet {
    /// Input channels.
    pub channels: usize,
    /// Logit planes.
    pub heads: usize,
    /// Channels of each stage.
    pub features: Vec<usize>,
    /// Kernel of each stage's convolutions.
    pub kernels: Vec<Extent>,
    /// Stride of each stage's first convolution; the first stage has none.
    pub strides: Vec<Extent>,
    /// Convolutions of each stage of the encoder.
    pub convolutions: Vec<usize>,
    /// Convolutions of each stage of the decoder, from the coarsest to the finest.
    pub decoder_convolutions: Vec<usize>,
    /// Whether convolutions have a bias.
    pub bias: bool,
    /// After each convolution.
    pub norm: Norm,
    /// After each normalisation.
    pub activation: Activation,
}

/// Larger than any published configuration by far, small enough that no product of them overflows.
const MAX_STAGES: usize = 16;
const MAX_CHANNELS: usize = 1 << 14;
const MAX_CONVOLUTIONS: usize = 64;
const MAX_KERNEL: usize = 31;
const MAX_STRIDE: usize = 16;
const MAX_TILE: u64 = 1 << 14;
/// Weights of one fold, in values: 8 GiB as f32.
const MAX_PARAMETERS: u64 = 1 << 31;

impl PlainConvUnet {
    /// See [`Architecture::check`](super::Architecture::check).
    pub(super) fn check(&self, tile: Size) -> Result<(), String> {
        let stages = self.features.len();
        if !(1..=MAX_STAGES).contains(&stages) {
            return Err(format!("{stages} stages; 1 to {MAX_STAGES} are supported"));
        }
        let lists = [
            ("kernels", self.kernels.len(), stages),
            ("strides", self.strides.len(), stages),
            ("convolutions", self.convolutions.len(), stages),
            ("decoder_convolutions", self.decoder_convolutions.len(), stages - 1),
        ];
        if let Some((name, found, expected)) = lists.into_iter().find(|(_, found, expected)| found != expected) {
            return Err(format!("{found} {name} for {stages} stages; there must be {expected}"));
        }
        if stages < 2 {
            return Err("a single stage, which leaves no decoder".into());
        }
        let counts = self.features.iter().chain([&self.channels, &self.heads]);
        if let Some(count) = counts.into_iter().find(|c| !(1..=MAX_CHANNELS).contains(*c)) {
            return Err(format!("{count} channels in a layer; 1 to {MAX_CHANNELS} are supported"));
        }
        let blocks = self.convolutions.iter().chain(&self.decoder_convolutions);
        if let Some(count) = blocks.into_iter().find(|c| !(1..=MAX_CONVOLUTIONS).contains(*c)) {
            return Err(format!("{count} convolutions in a stage; 1 to {MAX_CONVOLUTIONS} are supported"));
        }
        let even = |k: &&Extent| [k.height, k.width].iter().any(|n| n % 2 == 0 || *n > MAX_KERNEL);
        if let Some(kernel) = self.kernels.iter().find(even) {
            return Err(format!("a {kernel} kernel; odd kernels up to {MAX_KERNEL} are supported"));
        }
        let wild = |s: &&Extent| [s.height, s.width].iter().any(|n| !(1..=MAX_STRIDE).contains(n));
        if let Some(stride) = self.strides.iter().find(wild) {
            return Err(format!("a stride of {stride}; 1 to {MAX_STRIDE} are supported"));
        }
        if self.strides[0] != Extent::ONE {
            return Err(format!("a stride of {} in the first stage; it must be 1x1", self.strides[0]));
        }
        let (Norm::Instance { epsilon, .. } | Norm::Batch { epsilon, .. }) = self.norm else {
            return self.check_size(tile);
        };
        if !(epsilon.is_finite() && epsilon > 0.0) {
            return Err(format!("a normalisation epsilon of {epsilon}; it must be positive"));
        }
        self.check_size(tile)
    }

    fn check_size(&self, tile: Size) -> Result<(), String> {
        if let Activation::LeakyRelu { slope } = self.activation
            && !slope.is_finite()
        {
            return Err(format!("an activation slope of {slope}"));
        }
        if tile.width.max(tile.height) > MAX_TILE {
            return Err(format!("a tile of {tile}; up to {MAX_TILE} pixels along an axis are supported"));
        }
        let product = |of: fn(&Extent) -> usize| self.strides.iter().map(|s| of(s) as u64).fold(1, u64::saturating_mul);
        let divisor = Size::new(product(|s| s.width), product(|s| s.height));
        if tile.is_empty() || !tile.width.is_multiple_of(divisor.width) || !tile.height.is_multiple_of(divisor.height) {
            return Err(format!("a tile of {tile}; with these strides it must be a multiple of {divisor}"));
        }
        let parameters = self.network().parameters();
        if parameters > MAX_PARAMETERS {
            return Err(format!("{parameters} parameters; up to {MAX_PARAMETERS} are supported"));
        }
        Ok(())
    }

    /// See [`Architecture::network`](super::Architecture::network).
    pub(super) fn network(&self) -> Network {
        let mut network = Network::new(self.channels);
        let mut skips = Vec::with_capacity(self.features.len());
        let mut at = Source::Input;
        let mut input = self.channels;
        for (s, &features) in self.features.iter().enumerate() {
            for j in 0..self.convolutions[s] {
                let stride = if j == 0 { self.strides[s] } else { Extent::ONE };
                let name = format!("encoder.stages.{s}.0.convs.{j}");
                at = self.block(&mut network, &name, (input, features), (self.kernels[s], stride), at);
                input = features;
            }
            skips.push((at, features));
        }
        skips.pop();
        for (d, &convolutions) in self.decoder_convolutions.iter().enumerate() {
            let finer = self.features.len() - 2 - d;
            let (skip, features) = skips[finer];
            let up = Operation::Upsampling {
                weight: format!("decoder.transpconvs.{d}.weight"),
                bias: self.bias.then(|| format!("decoder.transpconvs.{d}.bias")),
                input,
                output: features,
                stride: self.strides[finer + 1],
            };
            let up = network.push(up, &[at]);
            at = network.push(Operation::Concatenate, &[up, skip]);
            input = 2 * features;
            for j in 0..convolutions {
                let name = format!("decoder.stages.{d}.convs.{j}");
                at = self.block(&mut network, &name, (input, features), (self.kernels[finer], Extent::ONE), at);
                input = features;
            }
        }
        let head = format!("decoder.seg_layers.{}", self.decoder_convolutions.len() - 1);
        let head = Operation::Convolution {
            weight: format!("{head}.weight"),
            bias: Some(format!("{head}.bias")),
            input,
            output: self.heads,
            kernel: Extent::ONE,
            stride: Extent::ONE,
        };
        network.push(head, &[at]);
        network
    }

    /// `ConvDropoutNormReLU`: convolution, normalisation, nonlinearity (dropout is the identity at inference).
    fn block(
        &self,
        network: &mut Network,
        name: &str,
        (input, output): (usize, usize),
        (kernel, stride): (Extent, Extent),
        at: Source,
    ) -> Source {
        let convolution = Operation::Convolution {
            weight: format!("{name}.conv.weight"),
            bias: self.bias.then(|| format!("{name}.conv.bias")),
            input,
            output,
            kernel,
            stride,
        };
        let mut at = network.push(convolution, &[at]);
        let names = |affine: bool| {
            affine.then(|| Affine { weight: format!("{name}.norm.weight"), bias: format!("{name}.norm.bias") })
        };
        match self.norm {
            Norm::Instance { epsilon, affine } => {
                let norm = Operation::InstanceNorm { affine: names(affine), channels: output, epsilon };
                at = network.push(norm, &[at]);
            }
            Norm::Batch { epsilon, affine } => {
                let norm = Operation::BatchNorm {
                    mean: format!("{name}.norm.running_mean"),
                    variance: format!("{name}.norm.running_var"),
                    affine: names(affine),
                    channels: output,
                    epsilon,
                };
                at = network.push(norm, &[at]);
            }
            Norm::None => {}
        }
        match self.activation {
            Activation::LeakyRelu { slope } => {
                let function = Function::LeakyRelu { slope };
                network.push(Operation::Activation { function }, &[at])
            }
            Activation::None => at,
        }
    }
}

impl std::fmt::Display for PlainConvUnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let features: Vec<String> = self.features.iter().map(ToString::to_string).collect();
        let norm = match self.norm {
            Norm::Instance { .. } => "instance norm",
            Norm::Batch { .. } => "batch norm",
            Norm::None => "no normalisation",
        };
        write!(f, "PlainConvUNet 2D, {} stages of {} features, {norm}", self.features.len(), features.join(", "))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Three stages, one of them with a stride along y only.
    pub(crate) fn tiny() -> PlainConvUnet {
        PlainConvUnet {
            channels: 3,
            heads: 2,
            features: vec![4, 6, 8],
            kernels: vec![Extent { height: 3, width: 3 }; 3],
            strides: vec![Extent::ONE, Extent { height: 2, width: 2 }, Extent { height: 2, width: 1 }],
            convolutions: vec![2, 1, 2],
            decoder_convolutions: vec![1, 2],
            bias: true,
            norm: Norm::Instance { epsilon: 1e-5, affine: true },
            activation: Activation::LeakyRelu { slope: 0.01 },
        }
    }

    #[test]
    fn weights_are_named_as_nnunet_names_them() {
        let weights = tiny().network().weights();
        let find = |name: &str| weights.iter().find(|w| w.name == name).map(|w| w.shape.clone());
        assert_eq!(find("encoder.stages.1.0.convs.0.conv.weight"), Some(vec![6, 4, 3, 3]));
        assert_eq!(find("encoder.stages.2.0.convs.1.norm.bias"), Some(vec![8]));
        assert_eq!(find("decoder.transpconvs.0.weight"), Some(vec![8, 6, 2, 1]), "the coarsest comes first");
        assert_eq!(find("decoder.stages.1.convs.0.conv.weight"), Some(vec![4, 8, 3, 3]));
        assert_eq!(find("decoder.seg_layers.1.weight"), Some(vec![2, 4, 1, 1]));
        assert_eq!(find("decoder.seg_layers.0.weight"), None, "deep supervision plays no part at inference");
        let mut names: Vec<_> = weights.iter().map(|w| &w.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), weights.len());
    }

    #[test]
    fn the_logits_have_the_size_of_the_tile() {
        let tile = Size::new(16, 24);
        let shapes = tiny().network().shapes(tile);
        assert_eq!(shapes.last().map(|s| (s.channels, s.size)), Some((2, tile)));
    }

    #[test]
    fn impossible_parameters_are_refused_by_name() {
        let tile = Size::new(16, 16);
        assert_eq!(tiny().check(tile), Ok(()));
        let message = |change: fn(&mut PlainConvUnet)| {
            let mut parameters = tiny();
            change(&mut parameters);
            parameters.check(tile).unwrap_err()
        };
        assert_eq!(message(|p| p.features.clear()), "0 stages; 1 to 16 are supported");
        assert_eq!(message(|p| p.strides.truncate(2)), "2 strides for 3 stages; there must be 3");
        assert_eq!(message(|p| p.features[1] = 1 << 40), "1099511627776 channels in a layer; 1 to 16384 are supported");
        assert_eq!(message(|p| p.convolutions[0] = 0), "0 convolutions in a stage; 1 to 64 are supported");
        assert_eq!(message(|p| p.kernels[0].width = 4), "a 3x4 kernel; odd kernels up to 31 are supported");
        assert_eq!(message(|p| p.strides[1].width = 0), "a stride of 2x0; 1 to 16 are supported");
        assert_eq!(message(|p| p.strides[0].width = 2), "a stride of 1x2 in the first stage; it must be 1x1");
        assert_eq!(
            tiny().check(Size::new(17, 16)).unwrap_err(),
            "a tile of 17 x 16; with these strides it must be a multiple of 2 x 4"
        );
        assert_eq!(
            message(|p| p.norm = Norm::Instance { epsilon: f64::NAN, affine: true }),
            "a normalisation epsilon of NaN; it must be positive"
        );
        assert!(message(|p| p.features = vec![1 << 14; 3]).contains("parameters; up to"));
    }
}
