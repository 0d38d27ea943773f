//! The arithmetic, on candle's CPU device, beside candle's plain operations. `cpu::tests` compares the lowering with formulas, for networks drawn
//! at random.

use std::sync::Arc;

use candle_core::Device;
use microtome_io::{Pixels, Rect, Size};

use super::super::convolution::Convolver;
use super::super::pool::{Open, Opened};
use super::super::session::{InPlace, NetworkSession, Recipe};
use super::super::{GpuPredictor, passes};
use crate::architecture::tests::tiny;
use crate::architecture::{Activation, Norm, residual_tests as residual};
use crate::model::Model;
use crate::model::tests::random;
use crate::network::Extent;
use crate::{
    Architecture, Arithmetic, ChannelStatistics, Error, Execution, Logits, Mirroring, Normalizer, Precision, Predictor,
    Tile, candle,
};

/// The engine on the CPU.
fn engine(model: &Model, execution: &Execution, batch: usize) -> GpuPredictor {
    let recipe = Arc::new(Recipe::new(model, execution));
    let open: Open = Box::new(move || {
        let session = NetworkSession::new(&recipe, &Device::Cpu, Convolver::default(), InPlace::default())?;
        Ok(Opened { session: Box::new(session), name: "cpu".into(), kind: "cpu".into(), fits: 4 })
    });
    GpuPredictor::new(model, execution, vec![open], Some(batch)).unwrap()
}

fn noise(size: Size, channels: usize, seed: u32) -> Pixels {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    Pixels::from_u8(size, channels, (0..size.area() as usize * channels).map(|_| next()).collect())
}

fn normalizer(model: &Model) -> Normalizer {
    let schemes = &model.card().normalization;
    let statistics = ChannelStatistics { mean: 120.0, std: 60.0, min: 0.0, max: 255.0 };
    Normalizer::new(schemes, &vec![statistics; schemes.len()]).unwrap()
}

/// The largest difference, relative to the largest logit.
fn difference(found: &[Logits], expected: &[Logits]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().flat_map(|l| &l.values).fold(0.0_f32, |m, v| m.max(v.abs()));
    let both = found.iter().zip(expected).flat_map(|(a, b)| a.values.iter().zip(&b.values));
    both.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

fn from_candle(model: &Model, execution: &Execution, tiles: &[Tile<'_>]) -> Vec<Logits> {
    let execution = Execution { arithmetic: Arithmetic::Reference, precision: Precision::F32, ..*execution };
    let reference = candle::ensemble(model, &execution, &Device::Cpu).unwrap();
    reference.predict(tiles, &normalizer(model)).unwrap()
}

fn models() -> Vec<(&'static str, Model)> {
    let square = |n| Extent { height: n, width: n };
    let mut batch = tiny();
    batch.norm = Norm::Batch { epsilon: 1e-3, affine: true };
    let mut bare = tiny();
    bare.norm = Norm::None;
    bare.activation = Activation::None;
    bare.bias = false;
    let mut odd = tiny();
    odd.kernels = vec![Extent { height: 1, width: 3 }, square(5), Extent { height: 3, width: 1 }];
    odd.strides = vec![Extent::ONE, Extent { height: 1, width: 3 }, square(2)];
    odd.norm = Norm::Instance { epsilon: 1e-5, affine: false };
    let plain = [("plain", tiny()), ("batch norm", batch), ("bare", bare), ("odd", odd)];
    let all = plain.map(|(name, parameters)| (name, Architecture::PlainConvUnet(parameters))).into_iter();
    let all = all.chain([("residual", Architecture::ResidualEncoderUnet(residual::tiny()))]);
    all.map(|(name, architecture)| (name, random(architecture, Size::new(24, 16)))).collect()
}

#[test]
fn logits_are_those_of_plain_operations() {
    for (name, model) in models() {
        let execution = Execution { mirroring: Mirroring::AsTrained, ..Execution::default() };
        let pictures: Vec<Pixels> = (0..5).map(|seed| noise(model.card().tile, 3, seed)).collect();
        let tiles: Vec<Tile<'_>> = pictures.iter().map(Tile::full).collect();
        let expected = from_candle(&model, &execution, &tiles);
        let found = engine(&model, &execution, 2).predict(&tiles, &normalizer(&model)).unwrap();
        let difference = difference(&found, &expected);
        println!("{name}: {difference:e}");
        // Measured: 0.8e-6 to 2.7e-6.
        assert!(difference <= 1e-5, "{name}: {difference:e}");
    }
}

/// f16 stands for all half-wide numbers: candle's CPU device does not multiply bf16.
#[test]
fn half_wide_numbers_are_near() {
    for (name, model) in models() {
        let execution = Execution { mirroring: Mirroring::Off, precision: Precision::F16, ..Execution::default() };
        let picture = noise(model.card().tile, 3, 9);
        let tiles = [Tile::full(&picture)];
        let expected = from_candle(&model, &execution, &tiles);
        let found = engine(&model, &execution, 1).predict(&tiles, &normalizer(&model)).unwrap();
        let difference = difference(&found, &expected);
        println!("{name}: {difference:e}");
        // Measured: 0.43e-3 to 1.9e-3.
        assert!((1e-6..=4e-3).contains(&difference), "{name}: {difference:e}");
    }
}

#[test]
fn neither_the_batch_nor_its_neighbours_change_a_bit() {
    let (_, model) = models().swap_remove(0);
    let execution = Execution { mirroring: Mirroring::AsTrained, ..Execution::default() };
    let pictures: Vec<Pixels> = (0..7).map(|seed| noise(model.card().tile, 3, seed)).collect();
    let tiles: Vec<Tile<'_>> = pictures.iter().map(Tile::full).collect();
    let normalizer = normalizer(&model);
    let alone = engine(&model, &execution, 1);
    let expected: Vec<Logits> =
        tiles.iter().flat_map(|tile| alone.predict(std::slice::from_ref(tile), &normalizer).unwrap()).collect();
    for batch in [2, 4] {
        let together = engine(&model, &execution, batch);
        assert_eq!(together.predict(&tiles, &normalizer).unwrap(), expected, "{batch} at once");
        // candle's CPU device was seen to give the same bits, so the batch is no part of the identity.
        assert_eq!(together.identity(), alone.identity());
        assert_eq!(together.batch(), Some(batch));
    }
    assert_eq!(alone.identity(), "microtome gpu 1, candle 0.11, f32 on cpu, 4 passes");
}

#[test]
fn tiles_at_an_edge_are_padded_after_normalisation() {
    let (_, model) = models().swap_remove(0);
    let execution = Execution { mirroring: Mirroring::AsTrained, ..Execution::default() };
    let full = noise(model.card().tile, 3, 1);
    let part = noise(Size::new(13, 9), 3, 2);
    let tiles = [Tile { pixels: &part, at: Rect::new(4, 3, 13, 9) }, Tile::full(&full)];
    let expected = from_candle(&model, &execution, &tiles);
    let found = engine(&model, &execution, 2).predict(&tiles, &normalizer(&model)).unwrap();
    let difference = difference(&found, &expected);
    assert!(difference <= 1e-5, "{difference:e}");
}

#[test]
fn samples_of_16_bits_are_normalised_as_they_are() {
    let (_, model) = models().swap_remove(0);
    let execution = Execution { mirroring: Mirroring::Off, ..Execution::default() };
    let narrow = noise(model.card().tile, 3, 4);
    let wide = narrow.as_u8().unwrap().iter().map(|&v| u16::from(v) * 257).collect();
    let wide = Pixels::from_u16(narrow.size(), 3, wide);
    let schemes = &model.card().normalization;
    let statistics = ChannelStatistics { mean: 30_000.0, std: 15_000.0, min: 0.0, max: 65_535.0 };
    let normalizer = Normalizer::new(schemes, &vec![statistics; schemes.len()]).unwrap();
    let tiles = [Tile::full(&wide)];
    let reference =
        candle::ensemble(&model, &Execution { arithmetic: Arithmetic::Reference, ..execution }, &Device::Cpu);
    let expected = reference.unwrap().predict(&tiles, &normalizer).unwrap();
    let engine = engine(&model, &execution, 1);
    let found = engine.predict(&tiles, &normalizer).unwrap();
    assert!(difference(&found, &expected) <= 1e-5);
    let error = engine.predict(&[Tile::full(&wide), Tile::full(&narrow)], &normalizer).unwrap_err();
    assert_eq!(error.to_string(), "tiles of 8 and of 16 bits in one batch");
}

#[test]
fn what_is_no_number_is_an_error_that_names_the_tile() {
    let (_, mut model) = models().swap_remove(0);
    model.change_weight("decoder.seg_layers.1.bias", f32::NAN);
    let execution = Execution { mirroring: Mirroring::Off, ..Execution::default() };
    let picture = noise(model.card().tile, 3, 1);
    let error = engine(&model, &execution, 1).predict(&[Tile::full(&picture)], &normalizer(&model)).unwrap_err();
    assert!(matches!(error, Error::NotFinite { index: 0 }), "{error}");
}

#[test]
fn passes_and_lanes_are_known() {
    let (_, model) = models().swap_remove(0);
    let execution = Execution { mirroring: Mirroring::AsTrained, ..Execution::default() };
    assert_eq!(passes(model.card(), &execution).len(), 4);
    let engine = engine(&model, &execution, 2);
    assert_eq!(engine.lanes(), 3);
    // Main memory holds what is on its way, and no weights.
    assert_eq!(engine.memory(2).weights, 0);
    assert!(engine.memory(2).activations > engine.memory(1).activations);
}
