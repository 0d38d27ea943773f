//! The contributor interface of the workspace: one command for each thing a contributor does.
//!
//! Each command sets up by itself what it needs, under cargo's target directory, and does no set-up again on a later call.
//! Nothing here depends on the crates of the workspace: commands build and run them as a user would.

#[cfg(target_os = "linux")]
mod bench;
mod check;
#[cfg(target_os = "linux")]
mod cluster;
mod crosscheck;
mod cuda;
mod demo;
mod openslide;
mod shell;
mod skips;
mod test;
#[cfg(target_os = "linux")]
mod tree;
mod venv;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;

use crate::workspace::Workspace;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo                 segment a real slide with the bundled model and draw the result: demo/cmu-1*
  test [--no-python]   every test that needs no network beyond the package registries
  check [--full]       format, lints, docs, licences, CUDA lint; --full compares with nnU-Net itself (several GB of PyTorch)
  check deploy | slurm | snakemake
                       the files under deploy: their syntax, or with the real programs (Linux only)
                       --binary PATH     of microtome, which is not built then
  bench NAME [OPTIONS] measures memory, overhead, seams, outofcore (beside nnU-Net and MONAI), net (the network alone, beside PyTorch),
                       segment (a slide, beside nnU-Net), read (slides alone, beside OpenSlide), pyramid (OME-Zarr and DeepZoom,
                       beside libvips) or batch (twelve slides, beside TIAToolbox) into docs/benchmarks; Linux only
                       --quick           less of it (memory, net, segment, read, pyramid)
                       --slide PATH      a slide of yours, for read
                       --nets A,B,..     networks of net: stock, resenc, small, nuclei
                       --sizes N,N,..    widths of slides, or sides of pictures
                       --rounds N        runs of each variant
                       --threads N       of every program that is measured; 2 unless given
                       --binaries DIR    release programs that are built already
                       --python PATH     a Python that has the packages of tests/python/requirements*.txt
                       --out DIR         in place of docs/benchmarks
                       --cgroup DIR      a control group of yours, to set the hard limit of bench memory in
  cuda build | lint    build the binary with CUDA and cuDNN on a machine that has neither, or only type-check that code
  cuda bench           make a folder that measures on a machine with a GPU, without cargo or network, and try it on the CPU
                       [--binaries DIR] [--python PATH] as for bench
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    #[cfg(target_os = "linux")]
    if let ["bench", options @ ..] = &arguments[..] {
        return end(Workspace::load().and_then(|workspace| bench::run(&workspace, options)));
    }
    #[cfg(target_os = "linux")]
    if let ["check", name @ ("deploy" | "slurm" | "snakemake"), options @ ..] = &arguments[..] {
        return end(Workspace::load().and_then(|workspace| cluster::run(&workspace, name, options)));
    }
    if let ["cuda", "bench", options @ ..] = &arguments[..] {
        return end(Workspace::load().and_then(|workspace| cuda::bench::run(&workspace, options)));
    }
    let command: fn(&Workspace) -> Result<()> = match arguments[..] {
        ["demo"] => demo::run,
        ["test"] => |workspace| test::run(workspace, test::Python::CrossCheck),
        ["test", "--no-python"] => |workspace| test::run(workspace, test::Python::Skip),
        ["check"] => check::run,
        ["check", "--full"] => |workspace| check::run(workspace).and_then(|()| check::run_nnunet(workspace)),
        ["cuda", "lint"] => cuda::lint,
        ["cuda", "build"] => cuda::build,
        ["help" | "-h" | "--help"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    end(Workspace::load().and_then(|workspace| command(&workspace)))
}

/// The exit code, and what failed.
fn end(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // On one line, without the backtrace that `RUST_BACKTRACE` would add: what failed has printed its own.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
