//! Labels in the store of their image: which images have room for them, and how they are listed.

use std::fs;
use std::path::{Path, PathBuf};

use microtome_io::Microns;
use microtome_io::store::{AxisUnit, Format, ImageSink, LabelledImage, Translation, ZarrImage};
use microtome_io::{SampleType, Size};
use serde_json::{Map, Value, json};

use super::written::files;
use super::{encoded, image, picture};

/// A finished picture of 101 x 50 pixels and three levels.
fn host(folder: &Path, format: Format) -> PathBuf {
    let path = folder.join(format!("image-{format}.ome.zarr"));
    let image = encoded(picture(Size::new(101, 50), 3, SampleType::U8, 3), format, "zstd");
    ZarrImage::create(&path, image).unwrap().finish(&Map::new()).unwrap();
    path
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn listed(image: &Path, format: Format) -> Value {
    match format {
        Format::V0_5 => json_of(&image.join("labels/zarr.json"))["attributes"]["ome"]["labels"].clone(),
        Format::V0_4 => json_of(&image.join("labels/.zattrs"))["labels"].clone(),
    }
}

#[test]
fn an_image_says_where_its_labels_lie() {
    let folder = tempfile::tempdir().unwrap();
    for format in [Format::V0_5, Format::V0_4] {
        let path = host(folder.path(), format);
        let image = LabelledImage::open(&path).unwrap();
        assert_eq!((image.format(), image.levels(), image.size()), (format, 3, Size::new(101, 50)));
        assert_eq!((image.pixel(), image.unit()), (Microns { x: 0.5, y: 0.25 }, AxisUnit::Micrometer));
        assert_eq!(image.translation(), Translation { x: 0.0, y: 0.0 });
        assert_eq!(image.label("nuclei").unwrap(), path.join("labels/nuclei"));
        for name in ["", "..", "a/b", ".x", "__x", "zarr.json"] {
            assert!(image.label(name).unwrap_err().to_string().contains("cannot be called"), "{name}");
        }
    }
}

#[test]
fn labels_are_listed_once_and_all_else_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    for format in [Format::V0_5, Format::V0_4] {
        let path = host(folder.path(), format);
        let image = LabelledImage::open(&path).unwrap();
        let before = files(&path);
        image.unlist("nuclei").unwrap();
        image.make_folder().unwrap();
        image.make_folder().unwrap();
        assert!(files(&path) == before, "a folder is no list");
        image.remove_empty_folder();
        assert!(!path.join("labels").exists());

        image.list("nuclei").unwrap();
        assert_eq!(listed(&path, format), json!(["nuclei"]));
        let once = files(&path);
        image.list("nuclei").unwrap();
        assert!(files(&path) == once, "nothing changes");
        let new: Vec<_> = once.keys().filter(|name| !before.contains_key(*name)).map(String::as_str).collect();
        match format {
            Format::V0_5 => {
                assert_eq!(new, ["labels/zarr.json"]);
                let group = json_of(&path.join("labels/zarr.json"));
                let ome = json!({ "version": "0.5", "labels": ["nuclei"] });
                assert_eq!(group, json!({ "zarr_format": 3, "node_type": "group", "attributes": { "ome": ome } }));
            }
            Format::V0_4 => {
                assert_eq!(new, ["labels/.zattrs", "labels/.zgroup"]);
                assert_eq!(json_of(&path.join("labels/.zgroup")), json!({ "zarr_format": 2 }));
            }
        }
        assert!(before.iter().all(|(name, content)| once[name] == *content), "the image is what it was");

        image.list("tumour").unwrap();
        assert_eq!(listed(&path, format), json!(["nuclei", "tumour"]));
        image.unlist("nuclei").unwrap();
        assert_eq!(listed(&path, format), json!(["tumour"]));
        image.unlist("nuclei").unwrap();
        image.remove_empty_folder();
        assert_eq!(listed(&path, format), json!(["tumour"]));
    }
}

#[test]
fn what_others_have_written_into_the_list_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = host(folder.path(), Format::V0_5);
    fs::create_dir(path.join("labels")).unwrap();
    let theirs = json!({
        "zarr_format": 3,
        "node_type": "group",
        "attributes": { "b": 0.1, "ome": { "version": "0.5", "labels": ["theirs"], "z": [1, null] }, "a": "\u{e4}" },
        "extra": { "must_understand": false },
    });
    fs::write(path.join("labels/zarr.json"), theirs.to_string()).unwrap();
    LabelledImage::open(&path).unwrap().list("ours").unwrap();
    let mut expected = theirs;
    expected["attributes"]["ome"]["labels"] = json!(["theirs", "ours"]);
    assert_eq!(json_of(&path.join("labels/zarr.json")).to_string(), expected.to_string(), "in the same order, too");

    let path = host(folder.path(), Format::V0_4);
    fs::create_dir(path.join("labels")).unwrap();
    fs::write(path.join("labels/.zattrs"), r#"{"labels": ["theirs"], "more": 1e-7}"#).unwrap();
    LabelledImage::open(&path).unwrap().list("ours").unwrap();
    assert_eq!(json_of(&path.join("labels/.zattrs")), json!({ "labels": ["theirs", "ours"], "more": 1e-7 }));
}

/// Every name is there, whoever came first; the lock is gone.
#[test]
fn many_list_their_labels_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for format in [Format::V0_5, Format::V0_4] {
        let path = host(folder.path(), format);
        std::thread::scope(|scope| {
            for n in 0..16 {
                let path = &path;
                scope.spawn(move || {
                    let image = LabelledImage::open(path).unwrap();
                    image.list(&format!("label{n:02}")).unwrap();
                    if n % 4 == 0 {
                        image.unlist(&format!("label{n:02}")).unwrap();
                    }
                });
            }
        });
        let mut names: Vec<String> = serde_json::from_value(listed(&path, format)).unwrap();
        names.sort();
        let expected: Vec<_> = (0..16).filter(|n| n % 4 != 0).map(|n| format!("label{n:02}")).collect();
        assert_eq!(names, expected);
        let left: Vec<_> =
            files(&path).into_keys().filter(|name| name.contains("lock") || name.contains("partial")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn consolidated_metadata_of_zarr_2_learn_of_labels() {
    let folder = tempfile::tempdir().unwrap();
    let path = host(folder.path(), Format::V0_4);
    let kept = json!({ ".zgroup": { "zarr_format": 2 }, "0/.zarray": json_of(&path.join("0/.zarray")) });
    fs::write(path.join(".zmetadata"), json!({ "zarr_consolidated_format": 1, "metadata": kept }).to_string()).unwrap();
    let image = LabelledImage::open(&path).unwrap();
    image.make_folder().unwrap();
    let labels = encoded(super::image(Size::new(101, 50), 2, SampleType::U8), Format::V0_4, "zstd");
    ZarrImage::create(image.label("nuclei").unwrap(), labels).unwrap().finish(&Map::new()).unwrap();
    image.list("nuclei").unwrap();
    let document = json_of(&path.join(".zmetadata"));
    let keys: Vec<&str> = document["metadata"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            ".zgroup",
            "0/.zarray",
            "labels/.zgroup",
            "labels/.zattrs",
            "labels/nuclei/.zgroup",
            "labels/nuclei/.zattrs",
            "labels/nuclei/0/.zarray",
            "labels/nuclei/0/.zattrs",
            "labels/nuclei/1/.zarray",
            "labels/nuclei/1/.zattrs",
        ]
    );
    assert_eq!(document["metadata"]["labels/nuclei/1/.zarray"], json_of(&path.join("labels/nuclei/1/.zarray")));
    image.unlist("nuclei").unwrap();
    let document = json_of(&path.join(".zmetadata"));
    assert_eq!(document["metadata"].as_object().unwrap().len(), 4);
    assert_eq!(document["metadata"]["labels/.zattrs"], json!({ "labels": [] }));
}

#[test]
fn what_is_no_image_with_room_for_labels_is_refused_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &Path, word: &str| {
        let before = files(folder.path());
        let error = LabelledImage::open(path).unwrap_err().to_string();
        assert!(error.contains(word), "{word:?} is missing: {error}");
        assert!(files(folder.path()) == before, "nothing was touched");
    };
    let make = |name: &str, inside: &[(&str, &str)]| {
        let path = folder.path().join(name);
        for (file, content) in inside {
            let file = path.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        }
        path
    };
    refused(&folder.path().join("none"), "none");
    refused(&make("photos", &[("cat.jpg", "meow")]), "no OME-Zarr image");
    let archive = folder.path().join("image.ome.zarr.zip");
    fs::write(&archive, b"PK\x05\x06").unwrap();
    refused(&archive, "no folder");
    refused(&make("array.zarr", &[("zarr.json", r#"{"node_type": "array"}"#)]), "array");
    let attributes =
        |ome: &str| format!(r#"{{"zarr_format": 3, "node_type": "group", "attributes": {{"ome": {ome}}}}}"#);
    let collection = attributes(r#"{"version": "0.5", "bioformats2raw.layout": 3}"#);
    refused(&make("collection.zarr", &[("zarr.json", &collection)]), "collection");
    refused(&make("plate.zarr", &[("zarr.json", &attributes(r#"{"version": "0.5", "plate": {}}"#))]), "plate");
    refused(&make("broken.zarr", &[("zarr.json", "{")]), "broken.zarr");
    let old = r#"{"multiscales": [{"version": "0.3", "axes": ["y", "x"], "datasets": [{"path": "0"}]}]}"#;
    refused(&make("old.zarr", &[(".zattrs", old)]), "0.4 (Zarr 2) and 0.5 (Zarr 3) only");
    let axes = r#""axes": [{"name": "y"}, {"name": "x"}]"#;
    let ome = format!(r#"{{"version": "0.5", "multiscales": [{{{axes}, "datasets": [{{"path": "0"}}]}}]}}"#);
    refused(&make("empty.zarr", &[("zarr.json", &attributes(&ome))]), "finest level is not there");
    let flat = r#"{"node_type": "array", "shape": [0, 7]}"#;
    refused(&make("flat.zarr", &[("zarr.json", &attributes(&ome)), ("0/zarr.json", flat)]), "shape [0, 7]");
    let out = ome.replace(r#""path": "0""#, r#""path": "../0""#);
    refused(&make("out.zarr", &[("zarr.json", &attributes(&out))]), "leads out");

    // Unfinished, whoever is writing it.
    let path = folder.path().join("writing.zarr");
    let sink = ZarrImage::create(&path, picture(Size::new(20, 10), 1, SampleType::U8, 3)).unwrap();
    refused(&path, "not finished");
    drop(sink);
    refused(&path, "not finished");
    // Labels of labels.
    let path = folder.path().join("labels.zarr");
    ZarrImage::create(&path, image(Size::new(20, 10), 1, SampleType::U8)).unwrap().finish(&Map::new()).unwrap();
    refused(&path, "label image");
    // Labels that are something else.
    for (n, (inside, content, word)) in [
        ("labels", "a file", "no folder"),
        ("labels/zarr.json", "{", "labels"),
        ("labels/zarr.json", r#"{"node_type": "array"}"#, "no group of Zarr 3"),
        ("labels/.zgroup", r#"{"zarr_format": 2}"#, "no group of Zarr 3"),
        (
            "labels/zarr.json",
            r#"{"node_type": "group", "attributes": {"ome": {"labels": {"a": 1}}}}"#,
            "no list of names",
        ),
        ("labels/zarr.json", r#"{"node_type": "group", "attributes": {"ome": {"labels": [7]}}}"#, "no list of names"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = host(folder.path(), Format::V0_5);
        let file = path.join(inside);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
        refused(&path, word);
        fs::rename(&path, folder.path().join(format!("done{n}.zarr"))).unwrap();
    }
    // Consolidated metadata that would not name the labels, and some that are none.
    let path = host(folder.path(), Format::V0_5);
    let mut document = json_of(&path.join("zarr.json"));
    document["consolidated_metadata"] = json!({ "kind": "inline", "metadata": {} });
    fs::write(path.join("zarr.json"), document.to_string()).unwrap();
    refused(&path, "consolidated");
    let path = host(folder.path(), Format::V0_4);
    fs::write(path.join(".zmetadata"), "[]").unwrap();
    refused(&path, "consolidated");
}

#[cfg(unix)]
#[test]
fn labels_do_not_lead_out_of_their_image() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let path = host(folder.path(), Format::V0_5);
    symlink(&outside, path.join("labels")).unwrap();
    assert!(LabelledImage::open(&path).unwrap_err().to_string().contains("no folder"));
    fs::remove_file(path.join("labels")).unwrap();
    fs::create_dir(path.join("labels")).unwrap();
    symlink(&outside, path.join("labels/nuclei")).unwrap();
    let image = LabelledImage::open(&path).unwrap();
    assert!(image.label("nuclei").unwrap_err().to_string().contains("symbolic link"));
    symlink(outside.join("lock"), path.join("labels/.microtome-lock")).unwrap();
    assert!(image.list("tumour").unwrap_err().to_string().contains("no regular file"));
    assert!(fs::read_dir(&outside).unwrap().next().is_none());
    // Nor does the file that the list is written to before it has its name.
    fs::remove_file(path.join("labels/.microtome-lock")).unwrap();
    fs::write(outside.join("mine"), "mine").unwrap();
    symlink(outside.join("mine"), path.join("labels/.zarr.json.partial")).unwrap();
    image.list("tumour").unwrap();
    assert_eq!(fs::read_to_string(outside.join("mine")).unwrap(), "mine");
    assert!(!path.join("labels/.zarr.json.partial").is_symlink());
}
