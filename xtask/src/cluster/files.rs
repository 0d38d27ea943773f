//! The syntax of the files under `deploy`, as far as the package registries have programs that know it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::shell;
use crate::venv::Venv;
use crate::workspace::Workspace;

/// Shell scripts by bash, the Snakefile by Snakemake, Kubernetes by its schemas, Nextflow by a parser of its language.
pub(super) fn run(workspace: &Workspace) -> Result<()> {
    let deploy = workspace.root.join("deploy");
    let mut scripts = files(&deploy.join("slurm"), "sbatch")?;
    scripts.extend(files(&deploy.join("slurm"), "sh")?);
    ensure!(!scripts.is_empty(), "there are no scripts in deploy/slurm");
    for script in &scripts {
        shell::run(Command::new("bash").arg("-n").arg(script))?;
    }
    let venv = Venv::prepare(workspace, "venv-deploy", "requirements-deploy.txt")?;
    let mut kubernetes = venv.python();
    kubernetes.args(["-m", "kubernetes_validate", "--strict", "--kubernetes-version", "1.33"]);
    shell::run(kubernetes.args(files(&deploy.join("kubernetes"), "yaml")?))?;
    shell::run(venv.script(workspace, "check_nextflow.py").arg(deploy.join("nextflow")))
}

/// The files of a folder with this ending, in the order of their names.
fn files(folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|e| e == ending));
    files.sort();
    Ok(files)
}
