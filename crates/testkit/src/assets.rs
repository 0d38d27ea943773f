//! Real files to test with, none of them in the repository.
//!
//! openslide-rs 3.0.0 carries a few slides in its package, so that every machine that can build this workspace has them
//! in cargo's registry. Larger sets lie in a folder of their own; see [`data`](crate::data).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// OpenSlide's `CMU-1-Small-Region.svs` (CC0): an Aperio SVS of 2220 x 2967 pixels in JPEG tiles of 240 x 240.
pub fn cmu_small_region() -> Option<PathBuf> {
    openslide_asset("default.svs")
}

/// A file of openslide-rs' own `tests/assets`, or `None` (the test is then reported as skipped) if cargo does not know where they are.
pub fn openslide_asset(name: &str) -> Option<PathBuf> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let path =
        FOLDER.get_or_init(openslide_assets).as_ref().map(|folder| folder.join(name)).filter(|path| path.exists());
    if path.is_none() {
        crate::skip(&format!("{name} of openslide-rs is not in cargo's registry; `cargo fetch` brings it"));
    }
    path
}

/// The folder of real test data, or `None` where it is absent; [`data`](crate::data) finds a file in it.
pub fn data() -> Option<PathBuf> {
    crate::data("")
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Asks cargo where it unpacked openslide-rs; xtask depends on it for this purpose and never builds it.
fn openslide_assets() -> Option<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--offline"])
        .current_dir(workspace())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let package = metadata["packages"].as_array()?.iter().find(|package| package["name"] == "openslide-rs")?;
    Some(Path::new(package["manifest_path"].as_str()?).parent()?.join("tests/assets"))
}
