//! Intensity normalisation, all in f32: nnU-Net's schemes, and one linear form for what other frameworks do with fixed numbers.
//!
//! Formulas: nnU-Net 2.8.1, `nnunetv2/preprocessing/normalization/default_normalization_schemes.py`.
//! Statistics over the image come from the caller, who has seen the whole slide; this crate only applies them.

use serde::{Deserialize, Serialize};

use crate::arguments::nothing_else;
use crate::{Error, Result};

/// How the samples of one channel are normalised before the network sees them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "scheme", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Normalization {
    /// `(x - mean) / max(std, 1e-8)` with the mean and the population standard deviation of the whole image.
    #[serde(deserialize_with = "nothing_else")]
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
    #[serde(deserialize_with = "nothing_else")]
    RescaleTo01,
    /// `x / 255`.
    #[serde(deserialize_with = "nothing_else")]
    RgbTo01,
    /// `(clip(x, lower, upper) - shift) / divisor` with fixed numbers: what a range of intensities that is mapped to another comes to,
    /// or mean and standard deviation of samples that were divided by 255 before.
    Linear {
        /// Subtracted from the sample.
        shift: f64,
        /// What the rest is divided by, above 0.
        divisor: f64,
        /// Smallest value let through; `None` lets all through.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lower: Option<f64>,
        /// Largest value let through; `None` lets all through.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        upper: Option<f64>,
    },
    /// `x` as it is.
    #[serde(deserialize_with = "nothing_else")]
    None,
}

impl Normalization {
    /// True if the scheme needs the statistics of the image.
    #[must_use]
    pub const fn needs_statistics(self) -> bool {
        matches!(self, Self::ZScore | Self::RescaleTo01)
    }

    /// True if the scheme presumes samples of 8 bits, from 0 to 255: `rgb-to01`, for which nnU-Net takes no others. What the fixed numbers of
    /// `linear` presume, they do not say.
    #[must_use]
    pub const fn presumes_8_bits(self) -> bool {
        matches!(self, Self::RgbTo01)
    }

    /// `(x / scale - mean) / std`, as torchvision and segmentation-models-pytorch normalise: with `scale` 255, samples from 0 to 255.
    #[must_use]
    pub fn standardized(scale: f64, mean: f64, std: f64) -> Self {
        Self::Linear { shift: scale * mean, divisor: scale * std, lower: None, upper: None }
    }

    /// What is wrong with the numbers of the scheme itself; a file may hold any.
    ///
    /// # Errors
    /// A clause that names it.
    pub fn check(self) -> Result<(), String> {
        let (lower, upper, shift, divisor) = match self {
            Self::Ct { lower, upper, mean, std } => (lower, upper, mean, std.max(SMALLEST)),
            Self::Linear { shift, divisor, lower, upper } => {
                (lower.unwrap_or(f64::NEG_INFINITY), upper.unwrap_or(f64::INFINITY), shift, divisor)
            }
            Self::ZScore | Self::RescaleTo01 | Self::RgbTo01 | Self::None => return Ok(()),
        };
        let single = |x: f64| (x as f32).is_finite();
        if !single(shift) || !single(divisor) || divisor as f32 <= 0.0 {
            return Err(format!("shifts by {shift} and divides by {divisor}; both must be finite, the latter above 0"));
        }
        if lower.is_nan() || upper.is_nan() || lower > upper {
            return Err(format!("clips to {lower} and above and to {upper} and below"));
        }
        Ok(())
    }
}

/// One line for people.
impl std::fmt::Display for Normalization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self::Linear { shift, divisor, lower, upper } = self else { return write!(f, "{self:?}") };
        match (lower, upper) {
            (None, None) => write!(f, "(x - {shift}) / {divisor}"),
            (Some(lower), None) => write!(f, "(max(x, {lower}) - {shift}) / {divisor}"),
            (None, Some(upper)) => write!(f, "(min(x, {upper}) - {shift}) / {divisor}"),
            (Some(lower), Some(upper)) => write!(f, "(clip(x, {lower}, {upper}) - {shift}) / {divisor}"),
        }
    }
}

/// What nnU-Net divides by at least.
const SMALLEST: f64 = 1e-8;

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
                // All become the linear scheme.
                let linear = |shift: f64, divisor: f64, lower: Option<f64>, upper: Option<f64>| {
                    (Normalization::Linear { shift, divisor, lower, upper }.check())
                        .map_err(|message| Error::usage(format!("channel {channel}: {scheme:?} {message}")))?;
                    Ok(Affine {
                        lower: lower.map_or(f32::NEG_INFINITY, |l| l as f32),
                        upper: upper.map_or(f32::INFINITY, |u| u as f32),
                        shift: shift as f32,
                        divisor: divisor as f32,
                    })
                };
                match *scheme {
                    Normalization::ZScore => measured().and_then(|s| linear(s.mean, s.std.max(SMALLEST), None, None)),
                    Normalization::RescaleTo01 => {
                        measured().and_then(|s| linear(s.min, (s.max - s.min).max(SMALLEST), None, None))
                    }
                    Normalization::Ct { lower, upper, mean, std } => {
                        linear(mean, std.max(SMALLEST), Some(lower), Some(upper))
                    }
                    Normalization::RgbTo01 => linear(0.0, 255.0, None, None),
                    Normalization::None => linear(0.0, 1.0, None, None),
                    Normalization::Linear { shift, divisor, lower, upper } => linear(shift, divisor, lower, upper),
                }
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
    fn fixed_numbers_are_one_linear_form() {
        let range = |lower, upper| Normalization::Linear { shift: 127.5, divisor: 127.5, lower, upper };
        assert_eq!([0.0, 51.0, 255.0].map(|x| apply(range(None, None), x)), [-1.0, -0.6, 1.0]);
        assert_eq!(range(None, None).to_string(), "(x - 127.5) / 127.5");
        assert_eq!(range(Some(51.0), Some(255.0)).to_string(), "(clip(x, 51, 255) - 127.5) / 127.5");
        assert_eq!([0.0, 300.0].map(|x| apply(range(Some(51.0), Some(255.0)), x)), [-0.6, 1.0]);
        let imagenet = Normalization::standardized(255.0, 0.485, 0.229);
        for x in [0.0_f32, 17.0, 255.0] {
            assert!((apply(imagenet, x) - (x / 255.0 - 0.485) / 0.229).abs() < 1e-6);
        }
        // Unlike nnU-Net's schemes: a divisor is what it is.
        let small = Normalization::Linear { shift: 0.0, divisor: 1e-10, lower: None, upper: None };
        assert_eq!(apply(small, 1.0), 1e10);
        for (shift, divisor) in [(0.0, 0.0), (0.0, -1.0), (f64::NAN, 1.0), (0.0, f64::INFINITY), (0.0, 1e-60)] {
            let scheme = Normalization::Linear { shift, divisor, lower: None, upper: None };
            assert!(scheme.check().unwrap_err().contains("both must be finite, the latter above 0"));
            assert!(Normalizer::new(&[scheme], &[]).is_err());
        }
        assert_eq!(range(Some(2.0), Some(1.0)).check().unwrap_err(), "clips to 2 and above and to 1 and below");
    }

    #[test]
    fn a_scheme_is_written_and_read() {
        let text = r#"{"scheme":"linear","shift":127.5,"divisor":127.5,"upper":255.0}"#;
        let scheme: Normalization = serde_json::from_str(text).unwrap();
        assert_eq!(scheme, Normalization::Linear { shift: 127.5, divisor: 127.5, lower: None, upper: Some(255.0) });
        assert_eq!(serde_json::to_string(&scheme).unwrap(), text);
        assert!(serde_json::from_str::<Normalization>(r#"{"scheme":"linear","shift":1,"divider":2}"#).is_err());
        assert_eq!(serde_json::from_str::<Normalization>(r#"{"scheme":"z-score"}"#).unwrap(), Normalization::ZScore);
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
