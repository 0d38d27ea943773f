//! Tissue is found on every kind of slide: views of a real one, and real pictures.

use std::path::Path;

use microtome::io::slide::{OpenOptions, SlideReader, open};
use microtome::io::{Level, Pixels, Rect, Samples};
use microtome::preview::{PreviewOptions, save};
use microtome_testkit::{PictureSlide, SPECIMEN_MPP, Specimen, View, assets, data};
use microtome_tile::tissue::{Tissue, TissueOptions, detect};
use microtome_tile::{TargetGrid, TargetOptions};

use crate::picture;

fn find(slide: &dyn SlideReader) -> Tissue {
    let mpp = slide.info().resolution.as_ref().map(|r| r.mpp);
    let target = TargetGrid::plan(slide.info(), mpp, &TargetOptions::default()).unwrap();
    detect(slide, mpp, &target, &TissueOptions::default()).unwrap()
}

/// Where the environment names a folder, in MICROTOME_PICTURES, pictures are left there for eyes: what counts as empty is red.
fn draw(name: &str, slide: &PictureSlide, tissue: &Tissue) {
    let Some(folder) = std::env::var_os("MICROTOME_PICTURES") else { return };
    let pixels = slide.level(Level::FINEST).unwrap();
    let (size, channels) = (pixels.size(), pixels.channels());
    // Of 16 bits, those that a camera of 11 fills.
    let samples: Vec<u8> = match pixels.samples() {
        Samples::U8(v) => v.clone(),
        Samples::U16(v) => v.iter().map(|v| (v / 8).min(255) as u8).collect(),
    };
    let pixel = |i: u64| {
        let (x, y) = ((i % size.width) as i64, (i / size.width) as i64);
        let [r, g, b] = std::array::from_fn(|c| samples[i as usize * channels + c.min(channels - 1)]);
        if tissue.roi.touches(Rect::new(x, y, 1, 1)) { [r, g, b] } else { [r / 2 + 60, g / 2, b / 2] }
    };
    let picture = Pixels::from_u8(size, 3, (0..size.area()).flat_map(pixel).collect());
    let path = Path::new(&folder).join(format!("{}.png", name.replace(|c: char| !c.is_alphanumeric(), "-")));
    save(&picture, &path, PreviewOptions::default()).unwrap();
}

/// What must be found of the tissue of every view but one of glass. Measured: all of it, but at 8 um 99.93 %
/// of what keeps a tenth of its stain and 99.95 % of what is dim.
const RECALL: f64 = 0.999;

/// The share of glass, more than 64 um from tissue, that may be taken for tissue: what was measured, at 4 and at 8 um per cell, rounded up.
/// Ink and dust cover some of the glass; shading by a tenth is beyond the tolerance.
fn glass_bound(view: View) -> f64 {
    match view {
        View::Shaded => 0.238,
        View::Pen => 0.361,
        View::Dust => 0.315,
        View::FluorescentDeep { .. } => 0.001_1,
        View::Tissue => 1.0,
        _ => 0.0,
    }
}

/// The tissue of a real slide, seen in every way that makes it hard to find, from a stored level of 8 um and averaged to 4 um.
#[test]
fn tissue_is_found_on_every_kind_of_slide() {
    let Some(path) = assets::cmu_small_region() else { return };
    let slide = open(&path, &OpenOptions::default()).unwrap();
    let specimen = Specimen::new(slide.as_ref()).unwrap();
    let (tissue, glass) = (specimen.tissue(), specimen.glass());
    for (name, view) in View::ALL {
        let seen = specimen.seen(view);
        for slide in [seen.clone(), seen.with_level(2)] {
            let found = find(&slide);
            let share = |cells: &[bool]| {
                let width = Specimen::cells().width;
                let wanted = (0..).zip(cells).filter(|(_, is)| **is).map(|(i, _)| {
                    let side = (8.0 / SPECIMEN_MPP) as u64;
                    Rect::new((i % width * side) as i64, (i / width * side) as i64, side, side)
                });
                let hits: Vec<bool> = wanted.map(|cell| found.roi.touches(cell)).collect();
                hits.iter().filter(|&&hit| hit).count() as f64 / hits.len() as f64
            };
            let (recall, taken, um) = (share(&tissue), share(&glass), found.mpp.unwrap().x);
            println!("{name:28} {um} um: {:.2} % of the tissue, {:.2} % of the glass", recall * 100.0, taken * 100.0);
            draw(&format!("{name} {um}"), &slide, &found);
            match view {
                View::Glass => assert_eq!(found.share, 0.0, "{name}"),
                View::Tissue => assert_eq!((found.share, &found.background), (1.0, &None), "{name}"),
                _ => assert!(recall >= RECALL, "{name}, {um} um: {recall}"),
            }
            assert!(taken <= glass_bound(view), "{name}, {um} um: {taken}");
        }
    }
}

/// Smears without colour, tissue all over, fluorescent nuclei: what people outlined in real pictures is found.
/// Measured over the 16 smears and the fluorescent picture: 99.5 % of the outlined pixels of each at least.
#[test]
fn what_people_outlined_is_found() {
    let Some(folder) = data("seg") else { return };
    let Some(pictures) = data("pictures") else { return };
    let mut pairs = vec![(pictures.join("stardist/img2d.tif"), pictures.join("stardist/mask2d.tif"))];
    for set in ["dsb2018-stained", "dsb2018-grey-cytology"] {
        for entry in std::fs::read_dir(folder.join(set).join("images")).unwrap() {
            let image = entry.unwrap().path();
            let labels = folder.join(set).join("labels").join(image.file_name().unwrap());
            pairs.push((image, labels));
        }
    }
    for (image, labels) in pairs {
        let slide = PictureSlide::new(picture(&image), 0.5);
        let found = find(&slide);
        let outlined = picture(&labels);
        let width = outlined.size().width;
        let outlined = (0..).zip(crate::labels(&outlined)).filter(|(_, label)| *label > 0);
        let hits: Vec<bool> =
            outlined.map(|(i, _)| found.roi.touches(Rect::new((i % width) as i64, (i / width) as i64, 1, 1))).collect();
        let recall = hits.iter().filter(|&&hit| hit).count() as f64 / hits.len() as f64;
        let name = image.file_stem().unwrap().to_string_lossy();
        println!("{name:.8} {:.2} % of the outlined, {:.1} % of the picture", recall * 100.0, found.share * 100.0);
        draw(&name, &slide, &found);
        assert!(recall >= 0.995, "{}: {recall}", image.display());
    }
    // Immunohistochemistry and H&E without glass.
    for (path, mpp) in [("skimage/ihc.png", 0.5), ("skimage/ihc.png", 0.25), ("stardist/histo.jpg", 0.25)] {
        let slide = PictureSlide::new(picture(&pictures.join(path)), mpp);
        assert_eq!(find(&slide).share, 1.0, "{path}");
    }
}
