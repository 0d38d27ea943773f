//! `cargo xtask cuda`: the CUDA backend on machines without CUDA.

pub(crate) mod bench;

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::shell;
use crate::workspace::Workspace;

/// Type-checks and lints the code behind the feature `cudnn`, which includes `cuda`. A script stands in for nvcc.
pub(crate) fn lint(workspace: &Workspace) -> Result<()> {
    shell::run(
        workspace
            .cargo()
            .env("NVCC", workspace.root.join("xtask/cuda/nvcc-check"))
            .env("CUDA_COMPUTE_CAP", "90")
            .env("CUDARC_CUDA_VERSION", "13000")
            .args(["clippy", "--locked", "-p", "microtome-unet", "--all-targets", "--no-deps", "--features", "cudnn"])
            // A folder of its own: candle's kernels, compiled here to nothing, must never be linked into a real build.
            .arg("--target-dir")
            .arg(workspace.target.join("cuda-lint"))
            .args(["--", "-D", "warnings"]),
    )
}

/// Builds `microtome` with CUDA and cuDNN, from a toolkit that comes as Python wheels. Minutes, and 2 GB of disk for the toolkit.
/// Its target folder is apart from the others'.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    shell::run(
        Command::new(workspace.root.join("xtask/cuda/build.sh"))
            .current_dir(&workspace.root)
            .env("CARGO_TARGET_DIR", &workspace.target),
    )
}

/// Where [`build`] leaves its programs: apart from all others, because what they link with is not what others link with.
fn programs(workspace: &Workspace) -> PathBuf {
    workspace.target.join("cuda/target/release")
}
