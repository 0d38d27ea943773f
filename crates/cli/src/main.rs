//! The `microtome` command: arguments, progress, exit codes, and nothing else. The work is done by the `microtome` crate.

mod args;
mod failure;
mod info;
mod model;
mod preview;
mod progress;
mod segment;
mod signals;
mod verify;

use std::process::ExitCode;

use clap::Parser;

use args::{Command, ModelCommand};

fn main() -> ExitCode {
    let arguments = args::Arguments::parse();
    let result = match arguments.command {
        Command::Segment(a) => segment::run(&a),
        Command::Preview(a) => preview::run(&a).map(|()| 0),
        Command::Info(a) => info::run(&a).map(|()| 0),
        Command::Verify(a) => verify::run(&a),
        Command::Model(ModelCommand::Import(a)) => model::import(&a).map(|()| 0),
        Command::Model(ModelCommand::Info(a)) => model::info(&a),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            if failure::is_broken_pipe(&error) {
                // Whoever read our output has seen enough.
                return ExitCode::SUCCESS;
            }
            eprintln!("error: {}", failure::line(&error));
            ExitCode::from(failure::exit_code(&error))
        }
    }
}
