//! Whose statistics an image is normalised with.

use microtome::io::slide::SlideReader;
use microtome::io::{Level, Pixels, Rect, Size};
use microtome::unet::{ChannelStatistics, Execution, Mirroring, Model, ModelOptions, Normalization, Predictor};
use microtome::{Error, Existing, NormStats, Segmenter, Settings, Silent, TissueMode};
use microtome_testkit::{CountingSlide, FunctionModel, SyntheticSlide};
use microtome_tile::ImageStatistics;

use crate::{levels_of, repository, segment, segment_to, settings, with};

fn nuclei() -> Model {
    Model::open(repository("tests/models/nnunet-nuclei"), &ModelOptions::default()).unwrap()
}

fn predictor(model: &Model) -> Box<dyn Predictor> {
    model.predictor(&Execution { mirroring: Mirroring::Off, ..Execution::default() }).unwrap()
}

fn slide() -> SyntheticSlide {
    SyntheticSlide::new(Size::new(700, 600), 12).with_islands(1)
}

fn stats(stats: NormStats) -> Settings {
    with(&settings(), |s| (s.norm_stats, s.tissue, s.chunk, s.shard) = (stats, TissueMode::Auto, 64, 128))
}

fn numbers(sums: &ImageStatistics) -> Vec<ChannelStatistics> {
    let number = |c: &microtome_tile::ChannelSums| ChannelStatistics {
        mean: c.mean(),
        std: c.std(),
        min: c.min.into(),
        max: c.max.into(),
    };
    sums.channels.iter().map(number).collect()
}

/// Statistics that are given are the same as those that are taken: of the whole slide, and of the region's pixels, picked one by one.
#[test]
fn each_way_is_the_same_as_giving_its_numbers() {
    let model = nuclei();
    let predictor = predictor(&model);
    let slide = slide();
    let size = slide.info().size();
    let pixels = slide.read_region(Level::FINEST, size.rect()).unwrap();
    let region = Segmenter::new(predictor.as_ref(), stats(NormStats::Tissue)).unwrap().region(&slide).unwrap().unwrap();
    let inside: Vec<u8> = (0..)
        .zip(pixels.as_u8().unwrap().as_chunks::<3>().0)
        .filter(|(i, _)| region.roi.touches(Rect::new((i % size.width) as i64, (i / size.width) as i64, 1, 1)))
        .flat_map(|(_, pixel)| *pixel)
        .collect();
    let inside = Pixels::from_u8(Size::new(inside.len() as u64 / 3, 1), 3, inside);
    let training = model.card().training.clone().unwrap();
    let masks: Vec<_> = [
        (NormStats::Slide, numbers(&ImageStatistics::of(&pixels))),
        (NormStats::Tissue, numbers(&ImageStatistics::of(&inside))),
        (NormStats::Plans, training),
    ]
    .into_iter()
    .map(|(way, numbers)| {
        let mask = |way| levels_of(&segment(&slide, predictor.as_ref(), &stats(way)).0);
        let (found, given) = (mask(way.clone()), mask(NormStats::Given(numbers)));
        assert!(found == given, "{way:?}");
        found
    })
    .collect();
    assert!(masks[0] != masks[1] && masks[1] != masks[2], "the statistics make no difference");
}

/// Glass is not read for the statistics of the tissue, and nothing for those that are known.
#[test]
fn only_what_counts_is_read() {
    let mut model = FunctionModel::new(Size::new(64, 64), &[20.5]);
    model.card_mut().normalization = vec![Normalization::ZScore; 3];
    let size = Size::new(9000, 2200);
    let given = vec![ChannelStatistics { mean: 200.0, std: 30.0, min: 0.0, max: 255.0 }; 3];
    // Each at 4 um, from a level of its own: what is read of level 0 is for statistics and tiles.
    let read = |way: NormStats| {
        let slide = CountingSlide::new(SyntheticSlide::new(size, 4).with_islands(1).with_levels(&[0, 3]));
        let settings = with(&stats(way), |s| (s.chunk, s.shard) = (512, 1024));
        let (_, summary) = segment(&slide, &model, &settings);
        assert!(summary.tiles.run > 0 && summary.tiles.skipped > 0);
        slide.pixels(Level::FINEST)
    };
    let tiles = read(NormStats::Given(given));
    let slide = read(NormStats::Slide) - tiles;
    let tissue = read(NormStats::Tissue) - tiles;
    assert_eq!(slide, size.area());
    assert!(tissue > 0 && tissue < slide * 2 / 3, "{tissue} of {slide}");
}

/// A slide without tissue has no statistics of tissue, and needs none.
#[test]
fn without_tissue_nothing_is_needed() {
    let model = nuclei();
    let predictor = predictor(&model);
    let glass = SyntheticSlide::new(Size::new(700, 600), 1).with_islands(0);
    let (mask, summary) = segment(&glass, predictor.as_ref(), &stats(NormStats::Tissue));
    assert_eq!((summary.tiles.run, summary.tissue_share), (0, Some(0.0)));
    assert!(levels_of(&mask)[0].1.iter().all(|&label| label == 0));
}

#[test]
fn what_cannot_be_had_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.ome.zarr");
    let mut model = FunctionModel::new(Size::new(64, 64), &[20.5]);
    model.card_mut().normalization = vec![Normalization::ZScore; 3];
    let refused = |change: &dyn Fn(&mut Settings), word: &str| {
        let segmenter = Segmenter::new(&model, with(&stats(NormStats::Slide), change)).unwrap();
        let error = segmenter.segment(&slide(), &path, Existing::Keep, &Silent).unwrap_err();
        assert!(matches!(error, Error::Usage(_)) && error.to_string().contains(word), "{error}");
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none(), "something was left behind");
    };
    refused(&|s| s.norm_stats = NormStats::Plans, "training set");
    refused(&|s| (s.norm_stats, s.tissue) = (NormStats::Tissue, TissueMode::None), "--tissue none");
    refused(&|s| s.norm_stats = NormStats::Given(Vec::new()), "0 channels");
}

/// Other statistics are another run, unless nothing depends on them; and a run's own file gives the same mask again.
#[test]
fn statistics_are_part_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first.ome.zarr"), folder.path().join("second.ome.zarr"));
    let model = nuclei();
    let predictor = predictor(&model);
    segment_to(&slide(), predictor.as_ref(), &stats(NormStats::Slide), &first);
    let other = Segmenter::new(predictor.as_ref(), stats(NormStats::Tissue)).unwrap();
    let error = other.segment(&slide(), &first, Existing::Keep, &Silent).unwrap_err();
    assert!(error.exit_code() == 5 && error.to_string().contains("norm_stats: slide there, tissue here"), "{error}");

    let given = NormStats::read(&folder.path().join("first.ome.zarr.run/statistics.json")).unwrap();
    segment_to(&slide(), predictor.as_ref(), &stats(given), &second);
    assert_eq!(crate::levels_of_store(&first), crate::levels_of_store(&second));
}
