//! Cross-checks of the built program against programs that are not ours: OpenSlide, zarr-python, numpy, nnU-Net.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;
use crate::skips::SkipLog;
use crate::venv::Venv;
use crate::workspace::{Profile, Workspace};

/// How nnU-Net computes: every tile, the slide's own resolution, no mirroring, f32 in a fixed order.
const AS_NNUNET: [&str; 6] = ["--tissue", "none", "--model-mpp", "native", "--no-tta", "--exact"];

/// The nnU-Net results folder that the bundled model was made from, and masks that nnU-Net made with it, under the data folder.
const NNUNET: &str = "models/nnunet-v2-plain";
const NNUNET_FOLDER: &str = "Dataset501_DSBStained/nnUNetTrainer_10epochs__tinyPlans__2d";

/// Everything that pinned packages from the registry can check, with the binary of the dev profile.
pub(crate) fn run(workspace: &Workspace, venv: &Venv, skips: &SkipLog) -> Result<()> {
    let work = workspace.target.join("crosscheck");
    empty_folder(&work)?;
    let slide = workspace.demo_slide()?;
    let script = |name: &str| venv.script(workspace, name);

    // The store of a run with the defaults, as zarr-python and ome-zarr-models see it.
    let store = work.join("defaults.ome.zarr");
    segment(workspace, &slide, &store, &["--no-tta"])?;
    shell::run(script("check_store.py").arg(&store))?;

    // Masks that nnU-Net made, on OpenSlide's pixels and straight from the slide.
    let Some(reference) = workspace.data().map(|data| data.join(NNUNET).join("reference")) else {
        return skips.skip("masks against nnU-Net's", "the folder of real files is absent");
    };
    let lossless = work.join("lossless.tif");
    shell::run(script("lossless_copy.py").arg(&slide).arg(&lossless))?;
    let crop = reference.join("svs_crop_400_600_512.png");
    let no_tta: &[&str] = &AS_NNUNET;
    let with_tta: &[&str] = &["--tissue", "none", "--model-mpp", "native", "--tta", "--exact"];
    for (name, input, flags, expected, min_equal, min_dice) in [
        ("same-pixels", &lossless, no_tta, "cmu_whole_seg_nomirror.png", "0.9999", "0.9995"),
        // One level of difference between JPEG decoders, on 0.44 % of the samples, changes 0.23 % of nnU-Net's own mask.
        ("from-slide", &slide, no_tta, "cmu_whole_seg_nomirror.png", "0.995", "0.99"),
        ("crop", &crop, no_tta, "svs_crop_400_600_512_seg_nomirror.png", "0.9999", "0.9995"),
        ("crop-mirrored", &crop, with_tta, "svs_crop_400_600_512_seg_mirror.png", "0.9999", "0.9995"),
    ] {
        let store = work.join(name).with_extension("ome.zarr");
        segment(workspace, input, &store, flags)?;
        let mut compare = script("compare_masks.py");
        compare.arg(&store).arg(reference.join(expected));
        shell::run(compare.args(["--min-equal", min_equal, "--min-dice", min_dice]))?;
    }
    Ok(())
}

/// Masks of the real nnU-Net, computed here and now.
pub(crate) fn run_nnunet(workspace: &Workspace, venv: &Venv) -> Result<()> {
    let data = workspace.data().context("the nnU-Net folder to compare with is under MICROTOME_DATA: set it")?;
    workspace.build_for_tests()?;
    shell::run(
        venv.script(workspace, "check_nnunet.py")
            .arg(workspace.binary(Profile::Dev))
            .arg(data.join(NNUNET).join(NNUNET_FOLDER))
            .arg(workspace.demo_slide()?)
            .arg(workspace.target.join("crosscheck-nnunet")),
    )
}

/// Segments with the bundled model.
fn segment(workspace: &Workspace, slide: &Path, store: &Path, flags: &[&str]) -> Result<()> {
    let mut command = Command::new(workspace.binary(Profile::Dev));
    command.arg("segment").arg(slide).arg("-m").arg(workspace.bundled_model()).arg("-o").arg(store);
    shell::run(command.args(["--quiet"]).args(flags))
}

/// Makes a folder for the files of a run, empty.
fn empty_folder(path: &Path) -> Result<()> {
    if path.exists() {
        std::fs::remove_dir_all(path).with_context(|| path.display().to_string())?;
    }
    std::fs::create_dir_all(path).with_context(|| path.display().to_string())
}
