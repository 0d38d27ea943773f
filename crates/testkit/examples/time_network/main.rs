//! Runs a network as often as somebody asks at its standard input, and says how long each pass took.
//!
//! ```text
//! time_network MODEL TILE [--arithmetic fast|exact|reference] [--precision f32|bf16|f16] [--device cpu|cuda:N] [--batch N]
//! ```
//!
//! MODEL is the folder of a model, TILE the samples of one of its tiles: 8 bits, row by row, channels last. Statistics that a
//! normalisation asks for are taken to be a mean of 192 and a deviation of 32, so that normalised samples are the same floats in any program.
//! `cargo xtask bench` keeps several such programs and asks them in turn. Every answer is a line of JSON; the first, unasked, is the
//! model's, or `{"unsupported": "why"}` where the model cannot be run like that. The questions:
//!
//! ```text
//! run THREADS BATCH COUNT   COUNT passes over BATCH tiles at once: {"milliseconds": [of each pass], "device_milliseconds": [of each, on GPUs]}
//! stream BATCH COUNT        COUNT passes over BATCH tiles, as many under way at once as a segmentation has: {"seconds": in all,
//!                           "device_seconds": in which a GPU had something to do}
//! logits FILE               writes the tile's logits, plane by plane, little-endian f32: {"logits": how many}
//! peak                      what one core can do without a network: {"avx512": GFLOP/s, ...}
//! ```

mod peak;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use microtome::io::Pixels;
use microtome::unet::{
    Arithmetic, ChannelStatistics, Device, Execution, Mirroring, Model, ModelOptions, Normalizer, Precision, Predictor,
    Tile,
};
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde_json::{Value, json};

const STATISTICS: ChannelStatistics = ChannelStatistics { mean: 192.0, std: 32.0, min: 0.0, max: 255.0 };

fn main() -> Result<()> {
    let mut paths: Vec<PathBuf> = Vec::new();
    let mut execution = Execution { device: Device::Cpu, mirroring: Mirroring::Off, ..Execution::default() };
    let mut batch = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} takes a value"));
        match argument.as_str() {
            "--arithmetic" => {
                execution.arithmetic = match value()?.as_str() {
                    "fast" => Arithmetic::Fast,
                    "exact" => Arithmetic::Exact,
                    "reference" => Arithmetic::Reference,
                    other => bail!("{other} is no arithmetic"),
                }
            }
            "--precision" => {
                execution.precision = match value()?.as_str() {
                    "f32" => Precision::F32,
                    "bf16" => Precision::Bf16,
                    "f16" => Precision::F16,
                    other => bail!("{other} is no precision"),
                }
            }
            "--device" => execution.device = value()?.parse().map_err(anyhow::Error::msg)?,
            "--batch" => batch = Some(value()?.parse()?),
            flag if flag.starts_with("--") => bail!("{flag} is not an option"),
            _ => paths.push(argument.into()),
        }
    }
    execution.device = execution.device.with_batch(batch);
    let [model, tile] = paths.as_slice() else { bail!("the folder of a model and a file with a tile") };
    let samples = std::fs::read(tile).with_context(|| tile.display().to_string())?;

    let opened = Model::open(model, &ModelOptions::default());
    let mut server = match opened.and_then(|model| Ok((model.predictor(&execution)?, about(&model)))) {
        Ok((predictor, about)) => Server::new(predictor, samples, about)?,
        Err(error) => {
            println!("{}", json!({ "unsupported": error.to_string() }));
            return Ok(());
        }
    };
    println!("{}", server.about);
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = server.answer(&words).with_context(|| line.clone())?;
        println!("{answer}");
    }
    Ok(())
}

/// The model in a few words and figures. Its weights are dropped after this: the predictor has packed its own.
fn about(model: &Model) -> Value {
    let card = model.card();
    json!({
        "architecture": card.architecture,
        "parameters": card.parameters,
        "multiplications": model.network().multiplications(card.tile),
    })
}

/// What answers.
struct Server {
    predictor: Box<dyn Predictor>,
    normalizer: Normalizer,
    pixels: Pixels,
    about: Value,
    /// By number of threads.
    pools: BTreeMap<usize, ThreadPool>,
}

impl Server {
    fn new(predictor: Box<dyn Predictor>, samples: Vec<u8>, mut about: Value) -> Result<Self> {
        let card = predictor.card();
        let channels = card.channels.len();
        let wanted = card.tile.area() as usize * channels;
        if samples.len() != wanted {
            bail!("the tile has {} samples; the model's has {wanted}", samples.len());
        }
        let normalizer = Normalizer::new(&card.normalization, &vec![STATISTICS; channels])?;
        let pixels = Pixels::from_u8(card.tile, channels, samples);
        let mut pools = BTreeMap::new();
        let memory = pool(&mut pools, 1)?.install(|| predictor.memory(1));
        about["identity"] = predictor.identity().into();
        about["batch"] = json!(predictor.devices().first().map(|device| device.batch));
        about["weights_bytes"] = memory.weights.into();
        about["activations_bytes"] = memory.activations.into();
        Ok(Self { predictor, normalizer, pixels, about, pools })
    }

    fn answer(&mut self, words: &[&str]) -> Result<Value> {
        match *words {
            ["run", threads, batch, count] => {
                let (threads, batch, count) = (threads.parse()?, batch.parse()?, count.parse()?);
                let tiles = vec![Tile::full(&self.pixels); batch];
                let (predictor, normalizer) = (&self.predictor, &self.normalizer);
                let pass = || -> Result<(f64, f64)> {
                    let (started, before) = (Instant::now(), device_seconds(predictor.as_ref()));
                    let logits = predictor.predict(&tiles, normalizer)?;
                    let milliseconds = started.elapsed().as_secs_f64() * 1e3;
                    drop(logits);
                    Ok((milliseconds, (device_seconds(predictor.as_ref()) - before) * 1e3))
                };
                let passes: Result<Vec<(f64, f64)>> =
                    pool(&mut self.pools, threads)?.install(|| (0..count).map(|_: usize| pass()).collect());
                let (milliseconds, device): (Vec<f64>, Vec<f64>) = passes?.into_iter().unzip();
                let device = if predictor.devices().is_empty() { Value::Null } else { json!(device) };
                Ok(json!({ "milliseconds": milliseconds, "device_milliseconds": device }))
            }
            ["stream", batch, count] => {
                let (batch, count): (usize, usize) = (batch.parse()?, count.parse()?);
                let tiles = vec![Tile::full(&self.pixels); batch];
                let (predictor, normalizer, tiles) = (self.predictor.as_ref(), &self.normalizer, &tiles[..]);
                let (started, before) = (Instant::now(), device_seconds(predictor));
                let next = AtomicUsize::new(0);
                std::thread::scope(|scope| {
                    let lane = || -> Result<()> {
                        while next.fetch_add(1, Ordering::Relaxed) < count {
                            predictor.predict(tiles, normalizer)?;
                        }
                        Ok(())
                    };
                    let lanes: Vec<_> = (0..predictor.lanes()).map(|_| scope.spawn(lane)).collect();
                    lanes.into_iter().try_for_each(|lane| match lane.join() {
                        Ok(result) => result,
                        Err(panic) => std::panic::resume_unwind(panic),
                    })
                })?;
                let seconds = started.elapsed().as_secs_f64();
                Ok(json!({ "seconds": seconds, "device_seconds": device_seconds(predictor) - before }))
            }
            ["logits", path] => {
                let tiles = [Tile::full(&self.pixels)];
                let logits =
                    pool(&mut self.pools, 1)?.install(|| self.predictor.predict(&tiles, &self.normalizer))?.remove(0);
                let bytes: Vec<u8> = logits.values.iter().flat_map(|value| value.to_le_bytes()).collect();
                std::fs::File::create(path).and_then(|mut file| file.write_all(&bytes)).context("cannot be written")?;
                Ok(json!({ "logits": logits.values.len() }))
            }
            ["peak"] => Ok(peak::measure().into_iter().map(|(name, rate)| (name.to_owned(), json!(rate))).collect()),
            _ => bail!("not a question"),
        }
    }
}

/// The time in which GPUs had something to do so far.
fn device_seconds(predictor: &dyn Predictor) -> f64 {
    predictor.devices().iter().map(|device| device.busy.as_secs_f64()).sum()
}

/// The pool of so many threads.
fn pool(pools: &mut BTreeMap<usize, ThreadPool>, threads: usize) -> Result<&ThreadPool> {
    Ok(match pools.entry(threads) {
        Entry::Occupied(pool) => pool.into_mut(),
        Entry::Vacant(place) => place.insert(ThreadPoolBuilder::new().num_threads(threads).build()?),
    })
}
