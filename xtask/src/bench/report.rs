//! What a bench leaves: a text for people and a file of JSON lines for programs, both with the machine and the commands.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::child::Run;
use super::machine;
use crate::shell;
use crate::workspace::Workspace;

/// Grows while the bench runs.
#[derive(Debug)]
pub(super) struct Report {
    name: &'static str,
    text: String,
    records: Vec<Value>,
    missed: Vec<String>,
    /// The most processors that other programs kept busy in a run, on average over it, if any was looked at.
    others: Option<f64>,
    places: Places,
}

/// On which side of its bound a figure should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    AtLeast,
    AtMost,
}

/// More than so many processors' worth of other programs, and times are those of a busy machine.
pub(super) const QUIET: f64 = 0.1;

impl Report {
    /// A report that begins with the machine and the command that we were called with.
    pub(super) fn begin(workspace: &Workspace, name: &'static str, title: &str, places: Places) -> Self {
        let machine = machine::describe(workspace);
        let arguments: Vec<String> = std::env::args().skip(1).map(|a| places.shorten(&a)).collect();
        let command = format!("cargo xtask {}", arguments.join(" "));
        let mut report =
            Self { name, text: format!("{title}\n\n"), records: Vec::new(), missed: Vec::new(), others: None, places };
        let value = |key: &str| match &machine[key] {
            Value::String(text) => text.clone(),
            Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
            other => other.to_string(),
        };
        report.say(&format!("$ {command}"));
        report.say(&format!(
            "{} ({}), {} cores, {} of memory, Linux {}, commit {}; load average before: {}",
            value("processor"),
            value("extensions"),
            value("cores"),
            gibibytes(machine["memory_bytes"].as_u64().unwrap_or(0)),
            value("kernel"),
            value("commit"),
            value("load_average_before"),
        ));
        report.record("machine", json!({ "command": command, "machine": machine }));
        report
    }

    /// A line of text, or several, with the names of folders as they are in a clone.
    pub(super) fn say(&mut self, text: &str) {
        let text = self.places.shorten(text);
        println!("{text}");
        self.text.push_str(&text);
        self.text.push('\n');
    }

    /// A line of text that shows a command.
    pub(super) fn say_command(&mut self, command: &Command) {
        self.say(&format!("$ {}", shell::show(command)));
    }

    /// The command as one would type it at the root of a clone.
    pub(super) fn shorten(&self, command: &Command) -> String {
        self.places.shorten(&shell::show(command))
    }

    /// A line of JSON: the members of the object `value`, after its kind.
    pub(super) fn record(&mut self, kind: &str, value: Value) {
        let mut record = json!({ "kind": kind, "bench": self.name });
        if let (Value::Object(record), Value::Object(members)) = (&mut record, value) {
            record.extend(members);
        }
        self.records.push(record);
    }

    /// A line of JSON about a run: the members of `value`, and the figures and the summary of the run.
    pub(super) fn record_run(&mut self, run: &Run, value: Value) {
        self.note_others(run.others);
        self.record("run", value);
        if let Some(Value::Object(record)) = self.records.last_mut() {
            record.insert("run".into(), run.record());
            record.insert("summary".into(), run.summary().unwrap_or_default());
        }
    }

    /// A claim that a figure is no larger than a bound.
    pub(super) fn at_most(&mut self, claim: &str, figure: f64, bound: f64) {
        self.claim(claim, figure, "at most", bound, figure <= bound);
    }

    /// A claim that a figure is no smaller than a bound.
    pub(super) fn at_least(&mut self, claim: &str, figure: f64, bound: f64) {
        self.claim(claim, figure, "at least", bound, figure >= bound);
    }

    /// What a figure should come to on the machine that it was aimed at. Another machine, or a busy one, may miss it: no error.
    pub(super) fn target(&mut self, target: &str, figure: f64, relation: Relation, bound: f64) {
        let (words, met) = match relation {
            Relation::AtLeast => ("at least", figure >= bound),
            Relation::AtMost => ("at most", figure <= bound),
        };
        let line = format!("{target}: {}, target {words} {}", significant(figure), significant(bound));
        self.say(&format!("{}  {line}", if met { "MET   " } else { "MISSED" }));
        self.record(
            "target",
            json!({"target": target, "figure": figure, "relation": words, "bound": bound, "met": met}),
        );
    }

    /// How many processors other programs kept busy during something that was measured.
    pub(super) fn note_others(&mut self, others: f64) {
        self.others = Some(self.others.map_or(others, |most| most.max(others)));
    }

    fn claim(&mut self, claim: &str, figure: f64, relation: &str, bound: f64, holds: bool) {
        let line = format!("{claim}: {}, {relation} {}", significant(figure), significant(bound));
        self.say(&format!("{}  {line}", if holds { "holds " } else { "MISSED" }));
        self.record(
            "claim",
            json!({"claim": claim, "figure": figure, "relation": relation, "bound": bound, "holds": holds}),
        );
        if !holds {
            self.missed.push(line);
        }
    }

    /// Writes `NAME.txt` and `NAME.jsonl`. An error if a claim was missed.
    pub(super) fn finish(mut self, folder: &Path) -> Result<()> {
        if let Some(others) = self.others {
            self.say(&format!("\nOther programs kept at most {others:.1} processors busy in one of these runs."));
            if others > QUIET {
                self.say("Busy machine: times are too long.");
            }
        }
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let mut lines = String::new();
        for record in &self.records {
            writeln!(lines, "{}", self.places.shorten(&record.to_string()))?;
        }
        for (extension, content) in [("txt", self.text), ("jsonl", lines)] {
            let path = folder.join(self.name).with_extension(extension);
            fs::write(&path, content).with_context(|| path.display().to_string())?;
            eprintln!("wrote {}", path.display());
        }
        if !self.missed.is_empty() {
            bail!("the bench {} misses what it claims: {}", self.name, self.missed.join("; "));
        }
        Ok(())
    }
}

/// Folders of this machine and what stands for them in a report, so that reports of two machines can be compared.
#[derive(Debug)]
pub(super) struct Places(Vec<(String, String)>);

impl Places {
    /// The longest path first, because one folder may lie in another.
    pub(super) fn new(mut places: Vec<(String, String)>) -> Self {
        places.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        Self(places)
    }

    fn shorten(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (path, name)| text.replace(path, name))
    }
}

/// Rows of text under headings, aligned: the first column to the left, figures to the right.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(ToString::to_string).collect()] }
    }

    /// A row of as many cells as there are headings.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        for (index, row) in self.rows.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            let cells = row.iter().enumerate().map(|(column, cell)| match column {
                0 => format!("{cell:<0$}", width(column)),
                _ => format!("{cell:>0$}", width(column)),
            });
            write!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// Bytes as MiB, without the unit.
pub(super) fn mebibytes(bytes: u64) -> String {
    format!("{:.0}", bytes as f64 / (1 << 20) as f64)
}

fn gibibytes(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1 << 30) as f64)
}

/// Whole numbers as they are, others with four significant digits or, where shares are close to 1, five.
fn significant(figure: f64) -> String {
    match figure.abs() {
        _ if figure.fract() == 0.0 => format!("{figure:.0}"),
        size if size >= 1000.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        size if size >= 1.0 => format!("{figure:.3}"),
        _ => format!("{figure:.5}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let places = Places::new(vec![("/a/".into(), String::new()), ("/a/out/".into(), "target/".into())]);
        Report { name: "test", text: String::new(), records: Vec::new(), missed: Vec::new(), others: None, places }
    }

    #[test]
    fn a_missed_claim_is_written_and_an_error() {
        let folder = std::env::temp_dir().join(format!("microtome-report-{}", std::process::id()));
        let mut report = report();
        report.at_most("peak, MiB", 100.0, 512.0);
        report.at_least("Dice", 0.5, 0.999);
        let error = report.finish(&folder).unwrap_err().to_string();
        let text = fs::read_to_string(folder.join("test.txt")).unwrap();
        let lines = fs::read_to_string(folder.join("test.jsonl")).unwrap();
        fs::remove_dir_all(folder).unwrap();
        assert!(error.contains("Dice: 0.50000, at least 0.99900") && !error.contains("peak"), "{error}");
        assert_eq!(text, "holds   peak, MiB: 100, at most 512\nMISSED  Dice: 0.50000, at least 0.99900\n");
        let records: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(records[0]["holds"], true);
        assert_eq!(records[1]["holds"], false);
    }

    #[test]
    fn a_figure_that_is_no_number_misses() {
        let mut report = report();
        report.at_most("ratio", f64::NAN, 1.05);
        report.at_least("ratio", f64::NAN, 1.05);
        assert_eq!(report.missed.len(), 2);
    }

    #[test]
    fn a_missed_target_is_written_and_no_error() {
        let mut report = report();
        report.target("times as fast", 2.6, Relation::AtLeast, 2.5);
        report.target("times as long", 1.25, Relation::AtMost, 1.15);
        report.target("times as fast", f64::NAN, Relation::AtLeast, 2.5);
        assert!(report.missed.is_empty());
        let lines: Vec<&str> = report.text.lines().collect();
        assert_eq!(lines[0], "MET     times as fast: 2.600, target at least 2.500");
        assert_eq!(lines[1], "MISSED  times as long: 1.250, target at most 1.150");
        assert!(lines[2].starts_with("MISSED") && report.records[2]["met"] == false);
    }

    #[test]
    fn folders_have_the_names_of_a_clone() {
        let mut command = Command::new("/a/out/release/microtome");
        command.arg("/a/models/nuclei");
        let mut report = report();
        assert_eq!(report.shorten(&command), "target/release/microtome models/nuclei");
        report.say("/a/out/bench/plans.json: not supported");
        assert_eq!(report.text, "target/bench/plans.json: not supported\n");
    }

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["slide", "MiB"]);
        table.row(vec!["a".into(), "1000".into()]);
        assert_eq!(table.to_string(), "slide   MiB\na      1000");
    }
}
