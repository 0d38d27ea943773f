//! Segments a slide with a formula in place of a network: what is left is the cost of everything else.
//!
//! `cargo xtask bench` runs this program and measures it from outside. It prints the run's summary as JSON.
//!
//! ```text
//! cheap_model SLIDE OUT [--memory BYTES] [--threads N] [--batch N] [--tile PIXELS] [--classes N] [--tissue auto|none] [--scratch DIR]
//!             [--statistics]
//! ```
//!
//! `--statistics` asks for the z-score of the whole slide, as nnU-Net's models of pictures do: one more pass over it.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use microtome::io::Size;
use microtome::io::slide::{self, OpenOptions};
use microtome::unet::Normalization;
use microtome::{Bytes, Existing, Outcome, Segmenter, Settings, Silent, TargetResolution, TissueMode};
use microtome_testkit::FunctionModel;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut paths: Vec<PathBuf> = Vec::new();
    let mut settings = Settings::default();
    settings.model_mpp = Some(TargetResolution::Native);
    let (mut tile, mut classes, mut normalization) = (512, 2, Normalization::None);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} takes a value"));
        match argument.as_str() {
            "--memory" => settings.memory = value()?.parse::<Bytes>().map_err(anyhow::Error::msg)?.0,
            "--threads" => settings.threads = Some(value()?.parse()?),
            "--batch" => settings.batch = Some(value()?.parse()?),
            "--tile" => tile = value()?.parse()?,
            "--classes" => classes = value()?.parse()?,
            "--tissue" => {
                settings.tissue = if value()? == "none" { TissueMode::None } else { TissueMode::Auto };
            }
            "--scratch" => settings.scratch = Some(value()?.into()),
            "--statistics" => normalization = Normalization::ZScore,
            flag if flag.starts_with("--") => bail!("{flag} is not an option"),
            _ => paths.push(argument.into()),
        }
    }
    let [slide, output] = paths.as_slice() else { bail!("a slide and a place for its mask") };

    // Class after class from light to dark, as haematoxylin is darker than eosin, and eosin than glass.
    let thresholds: Vec<f32> = (1..classes).map(|c| (c * 160 / classes) as f32 + 0.5).collect();
    let mut model = FunctionModel::new(Size::new(tile, tile), &thresholds);
    model.card_mut().normalization = vec![normalization; 3];
    let slide = slide::open(slide, &OpenOptions::default())?;
    match Segmenter::new(&model, settings)?.segment(slide.as_ref(), output, Existing::Keep, &Silent)? {
        Outcome::Done(summary) => println!("{}", serde_json::to_string(&summary)?),
        Outcome::AlreadyDone { .. } => bail!("{}: done already", output.display()),
    }
    Ok(())
}
