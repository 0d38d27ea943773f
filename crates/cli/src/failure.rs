//! What is said of an error, and the exit code that goes with it.

use std::io::Write;

use anyhow::Error;

/// The error and its causes in one line.
pub(crate) fn line(error: &Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // Errors that wrap another often say what it says.
        if !line.contains(&text) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&text);
        }
    }
    line.replace('\n', " ")
}

/// What clap says of a wrong command line, in one line: the error and its tips, without the usage.
pub(crate) fn usage_line(text: &str) -> String {
    let said = text.split("\nUsage:").next().unwrap_or(text);
    let said = said.split("\nFor more information").next().unwrap_or(said);
    let words: Vec<&str> = said.split_whitespace().collect();
    let line = words.join(" ");
    if line.starts_with("error: ") { format!("{line} (--help says more)") } else { format!("error: {line}") }
}

/// Says something on standard error. Whether anybody listens does not matter.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// See the table of exit codes in the README.
pub(crate) fn exit_code(error: &Error) -> u8 {
    match error.downcast_ref::<microtome::Error>() {
        Some(microtome::Error::Interrupted) => crate::signals::exit_code().unwrap_or(130),
        Some(error) => error.exit_code(),
        // Output that cannot be written is a failure of the disk or of whoever reads it.
        None if error.chain().any(<dyn std::error::Error + 'static>::is::<std::io::Error>) => 4,
        // Everything else here comes from reading arguments.
        None => 2,
    }
}

pub(crate) fn is_broken_pipe(error: &Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
