//! The `microtome` command: arguments, progress, exit codes, and nothing else. The work is done by the `microtome` crate.

mod args;
mod audit;
mod batch;
#[cfg(unix)]
mod bus;
mod convert;
mod failure;
mod heap;
mod info;
mod manifest;
mod model;
mod postprocess;
mod preview;
mod progress;
mod read;
mod report;
mod segment;
mod signals;
mod validate;
mod verify;

use std::process::ExitCode;

use clap::Parser;

use args::{Command, ModelCommand};

fn main() -> ExitCode {
    heap::arrange();
    let arguments = match args::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => {
            failure::say(&failure::usage_line(&error.to_string()));
            return ExitCode::from(2);
        }
        // Help and version are no errors; nothing can be done where they cannot be printed.
        Err(error) => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
    };
    #[cfg(unix)]
    bus::explain();
    let result = match arguments.command {
        Command::Segment(a) => segment::run(&a),
        Command::Batch(a) => batch::run(&a),
        Command::Manifest(a) => manifest::run(&a),
        Command::Report(a) => report::run(&a),
        Command::Audit(a) => audit::run(&a),
        Command::Convert(a) => convert::run(&a).map(|()| 0),
        Command::Preview(a) => preview::run(&a).map(|()| 0),
        Command::Info(a) => info::run(&a).map(|()| 0),
        Command::Validate(a) => validate::run(&a),
        Command::Read(a) => read::run(&a).map(|()| 0),
        Command::Verify(a) => verify::run(&a),
        Command::Postprocess(a) => postprocess::run(&a).map(|()| 0),
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
            failure::say(&format!("error: {}", failure::line(&error)));
            ExitCode::from(failure::exit_code(&error))
        }
    }
}
