//! Segments an archive from a program of your own: what `microtome batch` does, in one page.
//!
//! ```sh
//! cargo run --release -p microtome --example segment_archive -- archive.csv models/nuclei masks
//! ```

use std::error::Error;
use std::path::PathBuf;

use microtome::batch::{Batch, Manifest, Options, Outcome, Watcher};
use microtome::unet::{Execution, Model, ModelOptions};
use microtome::{Segmenter, Settings};

/// Prints how each slide ended. The library itself prints nothing.
struct Printer;

impl Watcher for Printer {
    fn ends(&self, outcome: &Outcome) {
        let Outcome { id, status, error, .. } = outcome;
        eprintln!("{id}: {status}{}", error.as_ref().map(|error| format!(": {error}")).unwrap_or_default());
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [list, model, folder] = arguments.as_slice() else {
        return Err("usage: segment_archive MANIFEST MODEL DIR".into());
    };

    // Everything that is wrong with the list is said at once, line by line, before anything runs.
    let manifest = Manifest::read(list)?;

    // One model, one set of threads and one budget of memory for all slides.
    let model = Model::open(model, &ModelOptions::default())?;
    let predictor = model.predictor(&Execution::default())?;
    let segmenter = Segmenter::new(predictor.as_ref(), Settings::default())?;

    // Two slides at a time. Started again, or a second time on another machine, it does what is left.
    let mut options = Options::default();
    options.jobs = 2;
    let finished = Batch::new(&manifest, &segmenter, folder, options)?.run(&Printer)?;
    match finished.exit_code() {
        Some(0) => Ok(()),
        code => Err(format!("not all slides are done (exit code {code:?})").into()),
    }
}
