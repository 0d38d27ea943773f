//! `cargo xtask check`: what a change must pass besides its tests.

use std::path::PathBuf;

use anyhow::Result;

use crate::venv::Venv;
use crate::workspace::Workspace;
use crate::{crosscheck, cuda, shell};

/// Format, lints, documentation, dependencies and the CUDA lint: the cheap ones first.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    shell::run(workspace.cargo().args(["fmt", "--all", "--check"]))?;
    let deny = cargo_deny(workspace)?;
    // Not `advisories`: that database is a git repository, and this command must do with the package registries.
    shell::run(
        std::process::Command::new(deny)
            .current_dir(&workspace.root)
            .args(["--locked", "check", "licenses", "bans", "sources"]),
    )?;
    shell::run(workspace.cargo().args(["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    // As it is without the features that the command has by default.
    shell::run(workspace.cargo().args([
        "clippy",
        "--locked",
        "--package",
        "microtome-io",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    shell::run(workspace.cargo().env("RUSTDOCFLAGS", "-D warnings").args([
        "doc",
        "--locked",
        "--workspace",
        "--no-deps",
    ]))?;
    cuda::lint(workspace)
}

/// Compares with the real nnU-Net, in an environment that holds PyTorch.
pub(crate) fn run_nnunet(workspace: &Workspace) -> Result<()> {
    crosscheck::run_nnunet(workspace, &Venv::prepare(workspace, "venv-full", "requirements-full.txt")?)
}

/// cargo-deny: the installed one, or our own under the target directory.
fn cargo_deny(workspace: &Workspace) -> Result<PathBuf> {
    const VERSION: &str = "0.20.2";
    if shell::succeeds(std::process::Command::new("cargo-deny").arg("--version")) {
        return Ok("cargo-deny".into());
    }
    let tools = workspace.target.join("tools");
    let deny = tools.join("bin").join(format!("cargo-deny{}", std::env::consts::EXE_SUFFIX));
    if !shell::succeeds(std::process::Command::new(&deny).arg("--version")) {
        // It runs for a second: compiling it fast matters more than the speed of what is compiled.
        shell::run(
            shell::cargo()
                .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
                .env("CARGO_PROFILE_RELEASE_LTO", "off")
                .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
                .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
                .args(["install", "--locked", "cargo-deny", "--version", VERSION, "--no-default-features", "--root"])
                .arg(&tools)
                .arg("--target-dir")
                .arg(tools.join("target")),
        )?;
    }
    Ok(deny)
}
