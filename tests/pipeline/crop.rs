//! Pictures with black borders: nnU-Net cuts them off before it looks at anything.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use microtome::io::slide::SlideReader;
use microtome::io::store::OmeZarr;
use microtome::io::{Level, Pixels, Rect, SampleType, Size, TileCoord};
use microtome::unet::{Arithmetic, Device, Execution, Mirroring, Model, ModelOptions, Normalization, Precision};
use microtome::{
    Accumulation, CropNonzero, Error, Existing, Observer, OnBadTile, Outcome, Phase, Product, RoiSource, Segmenter,
    Settings, Silent, TargetResolution, store_of,
};
use microtome_testkit::{CountingSlide, FailingSlide, FunctionModel, PictureSlide, SyntheticSlide};
use microtome_tile::{Damage, Reader, TargetGrid, TargetOptions, nonzero};

use crate::blending::PlaceModel;
use crate::{
    assert_pyramid, assert_same, files, labels, least_memory, levels_of, over, picture, repository, segment,
    segment_to, settings, with,
};

/// RGB of all values, 0 among them, but nowhere black all along an edge.
fn content(size: Size) -> Pixels {
    let sample = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) >> 40) as u8;
    let samples = (0..size.area() * 3).map(|i| if i % 7 < 2 { 0 } else { sample(i) });
    let mut samples: Vec<u8> = samples.collect();
    // The corners decide: only one sample of each.
    for (x, y, channel) in [(0, size.height - 1, 2), (size.width - 1, 0, 1)] {
        samples[((y * size.width + x) * 3 + channel) as usize] = 1;
    }
    Pixels::from_u8(size, 3, samples)
}

/// A picture on black.
fn framed(picture: &Pixels, at: Rect, size: Size) -> PictureSlide {
    let mut pixels = Pixels::filled(size, SampleType::U8, &[0; 3]);
    pixels.blit(size.rect(), picture, at);
    PictureSlide::new(pixels, 0.5)
}

/// What a mask of the part is as one of the whole.
fn framed_labels(found: &[u16], part: Rect, size: Size) -> Vec<u16> {
    over(size, |x, y| {
        let (x, y) = (x as i64 - part.x, y as i64 - part.y);
        let inside = part.size().rect().contains(Rect::new(x, y, 1, 1));
        if inside { found[y as usize * part.width as usize + x as usize] } else { 0 }
    })
}

fn cropped(settings: &Settings) -> Settings {
    with(settings, |s| s.crop_nonzero = CropNonzero::On)
}

/// The whole picture, and the parts of it that are not black: black on each side, on some, around less than a tile.
const WHOLE: Size = Size::new(157, 131);
const PARTS: [Rect; 10] = [
    Rect::new(0, 0, 157, 131),
    Rect::new(0, 37, 157, 94),
    Rect::new(41, 0, 116, 131),
    Rect::new(0, 0, 157, 100),
    Rect::new(0, 0, 98, 131),
    Rect::new(13, 17, 121, 103),
    Rect::new(33, 1, 123, 129),
    Rect::new(50, 47, 21, 60),
    Rect::new(77, 90, 9, 11),
    Rect::new(156, 130, 1, 1),
];

/// The logits depend on where in its tile a pixel lies: any other grid of tiles shows.
#[test]
fn inside_the_crop_the_mask_is_that_of_the_crop_alone_and_outside_it_is_background() {
    for (model, accumulate) in [
        (PlaceModel::new(Size::new(28, 24), 3), Accumulation::F32),
        (PlaceModel::new(Size::new(28, 24), 2), Accumulation::F16Nnunet),
        (PlaceModel::new(Size::new(28, 24), 3).regions(), Accumulation::F32),
    ] {
        let settings = with(&settings(), |s| s.accumulate = accumulate);
        for part in PARTS {
            let picture = content(part.size());
            let (alone, _) = segment(&PictureSlide::new(picture.clone(), 0.5), &model, &settings);
            let expected = framed_labels(&levels_of(&alone)[0].1, part, WHOLE);
            let slide = framed(&picture, part, WHOLE);
            let (mask, summary) = segment(&slide, &model, &cropped(&settings));
            let crop = summary.geometry.crop.unwrap();
            assert_eq!((crop.target, crop.level0, crop.whole), (part, part, part == WHOLE.rect()));
            assert_eq!(summary.tiles.run, summary.tiles.grid);
            let levels = levels_of(&mask);
            assert_same(WHOLE, &levels[0].1, &expected, format!("{part}, {accumulate:?}"));
            assert_pyramid(&levels, 16, part);
            // The same from the narrowest strips, on one thread, tile by tile, and through a file.
            let memory = least_memory(&slide, &model, &cropped(&settings));
            let scratch = tempfile::tempdir().unwrap();
            for (threads, batch, scratch) in [(1, 1, None), (3, 5, Some(scratch.path().to_owned()))] {
                let other = with(&cropped(&settings), |s| {
                    (s.threads, s.batch, s.memory, s.scratch) = (Some(threads), Some(batch), memory, scratch);
                });
                let other = with(&other, |s| s.memory = least_memory(&slide, &model, s));
                assert_eq!(levels_of(&segment(&slide, &model, &other).0), levels, "{part}: {threads} threads");
            }
        }
    }
}

/// A real network with statistics of the image, mirrored: normalisation, padding of what is smaller than a tile, all of it.
#[test]
fn a_network_with_statistics_sees_the_crop_alone() {
    let model = Model::open(repository("tests/models/nnunet-nuclei"), &ModelOptions::default()).unwrap();
    assert!(model.card().crop_to_nonzero && model.card().normalization == [Normalization::ZScore; 3]);
    let predictor = model.predictor(&Execution { device: Device::Cpu, ..Execution::default() }).unwrap();
    let settings = with(&settings(), |s| (s.chunk, s.shard) = (32, 64));
    let size = Size::new(260, 200);
    for part in [Rect::new(31, 7, 201, 155), Rect::new(99, 3, 57, 180)] {
        let mut picture = Pixels::filled(part.size(), SampleType::U8, &[0; 3]);
        let slide = SyntheticSlide::new(Size::new(400, 400), 4).with_tissue_everywhere();
        let pixels = slide.read_region(Level::FINEST, Rect::new(9, 9, part.width, part.height)).unwrap();
        picture.blit(part.size().rect(), &pixels, part.size().rect());
        let (alone, _) = segment(&PictureSlide::new(picture.clone(), 0.5), predictor.as_ref(), &settings);
        let expected = framed_labels(&levels_of(&alone)[0].1, part, size);
        // As the model says, and if asked for; and not if it must not be.
        let slide = framed(&picture, part, size);
        let mask = |crop| {
            let settings = with(&settings, |s| s.crop_nonzero = crop);
            levels_of(&segment(&slide, predictor.as_ref(), &settings).0).remove(0).1
        };
        assert!(expected.iter().any(|&label| label > 0), "{part}: nothing to compare");
        assert_same(size, &mask(CropNonzero::Auto), &expected, part);
        assert_same(size, &mask(CropNonzero::On), &expected, part);
        assert!(mask(CropNonzero::Off) != expected, "{part}: cropping makes no difference");
    }
}

/// Masks that nnU-Net 2.8.1 made of a picture on black (`tests/python/nnunet_masks.py`); this test needs nothing but the repository.
#[test]
fn pictures_on_black_are_nnunets() {
    let model = Model::open(repository("tests/models/nnunet-nuclei"), &ModelOptions::default()).unwrap();
    let tile = picture(&repository("tests/models/nnunet-nuclei/test/input.png"));
    let size = Size::new(300, 200);
    for (part, mirroring, name) in [
        (Rect::new(37, 11, 211, 187), Mirroring::AsTrained, "mirror"),
        (Rect::new(150, 90, 100, 77), Mirroring::Off, "nomirror"),
    ] {
        let mut repeated = Pixels::filled(part.size(), SampleType::U8, &[0; 3]);
        let Size { width, height } = tile.size();
        for (x, y) in [(0, 0), (width, 0), (0, height), (width, height)] {
            repeated.blit(part.size().rect(), &tile, Rect::new(x as i64, y as i64, width, height));
        }
        let name = format!("{}x{}_at_{}_{}_{name}.png", part.width, part.height, part.x, part.y);
        let reference = labels(&picture(&repository("tests/pipeline/nnunet").join(&name)));
        let (precision, arithmetic) = (Precision::F32, Arithmetic::Exact);
        let execution = Execution { device: Device::Cpu, mirroring, precision, arithmetic };
        let predictor = model.predictor(&execution).unwrap();
        let slide = framed(&repeated, part, size);
        let differing = |accumulate, crop_nonzero| {
            let settings = with(&settings(), |s| (s.accumulate, s.crop_nonzero) = (accumulate, crop_nonzero));
            let (mask, _) = segment(&slide, predictor.as_ref(), &settings);
            levels_of(&mask)[0].1.iter().zip(&reference).filter(|(a, b)| a != b).count()
        };
        let f32 = differing(Accumulation::F32, CropNonzero::Auto);
        let f16 = differing(Accumulation::F16Nnunet, CropNonzero::Auto);
        let off = differing(Accumulation::F32, CropNonzero::Off);
        println!("{name}: {f32} of {} pixels differ, {f16} with f16 sums, {off} without the crop", size.area());
        assert!(f32 <= 2 && f16 == 0 && off > 100, "{name}: {f32}, {f16}, {off}");
    }
}

/// Where all is black there is nothing to cut off: nnU-Net keeps such an image.
#[test]
fn a_black_picture_is_computed_as_a_whole() {
    let model = PlaceModel::new(Size::new(28, 24), 3);
    let black = PictureSlide::new(Pixels::filled(WHOLE, SampleType::U8, &[0; 3]), 0.5);
    let (mask, summary) = segment(&black, &model, &cropped(&settings()));
    assert!(summary.geometry.crop.unwrap().whole && summary.to_string().contains("nothing to cut off"), "{summary}");
    let (all, _) = segment(&black, &model, &settings());
    assert_eq!(levels_of(&mask), levels_of(&all));
    let mut model = FunctionModel::new(Size::new(28, 24), &[60.5]);
    model.card_mut().normalization = vec![Normalization::ZScore; 3];
    assert!(levels_of(&segment(&black, &model, &cropped(&settings())).0)[0].1.iter().all(|&label| label == 1));
}

/// The search for the box, on the grid of a slide.
fn found(slide: &dyn SlideReader, grid: &TargetGrid) -> Rect {
    nonzero(Reader::new(slide, grid), Damage::Fails, &|_| true).unwrap().unwrap()
}

fn native(slide: &dyn SlideReader) -> TargetGrid {
    TargetGrid::plan(slide.info(), None, &TargetOptions::default()).unwrap()
}

/// Next to nothing of a slide without black borders, and of others the borders once.
#[test]
fn the_search_reads_the_borders_alone() {
    let size = Size::new(9000, 5200);
    let slide = CountingSlide::new(SyntheticSlide::new(size, 4));
    assert_eq!(found(&slide, &native(&slide)), size.rect());
    assert!(slide.pixels(Level::FINEST) <= 2 * 64 * 64, "{} pixels", slide.pixels(Level::FINEST));

    let white = |part: Rect| {
        let picture = Pixels::filled(part.size(), SampleType::U8, &[255; 3]);
        CountingSlide::new(framed(&picture, part, size))
    };
    for part in [
        Rect::new(3000, 0, 6000, 5200),
        Rect::new(0, 2100, 9000, 3100),
        Rect::new(1, 1, 8000, 5000),
        Rect::new(2500, 1500, 5000, 3000),
        Rect::new(8999, 5199, 1, 1),
    ] {
        let slide = white(part);
        assert_eq!(found(&slide, &native(&slide)), part);
        let (read, border) = (slide.pixels(Level::FINEST), size.area() - part.size().area());
        // Besides the border: rows of pieces in which an edge was found, and the corners.
        let pieces = 2 * (size.width * 1024) + 2 * (2048 * size.height) + 2 * 64 * 64;
        assert!(read >= border && read <= border + pieces, "{part}: {read} pixels for {border}");
        assert!(slide.largest() <= 2048 * 1024);
    }
}

/// Any shape, by looking at every pixel; pieces of the search leave no trace, nor do threads.
#[test]
fn the_box_is_the_smallest() {
    let size = Size::new(4100, 2100);
    for points in [
        vec![(0, 0)],
        vec![(4099, 2099)],
        vec![(2048, 1024)],
        vec![(2047, 1023), (2048, 1024)],
        vec![(100, 2000), (4000, 3), (50, 1500), (4098, 77)],
        vec![(2046, 1023), (2049, 9), (2050, 1025)],
        vec![(4095, 1999), (1, 2001), (17, 31)],
    ] {
        let mut pixels = vec![0u8; size.area() as usize * 3];
        for &(x, y) in &points {
            pixels[(y * size.width + x) as usize * 3 + (x + y) as usize % 3] = 1;
        }
        let slide = PictureSlide::new(Pixels::from_u8(size, 3, pixels), 0.5);
        let (left, right) = (points.iter().map(|p| p.0).min().unwrap(), points.iter().map(|p| p.0).max().unwrap());
        let (top, bottom) = (points.iter().map(|p| p.1).min().unwrap(), points.iter().map(|p| p.1).max().unwrap());
        let expected = Rect::new(left as i64, top as i64, right - left + 1, bottom - top + 1);
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| found(&slide, &native(&slide))), expected, "{points:?}");
        }
    }
}

/// What counts are the pixels that the network sees: those of the target grid, of which one may be black that has bright ones under it,
/// and one bright that has black ones under it.
#[test]
fn the_crop_is_that_of_the_target_grid() {
    // 4 x 4 pixels at a time, from 0.5 to 1.7 um, of a level of 0.5.
    let (size, part) = (Size::new(340, 272), Rect::new(55, 38, 201, 190));
    let slide = framed(&content(part.size()), part, size);
    let model = PlaceModel::new(Size::new(28, 24), 3);
    let settings = with(&settings(), |s| s.model_mpp = Some(TargetResolution::Mpp(1.7)));
    let (mask, summary) = segment(&slide, &model, &cropped(&settings));
    let (target, crop) = (summary.geometry.target, summary.geometry.crop.unwrap());
    assert_eq!(target.size, Size::new(100, 80));
    let pixels = Reader::new(&slide, &target).read(target.size.rect()).unwrap();
    let bright = |x: i64, y: i64| {
        let at = (y * 100 + x) as usize * 3;
        pixels.as_u8().unwrap()[at..at + 3].iter().any(|&sample| sample > 0)
    };
    let Rect { x, y, width, height } = crop.target;
    let (right, bottom) = (x + width as i64, y + height as i64);
    let all = || (0..80).flat_map(|y| (0..100).map(move |x| (x, y)));
    assert!(all().all(|(u, v)| !bright(u, v) || (x <= u && u < right && y <= v && v < bottom)), "{crop:?}");
    assert!((y..bottom).any(|v| bright(x, v)) && (y..bottom).any(|v| bright(right - 1, v)), "{crop:?}");
    assert!((x..right).any(|u| bright(u, y)) && (x..right).any(|u| bright(u, bottom - 1)), "{crop:?}");
    // In pixels of level 0 it is where it was put, to about a pixel of the target grid.
    let near = |a: i64, b: i64| (a - b).abs() <= 4;
    assert!(near(crop.level0.x, part.x) && near(crop.level0.y, part.y), "{crop:?}");
    assert!(near(crop.level0.right(), part.right()) && near(crop.level0.bottom(), part.bottom()), "{crop:?}");

    let mut alone = Pixels::filled(crop.target.size(), SampleType::U8, &[0; 3]);
    alone.blit(crop.target, &pixels, target.size.rect());
    let native = with(&settings, |s| s.model_mpp = Some(TargetResolution::Native));
    let (alone, _) = segment(&PictureSlide::new(alone, 1.7), &model, &native);
    let expected = framed_labels(&levels_of(&alone)[0].1, crop.target, target.size);
    assert_same(target.size, &levels_of(&mask)[0].1, &expected, "at 1.7 um");
}

/// A region says which tiles run, and nothing else.
#[test]
fn inside_a_region_the_mask_is_the_full_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("roi.geojson");
    let ring = "[[[10,5],[90,20],[120,125],[60,90],[10,5]]]";
    std::fs::write(&path, format!(r#"{{"type": "Polygon", "coordinates": {ring}}}"#)).unwrap();
    let part = Rect::new(33, 13, 101, 107);
    let (slide, model) = (framed(&content(part.size()), part, WHOLE), PlaceModel::new(Size::new(28, 24), 3));
    let inside = with(&cropped(&settings()), |s| s.roi = Some(RoiSource { path, values: Vec::new() }));
    let region = Segmenter::new(&model, inside.clone()).unwrap().region(&slide).unwrap().unwrap().roi;
    let (mask, summary) = segment(&slide, &model, &inside);
    let (all, whole) = segment(&slide, &model, &cropped(&settings()));
    assert_eq!((summary.geometry.crop, summary.tiles.grid), (whole.geometry.crop, whole.tiles.grid));
    assert!(summary.tiles.run > 0 && summary.tiles.skipped > 0, "{:?}", summary.tiles);
    let all = levels_of(&all).remove(0).1;
    let expected = over(WHOLE, |x, y| {
        if region.touches(Rect::new(x as i64, y as i64, 1, 1)) { all[(y * WHOLE.width + x) as usize] } else { 0 }
    });
    assert_same(WHOLE, &levels_of(&mask)[0].1, &expected, "inside the region");
    // One that holds nothing but black: no tile runs.
    let path = folder.path().join("corner.geojson");
    std::fs::write(&path, r#"{"type": "Polygon", "coordinates": [[[0,0],[12,0],[12,12],[0,0]]]}"#).unwrap();
    let mut model = FunctionModel::new(Size::new(28, 24), &[60.5]);
    model.card_mut().normalization = vec![Normalization::ZScore; 3];
    let corner = with(&inside, |s| {
        (s.roi, s.norm_stats) = (Some(RoiSource { path, values: Vec::new() }), microtome::NormStats::Tissue);
    });
    let (mask, summary) = segment(&slide, &model, &corner);
    assert_eq!(summary.tiles.run, 0);
    assert!(levels_of(&mask)[0].1.iter().all(|&label| label == 0));
}

/// As nnU-Net writes them: outside of the crop the probability of background is 1, that of a region 0.
#[test]
fn probabilities_outside_of_the_crop_are_certain() {
    let folder = tempfile::tempdir().unwrap();
    let size = Size::new(157, 131);
    let part = Rect::new(70, 33, 66, 50);
    let everything = with(&cropped(&settings()), |s| (s.probabilities, s.confidence) = (true, true));
    for (name, model, certain) in [
        ("labels", PlaceModel::new(Size::new(28, 24), 3), [255, 0, 0]),
        ("regions", PlaceModel::new(Size::new(28, 24), 3).regions(), [0, 0, 0]),
    ] {
        let (mask, alone) =
            (folder.path().join(format!("{name}.zarr")), folder.path().join(format!("{name}-alone.zarr")));
        let picture = content(part.size());
        segment_to(&framed(&picture, part, size), &model, &everything, &mask);
        segment_to(&PictureSlide::new(picture, 0.5), &model, &everything, &alone);
        for (product, certain) in [(Product::Probabilities, &certain[..]), (Product::Confidence, &[255])] {
            let read = |mask: &Path| {
                let store = OmeZarr::open(store_of(mask, product)).unwrap();
                store.read_region(Level::FINEST, store.info().levels[0].size.rect()).unwrap()
            };
            let certain: Vec<u16> = certain.to_vec();
            let mut expected = Pixels::filled(size, SampleType::U8, &certain);
            expected.blit(size.rect(), &read(&alone), part);
            assert!(read(&mask) == expected, "{name}, {product:?}");
        }
        // Everything is there and as the journal says.
        assert!(microtome::verify(&mask).unwrap().faults.is_empty());
    }
}

/// Stops after some questions, once tiles run, and remembers the phases.
#[derive(Debug, Default)]
struct Watcher {
    phases: Mutex<Vec<Phase>>,
    asked: AtomicUsize,
    most: usize,
}

impl Observer for Watcher {
    fn phase(&self, phase: Phase) {
        self.phases.lock().unwrap().push(phase);
    }

    fn cancelled(&self) -> bool {
        self.phases.lock().unwrap().last() == Some(&Phase::Segmentation)
            && self.asked.fetch_add(1, Ordering::Relaxed) >= self.most
    }
}

/// A run that was stopped goes on with the crop that it found, to the same bytes, and with no other.
#[test]
fn the_crop_is_looked_for_once_and_is_part_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let part = Rect::new(33, 13, 101, 107);
    let slide = || framed(&content(part.size()), part, WHOLE);
    let mut model = PlaceModel::new(Size::new(28, 24), 3);
    model.card_mut().normalization = vec![Normalization::ZScore; 3];
    let settings = with(&cropped(&settings()), |s| {
        (s.batch, s.sync_every, s.probabilities) = (Some(1), std::time::Duration::ZERO, true);
    });
    let whole = folder.path().join("whole.ome.zarr");
    segment_to(&slide(), &model, &settings, &whole);
    let kept = std::fs::read_to_string(folder.path().join("whole.ome.zarr.run/crop.json")).unwrap();
    assert!(kept.contains(r#""target":{"x":33,"y":13,"width":101,"height":107}"#), "{kept}");
    let attributes = std::fs::read_to_string(whole.join("zarr.json")).unwrap().replace([' ', '\n'], "");
    assert!(attributes.contains(r#""level0":{"x":33,"y":13,"width":101,"height":107}"#), "{attributes}");

    let output = folder.path().join("mask.ome.zarr");
    let segmenter = Segmenter::new(&model, settings.clone()).unwrap();
    let first = Watcher { most: 40, ..Watcher::default() };
    assert!(matches!(segmenter.segment(&slide(), &output, Existing::Keep, &first), Err(Error::Interrupted)));
    assert_eq!(first.phases.into_inner().unwrap(), [Phase::Crop, Phase::Statistics, Phase::Segmentation]);
    let other = with(&settings, |s| s.crop_nonzero = CropNonzero::Off);
    match Segmenter::new(&model, other).unwrap().segment(&slide(), &output, Existing::Keep, &Silent) {
        Err(Error::DifferentRun { differs, .. }) => assert_eq!(differs, "crop_nonzero: true there, false here"),
        other => panic!("{other:?}"),
    }
    let again = Watcher { most: usize::MAX, ..Watcher::default() };
    match segmenter.segment(&slide(), &output, Existing::Keep, &again) {
        Ok(Outcome::Done(summary)) => {
            assert!(summary.resumed_shards > 0);
            assert_eq!(summary.geometry.crop.unwrap().target, part);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(again.phases.into_inner().unwrap(), [Phase::Segmentation]);
    assert_eq!(files(&output), files(&whole));
    // What else lies there instead is not believed.
    for wrong in ["", "{}", &kept.replace("33", "330"), &kept.replace("101", "0")] {
        segmenter
            .segment(&slide(), &output, Existing::Replace, &Watcher { most: 40, ..Watcher::default() })
            .unwrap_err();
        std::fs::write(folder.path().join("mask.ome.zarr.run/crop.json"), wrong).unwrap();
        segmenter.segment(&slide(), &output, Existing::Keep, &Silent).unwrap();
        assert_eq!(files(&output), files(&whole), "{wrong}");
    }
}

/// A tile that cannot be read is not black for certain.
#[test]
fn what_cannot_be_read_is_not_cut_off() {
    let part = Rect::new(300, 270, 200, 150);
    let size = Size::new(900, 700);
    let model = FunctionModel::new(Size::new(64, 64), &[20.5]);
    // Stored tiles are 256 x 256.
    let bad = || {
        let slide = framed(&Pixels::filled(part.size(), SampleType::U8, &[9; 3]), part, size);
        FailingSlide::new(slide).with_bad_tile(Level::FINEST, TileCoord { row: 1, column: 0 })
    };
    let segmenter = Segmenter::new(&model, cropped(&settings())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.ome.zarr");
    let error = segmenter.segment(&bad(), &path, Existing::Keep, &Silent).unwrap_err().to_string();
    assert!(error.contains("column 0 row 1"), "{error}");
    let fill = with(&cropped(&settings()), |s| s.on_bad_tile = OnBadTile::Fill);
    let mut crops = Vec::new();
    for threads in [1, 3] {
        let (_, summary) = segment(&bad(), &model, &with(&fill, |s| s.threads = Some(threads)));
        assert_eq!(summary.unreadable.len(), 1);
        crops.push(summary.geometry.crop.unwrap().target);
    }
    assert!(crops[0] == crops[1] && crops[0].contains(part) && crops[0].contains(Rect::new(0, 256, 256, 256)));
    assert!(crops[0].y >= 256 - 16 && crops[0].bottom() <= 512 + 16 && crops[0].right() == part.right(), "{crops:?}");
}

/// What a plan says before it looks holds for any crop.
#[test]
fn the_plan_holds_whatever_is_cut_off() {
    let model = PlaceModel::new(Size::new(32, 32), 3);
    // Tiles that never cross an edge of a block, until they are shifted.
    let settings = with(&settings(), |s| s.step = Some(1.0));
    let slide = SyntheticSlide::new(Size::new(128, 128), 1);
    let plan = |settings: &Settings| Segmenter::new(&model, settings.clone()).unwrap().plan(&slide).unwrap();
    let (sure, unsure) = (plan(&with(&settings, |s| s.chunk = 16)), plan(&cropped(&settings)));
    assert!(unsure.memory.sums > sure.memory.sums, "{} and {}", unsure.memory.sums, sure.memory.sums);
    assert!(unsure.geometry.crop.unwrap().whole && sure.geometry.crop.is_none());
    let forecast = Segmenter::new(&model, cropped(&settings)).unwrap();
    let part = Rect::new(33, 13, 80, 100);
    let forecast = forecast.forecast(&framed(&content(part.size()), part, Size::new(128, 128)), &Silent).unwrap();
    assert!(forecast.to_string().contains("crop         80 x 100 at (33, 13) of level 0"), "{forecast}");
    assert_eq!(forecast.tiles.grid, 3 * 4);
}
