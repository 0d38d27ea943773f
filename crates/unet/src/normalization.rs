//! nnU-Net's intensity normalisation, all in f32.
//!
//! Formulas: nnU-Net 2.8.1, `nnunetv2/preprocessing/normalization/default_normalization_schemes.py`.
//! Statistics over the image come from the caller, who has seen the whole slide; this crate only applies them.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How the samples of one channel are normalised before the network sees them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "scheme", rename_all = "kebab-case")]
pub enum Normalization {
    /// `(x - mean) / max(std, 1e-8)` with the mean and the population standard deviation of the whole image.
    ZScore,
    /// `(clip(x, lower, upper) - mean) / max(std, 1e-8)` with numbers from the training set.
    Ct {
        /// Smallest value let through (0.5th percentile of the training foreground).
        lower: f64,
        /// Largest value let through (99.5th percentile of the training foreground).
        upper: f64,
        /// Mean of the training foreground.
        mean: f64,
        /// Standard deviation of the training foreground.
        std: f64,
    },
    /// `(x - min) / max(max - min, 1e-8)` with the extremes of the whole image.
    RescaleTo01,
    /// `x / 255`.
    RgbTo01,
    /// `x` as it is.
    None,
}

impl Normalization {
    /// True if the scheme needs the statistics of the image.
    #[must_use]
    pub const fn needs_statistics(self) -> bool {
        matches!(self, Self::ZScore | Self::RescaleTo01)
    }
}

/// True if any channel's scheme needs the statistics of the image.
#[must_use]
pub fn needs_statistics(normalization: &[Normalization]) -> bool {
    normalization.iter().any(|n| n.needs_statistics())
}

/// What there is to know about one channel of a whole image, taken in f64.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelStatistics {
    /// Arithmetic mean.
    pub mean: f64,
    /// Population standard deviation (divided by n).
    pub std: f64,
    /// Smallest sample.
    pub min: f64,
    /// Largest sample.
    pub max: f64,
}

impl ChannelStatistics {
    /// True for numbers that samples can have: finite, in order, and with a deviation that is not negative. A file may hold any numbers.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        let finite = [self.mean, self.std, self.min, self.max].iter().all(|v| v.is_finite());
        finite && self.std >= 0.0 && self.min <= self.mean && self.mean <= self.max
    }
}

/// The normalisation of every channel with its numbers filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalizer {
    channels: Vec<Affine>,
}

/// `(clip(x) - shift) / divisor`, the one form that all schemes share.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Affine {
    lower: f32,
    upper: f32,
    shift: f32,
    divisor: f32,
}

impl Affine {
    fn apply(self, x: f32) -> f32 {
        // `max` and `min` in nnU-Net's order; bounds that do not clip are infinite.
        (x.max(self.lower).min(self.upper) - self.shift) / self.divisor
    }
}

impl Normalizer {
    /// The normalisation of an image with these statistics, one entry per channel.
    /// `statistics` may be empty if no scheme needs them ([`needs_statistics`]).
    ///
    /// # Errors
    /// If a scheme that needs statistics gets none, or one of its numbers is not finite.
    pub fn new(normalization: &[Normalization], statistics: &[ChannelStatistics]) -> Result<Self> {
        let channels = normalization
            .iter()
            .enumerate()
            .map(|(channel, scheme)| {
                let measured = || {
                    statistics.get(channel).ok_or_else(|| {
                        Error::usage(format!(
                            "channel {channel}: {scheme:?} needs the statistics of the image, and there are none"
                        ))
                    })
                };
                let no_clip = (f64::NEG_INFINITY, f64::INFINITY);
                let ((lower, upper), shift, divisor) = match *scheme {
                    Normalization::ZScore => measured().map(|s| (no_clip, s.mean, s.std))?,
                    Normalization::RescaleTo01 => measured().map(|s| (no_clip, s.min, s.max - s.min))?,
                    Normalization::Ct { lower, upper, mean, std } => ((lower, upper), mean, std),
                    Normalization::RgbTo01 => (no_clip, 0.0, 255.0),
                    Normalization::None => (no_clip, 0.0, 1.0),
                };
                let ordered = lower <= upper;
                if !shift.is_finite() || !divisor.is_finite() || !ordered {
                    return Err(Error::usage(format!(
                        "channel {channel}: {scheme:?} with numbers that are not finite"
                    )));
                }
                Ok(Affine {
                    lower: lower as f32,
                    upper: upper as f32,
                    shift: shift as f32,
                    divisor: divisor.max(1e-8) as f32,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { channels })
    }

    /// Number of channels.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// One sample of channel `channel`, normalised.
    ///
    /// # Panics
    /// If there is no such channel.
    #[must_use]
    pub fn apply(&self, channel: usize, sample: f32) -> f32 {
        self.channels[channel].apply(sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATISTICS: ChannelStatistics = ChannelStatistics { mean: 214.0, std: 30.5, min: 3.0, max: 243.0 };

    fn apply(scheme: Normalization, x: f32) -> f32 {
        Normalizer::new(&[scheme], &[STATISTICS]).unwrap().apply(0, x)
    }

    #[test]
    fn every_scheme_is_nnunets_formula() {
        assert_eq!(apply(Normalization::ZScore, 100.0), (100.0_f32 - 214.0) / 30.5);
        assert_eq!(apply(Normalization::RescaleTo01, 243.0), 1.0);
        assert_eq!(apply(Normalization::RescaleTo01, 3.0), 0.0);
        assert_eq!(apply(Normalization::RgbTo01, 255.0), 1.0);
        assert_eq!(apply(Normalization::RgbTo01, 100.0), 100.0_f32 / 255.0);
        assert_eq!(apply(Normalization::None, 77.0), 77.0);
        let ct = Normalization::Ct { lower: 10.0, upper: 50.0, mean: 20.0, std: 4.0 };
        assert_eq!(apply(ct, 0.0), -2.5, "clipped from below");
        assert_eq!(apply(ct, 60.0), 7.5, "clipped from above");
        assert_eq!(apply(ct, 24.0), 1.0);
    }

    #[test]
    fn an_image_of_one_colour_divides_by_the_smallest_divisor() {
        let flat = ChannelStatistics { mean: 5.0, std: 0.0, min: 5.0, max: 5.0 };
        for scheme in [Normalization::ZScore, Normalization::RescaleTo01] {
            assert_eq!(Normalizer::new(&[scheme], &[flat]).unwrap().apply(0, 5.0), 0.0);
        }
    }

    #[test]
    fn missing_and_broken_statistics_are_refused() {
        let error = Normalizer::new(&[Normalization::RgbTo01, Normalization::ZScore], &[STATISTICS]).unwrap_err();
        assert_eq!(error.to_string(), "channel 1: ZScore needs the statistics of the image, and there are none");
        assert!(Normalizer::new(&[Normalization::RgbTo01], &[]).is_ok());
        let broken = ChannelStatistics { mean: f64::NAN, ..STATISTICS };
        assert!(Normalizer::new(&[Normalization::ZScore], &[broken]).is_err());
        assert!(needs_statistics(&[Normalization::None, Normalization::ZScore]));
        assert!(!needs_statistics(&[Normalization::None, Normalization::RgbTo01]));
    }
}
