//! Slides whose resolution is not the model's.

use microtome::io::slide::{ResolutionSource, SlideReader};
use microtome::io::store::OmeZarr;
use microtome::io::{Downsample, Level, Microns, Pixels, Rect, SampleType, Size};
use microtome::{Error, Resampling, Segmenter, Settings, TargetGrid, TargetResolution};
use microtome_testkit::{FunctionModel, SyntheticSlide};
use microtome_tile::Reader;
use proptest::prelude::*;

use crate::function::THRESHOLDS;
use crate::{assert_same, levels_of, levels_of_store, over, segment, segment_to, settings, with};

/// 0.25 um per pixel; levels of 0.25, 0.5 and 2 um.
fn slide() -> SyntheticSlide {
    SyntheticSlide::new(Size::new(480, 400), 21)
        .with_levels(&[0, 1, 3])
        .with_mpp(Some(Microns::square(0.25)))
        .with_tissue_everywhere()
}

fn model() -> FunctionModel {
    FunctionModel::new(Size::new(48, 48), &THRESHOLDS)
}

fn at(mpp: f64) -> Settings {
    with(&settings(), |s| s.model_mpp = Some(TargetResolution::Mpp(mpp)))
}

#[test]
fn a_level_of_the_models_resolution_is_taken_as_it_is() {
    let (slide, model) = (slide(), model());
    // Within the tolerance of 2 %, too.
    for (mpp, level, shift) in [(0.25, 0, 0), (0.5, 1, 1), (0.495, 1, 1), (2.0, 2, 3), (2.03, 2, 3)] {
        let (mask, summary) = segment(&slide, &model, &at(mpp));
        let target = &summary.geometry.target;
        assert_eq!((target.level, target.resampling), (Level(level), Resampling::None), "{mpp}");
        let (size, found) = levels_of(&mask).remove(0);
        assert_eq!(size, Size::new(480 >> shift, 400 >> shift), "{mpp}");
        // Not what was asked for, but what the level has.
        assert_eq!(target.mpp, Some(Microns::square(0.25 * f64::from(1 << shift))), "{mpp}");
        assert_same(size, &found, &over(size, |x, y| model.class(&slide.pixel_at(shift, x, y))), mpp);
    }
}

#[test]
fn twice_coarser_than_a_level_is_the_mean_of_four_pixels() {
    let (slide, model) = (slide(), model());
    // From the level of 0.5 um: the next is too coarse.
    let (mask, summary) = segment(&slide, &model, &at(1.0));
    let target = &summary.geometry.target;
    assert_eq!((target.level, target.resampling, target.size), (Level(1), Resampling::Area, Size::new(120, 100)));
    let expected = over(target.size, |x, y| model.class(&slide.pixel_at(2, x, y)));
    assert_same(target.size, &levels_of(&mask)[0].1, &expected, "1 um from 0.5 um");
}

/// The mean over the area of a target pixel, in f64, by definition rather than by tables.
fn area_mean(slide: &SyntheticSlide, step: f64, x: u64, y: u64) -> f64 {
    let size = slide.info().size();
    let share = |start: f64, end: f64, i: u64| ((i + 1) as f64).min(end) - (i as f64).max(start);
    let (x0, x1) = (x as f64 * step, ((x + 1) as f64 * step).min(size.width as f64));
    let (y0, y1) = (y as f64 * step, ((y + 1) as f64 * step).min(size.height as f64));
    let mut sum = 0.0;
    for v in y0 as u64..(y1.ceil() as u64).min(size.height) {
        for u in x0 as u64..(x1.ceil() as u64).min(size.width) {
            sum += share(x0, x1, u) * share(y0, y1, v) * f64::from(slide.pixel(u, v)[0]);
        }
    }
    sum / ((x1 - x0) * (y1 - y0))
}

#[test]
fn between_levels_a_pixel_is_the_mean_of_its_area() {
    let (slide, model) = (slide(), model());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.ome.zarr");
    let summary = segment_to(&slide, &model, &at(0.37), &path);
    let target = &summary.geometry.target;
    // 480 x 0.25 / 0.37 = 324.3, 400 x 0.25 / 0.37 = 270.3
    assert_eq!((target.level, target.resampling, target.size), (Level(0), Resampling::Area, Size::new(324, 270)));
    let found = &levels_of_store(&path)[0].1;
    let mut undecided = 0;
    for y in 0..270 {
        for x in 0..324 {
            let mean = area_mean(&slide, 0.37 / 0.25, x, y);
            // Where f32 may round the other way than f64, two values are right.
            let classes = [-1e-3, 1e-3].map(|e| model.class(&[(mean + 0.5 + e) as u8]));
            undecided += u32::from(classes[0] != classes[1]);
            assert!(classes.contains(&found[(y * 324 + x) as usize]), "({x}, {y}): {mean}");
        }
    }
    assert!(undecided < 100, "{undecided} pixels prove nothing");

    // The scale of the store is the model's, and the centre of its first pixel is that of its area.
    let store = OmeZarr::open(&path).unwrap();
    for (n, level) in store.info().levels.iter().enumerate() {
        let mpp = 0.37 * f64::from(1u32 << n);
        let found = level.mpp.unwrap();
        assert!((found.x - mpp).abs() < 1e-6 && (found.y - mpp).abs() < 1e-6, "level {n}: {found:?}");
        let centre = (mpp - 0.25) / 2.0;
        let t = level.translation;
        assert!((t.x - centre).abs() < 1e-6 && (t.y - centre).abs() < 1e-6, "level {n}: {t:?}");
    }
}

#[test]
fn a_resampled_mask_does_not_depend_on_the_tiles() {
    let slide = slide();
    let masks: Vec<_> = [(48, 0.5, 16), (31, 1.0, 16), (100, 0.3, 64)]
        .into_iter()
        .map(|(tile, step, chunk)| {
            let model = FunctionModel::new(Size::new(tile, tile), &THRESHOLDS);
            let settings = with(&at(0.61), |s| (s.step, s.chunk, s.shard) = (Some(step), chunk, 2 * chunk));
            levels_of(&segment(&slide, &model, &settings).0).remove(0)
        })
        .collect();
    assert_same(masks[0].0, &masks[1].1, &masks[0].1, "tiles of 31");
    assert_same(masks[0].0, &masks[2].1, &masks[0].1, "tiles of 100");
}

#[test]
fn pixels_are_enlarged_a_little_and_no_more() {
    let (slide, model) = (slide(), model());
    let (_, summary) = segment(&slide, &model, &at(0.21));
    let target = &summary.geometry.target;
    // 480 x 0.25 / 0.21 = 571.4
    assert_eq!((target.resampling, target.size.width), (Resampling::Bilinear, 571));

    let refused = |settings: Settings| Segmenter::new(&model, settings).unwrap().plan(&slide).unwrap_err();
    let error = refused(at(0.19));
    assert!(matches!(error, Error::Tile(_)) && error.exit_code() == 2, "{error}");
    let text = error.to_string();
    for word in ["synthetic", "0.2500", "0.1900", "1.32 times", "1.25"] {
        assert!(text.contains(word), "{word} is missing: {text}");
    }
    let (_, summary) = segment(&slide, &model, &with(&at(0.19), |s| s.max_enlargement = 1.5));
    assert_eq!(summary.geometry.target.resampling, Resampling::Bilinear);
}

#[test]
fn a_resolution_is_never_guessed() {
    let (unknown, model) = (slide().with_mpp(None), model());
    let refused = |settings: Settings| {
        let error = Segmenter::new(&model, settings).unwrap().plan(&unknown).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        error.to_string()
    };
    let text = refused(at(0.5));
    assert!(text.contains("synthetic") && text.contains("--mpp"), "{text}");
    let text = refused(with(&settings(), |s| s.model_mpp = None));
    assert!(text.contains("--model-mpp"), "{text}");
    for wrong in [0.0, -1.0, 1e-3, 1e4, f64::NAN, f64::INFINITY] {
        for settings in [at(0.5), settings()] {
            let text = refused(with(&settings, |s| s.mpp = Some(wrong)));
            assert!(text.contains("not plausible"), "{wrong}: {text}");
        }
        let text = refused(with(&at(wrong), |s| s.mpp = Some(0.5)));
        assert!(text.contains("not plausible"), "{wrong}: {text}");
    }
    // The user's word counts, also against the slide's.
    for slide in [unknown.clone(), slide()] {
        let (mask, summary) = segment(&slide, &model, &with(&at(1.0), |s| s.mpp = Some(0.5)));
        let geometry = &summary.geometry;
        assert_eq!(geometry.resolution.as_ref().unwrap().source, ResolutionSource::Given);
        assert_eq!((geometry.target.level, geometry.target.mpp), (Level(1), Some(Microns::square(1.0))));
        let (size, found) = levels_of(&mask).remove(0);
        assert_same(size, &found, &over(size, |x, y| model.class(&slide.pixel_at(1, x, y))), "0.5 um by the user");
    }
}

fn part(pixels: &Pixels, at: Rect, of: Rect) -> Pixels {
    let mut part = Pixels::filled(of.size(), SampleType::U8, &[0; 3]);
    part.blit(of, pixels, at);
    part
}

#[test]
fn requests_that_are_resampled_in_pieces_agree_with_small_ones() {
    // 40 x 30 target pixels of 64 x 64 source pixels are more than are read at once.
    let slide = SyntheticSlide::new(Size::new(2700, 2000), 3).with_levels(&[0]);
    let grid = TargetGrid {
        size: Size::new(42, 31),
        mpp: None,
        level: Level(0),
        step: Downsample { x: 64.3, y: 64.7 },
        resampling: Resampling::Area,
        downsample: Downsample { x: 64.3, y: 64.7 },
    };
    let reader = Reader::new(&slide, &grid);
    let whole = reader.read(grid.size.rect()).unwrap();
    for rect in [Rect::new(0, 0, 5, 31), Rect::new(17, 11, 9, 8), Rect::new(41, 30, 1, 1)] {
        assert!(reader.read(rect).unwrap() == part(&whole, grid.size.rect(), rect), "{rect}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any two requests agree on what they share, bit for bit.
    #[test]
    fn requests_agree_where_they_overlap(
        (width, height) in (1u64..200, 1u64..200),
        mpp in 0.21f64..3.0,
        corners in prop::array::uniform8(0.0f64..1.0),
        seed in any::<u64>(),
    ) {
        let slide = SyntheticSlide::new(Size::new(width, height), seed).with_mpp(Some(Microns::square(0.25)));
        let settings = at(mpp);
        let model = model();
        let plan = Segmenter::new(&model, settings).unwrap().plan(&slide).unwrap();
        let grid = &plan.geometry.target;
        let reader = Reader::new(&slide, grid);
        let rect = |c: &[f64]| {
            let side = |a: f64, b: f64, n: u64| {
                let (a, b) = ((a.min(b) * n as f64) as u64, (a.max(b) * n as f64) as u64);
                (a as i64, (b - a).max(1))
            };
            let ((x, width), (y, height)) = (side(c[0], c[1], grid.size.width), side(c[2], c[3], grid.size.height));
            Rect::new(x, y, width, height)
        };
        let (a, b) = (rect(&corners[..4]), rect(&corners[4..]));
        let (pixels_a, pixels_b) = (reader.read(a).unwrap(), reader.read(b).unwrap());
        if let Some(common) = a.intersect(b) {
            prop_assert!(part(&pixels_a, a, common) == part(&pixels_b, b, common), "{} and {}", a, b);
        }
        let whole = reader.read(grid.size.rect()).unwrap();
        prop_assert!(part(&whole, grid.size.rect(), a) == pixels_a, "{}", a);
    }
}
