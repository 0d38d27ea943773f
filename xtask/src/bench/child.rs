//! Runs a program and measures it from outside: time, processor time, memory, what it wrote.

use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::machine;
use super::sampler::{self, Peak};
use super::wait::{self, Usage};
use crate::shell;

/// What a run took.
#[derive(Debug)]
pub(super) struct Run {
    /// From start to end.
    pub(super) wall: Duration,
    /// As the kernel counted it.
    pub(super) usage: Usage,
    /// As it was sampled while the run lasted; the resident set, which the kernel keeps as well, is the larger of both.
    pub(super) peak: Peak,
    pub(super) status: ExitStatus,
    /// Processors that other programs kept busy meanwhile, on average.
    pub(super) others: f64,
    /// What the program wrote to its standard output.
    pub(super) output: String,
}

impl Run {
    /// Processor time of all threads together.
    pub(super) fn cpu(&self) -> Duration {
        self.usage.user + self.usage.system
    }

    /// The last line that the program wrote, as JSON: its summary. `microtome` says whose it is and what became of the slide; of
    /// that, the summary of the slide that was done.
    pub(super) fn summary(&self) -> Result<Value> {
        let line = self.output.lines().rfind(|line| !line.trim().is_empty()).context("the program wrote nothing")?;
        let value: Value = serde_json::from_str(line).with_context(|| format!("not a summary in JSON: {line}"))?;
        Ok(value.pointer("/outcome/done").cloned().unwrap_or(value))
    }

    /// The figures by name, for the record.
    pub(super) fn record(&self) -> Value {
        json!({
            "busy_processors_of_others": self.others,
            "exit": self.status.code(),
            "wall_seconds": self.wall.as_secs_f64(),
            "user_seconds": self.usage.user.as_secs_f64(),
            "system_seconds": self.usage.system.as_secs_f64(),
            "peak_anonymous_and_dirty_bytes": self.peak.dirty,
            "peak_resident_bytes": self.peak.resident,
            "memory_samples": self.peak.samples,
            "written_bytes": self.usage.written,
        })
    }
}

/// Runs the command to its end, whatever that is. Its errors go where ours go.
pub(super) fn measure(command: &mut Command) -> Result<Run> {
    let shown = shell::show(command);
    eprintln!("$ {shown}");
    let busy = machine::busy();
    let start = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("cannot start `{shown}`"))?;
    let (pid, mut pipe) = (child.id(), child.stdout.take().context("no pipe from the program")?);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| sampler::watch(pid, &done));
        let reader = scope.spawn(move || {
            let mut output = String::new();
            pipe.read_to_string(&mut output).map(|_| output)
        });
        let ended = wait::wait(child);
        let wall = start.elapsed();
        // Before any return, or the scope would wait for the sampler for ever.
        done.store(true, Ordering::Release);
        sampler.thread().unpark();
        let mut peak = sampler.join().expect("the sampler does not panic");
        let output = reader.join().expect("the reader does not panic").context("what the program wrote")?;
        let (status, usage) = ended.with_context(|| format!("waiting for `{shown}`"))?;
        peak.resident = peak.resident.max(usage.resident);
        let others = machine::busy().saturating_sub(busy).saturating_sub(usage.user + usage.system);
        let others = others.as_secs_f64() / wall.as_secs_f64();
        eprintln!("  {:.1} s, {status}; other programs kept {others:.1} processors busy", wall.as_secs_f64());
        Ok(Run { wall, usage, peak, status, others, output })
    })
}

/// Runs of several variants in turn, `rounds` of each: what else the machine does then falls on all alike.
/// The result holds the runs of each variant.
pub(super) fn alternate<V>(
    rounds: usize,
    variants: &[V],
    mut run: impl FnMut(&V) -> Result<Run>,
) -> Result<Vec<Vec<Run>>> {
    let mut runs: Vec<Vec<Run>> = variants.iter().map(|_| Vec::with_capacity(rounds)).collect();
    for _ in 0..rounds {
        for (variant, runs) in variants.iter().zip(&mut runs) {
            runs.push(run(variant)?);
        }
    }
    Ok(runs)
}

/// The middle one of several figures, or the mean of the two in the middle, and the smallest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
}

impl Spread {
    /// Of at least one figure, none of them NaN.
    pub(super) fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let (low, high) = (figures[(figures.len() - 1) / 2], figures[figures.len() / 2]);
        Self { median: f64::midpoint(low, high), min: figures[0] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the child allocates, and writes page for page.
    const BYTES: usize = 200_000_000;

    /// This test program as a command that runs [`allocate`].
    fn allocator() -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["bench::child::tests::allocate", "--exact", "--ignored", "--nocapture"]);
        command
    }

    #[test]
    #[ignore = "the child that other tests measure"]
    fn allocate() {
        let mut pages = vec![0_u8; BYTES];
        for page in pages.chunks_mut(4096) {
            page[0] = 1;
        }
        // A quarter of a second of work, and long enough for the sampler even on a busy machine.
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(250) {
            std::hint::black_box(&mut pages);
        }
    }

    #[test]
    fn memory_and_time_of_a_child_are_seen() {
        let run = measure(&mut allocator()).unwrap();
        assert!(run.status.success());
        // Measured: 1.4 MB more than the pages themselves, the rest of the program.
        assert!((BYTES as u64..BYTES as u64 + 8_000_000).contains(&run.peak.dirty), "{:?}", run.peak);
        assert!(run.peak.resident >= run.peak.dirty, "{:?}", run.peak);
        assert!(run.wall >= Duration::from_millis(250), "{:?}", run.wall);
        assert!(!run.cpu().is_zero());
    }

    #[test]
    fn grandchildren_count() {
        let allocator = allocator();
        let mut shell = Command::new("sh");
        shell.args(["-c", r#""$0" "$@" >&2 & "$0" "$@" >&2 & wait; echo '{"done": true}'"#]);
        shell.arg(allocator.get_program()).args(allocator.get_args());
        let run = measure(&mut shell).unwrap();
        assert!(run.peak.dirty >= 2 * BYTES as u64, "{:?}", run.peak);
        assert_eq!(run.summary().unwrap(), json!({"done": true}));
    }

    #[test]
    fn a_failure_is_a_result_and_a_missing_program_an_error() {
        let run = measure(Command::new("sh").args(["-c", "exit 6"])).unwrap();
        assert_eq!(run.status.code(), Some(6));
        assert!(run.summary().is_err());
        assert!(measure(&mut Command::new("no-such-program-of-ours")).is_err());
    }

    #[test]
    fn what_is_written_is_counted() {
        // Into the target directory: a temporary folder may be memory.
        let file = std::env::current_exe().unwrap().with_extension("written");
        let mut shell = Command::new("sh");
        let run = measure(shell.args(["-c", r#"head -c 20000000 /dev/zero > "$0""#]).arg(&file)).unwrap();
        std::fs::remove_file(file).unwrap();
        assert!((20_000_000..21_000_000).contains(&run.usage.written), "{:?}", run.usage);
    }

    #[test]
    fn medians_of_odd_and_even_numbers() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Spread { median: 2.5, min: 1.0 });
        assert_eq!(Spread::of([7.0]), Spread { median: 7.0, min: 7.0 });
    }
}
