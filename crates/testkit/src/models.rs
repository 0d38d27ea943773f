//! Models whose output is known without a network.

use microtome_io::{Class, Samples, Size};
use microtome_unet::{
    Card, Error, Logits, MemoryEstimate, MirrorAxes, Normalization, Normalizer, Output, Placement, Predictor, Result,
    Tile, Window,
};
use rayon::prelude::*;

/// A model that gives the same logits everywhere, whatever it sees. Any blending of its tiles must give them back.
#[derive(Debug, Clone)]
pub struct ConstantModel {
    card: Card,
    logits: Vec<f32>,
}

impl ConstantModel {
    /// A model of RGB tiles with one logit per class.
    ///
    /// # Panics
    /// If there is no logit or no pixel in the tile.
    #[must_use]
    pub fn new(tile: Size, logits: &[f32]) -> Self {
        Self { card: card("constant", tile, logits.len()), logits: logits.to_vec() }
    }

    /// The card, to change what a test needs otherwise: resolution, step, window, normalisation, channels.
    pub fn card_mut(&mut self) -> &mut Card {
        &mut self.card
    }
}

impl Predictor for ConstantModel {
    fn card(&self) -> &Card {
        &self.card
    }

    fn predict(&self, tiles: &[Tile<'_>], _normalizer: &Normalizer) -> Result<Vec<Logits>> {
        let size = self.card.tile;
        let area = size.area() as usize;
        let values: Vec<f32> = self.logits.iter().flat_map(|&logit| std::iter::repeat_n(logit, area)).collect();
        tiles
            .iter()
            .map(|tile| {
                check(&self.card, tile)?;
                Ok(Logits { heads: self.logits.len(), size, values: values.clone() })
            })
            .collect()
    }

    fn identity(&self) -> String {
        format!("{self:?}")
    }

    fn memory(&self, batch: usize) -> MemoryEstimate {
        memory(&self.card, batch)
    }
}

/// A model whose logits are a function of the pixel alone: of its *darkness*, 255 (or 65535) less the first channel.
///
/// With the thresholds `t1 < t2 < ...` the class of a pixel of darkness `d` is the number of thresholds below `d`. The logit of
/// class `c` is the sum of `d - ti` over the first `c` thresholds, so that neighbouring classes differ by `d - ti`: with
/// thresholds halfway between integers there is always a margin of at least 0.5, and no rounding decides a pixel.
/// All intermediate values are exact in f32 for 8-bit pixels. The normaliser is ignored.
#[derive(Debug, Clone)]
pub struct FunctionModel {
    card: Card,
    thresholds: Vec<f32>,
}

impl FunctionModel {
    /// A model of RGB tiles with one class more than there are thresholds.
    ///
    /// # Panics
    /// If the thresholds do not ascend or the tile has no pixel.
    #[must_use]
    pub fn new(tile: Size, thresholds: &[f32]) -> Self {
        assert!(thresholds.is_sorted_by(|a, b| a < b), "thresholds ascend: {thresholds:?}");
        Self { card: card("function", tile, thresholds.len() + 1), thresholds: thresholds.to_vec() }
    }

    /// The card, to change what a test needs otherwise: resolution, step, window, normalisation, channels.
    pub fn card_mut(&mut self) -> &mut Card {
        &mut self.card
    }

    /// The class of an 8-bit pixel.
    #[must_use]
    pub fn class(&self, pixel: &[u8]) -> u16 {
        let darkness = 255.0 - f32::from(pixel[0]);
        self.thresholds.iter().filter(|&&threshold| threshold < darkness).count() as u16
    }

    /// The logits of a pixel of this darkness, one per class.
    pub fn logits(&self, darkness: f32) -> impl Iterator<Item = f32> + use<'_> {
        let terms = self.thresholds.iter().map(move |threshold| darkness - threshold);
        std::iter::once(0.0).chain(terms.scan(0.0, |sum, term| {
            *sum += term;
            Some(*sum)
        }))
    }
}

impl FunctionModel {
    /// Benchmarks want a model that costs next to nothing, hence the closed form: `c` times the darkness less the sum of the first `c`
    /// thresholds, which is exact, too.
    fn logits_of(&self, tile: &Tile<'_>) -> Result<Logits> {
        check(&self.card, tile)?;
        let (size, heads) = (self.card.tile, self.thresholds.len() + 1);
        let (width, area) = (size.width as usize, size.area() as usize);
        let (columns, channels) = (tile.at.width as usize, tile.pixels.channels());
        let row_at = |row: usize| (tile.at.y as usize + row) * width + tile.at.x as usize;
        let mut values = Vec::with_capacity(area * heads);
        values.resize(area, 0.0);
        let mut sum = 0.0;
        for (head, threshold) in (1..heads).zip(&self.thresholds) {
            sum += threshold;
            let start = values.len();
            // Where there are no pixels the tile is as bright as can be.
            values.resize(start + area, -sum);
            for row in 0..tile.at.height as usize {
                let to = &mut values[start + row_at(row)..][..columns];
                let from = row * columns * channels..(row + 1) * columns * channels;
                let logit = |darkness: f32| head as f32 * darkness - sum;
                match tile.pixels.samples() {
                    Samples::U8(v) => {
                        let pixels = v[from].chunks_exact(channels);
                        to.iter_mut().zip(pixels).for_each(|(to, p)| *to = logit(f32::from(255 - p[0])));
                    }
                    Samples::U16(v) => {
                        let pixels = v[from].chunks_exact(channels);
                        to.iter_mut().zip(pixels).for_each(|(to, p)| *to = logit(f32::from(65535 - p[0])));
                    }
                }
            }
        }
        Ok(Logits { heads, size, values })
    }
}

impl Predictor for FunctionModel {
    fn card(&self) -> &Card {
        &self.card
    }

    fn predict(&self, tiles: &[Tile<'_>], _normalizer: &Normalizer) -> Result<Vec<Logits>> {
        tiles.par_iter().map(|tile| self.logits_of(tile)).collect()
    }

    fn identity(&self) -> String {
        format!("{self:?}")
    }

    fn memory(&self, batch: usize) -> MemoryEstimate {
        memory(&self.card, batch)
    }
}

/// What every implementation of [`Predictor`] refuses.
fn check(card: &Card, tile: &Tile<'_>) -> Result<()> {
    let fault = if tile.pixels.channels() != card.channels.len() {
        format!("a tile of {} channels for a model of {}", tile.pixels.channels(), card.channels.len())
    } else if tile.at.size() != tile.pixels.size() || tile.at.is_empty() || !card.tile.rect().contains(tile.at) {
        format!("pixels of {} as {} of a tile of {}", tile.pixels.size(), tile.at, card.tile)
    } else {
        return Ok(());
    };
    Err(Error::Usage { message: fault })
}

fn memory(card: &Card, batch: usize) -> MemoryEstimate {
    let logits = card.tile.area() * card.heads() as u64 * size_of::<f32>() as u64;
    let darkness = card.tile.area() * size_of::<f32>() as u64;
    MemoryEstimate { weights: 0, activations: batch as u64 * (logits + darkness) }
}

/// The card of an RGB model that asks for nothing: no normalisation, no mirroring, no resolution.
fn card(name: &str, tile: Size, classes: usize) -> Card {
    assert!(!tile.is_empty() && classes > 0, "a model has classes and a tile has pixels");
    Card {
        name: name.into(),
        architecture: "a formula".into(),
        tile,
        channels: ["R", "G", "B"].map(String::from).into(),
        classes: (0..classes as u16).map(|c| Class::with_default_color(c, format!("class {c}"))).collect(),
        output: Output::Labels,
        mirror_axes: MirrorAxes::NONE,
        normalization: vec![Normalization::None; 3],
        training: None,
        mpp: None,
        step: 0.5,
        placement: Placement::Nnunet,
        window: Window::Gaussian,
        postprocessing: None,
        crop_to_nonzero: false,
        folds: vec!["0".into()],
        parameters: 0,
        sha256: "0".repeat(64),
        licence: None,
        provenance: None,
        intended_use: None,
        test_vector: None,
        precision: microtome_unet::PrecisionNote::default(),
    }
}

#[cfg(test)]
mod tests {
    use microtome_io::{Pixels, Rect};

    use super::*;

    fn normalizer() -> Normalizer {
        Normalizer::new(&[Normalization::None; 3], &[]).unwrap()
    }

    #[test]
    fn the_largest_logit_is_the_class_with_a_margin() {
        let model = FunctionModel::new(Size::new(16, 16), &[20.5, 100.5, 180.5]);
        for value in 0..=255 {
            let logits: Vec<f32> = model.logits(255.0 - f32::from(value)).collect();
            let class = usize::from(model.class(&[value, 0, 0]));
            assert_eq!(logits.len(), 4);
            for (other, logit) in logits.iter().enumerate() {
                assert!(other == class || logits[class] - logit >= 0.5, "{value}: {logits:?}");
            }
        }
    }

    #[test]
    fn a_partial_tile_lies_where_it_says() {
        let model = FunctionModel::new(Size::new(4, 3), &[0.5]);
        let pixels = Pixels::from_u8(Size::new(2, 1), 3, vec![250, 0, 0, 255, 0, 0]);
        let tile = Tile { pixels: &pixels, at: Rect::new(1, 2, 2, 1) };
        let logits = model.predict(&[tile], &normalizer()).unwrap().remove(0);
        assert_eq!((logits.heads, logits.size), (2, Size::new(4, 3)));
        assert_eq!(logits.values[..12], [0.0; 12]);
        let plane = &logits.values[12..];
        assert_eq!(plane, [-0.5, -0.5, -0.5, -0.5, -0.5, -0.5, -0.5, -0.5, -0.5, 4.5, -0.5, -0.5]);
    }

    #[test]
    fn a_constant_is_constant_and_a_wrong_tile_is_refused() {
        let model = ConstantModel::new(Size::new(4, 4), &[1.5, -2.0]);
        let full = Pixels::filled(Size::new(4, 4), microtome_io::SampleType::U8, &[1, 2, 3]);
        let logits = model.predict(&[Tile::full(&full)], &normalizer()).unwrap().remove(0);
        assert_eq!((&logits.values[..16], &logits.values[16..]), (&[1.5; 16][..], &[-2.0; 16][..]));
        let grey = Pixels::filled(Size::new(4, 4), microtome_io::SampleType::U8, &[1]);
        let large = Pixels::filled(Size::new(5, 4), microtome_io::SampleType::U8, &[1, 2, 3]);
        for wrong in [&grey, &large] {
            assert!(matches!(model.predict(&[Tile::full(wrong)], &normalizer()), Err(Error::Usage { .. })));
        }
    }
}
