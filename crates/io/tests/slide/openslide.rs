//! What OpenSlide 4 reads of a slide, through Python. The interpreter is the one that `cargo xtask test` makes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use microtome_io::slide::SlideReader;
use microtome_io::{Level, Rect, Size};
use serde::Deserialize;
use serde_json::json;

/// OpenSlide's description of a slide.
#[derive(Debug, Deserialize)]
pub(crate) struct Description {
    /// Width and height of each level.
    pub(crate) levels: Vec<(u64, u64)>,
    pub(crate) downsamples: Vec<f64>,
    pub(crate) properties: BTreeMap<String, String>,
    /// Width and height of each picture that travels along.
    pub(crate) associated: BTreeMap<String, (u64, u64)>,
}

/// A rectangle of a level, in the pixels of the level.
pub(crate) type Region = (Level, Rect);

/// How far our samples are from OpenSlide's, over the pixels that both have: OpenSlide's others are transparent.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Difference {
    pub(crate) max: u8,
    /// Of the absolute differences.
    pub(crate) mean: f64,
    /// Samples compared.
    pub(crate) samples: u64,
}

/// OpenSlide's description, and its pixels (RGBA) of regions whose corners are whole pixels of level 0 at OpenSlide's downsamples.
/// `None` after saying that the test is skipped, where no interpreter with OpenSlide is named.
pub(crate) fn ask(slide: &Path, regions: &[Region]) -> Option<(Description, Vec<Vec<u8>>)> {
    ask_and_keep(slide, regions, None)
}

/// As [`ask`]; writes the pixels of the pictures that travel along, in the order of their names, to `pictures`.
fn ask_and_keep(slide: &Path, regions: &[Region], pictures: Option<&Path>) -> Option<(Description, Vec<Vec<u8>>)> {
    let Some(python) = std::env::var_os("MICROTOME_PYTHON") else {
        microtome_testkit::skip("MICROTOME_PYTHON names no interpreter with openslide; `cargo xtask test` makes one");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let (request, result) = (folder.path().join("request.json"), folder.path().join("pixels"));
    let run = |regions: serde_json::Value| -> Description {
        std::fs::write(&request, regions.to_string()).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/openslide_regions.py");
        let mut command = Command::new(&python);
        command.arg(script).arg(slide).arg(&request).arg(&result).args(pictures);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let description = run(json!([]));
    let corner = |at: i64, downsample: f64| (at as f64 * downsample).round() as i64;
    let corners = regions.iter().map(|(level, rect)| {
        let d = description.downsamples[level.0];
        json!({"level": level.0, "x": corner(rect.x, d), "y": corner(rect.y, d), "width": rect.width, "height": rect.height})
    });
    run(corners.collect());
    let bytes = std::fs::read(&result).unwrap();
    let mut rest = &bytes[..];
    let pixels = regions.iter().map(|(_, rect)| {
        let (mine, others) = rest.split_at(rect.size().area() as usize * 4);
        rest = others;
        mine.to_vec()
    });
    let pixels = pixels.collect();
    Some((description, pixels))
}

/// The pictures that travel along with a slide, as OpenSlide decodes them: width, height, and pixels (RGBA), by name.
pub(crate) fn pictures(slide: &Path) -> Option<BTreeMap<String, (u64, u64, Vec<u8>)>> {
    let folder = tempfile::tempdir().unwrap();
    let result = folder.path().join("pictures");
    let (description, _) = ask_and_keep(slide, &[], Some(&result))?;
    let bytes = std::fs::read(&result).unwrap();
    let mut rest = &bytes[..];
    let pictures = description.associated.into_iter().map(|(name, (width, height))| {
        let (mine, others) = rest.split_at((width * height * 4) as usize);
        rest = others;
        (name, (width, height, mine.to_vec()))
    });
    Some(pictures.collect())
}

/// Reads the same regions with both, level by level. Where OpenSlide sees nothing (alpha 0) ours must have the background, and
/// outside of the level, too: there OpenSlide shows what pads the last tiles, if anything does.
/// Samples of one channel are compared with OpenSlide's red.
pub(crate) fn compare(slide: &dyn SlideReader, regions: &[Region]) -> Option<(Description, Difference)> {
    let (description, theirs) = ask(&slide.info().path, regions)?;
    let mut difference = Difference::default();
    let mut sum = 0_u64;
    let channels = slide.info().channels;
    for ((level, rect), theirs) in regions.iter().zip(&theirs) {
        let ours = slide.read_region(*level, *rect).unwrap_or_else(|error| panic!("{error}"));
        let bounds = slide.info().levels[level.0].size.rect();
        let places = (rect.y..rect.bottom()).flat_map(|y| (rect.x..rect.right()).map(move |x| (x, y)));
        let pixels = theirs.chunks_exact(4).zip(ours.as_u8().unwrap().chunks_exact(channels));
        for ((x, y), (theirs, ours)) in places.zip(pixels) {
            if theirs[3] == 0 || !bounds.contains(Rect::new(x, y, 1, 1)) {
                assert!(
                    ours.iter().zip(&slide.info().background).all(|(&o, &b)| u16::from(o) == b),
                    "level {level}, {rect}"
                );
                continue;
            }
            for (&ours, &theirs) in ours.iter().zip(&theirs[..3]) {
                difference.max = difference.max.max(ours.abs_diff(theirs));
                sum += u64::from(ours.abs_diff(theirs));
                difference.samples += 1;
            }
        }
    }
    difference.mean = sum as f64 / difference.samples.max(1) as f64;
    eprintln!("{}: {difference:?}", slide.info().path.display());
    Some((description, difference))
}

/// `count` regions spread over each level by a fixed sequence, some of them sticking out of it.
pub(crate) fn spread(slide: &dyn SlideReader, count: usize, size: Size) -> Vec<Region> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % below.max(1)) as i64
    };
    let mut regions = Vec::new();
    for (number, level) in slide.info().levels.iter().enumerate() {
        for _ in 0..count {
            let x = next(level.size.width + size.width) - size.width as i64 / 2;
            let y = next(level.size.height + size.height) - size.height as i64 / 2;
            regions.push((Level(number), Rect::new(x, y, size.width, size.height)));
        }
    }
    regions
}

#[test]
fn the_aperio_slide_is_openslides_everywhere() {
    let Some(path) = microtome_testkit::assets::cmu_small_region() else { return };
    let slide = crate::slide(path);
    let Some((description, difference)) = compare(&*slide, &spread(&*slide, 100, Size::new(97, 83))) else { return };
    let sizes: Vec<_> = slide.info().levels.iter().map(|level| (level.size.width, level.size.height)).collect();
    assert_eq!(sizes, description.levels);
    assert_eq!(slide.info().format, description.properties["openslide.vendor"]);
    let mpp = slide.info().resolution.as_ref().unwrap().mpp.x;
    assert_eq!(mpp.to_string(), description.properties["openslide.mpp-x"]);
    assert!(
        description.associated.keys().eq(slide
            .info()
            .associated
            .iter()
            .map(|a| &a.name)
            .collect::<std::collections::BTreeSet<_>>())
    );
    assert_eq!(difference.max, 0, "{difference:?}");
}
