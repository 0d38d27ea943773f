//! JPEG of every sampling, size and coding against libjpeg-turbo, sample for sample: `tests/python/jpeg_pixels.py` decodes.

use std::path::Path;

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

use crate::jpeg2000::python;

/// A picture of strong colours with edges.
fn pixels(width: u16, height: u16) -> Vec<u8> {
    let places = (0..u32::from(height)).flat_map(|y| (0..u32::from(width)).map(move |x| (x, y)));
    let pixel = |(x, y): (u32, u32)| {
        let edge = if (x / 11 + y / 7).is_multiple_of(3) { 90 } else { 0 };
        [x * 9 + edge, y * 7 + x * y % 13, (x + y) * 5 + edge].map(|value| (value % 256) as u8)
    };
    places.flat_map(pixel).collect()
}

/// What the writers of the script do not write: other samplings, a scan for each channel, restart markers behind every unit.
fn write(folder: &Path) {
    use SamplingFactor::{R_4_1_0, R_4_1_1, R_4_2_0, R_4_2_1, R_4_2_2, R_4_4_0, R_4_4_1, R_4_4_4};
    for (width, height) in [(1, 1), (2, 2), (3, 9), (9, 3), (17, 33), (40, 23), (65, 64), (130, 99)] {
        let pixels = pixels(width, height);
        for chroma in [R_4_4_4, R_4_4_0, R_4_4_1, R_4_2_2, R_4_2_0, R_4_2_1, R_4_1_1, R_4_1_0] {
            for (restart, optimized) in [(0, false), (1, false), (3, false), (0, true)] {
                let path = folder.join(format!("{width}x{height}-{chroma:?}-{restart}-{optimized}.jpg"));
                let mut encoder = Encoder::new_file(path, 85).unwrap();
                encoder.set_sampling_factor(chroma);
                encoder.set_restart_interval(restart);
                // With tables of its own, this encoder gives each channel a scan; it does not count on restart markers then.
                encoder.set_optimized_huffman_tables(optimized);
                encoder.encode(&pixels, width, height, ColorType::Rgb).unwrap();
            }
        }
    }
}

#[test]
fn samples_are_those_of_libjpeg_turbo() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let Some(version) = python("jpeg_pixels.py", &[folder.path()]) else { return };
    let (mut compared, mut wrong) = (0, Vec::new());
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "jpg") {
            continue;
        }
        let slide = crate::slide(&path);
        let rect = slide.info().size().rect();
        let ours = slide.read_region(microtome_io::Level(0), rect).unwrap_or_else(|error| panic!("{error}"));
        let (ours, theirs) = (ours.as_u8().unwrap(), std::fs::read(path.with_extension("raw")).unwrap());
        assert_eq!(ours.len(), theirs.len(), "{}", path.display());
        if ours != theirs {
            let worst = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b)).max();
            wrong.push(format!("{}: {worst:?}", path.file_name().unwrap().display()));
        }
        compared += 1;
    }
    eprintln!("{compared} pictures, {}", String::from_utf8_lossy(&version));
    assert!(compared > 800 && wrong.is_empty(), "{} of {compared}: {wrong:#?}", wrong.len());
}
