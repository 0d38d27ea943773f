//! `cargo xtask test`: everything that needs no network beyond the package registries.

use anyhow::Result;

use crate::openslide::OpenSlide;
use crate::skips::SkipLog;
use crate::venv::Venv;
use crate::workspace::Workspace;
use crate::{crosscheck, shell};

/// Whether the Python cross-checks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Python {
    CrossCheck,
    Skip,
}

/// Builds and runs the tests of the workspace, the examples in its documentation, and the Python cross-checks.
pub(crate) fn run(workspace: &Workspace, python: Python) -> Result<()> {
    let skips = SkipLog::create(workspace)?;
    let venv = match python {
        Python::CrossCheck => Some(Venv::prepare(workspace, "venv", "requirements.txt")?),
        Python::Skip => None,
    };
    workspace.build_for_tests()?;
    let nextest = shell::succeeds(workspace.cargo().args(["nextest", "--version"]));
    let runner: &[&str] = if nextest {
        &["nextest", "run", "--no-tests=pass", "--no-fail-fast"]
    } else {
        &["test", "--all-targets", "--no-fail-fast"]
    };
    for arguments in [runner, &["test", "--doc"]] {
        let mut cargo = workspace.cargo();
        if let Some(venv) = &venv {
            // Some tests of the crates have their output read by Python.
            cargo.env("MICROTOME_PYTHON", venv.python().get_program());
        }
        shell::run(skips.pass_to(cargo.args(arguments).args(["--locked", "--workspace"])))?;
    }
    if let Some(venv) = &venv {
        run_with_openslide(workspace, venv, runner, &skips)?;
        crosscheck::run(workspace, venv, &skips)?;
    }
    skips.report(workspace, python)
}

/// The tests of slides once more, with OpenSlide as a second reader, and with libjpeg-turbo, which gives OpenSlide's pixels bit for
/// bit. Of `io` alone: other crates know nothing of it, and candle need not be built again.
fn run_with_openslide(workspace: &Workspace, venv: &Venv, runner: &[&str], skips: &SkipLog) -> Result<()> {
    let openslide = match OpenSlide::prepare(workspace, || venv.python())? {
        Ok(openslide) => openslide,
        Err(missing) => return skips.skip("tests of slides with the features openslide and turbojpeg", &missing),
    };
    let mut cargo = workspace.cargo();
    cargo.args(runner).args(["--locked", "-p", "microtome-io", "--features", "openslide,turbojpeg"]);
    // libjpeg-turbo is built by the environment's cmake.
    venv.in_path(&mut cargo)?;
    cargo.env("MICROTOME_PYTHON", venv.python().get_program());
    shell::run(skips.pass_to(openslide.pass_to(&mut cargo)))
}
