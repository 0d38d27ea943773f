//! Stores as their users see them: written, read back, refused.

mod contract;
mod corpus;
mod foreign;
mod hostile;
mod labels;
mod lifecycle;
mod packed;
mod python;
mod remote;
mod written;
mod zarr_python;
mod zip;

use microtome_io::store::{Channel, Content, Encoding, Format, ImageSink, StoreLevel, StoredImage};
use microtome_io::{Class, Level, Microns, Pixels, Rect, SampleType, Samples, Size, TileCoord};

/// A description with three classes, chunks of 16 × 8 and shards of 32 × 24.
fn image(size: Size, levels: usize, sample: SampleType) -> StoredImage {
    StoredImage {
        name: "mask".into(),
        levels: StoreLevel::finest(size, Some(Microns { x: 0.5, y: 0.25 })).pyramid(levels),
        chunk: Size::new(16, 8),
        shard: Size::new(32, 24),
        sample,
        encoding: Encoding::default(),
        source: None,
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

/// The same image in another version, compressed otherwise.
fn encoded(image: StoredImage, format: Format, compression: &str) -> StoredImage {
    StoredImage { encoding: Encoding { format, compression: compression.parse().unwrap() }, ..image }
}

/// A description of a picture of so many channels, which is otherwise that of [`image`].
fn picture(size: Size, levels: usize, sample: SampleType, channels: u16) -> StoredImage {
    let channel = |n| Channel::new(format!("p{n}"), Class::with_default_color(n, "").color);
    StoredImage {
        content: Content::Image { channels: (1..=channels).map(channel).collect() },
        method: "mean".into(),
        ..image(size, levels, sample)
    }
}

/// Pixels of a whole level for any description: labels, or for each channel something like labels, but of a third of all 8-bit values.
fn content(image: &StoredImage, level: Level, seed: u64) -> Pixels {
    let (size, sample) = (image.levels[level.0].size, image.sample);
    let Content::Image { channels } = &image.content else { return labels(size, sample, seed) };
    let planes: Vec<Pixels> = (0..channels.len() as u64).map(|c| labels(size, sample, seed + 100 * c)).collect();
    let at = |i: u64| (i % 7 * 4 + i / 40 % 9) as u16;
    let interleaved = (0..size.area()).flat_map(|i| {
        planes.iter().map(move |plane| match plane.samples() {
            Samples::U8(v) => u16::from(v[i as usize]) * (at(i) + 25),
            Samples::U16(v) => v[i as usize] + at(i),
        })
    });
    match sample {
        SampleType::U8 => Pixels::from_u8(size, channels.len(), interleaved.map(|v| v as u8).collect()),
        SampleType::U16 => Pixels::from_u16(size, channels.len(), interleaved.collect()),
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

/// The next level of a picture: of each channel the mean of the pixels that exist, rounded half up.
fn average(of: &Pixels) -> Pixels {
    let Samples::U8(from) = of.samples() else { panic!("8 bits are enough here") };
    let (size, half) = (of.size(), Size::new(of.size().width.div_ceil(2), of.size().height.div_ceil(2)));
    let mut to = Vec::new();
    for y in 0..half.height {
        for x in 0..half.width {
            let here: Vec<usize> = (2 * y..size.height.min(2 * y + 2))
                .flat_map(|y| (2 * x..size.width.min(2 * x + 2)).map(move |x| (y * size.width + x) as usize))
                .collect();
            to.extend((0..of.channels()).map(|c| {
                let sum: usize = here.iter().map(|i| usize::from(from[i * of.channels() + c])).sum();
                ((2 * sum + here.len()) / (2 * here.len())) as u8
            }));
        }
    }
    Pixels::from_u8(half, of.channels(), to)
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
    let mut part = Pixels::filled(rect.size(), whole.sample_type(), &vec![0; whole.channels()]);
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
