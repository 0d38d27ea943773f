//! `cargo xtask bench pyramid`: how fast pyramids are made of a slide, and in how much memory, beside libvips and zarr-python.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::child::{Run, Spread, alternate};
use super::report::{Relation, Report, Table, mebibytes};
use super::slide::{Slide, Tiles};
use super::{Bench, Extent, child};

const TITLE: &str = "\
Pyramids of a slide: ours beside libvips (pyvips), zarr-python and ome-zarr-py, whole processes in one run.

Each makes every level of level 0, which it decodes; nobody reads the slide's own coarser levels or copies a stored tile, but for the row that
says so. DeepZoom: the same tile size, overlap, JPEG quality and chroma subsampling, down to one pixel.
Pyramids: ours is OME-Zarr, lossless (zstd level 1); libvips' a TIFF of JPEG tiles as large as our chunks, of the quality of the DeepZoom, with
chroma at half the resolution; both end with the first level that fits into a chunk. zarr-python writes the same OME-Zarr with numpy, by
`tests/python/bench_zarr.py`; ome-zarr-py by its `write_image`, of which dask decides the memory. Ours brings its files to the disk before it ends; the others
leave that to the system. Before each run the disk is idle (`sync`) and the slide is in the page cache. libvips has no program in its Python package, so Python
and its import are part of it: the row `opening alone` says what they cost.
Contenders take turns, once in each round. Mpx/s are those of level 0 by the median time; `libvips` is how many times its rate that is. Peaks are the
highest of all rounds: anonymous memory plus dirty file pages of the process and its children, sampled from outside every 10 ms; RSS includes pages of
mapped files.";

const ROUNDS: usize = 5;
const QUICK_ROUNDS: usize = 2;
/// Widths of the slide that is timed, four to three, and of the one for memory, five to four.
const WIDTHS: [u64; 2] = [20_000, 100_000];
const QUICK_WIDTHS: [u64; 2] = [20_000, 40_000];

/// JPEG quality of all that is JPEG: below 90, where libvips halves the chroma of a TIFF.
const QUALITY: u8 = 85;
/// Tiles of a DeepZoom, and pixels that they share with each neighbour: the defaults of libvips and of ours.
const TILE: (u64, u64) = (254, 1);
/// Tiles that lie as those of the slide, so that they can be copied.
const COPIED_TILE: (u64, u64) = (256, 0);
/// Chunks of OME-Zarr and tiles of TIFF.
const CHUNK: u64 = 512;
const SHARD: u64 = 1024;

/// What the rate should come to, of libvips'.
const DEEPZOOM_RATE: f64 = 1.5;
const CONVERT_RATE: f64 = 1.0;
/// What the peak of the wide slide should come to, of that of the narrow one.
const GROWTH: f64 = 1.1;
/// What the peak of the wide slide should come to, of libvips' on the narrow one.
const BESIDE_NARROW: f64 = 1.5;

/// Who makes what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contender {
    DeepZoom,
    CopiedDeepZoom,
    VipsDeepZoom,
    OmeZarr,
    VipsTiff,
    ZarrPython,
    OmeZarrPy,
    VipsOpen,
}

impl Contender {
    const ALL: [Self; 8] = [
        Self::DeepZoom,
        Self::VipsDeepZoom,
        Self::OmeZarr,
        Self::VipsTiff,
        Self::CopiedDeepZoom,
        Self::ZarrPython,
        Self::OmeZarrPy,
        Self::VipsOpen,
    ];
    /// Ours, and what of libvips' it is compared with.
    const PAIRS: [(Self, Self); 2] = [(Self::DeepZoom, Self::VipsDeepZoom), (Self::OmeZarr, Self::VipsTiff)];

    fn name(self) -> &'static str {
        match self {
            Self::DeepZoom => "ours, DeepZoom",
            Self::CopiedDeepZoom => "ours, DeepZoom, stored tiles copied",
            Self::VipsDeepZoom => "libvips, DeepZoom",
            Self::OmeZarr => "ours, OME-Zarr",
            Self::VipsTiff => "libvips, TIFF",
            Self::ZarrPython => "zarr-python, OME-Zarr",
            Self::OmeZarrPy => "ome-zarr-py, OME-Zarr",
            Self::VipsOpen => "libvips, opening alone",
        }
    }

    /// What it writes, named as its program wants it.
    fn output(self, folder: &Path) -> PathBuf {
        folder.join(match self {
            Self::DeepZoom | Self::CopiedDeepZoom => "pyramid.dzi",
            Self::VipsDeepZoom => "pyramid",
            Self::VipsTiff => "pyramid.tif",
            Self::OmeZarr | Self::ZarrPython | Self::OmeZarrPy | Self::VipsOpen => "pyramid.ome.zarr",
        })
    }

    fn command(self, bench: &Bench<'_>, slide: &Slide) -> Result<Command> {
        let (slide_path, out) = (&slide.path, self.output(&bench.outputs()?));
        let numbers = |numbers: &[u64]| numbers.iter().map(u64::to_string).collect::<Vec<_>>();
        let deepzoom = |(tile, overlap): (u64, u64)| {
            let mut command = bench.microtome("preview");
            command.arg(slide_path).arg(&out).arg("--tile-size").arg(tile.to_string());
            command.arg("--overlap-pixels").arg(overlap.to_string()).args(["--tile-format", "jpg", "--quality"]);
            command.arg(QUALITY.to_string()).args(["--subsampling", "4:2:0"]);
            command
        };
        let vips = |what: &str| -> Result<Command> {
            let mut command = bench.script("bench_vips.py")?;
            command.env("VIPS_CONCURRENCY", bench.threads()).arg(what).arg(slide_path);
            Ok(command)
        };
        let python = |script: &str| -> Result<Command> {
            let mut command = bench.script(script)?;
            command.arg(slide_path).arg(&out);
            command.args(numbers(&[CHUNK, SHARD, levels(slide) as u64])).arg(bench.threads());
            Ok(command)
        };
        Ok(match self {
            Self::DeepZoom => deepzoom(TILE),
            Self::CopiedDeepZoom => {
                let mut command = deepzoom(COPIED_TILE);
                command.arg("--copy-tiles");
                command
            }
            Self::VipsDeepZoom => {
                let mut command = vips("dz")?;
                command.arg(&out).args(numbers(&[QUALITY.into(), TILE.0, TILE.1]));
                command
            }
            Self::OmeZarr => {
                let mut command = bench.microtome("convert");
                command.arg(slide_path).arg(&out).arg("--json");
                command.args(["--chunk", &CHUNK.to_string(), "--shard", &SHARD.to_string()]);
                command
            }
            Self::VipsTiff => {
                let mut command = vips("tiff")?;
                command.arg(&out).args(numbers(&[QUALITY.into(), CHUNK]));
                command
            }
            Self::ZarrPython => python("bench_zarr.py")?,
            Self::OmeZarrPy => python("bench_ome_zarr.py")?,
            Self::VipsOpen => vips("open")?,
        })
    }
}

/// Levels of a pyramid that ends with the first one that fits into a chunk.
fn levels(slide: &Slide) -> usize {
    std::iter::successors(Some(slide.width.max(slide.height)), |side| Some(side.div_ceil(2)))
        .take_while(|&side| side > CHUNK)
        .count()
        + 1
}

/// What a run left on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Made {
    files: u64,
    /// Those of them that are tiles of a DeepZoom.
    tiles: u64,
    bytes: u64,
    levels: usize,
}

impl Made {
    /// Counts all below a folder, and the levels of what the contender made there.
    fn count(contender: Contender, folder: &Path, run: &Run) -> Result<Self> {
        let mut made = Self::default();
        made.add(folder)?;
        let out = contender.output(folder);
        made.levels = match contender {
            Contender::DeepZoom | Contender::CopiedDeepZoom => fs::read_dir(folder.join("pyramid_files"))?.count(),
            Contender::VipsDeepZoom | Contender::VipsTiff | Contender::VipsOpen => {
                run.summary()?["levels"].as_u64().context("bench_vips.py says no levels")? as usize
            }
            Contender::OmeZarr | Contender::ZarrPython | Contender::OmeZarrPy => {
                let levels = &metadata(&out)?["attributes"]["ome"]["multiscales"][0]["datasets"];
                let level = metadata(&out.join(levels[0]["path"].as_str().context("a store without levels")?))?;
                let side = |pieces: &Value| pieces.as_array().and_then(|sides| sides.last()?.as_u64());
                let shard = side(&level["chunk_grid"]["configuration"]["chunk_shape"]);
                let chunk = side(&level["codecs"][0]["configuration"]["chunk_shape"]);
                ensure!(
                    (chunk, shard) == (Some(CHUNK), Some(SHARD)),
                    "{}: chunks of {chunk:?} and shards of {shard:?}",
                    contender.name()
                );
                levels.as_array().context("a store without levels")?.len()
            }
        };
        Ok(made)
    }

    fn add(&mut self, folder: &Path) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let about = entry.metadata()?;
            if about.is_dir() {
                self.add(&entry.path())?;
            } else {
                self.files += 1;
                self.tiles += u64::from(entry.path().extension().is_some_and(|ending| ending == "jpg"));
                self.bytes += about.len();
            }
        }
        Ok(())
    }
}

/// The `zarr.json` of a group or an array.
fn metadata(node: &Path) -> Result<Value> {
    let path = node.join("zarr.json");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// The runs of a contender, and what each left.
struct Results {
    contender: Contender,
    runs: Vec<Run>,
    made: Made,
}

impl Results {
    fn wall(&self) -> Spread {
        Spread::of(self.runs.iter().map(|run| run.wall.as_secs_f64()))
    }

    /// The highest peak of memory, and of the resident set.
    fn peak(&self) -> (u64, u64) {
        let most = |of: fn(&Run) -> u64| self.runs.iter().map(of).max().unwrap_or(0);
        (most(|run| run.peak.dirty), most(|run| run.peak.resident))
    }
}

pub(super) fn run(bench: &Bench<'_>) -> Result<()> {
    let (widths, rounds) = match bench.options.extent {
        Extent::Full => (WIDTHS, ROUNDS),
        Extent::Quick => (QUICK_WIDTHS, QUICK_ROUNDS),
    };
    let [narrow, wide] = bench.options.sizes(&widths)[..] else {
        bail!("--sizes takes two widths here: of the slide that is timed, and of the one for memory");
    };
    let narrow = Slide::sized(bench, narrow, narrow * 3 / 4, Tiles::Distinct)?;
    let wide = Slide::make(bench, wide, Tiles::Distinct)?;
    let rounds = bench.options.rounds.unwrap_or(rounds);
    let mut report = bench.report("pyramid", TITLE);
    report.say(&format!(
        "\n{}: {} MiB, {} threads, {rounds} rounds",
        narrow.name(),
        mebibytes(narrow.bytes()?),
        bench.options.threads
    ));
    let timed = measure(bench, &mut report, &narrow, &Contender::ALL, rounds)?;
    about(&mut report, &timed)?;
    times(&mut report, &narrow, &timed)?;
    let compared = Contender::PAIRS.map(|(ours, theirs)| [ours, theirs]).concat();
    report.say(&format!("\n{}: {} MiB; memory, one run each", wide.name(), mebibytes(wide.bytes()?)));
    let widest = measure(bench, &mut report, &wide, &compared, 1)?;
    memory(&mut report, &timed, &widest)?;
    bench.clear()?;
    bench.finish(report)
}

/// Runs contenders in turn; each must succeed.
fn measure(
    bench: &Bench<'_>,
    report: &mut Report,
    slide: &Slide,
    contenders: &[Contender],
    rounds: usize,
) -> Result<Vec<Results>> {
    for contender in contenders {
        report.say_command(&contender.command(bench, slide)?);
    }
    std::io::copy(&mut fs::File::open(&slide.path)?, &mut std::io::sink())
        .with_context(|| slide.path.display().to_string())?;
    let mut made = vec![Made::default(); contenders.len()];
    let numbered: Vec<(usize, Contender)> = contenders.iter().copied().enumerate().collect();
    let runs = alternate(rounds, &numbered, |&(number, contender)| {
        bench.clear()?;
        // What an earlier run left to the system to write must not fall on this one.
        ensure!(Command::new("sync").status().context("sync")?.success(), "sync failed");
        let run = child::measure(&mut contender.command(bench, slide)?)?;
        ensure!(run.status.success(), "{} failed ({})", contender.name(), run.status);
        made[number] = Made::count(contender, &bench.outputs()?, &run)?;
        Ok(run)
    })?;
    let mut results = Vec::new();
    for (((_, contender), runs), made) in numbered.into_iter().zip(runs).zip(made) {
        for run in &runs {
            let record = json!({
                "command": report.shorten(&contender.command(bench, slide)?),
                "contender": contender.name(),
                "width": slide.width,
                "height": slide.height,
                "files": made.files,
                "bytes": made.bytes,
                "levels": made.levels,
            });
            report.record_run(run, record);
        }
        results.push(Results { contender, runs, made });
    }
    // Who made less would be compared with who made more.
    let made = |contender| found(&results, contender).map(|results| results.made);
    let (ours, theirs) = (made(Contender::DeepZoom)?, made(Contender::VipsDeepZoom)?);
    ensure!(
        ours.levels == theirs.levels && ours.tiles == theirs.tiles && ours.tiles > 0,
        "DeepZoom: ours has {} levels and {} tiles, that of libvips {} and {}",
        ours.levels,
        ours.tiles,
        theirs.levels,
        theirs.tiles
    );
    let pyramids = [Contender::VipsTiff, Contender::OmeZarr, Contender::ZarrPython, Contender::OmeZarrPy];
    for results in results.iter().filter(|results| pyramids.contains(&results.contender)) {
        ensure!(
            results.made.levels == levels(slide),
            "{}: {} levels, not {}",
            results.contender.name(),
            results.made.levels,
            levels(slide)
        );
    }
    Ok(results)
}

fn found(results: &[Results], contender: Contender) -> Result<&Results> {
    results.iter().find(|results| results.contender == contender).context("a contender that did not run")
}

/// Versions of all, and what both sides made.
fn about(report: &mut Report, results: &[Results]) -> Result<()> {
    let said = |contender| found(results, contender)?.runs.first().context("no run")?.summary();
    let (vips, zarr, ome) = (said(Contender::VipsDeepZoom)?, said(Contender::ZarrPython)?, said(Contender::OmeZarrPy)?);
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    report.say(&format!(
        "libvips {} (pyvips {}) opens the slide with {}; zarr-python {}, ome-zarr-py {}, numpy {}, tifffile {}",
        text(&vips["libvips"]),
        text(&vips["pyvips"]),
        text(&vips["loader"]),
        text(&zarr["zarr"]),
        text(&ome["ome_zarr"]),
        text(&zarr["numpy"]),
        text(&zarr["tifffile"]),
    ));
    let (deepzoom, pyramid) = (found(results, Contender::DeepZoom)?.made, found(results, Contender::OmeZarr)?.made);
    report.say(&format!(
        "DeepZoom: tiles of {} with an overlap of {}, {} levels, {} tiles on both sides (copied: tiles of {} without overlap); JPEG of \
         quality {QUALITY}, 4:2:0",
        TILE.0, TILE.1, deepzoom.levels, deepzoom.tiles, COPIED_TILE.0,
    ));
    report.say(&format!(
        "pyramids: {} levels; OME-Zarr with chunks of {CHUNK} and shards of {SHARD}, zstd level 1; TIFF with tiles of {CHUNK}, JPEG of \
         quality {QUALITY}, 4:2:0",
        pyramid.levels
    ));
    Ok(())
}

/// The table of times, and what is aimed at.
fn times(report: &mut Report, slide: &Slide, results: &[Results]) -> Result<()> {
    let of_libvips = |results_of: &Results| -> Result<String> {
        let beside = match results_of.contender {
            Contender::DeepZoom | Contender::CopiedDeepZoom => Contender::VipsDeepZoom,
            Contender::OmeZarr | Contender::ZarrPython | Contender::OmeZarrPy => Contender::VipsTiff,
            Contender::VipsDeepZoom | Contender::VipsTiff | Contender::VipsOpen => return Ok(String::new()),
        };
        Ok(format!("{:.2} x", found(results, beside)?.wall().median / results_of.wall().median))
    };
    let mut table =
        Table::new(&["", "median s", "min s", "CPU s", "Mpx/s", "libvips", "peak MiB", "RSS MiB", "files", "MB"]);
    for results in results {
        let (wall, (peak, resident)) = (results.wall(), results.peak());
        let made_nothing = results.contender == Contender::VipsOpen;
        let unless_nothing = |text: String| if made_nothing { String::new() } else { text };
        table.row(vec![
            results.contender.name().into(),
            format!("{:.2}", wall.median),
            format!("{:.2}", wall.min),
            format!("{:.1}", Spread::of(results.runs.iter().map(|run| run.cpu().as_secs_f64())).median),
            unless_nothing(format!("{:.0}", slide.megapixels() / wall.median)),
            of_libvips(results)?,
            mebibytes(peak),
            mebibytes(resident),
            unless_nothing(results.made.files.to_string()),
            unless_nothing(format!("{:.0}", results.made.bytes as f64 / 1e6)),
        ]);
    }
    report.say(&table.to_string());
    let median = |contender| anyhow::Ok(found(results, contender)?.wall().median);
    let ratio = |ours, theirs| anyhow::Ok(median(theirs)? / median(ours)?);
    let deepzoom = ratio(Contender::DeepZoom, Contender::VipsDeepZoom)?;
    report.target("DeepZoom: times libvips' rate", deepzoom, Relation::AtLeast, DEEPZOOM_RATE);
    let convert = ratio(Contender::OmeZarr, Contender::VipsTiff)?;
    report.target("OME-Zarr: times the rate of libvips' TIFF", convert, Relation::AtLeast, CONVERT_RATE);
    report.say(&format!(
        "OME-Zarr: {:.1} times the rate of zarr-python, {:.1} times that of ome-zarr-py; DeepZoom with copied tiles: {:.2} times \
         libvips' rate",
        ratio(Contender::OmeZarr, Contender::ZarrPython)?,
        ratio(Contender::OmeZarr, Contender::OmeZarrPy)?,
        ratio(Contender::CopiedDeepZoom, Contender::VipsDeepZoom)?,
    ));
    Ok(())
}

/// The table of peaks on the slide that was timed and on the wide one, and what is aimed at.
fn memory(report: &mut Report, narrow: &[Results], wide: &[Results]) -> Result<()> {
    let mut table = Table::new(&["", "narrow MiB", "wide MiB", "ratio", "wide RSS MiB", "wide s", "files", "MB"]);
    for results in wide {
        let (before, (after, resident)) = (found(narrow, results.contender)?.peak().0, results.peak());
        table.row(vec![
            results.contender.name().into(),
            mebibytes(before),
            mebibytes(after),
            format!("{:.2}", after as f64 / before as f64),
            mebibytes(resident),
            format!("{:.1}", results.wall().median),
            results.made.files.to_string(),
            format!("{:.0}", results.made.bytes as f64 / 1e6),
        ]);
    }
    report.say(&table.to_string());
    let ratio = |above: (&[Results], Contender), below: (&[Results], Contender)| {
        let peak = |(results, contender)| anyhow::Ok(found(results, contender)?.peak().0 as f64);
        anyhow::Ok(peak(above)? / peak(below)?)
    };
    for (ours, theirs) in Contender::PAIRS {
        let claim = |words: &str| format!("{}: {words}", ours.name());
        let growth = ratio((wide, ours), (narrow, ours))?;
        report.target(&claim("peak when wide, of that when narrow"), growth, Relation::AtMost, GROWTH);
        let beside = ratio((wide, ours), (wide, theirs))?;
        report.target(&claim("peak when wide, of libvips' when wide"), beside, Relation::AtMost, 1.0);
        let beside_narrow = ratio((wide, ours), (narrow, theirs))?;
        report.target(
            &claim("peak when wide, of libvips' when narrow"),
            beside_narrow,
            Relation::AtMost,
            BESIDE_NARROW,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pyramid_ends_with_the_first_level_that_fits_into_a_chunk() {
        let sized = |width, height| levels(&Slide { path: PathBuf::new(), width, height, tiles: Tiles::Distinct });
        assert_eq!((sized(20_000, 15_000), sized(512, 100), sized(100, 513)), (7, 1, 2));
    }

    #[test]
    fn contenders_have_names_of_their_own_and_leave_what_is_looked_for() {
        let names: std::collections::BTreeSet<&str> = Contender::ALL.iter().map(|c| c.name()).collect();
        assert_eq!(names.len(), Contender::ALL.len());
        assert_eq!(Contender::VipsDeepZoom.output(Path::new("o")), Path::new("o/pyramid"));
    }

    #[test]
    fn files_are_counted_in_folders_of_folders() {
        let folder = std::env::temp_dir().join(format!("microtome-made-{}", std::process::id()));
        fs::create_dir_all(folder.join("0/c")).unwrap();
        fs::write(folder.join("0/c/0"), [0; 5]).unwrap();
        fs::write(folder.join("0/0_0.jpg"), [0; 2]).unwrap();
        let mut made = Made::default();
        made.add(&folder).unwrap();
        fs::remove_dir_all(folder).unwrap();
        assert_eq!(made, Made { files: 2, tiles: 1, bytes: 7, levels: 0 });
    }
}
