//! `cargo xtask check deploy | slurm | snakemake`: the files under `deploy`, by their syntax and with the real programs that they are for.
//!
//! The latter two run an archive of twelve generated slides, of which one is corrupt and one missing, are killed in the middle, go on, and are compared
//! with a single process. None of it is part of `cargo xtask check` or `test`, which need no daemons.

mod archive;
mod files;
mod slurm;
mod snakemake;

use std::path::Path;

use anyhow::{Result, bail};

use crate::workspace::Workspace;

/// Runs one of the checks. `--binary PATH` is the `microtome` that runs, in place of one that is built.
pub(crate) fn run(workspace: &Workspace, name: &str, options: &[&str]) -> Result<()> {
    let binary = match *options {
        [] => None,
        ["--binary", path] => Some(Path::new(path)),
        _ => bail!("check {name} takes --binary PATH, and here is {}", options.join(" ")),
    };
    match name {
        "slurm" => slurm::run(workspace, binary),
        "snakemake" => snakemake::run(workspace, binary),
        _ => files::run(workspace),
    }
}
