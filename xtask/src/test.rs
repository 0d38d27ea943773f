//! `cargo xtask test`: everything that needs no network beyond the package registries.

use anyhow::Result;

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
        crosscheck::run(workspace, venv, &skips)?;
    }
    skips.report(workspace, python)
}
