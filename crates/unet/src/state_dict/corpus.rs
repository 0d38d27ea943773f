//! Checkpoints as PyTorch writes them, and all files of the models at hand: each is read as PyTorch reads it, or refused with a reason.
//!
//! `tests/checkpoints` comes from `tests/python/checkpoint_fixtures.py`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::{NESTED, StateDict};
use crate::Result;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/checkpoints");

#[test]
fn what_pytorch_writes_is_read_or_refused() {
    let expected = std::fs::read_to_string(format!("{FIXTURES}/expected.json")).unwrap();
    let expected: BTreeMap<String, Option<BTreeMap<String, (Vec<usize>, Vec<f32>)>>> =
        serde_json::from_str(&expected).unwrap();
    for (name, tensors) in expected {
        let state = StateDict::open(&Path::new(FIXTURES).join(&name), &NESTED);
        let Some(tensors) = tensors else {
            let error = state.expect_err(&name).to_string();
            assert!(error.contains(&format!("{name}: {}", refusal(&name))), "{error}");
            continue;
        };
        let state = state.unwrap();
        let mut found = BTreeMap::new();
        state
            .read_each(|name, weight| drop(found.insert(name.to_owned(), (weight.shape, weight.values.to_vec()))))
            .unwrap();
        assert_eq!(found, tensors, "{name}");
    }
}

/// How the refusal of a fixture begins.
fn refusal(name: &str) -> &'static str {
    match name {
        "own-class.pth" => {
            "own-class/data.pkl cannot be read: it holds a network or a part of one as Python objects (__main__.Net), which"
        }
        "module.pth" => {
            "module/data.pkl cannot be read: it holds a network or a part of one as Python objects \
             (torch.nn.modules.container.Sequential), which"
        }
        "loss.pth" => {
            "loss/data.pkl cannot be read: it holds a network or a part of one as Python objects (torch.nn.modules.loss.CrossEntropyLoss)"
        }
        "legacy.pth" => "a checkpoint in the format of before PyTorch 1.6; in Python, ",
        "arrays.pth" => {
            "a state dict without a tensor that could be a weight: a is a NumPy array; tensors of PyTorch are read"
        }
        "tensor.pth" => "a tensor, not a state dict: names with tensors",
        "empty.pth" => "no state dict: names with tensors; there are optimizer",
        "script.ts" => "a TorchScript archive, which holds code, and none is ever run; in Python, ",
        "arrays.npz" => "arrays of NumPy (.npz); in Python, ",
        "weights.pkl" => "a pickle of its own, not what torch.save writes; in Python, ",
        other => panic!("no refusal of {other} is known"),
    }
}

#[test]
fn tensors_without_numbers_say_why() {
    let state = StateDict::open(&Path::new(FIXTURES).join("kinds.pth"), &NESTED).unwrap();
    let others: Vec<(&str, &str)> = state.others.iter().map(|(name, why)| (name.as_str(), why.as_str())).collect();
    assert_eq!(
        others,
        [
            ("bool", "is stored as BoolStorage; half, bfloat16, float and double are read"),
            ("complex", "is stored as ComplexFloatStorage; half, bfloat16, float and double are read"),
            ("int64", "is stored as LongStorage; half, bfloat16, float and double are read"),
            ("meta", "is made by _rebuild_meta_tensor_no_storage, which is not supported"),
            ("negative", "has a conjugate or a sign that is not applied yet"),
            ("quantized", "is made by _rebuild_qtensor, which is not supported"),
            ("sparse", "is made by _rebuild_sparse_tensor, which is not supported"),
            ("uint16", "is stored as uint16; half, bfloat16, float and double are read"),
            ("uint8", "is stored as ByteStorage; half, bfloat16, float and double are read"),
        ]
    );
}

/// Every file below a folder, but for texts, pictures and settings, sorted.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let extension = path.extension().map(|e| e.to_string_lossy().into_owned()).unwrap_or_default();
        if path.is_dir() {
            files(&path, found);
        } else if !["json", "md", "png", "txt"].contains(&extension.as_str()) {
            found.push(path);
        }
    }
    found.sort();
}

/// What becomes of a file, in one line without its folder.
fn outcome(path: &Path) -> String {
    let read = |path: &Path| -> Result<String> {
        let state = StateDict::open(path, &NESTED)?;
        let (mut tensors, mut values) = (0, 0);
        state.read_each(|name, weight| {
            assert!(weight.values.iter().all(|v| v.is_finite()), "{}: {name}", path.display());
            (tensors, values) = (tensors + 1, values + weight.values.len());
        })?;
        let beside = match state.others.len() {
            0 => String::new(),
            n => format!(", {n} without weights"),
        };
        Ok(format!("{tensors} tensors of {values} values{beside}"))
    };
    match read(path) {
        Ok(found) => found,
        Err(error) => {
            let message = error.to_string();
            format!("refused: {}", message.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&message))
        }
    }
}

/// Writes `docs/checkpoints.md` if `MICROTOME_BLESS=1` is set, and compares with it otherwise.
#[test]
fn every_checkpoint_at_hand() {
    let Some(models) = microtome_testkit::data("models") else { return };
    let mut table = String::from(
        "# Checkpoints at hand\n\n\
         Every file with weights that the project has at hand, opened as a state dict: read, all of its tensors, or refused with a reason.\n\
         Files of `models/` are real ones (not in the repository), those of `tests/checkpoints/` are made by\n\
         `tests/python/checkpoint_fixtures.py`; their values are compared with PyTorch's.\n\
         What loading a checkpoint of 500 MB takes is in [benchmarks/load.txt](benchmarks/load.txt).\n\n\
         The table is made by `MICROTOME_BLESS=1 cargo nextest run -p microtome-unet -E 'test(every_checkpoint_at_hand)'`.\n\n\
         | file | result |\n|---|---|\n",
    );
    for (folder, shown) in [(models.as_path(), "models"), (Path::new(FIXTURES), "tests/checkpoints")] {
        let mut found = Vec::new();
        files(folder, &mut found);
        for path in found {
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            writeln!(table, "| {shown}/{name} | {} |", outcome(&path).replace('|', "\\|")).unwrap();
        }
    }
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/checkpoints.md");
    if std::env::var_os("MICROTOME_BLESS").is_some() {
        std::fs::write(&committed, &table).unwrap();
    }
    let before = std::fs::read_to_string(&committed).unwrap_or_default();
    assert!(before == table, "docs/checkpoints.md is out of date (MICROTOME_BLESS=1 writes it):\n{table}");
}
