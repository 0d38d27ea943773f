//! A few thousand cases of chance for each of the functions, near to what makes sense.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::archive::{checkpoint, pickled};
use super::*;
use crate::nnunet;

/// Nothing here takes longer, on a busy machine.
const SECONDS: u64 = 5;

fn timed(run: impl FnOnce()) {
    let start = Instant::now();
    run();
    assert!(start.elapsed() < Duration::from_secs(SECONDS), "{:?}", start.elapsed());
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The small checkpoints of the tests, of all kinds.
fn checkpoints() -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(path("tests/checkpoints")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| e != "json"));
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).chain([checkpoint()]).collect()
}

/// Bytes in other places than where they were: changed, left out, doubled.
fn changed(mut bytes: Vec<u8>, changes: &[(usize, u8, u8)]) -> Vec<u8> {
    for &(at, byte, kind) in changes {
        if bytes.is_empty() {
            break;
        }
        let at = at % bytes.len();
        match kind {
            0..=5 => bytes[at] = byte,
            6 => drop(bytes.drain(at..(at + usize::from(byte)).min(bytes.len()))),
            _ => {
                let end = (at + usize::from(byte)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(usize, u8, u8)>> {
    // Half of the bytes are lengths, of which the extremes are of interest.
    let byte = prop_oneof![any::<u8>(), prop::sample::select(vec![0_u8, 1, 0x7f, 0x80, 0xff])];
    prop::collection::vec((any::<usize>(), byte, 0..8_u8), 1..6)
}

/// The text with some of its values replaced: numbers, texts, lists and words.
fn with_values(text: &str, changes: &[(usize, &str)]) -> String {
    let is_value = |c: char| c.is_ascii_alphanumeric() || "._+-\"[]{}".contains(c);
    let mut text = text.to_owned();
    for (at, value) in changes {
        let starts: Vec<usize> = text
            .char_indices()
            .filter(|(i, c)| is_value(*c) && (*i == 0 || !text[..*i].ends_with(is_value)))
            .map(|(i, _)| i)
            .collect();
        let Some(start) = starts.get(at % starts.len().max(1)) else { break };
        let length = text[*start..].find(|c| !is_value(c)).unwrap_or(text.len() - start);
        text.replace_range(*start..start + length, value);
    }
    text
}

fn values() -> impl Strategy<Value = Vec<(usize, &'static str)>> {
    let value = prop::sample::select(vec![
        "0",
        "1",
        "2",
        "-1",
        "0.5",
        "3.0",
        "1e308",
        "-1e-308",
        "65536",
        "4294967296",
        "9223372036854775807",
        "18446744073709551615",
        "18446744073709551616",
        "1e999",
        "NaN",
        "-Infinity",
        "null",
        "true",
        "\"\"",
        "\"2d\"",
        "\"a\"",
        "[]",
        "{}",
        "[0]",
        "[3, 3]",
        "[1, 1, 1]",
        "[[1, 1], [2, 2]]",
        "[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]",
        "[[[[]]]]",
        "{\"a\": 1}",
        ",",
        "]",
        "}",
    ]);
    prop::collection::vec((any::<usize>(), value), 1..4)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap()
}

/// Files that make sense, with which the targets of cargo-fuzz begin, too.
fn seed(name: &str) -> String {
    read(&format!("fuzz/seeds/{name}"))
}

#[test]
fn what_is_changed_makes_sense_to_begin_with() {
    let source = |bytes: Vec<u8>| Arc::new(Memory::new("seed", bytes));
    let state = StateDict::read(source(checkpoint()), &NESTED).unwrap();
    let mut names = Vec::new();
    state.read_each(|name, weight| names.push((name.to_owned(), weight.values.len()))).unwrap();
    assert_eq!(names, [("a".into(), 1)]);
    smallest().check(microtome_io::Size::new(4, 4)).unwrap();

    // All but the weights is there.
    let folder = tempfile::tempdir().unwrap();
    let message = |name: &str| Model::open(folder.path().join(name), &ModelOptions::default()).unwrap_err().to_string();
    open_results(&folder.path().join("results"), seed("results/residual-encoder").as_bytes());
    assert!(message("results").contains("its weights are not this network's: missing "), "{}", message("results"));
    open_package(&folder.path().join("package"), seed("package/nuclei").as_bytes());
    assert!(message("package").contains("weights.safetensors: No such file"), "{}", message("package"));
    open_recipe(&folder.path().join("recipe"), seed("recipe/unet").as_bytes());
    println!("{}", message("recipe"));
    nnunet::read_settings(state);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn checkpoints_of_chance(bytes in prop::sample::select(checkpoints()), changes in changes()) {
        timed(|| open_checkpoint(&changed(bytes, &changes)));
    }

    #[test]
    fn pickles_of_chance(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                &b"("[..], b"t", b"}", b"u", b"]", b"e", b"a", b"s", b"d", b"0", b"1", b"2", b"N", b"\x88", b"K\x01", b"K\0",
                b"J\xff\xff\xff\xff", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"X\x01\0\0\x000", b"X\x05\0\0\0model",
                b"ctorch\nFloatStorage\n", b"ctorch\nHalfStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
                b"ctorch._utils\n_rebuild_parameter\n", b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ccollections\nOrderedDict\n",
                b"ctorch\nSize\n", b"R", b"\x81", b"\x92", b"Q", b"b", b"q\0", b"h\0", b"q\x01", b"h\x01", b"\x94", b")", b"\x85",
                b"\x86", b"\x87", b"X\x07\0\0\0storageX\x01\0\0\x001",
                // A whole tensor of the second storage.
                b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x001X\x03\0\0\0cpuK\x0ctQK\0(K\x0ct(K\x01t\x89NtR",
            ]),
            0..60,
        ),
        end in prop::sample::select(vec![&b"."[..], b"u.", b"\x85.", b""]),
    ) {
        timed(|| open_pickle(&[&b"\x80\x02"[..], &parts.concat(), end].concat()));
    }

    #[test]
    fn headers_of_chance(values in values(), missing in 0..40_usize) {
        let header = with_values(
            &seed("safetensors/two"),
            &values,
        );
        timed(|| open_safetensors(header.as_bytes()));
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; 32_usize.saturating_sub(missing)]].concat();
        timed(|| open_checkpoint(&bytes));
    }
}

/// Runs cases with a folder of their own.
fn in_folder(seed: &str, values: impl Strategy<Value = Vec<(usize, &'static str)>>, run: fn(&Path, &[u8])) {
    let folder = tempfile::tempdir().unwrap();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(2000));
    runner
        .run(&values, |values| {
            timed(|| run(folder.path(), with_values(seed, &values).as_bytes()));
            Ok(())
        })
        .unwrap();
}

#[test]
fn manifests_of_chance() {
    in_folder(&seed("package/nuclei"), values(), open_package);
}

#[test]
fn recipes_of_chance() {
    in_folder(&seed("recipe/unet"), values(), open_recipe);
}

#[test]
fn plans_of_chance() {
    in_folder(&seed("results/residual-encoder"), values(), open_results);
}

#[test]
fn a_pickle_alone_is_no_checkpoint_of_ours() {
    // The archive around it is in order: what is wrong is the pickle's.
    let error =
        StateDict::read(Arc::new(Memory::new("fuzz", pickled(b"\x80\x02N."))), &NESTED).unwrap_err().to_string();
    assert_eq!(error, "fuzz: no state dict: names with tensors");
}
