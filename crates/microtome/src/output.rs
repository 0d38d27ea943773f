//! Claiming the place where a mask is to go.

use std::path::Path;

use microtome_io::store::{self, Found};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// What to do with an output of ours that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// Keep the result of the same run, refuse that of another.
    #[default]
    Keep,
    /// Replace it.
    Replace,
}

/// Everything that can change a byte of the result, by name. Two runs with equal fingerprints give equal stores.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fingerprint(Map<String, Value>);

impl Fingerprint {
    pub(crate) fn new(settings: Map<String, Value>) -> Self {
        Self(settings)
    }

    /// The root attribute `microtome` of the store: the settings, and their digest.
    pub(crate) fn attributes(&self) -> Map<String, Value> {
        let mut attributes = Map::new();
        attributes.insert("fingerprint".into(), self.digest().into());
        attributes.insert("run".into(), Value::Object(self.0.clone()));
        attributes
    }

    fn digest(&self) -> String {
        let text = Value::Object(self.0.clone()).to_string();
        Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The settings in which another run differs: `name: theirs there, ours here`.
    fn differences(&self, attributes: &Map<String, Value>) -> Option<String> {
        if attributes.get("fingerprint").and_then(Value::as_str) == Some(&self.digest()) {
            return None;
        }
        let empty = Map::new();
        let theirs = attributes.get("run").and_then(Value::as_object).unwrap_or(&empty);
        let names = self.0.keys().chain(theirs.keys().filter(|k| !self.0.contains_key(*k)));
        let text = |v: Option<&Value>| match v {
            None => "nothing".to_owned(),
            Some(Value::String(s)) => s.clone(),
            Some(v) => v.to_string(),
        };
        let differences: Vec<String> = names
            .filter(|name| self.0.get(*name) != theirs.get(*name))
            .map(|name| format!("{name}: {} there, {} here", text(theirs.get(name)), text(self.0.get(name))))
            .collect();
        Some(if differences.is_empty() { "its fingerprint".into() } else { differences.join("; ") })
    }
}

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The place is free: begin.
    Free,
    /// The same run has finished there before.
    Done,
}

/// Makes room for the output of a run, or says why that cannot be.
pub(crate) fn claim(path: &Path, fingerprint: &Fingerprint, existing: Existing) -> Result<Claim> {
    let remove = || store::remove(path).map(|()| Claim::Free).map_err(Error::Write);
    match store::inspect(path).map_err(Error::Write)? {
        Found::Nothing => Ok(Claim::Free),
        Found::InUse => Err(Error::InUse { path: path.into() }),
        // What a crash left behind holds nothing that is worth more than its own computation.
        Found::Unfinished => remove(),
        Found::Complete(attributes) => match (existing, fingerprint.differences(&attributes)) {
            (Existing::Replace, _) => remove(),
            (Existing::Keep, None) => Ok(Claim::Done),
            (Existing::Keep, Some(differs)) => Err(Error::DifferentRun { path: path.into(), differs }),
        },
        _ => Err(Error::OutputExists { path: path.into(), found: describe(path), hint: ", and it is not microtome's" }),
    }
}

fn describe(path: &Path) -> String {
    if path.is_dir() { "a folder".into() } else { "a file".into() }
}
