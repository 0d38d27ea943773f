//! Cross-checks of the built program against programs that are not ours: OpenSlide, zarr-python, ome-zarr-py, numpy, nnU-Net.

mod pyramids;
mod remote;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;
use crate::skips::SkipLog;
use crate::venv::Venv;
use crate::workspace::{Profile, Workspace};

/// The nnU-Net results folder that `tests/models/nnunet-nuclei` was made from, and masks that nnU-Net made with it, under the data folder.
pub(crate) const NNUNET: &str = "models/nnunet-v2-plain";
pub(crate) const NNUNET_FOLDER: &str = "Dataset501_DSBStained/nnUNetTrainer_10epochs__tinyPlans__2d";
/// Pictures with their truth, on which that model was trained.
const DSB: &str = "seg/dsb2018-stained";
/// The same pictures with the index that says of which kind each is; most of them trained the bundled model, and the others test it.
const SEG: &str = "seg";

/// What pinned packages say of the stores that the built program leaves, with the binary of the dev profile.
/// (What the library computes is compared in `tests/pipeline/parity.rs`.)
pub(crate) fn run(workspace: &Workspace, venv: &Venv, skips: &SkipLog) -> Result<()> {
    let work = workspace.target.join("crosscheck");
    empty_folder(&work)?;

    let store = work.join("defaults.ome.zarr");
    segment(workspace, &workspace.demo_slide()?, &store, &["--no-tta"])?;
    shell::run(venv.script(workspace, "check_store.py").arg(&store))?;
    pyramids::run(workspace, venv, skips, &work)?;
    remote::run(workspace, &work)?;

    // The flags with which a user asks for nnU-Net's mask.
    let Some(data) = workspace.data() else {
        skips.skip("the bundled model on images that it was not trained on", "the folder of real files is absent")?;
        return skips.skip("masks of the program against nnU-Net's", "the folder of real files is absent");
    };
    let reference = data.join(NNUNET).join("reference");
    for (mirroring, expected) in [("--tta", "mirror"), ("--no-tta", "nomirror")] {
        let store = work.join(expected).with_extension("ome.zarr");
        let flags = ["--tissue", "none", "--model-mpp", "native", "--exact", mirroring];
        segment(workspace, &reference.join("svs_crop_400_600_512.png"), &store, &flags)?;
        let expected = reference.join(format!("svs_crop_400_600_512_seg_{expected}.png"));
        let mut compare = venv.script(workspace, "compare_masks.py");
        shell::run(compare.arg(&store).arg(expected).args(["--min-equal", "0.9999", "--min-dice", "0.9995"]))?;
    }
    let mut nuclei = venv.script(workspace, "check_nuclei.py");
    shell::run(nuclei.arg(workspace.binary(Profile::Dev)).arg(data.join(SEG)).arg(work.join("nuclei")))
}

/// Masks of the real nnU-Net, computed here and now.
pub(crate) fn run_nnunet(workspace: &Workspace, venv: &Venv) -> Result<()> {
    let data = workspace.data().context("the nnU-Net folder to compare with is under MICROTOME_DATA: set it")?;
    workspace.build_for_tests()?;
    let (binary, slide) = (workspace.binary(Profile::Dev), workspace.demo_slide()?);
    let (model, work) = (data.join(NNUNET).join(NNUNET_FOLDER), workspace.target.join("crosscheck-nnunet"));
    let mut trained = venv.script(workspace, "check_nnunet.py");
    shell::run(trained.arg(&binary).arg(&model).arg(&slide).arg(&work))?;
    let mut random = venv.script(workspace, "check_nnunet_models.py");
    shell::run(random.arg(&binary).arg(&slide).arg(work.join("models")))?;
    let mut dice = venv.script(workspace, "check_nnunet_dice.py");
    shell::run(dice.arg(&binary).arg(&model).arg(data.join(DSB)).arg(work.join("dice")))?;
    let mut crop = venv.script(workspace, "check_crop.py");
    shell::run(crop.arg(&binary).arg(&model).arg(&slide).arg(work.join("crop")))?;
    let mut ensemble = venv.script(workspace, "check_ensemble.py");
    shell::run(ensemble.arg(&binary).arg(&slide).arg(work.join("ensemble")))?;
    let mut smp = venv.script(workspace, "check_smp.py");
    shell::run(smp.arg(&binary).arg(&slide).arg(work.join("smp")))?;
    let mut monai = venv.script(workspace, "check_monai.py");
    shell::run(monai.arg(&binary).arg(&slide).arg(work.join("monai")))
}

/// Segments with the package of that model.
fn segment(workspace: &Workspace, slide: &Path, store: &Path, flags: &[&str]) -> Result<()> {
    let mut command = Command::new(workspace.binary(Profile::Dev));
    command.arg("segment").arg(slide).arg("-m").arg(workspace.nnunet_model()).arg("-o").arg(store);
    shell::run(command.args(["--quiet"]).args(flags))
}

/// Makes a folder for the files of a run, empty.
fn empty_folder(path: &Path) -> Result<()> {
    if path.exists() {
        std::fs::remove_dir_all(path).with_context(|| path.display().to_string())?;
    }
    std::fs::create_dir_all(path).with_context(|| path.display().to_string())
}
