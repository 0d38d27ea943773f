//! `microtome model`

use std::io::Write;

use anyhow::Result;
use microtome::Error;
use microtome::unet::{Card, Execution, Model, Output, PackageOptions};
use serde_json::json;

use crate::args;

pub(crate) fn import(args: &args::Import) -> Result<()> {
    let model = Model::open(&args.source, &args.weights.options()).map_err(Error::Model)?;
    if args.model_mpp.or(model.card().mpp).is_none() {
        return Err(Error::Usage(
            "an nnU-Net result does not say at which resolution it was trained: give it, --model-mpp MICROMETRES"
                .into(),
        )
        .into());
    }
    let mut options = PackageOptions::default();
    options.name.clone_from(&args.name);
    options.mpp = args.model_mpp;
    options.licence.clone_from(&args.licence);
    options.provenance.clone_from(&args.provenance);
    options.intended_use.clone_from(&args.intended_use);
    model.save_package(&args.package, &options).map_err(Error::Model)?;
    writeln!(std::io::stdout(), "{}: written", args.package.display())?;
    Ok(())
}

pub(crate) fn info(args: &args::ModelInfo) -> Result<u8> {
    let model = Model::open(&args.model, &args.weights.options()).map_err(Error::Model)?;
    let agreement =
        if args.check { model.check_test_vector(&Execution::default()).map_err(Error::Model)? } else { None };
    let card = model.card();
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&json!({ "card": card, "agreement": agreement }))?)?;
    } else {
        describe(&mut out, card, &model)?;
    }
    if !args.check {
        return Ok(0);
    }
    let Some(agreement) = agreement else {
        return Err(Error::Usage(format!("{}: the model has no test vector", args.model.display())).into());
    };
    if !args.json {
        writeln!(
            out,
            "check        largest difference of a logit {:e} (largest logit {}), {} of {} pixels of the mask differ",
            agreement.max_logit_difference, agreement.max_logit, agreement.differing_pixels, agreement.pixels
        )?;
    }
    // 1e-4 of the largest logit is what summation in another order explains in f32; anything more is another network.
    let same = agreement.max_logit_difference <= 1e-4 * agreement.max_logit.max(1.0);
    if !same {
        crate::failure::say(&format!("error: {}: the test vector is not reproduced", args.model.display()));
    }
    Ok(if same { 0 } else { 3 })
}

fn describe(out: &mut impl Write, card: &Card, model: &Model) -> Result<()> {
    writeln!(out, "{}", card.name)?;
    writeln!(out, "network      {}", card.architecture)?;
    let tile = card.tile;
    let multiplications = model.network().multiplications(tile);
    writeln!(
        out,
        "tile         {tile} pixels, step {}; {:.3} billion multiplications per tile and pass",
        card.step,
        multiplications as f64 / 1e9
    )?;
    match card.mpp {
        Some(mpp) => writeln!(out, "resolution   {mpp} um per pixel")?,
        None => writeln!(out, "resolution   not stated: give --model-mpp")?,
    }
    for (channel, normalization) in card.channels.iter().zip(&card.normalization) {
        writeln!(out, "channel      {channel}, normalised by {normalization:?}")?;
    }
    let kind = match card.output {
        Output::Labels => "class",
        Output::Regions { .. } => "region",
    };
    for class in &card.classes {
        let [r, g, b] = class.color;
        writeln!(out, "{kind:<12} {} {}, #{r:02x}{g:02x}{b:02x}", class.value, class.name)?;
    }
    let axes: Vec<&str> = [(card.mirror_axes.vertical, "vertical"), (card.mirror_axes.horizontal, "horizontal")]
        .into_iter()
        .filter_map(|(on, name)| on.then_some(name))
        .collect();
    writeln!(out, "mirroring    {}", if axes.is_empty() { "none".into() } else { axes.join(", ") })?;
    writeln!(out, "folds        {}; {} parameters each", card.folds.join(", "), card.parameters)?;
    match card.postprocessing.as_deref() {
        None => {}
        Some([]) => writeln!(out, "post         its authors found nothing that improves the mask")?,
        Some(steps) => {
            for step in steps {
                writeln!(out, "post         {step} (its authors' choice, not applied unless asked for)")?;
            }
        }
    }
    for (name, text) in [
        ("licence", &card.licence),
        ("provenance", &card.provenance),
        ("intended use", &card.intended_use),
        ("test vector", &card.test_vector),
    ] {
        if let Some(text) = text {
            writeln!(out, "{name:<12} {text}")?;
        }
    }
    writeln!(out, "sha256       {}", card.sha256)?;
    Ok(())
}
