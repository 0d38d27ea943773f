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
    // Whole names first: one may hold what seems to end it.
    names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    for (name, said) in &names {
        text = text.replace(name.as_str(), said);
    }
    let slide = match &entry.slide {
        Source::Url(url) => Path::new(url.rsplit('/').next().unwrap_or(url)).to_owned(),
        Source::File(path) => path.clone(),
    };
    let bare = slide.file_name().unwrap_or_default().to_string_lossy();
    // What lies in a folder of the slide's is replaced up to where the name seems to end.
    for folder in folders.iter().filter(|folder| folder.components().count() > 1) {
        let begin = format!("{}{}", folder.display(), std::path::MAIN_SEPARATOR);
        while let Some(at) = text.find(&begin) {
            let rest = &text[at + begin.len()..];
            let end_of = |rest: &str| ENDS.iter().filter_map(|end| rest.find(end)).min().unwrap_or(rest.len());
            // A copy of the slide has its name; and a name that is there is known as a whole.
            let copied = rest.find(&*bare).filter(|&at| !bare.is_empty() && at <= end_of(rest));
            let there = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let there = there.map(|file| file.file_name().to_string_lossy().into_owned());
            let there = there.filter(|name| rest.starts_with(name.as_str())).map(|name| name.len());
            let known = copied.map(|at| at + bare.len()).into_iter().chain(there).max().unwrap_or(0);
            let end = known + end_of(&rest[known..]);
            text.replace_range(at..at + begin.len() + end, "a file of the slide");
        }
    }
    // The bare name, as programs quote it. One of a letter or two is in every word.
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
        let said =
            |text: &str| without_names(text, &entry, Path::new("/archive/Doe, Jane/out"), Some(Path::new("/stage/x")));
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
        for name in ["Doe, Jane.svs", "O'Neill Mary.svs", "Doe (Jane); liver: left.svs"] {
            let named = Entry { slide: Source::File(Path::new("/archive/x").join(name)), ..entry.clone() };
            for folder in ["/archive/x", "/stage/y/z"] {
                let said = without_names(
                    &format!("{folder}/{name}: is empty"),
                    &named,
                    Path::new("out"),
                    Some(Path::new("/stage/y")),
                );
                assert!(["the slide: is empty", "a file of the slide: is empty"].contains(&&*said), "{said}");
            }
        }
        let url = Entry { slide: Source::Url("s3://bucket/Doe/DOE_JANE.svs".into()), roi: None, ..entry };
        let said = without_names("s3://bucket/Doe/DOE_JANE.svs: timed out", &url, Path::new("out"), None);
        assert_eq!(said, "the slide: timed out");
    }
}
