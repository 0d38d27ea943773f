//! In which numbers a model is kept, and in which it should be run.

use serde::{Deserialize, Serialize};

use crate::cpu::InstructionSet;
use crate::{Arithmetic, Device, Error, Precision, Result};

/// What a model says about precision. The plain case: weights in f32, nothing recommended, nothing measured.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct PrecisionNote {
    /// In which numbers the kernels are kept in a package.
    pub weights: WeightFormat,
    /// In which numbers the network should compute where a device is fast in them, by whoever made the package.
    pub recommended: Option<Precision>,
    /// How far the precisions were from each other when somebody looked.
    pub measured: Option<Measurement>,
}

/// In which numbers the kernels of convolutions are kept.
///
/// All other weights (biases, factors and summands of normalisations, statistics from training, slopes) are f32 in any case: they are
/// some thousandths of all values, and the CPU adds and multiplies them in f32 (GPUs all but biases and slopes), so rounding them would cost
/// accuracy and save nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightFormat {
    /// 32-bit floating point, as frameworks train.
    #[default]
    F32,
    /// bfloat16: half the size, eight bits of precision.
    Bf16,
}

impl std::fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// How many pixels of a mask change with the precision: a comparison with f32 as sums of products
/// ([`Arithmetic::Exact`](crate::Arithmetic::Exact)) on one picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// The picture, and how it was segmented.
    pub picture: String,
    /// Who computed it, on what.
    pub computed_by: String,
    /// Pixels of the mask.
    pub pixels: u64,
    /// Shares of them that differ.
    pub disagreement: Disagreement,
}

/// Shares of pixels that differ from those of the reference, 0 to 1; `None` where it was not measured.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disagreement {
    /// With the fast f32 arithmetic, the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f32: Option<f64>,
    /// With bf16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bf16: Option<f64>,
    /// With f16, on a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f16: Option<f64>,
}

impl Disagreement {
    /// The share that was measured with this precision.
    #[must_use]
    pub const fn of(&self, precision: Precision) -> Option<f64> {
        match precision {
            Precision::F32 => self.f32,
            Precision::Bf16 => self.bf16,
            Precision::F16 => self.f16,
        }
    }

    /// The same, to be set.
    pub const fn of_mut(&mut self, precision: Precision) -> &mut Option<f64> {
        match precision {
            Precision::F32 => &mut self.f32,
            Precision::Bf16 => &mut self.bf16,
            Precision::F16 => &mut self.f16,
        }
    }

    /// What was measured.
    pub fn all(&self) -> impl Iterator<Item = (Precision, f64)> {
        let shares = [(Precision::F32, self.f32), (Precision::Bf16, self.bf16), (Precision::F16, self.f16)];
        shares.into_iter().filter_map(|(precision, share)| Some((precision, share?)))
    }
}

impl PrecisionNote {
    /// What is wrong with it.
    ///
    /// A recommendation of less than f32 needs a measurement: nobody can weigh a loss of accuracy that nobody has looked at.
    pub(crate) fn check(&self) -> Result<(), String> {
        let disagreement = self.measured.as_ref().map(|m| m.disagreement).unwrap_or_default();
        if let Some((precision, share)) = disagreement.all().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            return Err(format!("precision: {share} of the pixels differ in {precision}; a share is 0 to 1"));
        }
        match self.recommended {
            None | Some(Precision::F32) => Ok(()),
            Some(precision) if disagreement.of(precision).is_some() => Ok(()),
            Some(precision) => {
                Err(format!("precision: {precision} is recommended, but its disagreement with f32 was not measured"))
            }
        }
    }
}

/// In which numbers a network computes, and why in those.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PrecisionChoice {
    /// The numbers.
    pub precision: Precision,
    /// Who or what decided, as a clause.
    pub reason: String,
}

impl std::fmt::Display for PrecisionChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}", self.precision, self.reason)
    }
}

/// What a device is fast in, besides f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fast {
    /// A GPU with instructions for bf16: all precisions.
    #[cfg_attr(not(any(test, feature = "cuda")), allow(dead_code))]
    Gpu,
    /// An older GPU.
    #[cfg_attr(not(any(test, feature = "cuda")), allow(dead_code))]
    GpuWithoutBf16,
    /// A CPU with instructions for bf16.
    CpuWithBf16,
    /// Any other CPU.
    Cpu,
}

impl PrecisionNote {
    /// Decides in which numbers a network computes: as `asked`, otherwise as the model recommends where the device is fast in that,
    /// otherwise bf16 on GPUs that have it and f32 elsewhere.
    ///
    /// # Errors
    /// If another precision than f32 is asked for together with [`Arithmetic::Exact`], or the device does not answer.
    pub fn choose(&self, asked: Option<Precision>, device: Device, arithmetic: Arithmetic) -> Result<PrecisionChoice> {
        let fast = match device.choose()?.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(gpus) => {
                let all = gpus.numbers().map(crate::gpu::driver::multiplies_bf16).collect::<Result<Vec<_>>>()?;
                if all.contains(&false) { Fast::GpuWithoutBf16 } else { Fast::Gpu }
            }
            _ if InstructionSet::choose()?.multiplies_bf16() => Fast::CpuWithBf16,
            _ => Fast::Cpu,
        };
        self.choose_for(asked, fast, arithmetic)
    }

    fn choose_for(&self, asked: Option<Precision>, fast: Fast, arithmetic: Arithmetic) -> Result<PrecisionChoice> {
        let exact = arithmetic == Arithmetic::Exact;
        let (precision, reason) = match (asked, self.recommended) {
            (Some(precision), _) if exact && precision != Precision::F32 => {
                return Err(Error::usage(format!("exact arithmetic is f32: it does not go with {precision}")));
            }
            (Some(precision), _) => (precision, "as asked for".into()),
            (None, _) if exact => (Precision::F32, "as exact arithmetic is".into()),
            (None, None) if fast == Fast::Gpu => (Precision::Bf16, "the default on a GPU".into()),
            (None, None) => (Precision::F32, "the default".into()),
            (None, Some(Precision::F32)) => (Precision::F32, "as the model recommends".into()),
            (None, Some(precision)) => match (fast, precision) {
                (Fast::Gpu, _) | (Fast::CpuWithBf16, Precision::Bf16) | (Fast::GpuWithoutBf16, Precision::F16) => {
                    (precision, "as the model recommends".into())
                }
                (Fast::GpuWithoutBf16, _) => {
                    (Precision::F32, "because this GPU has no instructions for bf16, which the model recommends".into())
                }
                (_, Precision::F16) => (Precision::F32, "because f16, which the model recommends, needs a GPU".into()),
                _ => {
                    let reason = "because this CPU has no instructions for bf16, which the model recommends";
                    (Precision::F32, reason.into())
                }
            },
        };
        Ok(PrecisionChoice { precision, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recommendation_counts_where_the_device_is_fast() {
        let choose = |recommended, asked, fast, arithmetic| {
            let note = PrecisionNote { recommended, ..PrecisionNote::default() };
            note.choose_for(asked, fast, arithmetic).map_or_else(|e| e.to_string(), |choice| choice.to_string())
        };
        let (bf16, f16) = (Some(Precision::Bf16), Some(Precision::F16));
        let (quick, exact) = (Arithmetic::Fast, Arithmetic::Exact);
        for fast in [Fast::Gpu, Fast::GpuWithoutBf16, Fast::CpuWithBf16, Fast::Cpu] {
            let default = if fast == Fast::Gpu { "bf16, the default on a GPU" } else { "f32, the default" };
            assert_eq!(choose(None, None, fast, quick), default);
            assert_eq!(choose(bf16, Some(Precision::F32), fast, quick), "f32, as asked for");
            assert_eq!(choose(None, bf16, fast, quick), "bf16, as asked for");
            assert_eq!(choose(bf16, None, fast, exact), "f32, as exact arithmetic is");
            assert_eq!(choose(bf16, bf16, fast, exact), "exact arithmetic is f32: it does not go with bf16");
        }
        assert_eq!(choose(bf16, None, Fast::Gpu, quick), "bf16, as the model recommends");
        assert_eq!(choose(bf16, None, Fast::CpuWithBf16, quick), "bf16, as the model recommends");
        let without = "f32, because this CPU has no instructions for bf16, which the model recommends";
        assert_eq!(choose(bf16, None, Fast::Cpu, quick), without);
        assert_eq!(choose(f16, None, Fast::Gpu, quick), "f16, as the model recommends");
        assert_eq!(choose(f16, None, Fast::GpuWithoutBf16, quick), "f16, as the model recommends");
        let without = "f32, because this GPU has no instructions for bf16, which the model recommends";
        assert_eq!(choose(bf16, None, Fast::GpuWithoutBf16, quick), without);
        assert_eq!(
            choose(f16, None, Fast::CpuWithBf16, quick),
            "f32, because f16, which the model recommends, needs a GPU"
        );
    }

    #[test]
    fn less_than_f32_is_recommended_only_where_it_was_measured() {
        let check = |recommended, bf16| {
            let disagreement = Disagreement { bf16, ..Disagreement::default() };
            let (picture, computed_by) = ("a picture".into(), "a test".into());
            let measured = Some(Measurement { picture, computed_by, pixels: 10, disagreement });
            PrecisionNote { recommended, measured, ..PrecisionNote::default() }.check()
        };
        assert_eq!(check(None, None), Ok(()));
        assert_eq!(check(Some(Precision::F32), None), Ok(()));
        assert_eq!(check(Some(Precision::Bf16), Some(0.004)), Ok(()));
        let message = "precision: f16 is recommended, but its disagreement with f32 was not measured";
        assert_eq!(check(Some(Precision::F16), Some(0.004)).unwrap_err(), message);
        for share in [-0.1, 1.1, f64::NAN] {
            assert!(check(None, Some(share)).unwrap_err().ends_with("differ in bf16; a share is 0 to 1"));
        }
    }
}
