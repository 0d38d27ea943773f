//! `cargo xtask bench`: measurements that other people can repeat.
//!
//! Each bench builds the release programs, makes its slides, runs the programs in processes of their own, measures those from outside,
//! and leaves two files under `docs/benchmarks`. It fails when what it claims does not hold; times are only reported.

mod batch;
mod child;
mod dialogue;
mod limit;
mod machine;
mod memory;
mod net;
mod outofcore;
mod overhead;
mod pyramid;
mod python;
mod read;
mod report;
mod sampler;
mod seams;
mod segment;
mod slide;
mod wait;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use self::child::Run;
use self::limit::Enforcer;
use self::report::{Places, Report};
use crate::openslide::OpenSlide;
use crate::shell;
use crate::venv::Venv;
use crate::workspace::{Profile, Workspace};

/// Threads of every program that is measured, unless others are asked for: what figures of different machines have in common.
const THREADS: usize = 2;

/// How much of a bench is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    Full,
    Quick,
}

/// What may be asked of a bench.
#[derive(Debug)]
struct Options {
    extent: Extent,
    /// Widths of slides or sides of pictures, in pixels, in place of the bench's own.
    sizes: Option<Vec<u64>>,
    /// Networks by name, in place of all.
    nets: Option<Vec<String>>,
    /// A slide, in place of the bench's own.
    slide: Option<PathBuf>,
    /// Runs of each variant, in place of the bench's own number.
    rounds: Option<usize>,
    /// Threads of every program that is measured.
    threads: usize,
    /// A folder with `microtome` and the examples `cheap_model`, `time_network` and `read_slide`, which are not built then.
    binaries: Option<PathBuf>,
    /// A Python that has every package, in place of the environments that we make.
    python: Option<PathBuf>,
    /// Where the results go, in place of `docs/benchmarks`.
    out: Option<PathBuf>,
    /// The control group under which hard limits are set.
    cgroup: Option<PathBuf>,
}

impl Options {
    fn parse(arguments: &[&str]) -> Result<Self> {
        let mut options = Self {
            extent: Extent::Full,
            sizes: None,
            nets: None,
            slide: None,
            rounds: None,
            threads: THREADS,
            binaries: None,
            python: None,
            out: None,
            cgroup: None,
        };
        let mut arguments = arguments.iter();
        while let Some(&name) = arguments.next() {
            let mut value = || arguments.next().copied().with_context(|| format!("{name} takes a value"));
            match name {
                "--quick" => options.extent = Extent::Quick,
                "--sizes" => {
                    let sizes: Result<Vec<u64>, _> = value()?.split(',').map(str::parse).collect();
                    options.sizes = Some(sizes.context("--sizes takes numbers of pixels, such as 2048,4096")?);
                }
                "--nets" => options.nets = Some(value()?.split(',').map(ToOwned::to_owned).collect()),
                "--slide" => options.slide = Some(value()?.into()),
                "--rounds" => options.rounds = Some(count(name, value()?)?),
                "--threads" => options.threads = count(name, value()?)?,
                "--binaries" => options.binaries = Some(value()?.into()),
                "--python" => options.python = Some(value()?.into()),
                "--out" => options.out = Some(value()?.into()),
                "--cgroup" => options.cgroup = Some(value()?.into()),
                _ => bail!("{name} is no option of a bench"),
            }
        }
        Ok(options)
    }

    fn sizes(&self, ours: &[u64]) -> Vec<u64> {
        self.sizes.clone().unwrap_or_else(|| ours.to_vec())
    }

    fn enforcer(&self) -> Enforcer {
        self.cgroup.clone().map_or(Enforcer::Data, Enforcer::ControlGroup)
    }
}

/// A number from 1.
fn count(name: &str, value: &str) -> Result<usize> {
    match value.parse() {
        Ok(0) | Err(_) => bail!("{name} takes a number from 1"),
        Ok(count) => Ok(count),
    }
}

/// What all benches need.
#[derive(Debug)]
struct Bench<'a> {
    workspace: &'a Workspace,
    options: Options,
    /// Folder of the release programs.
    binaries: PathBuf,
    /// Folder for slides and outputs, under the target directory.
    work: PathBuf,
    /// What the programs of a bench of slides were built with.
    openslide: Option<OpenSlide>,
}

/// The release programs that a bench measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Programs {
    /// The command, and examples that run models.
    Microtome,
    /// The example that reads slides: without candle.
    ReadSlide,
}

/// Runs the bench that the first argument names.
pub(crate) fn run(workspace: &Workspace, arguments: &[&str]) -> Result<()> {
    const NAMES: &str = "memory, overhead, seams, outofcore, net, segment, read, pyramid, batch";
    let (name, arguments) = arguments.split_first().with_context(|| format!("bench takes a name: {NAMES}"))?;
    let run: fn(&Bench<'_>) -> Result<()> = match *name {
        "memory" => memory::run,
        "overhead" => overhead::run,
        "seams" => seams::run,
        "outofcore" => outofcore::run,
        "net" => net::run,
        "segment" => segment::run,
        "read" => read::run,
        "pyramid" => pyramid::run,
        "batch" => batch::run,
        other => bail!("no bench is called {other}: {NAMES}"),
    };
    let programs = if *name == "read" { Programs::ReadSlide } else { Programs::Microtome };
    run(&Bench::prepare(workspace, programs, Options::parse(arguments)?)?)
}

impl<'a> Bench<'a> {
    fn prepare(workspace: &'a Workspace, programs: Programs, options: Options) -> Result<Self> {
        let work = workspace.target.join("bench");
        std::fs::create_dir_all(&work).with_context(|| work.display().to_string())?;
        let binaries = match &options.binaries {
            Some(folder) => folder.clone(),
            None => folder_of(&workspace.binary(Profile::Release))?,
        };
        let mut bench = Self { workspace, options, binaries, work, openslide: None };
        match programs {
            Programs::ReadSlide => bench.build_read_slide()?,
            Programs::Microtome if bench.options.binaries.is_none() => {
                let build = ["build", "--locked", "--release", "-p", "microtome-cli", "-p", "microtome-testkit"];
                let programs = ["--bin", "microtome", "--example", "cheap_model", "--example", "time_network"];
                shell::run(workspace.cargo().args(build).args(programs))?;
            }
            Programs::Microtome => {}
        }
        Ok(bench)
    }

    /// Builds the example that reads slides, with OpenSlide where that can be had.
    fn build_read_slide(&mut self) -> Result<()> {
        let python = self.python("venv", "requirements.txt")?;
        match OpenSlide::prepare(self.workspace, || Command::new(python.get_program()))? {
            Ok(openslide) => self.openslide = Some(openslide),
            Err(missing) => eprintln!("without OpenSlide: {missing}"),
        }
        if self.options.binaries.is_some() {
            return Ok(());
        }
        let mut cargo = self.workspace.cargo();
        cargo.args(["build", "--locked", "--release", "-p", "microtome-io", "--example", "read_slide"]);
        if let Some(openslide) = &self.openslide {
            openslide.pass_to(cargo.args(["--features", "openslide"]));
        }
        shell::run(&mut cargo)
    }

    /// Starts a report: its name is that of its files.
    fn report(&self, name: &'static str, title: &str) -> Report {
        let mut places = vec![
            (format!("{}/", self.binaries.display()), "target/release/".to_owned()),
            (format!("{}/", self.workspace.target.display()), "target/".to_owned()),
            (format!("{}/", self.workspace.root.display()), String::new()),
        ];
        // As they were typed; a relative path says nothing of this machine.
        let named: [(&Option<PathBuf>, &str); 5] = [
            (&self.options.binaries, "DIR"),
            (&self.options.out, "DIR"),
            (&self.options.cgroup, "DIR"),
            (&self.options.slide, "SLIDE"),
            (&self.options.python, "python"),
        ];
        for (path, name) in named {
            if let Some(path) = path.as_ref().filter(|path| path.is_absolute()) {
                places.push((path.display().to_string(), name.to_owned()));
            }
        }
        if let Some(data) = self.workspace.data() {
            places.push((format!("{}/", data.display()), "$MICROTOME_DATA/".into()));
        }
        Report::begin(self.workspace, name, title, Places::new(places))
    }

    /// Writes the report to where it goes.
    fn finish(&self, report: Report) -> Result<()> {
        report.finish(self.options.out.as_deref().unwrap_or(&self.workspace.root.join("docs/benchmarks")))
    }

    /// The command under test: `microtome segment`.
    fn segment(&self) -> Command {
        let mut command = Command::new(self.binaries.join("microtome"));
        command.args(["segment", "--quiet", "--json", "--threads"]).arg(self.threads());
        command
    }

    /// Another command of the program under test, without progress.
    fn microtome(&self, name: &str) -> Command {
        let mut command = Command::new(self.binaries.join("microtome"));
        command.args([name, "--quiet", "--threads"]).arg(self.threads());
        command
    }

    /// Segments with a formula in place of a network.
    fn cheap_model(&self, slide: &Path) -> Command {
        let mut command = Command::new(self.binaries.join("examples/cheap_model"));
        // As the command does for itself; an example holds no unsafe code.
        command.env("MALLOC_ARENA_MAX", "1");
        command.arg(slide).arg(self.output()).arg("--threads").arg(self.threads());
        command
    }

    /// The network of a model alone, on one tile: a program that answers questions.
    fn network(&self, model: &Path, tile: &Path) -> Command {
        let mut command = Command::new(self.binaries.join("examples/time_network"));
        command.env("MALLOC_ARENA_MAX", "1").arg(model).arg(tile);
        command
    }

    /// Reading a slide alone: a program that answers questions.
    fn read_slide(&self, slide: &Path) -> Command {
        let mut command = Command::new(self.binaries.join("examples/read_slide"));
        // As the command does for itself; an example holds no unsafe code.
        command.env("MALLOC_ARENA_MAX", "1").arg(slide);
        if let Some(openslide) = &self.openslide {
            openslide.run_with(&mut command);
        }
        command
    }

    /// A script of `tests/python` that needs no PyTorch.
    fn script(&self, name: &str) -> Result<Command> {
        let mut command = self.python("venv", "requirements.txt")?;
        command.arg(self.workspace.root.join("tests/python").join(name));
        Ok(command)
    }

    /// The number of threads as an argument.
    fn threads(&self) -> String {
        self.options.threads.to_string()
    }

    /// Where a store goes that nobody reads.
    fn output(&self) -> PathBuf {
        self.work.join("out/mask.ome.zarr")
    }

    /// The folder of [`Self::output`], which [`Self::clear`] empties.
    fn outputs(&self) -> Result<PathBuf> {
        folder_of(&self.output())
    }

    /// Measures a command that writes to [`Self::output`], which it finds absent.
    fn measure(&self, command: &mut Command) -> Result<Run> {
        self.clear()?;
        child::measure(command)
    }

    /// Removes what was written to [`Self::output`] and beside it.
    fn clear(&self) -> Result<()> {
        let folder = self.outputs()?;
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())
    }

    /// An interpreter with the packages of `tests/python/REQUIREMENTS`: the one that was given, or that of the environment `target/VENV`.
    fn python(&self, venv: &str, requirements: &str) -> Result<Command> {
        match &self.options.python {
            Some(python) => Ok(Command::new(python)),
            None => Ok(Venv::prepare(self.workspace, venv, requirements)?.python()),
        }
    }
}

fn folder_of(path: &Path) -> Result<PathBuf> {
    Ok(path.parent().with_context(|| format!("{}: in no folder", path.display()))?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let options = Options::parse(&["--quick", "--sizes", "2048,4096", "--rounds", "5"]).unwrap();
        assert_eq!(options.extent, Extent::Quick);
        assert_eq!(options.sizes(&[1]), [2048, 4096]);
        assert_eq!(options.rounds, Some(5));
        let nets = Options::parse(&["--nets", "small,nuclei"]).unwrap().nets.unwrap();
        assert_eq!(nets, ["small", "nuclei"]);
        assert_eq!(Options::parse(&[]).unwrap().sizes(&[1, 2]), [1, 2]);
    }

    #[test]
    fn wrong_options_are_refused() {
        for arguments in [
            &["--sizes"][..],
            &["--nets"],
            &["--sizes", "2k"],
            &["--rounds", "0"],
            &["--threads", "two"],
            &["--fast"],
            &["2048"],
        ] {
            assert!(Options::parse(arguments).is_err(), "{arguments:?}");
        }
    }
}
