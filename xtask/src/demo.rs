//! `cargo xtask demo`: from a real slide to a mask and a picture of it.

use std::process::Command;

use anyhow::Result;

use crate::shell;
use crate::workspace::{Profile, Workspace};

/// Builds the release binary, segments the demo slide with the bundled model and draws the outlines over the tissue.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let slide = workspace.demo_slide()?;
    shell::run(workspace.cargo().args(["build", "--locked", "--release", "-p", "microtome-cli"]))?;
    let microtome = || {
        let mut command = Command::new(workspace.binary(Profile::Release));
        command.current_dir(&workspace.root);
        command
    };
    std::fs::create_dir_all(workspace.root.join("demo"))?;
    let (store, picture) = ("demo/cmu-1.ome.zarr", "demo/cmu-1.png");
    shell::run(microtome().arg("segment").arg(&slide).args(["-m", "models/nuclei", "-o", store, "--overwrite"]))?;
    shell::run(microtome().arg("preview").arg(&slide).args([picture, "--overlay", store, "--size", "2048"]))?;
    println!("slide    {}", slide.display());
    println!("mask     {}", workspace.root.join(store).display());
    println!("overlay  {}", workspace.root.join(picture).display());
    Ok(())
}
