//! `preview` to `.dzi`.

#[cfg(unix)]
use std::io::{BufRead, BufReader};
#[cfg(unix)]
use std::process::Stdio;

use microtome::io::Size;
use microtome_testkit::tiff::TiffSlide;

use crate::{Place, content, microtome, read, run};

#[test]
fn a_slide_and_its_mask_become_deepzoom_images() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let mask = place.path("mask.ome.zarr");
    run(place.segment(&[&slide], &mask).arg("--quiet")).ended(0);
    let preview = |arguments: &[&str]| run(microtome().arg("preview").args(arguments).current_dir(place.folder.path()));

    let ran = preview(&["slide.png", "slide.dzi", "--tile-format", "png"]).ended(0);
    assert!(ran.stdout.starts_with("slide.dzi: 300 x 200 in 10 levels, 11 tiles"), "{ran:?}");
    // 300 x 200 pixels in two tiles, with an overlap of one.
    let (left, right) = (read(&place.path("slide_files/9/0_0.png")), read(&place.path("slide_files/9/1_0.png")));
    assert_eq!((left.size(), right.size()), (Size::new(255, 200), Size::new(47, 200)));
    let before = place.content();
    preview(&["slide.png", "slide.dzi"]).refused(2, &["slide.dzi", "--overwrite"]);
    assert!(place.content() == before);
    let ran = preview(&["slide.png", "slide.dzi", "--overwrite", "--quiet", "--threads", "2"]).ended(0);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
    assert!(place.path("slide_files/9/0_0.jpg").exists() && !place.path("slide_files/9/0_0.png").exists());
    std::fs::remove_file(place.path("slide.dzi")).unwrap();
    preview(&["slide.png", "slide.dzi"]).refused(2, &["slide_files", "--overwrite"]);

    preview(&["mask.ome.zarr", "mask.dzi", "--tile-size", "512", "--overlap-pixels", "0"]).ended(0);
    let tile = read(&place.path("mask_files/9/0_0.png"));
    let colors: std::collections::BTreeSet<[u8; 3]> =
        tile.as_u8().unwrap().chunks_exact(3).map(|p| [p[0], p[1], p[2]]).collect();
    assert_eq!(colors.into_iter().collect::<Vec<_>>(), [[0, 0, 0], [230, 159, 0]]);

    let ran = preview(&["slide.png", "copy.dzi", "--copy-tiles", "--tile-size", "100"]).ended(0);
    assert!(ran.stdout.contains("no tile copied: the tiles of the slide have 300 x 200 pixels"), "{ran:?}");
}

#[test]
fn what_does_not_go_together_is_refused() {
    let place = Place::new();
    place.slide("slide.png");
    let notes = place.file("notes.dzi", "my notes");
    std::fs::create_dir(place.path("kept_files")).unwrap();
    place.file("kept_files/letter.txt", "dear");
    let before = place.content();
    let refused = |arguments: &[&str], words: &[&str]| {
        run(microtome().args(["preview", "slide.png"]).args(arguments).current_dir(place.folder.path()))
            .refused(2, words);
    };
    for flag in [&["--size", "100"][..], &["--overlay", "mask.ome.zarr"], &["--legend"], &["--scale-bar"]] {
        let arguments: Vec<&str> = [&["slide.dzi"][..], flag].concat();
        refused(&arguments, &[flag[0], "DeepZoom"]);
    }
    for flag in [&["--tile-size", "100"][..], &["--overlap-pixels", "1"], &["--copy-tiles"], &["--overwrite"]] {
        let arguments: Vec<&str> = [&["slide.png"][..], flag].concat();
        refused(&arguments, &[flag[0], "picture"]);
    }
    refused(&["slide.dzi", "--overlap-pixels", "200"], &["200", "254"]);
    refused(&["slide.dzi", "--threads", "0"], &["0 threads"]);
    refused(&["notes.dzi", "--overwrite"], &["notes.dzi", "no DeepZoom image"]);
    refused(&["kept.dzi", "--overwrite"], &["letter.txt"]);
    assert!(place.content() == before && notes.exists());
    // A folder that is not there is a failure of the disk.
    run(microtome().args(["preview", "slide.png", "missing/slide.dzi"]).current_dir(place.folder.path()))
        .refused(4, &["missing"]);
}

#[cfg(unix)]
#[test]
fn a_signal_leaves_no_image_and_the_same_command_begins_again() {
    let place = Place::new();
    let slide = TiffSlide::rgb(&[(2400, 2400)], |_, x, y, channel| {
        ((x * 31 + y * 17 + x * y / 7 + 50 * channel as u64) % 251) as u16
    });
    place.file("slide.tif", slide.bytes());
    let mut command = microtome();
    // Slow on purpose.
    command.args(["preview", "slide.tif", "slide.dzi", "--tile-format", "webp", "--threads", "1"]);
    command.current_dir(place.folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert_eq!(line, "slide.tif: tiles\n");
    crate::signals::signal(&child, "INT");
    let said: Vec<String> = stderr.lines().map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said:?}");
    let last = said.last().unwrap();
    for word in ["error: slide.dzi was not made", "slide_files", "--overwrite", "stopped"] {
        assert!(last.contains(word), "{said:?}");
    }
    assert!(!place.path("slide.dzi").exists() && place.path("slide_files").is_dir());
    let again = ["preview", "slide.tif", "slide.dzi", "--quiet"];
    run(microtome().args(again).current_dir(place.folder.path())).refused(2, &["slide_files"]);
    run(microtome().args(again).arg("--overwrite").current_dir(place.folder.path())).ended(0);
    assert!(place.path("slide.dzi").exists());
    assert!(content(&place.path("slide_files")).keys().all(|name| name.extension().is_none_or(|e| e == "jpg")));
}
