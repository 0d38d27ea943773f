//! The families of networks that this crate knows: parameters in, [`Network`] out.
//!
//! A new architecture is one file here, which implements `Family`, and one line in the list of [`Architecture`];
//! `docs/architectures.md` shows it by the last one that was added.

mod basic_unet;
mod dyn_unet;
mod layers;
mod monai;
mod monai_unet;
mod plain_conv_unet;
mod residual;
mod residual_encoder_unet;
mod residual_unet;
mod seg_res_net;
mod smp_unet;
mod unet;

pub use monai::UpsampleMode;
pub use smp_unet::{Enlargement, Resnet};
#[cfg(test)]
pub(crate) use {plain_conv_unet::tests, residual_encoder_unet::tests as residual_tests};

use microtome_io::Size;
use serde::{Deserialize, Serialize};

use crate::arguments::{Object, nothing_else};
use crate::{Error, Network, Result};

/// What every family of networks can say of its parameters.
pub(crate) trait Family: std::fmt::Display {
    /// Number of input channels.
    fn channels(&self) -> usize;

    /// Number of logit planes.
    fn heads(&self) -> usize;

    /// What the width and the height of a tile must be multiples of, so that what skips carry fits what it is joined with.
    fn multiple(&self) -> Size;

    /// What is wrong with the parameters that [`network`](Self::network) would stumble over: lists whose lengths do not fit each other,
    /// counts beyond all reason. What can be seen from the layers is not checked here.
    fn check(&self) -> Result<(), String>;

    /// The network, layer by layer, of parameters that [`check`](Self::check) has found right.
    fn network(&self) -> Network;

    /// True for a name in the framework's state dict that plays no part at inference, such as a second name of another weight, or a
    /// head of deep supervision.
    fn is_unused(&self, name: &str) -> bool {
        let _ = name;
        false
    }
}

/// A family whose parameters are the arguments of a constructor in the framework that it comes from.
pub(crate) trait Constructor: Into<Architecture> {
    /// The framework, as recipes name it.
    const FRAMEWORK: &'static str;
    /// The class.
    const NAME: &'static str;
    /// The entry in the list of those that recipes can name.
    const ENTRY: (&'static str, &'static str, Construct) = (Self::FRAMEWORK, Self::NAME, constructed::<Self>);

    /// The parameters that the constructor's arguments stand for. Arguments that are missing have the framework's defaults;
    /// one that is unknown, or has a value that cannot be honoured, is refused by name.
    fn construct(arguments: &Object<'_>) -> Result<Self>;

    /// Exchanges the axes of kernels and strides. Families whose kernels and strides are square need not do anything.
    fn transpose(&mut self) {}
}

/// Which axis of a picture the network takes for its first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Axes {
    /// y, x: rows from top to bottom, as nearly all do.
    YX,
    /// x, y: as MONAI's `LoadImage` hands over pictures. The network that sees a picture upright is this one with its kernels transposed.
    XY,
}

type Construct = fn(&Object<'_>, Axes) -> Result<Architecture>;

/// The network that a family makes of these arguments, for pictures that are upright.
fn constructed<F: Constructor>(arguments: &Object<'_>, axes: Axes) -> Result<Architecture> {
    let mut family = F::construct(arguments)?;
    if axes == Axes::XY {
        family.transpose();
    }
    Ok(family.into())
}

/// The network that a framework's class makes of these arguments, for pictures that are upright.
///
/// # Errors
/// If there is no such class, or an argument is wrong or cannot be honoured.
pub(crate) fn construct(framework: &str, class: &str, arguments: &Object<'_>, axes: Axes) -> Result<Architecture> {
    let found = CONSTRUCTORS.iter().find(|(f, c, _)| *f == framework && *c == class);
    let Some((.., construct)) = found else {
        let known: Vec<String> = CONSTRUCTORS.iter().map(|(f, c, _)| format!("{c} ({f})")).collect();
        let message = format!("the network {class} of {framework} is not supported; there are {}", known.join(", "));
        return Err(Error::unsupported(arguments.path, message));
    };
    construct(arguments, axes)
}

/// All that there is of each family: its file's name and its own, and `Constructor` where recipes can name it.
macro_rules! families {
    ($($(#[$doc:meta])* $file:ident::$family:ident $(: $constructor:ident)?,)*) => {
        $(pub use $file::$family;)*

        /// A network by the parameters of its family, as a package stores it.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind", rename_all = "kebab-case")]
        pub enum Architecture {
            $($(#[$doc])* $family($family),)*
        }

        impl Architecture {
            fn family(&self) -> &dyn Family {
                match self {
                    $(Self::$family(parameters) => parameters,)*
                }
            }
        }

        $(impl From<$family> for Architecture {
            fn from(parameters: $family) -> Self {
                Self::$family(parameters)
            }
        })*

        /// Those that recipes can name: framework, class, and how they are made.
        const CONSTRUCTORS: &[(&str, &str, Construct)] = &[$($(<$family as $constructor>::ENTRY,)?)*];
    };
}

families! {
    /// nnU-Net's `PlainConvUNet` in two dimensions.
    plain_conv_unet::PlainConvUnet,
    /// nnU-Net's `ResidualEncoderUNet` in two dimensions.
    residual_encoder_unet::ResidualEncoderUnet,
    /// nnU-Net's `ResidualUNet` in two dimensions.
    residual_unet::ResidualUnet,
    /// MONAI's `UNet` in two dimensions.
    monai_unet::MonaiUnet: Constructor,
    /// MONAI's `BasicUNet` in two dimensions.
    basic_unet::BasicUnet: Constructor,
    /// MONAI's `DynUNet` in two dimensions.
    dyn_unet::DynUnet: Constructor,
    /// MONAI's `SegResNet` in two dimensions.
    seg_res_net::SegResNet: Constructor,
    /// `Unet` of segmentation-models-pytorch with a ResNet as its encoder.
    smp_unet::SmpUnet: Constructor,
}

impl Architecture {
    /// Number of input channels.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.family().channels()
    }

    /// Number of logit planes.
    #[must_use]
    pub fn heads(&self) -> usize {
        self.family().heads()
    }

    /// What is wrong with the parameters, for a tile of this size.
    ///
    /// # Errors
    /// A clause that names the parameter. After `Ok`, [`network`](Self::network) makes sense and its arithmetic cannot overflow.
    pub fn check(&self, tile: Size) -> Result<(), String> {
        let family = self.family();
        family.check()?;
        layers::check_counts(family.channels(), family.heads(), tile)?;
        let multiple = family.multiple();
        if !tile.width.is_multiple_of(multiple.width) || !tile.height.is_multiple_of(multiple.height) {
            return Err(format!("a tile of {tile}; with these strides it must be a multiple of {multiple}"));
        }
        family.network().check(tile, family.heads())
    }

    /// True for a name in a state dict that plays no part at inference.
    pub(crate) fn is_unused(&self, name: &str) -> bool {
        self.family().is_unused(name)
    }

    /// The network, layer by layer.
    #[must_use]
    pub fn network(&self) -> Network {
        self.family().network()
    }
}

/// One line for people.
impl std::fmt::Display for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.family().fmt(f)
    }
}

/// The normalisation after a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Norm {
    /// Statistics of each channel of the tile itself.
    Instance {
        /// Added to the variance.
        epsilon: f64,
        /// With factor and summand per channel.
        affine: bool,
    },
    /// Statistics from training.
    Batch {
        /// Added to the variance.
        epsilon: f64,
        /// With factor and summand per channel.
        affine: bool,
    },
    /// Statistics of groups of channels of the tile itself.
    Group {
        /// Groups, all of as many channels.
        groups: usize,
        /// Added to the variance.
        epsilon: f64,
        /// With factor and summand per channel.
        affine: bool,
    },
    /// No normalisation.
    #[serde(deserialize_with = "nothing_else")]
    None,
}

impl std::fmt::Display for Norm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Instance { .. } => "instance norm",
            Self::Batch { .. } => "batch norm",
            Self::Group { .. } => "group norm",
            Self::None => "no normalisation",
        })
    }
}

/// The nonlinearity after a normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Activation {
    /// Leaky ReLU; slope 0 is ReLU.
    LeakyRelu {
        /// Factor for negative values.
        slope: f64,
    },
    /// The same with slopes from training.
    PRelu {
        /// A slope for each channel in place of one for all.
        per_channel: bool,
    },
    /// `x / (1 + exp(-x))`, also called swish.
    #[serde(deserialize_with = "nothing_else")]
    Silu,
    /// `x * tanh(ln(1 + exp(x)))`.
    #[serde(deserialize_with = "nothing_else")]
    Mish,
    /// `x / 2 * (1 + erf(x / sqrt(2)))`.
    #[serde(deserialize_with = "nothing_else")]
    Gelu,
    /// The approximation of the same by a hyperbolic tangent.
    #[serde(deserialize_with = "nothing_else")]
    GeluTanh,
    /// No nonlinearity.
    #[serde(deserialize_with = "nothing_else")]
    None,
}
