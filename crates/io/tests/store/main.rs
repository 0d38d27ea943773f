//! Stores as their users see them: written, read back, refused.

mod contract;
mod corpus;
mod foreign;
mod hostile;
mod lifecycle;
mod python;
mod written;

use microtome_io::store::{Content, ImageSink, StoreLevel, StoredImage};
use microtome_io::{Class, Level, Microns, Pixels, Rect, SampleType, Samples, Size, TileCoord};

/// A description with three classes, chunks of 16 × 8 and shards of 32 × 24.
fn image(size: Size, levels: usize, sample: SampleType) -> StoredImage {
    StoredImage {
        name: "mask".into(),
        levels: StoreLevel::finest(size, Some(Microns { x: 0.5, y: 0.25 })).pyramid(levels),
        chunk: Size::new(16, 8),
        shard: Size::new(32, 24),
        sample,
        content: Content::Labels {
            classes: ["tumour", "stroma", "necrosis"]
                .iter()
                .zip(1..)
                .map(|(n, v)| Class::with_default_color(v, *n))
                .collect(),
        },
        method: "mode".into(),
        metadata: serde_json::from_str(r#"{"method": "majority", "version": "0.0.0", "args": {}}"#).unwrap(),
        attributes: serde_json::from_str(r#"{"fingerprint": {"model": "abc"}}"#).unwrap(),
    }
}

/// Labels of a whole level: islands of 1 to 3 in background, the same for the same seed.
fn labels(size: Size, sample: SampleType, seed: u64) -> Pixels {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut random = move || {
        // xorshift64, Marsaglia 2003.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let cells: Vec<u16> =
        (0..size.cells(Size::new(12, 12)).area()).map(|_| [0, 0, 0, 1, 2, 3][(random() % 6) as usize]).collect();
    let columns = size.width.div_ceil(12);
    let label = |at: u64| cells[((at / size.width / 12) * columns + at % size.width / 12) as usize];
    match sample {
        SampleType::U8 => Pixels::from_u8(size, 1, (0..size.area()).map(|at| label(at) as u8).collect()),
        SampleType::U16 => Pixels::from_u16(size, 1, (0..size.area()).map(|at| label(at) * 1000).collect()),
    }
}

/// The next level: of each two by two pixels that exist the most frequent label, the lower one of several.
fn halve(of: &Pixels) -> Pixels {
    let Samples::U8(from) = of.samples() else { panic!("8 bits are enough here") };
    let (size, half) = (of.size(), Size::new(of.size().width.div_ceil(2), of.size().height.div_ceil(2)));
    let mut to = Vec::new();
    for y in 0..half.height {
        for x in 0..half.width {
            let mut votes = [0; 256];
            for (y, x) in [(2 * y, 2 * x), (2 * y, 2 * x + 1), (2 * y + 1, 2 * x), (2 * y + 1, 2 * x + 1)] {
                if x < size.width && y < size.height {
                    votes[usize::from(from[(y * size.width + x) as usize])] += 1;
                }
            }
            let most = votes.iter().max().unwrap();
            to.push(votes.iter().position(|votes| votes == most).unwrap() as u8);
        }
    }
    Pixels::from_u8(half, 1, to)
}

/// The levels of a pyramid of majorities.
fn pyramid(size: Size, levels: usize, seed: u64) -> Vec<Pixels> {
    let mut pyramid = vec![labels(size, SampleType::U8, seed)];
    while pyramid.len() < levels {
        pyramid.push(halve(pyramid.last().unwrap()));
    }
    pyramid
}

/// The part of `whole` that a shard holds.
fn cut(whole: &Pixels, rect: Rect) -> Pixels {
    let mut part = Pixels::filled(rect.size(), whole.sample_type(), &[0]);
    part.blit(rect, whole, whole.size().rect());
    part
}

/// All shards of a level, row by row.
fn shards(image: &StoredImage, level: Level) -> Vec<TileCoord> {
    let grid = image.shards(level).unwrap();
    (0..grid.area()).map(|n| TileCoord { row: n / grid.width, column: n % grid.width }).collect()
}

/// Writes every shard of every level.
fn write_all(sink: &dyn ImageSink, levels: &[Pixels]) {
    for (n, whole) in levels.iter().enumerate() {
        for shard in shards(sink.image(), Level(n)) {
            let rect = sink.image().shard_rect(Level(n), shard).unwrap();
            sink.write_shard(Level(n), shard, &cut(whole, rect)).unwrap();
        }
    }
}
