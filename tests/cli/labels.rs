//! `--format` and `--into`.

use std::path::{Path, PathBuf};
use std::process::Command;

use microtome::io::store::{
    Channel, Content, Encoding, Format, ImageSink, OmeZarr, StoreLevel, StoredImage, ZarrImage,
};
use microtome::io::{Level, Microns, SampleType, Size, TileCoord};
use serde_json::{Map, Value, json};

use crate::{Place, content, microtome, read, repository, run};

/// The picture of 300 x 200 pixels as an OME-Zarr image of two levels, of which the second is empty.
fn image(place: &Place, name: &str, format: Format) -> PathBuf {
    let pixels = read(&place.slide(&format!("{name}.png")));
    let path = place.path(name);
    let image = StoredImage {
        name: "slide".into(),
        levels: StoreLevel::finest(Size::new(300, 200), Some(Microns::square(0.5))).pyramid(2),
        chunk: Size::new(512, 512),
        shard: Size::new(512, 512),
        sample: SampleType::U8,
        encoding: Encoding { format, ..Encoding::default() },
        content: Content::Image { channels: ["r", "g", "b"].map(|n| Channel::new(n, [255; 3])).into() },
        source: None,
        method: "mean".into(),
        metadata: Map::new(),
        attributes: Map::new(),
    };
    let sink = ZarrImage::create(&path, image).unwrap();
    sink.write_shard(Level(0), TileCoord { row: 0, column: 0 }, &pixels).unwrap();
    sink.finish(&Map::new()).unwrap();
    path
}

/// `microtome segment SLIDE --into IMAGE` with nnU-Net's model of `tests/models`.
fn into(slide: &Path, image: &Path, flags: &[&str]) -> Command {
    let mut command = microtome();
    command.arg("segment").arg(slide).arg("-m").arg(repository("tests/models/nnunet-nuclei")).arg("--into").arg(image);
    command.args(["--no-tta", "--step-size", "1", "--tissue", "none", "--memory", "1GiB", "--threads", "2"]);
    command.args(flags);
    command
}

#[test]
fn an_image_gets_its_mask_and_keeps_all_else() {
    let place = Place::new();
    for (format, name) in [(Format::V0_5, "five.ome.zarr"), (Format::V0_4, "four.ome.zarr")] {
        let image = image(&place, name, format);
        let before = content(&image);
        let ran = run(&mut into(&image, &image, &[])).ended(0);
        let label = image.join("labels/nuclei");
        assert!(ran.stdout.contains(&format!("written to {}", label.display())), "{ran:?}");
        let after = content(&image);
        assert!(before.iter().all(|(name, bytes)| after[name] == *bytes));
        let info = OmeZarr::open(&label).unwrap().info().clone();
        assert_eq!((info.version.as_str(), info.levels.len()), (format.version(), 2));
        let again = run(&mut into(&image, &image, &["--json"])).ended(0);
        let line: Value = serde_json::from_str(&again.stdout).unwrap();
        assert_eq!(line["outcome"], json!({ "already_done": { "unreadable": 0 } }));
        assert_eq!(line["output"], json!(label));
        assert!(content(&image) == after);
        // The same pixels as those of a mask of its own, from the picture that the image was made of.
        let alone = place.path(&format!("alone-{name}"));
        let png = place.path(&format!("{name}.png"));
        let mut command = place.segment(&[&png], &alone);
        run(command.args(["--quiet", "--format", format.version()])).ended(0);
        assert_eq!(OmeZarr::open(&alone).unwrap().info().version, format.version());
        let pixels =
            |store: &Path| OmeZarr::open(store).unwrap().read_region(Level(0), Size::new(300, 200).rect()).unwrap();
        assert!(pixels(&label) == pixels(&alone));
        let verified = run(microtome().arg("verify").arg(&label)).ended(0);
        assert!(verified.stdout.contains(" 0 faulty"), "{verified:?}");

        run(&mut into(&image, &image, &["--name", "second", "--quiet"])).ended(0);
        assert!(image.join("labels/second").is_dir() && place.path(&format!("{name}.second.run")).is_dir());
        run(&mut into(&image, &image, &["--name", "second", "--window", "constant", "--quiet"]))
            .refused(5, &["labels/second", "window", "--overwrite"]);
        let first = content(&label);
        run(&mut into(&image, &image, &["--name", "second", "--window", "constant", "--quiet", "--overwrite"]))
            .ended(0);
        assert!(content(&label) == first);
    }
}

#[test]
fn what_labels_cannot_be_put_into_is_refused() {
    let place = Place::new();
    let image = image(&place, "image.ome.zarr", Format::V0_4);
    let png = place.path("image.ome.zarr.png");
    let before = place.content();
    run(&mut into(&png, &image, &["--format", "0.5"])).refused(2, &["image.ome.zarr", "OME-Zarr 0.4"]);
    run(&mut into(&png, &image, &["--format", "0.3"])).refused(2, &["0.3", "0.5 or 0.4"]);
    run(&mut into(&png, &image, &["-o", "mask.ome.zarr"])).refused(2, &["--into", "--output"]);
    run(&mut into(&png, &image, &["--name", "../x"])).refused(2, &["cannot be called"]);
    run(&mut into(&png, &png, &[])).refused(2, &["image.ome.zarr.png", "no folder"]);
    run(&mut into(&png, &place.path("none"), &[])).refused(4, &["none"]);
    let mut two = into(&png, &image, &[]);
    run(two.arg(&png)).refused(2, &["one slide", "2"]);
    let mut neither = microtome();
    neither.arg("segment").arg(&png).arg("-m").arg(repository("tests/models/nnunet-nuclei"));
    run(&mut neither).refused(2, &["--output"]);
    run(neither.args(["-o", "x", "--name", "y"])).refused(2, &["--into"]);
    assert!(place.content() == before);
}

/// The image can be read at every moment, and the label ends with the bytes of an undisturbed run.
#[cfg(unix)]
#[test]
fn killed_again_and_again_a_label_ends_with_the_same_bytes() {
    use std::time::{Duration, Instant};

    use microtome_testkit::{Weights, small_package};

    let place = Place::new();
    let slide = crate::kills::tower(&place, "tower.tif", 8 * 2048);
    let model = place.path("model");
    small_package(&model, Weights::Plain);
    let size = Size::new(192, 8 * 2048);
    let image = |name: &str| {
        let path = place.path(name);
        let image = StoredImage {
            name: "tower".into(),
            levels: StoreLevel::finest(size, None).pyramid(5),
            chunk: Size::new(512, 512),
            shard: Size::new(2048, 2048),
            sample: SampleType::U8,
            encoding: Encoding { format: Format::V0_4, ..Encoding::default() },
            content: Content::Image { channels: vec![Channel::new("grey", [255; 3])] },
            source: None,
            method: "mean".into(),
            metadata: Map::new(),
            attributes: Map::new(),
        };
        ZarrImage::create(&path, image).unwrap().finish(&Map::new()).unwrap();
        path
    };
    let begin = |image: &Path| {
        let mut command = microtome();
        command.arg("segment").arg(&slide).arg("-m").arg(&model).arg("--into").arg(image);
        command.args(["--model-mpp", "native", "--tissue", "none", "--threads", "2", "--memory", "512MiB"]);
        command.args(["--sync-every", "0", "--quiet", "--name", "killed"]);
        command
    };
    let whole = image("whole.ome.zarr");
    let start = Instant::now();
    run(&mut begin(&whole)).ended(0);
    let (undisturbed, expected) = (start.elapsed(), content(&whole));
    let image = image("killed.ome.zarr");
    for n in 0..12 {
        let mut child = begin(&image).spawn().unwrap();
        std::thread::sleep(undisturbed.mul_f64(f64::from(n) / 16.0).max(Duration::from_millis(1)));
        child.kill().unwrap();
        child.wait().unwrap();
        OmeZarr::open(&image).unwrap();
    }
    run(&mut begin(&image)).ended(0);
    assert!(content(&image) == expected);
}
