//! An archive of generated slides, what a single process makes of it, and whether others make the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::venv::Venv;
use crate::workspace::{Profile, Workspace};
use crate::{shell, tree};

/// How many slides, and the width of the widest, in pixels.
const SLIDES: usize = 12;
const LONGEST: u64 = 1200;
/// Those that `tests/python/make_archive.py` spoils.
const CORRUPT: &str = "case-04";
const MISSING: &str = "case-09";
/// Every run of a model here: fast, and the same everywhere.
pub(super) const FLAGS: [&str; 6] = ["--model-mpp", "native", "--no-tta", "--tissue", "none", "--quiet"];

/// The archive, and what a single process has made of it.
#[derive(Debug)]
pub(super) struct Archive {
    pub(super) folder: PathBuf,
    pub(super) manifest: PathBuf,
    pub(super) model: PathBuf,
    pub(super) binary: PathBuf,
    /// The batch's folder of a single process.
    whole: PathBuf,
}

impl Archive {
    /// Builds the program, unless it is given, makes the archive anew under `target/NAME`, and runs it in one process.
    pub(super) fn prepare(workspace: &Workspace, name: &str, binary: Option<&Path>) -> Result<Self> {
        let binary = if let Some(binary) = binary {
            binary.canonicalize().with_context(|| binary.display().to_string())?
        } else {
            workspace.build_for_tests()?;
            workspace.binary(Profile::Dev)
        };
        let folder = workspace.target.join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let venv = Venv::prepare(workspace, "venv", "requirements.txt")?;
        let mut make = venv.script(workspace, "make_archive.py");
        make.arg(&folder).arg(workspace.demo_slide()?).arg(SLIDES.to_string()).arg(LONGEST.to_string());
        shell::run(&mut make)?;
        let archive = Self {
            manifest: folder.join("manifest.csv"),
            model: workspace.nnunet_model(),
            binary,
            whole: folder.join("whole"),
            folder,
        };
        let mut batch = Command::new(&archive.binary);
        batch.arg("batch").arg(&archive.manifest).arg("-m").arg(&archive.model).arg("-o").arg(&archive.whole);
        batch.args(FLAGS);
        eprintln!("$ {}", shell::show(&batch));
        // Two slides fail.
        let code = batch.status()?.code();
        ensure!(code == Some(3), "a single process over the archive ended with {code:?} in place of 3");
        Ok(archive)
    }

    /// The ids of the manifest, and whether each slide is sound.
    pub(super) fn slides() -> BTreeMap<String, bool> {
        let id = |i| format!("case-{i:02}");
        (0..SLIDES).map(id).map(|id| (id.clone(), id != CORRUPT && id != MISSING)).collect()
    }

    /// Compares a batch's folder with that of the single process: every mask byte by byte, every `done`, and what the summary says.
    pub(super) fn compare(&self, out: &Path) -> Result<()> {
        let mut files = 0;
        for (id, sound) in Self::slides() {
            let [whole, found] = [&self.whole, out].map(|folder| folder.join(&id));
            ensure!(found.join("done").is_file() == sound, "{id}: a mark that it is done was expected: {sound}");
            let [whole, found] = [whole, found].map(|folder| folder.join("mask.ome.zarr"));
            if !sound {
                ensure!(!found.join("zarr.json").exists(), "{id}: a mask of a slide that cannot be read");
                continue;
            }
            let (whole, found) = (tree::files(&whole)?, tree::files(&found)?);
            ensure!(whole.keys().eq(found.keys()), "{id}: other files than those of a single process");
            if let Some((name, _)) = found.iter().find(|(name, bytes)| whole[*name] != **bytes) {
                bail!("{id}: {} is not what a single process writes", name.display());
            }
            files += found.len();
        }
        let [whole, found] = [&self.whole, out].map(summary);
        let (whole, found) = (whole?, found?);
        ensure!(found.keys().eq(Self::slides().keys()), "the summary has other slides: {:?}", found.keys());
        ensure!(whole == found, "the summary says other things than that of a single process");
        let failed = found.values().filter(|row| row.get("status").is_some_and(|status| status != "done")).count();
        println!("  {files} files of {} masks are those of a single process", found.len() - failed);
        println!(
            "  the summary has {} slides, {failed} of them failed, and says what that of a single process says",
            found.len()
        );
        Ok(())
    }
}

/// The cells of a line of CSV, which may be in quotes.
fn cells(line: &str) -> Vec<String> {
    let (mut cells, mut quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match (c, cells.last_mut()) {
            // Two quotes within quotes are one, and go in and out again here.
            ('"', _) => quoted = !quoted,
            (',', _) if !quoted => cells.push(String::new()),
            (c, Some(cell)) => cell.push(c),
            (_, None) => {}
        }
    }
    cells
}

/// What the summary says of each slide that does not depend on who ran it when.
fn summary(folder: &Path) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let path = folder.join("summary.csv");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut lines = text.lines().map(cells);
    let names = lines.next().context("an empty summary")?;
    lines
        .map(|cells| {
            let row: BTreeMap<String, String> = names.iter().cloned().zip(cells).collect();
            let id = row.get("id").context("a row without an id")?.clone();
            let timeless = ["seconds", "started", "finished", "attempts", "host", "peak_memory"];
            Ok((id, row.into_iter().filter(|(name, _)| !timeless.iter().any(|t| name.contains(t))).collect()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_in_quotes_may_hold_commas() {
        assert_eq!(cells("a,\"b, c\",,d"), ["a", "b, c", "", "d"]);
    }
}
