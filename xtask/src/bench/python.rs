//! The scripts of `tests/python` that a bench runs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Bench;
use crate::shell;

const VENV: &str = "venv-bench";
const REQUIREMENTS: &str = "requirements-bench.txt";

/// A script with an interpreter that has PyTorch, nnU-Net and MONAI.
pub(super) fn script(bench: &Bench<'_>, name: &str) -> Result<Command> {
    let mut command = bench.python(VENV, REQUIREMENTS)?;
    command.arg(bench.workspace.root.join("tests/python").join(name));
    Ok(command)
}

/// Share of equal pixels of two masks, and Dice.
pub(super) fn compare(bench: &Bench<'_>, mask: &Path, reference: &Path) -> Result<(f64, f64)> {
    let text = shell::read(script(bench, "compare_masks.py")?.arg(mask).arg(reference).arg("--json"))?;
    let value: Value = serde_json::from_str(&text).context("compare_masks.py --json")?;
    let number = |key: &str| value[key].as_f64().with_context(|| format!("compare_masks.py --json: no {key}"));
    Ok((number("equal")?, number("dice")?))
}
