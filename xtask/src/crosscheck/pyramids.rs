//! What `convert` and `preview` write, beside zarr-python, ome-zarr-models, ome-zarr-py, tifffile and OpenSlide.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::shell;
use crate::skips::SkipLog;
use crate::venv::Venv;
use crate::workspace::{Profile, Workspace};

/// A run of the program, and what the check is told of it. Both as one would type them.
struct Case {
    /// The file that is written.
    out: &'static str,
    /// One of [`Slides`], or a path under the folder of real files.
    slide: &'static str,
    flags: &'static str,
    check: &'static str,
}

const fn case(out: &'static str, slide: &'static str, flags: &'static str, check: &'static str) -> Case {
    Case { out, slide, flags, check }
}

/// Conversions of slides that the repository and the package registries give.
/// Tolerances are those of docs/formats.md: 1 for JPEG of RGB, 5 for YCbCr with chroma at half the resolution.
const CONVERSIONS: [Case; 16] = [
    case("default.ome.zarr", "copy.tif", "", "--expect-mpp 0.499"),
    case(
        "old.ome.zarr",
        "copy.tif",
        "--format 0.4 --compression blosc --chunk 256",
        "--format 0.4 --chunk 256 --expect-mpp 0.499",
    ),
    case("default.ome.zarr.zip", "copy.tif", "", "--expect-mpp 0.499"),
    case("old.ome.zarr.zip", "copy.tif", "--format 0.4", "--format 0.4 --expect-mpp 0.499"),
    case("part.ome.zarr", "copy.tif", "--rect 301,77,1111,999 --mpp 0.25", "--rect 301,77,1111,999 --expect-mpp 0.25"),
    case(
        "channels.ome.zarr",
        "channels.ome.tif",
        "--chunk 128 --shard 256 --compression gzip:6",
        "--chunk 128 --shard 256 --expect-mpp 0.325 --channels DAPI,CD3,CD8,PanCK --colors 0000FF,00FF00,FF0000,FFFFFF --prove",
    ),
    case(
        "channels-old.ome.zarr",
        "channels.ome.tif",
        "--chunk 128 --format 0.4 --compression none",
        "--chunk 128 --format 0.4 --expect-mpp 0.325 --channels DAPI,CD3,CD8,PanCK --colors 0000FF,00FF00,FF0000,FFFFFF --prove",
    ),
    case(
        "highest.ome.zarr",
        "channels.ome.tif",
        "--reduction max --levels 4 --compression zstd:9",
        "--reduction max --levels 4 --expect-mpp 0.325",
    ),
    case("nearest.ome.zarr", "channels.ome.tif", "--reduction nearest", "--reduction nearest --expect-mpp 0.325"),
    case("mode.ome.zarr", "channels.ome.tif", "--reduction mode", "--reduction mode --expect-mpp 0.325"),
    case("planes.ome.zarr", "planes.ome.zarr", "", "--expect-mpp 0.65,0.6"),
    case("profile.ome.zarr", "profile.tif", "", "--profile profile.tif"),
    case("demo.ome.zarr", "demo", "", "--expect-mpp 0.499 --pictures macro,thumbnail"),
    case(
        "label.ome.zarr",
        "demo",
        "--label-image --format 0.4",
        "--format 0.4 --expect-mpp 0.499 --pictures label,macro,thumbnail",
    ),
    case("source.ome.zarr", "levels.svs", "--levels source", "--levels-source --expect-mpp 0.25"),
    case(
        "level.ome.zarr",
        "levels.svs",
        "--level 1 --rect 101,53,777,555",
        "--level 1 --rect 101,53,777,555 --expect-mpp 0.25",
    ),
];

/// Conversions of real files, which lose nothing: a fluorescent NDPI, stores of other programs, 16 bits in tiles and strips, one channel.
const REAL: [Case; 7] = [
    case("ndpi.ome.zarr", "slides/ndpi/test3-DAPI-2-387.ndpi", "--no-associated", "--expect-mpp 0.2281750559028887"),
    case("xyc.ome.zarr", "zarr/ome-zarr-fiji-java/3d_testing/xyc/3d_dataset_v4.ome.zarr", "", ""),
    case(
        "xyc-old.ome.zarr",
        "zarr/ome-zarr-fiji-java/3d_testing/xyc/3d_dataset_v5.ome.zarr",
        "--format 0.4",
        "--format 0.4",
    ),
    case("two.ome.zarr", "zarr/ome-zarr-py/v2", "", ""),
    case("sixteen.ome.zarr", "tiff/large_image/rgb_geotiff.tiff", "", ""),
    case("strips.ome.zarr", "tiff/libvips/sample.tif", "--format 0.4", "--format 0.4"),
    case("channel.ome.zarr", "slides/ome-tiff/viv/Channel_1.tif", "--chunk 64 --shard 128", "--chunk 64 --shard 128"),
];

/// DeepZoom of slides that OpenSlide reads.
const DEEPZOOMS: [Case; 7] = [
    case("png.dzi", "copy.tif", "--tile-format png", "--tile-format png"),
    case("webp.dzi", "profile.tif", "--tile-format webp --tile-size 100", "--tile-format webp --tile-size 100"),
    case("small.dzi", "profile.tif", "--tile-format png --tile-size 61", "--tile-format png --tile-size 61 --prove"),
    case("jpg.dzi", "copy.tif", "", "--prove"),
    case(
        "full.dzi",
        "copy.tif",
        "--tile-size 256 --overlap-pixels 0 --quality 75 --subsampling 4:4:4",
        "--tile-size 256 --overlap 0 --quality 75 --subsampling 4:4:4",
    ),
    case(
        "copied-rgb.dzi",
        "demo",
        "--tile-size 240 --overlap-pixels 0 --copy-tiles",
        "--tile-size 240 --overlap 0 --copied",
    ),
    case(
        "copied.dzi",
        "levels.svs",
        "--tile-size 256 --overlap-pixels 0 --copy-tiles",
        "--tile-size 256 --overlap 0 --copied",
    ),
];

/// The slides by the names that cases call them.
struct Slides {
    /// Those that scripts write.
    folder: PathBuf,
    demo: PathBuf,
}

impl Slides {
    fn write(workspace: &Workspace, venv: &Venv, folder: PathBuf) -> Result<Self> {
        let demo = workspace.demo_slide()?;
        shell::run(venv.script(workspace, "pyramid_slides.py").arg(&folder))?;
        shell::run(venv.script(workspace, "lossless_copy.py").arg(&demo).arg(folder.join("copy.tif")))?;
        let mut levels = venv.script(workspace, "big_slide.py");
        shell::run(levels.arg(folder.join("levels.svs")).arg(&demo).args(["4096x3072", "--distinct"]))?;
        Ok(Self { folder, demo })
    }

    fn path(&self, name: &str) -> PathBuf {
        if name == "demo" { self.demo.clone() } else { self.folder.join(name) }
    }
}

pub(super) fn run(workspace: &Workspace, venv: &Venv, skips: &SkipLog, work: &Path) -> Result<()> {
    let slides = Slides::write(workspace, venv, work.join("slides"))?;
    let check = |command: &str, script: &str, case: &Case, slide: &Path| -> Result<()> {
        let out = work.join(case.out);
        let mut program = Command::new(workspace.binary(Profile::Dev));
        program.arg(command).arg(slide).arg(&out).args(case.flags.split_whitespace());
        shell::run(program.arg("--quiet"))?;
        let mut python = venv.script(workspace, script);
        // Paths in a check's arguments are those of the slides.
        shell::run(python.current_dir(&slides.folder).arg(&out).arg(slide).args(case.check.split_whitespace()))
    };
    for case in &CONVERSIONS {
        check("convert", "check_convert.py", case, &slides.path(case.slide))?;
    }
    for case in &DEEPZOOMS {
        check("preview", "check_deepzoom.py", case, &slides.path(case.slide))?;
    }
    let Some(data) = workspace.data() else {
        return skips.skip("conversions of real files", "the folder of real files is absent");
    };
    for case in &REAL {
        check("convert", "check_convert.py", case, &data.join(case.slide))?;
    }
    Ok(())
}
