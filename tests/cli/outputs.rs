//! Where masks go, and what may be there.

use std::path::Path;

use microtome::io::store::OmeZarr;
use serde_json::Value;

use crate::{Place, Ran, content, microtome, repository, run};

#[test]
fn a_slide_becomes_a_mask() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let mask = place.path("mask.ome.zarr");
    let ran = run(&mut place.segment(&[&slide], &mask)).ended(0);
    let info = OmeZarr::open(&mask).unwrap().info().clone();
    assert_eq!((info.levels[0].size.width, info.levels[0].size.height), (300, 200));
    assert_eq!(info.content.classes()[1].name, "nucleus");
    for word in [
        "slide.png",
        "300 x 200",
        "resolution unknown",
        "tiles        6 of 6 run, 0 skipped",
        "nucleus",
        "Mpx/s",
        "mask.ome.zarr",
    ] {
        assert!(ran.stdout.contains(word), "{word} is missing: {ran:?}");
    }
    for line in ["slide.png: statistics", "slide.png: segmentation"] {
        assert!(ran.stderr.lines().any(|l| l == line), "{line} is missing: {ran:?}");
    }
    // The picture shows nuclei.
    let labels =
        OmeZarr::open(&mask).unwrap().read_region(microtome::io::Level(0), info.levels[0].size.rect()).unwrap();
    let nuclei = labels.as_u8().unwrap().iter().filter(|&&label| label == 1).count();
    assert!((3_000..57_000).contains(&nuclei), "{nuclei} pixels of nuclei");
}

#[test]
fn a_profile_tells_where_the_time_went_if_any_did() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let mask = place.path("mask.ome.zarr");
    let profiled = |word: &str| run(place.segment(&[&slide], &mask).args(["--profile", word])).ended(0).stdout;
    let first = profiled("--quiet");
    assert!(first.contains("convolution 3x3, stride 1x1, 3 to 8 channels at 128 x 128"), "{first}");
    assert!(first.trim_end().ends_with("of the time outside convolutions"), "{first}");
    assert_eq!(profiled("--quiet"), "", "done already");
    let again = run(place.segment(&[&slide], &mask).args(["--profile", "--json", "--overwrite"])).ended(0).stdout;
    let profile: serde_json::Value = serde_json::from_str(again.lines().last().unwrap()).unwrap();
    assert!(profile["profile"]["passes"].as_u64().unwrap() > 0, "{again}");
}

#[test]
fn the_same_command_again_finds_it_done() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let mask = place.path("mask.ome.zarr");
    run(&mut place.segment(&[&slide], &mask)).ended(0);
    let before = place.content();
    let again = run(&mut place.segment(&[&slide], &mask)).ended(0);
    assert!(again.stdout.contains("done already") && again.stdout.contains("mask.ome.zarr"), "{again:?}");
    let again = run(place.segment(&[&slide], &mask).args(["--batch", "2", "--threads", "1"])).ended(0);
    assert!(again.stdout.contains("done already"), "{again:?}");
    assert!(place.content() == before);

    run(place.segment(&[&slide], &mask).args(["--step-size", "0.5", "--quiet"]))
        .refused(5, &["mask.ome.zarr", "step: 1.0 there, 0.5 here", "--overwrite"]);
    run(place.segment(&[&slide], &mask).args(["--tta", "--quiet"])).refused(5, &["execution: "]);
    let other = place.path("other.png");
    std::fs::write(&other, std::fs::read(crate::repository("tests/models/nnunet-nuclei/test/input.png")).unwrap())
        .unwrap();
    run(place.segment(&[&other], &mask).arg("--quiet")).refused(5, &["slide: "]);
    std::fs::remove_file(&other).unwrap();
    assert!(place.content() == before);

    run(place.segment(&[&slide], &mask).args(["--step-size", "0.5", "--overwrite", "--quiet"])).ended(0);
    assert!(place.content() != before);
    run(place.segment(&[&slide], &mask).args(["--overwrite", "--quiet"])).ended(0);
    let mask_only = |content: &std::collections::BTreeMap<std::path::PathBuf, Option<Vec<u8>>>| {
        content
            .iter()
            .filter(|(name, _)| name.starts_with("mask.ome.zarr"))
            .map(|(n, c)| (n.clone(), c.clone()))
            .collect::<Vec<_>>()
    };
    assert!(mask_only(&place.content()) == mask_only(&before), "the same settings give the same bytes");
}

#[test]
fn what_is_not_ours_is_never_touched() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let file = place.file("notes.txt", "mine");
    let folder = place.path("thesis");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("chapter-1.tex"), "mine").unwrap();
    let before = place.content();
    for flags in [&["--quiet"][..], &["--quiet", "--overwrite"], &["--quiet", "--no-resume"]] {
        for output in [&file, &folder] {
            run(place.segment(&[&slide], output).args(flags))
                .refused(2, &[&output.display().to_string(), "there already"]);
        }
        // The slide itself, by its name and in the form of a folder.
        run(place.segment(&[&slide], &slide).args(flags)).refused(2, &["slide.png", "take the place"]);
        run(place.segment(&[&slide], &slide.join("mask")).args(flags)).refused(4, &["slide.png"]);
        run(place.segment(&[&slide], place.folder.path()).args(flags)).refused(2, &["take the place", "slide.png"]);
    }
    let missing = place.path("missing/mask.ome.zarr");
    run(place.segment(&[&slide], &missing).arg("--quiet"))
        .refused(4, &[&missing.display().to_string(), "No such file"]);
    assert!(place.content() == before);
}

#[test]
fn an_empty_folder_and_a_trailing_slash_are_fine() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let empty = place.path("empty");
    std::fs::create_dir(&empty).unwrap();
    run(place.segment(&[&slide], &empty).arg("--quiet")).ended(0);
    let slash = place.path("slash.ome.zarr/");
    run(place.segment(&[&slide], &slash).arg("--quiet")).ended(0);
    assert!(place.path("slash.ome.zarr.run").is_dir(), "the run's folder lies beside the store, not in it");
    for path in [&empty, &slash] {
        OmeZarr::open(path).unwrap();
    }
    // A path without a folder before it.
    let mut command = place.segment(&[Path::new("slide.png")], Path::new("relative.ome.zarr"));
    run(command.arg("--quiet").current_dir(place.folder.path())).ended(0);
    OmeZarr::open(place.path("relative.ome.zarr")).unwrap();
}

#[test]
fn several_slides_go_into_a_folder() {
    let place = Place::new();
    let (a, b, bad) = (place.slide("a.png"), place.slide("b.png"), place.file("bad.svs", "no slide"));
    let out = place.path("masks");
    let ran = run(place.segment(&[&a, &bad, &b], &out).arg("--quiet"));
    ran.refused(3, &["bad.svs"]);
    let names = |folder: &Path| {
        let mut names: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&out), ["a.ome.zarr", "a.ome.zarr.run", "b.ome.zarr", "b.ome.zarr.run"]);
    assert!(content(&out.join("a.ome.zarr")).len() > 5);
    OmeZarr::open(out.join("b.ome.zarr")).unwrap();

    // Again: the good ones are done, the bad one is bad.
    let ran = run(&mut place.segment(&[&a, &bad, &b], &out)).ended(3);
    assert_eq!(ran.stdout.matches("done already").count(), 2, "{ran:?}");
    // Without the bad one, all is well.
    run(place.segment(&[&a, &b], &out).arg("--quiet")).ended(0);

    let bad_too = place.file("bad-too.svs", "");
    let before = place.content();
    let ran = run(place.segment(&[&bad, &bad_too], &place.path("none")).arg("--quiet")).ended(4);
    assert_eq!(ran.stderr.lines().filter(|line| line.starts_with("error: ")).count(), 2, "{ran:?}");
    std::fs::create_dir(place.path("more")).unwrap();
    std::fs::copy(&a, place.path("more/a.jpg.png")).unwrap();
    std::fs::copy(&a, place.path("more/a.png")).unwrap();
    run(&mut place.segment(&[&a, &place.path("more/a.png")], &place.path("none")))
        .refused(2, &["a.png", "more", "a.ome.zarr"]);
    std::fs::remove_dir_all(place.path("more")).unwrap();
    run(&mut place.segment(&[&a, &b], &bad)).refused(2, &["bad.svs", "file"]);
    assert!(place.content() == before, "something was left behind");
}

#[test]
fn what_is_wrong_with_one_of_several_names_it() {
    let place = Place::new();
    let (a, b) = (place.slide("a.png"), place.slide("b.png"));
    let ran = run(place.segment(&[&a, &b], &place.path("masks")).args(["--memory", "20MiB", "--quiet"])).ended(4);
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("a.png") && lines[1].contains("b.png"), "{ran:?}");
}

#[test]
fn json_is_one_line_for_each_slide() {
    let place = Place::new();
    let (good, bad) = (place.slide("good.png"), place.file("bad.svs", "no slide"));
    let out = place.path("masks");
    let ran = run(place.segment(&[&good, &bad], &out).args(["--json", "--quiet", "--mpp", "0.5"])).ended(3);
    let lines: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    let done = &lines[0]["outcome"]["done"];
    assert!(lines[0]["slide"].as_str().unwrap().ends_with("good.png"));
    assert!(lines[0]["output"].as_str().unwrap().ends_with("good.ome.zarr"));
    assert_eq!(done["tiles"], serde_json::json!({ "grid": 6, "run": 6, "skipped": 0, "repeated": 0 }));
    assert_eq!(done["slide"], serde_json::json!({ "width": 300, "height": 200 }));
    assert_eq!((&done["geometry"]["target"]["mpp"]["x"], &done["model"]), (&0.5.into(), &"nuclei".into()));
    let area = &done["areas"][0];
    let mm2 = area["mm2"].as_f64().unwrap();
    assert!((mm2 - area["pixels"].as_f64().unwrap() * 0.25e-6).abs() < 1e-12 && mm2 > 0.0, "{area}");
    assert!(done["seconds"].as_f64().unwrap() > 0.0 && done["stages"]["inference"]["busy"].as_f64().unwrap() > 0.0);
    assert!(cfg!(not(target_os = "linux")) || done["peak_memory"]["anonymous"].as_u64().unwrap() > 1 << 20);
    assert_eq!(lines[1]["exit_code"], 4);
    assert!(lines[1]["slide"].as_str().unwrap().ends_with("bad.svs"));
    assert!(lines[1]["error"].as_str().unwrap().contains("no format"));
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");

    let again =
        run(place.segment(&[&good], &out.join("good.ome.zarr")).args(["--json", "--quiet", "--mpp", "0.5"])).ended(0);
    let line: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(line["outcome"], serde_json::json!({ "already_done": { "unreadable": 0 } }));
}

#[test]
fn quiet_says_nothing() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    for _ in 0..2 {
        let ran = run(place.segment(&[&slide], &place.path("mask.ome.zarr")).arg("--quiet")).ended(0);
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
    }
}

#[test]
fn verify_compares_with_the_journal() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let mask = place.path("mask.ome.zarr");
    run(place.segment(&[&slide], &mask).arg("--quiet")).ended(0);
    let verify = |flags: &[&str]| run(crate::microtome().arg("verify").arg(&mask).args(flags));
    assert!(verify(&[]).ended(0).stdout.contains("0 faulty"));
    let shard = mask.join("0/c/0/0");
    let mut bytes = std::fs::read(&shard).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let ran = verify(&[]).ended(3);
    assert!(ran.stdout.contains("level 0, shard column 0 row 0: the file has changed"), "{ran:?}");
    let json: Value = serde_json::from_str(&verify(&["--json"]).ended(3).stdout).unwrap();
    assert_eq!(json["faults"].as_array().unwrap().len(), 1);
    run(crate::microtome().arg("verify").arg(&slide)).refused(2, &["slide.png"]);
    run(crate::microtome().arg("verify").arg(place.path("none"))).refused(2, &["none"]);
}

/// `microtome segment` where a mask has the label 1.
fn within(slide: &Path, mask: &Path, output: &Path) -> std::process::Command {
    let mut command = microtome();
    command.arg("segment").arg(slide).arg("-m").arg(repository("tests/models/nnunet-nuclei")).arg("-o").arg(output);
    command.args(["--model-mpp", "native", "--no-tta", "--step-size", "1", "--roi-value", "1", "--roi"]).arg(mask);
    command
}

/// With `--overwrite`, room is made before anything is read.
#[test]
fn what_is_read_is_not_overwritten() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let (image, mask) = (place.path("image.ome.zarr"), place.path("mask.ome.zarr"));
    run(microtome().arg("convert").arg(&slide).arg(&image)).ended(0);
    run(&mut place.segment(&[&slide], &mask)).ended(0);
    #[cfg(unix)]
    std::os::unix::fs::symlink(&image, place.path("link.ome.zarr")).unwrap();
    let before = place.content();
    let words = ["the output would take the place of"];
    run(microtome().arg("convert").args([&image, &image]).arg("--overwrite")).refused(2, &words);
    run(place.segment(&[&image], &image).arg("--overwrite")).refused(2, &words);
    run(within(&slide, &mask, &mask).arg("--overwrite")).refused(2, &words);
    let postprocess = || {
        let mut command = microtome();
        command.arg("postprocess").arg(&mask).args(["--keep-largest", "1"]);
        command
    };
    run(postprocess().arg("-o").arg(&mask).arg("--overwrite")).refused(2, &words);
    #[cfg(unix)]
    run(place.segment(&[&place.path("link.ome.zarr")], &image).arg("--overwrite")).refused(2, &words);
    // A mask is no archive, whatever it is called.
    run(postprocess().arg("-o").arg(place.path("a.ome.zarr.zip"))).refused(2, &["a.ome.zarr.zip", "convert"]);
    run(&mut place.segment(&[&slide], &place.path("a.zip"))).refused(2, &["a.zip", "convert"]);
    assert!(place.content() == before);
}

/// Linux' file systems take any bytes for a name, and JSON does not.
#[cfg(target_os = "linux")]
#[test]
fn a_name_that_is_no_unicode_is_no_reason_to_fail() {
    use std::os::unix::ffi::OsStrExt;

    let place = Place::new();
    let named = |bytes: &[u8]| place.folder.path().join(std::ffi::OsStr::from_bytes(bytes));
    let slide = named(b"sl\xffide.png");
    std::fs::rename(place.slide("slide.png"), &slide).unwrap();
    let (image, mask) = (named(b"im\xffage.ome.zarr"), named(b"ma\xffsk.ome.zarr"));
    let said = |ran: Ran| serde_json::from_str::<serde_json::Value>(&ran.ended(0).stdout).unwrap();
    let json = said(run(microtome().arg("convert").args([&slide, &image]).arg("--json")));
    assert!(json["output"].as_str().unwrap().ends_with("im\u{fffd}age.ome.zarr"), "{json}");
    said(run(place.segment(&[&slide], &mask).arg("--json")));
    said(run(microtome().arg("validate").arg(&image).arg("--json")));
    said(run(microtome().arg("info").arg(&image).arg("--json")));
    said(run(microtome().arg("info").arg(&slide).arg("--json")));
    let kept = named(b"ke\xffpt.ome.zarr");
    said(run(microtome().arg("postprocess").arg(&mask).arg("-o").arg(&kept).args(["--keep-largest", "1", "--json"])));
    let roi = named(b"again\xff.ome.zarr");
    said(run(within(&slide, &mask, &roi).arg("--json")));
}
