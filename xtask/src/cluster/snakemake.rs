//! The Snakefile under a real Snakemake, in an environment of its own.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::archive::{Archive, FLAGS};
use crate::shell;
use crate::venv::Venv;
use crate::workspace::Workspace;

/// How many slides are finished when Snakemake is killed.
const FINISHED: usize = 3;
/// How long that may take.
const PATIENCE: Duration = Duration::from_mins(10);

/// Runs the archive, kills Snakemake and all that it started, goes on, and runs it once more. The program is built unless it is given.
pub(super) fn run(workspace: &Workspace, binary: Option<&Path>) -> Result<()> {
    let venv = Venv::prepare(workspace, "venv-snakemake", "requirements-snakemake.txt")?;
    let archive = Archive::prepare(workspace, "snakemake", binary)?;
    let out = archive.folder.join("masks");
    let snakemake = |flags: &[&str]| -> Result<Command> {
        let mut command = venv.python();
        command.args(["-m", "snakemake", "--cores", "4", "--keep-going", "-s"]);
        command.arg(workspace.root.join("deploy/snakemake/Snakefile")).args(flags).current_dir(&archive.folder);
        command.arg("--config").arg(format!("manifest={}", archive.manifest.display()));
        command.arg(format!("model={}", archive.model.display())).arg(format!("out={}", out.display()));
        command.arg(format!("microtome={}", archive.binary.display())).arg(format!("flags={}", FLAGS.join(" ")));
        venv.in_path(&mut command)?;
        Ok(command)
    };

    let mut first = snakemake(&[])?;
    eprintln!("$ {}", shell::show(&first));
    let log = fs::File::create(archive.folder.join("first.log"))?;
    first.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let finished = killed(first, &out)?;
    println!("  killed after {finished} slides, with all that it had started");
    ensure!(!out.join("summary.csv").exists(), "it was killed too late: the summary is there");

    shell::run(&mut snakemake(&["--unlock"])?)?;
    let second = log_of(&mut snakemake(&["--rerun-incomplete"])?, &archive.folder.join("second.log"))?;
    let jobs = second.lines().filter(|line| ["rule slide:", "localrule slide:"].contains(&line.trim())).count();
    println!("  --rerun-incomplete ran {jobs} slides");
    ensure!(jobs + finished >= Archive::slides().len() && jobs < Archive::slides().len(), "it ran {jobs} slides again");
    archive.compare(&out)?;

    let third = log_of(&mut snakemake(&["--rerun-incomplete"])?, &archive.folder.join("third.log"))?;
    ensure!(third.contains("Nothing to be done"), "a second run does something: {third}");
    println!("  the second run says: Nothing to be done");
    Ok(())
}

/// Starts Snakemake in a group of processes of its own, and kills the group once a few slides are finished; how many are.
fn killed(mut command: Command, out: &Path) -> Result<usize> {
    use std::os::unix::process::CommandExt;
    let child = command.process_group(0).spawn().context("cannot start Snakemake")?;
    let mut group = Group(child);
    let finished = || {
        let entries = fs::read_dir(out.join("jobs")).into_iter().flatten().flatten();
        entries.filter(|entry| entry.path().extension().is_some_and(|e| e == "code")).count()
    };
    let begun = Instant::now();
    while finished() < FINISHED {
        ensure!(group.0.try_wait()?.is_none(), "Snakemake ended early; its log is first.log");
        ensure!(begun.elapsed() < PATIENCE, "{FINISHED} slides were not finished within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    group.kill();
    Ok(finished())
}

/// Processes that end together.
struct Group(Child);

impl Group {
    fn kill(&mut self) {
        // Best effort: what has ended cannot be killed.
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.0.id())]).output();
        let _ = self.0.wait();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.kill();
        }
    }
}

/// Runs a command that must succeed, and what it said.
fn log_of(command: &mut Command, log: &Path) -> Result<String> {
    let shown = shell::show(command);
    eprintln!("$ {shown}");
    let file = fs::File::create(log)?;
    let status = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).status()?;
    ensure!(status.success(), "`{shown}` failed ({status}); its log is {}", log.display());
    fs::read_to_string(log).with_context(|| log.display().to_string())
}
