//! `UNet` of MONAI in two dimensions: strided convolutions down, transposed convolutions up, optionally with residual units.
//!
//! Structure and weight names: MONAI 1.6.1, `monai/networks/nets/unet.py`, `monai/networks/blocks/convolutions.py`.

use microtome_io::Size;
use serde::{Deserialize, Serialize};

use super::layers::{Convolution, Expansion, MAX_REPETITIONS, check_channels, check_stages, product};
use super::monai::{Adn, Arguments, FRAMEWORK};
use super::{Activation, Constructor, Family, Norm};
use crate::Result;
use crate::arguments::Object;
use crate::network::{Extent, Network, Operation, Padding, Source};

/// Parameters of the network. Lists run from the finest level to the coarsest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MonaiUnet {
    /// Input channels.
    pub channels: usize,
    /// Logit planes.
    pub heads: usize,
    /// Channels of each level.
    pub features: Vec<usize>,
    /// Stride of each level but the coarsest; the finest level's is that of the first convolution.
    pub strides: Vec<Extent>,
    /// Kernel of the convolutions.
    pub kernel: Extent,
    /// Kernel of the transposed convolutions.
    pub up_kernel: Extent,
    /// Convolutions of a residual unit on the way down, of which one is on the way up, too; 0 for plain convolutions.
    pub residual_units: usize,
    /// Whether convolutions have a bias.
    pub bias: bool,
    /// After each convolution.
    pub norm: Norm,
    /// After each normalisation.
    pub activation: Activation,
    /// The nonlinearity comes before the normalisation.
    pub activation_first: bool,
}

/// Whether a block's last convolution is followed by normalisation and nonlinearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Block,
    /// The logits' own.
    Bare,
}

impl MonaiUnet {
    fn adn(&self) -> Adn {
        Adn { norm: self.norm, activation: self.activation, activation_first: self.activation_first }
    }

    /// `Convolution`, or a `ResidualUnit` of several.
    fn block(
        &self,
        network: &mut Network,
        name: &str,
        (input, output): (usize, usize),
        (stride, units, end): (Extent, usize, End),
        at: Source,
    ) -> Source {
        let convolution = Convolution { input, output, kernel: self.kernel, stride, bias: self.bias };
        if units == 0 {
            return self.adn().convolve(network, name, convolution, at);
        }
        let mut inner = at;
        for unit in 0..units {
            let name = format!("{name}.conv.unit{unit}");
            let one = Convolution { input: output, stride: Extent::ONE, ..convolution };
            let convolution = if unit == 0 { convolution } else { one };
            inner = if end == End::Bare && unit + 1 == units {
                network.convolve(&format!("{name}.conv"), convolution, inner)
            } else {
                self.adn().convolve(network, &name, convolution, inner)
            };
        }
        // The shortcut has the block's kernel where it strides, and looks at single pixels where it only changes the channels.
        let shortcut = format!("{name}.residual");
        let shortcut = if stride != Extent::ONE {
            network.convolve(&shortcut, convolution, at)
        } else if input != output {
            network.convolve(&shortcut, Convolution::pointwise(input, output, self.bias), at)
        } else {
            at
        };
        network.push(Operation::Add, &[inner, shortcut])
    }

    /// What leads from level `level` down to the coarsest and up again. `output` are the channels of its end.
    fn level(
        &self,
        network: &mut Network,
        name: &str,
        (level, input, output): (usize, usize, usize),
        at: Source,
    ) -> Source {
        let features = self.features[level];
        if level + 1 == self.features.len() {
            let block = (Extent::ONE, self.residual_units, End::Block);
            return self.block(network, name, (input, features), block, at);
        }
        let stride = self.strides[level];
        let block = (stride, self.residual_units, End::Block);
        let skip = self.block(network, &format!("{name}.0"), (input, features), block, at);
        // Between the coarsest level and the next each level gives as many channels as it gets.
        let below = if level + 2 == self.features.len() { self.features[level + 1] } else { features };
        let inner = self.level(network, &format!("{name}.1.submodule"), (level + 1, features, below), skip);
        let joined = network.push(Operation::Concatenate, &[skip, inner]);
        let padding = Padding { height: (self.up_kernel.height - 1) / 2, width: (self.up_kernel.width - 1) / 2 };
        let (input, kernel, bias) = (features + below, self.up_kernel, self.bias);
        let expansion = Expansion { input, output, kernel, stride, padding, bias };
        let up = if self.residual_units > 0 { format!("{name}.2.0") } else { format!("{name}.2") };
        let at = network.expand_with(&format!("{up}.conv"), expansion, joined);
        let top = level == 0;
        if self.residual_units == 0 {
            return if top { at } else { self.adn().after(network, &up, output, at) };
        }
        let at = self.adn().after(network, &up, output, at);
        let block = (Extent::ONE, 1, if top { End::Bare } else { End::Block });
        self.block(network, &format!("{name}.2.1"), (output, output), block, at)
    }
}

impl Constructor for MonaiUnet {
    const FRAMEWORK: &'static str = FRAMEWORK;
    const NAME: &'static str = "UNet";

    fn construct(arguments: &Object<'_>) -> Result<Self> {
        let known = [
            "channels",
            "strides",
            "kernel_size",
            "up_kernel_size",
            "num_res_units",
            "act",
            "norm",
            "dropout",
            "bias",
            "adn_ordering",
        ];
        let arguments = Arguments::new(arguments, &known)?;
        let object = arguments.object();
        object.need("channels")?;
        let features = arguments.counts("channels", &[])?;
        if features.len() < 2 {
            return Err(object.wrong("channels", &format!("are {}; there must be 2 or more", features.len())));
        }
        let mut strides = arguments.extents("strides")?;
        let wanted = features.len() - 1;
        if strides.len() < wanted {
            return Err(object.wrong("strides", &format!("are {}; there must be {wanted}", strides.len())));
        }
        strides.truncate(wanted);
        let mut norm = arguments.norm("norm", Norm::Instance { epsilon: 1e-5, affine: false })?;
        let mut activation = arguments.activation("act", Activation::PRelu { per_channel: false })?;
        let order = object.text("adn_ordering")?.unwrap_or("NDA").to_ascii_uppercase();
        let place = |letter: char| order.find(letter);
        let once = |letter: char| order.matches(letter).count() <= 1;
        if order.chars().any(|c| !"NDA".contains(c)) || !['N', 'A', 'D'].into_iter().all(once) {
            let message = format!("is {order}; it may hold N, D and A, each once");
            return Err(object.unsupported("adn_ordering", &message));
        }
        // What is not in the order is not in the network.
        if place('N').is_none() {
            norm = Norm::None;
        }
        if place('A').is_none() {
            activation = Activation::None;
        }
        Ok(Self {
            channels: object.count("in_channels")?,
            heads: object.count("out_channels")?,
            features,
            strides,
            kernel: arguments.extent("kernel_size", 3)?,
            up_kernel: arguments.extent("up_kernel_size", 3)?,
            residual_units: arguments.count("num_res_units", 0)?,
            bias: arguments.flag("bias", true)?,
            norm,
            activation,
            activation_first: place('A').zip(place('N')).is_some_and(|(a, n)| a < n),
        })
    }

    fn transpose(&mut self) {
        let all = [&mut self.kernel, &mut self.up_kernel].into_iter().chain(&mut self.strides);
        all.for_each(|e| *e = e.transposed());
    }
}

impl Family for MonaiUnet {
    fn channels(&self) -> usize {
        self.channels
    }

    fn heads(&self) -> usize {
        self.heads
    }

    fn multiple(&self) -> Size {
        product(self.strides.iter())
    }

    fn check(&self) -> Result<(), String> {
        let levels = self.features.len();
        check_stages(levels)?;
        if levels < 2 || self.strides.len() != levels - 1 {
            return Err(format!("{} strides for {levels} levels; there must be one less", self.strides.len()));
        }
        if self.residual_units > MAX_REPETITIONS {
            return Err(format!("{} residual units; up to {MAX_REPETITIONS} are supported", self.residual_units));
        }
        let even = |e: Extent| e.height.is_multiple_of(2) || e.width.is_multiple_of(2);
        if let Some(kernel) = [self.kernel, self.up_kernel].into_iter().find(|k| even(*k)) {
            return Err(format!("a {kernel} kernel; odd kernels are supported"));
        }
        check_channels(&self.features)
    }

    fn network(&self) -> Network {
        let mut network = Network::new(self.channels);
        self.level(&mut network, "model", (0, self.channels, self.heads), Source::Input);
        network
    }
}

impl std::fmt::Display for MonaiUnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let features: Vec<String> = self.features.iter().map(ToString::to_string).collect();
        let units = match self.residual_units {
            0 => String::new(),
            n => format!(", residual units of {n}"),
        };
        write!(
            f,
            "UNet 2D of MONAI, {} levels of {} features{units}, {}",
            features.len(),
            features.join(", "),
            self.norm
        )
    }
}
