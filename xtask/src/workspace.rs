//! Where things are: asked of cargo, so that `CARGO_TARGET_DIR` and configuration files are respected.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::shell;

/// The compiler profile of a build.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Profile {
    Dev,
    Release,
}

/// Folders of the workspace.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The folder of the root `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target directory.
    pub(crate) target: PathBuf,
    metadata: Value,
}

impl Workspace {
    /// Asks cargo. The first call on a machine downloads the packages of `Cargo.lock`, later ones work offline.
    pub(crate) fn load() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
        let text = shell::read(
            shell::cargo().args(["metadata", "--format-version", "1", "--locked", "--manifest-path"]).arg(manifest),
        )?;
        let metadata: Value = serde_json::from_str(&text).context("the output of cargo metadata")?;
        let folder = |key: &str| {
            let path = metadata[key].as_str().with_context(|| format!("cargo metadata names no {key}"))?;
            anyhow::Ok(PathBuf::from(path))
        };
        Ok(Self { root: folder("workspace_root")?, target: folder("target_directory")?, metadata })
    }

    /// A cargo command at the root of the workspace.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = shell::cargo();
        cargo.current_dir(&self.root);
        cargo
    }

    /// The `microtome` binary of a profile, as `cargo build` leaves it.
    pub(crate) fn binary(&self, profile: Profile) -> PathBuf {
        let folder = match profile {
            Profile::Dev => "debug",
            Profile::Release => "release",
        };
        self.target.join(folder).join(format!("microtome{}", std::env::consts::EXE_SUFFIX))
    }

    /// Builds the tests, the examples and the binary in the dev profile.
    /// `--tests` makes features resolve as for a test run, so that nothing is compiled twice.
    pub(crate) fn build_for_tests(&self) -> Result<()> {
        shell::run(self.cargo().args(["build", "--locked", "--workspace", "--bins", "--tests", "--examples"]))
    }

    /// The small model of nnU-Net's that tests and benches run: its masks are known from nnU-Net itself.
    pub(crate) fn nnunet_model(&self) -> PathBuf {
        self.root.join("tests/models/nnunet-nuclei")
    }

    /// CMU-1-Small-Region.svs (Aperio, 2220 x 2967 pixels, 0.499 um, CC0), which travels inside the package openslide-rs.
    pub(crate) fn demo_slide(&self) -> Result<PathBuf> {
        let packages = self.metadata["packages"].as_array().context("cargo metadata lists no packages")?;
        let package =
            packages.iter().find(|p| p["name"] == "openslide-rs").context("openslide-rs is not in Cargo.lock")?;
        let manifest = Path::new(package["manifest_path"].as_str().context("openslide-rs has no manifest path")?);
        let slide = manifest.with_file_name("tests").join("assets/default.svs");
        ensure!(slide.is_file(), "{}: not in the package of openslide-rs any more", slide.display());
        Ok(slide)
    }

    /// The folder of real files that some tests read: `MICROTOME_DATA`, or `../shared/data` beside the workspace.
    /// `microtome_testkit::data` looks in the same places.
    pub(crate) fn data(&self) -> Option<PathBuf> {
        let folder = match std::env::var_os("MICROTOME_DATA") {
            Some(folder) => PathBuf::from(folder),
            None => self.root.join("../shared/data"),
        };
        folder.is_dir().then_some(folder)
    }
}
