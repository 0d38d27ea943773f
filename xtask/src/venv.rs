//! Python environments for cross-checks, made from pinned requirements under the target directory.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell;
use crate::workspace::Workspace;

/// A Python environment that holds exactly what a requirements file names.
#[derive(Debug)]
pub(crate) struct Venv {
    folder: PathBuf,
}

impl Venv {
    /// The environment `target/NAME` with the packages of `tests/python/REQUIREMENTS`.
    ///
    /// Made on the first call and again when the requirements change; in between, a call touches no network.
    /// The stamp that says so is a copy of the requirements, written when everything is installed.
    pub(crate) fn prepare(workspace: &Workspace, name: &str, requirements: &str) -> Result<Self> {
        let venv = Self { folder: workspace.target.join(name) };
        let requirements = workspace.root.join("tests/python").join(requirements);
        let wanted = std::fs::read(&requirements).with_context(|| requirements.display().to_string())?;
        let stamp = venv.folder.join("requirements.stamp");
        if std::fs::read(&stamp).is_ok_and(|installed| installed == wanted) && shell::succeeds(venv.python().arg("-V"))
        {
            return Ok(venv);
        }
        if venv.folder.exists() {
            std::fs::remove_dir_all(&venv.folder).with_context(|| venv.folder.display().to_string())?;
        }
        shell::run(Command::new(interpreter()?).args(["-m", "venv"]).arg(&venv.folder))?;
        shell::run(
            venv.python()
                .args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "-r"])
                .arg(&requirements),
        )?;
        std::fs::write(&stamp, wanted).with_context(|| stamp.display().to_string())?;
        Ok(venv)
    }

    /// The environment's interpreter.
    pub(crate) fn python(&self) -> Command {
        let (folder, name) = if cfg!(windows) { ("Scripts", "python.exe") } else { ("bin", "python") };
        Command::new(self.folder.join(folder).join(name))
    }

    /// Puts the environment's programs before all others that a command finds.
    pub(crate) fn in_path(&self, command: &mut Command) -> Result<()> {
        let programs = self.folder.join(if cfg!(windows) { "Scripts" } else { "bin" });
        let others = std::env::var_os("PATH").unwrap_or_default();
        let all = std::env::join_paths(std::iter::once(programs).chain(std::env::split_paths(&others)))?;
        command.env("PATH", all);
        Ok(())
    }

    /// The interpreter with a script of `tests/python` to run.
    pub(crate) fn script(&self, workspace: &Workspace, name: &str) -> Command {
        let mut command = self.python();
        command.arg(workspace.root.join("tests/python").join(name));
        command
    }
}

/// A Python that the pinned packages have wheels for.
fn interpreter() -> Result<PathBuf> {
    const CHECK: &str = "import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))";
    let given = std::env::var_os("PYTHON").map(PathBuf::from);
    let names = ["python3.11", "python3.12", "python3.13", "python3", "python"].map(PathBuf::from);
    let found = given.into_iter().chain(names).find(|name| shell::succeeds(Command::new(name).args(["-c", CHECK])));
    let Some(found) = found else {
        bail!(
            "the cross-checks need Python 3.11 to 3.13 with venv and pip (Debian: python3-venv); set PYTHON to one, or \
             run `cargo xtask test --no-python`"
        )
    };
    Ok(found)
}
