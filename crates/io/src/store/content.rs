//! What the samples of an image stand for.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::{Class, SampleType};

/// What the samples of an image stand for, and with that its axes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Content {
    /// A label image, axes y and x: each pixel holds the value of its class.
    Labels {
        /// What the labels mean. Label 0 is background and may be left out.
        classes: Vec<Class>,
    },
    /// A picture, axes c, y and x: each channel of a pixel holds an intensity, a probability or the like.
    Image {
        /// One for each channel of the pixels, in their order. Of a store that was read: empty if it does not say.
        channels: Vec<Channel>,
    },
}

/// One channel of a picture: what it is called and how it is shown (`omero` in OME-Zarr).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Channel {
    /// The name.
    pub name: String,
    /// Red, green, blue of its largest value; its least is black.
    pub color: [u8; 3],
    /// The value that is shown as the least, and the one that is shown as the largest; `None`: all values are told apart.
    pub window: Option<[u16; 2]>,
}

impl Channel {
    /// A channel of which all values are told apart.
    #[must_use]
    pub fn new(name: impl Into<String>, color: [u8; 3]) -> Self {
        Self { name: name.into(), color, window: None }
    }
}

impl Content {
    /// The classes of a label image; none of a picture.
    #[must_use]
    pub fn classes(&self) -> &[Class] {
        match self {
            Self::Labels { classes } => classes,
            Self::Image { .. } => &[],
        }
    }

    /// Names of the channels of a picture, if any has one, and not for colours.
    pub(super) fn channel_names(&self) -> Vec<String> {
        let Self::Image { channels } = self else { return Vec::new() };
        if self.are_colors() || channels.iter().all(|channel| channel.name.is_empty()) {
            return Vec::new();
        }
        channels.iter().map(|channel| channel.name.clone()).collect()
    }

    /// True for a picture of red, green and blue, by the names of its channels.
    pub(super) fn are_colors(&self) -> bool {
        let Self::Image { channels } = self else { return false };
        let is = |words: [&str; 3]| channels.iter().map(|channel| channel.name.to_lowercase()).eq(words);
        is(["red", "green", "blue"]) || is(["r", "g", "b"])
    }

    /// Samples per pixel, as they are to be written.
    pub(super) fn samples_per_pixel(&self) -> usize {
        match self {
            Self::Labels { .. } => 1,
            Self::Image { channels } => channels.len(),
        }
    }

    /// The names of the axes of each level's array.
    pub(super) fn axes(&self) -> &'static [&'static str] {
        match self {
            Self::Labels { .. } => &["y", "x"],
            Self::Image { .. } => &["c", "y", "x"],
        }
    }

    /// What keeps it from being stored in such samples.
    pub(super) fn fault(&self, sample: SampleType) -> Option<String> {
        let classes = match self {
            Self::Image { channels } if channels.is_empty() => return Some("it has no channel".into()),
            Self::Image { channels } if channels.len() > usize::from(u16::MAX) => {
                return Some(format!("{} channels are more than 65535", channels.len()));
            }
            Self::Image { .. } => return None,
            Self::Labels { classes } => classes,
        };
        let mut seen = BTreeSet::new();
        for class in classes {
            if sample == SampleType::U8 && class.value > u16::from(u8::MAX) {
                return Some(format!("class {:?} has the value {}, which 8 bits do not hold", class.name, class.value));
            }
            if !seen.insert(class.value) {
                return Some(format!("two classes have the value {}", class.value));
            }
        }
        None
    }
}
