//! A program that stays: it answers each line that it is sent with a line of JSON.
//!
//! Libraries, networks and compiled code are loaded once, outside what is timed, and programs that are compared can take turns.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::machine;
use super::sampler::{self, Peak};
use crate::shell;

/// It ends when nobody asks any more: when this is dropped.
#[derive(Debug)]
pub(super) struct Dialogue {
    shown: String,
    child: Child,
    /// None when nothing more will be asked.
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Dialogue {
    /// Starts the program, and returns the first line that it says, unasked, and the most memory that it held until then.
    /// Its errors go where ours go.
    pub(super) fn start(command: &mut Command) -> Result<(Self, Value, Peak)> {
        let shown = shell::show(command);
        eprintln!("$ {shown}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{shown}`"))?;
        let questions = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("no pipe from the program")?);
        let mut dialogue = Self { shown, child, questions, answers };
        let (value, peak) = dialogue.watched(Self::answer)?;
        Ok((dialogue, value, peak))
    }

    /// The answer to a question of one line.
    pub(super) fn ask(&mut self, question: &str) -> Result<Value> {
        let questions = self.questions.as_mut().context("a program that was told that nothing more will be asked")?;
        let sent = questions.write_all(format!("{question}\n").as_bytes()).and_then(|()| questions.flush());
        sent.with_context(|| format!("`{}` ended before it was asked to {question}", self.shown))?;
        self.answer().with_context(|| question.to_owned())
    }

    /// The answer to a question of one line, and the most memory that the program held meanwhile.
    pub(super) fn ask_watched(&mut self, question: &str) -> Result<(Value, Peak)> {
        self.watched(|dialogue| dialogue.ask(question))
    }

    /// How long each of `count` passes took that the program makes over `batch` tiles at once with so many threads.
    pub(super) fn run(&mut self, threads: usize, batch: usize, count: usize) -> Result<Vec<f64>> {
        milliseconds(&self.ask(&format!("run {threads} {batch} {count}"))?)
    }

    /// Processor time that the program has used so far.
    pub(super) fn cpu(&self) -> Duration {
        machine::cpu(self.child.id())
    }

    /// Waits until the program ends, which is a failure if it ends with one.
    pub(super) fn end(mut self) -> Result<()> {
        drop(self.questions.take());
        let status = self.child.wait().with_context(|| format!("waiting for `{}`", self.shown))?;
        ensure!(status.success(), "`{}` failed ({status})", self.shown);
        Ok(())
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line).with_context(|| format!("what `{}` answers", self.shown))?;
        ensure!(read > 0, "`{}` ended without an answer", self.shown);
        serde_json::from_str(&line).with_context(|| format!("not an answer of `{}`: {}", self.shown, line.trim()))
    }

    fn watched<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<(T, Peak)> {
        let pid = self.child.id();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sampler = scope.spawn(|| sampler::watch(pid, &done));
            let result = work(self);
            // Before any return, or the scope would wait for the sampler for ever.
            done.store(true, Ordering::Release);
            sampler.thread().unpark();
            let peak = sampler.join().expect("the sampler does not panic");
            Ok((result?, peak))
        })
    }
}

/// The list of that name in an answer.
pub(super) fn milliseconds(answer: &Value) -> Result<Vec<f64>> {
    let list = answer["milliseconds"].as_array().context("an answer without milliseconds")?;
    list.iter().map(|value| value.as_f64().context("milliseconds that are no number")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Says hello, then repeats what it is asked; `fail` makes it fail.
    fn parrot() -> Command {
        let mut shell = Command::new("sh");
        let script = r#"echo '{"hello":1}'; while read -r line; do [ "$line" = fail ] && exit 3; echo "{\"asked\":\"$line\"}"; done"#;
        shell.args(["-c", script]);
        shell
    }

    #[test]
    fn questions_are_answered_in_turn() {
        let (mut dialogue, hello, _) = Dialogue::start(&mut parrot()).unwrap();
        assert_eq!(hello, json!({"hello": 1}));
        assert_eq!(dialogue.ask("run 1 2 3").unwrap(), json!({"asked": "run 1 2 3"}));
        assert_eq!(dialogue.ask_watched("peak").unwrap().0, json!({"asked": "peak"}));
        dialogue.end().unwrap();
    }

    #[test]
    fn an_end_instead_of_an_answer_is_an_error() {
        let (mut dialogue, ..) = Dialogue::start(&mut parrot()).unwrap();
        let error = format!("{:#}", dialogue.ask("fail").unwrap_err());
        assert!(error.starts_with("fail: `sh") && error.ends_with("ended without an answer"), "{error}");
        assert!(dialogue.end().unwrap_err().to_string().contains("failed (exit status: 3)"));
        assert!(Dialogue::start(Command::new("sh").args(["-c", "echo hello"])).is_err());
    }

    #[test]
    fn milliseconds_are_numbers() {
        assert_eq!(milliseconds(&json!({"milliseconds": [1, 2.5]})).unwrap(), [1.0, 2.5]);
        assert!(milliseconds(&json!({"milliseconds": ["1"]})).is_err());
        assert!(milliseconds(&json!({"logits": 3})).is_err());
    }
}
