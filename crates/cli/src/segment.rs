//! `microtome segment`

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use microtome::io::remote::is_remote;
use microtome::unet::{Arithmetic, Execution, Mirroring, Model, PrecisionChoice, Predictor};
use microtome::{
    Accumulation, CropNonzero, Destination, Error, Existing, NormStats, OnBadTile, Outcome, PartOutcome, RoiSource,
    Segmenter, Settings, TissueMode, WindowShape,
};
use serde_json::json;

use crate::args;
use crate::convert::written;
use crate::progress::{Progress, Quiet};
use crate::{failure, signals};

pub(crate) fn run(args: &args::Segment) -> Result<u8> {
    let jobs = jobs(args)?;
    let Loaded { predictors, precision } = load(&args.running)?;
    let mut settings = settings(&args.running)?;
    settings.precision = Some(precision);
    settings.roi = args.roi.clone().map(|path| RoiSource { path, values: args.roi_value.clone() });
    settings.name.clone_from(&args.name);
    let segmenter = Segmenter::ensemble(predictors.iter().map(AsRef::as_ref).collect(), settings)?;
    signals::watch().context("signals cannot be watched")?;

    let folder = args.output.as_deref().filter(|output| jobs.len() > 1 && !is_remote(output));
    let fresh = folder.filter(|output| !args.running.dry_run && !output.exists());
    if let Some(folder) = fresh {
        std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
    }
    let mut failures: Vec<u8> = Vec::new();
    for (slide, place) in &jobs {
        match segment(&segmenter, args, slide, place).map_err(|error| naming(error, slide, place.path())) {
            Ok(0) => {}
            Ok(code) => failures.push(code),
            Err(error) if signals::received() => return Err(error),
            Err(error) => {
                let code = failure::exit_code(&error);
                failure::say(&format!("error: {}", failure::line(&error)));
                if args.running.json {
                    print(
                        &json!({ "slide": slide.to_string_lossy(), "error": failure::line(&error), "exit_code": code }),
                    )?;
                }
                failures.push(code);
            }
        }
    }
    if args.profile {
        for predictor in &predictors {
            if predictors.len() > 1 && !args.running.json {
                println(&format!("profile of {}", predictor.card().name))?;
            }
            profile(predictor.as_ref(), args)?;
        }
    }
    let nothing = failures.len() == jobs.len() && !failures.contains(&WITH_FAULTS);
    if let Some(folder) = fresh.filter(|_| nothing) {
        // Where nothing succeeded nothing is left; a folder that holds something stays.
        let _ = std::fs::remove_dir(folder);
    }
    Ok(match (failures.as_slice(), jobs.len()) {
        ([], _) => 0,
        ([code], 1) => *code,
        // What may succeed at another time is worth another call, whatever else failed.
        _ if failures.contains(&TRANSIENT) => TRANSIENT,
        _ if nothing => 4,
        _ => WITH_FAULTS,
    })
}

/// Models that can run.
pub(crate) struct Loaded {
    pub(crate) predictors: Vec<Box<dyn Predictor>>,
    pub(crate) precision: PrecisionChoice,
}

/// Opens the models and puts them on their device.
pub(crate) fn load(args: &args::Running) -> Result<Loaded> {
    if args.exact && !matches!(args.precision, None | Some(args::Precision::F32)) {
        bail!("--exact is f32 arithmetic: it does not go with another --precision");
    }
    let arithmetic = if args.exact { Arithmetic::Exact } else { Arithmetic::Fast };
    let asked = args.precision.map(Into::into);
    let chosen = args.device.choose().map_err(Error::Model)?;
    let device = chosen.device.with_batch(args.batch);
    if let (Some(note), false) = (&chosen.note, args.quiet) {
        failure::say(&format!("note: {note}"));
    }
    let open = |path| Model::open(path, &args.weights.options()).map_err(Error::Model);
    let models = args.models.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let choose = |model: &Model| model.card().precision.choose(asked, device, arithmetic).map_err(Error::Model);
    let precision = choose(&models[0])?;
    for other in &models[1..] {
        let choice = choose(other)?;
        if choice.precision != precision.precision {
            return Err(Error::Usage(format!(
                "the models {} and {} recommend different precisions, {} and {}: --precision decides for all",
                models[0].card().name,
                other.card().name,
                precision.precision,
                choice.precision
            ))
            .into());
        }
    }
    let execution = Execution {
        device,
        mirroring: if args.no_tta { Mirroring::Off } else { Mirroring::AsTrained },
        precision: precision.precision,
        arithmetic,
    };
    let mut predictors = Vec::new();
    for model in models {
        predictors.push(model.predictor(&execution).map_err(Error::Model)?);
    }
    // The same for all: it is about how they are run.
    if let (Some(advice), false) = (predictors.iter().find_map(|predictor| predictor.advice()), args.quiet) {
        failure::say(&format!("note: {advice}"));
    }
    Ok(Loaded { predictors, precision })
}

/// Where the network's time went, over all slides.
fn profile(predictor: &dyn Predictor, args: &args::Segment) -> Result<()> {
    match predictor.profile() {
        // Done already, or failed before the network was asked: there is nothing to tell.
        Some(profile) if profile.passes == 0 => Ok(()),
        Some(profile) if args.running.json => print(&json!({ "model": predictor.card().name, "profile": profile })),
        Some(profile) => println(&profile.to_string()),
        None => {
            failure::say("warning: no profile: on this device layers are not timed one by one");
            Ok(())
        }
    }
}

/// The exit code of what was finished, but not without faults.
const WITH_FAULTS: u8 = 3;

/// The exit code of what failed for now.
const TRANSIENT: u8 = 75;

/// Where a mask goes.
#[derive(Debug)]
enum Place {
    /// Into a store of its own.
    Store(PathBuf),
    /// Into the labels of this image.
    Image(PathBuf),
}

impl Place {
    fn path(&self) -> &Path {
        match self {
            Self::Store(path) | Self::Image(path) => path,
        }
    }

    fn destination(&self) -> Destination<'_> {
        match self {
            Self::Store(path) => Destination::Store(path),
            Self::Image(path) => Destination::Image(path),
        }
    }
}

/// Each slide with the place of its mask.
fn jobs(args: &args::Segment) -> Result<Vec<(PathBuf, Place)>> {
    // clap does not ask for what conflicts with an argument that is there.
    if args.name.is_some() && args.into.is_none() {
        bail!("--name is what labels are called in an image, and goes with --into");
    }
    if (args.part.is_some() || args.finish) && args.slides.len() > 1 {
        bail!("--part and --finish are about parts of one slide, and here are {}", args.slides.len());
    }
    let folder = match (&args.into, &args.output, args.slides.as_slice()) {
        (Some(image), _, [slide]) => return Ok(vec![(slide.clone(), Place::Image(image.clone()))]),
        (Some(_), _, slides) => {
            bail!("--into puts the mask of one slide into an image of it, and here are {}", slides.len())
        }
        (None, Some(output), [slide]) => return Ok(vec![(slide.clone(), Place::Store(output.clone()))]),
        (None, Some(output), _) => output,
        (None, None, _) => bail!("either -o or --into says where the mask goes"),
    };
    if args.roi.is_some() {
        bail!("--roi is a region of one slide, and here are {}", args.slides.len());
    }
    let mut outputs: BTreeMap<PathBuf, &Path> = BTreeMap::new();
    let mut jobs = Vec::new();
    for slide in &args.slides {
        let stem = slide.file_stem().with_context(|| format!("{}: not the name of a file", slide.display()))?;
        let mut name = stem.to_os_string();
        name.push(".ome.zarr");
        let output = folder.join(name);
        if let Some(other) = outputs.insert(output.clone(), slide) {
            bail!("{} and {} would both be written to {}", other.display(), slide.display(), output.display());
        }
        jobs.push((slide.clone(), Place::Store(output)));
    }
    if folder.exists() && !folder.is_dir() {
        bail!("{}: with several slides the output is a folder, and this is a file", folder.display());
    }
    Ok(jobs)
}

/// What the arguments say of how models run.
pub(crate) fn settings(args: &args::Running) -> Result<Settings> {
    let mut settings = Settings::default();
    settings.mpp = args.mpp;
    settings.mpp_from_objective = args.mpp_from_objective;
    settings.model_mpp = args.model_mpp;
    settings.mpp_tolerance = args.mpp_tolerance;
    settings.max_enlargement = args.max_enlargement;
    settings.step = args.step_size;
    settings.window = args.window.map(|window| match window {
        args::Window::Gaussian => WindowShape::Gaussian,
        args::Window::GaussianMonai => WindowShape::GaussianMonai,
        args::Window::Constant => WindowShape::Constant,
        args::Window::Hann => WindowShape::Hann,
        args::Window::Linear => WindowShape::Linear,
    });
    settings.accumulate = match args.accumulate {
        args::Accumulate::F32 => Accumulation::F32,
        args::Accumulate::F16Nnunet => Accumulation::F16Nnunet,
    };
    settings.crop_nonzero = match args.crop_nonzero {
        args::CropNonzero::Auto => CropNonzero::Auto,
        args::CropNonzero::On => CropNonzero::On,
        args::CropNonzero::Off => CropNonzero::Off,
    };
    settings.tissue = match args.tissue {
        args::Tissue::Auto => TissueMode::Auto,
        args::Tissue::None => TissueMode::None,
    };
    if let Some(memory) = args.memory {
        settings.memory = memory.0;
    }
    settings.probabilities = args.probabilities;
    settings.confidence = args.confidence;
    settings.on_bad_tile = match args.on_bad_tile {
        args::OnBadTile::Fail => OnBadTile::Fail,
        args::OnBadTile::Fill => OnBadTile::Fill,
    };
    settings.scratch.clone_from(&args.scratch);
    settings.batch = args.batch;
    settings.threads = args.threads;
    settings.sync_every = args.sync_every;
    settings.format = args.format;
    settings.norm_stats = norm_stats(&args.norm_stats)?;
    Ok(settings)
}

/// What becomes of masks that are there.
pub(crate) fn existing(args: &args::Running) -> Existing {
    match (args.overwrite, args.no_resume) {
        (true, _) => Existing::Replace,
        (false, true) => Existing::Restart,
        (false, false) => Existing::Keep,
    }
}

/// A word, or a file; `./slide` is a file of that name.
fn norm_stats(word: &Path) -> Result<NormStats> {
    Ok(match word.to_str() {
        Some("slide") => NormStats::Slide,
        Some("tissue") => NormStats::Tissue,
        Some("plans") => NormStats::Plans,
        _ => NormStats::read(word)?,
    })
}

fn segment(segmenter: &Segmenter<'_>, args: &args::Segment, path: &Path, place: &Place) -> Result<u8> {
    let output = match place {
        Place::Store(output) => output.clone(),
        Place::Image(image) => segmenter.label_store(image)?,
    };
    let slide = args.opening.open(path)?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let progress = Progress::new(name, if args.running.quiet { Quiet::Yes } else { Quiet::No });
    let existing = existing(&args.running);
    if args.running.dry_run {
        let forecast = segmenter.forecast(slide.as_ref(), &progress);
        progress.finish();
        let forecast = forecast?;
        if args.running.json {
            print(&json!({ "slide": path.to_string_lossy(), "forecast": forecast }))?;
        } else {
            println(&format!("{}\n{forecast}", path.display()))?;
        }
        return Ok(0);
    }
    if let Some(part) = args.part {
        let outcome = segmenter.segment_part(slide.as_ref(), place.destination(), part, &progress);
        progress.finish();
        let outcome = outcome?;
        if args.running.json {
            print(
                &json!({ "slide": path.to_string_lossy(), "output": output.to_string_lossy(), "part": part, "outcome": outcome }),
            )?;
        } else if !args.running.quiet {
            let text = match &outcome {
                PartOutcome::Done(summary) => format!("{}\n{summary}", path.display()),
                PartOutcome::AlreadyDone { .. } => format!("{}: part {part} is done already", path.display()),
            };
            println(&text)?;
        }
        let unreadable = match &outcome {
            PartOutcome::Done(summary) => summary.unreadable.len() as u64,
            PartOutcome::AlreadyDone { unreadable } => *unreadable,
        };
        // It is said, and the exit code is that of whoever finishes: to those who wait for all parts, this one is complete.
        let _ = ending(path, unreadable);
        return Ok(0);
    }
    let outcome = match place {
        _ if args.finish => segmenter.finish_parts(slide.as_ref(), place.destination(), &progress),
        Place::Store(output) => segmenter.segment(slide.as_ref(), output, existing, &progress),
        Place::Image(image) => segmenter.segment_label(slide.as_ref(), image, existing, &progress),
    };
    progress.finish();
    let outcome = outcome?;
    if args.running.json {
        print(&json!({ "slide": path.to_string_lossy(), "output": output.to_string_lossy(), "outcome": outcome }))?;
    } else if !args.running.quiet {
        match &outcome {
            Outcome::Done(summary) => {
                println(&format!("{}\n{summary}\n{}", path.display(), written(&output)))?;
            }
            Outcome::AlreadyDone { .. } => {
                println(&format!("{}: done already, in {}", path.display(), output.display()))?;
            }
        }
    }
    let unreadable = match &outcome {
        Outcome::Done(summary) => summary.unreadable.len() as u64,
        Outcome::AlreadyDone { unreadable } => *unreadable,
    };
    Ok(ending(path, unreadable))
}

/// The exit code of a slide of which so many tiles could not be read; says so.
fn ending(path: &Path, unreadable: u64) -> u8 {
    if unreadable == 0 {
        return 0;
    }
    let what = format!("{}: {unreadable} tiles could not be read; the mask is background there", path.display());
    failure::say(&format!("warning: {what}"));
    WITH_FAULTS
}

/// The error, with the slide in front where it names neither the slide nor the output.
fn naming(error: anyhow::Error, slide: &Path, output: &Path) -> anyhow::Error {
    let line = failure::line(&error);
    if [slide, output].iter().any(|path| line.contains(&*path.to_string_lossy())) {
        return error;
    }
    error.context(slide.display().to_string())
}

pub(crate) fn print(value: &serde_json::Value) -> Result<()> {
    println(&value.to_string())
}

pub(crate) fn println(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        // The mask is written, and whoever read our output has seen enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}
