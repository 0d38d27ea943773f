//! `microtome model`

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use microtome::io::Pixels;
use microtome::io::slide::{self, OpenOptions};
use microtome::unet::{
    Arithmetic, Card, ClassChange, Device, Execution, Measurement, MemoryEstimate, Model, Output, PackageOptions,
    Placement, Precision, Summary, TestVector, WeightFormat,
};
use microtome::{Bytes, Error, Settings, TargetResolution, measure_precision};
use serde_json::{Value, json};

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
    if let Some(fault) = model.postprocessing_fault() {
        failure::say(&format!("note: the package tells of no post-processing: {fault}"));
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
        let (wrong, pixels) = (found.wrong_pixels, found.pixels);
        bail!(
            "{}: the model does not reproduce it: a logit differs by {difference:e}, and the largest is {largest}; {wrong} of \
             {pixels} pixels of mask.png have a value that the logits do not give",
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
            let found = vector.agreement(&own, &model.card().output).map_err(Error::Model)?;
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
    let pixels = measured.pixels;
    for (precision, share) in measured.disagreement.all() {
        let count = (share * pixels as f64).round();
        writeln!(
            out,
            "measured     {precision}: {count} of {pixels} pixels ({:.4} %) differ from f32 exact",
            share * 100.0
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
    let figures = Figures::of(&model)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let network = figures.json(card, args.layers)?;
        let fault = model.postprocessing_fault();
        let all = json!({ "card": card, "network": network, "agreement": agreement, "postprocessing_fault": fault });
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
    } else {
        describe(&mut out, card, &model, &figures)?;
        if args.layers {
            figures.layers(&mut out)?;
        }
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
            "check        largest difference of a logit {:e} (largest logit {}), {} of {} pixels of the mask differ, {} of them by \
             more than rounding",
            agreement.max_logit_difference,
            agreement.max_logit,
            agreement.differing_pixels,
            agreement.pixels,
            agreement.wrong_pixels
        )?;
    }
    let same = agreement.is_reproduced();
    if !same {
        crate::failure::say(&format!("error: {}: the test vector is not reproduced", args.model.display()));
    }
    Ok(if same { 0 } else { 3 })
}

/// What follows from the network: counted, and what this machine needs for it.
struct Figures {
    summary: Summary,
    memory: MemoryEstimate,
    /// On which device and how.
    execution: String,
    /// Forward passes for a tile: mirrorings times folds.
    passes: usize,
}

/// A multiplication with its addition counts as two operations.
const FLOP: f64 = 2.0;

impl Figures {
    fn of(model: &Model) -> Result<Self> {
        let card = model.card();
        let device = Device::default();
        let precision = card.precision.choose(None, device, Arithmetic::Fast).map_err(Error::Model)?.precision;
        let predictor =
            model.predictor(&Execution { device, precision, ..Execution::default() }).map_err(Error::Model)?;
        Ok(Self {
            summary: model.network().summary(card.tile),
            memory: predictor.memory(1),
            execution: predictor.identity(),
            passes: card.mirror_axes.passes().len() * card.folds.len(),
        })
    }

    /// Operations of one pass over one tile.
    fn per_tile(&self) -> f64 {
        self.summary.multiplications as f64 * FLOP
    }

    /// Operations of one pass for each square millimetre, where the resolution is known.
    fn per_mm2(&self, card: &Card) -> Option<f64> {
        card.mpp.map(|mpp| self.summary.multiplications_per_mm2(card.step, mpp) * FLOP)
    }

    /// How many layers there are of each kind, in the order in which the network first has them.
    fn counts(&self) -> Vec<(&str, usize)> {
        let mut counts: Vec<(&str, usize)> = Vec::new();
        for layer in &self.summary.layers {
            let kind = layer.operation.split(',').next().unwrap_or_default();
            match counts.iter_mut().find(|(name, _)| *name == kind) {
                Some((_, n)) => *n += 1,
                None => counts.push((kind, 1)),
            }
        }
        counts
    }

    fn json(&self, card: &Card, layers: bool) -> Result<Value> {
        let mut network = serde_json::to_value(&self.summary)?;
        if let (Some(network), false) = (network.as_object_mut(), layers) {
            network.remove("layers");
        }
        let counts: serde_json::Map<String, Value> =
            self.counts().into_iter().map(|(kind, n)| (kind.to_owned(), n.into())).collect();
        network["layer_counts"] = counts.into();
        network["passes_per_tile"] = self.passes.into();
        network["flop_per_tile_and_pass"] = self.per_tile().into();
        network["flop_per_mm2_and_pass"] = self.per_mm2(card).into();
        network["memory"] = json!({
            "weights": self.memory.weights,
            "per_tile": self.memory.activations,
            "execution": self.execution,
        });
        Ok(network)
    }

    fn describe(&self, out: &mut impl Write, card: &Card) -> Result<()> {
        let Summary { tile, layers, receptive_field, .. } = &self.summary;
        let counts: Vec<String> = self.counts().into_iter().map(|(kind, n)| format!("{n} x {kind}")).collect();
        writeln!(out, "layers       {}: {}", layers.len(), counts.join(", "))?;
        let all = if receptive_field.global { "; by its norms the whole tile" } else { "" };
        writeln!(out, "receptive    field of {} pixels{all}", receptive_field.size)?;
        let placed = match card.placement {
            Placement::Nnunet => "",
            Placement::Monai => " placed as MONAI does",
        };
        writeln!(out, "tile         {tile} pixels, step {}{placed}", card.step)?;
        write!(out, "work         {:.3} GFLOP per tile and pass", self.per_tile() / 1e9)?;
        if let (Some(flop), Some(mpp)) = (self.per_mm2(card), card.mpp) {
            write!(out, ", {:.1} GFLOP per mm2 and pass at {mpp} um per pixel and this step", flop / 1e9)?;
        }
        writeln!(out, "; {} passes per tile (a multiply-add is 2 FLOP, convolutions only)", self.passes)?;
        let MemoryEstimate { weights, activations } = self.memory;
        writeln!(
            out,
            "memory       {} of packed weights, {} for one tile with all its passes ({})",
            Bytes(weights),
            Bytes(activations),
            self.execution
        )?;
        Ok(())
    }

    /// A line for each layer.
    fn layers(&self, out: &mut impl Write) -> Result<()> {
        writeln!(out, "{:>5} {:>22} {:>12} {:>16}  layer", "", "output", "parameters", "multiply-adds")?;
        for (index, layer) in self.summary.layers.iter().enumerate() {
            let output = format!("{} x {}", layer.output.channels, layer.output.size);
            let name = layer.name.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
            writeln!(
                out,
                "{index:>5} {output:>22} {:>12} {:>16}  {}{name}",
                layer.parameters, layer.multiplications, layer.operation
            )?;
        }
        Ok(())
    }
}

fn describe(out: &mut impl Write, card: &Card, model: &Model, figures: &Figures) -> Result<()> {
    writeln!(out, "{}", card.name)?;
    writeln!(out, "network      {}", card.architecture)?;
    figures.describe(out, card)?;
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
        None => {
            if let Some(fault) = model.postprocessing_fault() {
                writeln!(out, "post         cannot be told, and all else can be used: {fault}")?;
            }
        }
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
