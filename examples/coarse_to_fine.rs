//! Coarse to fine: a cheap model at low power finds where to look, and its mask is the region in which a fine model runs.
//!
//! ```sh
//! cargo run --release -p microtome --example coarse_to_fine -- slide.svs coarse-model tumour fine-model masks
//! ```
//!
//! The same on the command line:
//!
//! ```sh
//! microtome segment slide.svs -m coarse-model --model-mpp 4 -o masks/coarse.ome.zarr
//! microtome segment slide.svs -m fine-model --roi masks/coarse.ome.zarr --roi-value tumour -o masks/fine.ome.zarr
//! ```

use std::error::Error;
use std::path::{Path, PathBuf};

use microtome::io::slide::{OpenOptions, open};
use microtome::unet::{Execution, Model, ModelOptions};
use microtome::{Existing, Outcome, RoiSource, Segmenter, Settings, Silent, TargetResolution};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [slide, coarse_model, class, fine_model, folder] = arguments.as_slice() else {
        return Err("usage: coarse_to_fine SLIDE COARSE_MODEL CLASS FINE_MODEL FOLDER".into());
    };
    std::fs::create_dir_all(folder)?;

    // At 4 um per pixel a slide has a sixty-fourth of the pixels that it has at 0.5 um: this pass is nearly free.
    let mut coarse = Settings::default();
    coarse.model_mpp = Some(TargetResolution::Mpp(4.0));
    let found = folder.join("coarse.ome.zarr");
    run(slide, coarse_model, coarse, &found)?;

    // The mask on disk is the region. Which of its classes means "look here" is said, by name or by number; more than one may be.
    // Tiles that do not touch it are not read, and inside it the mask is what a run over the whole slide would have given.
    let mut fine = Settings::default();
    fine.roi = Some(RoiSource { path: found, values: vec![class.to_string_lossy().into_owned()] });
    run(slide, fine_model, fine, &folder.join("fine.ome.zarr"))
}

fn run(slide: &Path, model: &Path, settings: Settings, output: &Path) -> Result<(), Box<dyn Error>> {
    let slide = open(slide, &OpenOptions::default())?;
    let model = Model::open(model, &ModelOptions::default())?;
    let predictor = model.predictor(&Execution::default())?;
    // A second call with the same arguments finds both masks done, and does nothing.
    match Segmenter::new(predictor.as_ref(), settings)?.segment(slide.as_ref(), output, Existing::Keep, &Silent)? {
        Outcome::Done(summary) => println!("{}\n{summary}\n", output.display()),
        Outcome::AlreadyDone { .. } => println!("{}: done already", output.display()),
    }
    Ok(())
}
