//! The model that travels with the repository: what PyTorch computed for it, and what it must never do.
//!
//! How well it segments images that it was not trained on is asked of the built program by `tests/python/check_nuclei.py`.

use microtome::io::slide::{OpenOptions, open};
use microtome::io::{Pixels, Rect, Size};
use microtome::unet::{Arithmetic, Device, Execution, Mirroring, Model, ModelOptions, Precision, Predictor};
use microtome::{Settings, TissueMode};
use microtome_testkit::{PictureSlide, assets};

use crate::{levels_of, repository, segment, with};

fn model() -> Model {
    Model::open(repository("models/nuclei"), &ModelOptions::default()).unwrap()
}

fn predictor() -> Box<dyn Predictor> {
    let execution = Execution { device: Device::Cpu, ..Execution::default() };
    model().predictor(&execution).unwrap()
}

#[test]
fn the_bundled_model_reproduces_its_test_vector() {
    let model = model();
    let vector = model.test_vector().expect("the package carries a test vector");
    assert!(vector.computed_by.starts_with("PyTorch "), "{}", vector.computed_by);
    for (arithmetic, bound) in [(Arithmetic::Exact, 1e-5), (Arithmetic::Fast, 1e-4)] {
        let execution =
            Execution { device: Device::Cpu, mirroring: Mirroring::Off, precision: Precision::F32, arithmetic };
        let agreement = model.check_test_vector(&execution).unwrap().unwrap();
        println!("{arithmetic}: {agreement:?}");
        assert!(agreement.max_logit_difference <= bound * agreement.max_logit, "{agreement:?}");
        assert_eq!((agreement.differing_pixels, agreement.pixels), (0, 128 * 128), "{agreement:?}");
    }
}

#[test]
fn the_bundled_model_says_what_it_is() {
    let model = model();
    let card = model.card();
    assert_eq!(card.mpp, Some(0.5));
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    assert!(text(&card.intended_use).contains("not a diagnostic device"), "{card:?}");
    for word in ["Data Science Bowl", "CC0-1.0", "weak labels", "assumed"] {
        assert!(text(&card.provenance).contains(word), "{word} is missing: {card:?}");
    }
    assert!(!text(&card.licence).is_empty());
    let weights = std::fs::metadata(repository("models/nuclei/weights.safetensors")).unwrap().len();
    assert!(weights <= 2_000_000, "{weights} bytes");
}

/// Nothing but a tile's own pixels decides: neither statistics of the slide nor the black of its borders.
#[test]
fn a_tile_of_the_bundled_model_depends_on_nothing_else() {
    let model = model();
    let card = model.card();
    assert!(!microtome::unet::needs_statistics(&card.normalization));
    assert!(!card.crop_to_nonzero);
}

/// An even field of `level`, and noise around it of about the standard deviation `sigma`: the same in all channels, or not.
fn field(size: Size, level: f64, sigma: f64, channels_differ: bool, seed: u64) -> Pixels {
    // SplitMix64; the sum of four even numbers between 0 and 1 has the variance 1/3.
    let mut state = seed;
    let mut even = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as f64 / u64::MAX as f64
    };
    let mut sample =
        || ((even() + even() + even() + even() - 2.0) * 3f64.sqrt() * sigma + level).round().clamp(0.0, 255.0);
    let samples = (0..size.area()).flat_map(|_| {
        let first = sample() as u8;
        if channels_differ { [first, sample() as u8, sample() as u8] } else { [first; 3] }
    });
    Pixels::from_u8(size, 3, samples.collect())
}

/// The share of a mask that is not background.
fn foreground(mask: &[u16]) -> f64 {
    mask.iter().filter(|&&label| label != 0).count() as f64 / mask.len() as f64
}

#[test]
fn the_bundled_model_sees_no_nuclei_on_empty_glass() {
    let predictor = predictor();
    let every_tile = with(&Settings::default(), |s| s.tissue = TissueMode::None);
    let size = Size::new(400, 300);
    let mut worst = 0.0_f64;
    for (seed, level) in (0..).zip([201.0, 210.0, 220.0, 230.0, 243.0, 255.0]) {
        for (sigma, channels_differ) in [(0.0, false), (3.0, false), (3.0, true), (10.0, false), (10.0, true)] {
            let slide = PictureSlide::new(field(size, level, sigma, channels_differ, seed), 0.5);
            let (mask, summary) = segment(&slide, predictor.as_ref(), &every_tile);
            assert_eq!(summary.tiles.skipped, 0);
            let share = foreground(&levels_of(&mask)[0].1);
            worst = worst.max(share);
            assert!(share < 0.001, "level {level}, sigma {sigma}, channels differ: {channels_differ}: {share}");
        }
    }
    println!("at most {:.4} % foreground", worst * 100.0);
}

/// A rectangle of the demo slide, and the share of it that must be nucleus, at least and at most.
/// Measured: 0.008 %, 0.07 %, 0 %, 31.8 % and 19.1 %, of which the last two are what eyes find plausible.
const DEMO: [(&str, Rect, f64, f64); 5] = [
    ("glass", Rect::new(0, 0, 700, 900), 0.0, 0.001),
    ("horn", Rect::new(1400, 1000, 180, 250), 0.0, 0.005),
    ("collagen", Rect::new(1535, 2215, 90, 70), 0.0, 0.005),
    ("epithelium, dense", Rect::new(1090, 700, 130, 200), 0.28, 0.36),
    ("epithelium, pale", Rect::new(1110, 1850, 90, 300), 0.16, 0.23),
];

/// What the model of a first impression must get right, glass included.
#[test]
fn the_demo_slide_has_nuclei_where_there_are_some() {
    let Some(path) = assets::cmu_small_region() else { return };
    let slide = open(&path, &OpenOptions::default()).unwrap();
    let every_tile = with(&Settings::default(), |s| s.tissue = TissueMode::None);
    let (mask, _) = segment(slide.as_ref(), predictor().as_ref(), &every_tile);
    let (size, labels) = levels_of(&mask).remove(0);
    for (name, rect, least, most) in DEMO {
        let row = |y: u64| &labels[(y * size.width) as usize..][rect.x as usize..][..rect.width as usize];
        let part: Vec<u16> = (rect.y as u64..).take(rect.height as usize).flat_map(row).copied().collect();
        let share = foreground(&part);
        println!("{name}: {:.2} %", share * 100.0);
        assert!((least..=most).contains(&share), "{name}: {share}");
    }
}
