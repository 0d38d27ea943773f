//! `crossval_results_folds_*/postprocessing.json`: what nnU-Net found to improve its masks of the training cases.
//!
//! Content: nnU-Net 2.8.1, `nnunetv2/postprocessing/remove_connected_components.py`. The `.pkl` beside it says the same and is not read.

use std::path::{Path, PathBuf};

use microtome_io::Class;
use serde_json::Value;

use super::folder::{folders, name_of};
use crate::arguments::{Object, as_count, read_object};
use crate::{Postprocessing, Result};

const PREFIX: &str = "crossval_results_folds_";
const NAME: &str = "postprocessing.json";
/// The only function that nnU-Net has.
const KEEP_LARGEST: &str = "remove_all_but_largest_component_from_segmentation";
/// Its argument.
const LABELS: &str = "labels_or_regions";

/// What was found with these folds; if nobody looked at exactly these, what was found with the most.
pub(super) fn read(trainer: &Path, folds: &[String], classes: &[Class]) -> Result<Option<Vec<Postprocessing>>> {
    let Some(path) = find(trainer, folds)? else { return Ok(None) };
    let map = read_object(&path)?;
    parse(&Object::file(&path, &map), classes).map(Some)
}

fn find(trainer: &Path, folds: &[String]) -> Result<Option<PathBuf>> {
    let mut folds: Vec<&str> = folds.iter().map(|f| f.trim_start_matches("fold_")).collect();
    folds.sort_unstable();
    let of = |path: PathBuf| {
        let name = name_of(&path);
        let mut numbers: Vec<&str> = name.strip_prefix(PREFIX)?.split('_').collect();
        numbers.sort_unstable();
        let file = path.join(NAME);
        file.is_file().then_some(((numbers == folds, numbers.len()), file))
    };
    let mut found: Vec<_> = folders(trainer)?.into_iter().filter_map(of).collect();
    found.sort();
    Ok(found.pop().map(|(_, file)| file))
}

fn parse(file: &Object<'_>, classes: &[Class]) -> Result<Vec<Postprocessing>> {
    let (functions, arguments) = (file.list("postprocessing_fns")?, file.list("postprocessing_kwargs")?);
    if functions.len() != arguments.len() {
        let message = format!("has {} entries for {} functions", arguments.len(), functions.len());
        return Err(file.wrong("postprocessing_kwargs", &message));
    }
    if let Some(other) = functions.iter().find(|f| f.as_str() != Some(KEEP_LARGEST)) {
        return Err(file.unsupported("postprocessing_fns", &format!("{other} is not supported; {KEEP_LARGEST} is")));
    }
    let mut steps = Vec::with_capacity(arguments.len());
    for (i, arguments) in arguments.iter().enumerate() {
        let Value::Object(map) = arguments else {
            return Err(file.wrong("postprocessing_kwargs", "holds what is no object"));
        };
        let arguments = Object { path: file.path, place: format!("postprocessing_kwargs.{i}"), map };
        if arguments.get("background_label").is_some_and(|v| as_count(v) != Some(0)) {
            return Err(arguments.unsupported("background_label", "must be 0; another one is not supported"));
        }
        if let Some(key) = map.keys().find(|k| ![LABELS, "background_label"].contains(&k.as_str())) {
            return Err(arguments.unsupported(key, "is not supported"));
        }
        let mut values = Vec::new();
        if !union(arguments.need(LABELS)?, &mut values, 0) {
            return Err(arguments.wrong(LABELS, "holds what is no label or region"));
        }
        values.sort_unstable();
        values.dedup();
        // A value that regions are made of, but that none of them sets, is in no mask.
        values.retain(|v| *v != 0 && classes.iter().any(|c| c.value == *v));
        if !values.is_empty() {
            steps.push(Postprocessing::KeepLargest { values });
        }
    }
    Ok(steps)
}

/// Adds the values of a label, of a region, or of a list of both. False for anything else.
fn union(value: &Value, values: &mut Vec<u16>, depth: usize) -> bool {
    match value {
        Value::Array(list) => depth < 2 && list.iter().all(|v| union(v, values, depth + 1)),
        single => as_count(single).and_then(|v| u16::try_from(v).ok()).map(|v| values.push(v)).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn keep(values: &[u16]) -> Postprocessing {
        Postprocessing::KeepLargest { values: values.into() }
    }

    fn parsed(value: &Value) -> Result<Vec<Postprocessing>> {
        let classes: Vec<Class> = (0..4).map(|v| Class::with_default_color(v, format!("class {v}"))).collect();
        parse(&Object::file(Path::new("postprocessing.json"), value.as_object().unwrap()), &classes)
    }

    fn steps(labels: &[Value]) -> Value {
        let arguments: Vec<Value> = labels.iter().map(|l| json!({ "labels_or_regions": l })).collect();
        json!({"postprocessing_fns": vec![KEEP_LARGEST; labels.len()], "postprocessing_kwargs": arguments})
    }

    #[test]
    fn labels_and_regions_are_sets_of_values() {
        assert_eq!(parsed(&steps(&[])).unwrap(), []);
        let found =
            parsed(&steps(&[json!([3, 1, 2]), json!(2), json!([[2, 3], 1]), json!([3, 4]), json!([4])])).unwrap();
        assert_eq!(found, [keep(&[1, 2, 3]), keep(&[2]), keep(&[1, 2, 3]), keep(&[3])], "4 is in no mask");
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        let message = |value: Value| parsed(&value).unwrap_err().to_string();
        let one = |arguments: Value| {
            message(json!({"postprocessing_fns": [KEEP_LARGEST], "postprocessing_kwargs": [arguments]}))
        };
        assert_eq!(message(json!({})), "postprocessing.json: postprocessing_fns is missing");
        assert_eq!(
            message(json!({"postprocessing_fns": ["fill"], "postprocessing_kwargs": [{}]})),
            format!("postprocessing.json: postprocessing_fns \"fill\" is not supported; {KEEP_LARGEST} is")
        );
        assert_eq!(
            message(json!({"postprocessing_fns": [KEEP_LARGEST], "postprocessing_kwargs": []})),
            "postprocessing.json: postprocessing_kwargs has 0 entries for 1 functions"
        );
        let prefix = "postprocessing.json: postprocessing_kwargs.0.";
        assert_eq!(one(json!({})), format!("{prefix}labels_or_regions is missing"));
        for wrong in [json!("x"), json!(-1), json!([[[1]]])] {
            assert_eq!(
                one(json!({ "labels_or_regions": wrong })),
                format!("{prefix}labels_or_regions holds what is no label or region")
            );
        }
        assert_eq!(
            one(json!({"labels_or_regions": 1, "background_label": 2})),
            format!("{prefix}background_label must be 0; another one is not supported")
        );
        assert_eq!(one(json!({"labels_or_regions": 1, "size": 2})), format!("{prefix}size is not supported"));
    }

    #[test]
    fn the_file_of_the_same_folds_is_read() {
        let temporary = tempfile::tempdir().unwrap();
        let found = |folds: &[&str]| {
            let folds: Vec<String> = folds.iter().map(|f| (*f).to_owned()).collect();
            find(temporary.path(), &folds).unwrap().map(|file| name_of(file.parent().unwrap()))
        };
        assert_eq!(found(&["fold_0"]), None);
        for folds in ["0", "0_1_2", "1_2"] {
            let folder = temporary.path().join(format!("{PREFIX}{folds}"));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(NAME), "{}").unwrap();
        }
        assert_eq!(found(&["fold_0"]).as_deref(), Some("crossval_results_folds_0"));
        assert_eq!(found(&["fold_2", "fold_1"]).as_deref(), Some("crossval_results_folds_1_2"));
        assert_eq!(found(&["fold_all"]).as_deref(), Some("crossval_results_folds_0_1_2"), "the most");
    }
}
