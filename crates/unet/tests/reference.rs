//! With a real checkpoint, trained by nnU-Net 2.8.1 (the parity of its logits is a unit test of `candle`).

use std::path::PathBuf;

use microtome_io::{Pixels, Rect, Size};
use microtome_unet::{
    Arithmetic, ChannelStatistics, Device, Execution, Mirroring, Model, ModelOptions, Normalizer, PackageOptions,
    Precision, Predictor, Tile,
};

const CPU: Execution = Execution {
    device: Device::Cpu,
    mirroring: Mirroring::Off,
    precision: Precision::F32,
    arithmetic: Arithmetic::Fast,
};

/// The folder of the model that nnU-Net trained, or `None` after saying so.
fn nnunet() -> Option<PathBuf> {
    microtome_testkit::data("models/nnunet-v2-plain")
}

/// Tiles of noise, the same on every machine.
fn noise(tile: Size, seed: u32) -> Pixels {
    let mut state = seed;
    let sample = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    Pixels::from_u8(tile, 3, std::iter::repeat_with(sample).take(tile.area() as usize * 3).collect())
}

fn normalizer(model: &Model) -> Normalizer {
    let statistics = ChannelStatistics { mean: 120.0, std: 60.0, min: 0.0, max: 255.0 };
    Normalizer::new(&model.card().normalization, &[statistics; 3]).unwrap()
}

#[test]
fn logits_of_a_package_are_those_of_the_folder_bit_for_bit() {
    let Some(folder) = nnunet() else { return };
    let model = Model::open(&folder, &ModelOptions::default()).unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let package = temporary.path().join("package");
    model.save_package(&package, &PackageOptions { mpp: Some(0.5), ..PackageOptions::default() }).unwrap();
    let copy = Model::open(&package, &ModelOptions::default()).unwrap();
    assert_eq!(copy.card().mpp, Some(0.5));
    assert_eq!(copy.card().sha256, model.card().sha256);

    let pixels = noise(model.card().tile, 1);
    let logits = |model: &Model| {
        let tiles = [Tile::full(&pixels)];
        model.predictor(&CPU).unwrap().predict(&tiles, &normalizer(model)).unwrap()
    };
    assert_eq!(logits(&model), logits(&copy));
}

#[test]
fn neither_batch_nor_threads_change_a_bit() {
    let Some(folder) = nnunet() else { return };
    let model = Model::open(&folder, &ModelOptions::default()).unwrap();
    let predictor = model.predictor(&Execution { mirroring: Mirroring::AsTrained, ..CPU }).unwrap();
    let pixels: Vec<Pixels> = (1..4).map(|seed| noise(model.card().tile, seed)).collect();
    let tiles: Vec<Tile<'_>> = pixels.iter().map(Tile::full).collect();
    let normalizer = normalizer(&model);
    let with_threads = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| predictor.predict(&tiles, &normalizer).unwrap())
    };
    let together = with_threads(1);
    assert_eq!(together, with_threads(2));
    assert_eq!(together, with_threads(5));
    for (tile, expected) in tiles.iter().zip(&together) {
        assert_eq!(&predictor.predict(std::slice::from_ref(tile), &normalizer).unwrap()[0], expected);
    }
}

#[test]
fn mirroring_is_the_mean_over_flipped_pictures() {
    let Some(folder) = nnunet() else { return };
    let model = Model::open(&folder, &ModelOptions::default()).unwrap();
    let (size, normalizer) = (model.card().tile, normalizer(&model));
    let (width, height) = (size.width as usize, size.height as usize);
    let pixels = noise(size, 7);
    let flip = |vertical: bool, horizontal: bool, at: usize| {
        let (x, y) = (at % width, at / width);
        (if vertical { height - 1 - y } else { y }) * width + if horizontal { width - 1 - x } else { x }
    };
    let plain = model.predictor(&CPU).unwrap();
    let predict = |predictor: &dyn Predictor, pixels: &Pixels| {
        predictor.predict(&[Tile::full(pixels)], &normalizer).unwrap().remove(0).values
    };
    let mut mean = vec![0.0_f32; 2 * width * height];
    for (vertical, horizontal) in [(false, false), (true, false), (false, true), (true, true)] {
        let samples = pixels.as_u8().unwrap();
        let flipped = (0..width * height).flat_map(|i| &samples[3 * flip(vertical, horizontal, i)..][..3]);
        let flipped = Pixels::from_u8(size, 3, flipped.copied().collect());
        let logits = predict(plain.as_ref(), &flipped);
        for (i, sum) in mean.iter_mut().enumerate() {
            let (plane, pixel) = (i / (width * height), i % (width * height));
            *sum += logits[plane * width * height + flip(vertical, horizontal, pixel)];
        }
    }
    for v in &mut mean {
        *v /= 4.0;
    }
    let mirrored = model.predictor(&Execution { mirroring: Mirroring::AsTrained, ..CPU }).unwrap();
    assert_eq!(predict(mirrored.as_ref(), &pixels), mean);
}

#[test]
fn a_small_picture_is_padded_with_zero_after_normalisation() {
    let Some(folder) = nnunet() else { return };
    let model = Model::open(&folder, &ModelOptions::default()).unwrap();
    let (size, normalizer) = (model.card().tile, normalizer(&model));
    let predictor = model.predictor(&CPU).unwrap();
    // 120 is the mean, so a border of 120 is a border of 0.
    let small = noise(Size::new(50, 40), 3);
    let at = Rect::new(39, 44, 50, 40);
    let mut full = Pixels::filled(size, microtome_io::SampleType::U8, &[120; 3]);
    full.blit(size.rect(), &small, at);
    let padded = predictor.predict(&[Tile { pixels: &small, at }], &normalizer).unwrap();
    assert_eq!(padded, predictor.predict(&[Tile::full(&full)], &normalizer).unwrap());
}

#[test]
fn the_card_says_what_the_folder_says() {
    let Some(folder) = nnunet() else { return };
    let model = Model::open(&folder, &ModelOptions::default()).unwrap();
    let card = model.card();
    assert_eq!((card.name.as_str(), card.tile), ("Dataset501_DSBStained", Size::new(128, 128)));
    assert_eq!(card.channels, ["R", "G", "B"]);
    assert_eq!(card.classes[1].name, "nucleus");
    assert!(card.mirror_axes.horizontal && card.mirror_axes.vertical);
    assert_eq!(card.folds, ["fold_all"]);
    // reference/info.json counts 323 304 parameters with the three heads of deep supervision: 2 * (64 + 1), 2 * (32 + 1), 2 * (16 + 1).
    assert_eq!(card.parameters, 323_304 - 2 * (64 + 32 + 16 + 3));
    assert_eq!(card.mpp, None);
}
