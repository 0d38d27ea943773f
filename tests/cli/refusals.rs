//! Bad input: one line that names the file and the cause, the right exit code, and nothing left behind.

use std::path::{Path, PathBuf};

use microtome_testkit::tiff::{Compression, TiffSlide};
use microtome_testkit::{Weights, small_package};

use crate::{Place, microtome, repository, run};

/// Segmenting this slide must be refused, and leave everything as it was.
#[track_caller]
fn refused(place: &Place, slide: &Path, code: i32, words: &[&str]) {
    let before = place.content();
    let name = slide.display().to_string();
    run(place.segment(&[slide], &place.path("mask.ome.zarr")).arg("--quiet"))
        .refused(code, &[&[&*name], words].concat());
    assert!(place.content() == before, "{name}: something was left behind");
}

/// A small Aperio slide of JPEG tiles.
fn svs() -> Vec<u8> {
    let mut slide = TiffSlide::rgb(&[(500, 400), (125, 100)], |level, x, y, channel| {
        (100 + (x * 7 + y * 3 + 40 * channel as u64 + level as u64) % 100) as u16
    });
    slide.compression = Compression::Jpeg(80);
    slide.description =
        Some("Aperio Image Library v11.2.1 500x400 [0,0 500x400] (64x64) JPEG/RGB Q=80|AppMag = 20|MPP = 0.5".into());
    slide.bytes()
}

#[test]
fn what_is_no_slide() {
    let place = Place::new();
    let missing = place.path("missing.svs");
    refused(&place, &missing, 4, &["No such file"]);
    refused(&place, &place.file("empty.svs", ""), 4, &["empty"]);
    let folder = place.path("folder.svs");
    std::fs::create_dir(&folder).unwrap();
    refused(&place, &folder, 4, &["folder"]);
    refused(&place, &place.file("text.svs", "The slide was sent by mail.\n"), 4, &["no format"]);
    let jpeg = std::fs::read(place.slide("picture.jpg")).unwrap();
    refused(&place, &place.file("jpeg.svs", jpeg), 4, &["JPEG"]);
    refused(&place, &place.file("scan.mrxs", "x"), 4, &["MIRAX"]);
    refused(&place, &place.file("page.svs", "<!DOCTYPE html><html>404</html>"), 4, &["web page"]);
    let png = std::fs::read(place.slide("picture.png")).unwrap();
    refused(&place, &place.file("half.png", &png[..png.len() / 2]), 4, &[]);
    #[cfg(unix)]
    {
        let link = place.path("link.svs");
        std::os::unix::fs::symlink("nowhere.svs", &link).unwrap();
        refused(&place, &link, 4, &["No such file"]);
    }
}

#[test]
fn statistics_that_are_none() {
    let place = Place::new();
    let (slide, mask) = (place.slide("slide.png"), place.path("mask.ome.zarr"));
    let refused = |stats: &Path, words: &[&str]| {
        let before = place.content();
        run(place.segment(&[&slide], &mask).arg("--quiet").arg("--norm-stats").arg(stats)).refused(2, words);
        assert!(place.content() == before, "{}: something was left behind", stats.display());
    };
    refused(Path::new("tissue"), &["--tissue none"]);
    refused(&place.path("none.json"), &["none.json", "No such file"]);
    refused(&place.file("text.json", "mean 214"), &["text.json", "no JSON"]);
    let one = r#"{"channels": [{"mean": 214, "std": 30, "min": 3, "max": 243}]}"#;
    refused(&place.file("one.json", one), &["1 channel", "3"]);
    refused(&place.file("wrong.json", one.replace("30", "-30")), &["wrong.json", "channel 0"]);
}

#[test]
fn a_slide_that_is_cut_off() {
    let place = Place::new();
    let svs = svs();
    let whole = place.file("whole.svs", &svs);
    let mask = place.path("whole.ome.zarr");
    run(place.segment(&[&whole], &mask).arg("--quiet")).ended(0);
    for length in (0..16).map(|i| svs.len() * i / 16).chain([1, 3, 7, 8, 9, svs.len() - 1]) {
        let cut = place.file(&format!("cut-{length}.svs"), &svs[..length]);
        refused(&place, &cut, 4, &[]);
    }
}

#[test]
fn a_real_slide_that_is_cut_off() {
    let Some(path) = microtome_testkit::assets::cmu_small_region() else { return };
    let place = Place::new();
    let svs = std::fs::read(path).unwrap();
    for percent in [1, 30, 60, 90] {
        let cut = place.file(&format!("cut-{percent}.svs"), &svs[..svs.len() * percent / 100]);
        refused(&place, &cut, 4, &[]);
    }
}

#[test]
fn slides_that_are_known_to_be_broken() {
    let Some(folder) = microtome_testkit::data("slides/broken") else { return };
    let place = Place::new();
    for (name, words) in
        [("unreadable.svs", &["level 0", "column 0 row 0"][..]), ("unopenable.tiff", &["compression", "52479"])]
    {
        let copy = place.file(name, std::fs::read(folder.join(name)).unwrap());
        refused(&place, &copy, 4, words);
    }
}

#[test]
fn a_slide_whose_tiles_are_damaged() {
    let place = Place::new();
    let mut bytes = svs();
    // The first tile begins behind the header of 8 bytes; its scan is overwritten.
    bytes[300..1200].fill(0xff);
    refused(&place, &place.file("damaged.svs", bytes), 4, &["level 0", "column 0 row 0"]);
}

#[test]
fn channels_that_the_model_does_not_have() {
    let place = Place::new();
    let mut grey = TiffSlide::rgb(&[(200, 150)], |_, x, y, _| (x + y) as u16 % 256);
    (grey.channels, grey.photometric) = (1, 1);
    refused(&place, &place.file("grey.tif", grey.bytes()), 2, &["1 channel of 8 bits", "wants 3"]);
}

#[test]
fn a_resolution_that_nobody_knows() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let before = place.content();
    let segment = |arguments: &[&str]| {
        let mut command = microtome();
        command.arg("segment").arg(&slide).arg("-m").arg(repository("tests/models/nnunet-nuclei"));
        run(command.arg("-o").arg(place.path("mask.ome.zarr")).args(arguments).arg("--quiet"))
    };
    segment(&[]).refused(2, &["slide.png", "resolution", "--mpp"]);
    segment(&["--mpp", "2"]).refused(2, &["slide.png", "enlarged 4.00 times"]);
    for wrong in ["0", "-1", "nan", "inf", "1e9"] {
        segment(&[&format!("--mpp={wrong}")]).refused(2, &["not plausible"]);
        segment(&[&format!("--mpp={wrong}"), "--model-mpp", "native"]).refused(2, &["not plausible"]);
    }
    assert!(place.content() == before);
}

#[test]
fn too_little_memory() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let before = place.content();
    let mask = place.path("mask.ome.zarr");
    run(place.segment(&[&slide], &mask).args(["--memory", "20MiB", "--quiet"]))
        .refused(6, &["slide.png", "20.00 MiB", "--memory"]);
    run(place.segment(&[&slide], &mask).args(["--batch", "99999999999999", "--quiet"])).refused(2, &["batch"]);
    run(place.segment(&[&slide], &mask).args(["--batch", "0", "--quiet"])).refused(2, &["batch"]);
    run(place.segment(&[&slide], &mask).args(["--threads", "0", "--quiet"])).refused(2, &["thread"]);
    assert!(place.content() == before);
}

/// `segment` with a model that is none.
#[track_caller]
fn model_refused(place: &Place, model: &Path, words: &[&str]) {
    let slide = place.slide("slide.png");
    let before = place.content();
    let name = model.display().to_string();
    let words = [&[&*name], words].concat();
    let mut command = microtome();
    command.arg("segment").arg(&slide).arg("-m").arg(model).arg("-o").arg(place.path("mask.ome.zarr"));
    run(command.args(["--model-mpp", "native", "--quiet"])).refused(2, &words);
    run(microtome().args(["model", "info"]).arg(model)).refused(2, &words);
    run(microtome().args(["model", "import"]).arg(model).arg(place.path("package"))).refused(2, &words);
    // Several slides want a folder to be made: not before the model is known to be one.
    let mut command = microtome();
    command.arg("segment").args([&slide, &place.path("b.png")]).arg("-m").arg(model).arg("-o").arg(place.path("masks"));
    run(&mut command).refused(2, &words);
    assert!(place.content() == before, "{name}: something was left behind");
}

#[test]
fn what_is_no_model() {
    let place = Place::new();
    let folder = |name: &str, files: &[(&str, &[u8])]| -> PathBuf {
        let folder = place.path(name);
        for (file, content) in files {
            let path = folder.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        std::fs::create_dir_all(&folder).unwrap();
        folder
    };
    model_refused(&place, &place.path("missing"), &["No such file"]);
    model_refused(&place, &place.file("model.zip", "PK\x03\x04"), &["ZIP archive is truncated"]);
    model_refused(&place, &folder("empty", &[]), &[]);
    let dataset =
        br#"{"channel_names":{"0":"R"},"labels":{"background":0,"a":1},"numTraining":1,"file_ending":".png"}"#;
    model_refused(
        &place,
        &folder("no-plans", &[("dataset.json", dataset), ("fold_0/checkpoint_final.pth", b"x")]),
        &["plans.json"],
    );
    model_refused(
        &place,
        &folder("torn", &[("dataset.json", dataset), ("plans.json", b"{\"plans_name\": ")]),
        &["plans.json"],
    );
    model_refused(&place, &folder("binary", &[("dataset.json", b"\xff\xfe\0"), ("plans.json", b"\xff\xfe\0")]), &[]);
    model_refused(&place, &folder("toml", &[("model.toml", b"format_version = 99\n")]), &["model.toml", "99"]);
    model_refused(&place, &folder("toml-2", &[("model.toml", b"= nonsense")]), &["model.toml"]);
    let manifest = std::fs::read(repository("tests/models/nnunet-nuclei/model.toml")).unwrap();
    model_refused(&place, &folder("no-weights", &[("model.toml", &manifest)]), &["weights.safetensors"]);
    let other =
        folder("other-weights", &[("model.toml", &manifest), ("weights.safetensors", b"\x08\0\0\0\0\0\0\0{}      ")]);
    model_refused(&place, &other, &["weights.safetensors"]);
}

#[test]
fn a_checkpoint_that_is_damaged() {
    let Some(nnunet) = microtome_testkit::data("models/nnunet-v2-plain/Dataset501_DSBStained") else { return };
    let nnunet = nnunet.join("nnUNetTrainer_10epochs__tinyPlans__2d");
    let place = Place::new();
    let model = place.path("model");
    std::fs::create_dir_all(model.join("fold_all")).unwrap();
    for name in ["plans.json", "dataset.json"] {
        std::fs::copy(nnunet.join(name), model.join(name)).unwrap();
    }
    let checkpoint = std::fs::read(nnunet.join("fold_all/checkpoint_final.pth")).unwrap();
    model_refused(&place, &model, &["checkpoint_final.pth"]);
    for length in [0, 100, checkpoint.len() / 2, checkpoint.len() - 1] {
        std::fs::write(model.join("fold_all/checkpoint_final.pth"), &checkpoint[..length]).unwrap();
        model_refused(&place, &model, &["checkpoint_final.pth"]);
    }
}

#[test]
fn a_precision_that_the_cpu_has_no_instructions_for() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let mask = place.path("mask.ome.zarr");
    let with = |precision: &str, flags: &[&str]| {
        let mut command = place.segment(&[&slide], &mask);
        command.args(["--device", "cpu", "--precision", precision]).args(flags).env("MICROTOME_ISA", "portable");
        run(&mut command)
    };
    with("f16", &[]).refused(2, &["f16", "GPU"]);
    assert!(!mask.exists());
    let notes = |ran: &crate::Ran| ran.stderr.lines().filter(|line| line.starts_with("note: ")).count();
    let ran = with("bf16", &[]).ended(0);
    assert!(notes(&ran) == 1 && ran.stderr.contains("f32 is both faster"), "{ran:?}");
    let ran = with("bf16", &["--overwrite", "--no-resume", "--quiet"]).ended(0);
    assert_eq!(notes(&ran), 0, "{ran:?}");
    // Another precision is another run.
    with("f32", &[]).ended(5);
}

#[test]
fn words_that_it_does_not_know() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let mask = place.path("mask.ome.zarr");
    for flags in [
        &["--frobnicate"][..],
        &["--memory", "lots"],
        &["--batch", "-1"],
        &["--model-mpp", "fine"],
        &["--device", "abacus"],
        &["--folds", "a,b"],
        &["--tissue", "some"],
        &["--precision", "f64"],
        &["--window", "door"],
        &["--accumulate", "f64"],
    ] {
        let ran = run(place.segment(&[&slide], &mask).args(flags)).ended(2);
        assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains(flags[0]), "{ran:?}");
    }
    run(place.segment(&[&slide], &mask).args(["--step-size", "2", "--quiet"])).refused(2, &["step"]);
    run(place.segment(&[&slide], &mask).args(["--exact", "--precision", "bf16"])).refused(2, &["--exact"]);
    let flags = ["--accumulate", "f16-nnunet", "--window", "gaussian-monai"];
    run(place.segment(&[&slide], &mask).args(flags)).refused(2, &["--accumulate", "--window"]);
    run(&mut microtome()).ended(2);
    run(microtome().arg("segment")).ended(2);
    assert!(!mask.exists());
    let help = run(microtome().arg("--help")).ended(0);
    assert!(help.stdout.contains("segment") && help.stderr.is_empty());
    let version = run(microtome().arg("--version")).ended(0);
    assert!(version.stdout.contains(env!("CARGO_PKG_VERSION")));
}

#[cfg(unix)]
mod permissions {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    use std::os::unix::process::CommandExt;
    use std::path::Path;
    use std::process::Command;

    use crate::{Place, repository, run};

    /// Somebody who may not do everything.
    const NOBODY: u32 = 65534;

    fn allow(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// `microtome segment` as somebody whom permissions bind. Root becomes nobody, with copies of what nobody may not reach.
    fn segment(place: &Place, slide: &Path, output: &Path) -> Command {
        let root = std::fs::metadata(slide).unwrap().uid() == 0;
        if !root {
            let mut command = place.segment(&[slide], output);
            command.arg("--quiet");
            return command;
        }
        allow(place.folder.path(), 0o777);
        let (program, model) = (place.path("microtome"), place.path("model"));
        std::fs::copy(env!("CARGO_BIN_EXE_microtome"), &program).unwrap();
        std::fs::create_dir_all(&model).unwrap();
        for name in ["model.toml", "weights.safetensors"] {
            std::fs::copy(repository("tests/models/nnunet-nuclei").join(name), model.join(name)).unwrap();
        }
        std::fs::create_dir_all(model.join("test")).unwrap();
        for name in ["input.png", "logits.safetensors", "mask.png"] {
            std::fs::copy(repository("tests/models/nnunet-nuclei/test").join(name), model.join("test").join(name))
                .unwrap();
        }
        let mut command = Command::new(program);
        command.arg("segment").arg(slide).arg("-m").arg(model).arg("-o").arg(output);
        command.args(["--model-mpp", "native", "--no-tta", "--tissue", "none", "--quiet"]);
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
        command
    }

    #[test]
    fn a_slide_that_may_not_be_read() {
        let place = Place::new();
        let slide = place.slide("slide.png");
        allow(&slide, 0o000);
        let mut command = segment(&place, &slide, &place.path("mask.ome.zarr"));
        let before = place.content();
        run(&mut command).refused(4, &["slide.png", "Permission denied"]);
        assert!(place.content() == before);
        allow(&slide, 0o600);
    }

    #[test]
    fn a_folder_that_may_not_be_written() {
        let place = Place::new();
        let slide = place.slide("slide.png");
        allow(&slide, 0o644);
        let folder = place.path("read-only");
        std::fs::create_dir(&folder).unwrap();
        allow(&folder, 0o555);
        let mut command = segment(&place, &slide, &folder.join("mask.ome.zarr"));
        let before = place.content();
        run(&mut command).refused(4, &["mask.ome.zarr", "Permission denied"]);
        assert!(place.content() == before);
        // An empty folder that is somebody else's is no better.
        let taken = place.path("taken.ome.zarr");
        std::fs::create_dir(&taken).unwrap();
        allow(&taken, 0o755);
        if std::fs::metadata(&taken).unwrap().uid() == 0 {
            chown(&taken, Some(0), Some(0)).unwrap();
            run(&mut segment(&place, &slide, &taken)).refused(4, &["taken.ome.zarr", "Permission denied"]);
            assert_eq!(std::fs::read_dir(&taken).unwrap().count(), 0);
        }
        allow(&folder, 0o755);
    }
}

/// nnU-Net refuses values above 255, too.
#[test]
fn a_slide_of_16_bits_for_a_model_of_8() {
    let place = Place::new();
    let model = place.path("model");
    small_package(&model, Weights::Plain);
    let segment = |slide: &Path, output: &str| {
        let mut command = microtome();
        command.arg("segment").arg(slide).arg("-m").arg(&model).arg("-o").arg(place.path(output));
        command.args(["--model-mpp", "native", "--tissue", "none", "--quiet"]);
        run(&mut command)
    };
    let mut slide = TiffSlide::rgb(&[(60, 50)], |_, x, y, channel| (x * 7 + y * 3 + channel as u64) as u16);
    segment(&place.file("8.tif", slide.bytes()), "8.ome.zarr").ended(0);
    slide.bits = 16;
    segment(&place.file("16.tif", slide.bytes()), "16.ome.zarr").refused(2, &["16.tif", "16 bits", "small"]);
}
