//! Object stores: the program against an S3 service on loopback, over a connection that fails.

use std::path::Path;

use anyhow::Result;

use crate::shell;
use crate::venv::Venv;
use crate::workspace::{Profile, Workspace};

pub(super) fn run(workspace: &Workspace, work: &Path) -> Result<()> {
    let venv = Venv::prepare(workspace, "venv-remote", "requirements-remote.txt")?;
    let mut check = venv.script(workspace, "check_remote.py");
    check.arg(workspace.binary(Profile::Dev)).arg(workspace.demo_slide()?);
    let model = workspace.nnunet_model();
    shell::run(check.arg(&model).arg(model.join("test/input.png")).arg(work.join("remote")))
}
