//! Which instructions the kernels use.

use super::kernel::Words;
use crate::{Error, Result};

/// Overrides the choice, for tests and for runs that must give the same bits on unlike machines.
const VARIABLE: &str = "MICROTOME_ISA";

/// An instruction set that there are kernels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InstructionSet {
    /// [`Avx512`](Self::Avx512) with instructions for bf16; for f32 it is no other than that.
    Avx512Bf16,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// Any CPU.
    Portable,
}

impl InstructionSet {
    /// From the fastest to the slowest.
    const ALL: [Self; 4] = [Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Portable];

    /// Those that this CPU has, the fastest first.
    pub(crate) fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|set| set.is_available())
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn is_available(self) -> bool {
        match self {
            Self::Avx512Bf16 => Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("fma")
            }
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Self::Portable => true,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn is_available(self) -> bool {
        self == Self::Portable
    }

    /// The set whose instructions multiply such words: those for bf16 are not used for f32.
    pub(crate) fn with(self, words: Words) -> Self {
        match (self, words) {
            (Self::Avx512Bf16, Words::F32) => Self::Avx512,
            _ => self,
        }
    }

    /// Whether one of its instructions multiplies pairs of bf16; where not, others do so one after the other.
    pub(crate) fn multiplies_bf16(self) -> bool {
        self == Self::Avx512Bf16
    }

    fn name(self) -> &'static str {
        match self {
            Self::Avx512Bf16 => "avx512bf16",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }

    /// The fastest of this CPU, or the one that `MICROTOME_ISA` names.
    ///
    /// # Errors
    /// If the variable names none, or one that this CPU has not.
    pub(crate) fn choose() -> Result<Self> {
        match std::env::var_os(VARIABLE) {
            None => Ok(Self::available().next().unwrap_or(Self::Portable)),
            Some(name) => Self::named(&name.to_string_lossy()),
        }
    }

    fn named(name: &str) -> Result<Self> {
        let refuse = |reason: &str| {
            let known: Vec<&str> = Self::available().map(Self::name).collect();
            let message = format!("{VARIABLE} is {name:?}, which {reason}; here there are {}", known.join(", "));
            Err(Error::Device { message })
        };
        match Self::ALL.into_iter().find(|set| set.name() == name) {
            Some(set) if set.is_available() => Ok(set),
            Some(_) => refuse("this CPU has not"),
            None => refuse("is no instruction set that there are kernels for"),
        }
    }
}

impl std::fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruction_sets_are_chosen_by_name() {
        for set in InstructionSet::available() {
            assert_eq!(InstructionSet::named(&set.to_string()).unwrap(), set);
        }
        let message = InstructionSet::named("mmx").unwrap_err().to_string();
        assert!(message.starts_with("MICROTOME_ISA is \"mmx\", which is no instruction set"), "{message}");
        assert!(message.ends_with("portable"), "{message}");
    }
}
