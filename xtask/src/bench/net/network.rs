//! The networks of `bench net`, and what is aimed at for each.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::contender::{Contender, Instructions, Precision, Program};
use crate::bench::{Bench, python};
use crate::shell;

/// A network, by its name in `tests/python/bench_network.py`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    Stock,
    ResEnc,
    Small,
    Nuclei,
}

/// How many times as fast as the fastest of some programs the corresponding one of ours should be.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) theirs: &'static [Contender],
    pub(super) times: f64,
}

const fn theirs(program: Program, precision: Precision, instructions: Instructions) -> Contender {
    Contender::new(program, precision, instructions)
}

const EAGER: &[Contender] = &[
    theirs(Program::Eager, Precision::F32, Instructions::All),
    theirs(Program::ChannelsLast, Precision::F32, Instructions::All),
];
const COMPILED: &[Contender] = &[theirs(Program::Compiled, Precision::F32, Instructions::All)];
const EAGER_BF16: &[Contender] = &[
    theirs(Program::Eager, Precision::Bf16, Instructions::All),
    theirs(Program::ChannelsLast, Precision::Bf16, Instructions::All),
];
const COMPILED_BF16: &[Contender] = &[theirs(Program::Compiled, Precision::Bf16, Instructions::All)];
const EAGER_AVX2: &[Contender] = &[theirs(Program::Eager, Precision::F32, Instructions::Avx2)];
const COMPILED_AVX2: &[Contender] = &[theirs(Program::Compiled, Precision::F32, Instructions::Avx2)];

const STOCK: [Target; 6] = [
    Target { theirs: EAGER, times: 2.5 },
    Target { theirs: COMPILED, times: 2.0 },
    Target { theirs: EAGER_BF16, times: 1.6 },
    Target { theirs: COMPILED_BF16, times: 1.5 },
    Target { theirs: EAGER_AVX2, times: 1.5 },
    Target { theirs: COMPILED_AVX2, times: 1.5 },
];
const NUCLEI: [Target; 3] = [
    Target { theirs: EAGER, times: 3.0 },
    Target { theirs: EAGER_AVX2, times: 1.5 },
    Target { theirs: COMPILED_AVX2, times: 1.5 },
];
const OTHERS: [Target; 2] = [Target { theirs: EAGER_AVX2, times: 1.5 }, Target { theirs: COMPILED_AVX2, times: 1.5 }];

impl Network {
    const ALL: [Self; 4] = [Self::Stock, Self::ResEnc, Self::Small, Self::Nuclei];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::ResEnc => "resenc",
            Self::Small => "small",
            Self::Nuclei => "nuclei",
        }
    }

    /// Those with these names, or all.
    pub(super) fn chosen(names: Option<&[String]>) -> Result<Vec<Self>> {
        let Some(names) = names else { return Ok(Self::ALL.to_vec()) };
        let named = |name: &String| {
            let Some(network) = Self::ALL.into_iter().find(|network| network.name() == name) else {
                let known: Vec<&str> = Self::ALL.map(Self::name).to_vec();
                bail!("no network is called {name}; there are {}", known.join(", "))
            };
            Ok(network)
        };
        names.iter().map(named).collect()
    }

    pub(super) fn targets(self) -> &'static [Target] {
        match self {
            Self::Stock => &STOCK,
            Self::Nuclei => &NUCLEI,
            Self::ResEnc | Self::Small => &OTHERS,
        }
    }

    /// Most memory that a pass over one tile may take in f32, with packed weights, in megabytes.
    pub(super) fn memory(self) -> Option<f64> {
        (self == Self::Stock).then_some(700.0)
    }
}

/// A network that was made, with its weights and a tile.
#[derive(Debug)]
pub(super) struct Made {
    /// An nnU-Net result folder, with `tile.rgb`.
    pub(super) folder: PathBuf,
    pub(super) description: String,
    pub(super) side: usize,
    pub(super) parameters: u64,
    /// Multiplications of one pass over one tile, each with its addition.
    pub(super) multiplications: u64,
}

impl Made {
    pub(super) fn make(bench: &Bench<'_>, network: Network) -> Result<Self> {
        let folder = bench.work.join(format!("net-{}", network.name()));
        let mut command = python::script(bench, "bench_network.py")?;
        shell::run(command.arg(network.name()).arg(&folder).arg(bench.workspace.demo_slide()?))?;
        Self::read(folder)
    }

    fn read(folder: PathBuf) -> Result<Self> {
        let path: &Path = &folder.join("network.json");
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let value: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let number = |key: &str| value[key].as_u64().with_context(|| format!("{}: no {key}", path.display()));
        Ok(Self {
            description: value["description"].as_str().unwrap_or_default().to_owned(),
            side: number("side")? as usize,
            parameters: number("parameters")?,
            multiplications: number("multiplications")?,
            folder,
        })
    }

    /// Of one pass over one tile; a multiplication and its addition are two.
    pub(super) fn gflop(&self) -> f64 {
        self.multiplications as f64 * 2e-9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_chosen_by_name() {
        let names = |names: &[&str]| Network::chosen(Some(&names.iter().map(ToString::to_string).collect::<Vec<_>>()));
        assert_eq!(names(&["nuclei", "stock"]).unwrap(), [Network::Nuclei, Network::Stock]);
        assert_eq!(Network::chosen(None).unwrap(), Network::ALL);
        let message = names(&["vgg"]).unwrap_err().to_string();
        assert_eq!(message, "no network is called vgg; there are stock, resenc, small, nuclei");
    }

    #[test]
    fn targets_are_of_contenders_that_take_part() {
        for target in Network::ALL.into_iter().flat_map(Network::targets) {
            assert!(target.theirs.iter().all(|theirs| Contender::ALL.contains(theirs)), "{target:?}");
            let ours = target.theirs[0].ours();
            assert!(target.theirs.iter().all(|theirs| theirs.ours() == ours), "{target:?}");
        }
    }
}
