//! `cargo xtask bench read`: how fast slides are read, beside OpenSlide, tifffile and bare JPEG decoders.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::child::Spread;
use super::dialogue::{Dialogue, milliseconds};
use super::report::{Relation, Report, Table, mebibytes};
use super::slide::{Slide, Tiles};
use super::{Bench, Extent, machine};

const TITLE: &str = "\
Reading slides: ours beside OpenSlide, tifffile and bare JPEG decoders, on the same tiles in one run.

All of level 0 is read in regions of 512 x 512 pixels, row by row, each thread taking the next one; ours and OpenSlide (through
openslide-rs, whose pixels are taken as they are) are opened for each run, outside of what is timed, with a cache of 64 MiB, of which ours
is told to use what a row of regions takes, as `segment` does. `our decoder` and `zune-jpeg` are these decoders on the
same streams, put together beforehand, into one buffer: no regions, no memory of their own, one thread. tifffile decodes the tiles
and drops them, with one thread and with as many as it likes. Contenders take turns, once in each round. Mpx/s are those of level 0 by the median time;
`CPU s` is the processor time of the least run, in the program and in the kernel. `ours` is how many times as long it takes as ours with one thread, by the medians.
Of random regions and openings each is timed; files lie in the page cache. Memory, here with all of the cache in use, is anonymous memory and dirty file pages of a process that reads with
two threads, in megabytes, from its start to its end.";

const ROUNDS: usize = 5;
const QUICK_ROUNDS: usize = 2;
/// The real NDPI, under the data folder.
const NDPI: &str = "slides/ndpi/test3-DAPI-2-387.ndpi";
/// Random regions, and openings.
const RANDOM: usize = 2000;
const OPENINGS: usize = 50;
/// Rows of regions that are read of slides too large to be read as a whole.
const ROWS: u64 = 16;
/// The most by which the largest peak may exceed the smallest.
const RATIO: f64 = 1.1;
/// What an opening may take, in milliseconds.
const OPENING: f64 = 20.0;

/// Who reads, and with how many threads; tifffile chooses itself if none is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contender {
    Ours(usize),
    OpenSlide(usize),
    Decoder,
    ZuneJpeg,
    Tifffile(usize),
}

impl Contender {
    const ALL: [Self; 8] = [
        Self::Ours(1),
        Self::Ours(2),
        Self::Decoder,
        Self::ZuneJpeg,
        Self::OpenSlide(1),
        Self::OpenSlide(2),
        Self::Tifffile(1),
        Self::Tifffile(0),
    ];

    fn name(self) -> String {
        let threads = |name: &str, count: usize| match count {
            0 => format!("{name}, as many threads as it likes"),
            1 => format!("{name}, 1 thread"),
            n => format!("{name}, {n} threads"),
        };
        match self {
            Self::Ours(count) => threads("ours", count),
            Self::OpenSlide(count) => threads("OpenSlide", count),
            Self::Decoder => "our decoder".into(),
            Self::ZuneJpeg => "zune-jpeg".into(),
            Self::Tifffile(count) => threads("tifffile", count),
        }
    }

    fn question(self) -> String {
        match self {
            Self::Ours(threads) => format!("all ours {threads} 0"),
            Self::OpenSlide(threads) => format!("all openslide {threads} 0"),
            Self::Decoder => "all decoder 1 0".into(),
            Self::ZuneJpeg => "all zune-jpeg 1 0".into(),
            Self::Tifffile(threads) => format!("all {threads}"),
        }
    }
}

/// One slide that is read as a whole.
struct Subject {
    name: &'static str,
    path: PathBuf,
    /// What the ratio to OpenSlide with one thread should come to.
    openslide: f64,
    /// What the share of a bare decoder's rate should come to, where its tiles are JPEG streams of their own.
    decoder: Option<f64>,
}

pub(super) fn run(bench: &Bench<'_>) -> Result<()> {
    let rounds = bench.options.rounds.unwrap_or(match bench.options.extent {
        Extent::Full => ROUNDS,
        Extent::Quick => QUICK_ROUNDS,
    });
    let mut report = bench.report("read", TITLE);
    if let Some(path) = &bench.options.slide {
        let subject = Subject { name: "the slide given", path: path.clone(), openslide: 3.0, decoder: Some(0.85) };
        whole(bench, &mut report, &subject, rounds)?;
        random(bench, &mut report, path, rounds)?;
        return bench.finish(report);
    }
    let aperio = |name, path| Subject { name, path, openslide: 3.0, decoder: Some(0.85) };
    let distinct = Slide::sized(bench, 20_000, 15_000, Tiles::Distinct)?;
    let mut subjects = vec![
        aperio("CMU-1-Small-Region.svs", bench.workspace.demo_slide()?),
        aperio("20000 x 15000 SVS, distinct tiles", distinct.path),
    ];
    match bench.workspace.data().map(|data| data.join(NDPI)).filter(|path| path.exists()) {
        Some(path) => subjects.push(Subject { name: "Hamamatsu NDPI", path, openslide: 2.0, decoder: None }),
        None => report.say("\nHamamatsu NDPI: skipped, the folder of real files is absent"),
    }
    for subject in &subjects {
        whole(bench, &mut report, subject, rounds)?;
    }
    let large = Slide::make(bench, 100_000, Tiles::Repeated)?;
    random(bench, &mut report, &large.path, rounds)?;
    memory(bench, &mut report, large)?;
    bench.finish(report)
}

/// Starts the program with a slide; a reason instead where it cannot be read.
fn start(command: &mut Command) -> Result<Result<(Dialogue, Value), String>> {
    let (dialogue, about, _) = Dialogue::start(command)?;
    if let Some(why) = about["unsupported"].as_str() {
        let why = why.to_owned();
        dialogue.end()?;
        return Ok(Err(why));
    }
    Ok(Ok((dialogue, about)))
}

/// Seconds of each run, and processor seconds of the least.
#[derive(Debug, Default)]
struct Times {
    seconds: Vec<f64>,
    cpu: Vec<f64>,
}

/// All of a slide by everybody, in turn.
fn whole(bench: &Bench<'_>, report: &mut Report, subject: &Subject, rounds: usize) -> Result<()> {
    report.say(&format!("\n{}", subject.name));
    report.say_command(&bench.read_slide(&subject.path));
    let (mut ours, about) = match start(&mut bench.read_slide(&subject.path))? {
        Ok(started) => started,
        Err(why) => {
            report.say(&format!("skipped: {why}"));
            return Ok(());
        }
    };
    let mut tifffile = match start(bench.script("bench_tifffile.py")?.arg(&subject.path))? {
        Ok((dialogue, about)) => {
            report.say(&format!("tifffile {}", about["tifffile"].as_str().unwrap_or("?")));
            Some(dialogue)
        }
        Err(why) => {
            report.say(&format!("tifffile: skipped, it does not read this: {why}"));
            None
        }
    };
    match about["openslide"].as_str() {
        Some(version) => report.say(&format!("OpenSlide {version}")),
        None => report.say("OpenSlide: skipped, it is not part of the build"),
    }
    let number = |key: &str| about[key].as_f64().with_context(|| format!("an answer without {key}"));
    let megapixels = number("width")? * number("height")? / 1e6;
    report.say(&format!(
        "{} x {} pixels, tiles of {}, format {}",
        about["width"], about["height"], about["tile"], about["format"]
    ));

    let takes_part = |contender: &Contender| match contender {
        Contender::Ours(_) => true,
        Contender::OpenSlide(_) => about["openslide"].is_string(),
        Contender::Decoder | Contender::ZuneJpeg => subject.decoder.is_some(),
        Contender::Tifffile(_) => tifffile.is_some(),
    };
    let contenders: Vec<Contender> = Contender::ALL.into_iter().filter(takes_part).collect();
    let mut times: Vec<Times> = contenders.iter().map(|_| Times::default()).collect();
    // The first round, which is not counted, puts the streams of the bare decoders together and the file into the page cache.
    for round in 0..=rounds {
        for (contender, times) in contenders.iter().zip(&mut times) {
            let dialogue = match contender {
                Contender::Tifffile(_) => tifffile.as_mut().context("tifffile takes no part")?,
                _ => &mut ours,
            };
            let (busy, cpu, started) = (machine::busy(), dialogue.cpu(), Instant::now());
            let answer = dialogue.ask(&contender.question())?;
            let (cpu, wall) = (dialogue.cpu().saturating_sub(cpu), started.elapsed().as_secs_f64());
            let others = machine::busy().saturating_sub(busy).saturating_sub(cpu).as_secs_f64() / wall;
            let seconds = answer["seconds"].as_f64().context("an answer without seconds")?;
            if round == 0 {
                continue;
            }
            // Of a run of few ticks of 10 ms the figure says nothing.
            if wall > 0.5 {
                report.note_others(others);
            }
            times.seconds.push(seconds);
            times.cpu.push(cpu.as_secs_f64());
            report.record(
                "run",
                json!({
                    "slide": subject.name,
                    "contender": contender.name(),
                    "seconds": seconds,
                    "cpu_seconds": cpu.as_secs_f64(),
                    "busy_processors_of_others": others,
                }),
            );
        }
    }
    ours.end()?;
    if let Some(tifffile) = tifffile {
        tifffile.end()?;
    }

    let median = |wanted: Contender| {
        let found = contenders.iter().position(|contender| *contender == wanted)?;
        Some(Spread::of(times[found].seconds.iter().copied()).median)
    };
    let one = median(Contender::Ours(1)).context("ours takes part")?;
    let mut table = Table::new(&["level 0", "median s", "min s", "CPU s", "Mpx/s", "ours"]);
    for (contender, times) in contenders.iter().zip(&times) {
        let (wall, cpu) = (Spread::of(times.seconds.iter().copied()), Spread::of(times.cpu.iter().copied()));
        table.row(vec![
            contender.name(),
            format!("{:.3}", wall.median),
            format!("{:.3}", wall.min),
            format!("{:.2}", cpu.min),
            format!("{:.0}", megapixels / wall.median),
            format!("{:.2} x", wall.median / one),
        ]);
    }
    report.say(&format!("rounds: {rounds}\n{table}"));
    let target = |text: &str| format!("{}: {text}", subject.name);
    let decoders = [(Contender::Decoder, "our bare decoder's"), (Contender::ZuneJpeg, "zune-jpeg's")];
    for (decoder, name) in decoders {
        if let Some((alone, bound)) = median(decoder).zip(subject.decoder) {
            report.target(&target(&format!("share of {name} rate, 1 thread")), alone / one, Relation::AtLeast, bound);
        }
    }
    if let Some(theirs) = median(Contender::OpenSlide(1)) {
        report.target(
            &target("times as fast as OpenSlide, 1 thread"),
            theirs / one,
            Relation::AtLeast,
            subject.openslide,
        );
    }
    if let Some(two) = median(Contender::Ours(2)) {
        report.target(&target("times as fast with 2 threads as with 1"), one / two, Relation::AtLeast, 1.8);
    }
    Ok(())
}

/// Random regions, and how long opening takes.
fn random(bench: &Bench<'_>, report: &mut Report, path: &Path, rounds: usize) -> Result<()> {
    report.say(&format!("\nrandom regions of 512 x 512 pixels at level 0, and openings: {}", path.display()));
    let (mut dialogue, about) = match start(&mut bench.read_slide(path))? {
        Ok(started) => started,
        Err(why) => {
            report.say(&format!("skipped: {why}"));
            return Ok(());
        }
    };
    let readers: Vec<&str> = if about["openslide"].is_string() { vec!["ours", "openslide"] } else { vec!["ours"] };
    let mut table = Table::new(&["", "region median ms", "90 % ms", "99 % ms", "opening median ms", "largest ms"]);
    for (reader, name) in readers.into_iter().zip(["ours", "OpenSlide"]) {
        let (mut regions, mut openings) = (Vec::new(), Vec::new());
        let (busy, cpu, started) = (machine::busy(), dialogue.cpu(), Instant::now());
        for _ in 0..rounds {
            regions.extend(milliseconds(&dialogue.ask(&format!("random {reader} {RANDOM}"))?)?);
            openings.extend(milliseconds(&dialogue.ask(&format!("open {reader} {OPENINGS}"))?)?);
        }
        let cpu = dialogue.cpu().saturating_sub(cpu);
        let others = machine::busy().saturating_sub(busy).saturating_sub(cpu);
        report.note_others(others.as_secs_f64() / started.elapsed().as_secs_f64());
        regions.sort_by(f64::total_cmp);
        openings.sort_by(f64::total_cmp);
        let at = |sorted: &[f64], share: f64| sorted[((sorted.len() - 1) as f64 * share) as usize];
        let opening = at(&openings, 0.5);
        table.row(vec![
            name.into(),
            format!("{:.2}", at(&regions, 0.5)),
            format!("{:.2}", at(&regions, 0.9)),
            format!("{:.2}", at(&regions, 0.99)),
            format!("{opening:.2}"),
            format!("{:.2}", at(&openings, 1.0)),
        ]);
        report.record(
            "random",
            json!({
                "contender": name,
                "region_median_ms": at(&regions, 0.5),
                "region_90_ms": at(&regions, 0.9),
                "region_99_ms": at(&regions, 0.99),
                "opening_median_ms": opening,
                "opening_largest_ms": at(&openings, 1.0),
            }),
        );
        if reader == "ours" {
            report.target("opening a slide, median ms", opening, Relation::AtMost, OPENING);
        }
    }
    report.say(&format!("{RANDOM} regions and {OPENINGS} openings in each of {rounds} rounds\n{table}"));
    dialogue.end()
}

/// Peaks of processes that read slides of different widths, and one whose tiles all differ.
fn memory(bench: &Bench<'_>, report: &mut Report, large: Slide) -> Result<()> {
    let distinct = match bench.options.extent {
        Extent::Full => 60_000,
        Extent::Quick => 30_000,
    };
    let slides = [
        (Slide::make(bench, 20_000, Tiles::Repeated)?, ROWS),
        (large, ROWS),
        (Slide::make(bench, distinct, Tiles::Distinct)?, 0),
    ];
    report.say("\nmemory while reading with 2 threads and a cache of 64 MiB");
    let mut table = Table::new(&["slide", "file MiB", "rows of regions", "peak MiB", "RSS MiB"]);
    let mut peaks = Vec::new();
    for (slide, rows) in &slides {
        let (mut dialogue, ..) = Dialogue::start(&mut bench.read_slide(&slide.path))?;
        let (answer, peak) = dialogue.ask_watched(&format!("all-kept ours 2 {rows}"))?;
        ensure!(answer["seconds"].is_f64(), "{}: {answer}", slide.path.display());
        dialogue.end()?;
        table.row(vec![
            slide.name(),
            mebibytes(slide.bytes()?),
            if *rows == 0 { "all".into() } else { rows.to_string() },
            mebibytes(peak.dirty),
            mebibytes(peak.resident),
        ]);
        report.record(
            "memory",
            json!({
                "slide": slide.name(),
                "file_bytes": slide.bytes()?,
                "peak_anonymous_and_dirty_bytes": peak.dirty,
                "peak_resident_bytes": peak.resident,
            }),
        );
        peaks.push(peak.dirty as f64);
    }
    report.say(&table.to_string());
    let (least, most) =
        (peaks.iter().copied().fold(f64::INFINITY, f64::min), peaks.iter().copied().fold(0.0, f64::max));
    report.at_most("largest peak, of the smallest", most / least, RATIO);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contenders_have_names_and_questions_of_their_own() {
        let names: std::collections::BTreeSet<String> = Contender::ALL.iter().map(|c| c.name()).collect();
        assert_eq!(names.len(), Contender::ALL.len());
        assert_eq!(Contender::Ours(2).question(), "all ours 2 0");
        assert_eq!(Contender::Tifffile(0).question(), "all 0");
    }
}
