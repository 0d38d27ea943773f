//! Who takes part in `bench net`, and how each is started.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::bench::{Bench, machine, python};

/// What computes the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Fast,
    Exact,
    /// candle's operations, which microtome keeps as its plain reference.
    Candle,
    Eager,
    ChannelsLast,
    Compiled,
}

/// The type of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precision {
    F32,
    Bf16,
}

/// The instructions that a program may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Instructions {
    /// All that the processor has.
    All,
    /// No more than AVX2.
    Avx2,
}

/// One line of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Contender {
    pub(super) program: Program,
    pub(super) precision: Precision,
    pub(super) instructions: Instructions,
}

/// Of processors that multiply bf16. Without one of them PyTorch converts each number: seconds for a pass that takes one in f32.
const BF16: [&str; 3] = ["avx512_bf16", "amx_bf16", "bf16"];

impl Contender {
    /// Who takes part, and in which order they take turns.
    pub(super) const ALL: [Self; 14] = {
        use Program::{Candle, ChannelsLast, Compiled, Eager, Exact, Fast};
        [
            Self::new(Fast, Precision::F32, Instructions::All),
            Self::new(Exact, Precision::F32, Instructions::All),
            Self::new(Candle, Precision::F32, Instructions::All),
            Self::new(Eager, Precision::F32, Instructions::All),
            Self::new(ChannelsLast, Precision::F32, Instructions::All),
            Self::new(Compiled, Precision::F32, Instructions::All),
            Self::new(Fast, Precision::Bf16, Instructions::All),
            Self::new(Eager, Precision::Bf16, Instructions::All),
            Self::new(ChannelsLast, Precision::Bf16, Instructions::All),
            Self::new(Compiled, Precision::Bf16, Instructions::All),
            Self::new(Fast, Precision::F32, Instructions::Avx2),
            Self::new(Exact, Precision::F32, Instructions::Avx2),
            Self::new(Eager, Precision::F32, Instructions::Avx2),
            Self::new(Compiled, Precision::F32, Instructions::Avx2),
        ]
    };

    pub(super) const fn new(program: Program, precision: Precision, instructions: Instructions) -> Self {
        Self { program, precision, instructions }
    }

    pub(super) fn name(self) -> String {
        let program = match self.program {
            Program::Fast => "ours",
            Program::Exact => "ours, exact",
            Program::Candle => "candle's operations",
            Program::Eager => "PyTorch eager",
            Program::ChannelsLast => "PyTorch eager, channels last",
            Program::Compiled => "PyTorch compiled",
        };
        let precision = if self.precision == Precision::Bf16 { ", bf16" } else { "" };
        let instructions = if self.instructions == Instructions::Avx2 { ", AVX2" } else { "" };
        format!("{program}{precision}{instructions}")
    }

    /// The one of ours that this is compared with: as many bits, the same instructions.
    pub(super) fn ours(self) -> Self {
        Self { program: Program::Fast, ..self }
    }

    /// True for those that are ours and answer what the processor can do.
    pub(super) fn is_ours(self) -> bool {
        matches!(self.program, Program::Fast | Program::Exact | Program::Candle)
    }

    /// Why it need not be tried on this machine.
    pub(super) fn pointless(self) -> Option<&'static str> {
        let torch = !self.is_ours() && self.precision == Precision::Bf16;
        let without = torch && !machine::has_any(&BF16);
        without.then_some("skipped: this processor has no instructions for bf16, and PyTorch's pass would take seconds")
    }

    /// The program, which then answers questions, with the network in this folder.
    pub(super) fn command(self, bench: &Bench<'_>, folder: &Path) -> Result<Command> {
        let way = match self.program {
            Program::Fast => "fast",
            Program::Exact => "exact",
            Program::Candle => "reference",
            Program::Eager => "eager",
            Program::ChannelsLast => "channels-last",
            Program::Compiled => "compiled",
        };
        let mut command = if self.is_ours() {
            let mut command = bench.network(folder, &folder.join("tile.rgb"));
            command.args(["--arithmetic", way]);
            if self.instructions == Instructions::Avx2 {
                command.env("MICROTOME_ISA", "avx2");
            }
            command
        } else {
            let mut command = python::script(bench, "bench_torch.py")?;
            command.arg(folder).args(["--way", way]);
            if self.program == Program::Compiled {
                // A folder of its own: nothing that another compiled, for other instructions perhaps.
                let own = self.name().replace([',', ' '], "");
                command.env("TORCHINDUCTOR_CACHE_DIR", compiled(folder).join(own));
            }
            if self.instructions == Instructions::Avx2 {
                command.envs([("ATEN_CPU_CAPABILITY", "avx2"), ("ONEDNN_MAX_CPU_ISA", "AVX2")]);
            }
            command
        };
        command.args(["--precision", if self.precision == Precision::Bf16 { "bf16" } else { "f32" }]);
        Ok(command)
    }
}

/// Where `torch.compile` puts what it compiles for the network of a folder.
pub(super) fn compiled(folder: &Path) -> PathBuf {
    folder.join("compiled")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_name_of_its_own_and_one_of_ours_beside_it() {
        let names: std::collections::BTreeSet<String> = Contender::ALL.iter().map(|c| c.name()).collect();
        assert_eq!(names.len(), Contender::ALL.len());
        assert!(names.contains("PyTorch compiled, bf16") && names.contains("ours, exact, AVX2"));
        for contender in Contender::ALL {
            assert!(Contender::ALL.contains(&contender.ours()), "{contender:?}");
            assert!(contender.ours().is_ours());
        }
    }
}
