//! The page that a run leaves for people: whole, well-formed, with the numbers of the summary and nothing that names the slide's place.

use std::path::Path;

use microtome::io::{Level, Microns, Pixels, Size, TileCoord};
use microtome::{OnBadTile, RegionKind, RoiSource, Summary, TissueMode};
use microtome_testkit::{FailingSlide, FunctionModel, PictureSlide, SyntheticSlide};

use crate::function::THRESHOLDS;
use crate::{names, picture, segment_to, settings, with};

const SIZE: Size = Size::new(700, 500);

fn model() -> FunctionModel {
    FunctionModel::new(Size::new(64, 64), &THRESHOLDS)
}

/// The page of a run, after a look at its form.
fn page(mask: &Path) -> String {
    let file = mask.with_file_name(format!("{}.run", mask.file_name().unwrap().to_string_lossy())).join("report.html");
    let page = std::fs::read_to_string(file).unwrap();
    assert_balanced(&page);
    for absent in ["<script", "<link", "<iframe", "://", "@import", "url("] {
        assert!(!page.contains(absent), "{absent}");
    }
    page
}

/// Every tag is closed in its turn, every attribute is quoted, and no `<` stands elsewhere.
#[track_caller]
fn assert_balanced(page: &str) {
    let mut open = Vec::new();
    let mut rest = page.strip_prefix("<!doctype html>").expect("a document type");
    while let Some(at) = rest.find('<') {
        assert!(!rest[..at].contains('>') || open.last() == Some(&"style"), "a stray >: {}", &rest[..at]);
        let (tag, behind) = rest[at + 1..].split_once('>').expect("a tag that ends");
        rest = behind;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "</{name}> closes another tag");
            continue;
        }
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric()), "<{tag}>");
        let mut unseen = attributes;
        while !unseen.is_empty() {
            let (attribute, value) = unseen.split_once("=\"").expect("a quoted value");
            assert!(attribute.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "<{name}>: {attribute}");
            unseen = value.split_once('"').expect("a value that ends").1.trim_start();
        }
        if !matches!(name, "meta" | "img" | "br") {
            open.push(name);
        }
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "left open: {open:?}; behind: {rest:?}");
}

/// The pictures of a page, decoded.
fn pictures(page: &str, folder: &Path) -> Vec<Pixels> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => u32::from(letter - b'A'),
        b'a'..=b'z' => u32::from(letter - b'a') + 26,
        b'0'..=b'9' => u32::from(letter - b'0') + 52,
        b'+' => 62,
        b'/' => 63,
        other => panic!("{other} in base64"),
    };
    let decode = |text: &str| {
        let letters = text.trim_end_matches('=').as_bytes();
        let mut bytes = Vec::new();
        for group in letters.chunks(4) {
            let bits = (0..4).fold(0, |bits, i| bits << 6 | group.get(i).map_or(0, |&letter| value(letter)));
            bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
        }
        bytes
    };
    page.split("src=\"data:image/jpeg;base64,")
        .skip(1)
        .map(|text| {
            let file = folder.join("picture.jpg");
            std::fs::write(&file, decode(text.split('"').next().unwrap())).unwrap();
            picture(&file)
        })
        .collect()
}

/// A rectangle of 300 x 200 pixels with its corner at (100, 50).
fn rectangle(folder: &Path) -> RoiSource {
    let path = folder.join("region-of-somebody.geojson");
    let text = r#"{"type":"Polygon","coordinates":[[[100,50],[400,50],[400,250],[100,250],[100,50]]]}"#;
    std::fs::write(&path, text).unwrap();
    RoiSource { path, values: Vec::new() }
}

#[track_caller]
fn assert_numbers(page: &str, summary: &Summary) {
    let region = &summary.region;
    let mut cells = vec![region.pixels.to_string(), format!("{:.4}", region.mm2.unwrap())];
    for area in &summary.areas {
        cells.extend([area.pixels.to_string(), format!("{:.4}", area.mm2.unwrap())]);
        cells.push(format!("{:.2}", area.pixels as f64 * 100.0 / region.pixels as f64));
    }
    for cell in cells {
        assert!(page.contains(&format!(">{cell}</td>")), "{cell}");
    }
    let tiles = summary.tiles;
    for fact in [format!("{} of {}", tiles.run, tiles.grid), format!("{} pixels at level 0", summary.slide)] {
        assert!(page.contains(&format!("<td>{fact}")), "{fact}");
    }
}

#[test]
fn a_page_says_what_the_summary_says_and_escapes_what_it_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let slide = SyntheticSlide::new(SIZE, 5).with_tissue_everywhere().with_mpp(Some(Microns::square(0.25)));
    let mut model = model();
    model.card_mut().classes[1].name = "<script>alert(\"1\")</script> & 'more'".into();
    let settings = with(&settings(), |s| s.roi = Some(rectangle(folder.path())));
    let mask = folder.path().join("a & b <c>.ome.zarr");
    let summary = segment_to(&slide, &model, &settings, &mask);
    assert_eq!((summary.region.kind, summary.region.pixels), (RegionKind::Region, 300 * 200));
    let region_mm2 = 300.0 * 200.0 * 0.0625 / 1e6;
    assert_eq!(summary.region.mm2, Some(region_mm2));
    assert!(summary.areas.iter().any(|area| area.pixels > 0 && area.share > 0.0));
    for area in &summary.areas {
        let covered = format!("{} pixels, {:.4} mm2", area.pixels, area.mm2.unwrap());
        let per_area = format!("({:.4} mm2 per mm2, of {region_mm2:.4} mm2)", area.share);
        let words = format!("{covered}, {:.1} % of the region {per_area}", area.share * 100.0);
        assert!(summary.to_string().contains(&words), "{words}");
    }

    let page = page(&mask);
    assert_numbers(&page, &summary);
    assert!(page.contains("<h1>a &amp; b &lt;c&gt;.ome.zarr</h1>"));
    assert!(page.contains("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &#39;more&#39;"));
    let place = folder.path().to_string_lossy().into_owned();
    assert!(!page.contains(&place) && !page.contains("somebody"), "a path is told");
    let attributes = microtome::io::store::OmeZarr::open(&mask).unwrap().info().attributes.clone();
    assert!(page.contains(attributes["fingerprint"].as_str().unwrap()));
    let run = folder.path().join("a & b <c>.ome.zarr.run");
    assert_eq!(names(&run), ["journal.jsonl", "report.html", "report.json", "roi.png"]);
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(run.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["region"]["pixels"], 300 * 200);
    assert_eq!(report["areas"][0]["share"].as_f64(), Some(summary.areas[0].share));

    let [region, mask] = pictures(&page, folder.path()).try_into().unwrap();
    assert_eq!((region.size(), mask.size()), (SIZE, SIZE));
    let samples = region.as_u8().unwrap();
    let blue = |x: usize, y: usize| {
        let pixel = &samples[(y * 700 + x) * 3..][..3];
        i16::from(pixel[2]) - i16::from(pixel[0].max(pixel[1]))
    };
    // The edge lies inside the region. JPEG blurs it: 244 of 255 are left, and elsewhere -9.
    for (x, y) in [(100, 150), (399, 150), (250, 50), (250, 249)] {
        assert!(blue(x, y) >= 240, "({x}, {y}): {}", blue(x, y));
    }
    assert!(blue(250, 150) < 0 && blue(600, 400) < 0);
}

#[test]
fn the_share_is_that_of_the_tissue_or_of_the_slide() {
    let folder = tempfile::tempdir().unwrap();
    let slide = SyntheticSlide::new(Size::new(1510, 1100), 11).with_mpp(Some(Microns::square(0.4871)));
    for (tissue, kind) in [(TissueMode::Auto, RegionKind::Tissue), (TissueMode::None, RegionKind::Slide)] {
        let mask = folder.path().join(format!("{kind}.ome.zarr"));
        let summary = segment_to(
            &slide,
            &model(),
            &with(&settings(), |s| (s.tissue, s.chunk, s.shard) = (tissue, 64, 128)),
            &mask,
        );
        assert_eq!(summary.region.kind, kind);
        let all = summary.geometry.target.size.area();
        let share = summary.tissue_share.unwrap_or(1.0);
        // Cells at the edges are cut off.
        assert!((summary.region.pixels as f64 / all as f64 - share).abs() < 0.01, "{:?} of {all}", summary.region);
        let page = page(&mask);
        assert_numbers(&page, &summary);
        assert!(page.contains(&format!("% of the {kind}</th>")));
        assert_eq!(pictures(&page, folder.path())[0].size(), Size::new(900, 656));
    }
}

#[test]
fn a_page_lists_what_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let slide = FailingSlide::new(SyntheticSlide::new(SIZE, 1).with_mpp(Some(Microns::square(0.25))))
        .with_bad_tile(Level::FINEST, TileCoord { row: 1, column: 0 });
    let mask = folder.path().join("mask.ome.zarr");
    let summary = segment_to(&slide, &model(), &with(&settings(), |s| s.on_bad_tile = OnBadTile::Fill), &mask);
    assert_eq!(summary.unreadable.len(), 1);
    let page = page(&mask);
    assert_numbers(&page, &summary);
    let row = [0, 0, 1].map(|n| format!("<td class=\"number\">{n}</td>")).concat();
    assert!(page.contains(&format!("<tr>{row}<td>made undecodable by a test</td></tr>")));
    assert!(page.contains("cannot be read are shown in one plain colour"));
}

#[test]
fn a_slide_that_no_picture_can_show_has_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let size = Size::new(150, 100);
    let samples = (0..size.area() * 2).map(|i| (i * 7 % 251) as u8).collect();
    let slide = PictureSlide::new(Pixels::from_u8(size, 2, samples), 0.5);
    let mut model = model();
    model.card_mut().channels.truncate(2);
    model.card_mut().normalization.truncate(2);
    let mask = folder.path().join("mask.ome.zarr");
    let summary = segment_to(&slide, &model, &settings(), &mask);
    let page = page(&mask);
    assert_numbers(&page, &summary);
    assert!(page.contains("only outlines are"));
    let pictures = pictures(&page, folder.path());
    assert_eq!(pictures.iter().map(Pixels::size).collect::<Vec<_>>(), [size, size]);
}
