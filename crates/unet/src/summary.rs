//! What can be said about a network without running it: its layers, what they cost, and how far a logit sees.

use std::fmt;

use microtome_io::Size;
use serde::Serialize;

use crate::network::{
    Extent, Factor, Function, Interpolation, Layer, Network, Operation, Padding, Shape, Source, WeightShape,
};

/// A network's figures for tiles of one size; those of one forward pass, of which a model takes one for each fold and mirroring.
///
/// What a pass holds in memory depends on the engine: [`Predictor::memory`](crate::Predictor::memory) knows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The tile.
    pub tile: Size,
    /// The layers in the order in which they run.
    pub layers: Vec<LayerSummary>,
    /// Values of all weights together.
    pub parameters: u64,
    /// Multiplications, each with its addition, that convolutions take for one tile.
    pub multiplications: u64,
    /// What one logit depends on.
    pub receptive_field: ReceptiveField,
}

/// One layer's figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerSummary {
    /// The module's name in the state dict, if it has weights.
    pub name: Option<String>,
    /// What it computes.
    pub operation: String,
    /// What comes out for one tile.
    pub output: Shape,
    /// Values of its weights.
    pub parameters: u64,
    /// Multiplications, each with its addition, for one tile; 0 where it is no convolution.
    pub multiplications: u64,
}

/// What one logit depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ReceptiveField {
    /// Input pixels that the logit which sees most of them is computed from along each axis, as if the tile had no end:
    /// by convolutions, pooling, resizing and shuffling alone.
    pub size: Size,
    /// Whether instance or group norms lie on the way: then every logit also depends, if less, on the whole tile by its statistics.
    pub global: bool,
}

impl Summary {
    /// Multiplications of one pass for each pixel of the mask, where tiles lie a fraction `step` of their size apart:
    /// each pixel away from the slide's border is in `1 / step²` tiles.
    #[must_use]
    pub fn multiplications_per_pixel(&self, step: f64) -> f64 {
        self.multiplications as f64 / (self.tile.area() as f64 * step * step)
    }

    /// Multiplications of one pass for each square millimetre of slide at `mpp` micrometres per pixel.
    #[must_use]
    pub fn multiplications_per_mm2(&self, step: f64, mpp: f64) -> f64 {
        self.multiplications_per_pixel(step) * (1000.0 / mpp).powi(2)
    }
}

impl Network {
    /// The network's figures for tiles of this size, which [`check`](Self::check) finds nothing wrong with.
    #[must_use]
    pub fn summary(&self, tile: Size) -> Summary {
        let layer = |(layer, output): (&Layer, Shape)| {
            let weights = layer.operation.weights();
            let module =
                |weight: &WeightShape| weight.name.rsplit_once('.').map_or("", |(module, _)| module).to_owned();
            LayerSummary {
                name: weights.first().map(module),
                operation: layer.operation.to_string(),
                output,
                parameters: weights.iter().map(WeightShape::elements).fold(0, u64::saturating_add),
                multiplications: layer.operation.multiplications(output),
            }
        };
        Summary {
            tile,
            layers: self.layers().iter().zip(self.shapes(tile)).map(layer).collect(),
            parameters: self.parameters(),
            multiplications: self.multiplications(tile),
            receptive_field: self.receptive_field(tile),
        }
    }

    /// What one logit depends on. Only where resizing aligns corners does that depend on the tile's size.
    #[must_use]
    pub fn receptive_field(&self, tile: Size) -> ReceptiveField {
        let shapes = self.shapes(tile);
        let widest = |axis: Axis| {
            let logits = axis.of(shapes.last().map_or(tile, |s| s.size));
            let extent = |logit| self.reach(axis, tile, &shapes, logit).map_or(0, |(first, last)| last - first + 1);
            (0..logits as i64).map(extent).max().unwrap_or(0).unsigned_abs()
        };
        let size = Size::new(widest(Axis::X), widest(Axis::Y));
        // A layer that the logits do not come from changes nothing.
        let mut needed = vec![false; self.layers().len()];
        needed.last_mut().into_iter().for_each(|last| *last = true);
        let mut global = false;
        for (index, layer) in self.layers().iter().enumerate().rev() {
            if needed[index] {
                global |= matches!(layer.operation, Operation::InstanceNorm { .. } | Operation::GroupNorm { .. });
                for source in &layer.sources {
                    if let Source::Layer(i) = source {
                        needed[*i] = true;
                    }
                }
            }
        }
        ReceptiveField { size, global }
    }

    /// The first and the last input position along one axis that a logit is computed from, in a tile without an end.
    fn reach(&self, axis: Axis, tile: Size, shapes: &[Shape], logit: i64) -> Option<(i64, i64)> {
        /// Wider than any tile by far, and no sum of it overflows.
        const MOST: i64 = 1 << 40;
        let mut needed: Vec<Option<(i64, i64)>> = vec![None; self.layers().len()];
        let mut input = None;
        match needed.last_mut() {
            Some(last) => *last = Some((logit, logit)),
            None => input = Some((logit, logit)),
        }
        for (index, layer) in self.layers().iter().enumerate().rev() {
            let Some((first, last)) = needed[index] else { continue };
            for source in &layer.sources {
                let from = match source {
                    Source::Input => tile,
                    Source::Layer(i) => shapes[*i].size,
                };
                let read = |position| axis.read(&layer.operation, from, shapes[index].size, position);
                // The farther on a position lies, the farther on what it reads begins and ends.
                let (reads, also) = (read(first), read(last));
                let reached = (reads.0.min(also.0), reads.1.max(also.1));
                let place = match source {
                    Source::Input => &mut input,
                    Source::Layer(i) => &mut needed[*i],
                };
                let (first, last) = place.map_or(reached, |p| (p.0.min(reached.0), p.1.max(reached.1)));
                *place = Some((first.clamp(-MOST, MOST), last.clamp(-MOST, MOST)));
            }
        }
        input
    }
}

/// Rows and columns are reached independently of each other.
#[derive(Debug, Clone, Copy)]
enum Axis {
    Y,
    X,
}

impl Axis {
    fn of(self, size: Size) -> u64 {
        match self {
            Self::Y => size.height,
            Self::X => size.width,
        }
    }

    fn along(self, extent: Extent) -> i64 {
        match self {
            Self::Y => extent.height as i64,
            Self::X => extent.width as i64,
        }
    }

    fn beside(self, padding: Padding) -> i64 {
        match self {
            Self::Y => padding.height as i64,
            Self::X => padding.width as i64,
        }
    }

    /// The first and the last position of a source that an operation's output position is computed from.
    fn read(self, operation: &Operation, from: Size, to: Size, position: i64) -> (i64, i64) {
        match operation {
            Operation::Convolution { kernel, stride, .. } => {
                let kernel = self.along(*kernel);
                let first = position * self.along(*stride) - (kernel - 1) / 2;
                (first, first + kernel - 1)
            }
            Operation::AveragePool { kernel, stride, before } => {
                let first = position * self.along(*stride) - self.beside(*before);
                (first, first + self.along(*kernel) - 1)
            }
            Operation::MaxPool { kernel, stride, padding } => {
                let first = position * self.along(*stride) - self.beside(*padding);
                (first, first + self.along(*kernel) - 1)
            }
            Operation::Upsampling { kernel, stride, padding, .. } => {
                // Input `i` adds to the outputs from `i * stride - padding` on.
                let (kernel, stride) = (self.along(*kernel), self.along(*stride));
                let shifted = position + self.beside(*padding);
                let last = shifted.div_euclid(stride);
                let first = -(kernel - 1 - shifted).div_euclid(stride);
                // A pixel to which nothing is added counts as if it came from the input before it.
                (first.min(last), last)
            }
            Operation::PixelShuffle { factor } => {
                let position = position.div_euclid(*factor as i64);
                (position, position)
            }
            Operation::Resize { factor, interpolation } => {
                let factor = match self {
                    Self::Y => factor.height,
                    Self::X => factor.width,
                };
                let (inputs, outputs) = (self.of(from), self.of(to));
                let at = match interpolation {
                    // In f32, as PyTorch computes it.
                    Interpolation::Nearest => f64::from(position as f32 * (1.0 / factor) as f32),
                    Interpolation::Bilinear => (position as f64 + 0.5) / factor - 0.5,
                    Interpolation::BilinearCorners if outputs > 1 => {
                        position as f64 * (inputs.saturating_sub(1) as f64 / (outputs - 1) as f64)
                    }
                    Interpolation::BilinearCorners => 0.0,
                };
                let first = at.floor();
                let last = if *interpolation == Interpolation::Nearest { first } else { at.ceil() };
                (first as i64, last as i64)
            }
            Operation::InstanceNorm { .. }
            | Operation::BatchNorm { .. }
            | Operation::GroupNorm { .. }
            | Operation::Activation { .. }
            | Operation::Concatenate
            | Operation::Add => (position, position),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = |f: &mut fmt::Formatter<'_>, stride: &Extent| match *stride {
            Extent::ONE => Ok(()),
            stride => write!(f, ", stride {stride}"),
        };
        match self {
            Self::Convolution { input, output, kernel, stride, .. } => {
                write!(f, "convolution {kernel}")?;
                by(f, stride)?;
                write!(f, ", {input} to {output} channels")
            }
            Self::Upsampling { input, output, kernel, stride, .. } => {
                write!(f, "transposed convolution {kernel}")?;
                by(f, stride)?;
                write!(f, ", {input} to {output} channels")
            }
            Self::InstanceNorm { .. } => f.write_str("instance norm"),
            Self::BatchNorm { .. } => f.write_str("batch norm"),
            Self::GroupNorm { groups, .. } => write!(f, "group norm of {groups}"),
            Self::Activation { function } => function.fmt(f),
            Self::Concatenate => f.write_str("concatenation"),
            Self::Add => f.write_str("sum"),
            Self::AveragePool { kernel, stride, .. } => {
                write!(f, "average pool {kernel}")?;
                by(f, stride)
            }
            Self::MaxPool { kernel, stride, .. } => {
                write!(f, "max pool {kernel}")?;
                by(f, stride)
            }
            Self::Resize { factor: Factor { height, width }, interpolation } => {
                write!(f, "{interpolation} {height}x{width}")
            }
            Self::PixelShuffle { factor } => write!(f, "pixel shuffle {factor}x{factor}"),
        }
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeakyRelu { slope: 0.0 } => f.write_str("ReLU"),
            Self::LeakyRelu { slope } => write!(f, "leaky ReLU {slope}"),
            Self::PRelu { .. } => f.write_str("PReLU"),
            Self::Silu => f.write_str("SiLU"),
            Self::Mish => f.write_str("Mish"),
            Self::Gelu => f.write_str("GELU"),
            Self::GeluTanh => f.write_str("GELU by tanh"),
        }
    }
}

impl fmt::Display for Interpolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nearest => "nearest",
            Self::Bilinear => "bilinear",
            Self::BilinearCorners => "bilinear between corners",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::network::Affine;

    fn extent(height: usize, width: usize) -> Extent {
        Extent { height, width }
    }

    fn convolution(name: &str, channels: (usize, usize), kernel: Extent, stride: Extent) -> Operation {
        let (input, output) = channels;
        Operation::Convolution { weight: format!("{name}.weight"), bias: None, input, output, kernel, stride }
    }

    /// For each axis kernel, stride and padding.
    fn up(name: &str, channels: (usize, usize), y: (usize, usize, usize), x: (usize, usize, usize)) -> Operation {
        Operation::Upsampling {
            weight: format!("{name}.weight"),
            bias: Some(format!("{name}.bias")),
            input: channels.0,
            output: channels.1,
            kernel: extent(y.0, x.0),
            stride: extent(y.1, x.1),
            padding: Padding { height: y.2, width: x.2 },
        }
    }

    #[test]
    fn figures_are_those_counted_by_hand() {
        let (two, three) = (extent(2, 2), extent(3, 3));
        let mut network = Network::new(3);
        let fine = network.push(convolution("net.fine", (3, 4), three, Extent::ONE), &[Source::Input]);
        let affine = Some(Affine { weight: "net.norm.weight".into(), bias: "net.norm.bias".into() });
        let (mean, variance) = ("net.norm.running_mean".into(), "net.norm.running_var".into());
        let norm = Operation::BatchNorm { mean, variance, affine, channels: 4, epsilon: 1e-5 };
        let fine = network.push(norm, &[fine]);
        let coarse = network.push(convolution("net.coarse", (4, 8), three, two), &[fine]);
        let wide = network.push(up("net.up", (8, 4), (3, 2, 1), (2, 2, 0)), &[coarse]);
        let both = network.push(Operation::Concatenate, &[wide, fine]);
        network.push(convolution("head", (8, 2), Extent::ONE, Extent::ONE), &[both]);
        let tile = Size::new(8, 4);
        assert_eq!(network.check(tile, 2), Ok(()));
        let summary = network.summary(tile);
        let line = |l: &LayerSummary| {
            let Shape { channels, size } = l.output;
            let name = l.name.as_deref().unwrap_or("-");
            format!("{name}: {}: {channels} x {size}, {}, {}", l.operation, l.parameters, l.multiplications)
        };
        assert_eq!(
            summary.layers.iter().map(line).collect::<Vec<_>>(),
            [
                "net.fine: convolution 3x3, 3 to 4 channels: 4 x 8 x 4, 108, 3456",
                "net.norm: batch norm: 4 x 8 x 4, 16, 0",
                "net.coarse: convolution 3x3, stride 2x2, 4 to 8 channels: 8 x 4 x 2, 288, 2304",
                "net.up: transposed convolution 3x2, stride 2x2, 8 to 4 channels: 4 x 8 x 4, 196, 1536",
                "-: concatenation: 8 x 8 x 4, 0, 0",
                "head: convolution 1x1, 8 to 2 channels: 2 x 8 x 4, 16, 512",
            ]
        );
        assert_eq!((summary.parameters, summary.multiplications), (624, 7808));
        assert_eq!((network.parameters(), network.multiplications(tile)), (624, 7808));
        // Along x a logit comes from one coarse pixel: three fine ones, five of the input;
        // along y every other comes from two.
        assert_eq!(summary.receptive_field, ReceptiveField { size: Size::new(5, 7), global: false });
        // 7808 for 32 pixels; at half steps every pixel is in four tiles, and at half a micrometre four million pixels are in a mm2.
        assert!((summary.multiplications_per_pixel(1.0) - 244.0).abs() < 1e-9);
        assert!((summary.multiplications_per_pixel(0.5) - 976.0).abs() < 1e-9);
        assert!((summary.multiplications_per_mm2(0.5, 0.5) - 976.0 * 4e6).abs() < 1.0);
    }

    #[test]
    fn statistics_reach_the_whole_tile() {
        let norms = [
            Operation::InstanceNorm { affine: None, channels: 2, epsilon: 1e-5 },
            Operation::GroupNorm { affine: None, groups: 1, channels: 2, epsilon: 1e-5 },
        ];
        for norm in norms {
            let mut network = Network::new(2);
            let beside = network.push(norm, &[Source::Input]);
            let bent = network.push(Operation::Activation { function: Function::Silu }, &[Source::Input]);
            let field = |network: &Network| network.receptive_field(Size::new(4, 4));
            assert_eq!(field(&network), ReceptiveField { size: Size::new(1, 1), global: false }, "nothing reads it");
            network.push(Operation::Add, &[beside, bent]);
            assert_eq!(field(&network), ReceptiveField { size: Size::new(1, 1), global: true });
        }
        assert_eq!(Network::new(1).receptive_field(Size::new(4, 4)).size, Size::new(1, 1), "the input itself");
    }

    /// `reaching` of `tests/python/unet_fixtures.py`.
    fn network(name: &str) -> Network {
        let mut network = Network::new(1);
        let conv = |network: &mut Network, at: Source, kernel: (usize, usize), stride: (usize, usize)| {
            network.push(convolution("", (1, 1), extent(kernel.0, kernel.1), extent(stride.0, stride.1)), &[at])
        };
        let resize = |height: f64, width: f64, interpolation| Operation::Resize {
            factor: Factor { height, width },
            interpolation,
        };
        match name {
            "overlapping" => {
                let fine = conv(&mut network, Source::Input, (3, 3), (1, 1));
                let coarse = conv(&mut network, fine, (3, 5), (2, 2));
                let coarse = conv(&mut network, coarse, (3, 3), (2, 1));
                let half = network.push(up("", (1, 1), (3, 2, 1), (3, 1, 1)), &[coarse]);
                let wide = network.push(up("", (1, 1), (3, 2, 1), (4, 2, 1)), &[half]);
                let sum = network.push(Operation::Add, &[wide, fine]);
                conv(&mut network, sum, (1, 3), (1, 1));
            }
            "pooled" => {
                let at = conv(&mut network, Source::Input, (3, 3), (1, 1));
                // The script takes means, which see what maxima see; with a padding there are only maxima here.
                let padding = Padding { height: 1, width: 0 };
                let at =
                    network.push(Operation::MaxPool { kernel: extent(3, 2), stride: extent(2, 2), padding }, &[at]);
                let at = conv(&mut network, at, (3, 7), (1, 1));
                network.push(up("", (1, 1), (2, 2, 0), (3, 2, 1)), &[at]);
            }
            "resized" => {
                let at = conv(&mut network, Source::Input, (3, 3), (2, 2));
                let at = conv(&mut network, at, (3, 3), (1, 2));
                let at = network.push(resize(2.0, 2.0, Interpolation::Bilinear), &[at]);
                network.push(resize(1.0, 2.0, Interpolation::Nearest), &[at]);
            }
            "corners" => {
                let at = conv(&mut network, Source::Input, (5, 3), (2, 2));
                network.push(resize(2.0, 2.0, Interpolation::BilinearCorners), &[at]);
            }
            "shuffled" => {
                let at = conv(&mut network, Source::Input, (3, 3), (2, 2));
                let at = network.push(convolution("", (1, 4), extent(3, 3), Extent::ONE), &[at]);
                network.push(Operation::PixelShuffle { factor: 2 }, &[at]);
            }
            other => panic!("{other}"),
        }
        network
    }

    /// `tests/receptive_fields.json`, which `tests/python/unet_fixtures.py` made with PyTorch 2.15.
    #[test]
    fn logits_see_what_their_gradients_reach() {
        type Extents = BTreeMap<i64, (i64, i64)>;
        let fixture = include_str!("../tests/receptive_fields.json");
        let fields: BTreeMap<String, BTreeMap<char, Extents>> = serde_json::from_str(fixture).unwrap();
        assert_eq!(fields.len(), 5);
        let tile = Size::new(64, 48);
        for (name, axes) in fields {
            let network = network(&name);
            assert_eq!(network.check(tile, 1), Ok(()), "{name}");
            let field = network.receptive_field(tile).size;
            for (axis, all, which) in [(Axis::Y, field.height, 'y'), (Axis::X, field.width, 'x')] {
                let mut widest = 0;
                for (logit, (first, last)) in &axes[&which] {
                    let reached = network.reach(axis, tile, &network.shapes(tile), *logit);
                    assert_eq!(reached, Some((*first, *last)), "{name}, {which} {logit}");
                    widest = widest.max(last - first + 1);
                }
                assert_eq!(all, widest.unsigned_abs(), "{name}, {which}");
            }
        }
    }
}
