//! Whose statistics the image is normalised with.

use std::path::Path;

use microtome_tile::{ChannelSums, ImageStatistics, Roi};
use microtome_unet::{Card, ChannelStatistics};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result};

/// The largest file of statistics that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Whose statistics stand for the image's, for the normalisations that need some (z-score, rescaling).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NormStats {
    /// The whole slide's, glass included, as nnU-Net takes them.
    #[default]
    Slide,
    /// Those of the pixels in the region that runs: the tissue, or the one that was given.
    Tissue,
    /// Those of the training set's foreground, which nnU-Net's plans hold.
    Plans,
    /// These, one entry per channel.
    Given(Vec<ChannelStatistics>),
}

/// A file of statistics: sums as runs leave them, or numbers as people have them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Numbers {
    channels: Vec<ChannelStatistics>,
}

impl NormStats {
    /// Reads a JSON file: `OUTPUT.run/statistics.json` of another run, or `{"channels": [{"mean": .., "std": .., "min": .., "max": ..}]}`.
    ///
    /// # Errors
    /// [`Error::Usage`] if it cannot be read, is neither, or holds numbers that no image has.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |message: String| Error::Usage(format!("{}: {message}", path.display()));
        let size = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?.len();
        if size > MAX_BYTES {
            return Err(wrong(format!("{size} bytes are too many for statistics")));
        }
        let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| wrong(format!("no JSON: {e}")))?;
        // Sums are read from the text: 128 bits do not survive as a JSON value.
        let are_sums = value["channels"][0].get("sum").is_some();
        let channels = if are_sums {
            let sums: ImageStatistics =
                serde_json::from_slice(&bytes).map_err(|e| wrong(format!("no statistics of a run: {e}")))?;
            if let Some(channel) = sums.channels.iter().position(|c| !c.is_possible()) {
                return Err(wrong(format!("no image has the sums of channel {channel}")));
            }
            numbers(&sums)
        } else {
            let numbers: Numbers = serde_json::from_slice(&bytes)
                .map_err(|e| wrong(format!("no statistics (\"channels\" with mean, std, min and max each): {e}")))?;
            numbers.channels
        };
        if let Some(channel) = channels.iter().position(|c| !c.is_possible()) {
            return Err(wrong(format!("no image has the numbers of channel {channel}: {:?}", channels[channel])));
        }
        Ok(Self::Given(channels))
    }

    /// The statistics, as far as they need no look at the slide.
    ///
    /// # Errors
    /// [`Error::Usage`] if the model has none, or the given ones are of another number of channels.
    pub(crate) fn known(&self, card: &Card) -> Result<Option<Vec<ChannelStatistics>>> {
        match self {
            Self::Slide | Self::Tissue => Ok(None),
            Self::Plans => match &card.training {
                Some(training) => Ok(Some(training.clone())),
                None => Err(Error::Usage(format!(
                    "the model {} does not say what its training set looked like, which --norm-stats plans needs",
                    card.name
                ))),
            },
            Self::Given(channels) if channels.len() == card.channels.len() => Ok(Some(channels.clone())),
            Self::Given(channels) => Err(Error::Usage(format!(
                "statistics of {} channel{} (--norm-stats), and the model {} has {}",
                channels.len(),
                if channels.len() == 1 { "" } else { "s" },
                card.name,
                card.channels.len()
            ))),
        }
    }

    /// The pixels that count, where the slide is looked at: those of a region, or all.
    ///
    /// # Errors
    /// [`Error::Usage`] if the region's are asked for and there is none.
    pub(crate) fn region<'a>(&self, region: Option<&'a Roi>) -> Result<Option<&'a Roi>> {
        match (self, region) {
            (Self::Tissue, None) => Err(no_region()),
            (Self::Tissue, region) => Ok(region),
            _ => Ok(None),
        }
    }
}

/// The statistics of a region are asked for, and there is none.
pub(crate) fn no_region() -> Error {
    Error::Usage("--norm-stats tissue needs tissue or a region, and with --tissue none there is neither".into())
}

/// Sums as the numbers that networks are normalised with.
pub(crate) fn numbers(sums: &ImageStatistics) -> Vec<ChannelStatistics> {
    let number =
        |c: &ChannelSums| ChannelStatistics { mean: c.mean(), std: c.std(), min: c.min.into(), max: c.max.into() };
    sums.channels.iter().map(number).collect()
}

/// Of a region without a pixel: no tile runs, and what it would be normalised with does not matter.
pub(crate) fn nothing(channels: usize) -> Vec<ChannelStatistics> {
    vec![ChannelStatistics { mean: 0.0, std: 1.0, min: 0.0, max: 1.0 }; channels]
}

#[cfg(test)]
mod tests {
    use microtome_io::{Pixels, Size};

    use super::*;

    #[test]
    fn a_file_holds_sums_or_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("statistics.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            NormStats::read(&path)
        };
        let sums = ImageStatistics::of(&Pixels::from_u8(Size::new(2, 2), 1, vec![0, 10, 20, 250]));
        let given = read(&serde_json::to_string(&sums).unwrap()).unwrap();
        assert_eq!(given, NormStats::Given(numbers(&sums)));
        // 2^34 samples of 65535: sums of more than 64 bits.
        let squares = "73784724512204390400";
        let large = format!(
            r#"{{"channels":[{{"count":17179869184,"sum":1125882726973440,"sum_of_squares":{squares},"min":65535,"max":65535}}]}}"#
        );
        let white = ChannelStatistics { mean: 65535.0, std: 0.0, min: 65535.0, max: 65535.0 };
        assert_eq!(read(&large).unwrap(), NormStats::Given(vec![white]));
        let error = read(&large.replace(squares, &format!("{squares}0"))).unwrap_err().to_string();
        assert!(error.contains("no image has the sums of channel 0"), "{error}");
        let numbers = r#"{"channels": [{"mean": 1.5, "std": 2, "min": 0, "max": 9}]}"#;
        let expected = ChannelStatistics { mean: 1.5, std: 2.0, min: 0.0, max: 9.0 };
        assert_eq!(read(numbers).unwrap(), NormStats::Given(vec![expected]));

        for (text, word) in [
            ("", "no JSON"),
            ("[1, 2]", "no statistics"),
            (r#"{"channels": [{"mean": 1.5}]}"#, "missing field"),
            (r#"{"channels": [{"mean": 1.5, "std": 2, "min": 0, "max": 9, "mode": 3}]}"#, "unknown field"),
            (r#"{"channels": [{"mean": 1.5, "std": -2, "min": 0, "max": 9}]}"#, "channel 0"),
            (r#"{"channels": [{"mean": 10, "std": 2, "min": 0, "max": 9}]}"#, "channel 0"),
            (r#"{"channels": [{"count": 0, "sum": 0, "sum_of_squares": 0, "min": 0, "max": 9}]}"#, "channel 0"),
            (
                r#"{"channels": [{"count": -1, "sum": 0, "sum_of_squares": 0, "min": 0, "max": 9}]}"#,
                "no statistics of a run",
            ),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("statistics.json"), "{text}: {error}");
        }
        assert!(NormStats::read(&folder.path().join("none.json")).is_err());
    }
}
