//! `cargo xtask cuda bench`: a folder to carry to a machine that has a GPU.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::shell;
use crate::venv::Venv;
use crate::workspace::Workspace;

const README: &str = "\
microtome on a GPU, measured beside PyTorch. Needs Linux on x86-64, an NVIDIA driver of series 580 or later, and Python 3.10 with
PyTorch for CUDA 13 and numpy; cuDNN, cuBLAS, cuRAND and NVRTC are taken from PyTorch's wheels. No cargo, no network, no root.

    python3 run.py                  measures for at most 7 minutes, the most telling first, and prints tables; again: goes on
    python3 run.py --minutes 3      the same in shorter parts
    python3 run.py --dry            tries everything with tiny networks on the CPU

Results: work/results.txt and work/results.jsonl. They belong into docs/benchmarks of the repository as cuda.txt and cuda.jsonl.
lib/dynamic_network_architectures is nnU-Net's, under the Apache licence beside it: PyTorch builds its networks with it.
";

/// Side of the slide: 15 mm at half a micrometre per pixel.
const SIDE: u64 = 30_000;

/// The trained network that is compared too, among the real files.
const TRAINED: &str = "models/nnunet-v2-plain/Dataset501_DSBStained/nnUNetTrainer_10epochs__tinyPlans__2d";

/// Options of the command.
#[derive(Debug, Default)]
struct Options {
    /// A Python that has every package, in place of the environments that we make.
    python: Option<PathBuf>,
    /// Programs that are built already.
    binaries: Option<PathBuf>,
}

impl Options {
    fn parse(arguments: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        while let Some(&name) = arguments.next() {
            let mut value = || arguments.next().copied().with_context(|| format!("{name} takes a value"));
            match name {
                "--python" => options.python = Some(value()?.into()),
                "--binaries" => options.binaries = Some(value()?.into()),
                _ => bail!("{name} is no option of cuda bench"),
            }
        }
        Ok(options)
    }

    fn python(&self, workspace: &Workspace, venv: &str, requirements: &str) -> Result<Command> {
        match &self.python {
            Some(python) => Ok(Command::new(python)),
            None => Ok(Venv::prepare(workspace, venv, requirements)?.python()),
        }
    }
}

/// Cuts a tile out of the middle of the slide's tissue, as `bench net` does.
const TILE: &str = "import sys, numpy, openslide; \
                    tile = openslide.OpenSlide(sys.argv[1]).read_region((400, 600), 0, (512, 512)).convert('RGB'); \
                    numpy.asarray(tile).tofile(sys.argv[2])";

/// Makes `target/cuda/bench` and tries it on the CPU.
pub(crate) fn run(workspace: &Workspace, arguments: &[&str]) -> Result<()> {
    let options = Options::parse(arguments)?;
    let folder = workspace.target.join("cuda/bench");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let binaries = if let Some(folder) = &options.binaries {
        folder.clone()
    } else {
        super::build(workspace)?;
        super::programs(workspace)
    };
    copy(&binaries.join("microtome"), &folder.join("microtome"))?;
    copy(&binaries.join("examples/time_network"), &folder.join("time_network"))?;
    let scripts = workspace.root.join("tests/python");
    copy(&scripts.join("bench_gpu.py"), &folder.join("run.py"))?;
    copy(&scripts.join("bench_network.py"), &folder.join("bench_network.py"))?;
    write(&folder.join("README.txt"), README)?;

    let slide = workspace.demo_slide()?;
    copy(&slide, &folder.join("small.svs"))?;
    let mut small = options.python(workspace, "venv", "requirements.txt")?;
    shell::run(small.arg(scripts.join("big_slide.py")).arg(folder.join("slide.svs")).arg(&slide).args([
        &format!("{SIDE}x{SIDE}"),
        "--mpp",
        "0.5",
    ]))?;
    let mut small = options.python(workspace, "venv", "requirements.txt")?;
    shell::run(small.args(["-c", TILE]).arg(&slide).arg(folder.join("tile.rgb")))?;

    let mut full = options.python(workspace, "venv-bench", "requirements-bench.txt")?;
    let of_package = "import dynamic_network_architectures as package; print(package.__path__[0])";
    let package = PathBuf::from(shell::read(full.args(["-c", of_package]))?.trim());
    let modules = |part: &str| -> Result<Vec<PathBuf>> {
        let wanted = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // Of the architectures only that of UNets; others need further packages.
            let needed =
                part != "architectures" || ["__init__.py", "abstract_arch.py", "unet.py"].contains(&name.as_str());
            path.extension().is_some_and(|e| e == "py") && needed && !name.contains("eva")
        };
        Ok(entries(&package.join(part))?.into_iter().filter(wanted).collect())
    };
    for part in ["", "architectures", "building_blocks", "initialization"] {
        for module in modules(part)? {
            let name = module.file_name().context("a module without a name")?;
            copy(&module, &folder.join("lib/dynamic_network_architectures").join(part).join(name))?;
        }
    }
    let site = package.parent().context("a package at the root")?;
    for info in entries(site)?.iter().filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("dynamic_network_architectures-") && name.ends_with(".dist-info")
    }) {
        for licence in entries(&info.join("licenses"))?.iter().filter(|path| path.is_file()) {
            copy(licence, &folder.join("lib").join(licence.file_name().unwrap_or_default()))?;
        }
    }

    copy_folder(&workspace.nnunet_model(), &folder.join("nets/nuclei"))?;
    match workspace.data().map(|data| data.join(TRAINED)).filter(|plain| plain.is_dir()) {
        Some(plain) => trained(&plain, &folder)?,
        None => eprintln!("without the trained network nnunet-v2-plain: the folder of real files is not here"),
    }

    let mut full = options.python(workspace, "venv-bench", "requirements-bench.txt")?;
    shell::run(full.arg(folder.join("run.py")).args(["--dry", "--minutes", "60"]))?;
    std::fs::remove_dir_all(folder.join("dry")).with_context(|| folder.join("dry").display().to_string())?;
    eprintln!("{}: carry it to a machine with a GPU, and there: python3 run.py", folder.display());
    Ok(())
}

/// The trained network, as the scripts want networks.
fn trained(model: &Path, folder: &Path) -> Result<()> {
    let to = folder.join("nets/plain");
    for name in ["plans.json", "dataset.json", "fold_all/checkpoint_final.pth"] {
        copy(&model.join(name), &to.join(name))?;
    }
    let plans = std::fs::read_to_string(to.join("plans.json"))?;
    let plans: serde_json::Value = serde_json::from_str(&plans).context("plans.json")?;
    let side =
        plans["configurations"]["2d"]["patch_size"][0].as_u64().context("plans.json: no size of a patch")? as usize;
    let tile = std::fs::read(folder.join("tile.rgb"))?;
    let rows = tile.chunks_exact(512 * 3).take(side);
    write(&to.join("tile.rgb"), rows.flat_map(|row| &row[..side * 3]).copied().collect::<Vec<u8>>())?;
    // The program says what it has loaded before it is asked anything.
    let mut program = Command::new(folder.join("time_network"));
    let said = shell::read(program.arg(&to).arg(to.join("tile.rgb")).stdin(Stdio::null()))?;
    let said: serde_json::Value =
        serde_json::from_str(said.lines().next().unwrap_or_default()).context("what time_network says")?;
    let multiplications = &said["multiplications"];
    ensure!(multiplications.is_u64(), "time_network does not say how many multiplications: {said}");
    let about =
        serde_json::json!({ "description": "nnunet-v2-plain", "side": side, "multiplications": multiplications });
    write(&to.join("network.json"), about.to_string())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        all.push(entry?.path());
    }
    all.sort();
    Ok(all)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to.parent().context("a file at the root")?)?;
    std::fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    for entry in entries(from)? {
        let name = entry.file_name().context("a file without a name")?;
        if entry.is_dir() { copy_folder(&entry, &to.join(name))? } else { copy(&entry, &to.join(name))? }
    }
    Ok(())
}

fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    std::fs::write(path, content).with_context(|| path.display().to_string())
}
