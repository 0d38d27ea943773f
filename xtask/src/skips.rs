//! Counts the tests that skip themselves, so that "all passed" cannot come to mean "little was run".
//!
//! A test whose files are absent calls `microtome_testkit::skip`, which appends a line to the file named by
//! `MICROTOME_SKIP_LOG`: test runners swallow the output of tests that pass.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::test::Python;
use crate::workspace::Workspace;

/// The log of one run.
#[derive(Debug)]
pub(crate) struct SkipLog {
    path: PathBuf,
}

impl SkipLog {
    /// An empty log under the target directory.
    pub(crate) fn create(workspace: &Workspace) -> Result<Self> {
        let folder = workspace.target.join("xtask");
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let path = folder.join("skipped-tests.txt");
        std::fs::write(&path, "").with_context(|| path.display().to_string())?;
        Ok(Self { path })
    }

    /// Tells a test runner where to log.
    pub(crate) fn pass_to<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("MICROTOME_SKIP_LOG", &self.path)
    }

    /// Logs a check of our own that cannot run.
    pub(crate) fn skip(&self, check: &str, reason: &str) -> Result<()> {
        eprintln!("SKIPPED: {check}: {reason}");
        let mut file = std::fs::OpenOptions::new().append(true).open(&self.path)?;
        writeln!(file, "{check}: {reason}")?;
        Ok(())
    }

    /// Prints what was skipped and compares the number with the one on record: in CI, more is a failure.
    /// There is no record of runs without Python.
    pub(crate) fn report(&self, workspace: &Workspace, python: Python) -> Result<()> {
        let log = std::fs::read_to_string(&self.path).with_context(|| self.path.display().to_string())?;
        let skipped: BTreeSet<&str> = log.lines().filter(|line| !line.is_empty()).collect();
        for line in &skipped {
            println!("SKIPPED: {line}");
        }
        let setting = if workspace.data().is_some() { "with-data" } else { "without-data" };
        let allowed = allowance(workspace, setting)?;
        println!("{} tests skipped; {allowed} on record ({setting})", skipped.len());
        if skipped.len() > allowed && python == Python::CrossCheck {
            let advice = format!("find out why, or record the number in {RECORD}");
            if std::env::var_os("CI").is_some() {
                bail!("{} tests skipped, {allowed} on record ({setting}): {advice}", skipped.len());
            }
            println!("more than on record, which fails in CI: {advice}");
        }
        Ok(())
    }
}

const RECORD: &str = "tests/expected-skips.txt";

/// The number that [`RECORD`] gives for a setting, in a line `setting = number`.
fn allowance(workspace: &Workspace, setting: &str) -> Result<usize> {
    let text = std::fs::read_to_string(workspace.root.join(RECORD)).context(RECORD)?;
    let number = text.lines().filter_map(|line| line.split_once('=')).find(|(name, _)| name.trim() == setting);
    let (_, number) = number.with_context(|| format!("{RECORD} has no line `{setting} = NUMBER`"))?;
    number.trim().parse().with_context(|| format!("{RECORD}: {setting}"))
}
