//! `microtome model`

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use microtome::io::Pixels;
use microtome::io::slide::{self, OpenOptions};
use microtome::unet::{
    Card, ClassChange, Execution, Measurement, Model, Output, PackageOptions, Placement, Precision, TestVector,
    WeightFormat,
};
use microtome::{Error, Settings, TargetResolution, measure_precision};
use serde_json::json;

use crate::progress::{Progress, Quiet};
use crate::{args, failure, signals};

pub(crate) fn import(args: &args::Import) -> Result<()> {
    signals::watch().context("signals cannot be watched")?;
    if std::fs::read_dir(&args.package).is_ok_and(|mut entries| entries.next().is_some()) {
        // Said again where the package is written; here before minutes have gone by.
        bail!("{}: the folder is not empty", args.package.display());
    }
    let model = Model::open(&args.source, &args.weights.options()).map_err(Error::Model)?;
    let Some(mpp) = args.model_mpp.or(model.card().mpp) else {
        bail!("the model does not say at which resolution it was trained: give it, --model-mpp MICROMETRES");
    };
    let mut options = PackageOptions::default();
    options.name.clone_from(&args.name);
    options.mpp = Some(mpp);
    options.licence.clone_from(&args.licence);
    options.provenance.clone_from(&args.provenance);
    options.intended_use.clone_from(&args.intended_use);
    if let Some(file) = &args.classes {
        options.classes = ClassChange::read(file).map_err(Error::Model)?;
    }
    options.recommended = args.recommend.map(Into::into);

    let before = match &args.test_vector {
        None => model.test_vector().cloned(),
        Some(folder) => Some(given_vector(&model, folder)?),
    };
    let weights = model.card().sha256.clone();
    let model = match args.format {
        None => model,
        Some(args::WeightFormat::F32) => model.with_kernels(WeightFormat::F32).map_err(Error::Model)?,
        Some(args::WeightFormat::Bf16) => model.with_kernels(WeightFormat::Bf16).map_err(Error::Model)?,
    };
    options.test_vector = test_vector(&model, before, weights == model.card().sha256, args.test_image.as_deref())?;
    go_on()?;

    if let Some(picture) = &args.measure {
        let slide = slide::open(picture, &OpenOptions::default()).map_err(Error::Read)?;
        let name = picture.file_name().unwrap_or(picture.as_os_str()).to_string_lossy().into_owned();
        let mut settings = Settings::default();
        settings.model_mpp = Some(TargetResolution::Mpp(mpp));
        let progress = Progress::new(name.clone(), Quiet::No);
        let measured = measure_precision(&model, slide.as_ref(), &name, args.device, &settings, &progress);
        progress.finish();
        options.measured = Some(measured?);
    }
    if let (Some(precision @ (Precision::Bf16 | Precision::F16)), None, None) =
        (options.recommended, &options.measured, &model.card().precision.measured)
    {
        bail!("--recommend {precision} needs a measurement of what it changes: --measure SLIDE");
    }
    let staged = model.stage_package(&args.package, &options).map_err(Error::Model)?;
    go_on()?;
    staged.publish().map_err(Error::Model)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}: written", args.package.display())?;
    if let Some(measured) = &options.measured {
        measurement(&mut out, measured)?;
    }
    Ok(())
}

/// Stops where Ctrl-C was pressed; what is staged vanishes.
fn go_on() -> Result<()> {
    if signals::received() { Err(Error::Interrupted.into()) } else { Ok(()) }
}

/// A vector that the original framework has computed, if it is this model's.
fn given_vector(model: &Model, folder: &Path) -> Result<TestVector> {
    let vector = TestVector::open(folder, model.card()).map_err(Error::Model)?;
    let found = model.check_against(&vector, &Execution::default()).map_err(Error::Model)?;
    if !found.is_reproduced() {
        let (difference, largest) = (found.max_logit_difference, found.max_logit);
        bail!(
            "{}: the model does not reproduce it: a logit differs by {difference:e}, and the largest is {largest}",
            folder.display()
        );
    }
    Ok(vector)
}

/// The vector that goes into the package: what there is, or one of our own where there is none or it was of weights that were
/// not rounded yet.
fn test_vector(
    model: &Model,
    before: Option<TestVector>,
    same: bool,
    image: Option<&Path>,
) -> Result<Option<TestVector>> {
    let compute = |input: Option<&Pixels>| TestVector::compute(model, input).map_err(Error::Model);
    if let Some(path) = image {
        let input = TestVector::read_picture(path, model.card()).map_err(Error::Model)?;
        let vector = compute(Some(&input))?;
        return match vector {
            None => bail!("--test-image: a test vector holds masks of 8 bits, and the model has larger values"),
            some => Ok(some),
        };
    }
    match before {
        Some(vector) if same => Ok(Some(vector)),
        Some(vector) => {
            let Some(mut own) = compute(Some(&vector.input))? else { return Ok(None) };
            let found = vector.agreement(&own).map_err(Error::Model)?;
            let rounding = format!(
                "from what {} computed before the weights were rounded to bf16, logits differ by up to {} (the largest is {}) \
                 and {} of {} pixels of the mask",
                vector.computed_by, found.max_logit_difference, found.max_logit, found.differing_pixels, found.pixels
            );
            own.method = format!("{}; {rounding}", own.method);
            Ok(Some(own))
        }
        None => {
            let own = compute(None)?;
            if own.is_none() {
                failure::say("note: no test vector: its picture has one or three channels, and its mask 8 bits");
            }
            Ok(own)
        }
    }
}

fn measurement(out: &mut impl Write, measured: &Measurement) -> Result<()> {
    for (precision, share) in measured.disagreement.all() {
        writeln!(
            out,
            "measured     {precision}: {:.4} % of {} pixels differ from f32 exact",
            share * 100.0,
            measured.pixels
        )?;
    }
    writeln!(out, "             on {}", measured.picture)?;
    writeln!(out, "             by {}", measured.computed_by)?;
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
    let same = agreement.is_reproduced();
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
        "tile         {tile} pixels, step {}{}; {:.3} billion multiplications per tile and pass",
        card.step,
        match card.placement {
            Placement::Nnunet => "",
            Placement::Monai => " placed as MONAI does",
        },
        multiplications as f64 / 1e9
    )?;
    match card.mpp {
        Some(mpp) => writeln!(out, "resolution   {mpp} um per pixel")?,
        None => writeln!(out, "resolution   not stated: give --model-mpp")?,
    }
    for (channel, normalization) in card.channels.iter().zip(&card.normalization) {
        writeln!(out, "channel      {channel}, normalised by {normalization}")?;
    }
    if card.crop_to_nonzero {
        writeln!(out, "crop         black borders are cut off before anything else")?;
    }
    let kind = match card.output {
        Output::Labels => "class",
        Output::Regions { .. } => "region",
    };
    for class in &card.classes {
        let [r, g, b] = class.color;
        write!(out, "{kind:<12} {} {}, #{r:02x}{g:02x}{b:02x}", class.value, class.name)?;
        writeln!(out, "{}", class.code.as_ref().map_or_else(String::new, |code| format!(", {code}")))?;
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
    let precision = &card.precision;
    match precision.weights {
        WeightFormat::F32 => writeln!(out, "weights      f32")?,
        WeightFormat::Bf16 => writeln!(out, "weights      kernels in bf16, all others in f32")?,
    }
    if let Some(recommended) = precision.recommended {
        writeln!(out, "recommended  {recommended}, where the device is fast in it")?;
    }
    if let Some(measured) = &precision.measured {
        measurement(out, measured)?;
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
    if model.test_vector().is_some_and(TestVector::is_own) {
        writeln!(
            out,
            "             it shows that machines compute alike, not that the network is the one that was trained"
        )?;
    }
    writeln!(out, "sha256       {}", card.sha256)?;
    Ok(())
}
