//! What the precisions change in masks: the numbers of `docs/precision.md`.

use std::path::PathBuf;

use microtome::Settings;
use microtome::io::slide::{OpenOptions, SlideReader};
use microtome::io::{Level, Pixels, Rect, Size};
use microtome::unet::{
    Arithmetic, Card, ChannelStatistics, Device, Execution, Mirroring, Model, ModelOptions, Normalizer, Precision,
    Predictor, Tile,
};

use crate::{labels, levels_of, picture, repository, segment, settings, with};

/// From the reference to the coarsest.
const WAYS: [(Precision, Arithmetic); 4] = [
    (Precision::F32, Arithmetic::Exact),
    (Precision::F32, Arithmetic::Fast),
    (Precision::Bf16, Arithmetic::Exact),
    (Precision::Bf16, Arithmetic::Fast),
];

fn predictors(model: &Model) -> [Box<dyn Predictor>; 4] {
    WAYS.map(|(precision, arithmetic)| {
        let execution = Execution { device: Device::Cpu, mirroring: Mirroring::Off, precision, arithmetic };
        model.predictor(&execution).unwrap()
    })
}

fn large(settings: &Settings) -> Settings {
    with(settings, |s| (s.chunk, s.shard) = (512, 2048))
}

fn mask(path: &std::path::Path, predictor: &dyn Predictor) -> Vec<u16> {
    let slide = microtome::io::slide::open(path, &OpenOptions::default()).unwrap();
    levels_of(&segment(slide.as_ref(), predictor, &large(&settings())).0).remove(0).1
}

fn differing(a: &[u16], b: &[u16]) -> usize {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).filter(|(a, b)| a != b).count()
}

/// Of all that is not background; 1 where both are empty.
fn dice(a: &[u16], b: &[u16]) -> f64 {
    let both = a.iter().zip(b).filter(|(a, b)| **a > 0 && **b > 0).count();
    let all = [a, b].iter().flat_map(|m| m.iter()).filter(|v| **v > 0).count();
    if all == 0 { 1.0 } else { 2.0 * both as f64 / all as f64 }
}

/// `MICROTOME_DATA=... cargo test -p microtome --test pipeline -- --ignored --nocapture what_a_precision_changes`
#[test]
#[ignore = "a measurement"]
fn what_a_precision_changes() {
    let Some(stained) = microtome_testkit::data("seg/dsb2018-stained") else { return };
    let Some(slide) = microtome_testkit::data("slides/svs/CMU-1-Small-Region.svs") else { return };
    let model = Model::open(repository("tests/models/nnunet-nuclei"), &ModelOptions::default()).unwrap();
    let predictors = predictors(&model);

    let mut masks = Vec::new();
    for predictor in &predictors {
        let started = std::time::Instant::now();
        masks.push(mask(&slide, predictor.as_ref()));
        let (found, seconds) = (&masks[masks.len() - 1], started.elapsed().as_secs_f64());
        let changed = differing(found, &masks[0]);
        let share = 100.0 * changed as f64 / found.len() as f64;
        println!(
            "CMU-1-Small-Region, {} pixels, {}: {changed} changed ({share:.4} %), Dice {:.6}, {seconds:.1} s",
            found.len(),
            predictor.identity(),
            dice(found, &masks[0])
        );
    }

    let mut images: Vec<_> = std::fs::read_dir(stained.join("images")).unwrap().map(|e| e.unwrap().path()).collect();
    images.sort();
    let (mut changed, mut pixels) = ([0; WAYS.len()], 0);
    let mut dices = [const { Vec::new() }; WAYS.len()];
    for image in &images {
        let truth = labels(&picture(&stained.join("labels").join(image.file_name().unwrap())));
        let masks = predictors.each_ref().map(|predictor| mask(image, predictor.as_ref()));
        pixels += truth.len();
        for (way, found) in masks.iter().enumerate() {
            changed[way] += differing(found, &masks[0]);
            dices[way].push(dice(found, &truth));
        }
    }
    println!("{} stained images of the Data Science Bowl, {pixels} pixels:", images.len());
    for (way, predictor) in predictors.iter().enumerate() {
        let n = images.len() as f64;
        let mean = dices[way].iter().sum::<f64>() / n;
        let changes = dices[way].iter().zip(&dices[0]).map(|(a, b)| a - b);
        let most = changes.clone().map(f64::abs).fold(0.0, f64::max);
        println!(
            "  {}: {} changed ({:.4} %), mean Dice {mean:.5}, changed by {:+.5} on average and at most by {most:.5}",
            predictor.identity(),
            changed[way],
            100.0 * changed[way] as f64 / pixels as f64,
            changes.sum::<f64>() / n,
        );
    }
}

/// Of a whole picture of 8 bits, in f64.
fn statistics(picture: &Pixels) -> Vec<ChannelStatistics> {
    let (samples, channels) = (picture.as_u8().unwrap(), picture.channels());
    let of = |channel: usize| {
        let values = || samples.iter().skip(channel).step_by(channels).map(|v| f64::from(*v));
        let n = values().count() as f64;
        let mean = values().sum::<f64>() / n;
        let std = (values().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
        ChannelStatistics { mean, std, min: values().fold(255.0, f64::min), max: values().fold(0.0, f64::max) }
    };
    (0..channels).map(of).collect()
}

/// The logits of the whole tiles that lie beside each other in a picture.
fn logits(slide: &dyn SlideReader, size: Size, predictor: &dyn Predictor, card: &Card) -> Vec<f32> {
    let read = |rect| slide.read_region(Level(0), rect).unwrap();
    let normalizer = Normalizer::new(&card.normalization, &statistics(&read(size.rect()))).unwrap();
    let Size { width, height } = card.tile;
    let places = (0..size.height / height).flat_map(|y| (0..size.width / width).map(move |x| (x, y)));
    let tile = |(x, y)| read(Rect::new((x * width) as i64, (y * height) as i64, width, height));
    places
        .flat_map(|place| predictor.predict(&[Tile::full(&tile(place))], &normalizer).unwrap().remove(0).values)
        .collect()
}

fn largest(values: impl Iterator<Item = f32>) -> f32 {
    values.fold(0.0, |most, value| most.max(value.abs()))
}

/// `MICROTOME_MODELS=FOLDER cargo test -p microtome --test pipeline -- --ignored --nocapture what_bf16_changes`; the folder is what
/// `tests/python/precision_models.py` makes. nnU-Net's package of `tests/models` runs beside its models.
#[test]
#[ignore = "a measurement"]
fn what_bf16_changes_in_each_architecture() {
    let folder =
        PathBuf::from(std::env::var_os("MICROTOME_MODELS").expect("MICROTOME_MODELS names a folder of models"));
    let picture = folder.join("picture.png");
    let slide = microtome::io::slide::open(&picture, &OpenOptions::default()).unwrap();
    let size = slide.info().levels[0].size;
    let mut models: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    models.retain(|path| path.is_dir());
    models.sort();
    models.insert(0, repository("tests/models/nnunet-nuclei"));
    println!("{} pixels of {}", size.area(), picture.display());
    println!("| model | parameters | largest logit | its largest error, f32 | bf16 | pixels that change, f32 | bf16 |");
    println!("|---|---|---|---|---|---|---|");
    for path in models {
        let model = Model::open(&path, &ModelOptions::default()).unwrap();
        let predictors = predictors(&model);
        let [exact, fast, bf16] = [0, 1, 3].map(|way| {
            let predictor = predictors[way].as_ref();
            (logits(slide.as_ref(), size, predictor, model.card()), mask(&picture, predictor))
        });
        let most = largest(exact.0.iter().copied());
        let error =
            |(logits, _): &(Vec<f32>, Vec<u16>)| largest(logits.iter().zip(&exact.0).map(|(a, b)| a - b)) / most;
        let share = |(_, mask): &(Vec<f32>, Vec<u16>)| 100.0 * differing(mask, &exact.1) as f64 / mask.len() as f64;
        println!(
            "| {} | {:.1} million | {most:.3} | {:.1e} | {:.1e} | {:.4} % | {:.3} % |",
            path.file_name().unwrap().to_string_lossy(),
            model.card().parameters as f64 / 1e6,
            error(&fast),
            error(&bf16),
            share(&fast),
            share(&bf16),
        );
    }
}
