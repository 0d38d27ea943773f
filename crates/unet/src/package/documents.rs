//! That `docs/model-package.md`, `docs/model-package.schema.json` and the code say the same of `model.toml`.
//!
//! Manifests are made from the schema: with every key, and each alternative once. The code reads them, refuses them without a key that
//! the schema requires or with one that it does not know, and says itself which keys there are.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::manifest::Manifest;
use crate::Architecture;

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs");

fn schema() -> Value {
    serde_json::from_str(&std::fs::read_to_string(format!("{DOCS}/model-package.schema.json")).unwrap()).unwrap()
}

fn page() -> String {
    std::fs::read_to_string(format!("{DOCS}/model-package.md")).unwrap()
}

/// A table of a manifest: where it stands, as a JSON pointer, and which of its keys must be there.
#[derive(Debug, Clone)]
struct Table {
    place: String,
    required: BTreeSet<String>,
}

/// Something that a schema accepts, and its tables.
#[derive(Debug, Clone)]
struct Sample {
    value: Value,
    tables: Vec<Table>,
}

impl Sample {
    fn plain(value: Value) -> Self {
        Self { value, tables: Vec::new() }
    }

    /// The tables as they stand where this is found under a key or an index.
    fn tables_at(&self, key: &str) -> impl Iterator<Item = Table> {
        self.tables.iter().map(move |t| Table { place: format!("/{key}{}", t.place), required: t.required.clone() })
    }
}

/// What a schema accepts: with all keys, and each alternative once.
fn samples(schema: &Value, root: &Value) -> Vec<Sample> {
    if let Some(Value::String(reference)) = schema.get("$ref") {
        return samples(root.pointer(reference.strip_prefix('#').unwrap()).unwrap(), root);
    }
    if let Some(Value::Array(alternatives)) = schema.get("oneOf") {
        return alternatives.iter().flat_map(|s| samples(s, root)).collect();
    }
    if let Some(Value::Array(values)) = schema.get("enum") {
        return values.iter().cloned().map(Sample::plain).collect();
    }
    if let Some(value) = schema.get("const") {
        return vec![Sample::plain(value.clone())];
    }
    let number = |key: &str| schema.get(key).and_then(Value::as_f64);
    let plain = |value: Value| vec![Sample::plain(value)];
    match schema["type"].as_str().unwrap() {
        "boolean" => plain(json!(true)),
        "integer" => plain(json!(number("minimum").unwrap_or(1.0) as u64)),
        "number" => plain(json!(number("maximum").map_or(0.5, |most| most / 2.0))),
        "string" if schema.get("pattern").is_some() => plain(json!("0".repeat(64))),
        "string" => plain(json!("text")),
        "array" => {
            let count = number("minItems").map_or(1, |n| n as usize);
            let of = |item: Sample| Sample {
                tables: (0..count).flat_map(|i| item.tables_at(&i.to_string()).collect::<Vec<_>>()).collect(),
                value: vec![item.value.clone(); count].into(),
            };
            samples(&schema["items"], root).into_iter().map(of).collect()
        }
        "object" => {
            assert_eq!(schema["additionalProperties"], false, "{schema}");
            let properties = schema["properties"].as_object().unwrap();
            let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
            let required = required.map(|key| key.as_str().unwrap().to_owned()).collect();
            let here = Table { place: String::new(), required };
            let all: Vec<(&String, Vec<Sample>)> = properties.iter().map(|(k, s)| (k, samples(s, root))).collect();
            // As many as the alternatives of one key: all others are the first ones.
            let most = all.iter().map(|(_, s)| s.len()).max().unwrap_or(1);
            let one = |number: usize| {
                let chosen = |samples: &[Sample]| samples.get(number).unwrap_or(&samples[0]).clone();
                let entries: Vec<(&String, Sample)> = all.iter().map(|(key, s)| (*key, chosen(s))).collect();
                let tables = entries.iter().flat_map(|(key, s)| s.tables_at(key)).chain([here.clone()]).collect();
                let value = entries.into_iter().map(|(key, s)| (key.clone(), s.value)).collect::<Map<_, _>>().into();
                Sample { value, tables }
            };
            (0..most).map(one).collect()
        }
        other => panic!("{other} in the schema"),
    }
}

fn parse(manifest: &Value) -> Result<(), String> {
    // Brings scalars before tables, as TOML wants it.
    let text = toml::to_string(&toml::Value::try_from(manifest).unwrap()).unwrap();
    Manifest::parse(Path::new("model.toml"), &text).map(|_| ()).map_err(|e| format!("{e}\n{text}"))
}

/// The manifest with a table changed.
fn with(manifest: &Value, place: &str, change: impl FnOnce(&mut Map<String, Value>)) -> Value {
    let mut manifest = manifest.clone();
    change(manifest.pointer_mut(place).unwrap().as_object_mut().unwrap());
    manifest
}

/// What stands in backticks.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect()
}

fn set<'a>(keys: impl IntoIterator<Item = &'a String>) -> BTreeSet<String> {
    keys.into_iter().cloned().collect()
}

#[test]
fn the_schema_knows_the_keys_that_the_code_knows() {
    let schema = schema();
    let manifests = samples(&schema, &schema);
    let (mut seen, mut kinds) = (BTreeSet::new(), BTreeSet::new());
    for Sample { value: manifest, tables } in &manifests {
        parse(manifest).unwrap();
        kinds.insert(manifest["architecture"]["kind"].as_str().unwrap().to_owned());
        for Table { place, required } in tables {
            let table = manifest.pointer(place).unwrap().as_object().unwrap();
            let tags = ["kind", "scheme"];
            let variant: Vec<&Value> = tags.iter().filter_map(|tag| table.get(*tag)).collect();
            if !seen.insert(format!("{place} {variant:?}")) {
                continue;
            }
            // The code says which keys there are, but for the one that tells variants apart.
            let error = parse(&with(manifest, place, |t| drop(t.insert("zzz".into(), json!(1))))).unwrap_err();
            let line = error.lines().next().unwrap();
            assert!(line.contains("unknown field `zzz`"), "{place} {variant:?} takes any key: {line}");
            let expected = set(table.keys().filter(|k| !tags.contains(&k.as_str())));
            let known = quoted(line.split_once("`zzz`").unwrap().1);
            assert_eq!(known, expected, "{place} {variant:?}: {line}");
            for key in table.keys() {
                let found = parse(&with(manifest, place, |t| drop(t.remove(key))));
                assert_eq!(found.is_err(), required.contains(key), "{place} {variant:?} without {key}: {found:?}");
            }
        }
    }
    let unknown = serde_json::from_str::<Architecture>("{\"kind\": \"none\"}").unwrap_err().to_string();
    assert_eq!(kinds, quoted(unknown.split_once("`none`").unwrap().1));
    println!("{} manifests, {} tables", manifests.len(), seen.len());
    assert!(seen.len() > 30, "{seen:?}");
}

/// Every key and every value that is a word.
fn words(schema: &Value, found: &mut BTreeSet<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::Object(properties)) = map.get("properties") {
                found.extend(properties.keys().cloned());
            }
            let values = map.get("enum").and_then(Value::as_array).into_iter().flatten().chain(map.get("const"));
            found.extend(values.filter_map(Value::as_str).map(ToOwned::to_owned));
            map.values().for_each(|s| words(s, found));
        }
        Value::Array(list) => list.iter().for_each(|s| words(s, found)),
        _ => {}
    }
}

#[test]
fn the_page_names_every_key_and_value_of_the_schema() {
    let (schema, page) = (schema(), page());
    let mut all = BTreeSet::new();
    words(&schema, &mut all);
    let named = |word: &String| page.contains(&format!("`{word}`")) || page.contains(&format!("\"{word}\""));
    let missing: Vec<&String> = all.iter().filter(|word| !named(word)).collect();
    assert!(missing.is_empty(), "docs/model-package.md does not name {missing:?}");
}

#[test]
fn the_page_lists_the_keys_of_every_kind_of_network() {
    let (schema, page) = (schema(), page());
    let sections: Vec<(&str, &str)> = page.split("\n#").filter_map(|section| section.split_once('\n')).collect();
    for kind in schema["properties"]["architecture"]["oneOf"].as_array().unwrap() {
        let keys = set(kind["properties"].as_object().unwrap().keys().filter(|key| *key != "kind"));
        let mut names = BTreeSet::new();
        words(&kind["properties"]["kind"], &mut names);
        let named = |heading: &str| heading.starts_with("###") && quoted(heading) == names;
        let section = sections.iter().find(|(heading, _)| named(heading));
        let (_, text) = section.unwrap_or_else(|| panic!("docs/model-package.md has no section of {names:?}"));
        // Tables have keys in their first column.
        let cells = text.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1));
        assert_eq!(cells.flat_map(quoted).collect::<BTreeSet<_>>(), keys, "{names:?}");
    }
}
