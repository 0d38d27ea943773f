//! `cargo xtask test`: everything that needs no network beyond the package registries.

use anyhow::Result;

use crate::skips::SkipLog;
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
    workspace.build_for_tests()?;
    let nextest = shell::succeeds(workspace.cargo().args(["nextest", "--version"]));
    let runner: &[&str] = if nextest { &["nextest", "run", "--no-tests=pass"] } else { &["test", "--all-targets"] };
    shell::run(skips.pass_to(workspace.cargo().args(runner).args(["--locked", "--workspace"])))?;
    shell::run(skips.pass_to(workspace.cargo().args(["test", "--locked", "--workspace", "--doc"])))?;
    if python == Python::CrossCheck {
        crosscheck::run(workspace, &skips)?;
    }
    skips.report(workspace)
}
