//! `cargo xtask demo`: from a real slide to a mask and a picture of it.

use std::process::Command;

use anyhow::Result;

use crate::shell;
use crate::workspace::{Profile, Workspace};

/// Builds the release binary, segments the demo slide with the bundled model, and draws the outlines over the tissue twice: so large
/// that single nuclei can be told, and small, as a slide looks at low power.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let slide = workspace.demo_slide()?;
    shell::run(workspace.cargo().args(["build", "--locked", "--release", "-p", "microtome-cli"]))?;
    let microtome = || {
        let mut command = Command::new(workspace.binary(Profile::Release));
        command.current_dir(&workspace.root);
        command
    };
    std::fs::create_dir_all(workspace.root.join("demo"))?;
    let (store, picture, low) = ("demo/cmu-1.ome.zarr", "demo/cmu-1.png", "demo/cmu-1-low-power.png");
    shell::run(microtome().arg("segment").arg(&slide).args(["-m", "models/nuclei", "-o", store, "--overwrite"]))?;
    for (picture, size, style) in [(picture, "2967", "outline"), (low, "800", "fill")] {
        let flags = ["--overlay", store, "--size", size, "--style", style, "--legend", "--scale-bar"];
        shell::run(microtome().arg("preview").arg(&slide).arg(picture).args(flags))?;
    }
    println!("slide    {}", slide.display());
    println!("mask     {}", workspace.root.join(store).display());
    println!("overlay  {}", workspace.root.join(picture).display());
    println!("         {}, at low power", workspace.root.join(low).display());
    Ok(())
}
