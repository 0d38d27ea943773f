//! What is said of a failure without saying whose slide it is.

use std::path::{Path, PathBuf};

use super::manifest::{Entry, Source};

/// What follows the name of a file in a sentence.
const ENDS: [&str; 6] = [": ", ", ", "; ", " (", "\"", "'"];

/// The text without the names of the slide's files: those that the manifest gives, their folders and whatever lies there, and copies, which lie
/// in `copies`. What lies in the batch's own folder, `home`, stays, by its place in it.
pub(super) fn without_names(text: &str, entry: &Entry, home: &Path, copies: Option<&Path>) -> String {
    let mut text = text.to_owned();
    let inside = |path: &Path| std::path::absolute(home).is_ok_and(|home| path.starts_with(home));
    if !matches!(&entry.slide, Source::File(slide) if inside(slide)) && !entry.roi.as_deref().is_some_and(inside) {
        text = text.replace(&format!("{}{}", home.display(), std::path::MAIN_SEPARATOR), "");
    }
    let path = |path: &Path, name: &str| (path.display().to_string(), name.to_owned());
    let mut names = Vec::new();
    let mut folders: Vec<PathBuf> = Vec::new();
    match &entry.slide {
        Source::Url(url) => names.push((url.clone(), "the slide".into())),
        Source::File(slide) => {
            names.push(path(slide, "the slide"));
            names.extend(std::fs::canonicalize(slide).ok().map(|slide| path(&slide, "the slide")));
            folders.push(slide.clone());
            folders.extend(slide.parent().map(Into::into));
        }
    }
    if let Some(roi) = &entry.roi {
        names.push(path(roi, "the region"));
        folders.extend(roi.parent().map(Into::into));
    }
    folders.extend(copies.map(Into::into));
    // What lies in a folder of the slide's is replaced up to where the name seems to end.
    for folder in folders.iter().filter(|folder| folder.components().count() > 1) {
        let begin = format!("{}{}", folder.display(), std::path::MAIN_SEPARATOR);
        while let Some(at) = text.find(&begin) {
            let rest = &text[at + begin.len()..];
            let end = ENDS.iter().filter_map(|end| rest.find(end)).min().unwrap_or(rest.len());
            let whole = &text[at..at + begin.len() + end];
            let known = names.iter().find(|(name, _)| whole.starts_with(name.as_str()));
            let (length, name) = match known {
                Some((name, said)) => (name.len(), said.as_str()),
                None => (whole.len(), "a file of the slide"),
            };
            text.replace_range(at..at + length, name);
        }
    }
    for (name, said) in &names {
        text = text.replace(name.as_str(), said);
    }
    // The bare name, as programs quote it. One of a letter or two is in every word.
    let slide = match &entry.slide {
        Source::Url(url) => Path::new(url.rsplit('/').next().unwrap_or(url)).to_owned(),
        Source::File(path) => path.clone(),
    };
    for name in [slide.file_name(), slide.file_stem()].into_iter().flatten() {
        let name = name.to_string_lossy();
        if name.len() > 3 {
            text = text.replace(&*name, "the slide");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_of_a_file_stays() {
        let entry = Entry {
            line: 2,
            slide: Source::File("/archive/Doe, Jane/DOE_JANE.svs".into()),
            id: "a".into(),
            mpp: None,
            roi: Some("/regions/DOE_JANE.geojson".into()),
            roi_values: Vec::new(),
            level: None,
            group: None,
            out: "a/mask.ome.zarr".into(),
            bytes: None,
        };
        let said = |text: &str| {
            without_names(text, &entry, Path::new("/archive/Doe, Jane/out"), Some(Path::new("/stage/x")))
        };
        for (text, expected) in [
            ("/archive/Doe, Jane/DOE_JANE.svs: No such file (os error 2)", "the slide: No such file (os error 2)"),
            ("/archive/Doe, Jane/DOE_JANE.svs: level 0, column 1", "the slide: level 0, column 1"),
            ("/archive/Doe, Jane/DOE_JANE_2.dcm: is empty", "a file of the slide: is empty"),
            ("/archive/Doe, Jane/DOE_JANE.svs/1.dcm: is empty", "the slide/1.dcm: is empty"),
            ("/regions/DOE_JANE.geojson: no classes", "the region: no classes"),
            ("/stage/x/DOE_JANE.svs: is empty", "a file of the slide: is empty"),
            ("the slide DOE_JANE cannot be read", "the slide the slide cannot be read"),
            ("/archive/Doe, Jane/out/a/mask.ome.zarr: No space left", "a/mask.ome.zarr: No space left"),
        ] {
            assert_eq!(said(text), expected, "{text}");
        }
        let url = Entry { slide: Source::Url("s3://bucket/Doe/DOE_JANE.svs".into()), roi: None, ..entry };
        let said = without_names("s3://bucket/Doe/DOE_JANE.svs: timed out", &url, Path::new("out"), None);
        assert_eq!(said, "the slide: timed out");
    }
}
