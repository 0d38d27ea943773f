//! `dataset.json`: channels and labels.

use std::path::Path;

use microtome_io::Class;
use serde_json::{Map, Value};

use crate::arguments::{Object, as_count, read_object};
use crate::{Output, Result};

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Dataset {
    /// Names of the input channels, in order.
    pub(super) channels: Vec<String>,
    /// The values of the mask, background first.
    pub(super) classes: Vec<Class>,
    pub(super) output: Output,
}

impl Dataset {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let map = read_object(path)?;
        Self::parse(&Object::file(path, &map))
    }

    /// Number of logit planes of a network for it.
    pub(super) fn heads(&self) -> usize {
        self.output.heads(self.classes.len())
    }

    fn parse(file: &Object<'_>) -> Result<Self> {
        let channels = channels(file)?;
        let labels = file.object("labels")?;
        let (classes, output) =
            if is_region_based(labels) { regions(file, labels)? } else { plain_labels(file, labels)? };
        Ok(Self { channels, classes, output })
    }
}

/// `channel_names`, called `modality` once: an object from "0", "1", ... to names.
fn channels(file: &Object<'_>) -> Result<Vec<String>> {
    let key = if file.get("channel_names").is_some() { "channel_names" } else { "modality" };
    let names = if file.get(key).is_some() { file.object(key)? } else { file.object("channel_names")? };
    let name = |i: usize| {
        let name = names.get(&i.to_string()).ok_or_else(|| file.wrong(key, &format!("has no channel {i}")))?;
        Ok(name.as_str().map_or_else(|| name.to_string(), ToOwned::to_owned))
    };
    if names.is_empty() {
        return Err(file.wrong(key, "is empty"));
    }
    (0..names.len()).map(name).collect()
}

/// nnU-Net's rule: regions exist if any label is a list of more than one value.
fn is_region_based(labels: &Map<String, Value>) -> bool {
    labels.values().any(|v| v.as_array().is_some_and(|list| list.len() > 1))
}

/// The one value of an ordinary label; nnU-Net takes a list of one value for one.
fn single(value: &Value) -> Option<usize> {
    match value {
        Value::Array(list) => match list.as_slice() {
            [one] => whole(one),
            _ => None,
        },
        value => whole(value),
    }
}

/// A count, also as a text, of which nnU-Net makes one by Python's `int`.
fn whole(value: &Value) -> Option<usize> {
    value.as_str().map_or_else(|| as_count(value), |text| text.trim().parse().ok())
}

fn plain_labels(file: &Object<'_>, labels: &Map<String, Value>) -> Result<(Vec<Class>, Output)> {
    let mut classes = Vec::with_capacity(labels.len());
    for (name, value) in labels {
        let value = single(value)
            .and_then(|v| u16::try_from(v).ok())
            .ok_or_else(|| file.wrong("labels", &format!("gives {name} a value that is not from 0 to 65535")))?;
        // The ignore label has no logit and is never predicted.
        if name != "ignore" {
            classes.push(Class::with_default_color(value, name));
        }
    }
    classes.sort_by_key(|c| c.value);
    if let Some(same) = classes.windows(2).find(|pair| pair[0].value == pair[1].value) {
        let message = format!("gives {} and {} the same value {}", same[0].name, same[1].name, same[0].value);
        return Err(file.wrong("labels", &message));
    }
    // The mask holds the index of the largest logit: that is the label's value only if values count up from 0.
    let consecutive = classes.iter().enumerate().all(|(i, c)| usize::from(c.value) == i);
    if !consecutive || classes.is_empty() {
        let values: Vec<String> = classes.iter().map(|c| c.value.to_string()).collect();
        return Err(file.wrong("labels", &format!("has the values {}; they must be 0, 1, 2, ...", values.join(", "))));
    }
    Ok((classes, Output::Labels))
}

fn regions(file: &Object<'_>, labels: &Map<String, Value>) -> Result<(Vec<Class>, Output)> {
    let is_background = |value: &Value| single(value) == Some(0);
    // The order of declaration is the order of the logits.
    let names: Vec<&String> = labels
        .iter()
        .filter(|(name, value)| *name != "ignore" && !is_background(value))
        .map(|(name, _)| name)
        .collect();
    let order = file.list("regions_class_order")?;
    let value = |v: &Value| {
        as_count(v)
            .and_then(|v| u16::try_from(v).ok())
            .ok_or_else(|| file.wrong("regions_class_order", "holds a value that is not from 0 to 65535"))
    };
    let class_order: Vec<u16> = order.iter().map(value).collect::<Result<_>>()?;
    if class_order.len() != names.len() {
        let message = format!("has {} values for {} regions", class_order.len(), names.len());
        return Err(file.wrong("regions_class_order", &message));
    }
    let background = labels.iter().find(|(_, v)| is_background(v)).map_or("background", |(name, _)| name);
    let mut classes = vec![Class::with_default_color(0, background)];
    for (name, &value) in names.into_iter().zip(&class_order) {
        // Two regions may set the same value; the later one overwrites, so its name is the value's.
        classes.retain(|c| c.value != value);
        classes.push(Class::with_default_color(value, name));
    }
    classes.sort_by_key(|c| c.value);
    Ok((classes, Output::Regions { class_order }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: &Value) -> Result<Dataset> {
        Dataset::parse(&Object::file(Path::new("dataset.json"), value.as_object().unwrap()))
    }

    fn values(dataset: &Dataset) -> Vec<(u16, &str)> {
        dataset.classes.iter().map(|c| (c.value, c.name.as_str())).collect()
    }

    #[test]
    fn labels_are_sorted_and_ignore_has_no_logit() {
        let dataset = parse(&json!({
            "modality": {"0": "R", "1": "G"},
            "labels": {"tumour": [2], "background": 0, "stroma": 1, "ignore": 3}
        }))
        .unwrap();
        assert_eq!(dataset.channels, ["R", "G"]);
        assert_eq!(values(&dataset), [(0, "background"), (1, "stroma"), (2, "tumour")]);
        assert_eq!(dataset.output, Output::Labels);
    }

    #[test]
    fn a_value_may_be_a_text() {
        let labels = |values: Value| parse(&json!({"channel_names": {"0": "R"}, "labels": values}));
        let dataset = labels(json!({"background": "0", "a": " 1 ", "b": ["2"]})).unwrap();
        assert_eq!(values(&dataset), [(0, "background"), (1, "a"), (2, "b")]);
        for wrong in ["", "1.0", "-1", "one"] {
            let message = labels(json!({"background": 0, "a": wrong})).unwrap_err().to_string();
            assert_eq!(message, "dataset.json: labels gives a a value that is not from 0 to 65535");
        }
    }

    #[test]
    fn regions_keep_the_order_of_declaration() {
        let dataset = parse(&json!({
            "channel_names": {"0": "R"},
            "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3], "ignore": 4},
            "regions_class_order": [1, 3, 2]
        }))
        .unwrap();
        assert_eq!(dataset.output, Output::Regions { class_order: vec![1, 3, 2] });
        assert_eq!(values(&dataset), [(0, "background"), (1, "whole"), (2, "enhancing"), (3, "core")]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let message = |value: Value| parse(&value).unwrap_err().to_string();
        let rgb = json!({"0": "R"});
        assert_eq!(message(json!({"labels": {}})), "dataset.json: channel_names is missing");
        assert_eq!(
            message(json!({"channel_names": {"1": "R"}, "labels": {}})),
            "dataset.json: channel_names has no channel 0"
        );
        assert_eq!(message(json!({"channel_names": rgb})), "dataset.json: labels is missing");
        assert_eq!(
            message(json!({"channel_names": rgb, "labels": {"background": 0, "a": 2}})),
            "dataset.json: labels has the values 0, 2; they must be 0, 1, 2, ..."
        );
        assert_eq!(
            message(json!({"channel_names": rgb, "labels": {"background": 0, "a": 1, "b": 2, "c": 2}})),
            "dataset.json: labels gives b and c the same value 2"
        );
        assert_eq!(
            message(json!({"channel_names": rgb, "labels": {"background": 0, "a": -1}})),
            "dataset.json: labels gives a a value that is not from 0 to 65535"
        );
        assert_eq!(
            message(json!({"channel_names": rgb, "labels": {"background": 0, "a": [1, 2]}})),
            "dataset.json: regions_class_order is missing"
        );
        assert_eq!(
            message(
                json!({"channel_names": rgb, "labels": {"background": 0, "a": [1, 2]}, "regions_class_order": [1, 2]})
            ),
            "dataset.json: regions_class_order has 2 values for 1 regions"
        );
    }
}
