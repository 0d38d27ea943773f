//! Where the time of writing goes.
//!
//! `cargo nextest run --workspace --run-ignored only --no-capture -E 'test(store::measurements)'`

use std::time::Instant;

use sha2::{Digest, Sha256};

use super::*;
use crate::{Class, Level, Pixels, SampleType, Size, TileCoord};

const SIDE: u64 = 2048;

/// Smooth noise in 0 to 1: values on a lattice of `cell` pixels between which is interpolated, and a finer lattice of a quarter of the strength.
fn noise(seed: u64, cell: f64) -> impl Fn(u64, u64) -> f64 {
    let lattice = move |x: i64, y: i64, octave: u64| {
        // splitmix64, Steele, Lea and Flood 2014.
        let mut z = (x as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
            ^ (y as u64).wrapping_mul(0xC2B2_AE3D_27D4_EB4F)
            ^ seed
            ^ octave << 40;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ z >> 31) as f64 / u64::MAX as f64
    };
    let octave = move |x: f64, y: f64, n: u64| {
        let (fx, fy) = (x.floor(), y.floor());
        let smooth = |t: f64| t * t * (3.0 - 2.0 * t);
        let (u, v) = (smooth(x - fx), smooth(y - fy));
        let at = |dx, dy| lattice(fx as i64 + dx, fy as i64 + dy, n);
        let mix = |a: f64, b: f64, t: f64| a + (b - a) * t;
        mix(mix(at(0, 0), at(1, 0), u), mix(at(0, 1), at(1, 1), u), v)
    };
    move |x, y| {
        let (x, y) = (x as f64 / cell, y as f64 / cell);
        0.8 * octave(x, y, 0) + 0.2 * octave(4.0 * x, 4.0 * y, 1)
    }
}

fn picture(channels: usize, sample: impl Fn(u64, u64, &mut Vec<u8>)) -> Pixels {
    let mut samples = Vec::new();
    for y in 0..SIDE {
        for x in 0..SIDE {
            sample(x, y, &mut samples);
        }
    }
    Pixels::from_u8(Size::new(SIDE, SIDE), channels, samples)
}

/// Name, pixels, classes or channels.
fn contents() -> Vec<(&'static str, Pixels)> {
    let (a, b, c) = (noise(1, 24.0), noise(2, 24.0), noise(3, 400.0));
    let quarter = |x, y| x < SIDE / 2 && y < SIDE / 2;
    vec![
        ("nuclei, 2 classes", picture(1, |x, y, to| to.push(u8::from(a(x, y) > 0.62)))),
        ("regions, 4 classes", picture(1, |x, y, to| to.push((c(x, y) * 6.0 - 1.0).clamp(0.0, 3.0) as u8))),
        ("nuclei in a quarter", picture(1, |x, y, to| to.push(u8::from(quarter(x, y) && a(x, y) > 0.62)))),
        ("one pixel", picture(1, |x, y, to| to.push(u8::from((x, y) == (SIDE - 1, SIDE - 1))))),
        (
            "probabilities, 2 channels",
            picture(2, |x, y, to| {
                let p = 1.0 / (1.0 + (-40.0 * (b(x, y) - 0.6)).exp());
                to.extend([(p * 255.0).round() as u8, ((1.0 - p) * 255.0).round() as u8]);
            }),
        ),
        (
            "confidence",
            picture(1, |x, y, to| {
                let p = 1.0 / (1.0 + (-40.0 * (b(x, y) - 0.6)).exp());
                to.push(((2.0 * p - 1.0).abs() * 255.0).round() as u8);
            }),
        ),
    ]
}

fn time<R>(mut work: impl FnMut() -> R) -> f64 {
    (0..5)
        .map(|_| {
            let start = Instant::now();
            let result = std::hint::black_box(work());
            let seconds = start.elapsed().as_secs_f64();
            drop(result);
            seconds
        })
        .fold(f64::INFINITY, f64::min)
}

#[test]
#[ignore = "a measurement"]
fn measurements() {
    let rate = |seconds: f64| (SIDE * SIDE) as f64 / 1e6 / seconds;
    for (name, pixels) in contents() {
        let channels = pixels.channels();
        println!("{name}");
        println!(
            "  sink::is_background {:8.0} Mpx/s",
            rate(time(|| sink::is_background(std::hint::black_box(&pixels))))
        );
        let image = StoredImage {
            name: "m".into(),
            levels: StoreLevel::finest(Size::new(SIDE * 5, SIDE), None).pyramid(1),
            chunk: Size::new(512, 512),
            shard: Size::new(SIDE, SIDE),
            sample: SampleType::U8,
            encoding: Encoding::default(),
            source: None,
            content: match channels {
                1 => Content::Labels { classes: vec![Class::with_default_color(1, "a")] },
                n => Content::Image { channels: vec![Channel::new("p", [255; 3]); n] },
            },
            method: "mode".into(),
            metadata: serde_json::Map::new(),
            attributes: serde_json::Map::new(),
        };
        let cells: Vec<_> = (0..16).map(|n| TileCoord { row: n / 4, column: n % 4 }.rect(image.chunk)).collect();
        let mut chunk = vec![0; 512 * 512];
        let mut chunks = Vec::new();
        for (channel, &cell) in (0..channels).flat_map(|channel| cells.iter().map(move |cell| (channel, cell))) {
            if shard::gather(&pixels, channel, cell, &mut chunk) == shard::Gathered::Copied {
                chunks.push(chunk.clone());
            }
        }
        let gather = time(|| {
            for (channel, &cell) in (0..channels).flat_map(|channel| cells.iter().map(move |cell| (channel, cell))) {
                std::hint::black_box(shard::gather(&pixels, channel, cell, &mut chunk));
            }
        });
        println!("  gather              {:8.0} Mpx/s, {} of {} chunks", rate(gather), chunks.len(), 16 * channels);
        for text in ["zstd:1", "zstd:2", "zstd:3", "gzip:1", "gzip:6", "blosc:1", "blosc:5"] {
            let compression: Compression = text.parse().unwrap();
            let mut compressor = compressor::Compressor::new(compression, SampleType::U8).unwrap();
            let (mut size, mut encoded) = (0, Vec::new());
            let mut compress = |chunk: &Vec<u8>| {
                compressor.encode(chunk, &mut encoded).unwrap();
                encoded.len()
            };
            let seconds = time(|| size = chunks.iter().map(&mut compress).sum());
            println!("  {text:19} {:8.0} Mpx/s, {size} bytes", rate(seconds));
        }
        let encoder = shard::ShardEncoder::new(&image);
        println!("  encode              {:8.0} Mpx/s", rate(time(|| encoder.encode(&pixels).unwrap())));
        let file = encoder.encode(&pixels).unwrap().unwrap();
        println!("  sha256              {:8.0} Mpx/s, {} bytes", rate(time(|| Sha256::digest(&file))), file.len());
        let folder = tempfile::tempdir().unwrap();
        let put = folder.path().join("put");
        println!("  put                 {:8.0} Mpx/s", rate(time(|| folder::put(&put, &file).unwrap())));
        let store = ZarrImage::create(folder.path().join("m.zarr"), image).unwrap();
        let mut column = 0..5;
        let whole = time(|| {
            let at = TileCoord { row: 0, column: column.next().unwrap() };
            store.write_shard(Level(0), at, &pixels).unwrap()
        });
        println!("  write_shard         {:8.0} Mpx/s", rate(whole));
    }
}
