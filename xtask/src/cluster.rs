//! `cargo xtask check deploy | slurm | snakemake`: the files under `deploy`, by their syntax and with the real programs that they are for.
//!
//! The latter two run an archive of twelve generated slides, of which one is corrupt and one missing, are killed in the middle, go on, and are compared
//! with a single process. None of it is part of `cargo xtask check` or `test`, which need no daemons.

mod archive;
mod files;
mod slurm;
mod snakemake;

pub(crate) use files::run as files;
pub(crate) use slurm::run as slurm;
pub(crate) use snakemake::run as snakemake;
