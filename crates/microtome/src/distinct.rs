//! What is read is not written.

use std::path::{Path, PathBuf};

use microtome_io::remote::is_remote;

use crate::{Error, Result};

/// Refuses an `output` that is one of the `inputs`, whatever links lead there, or a folder that one of them lies in: making room for it would
/// remove what it is to be made of. An output inside of an input is not refused: that replaces nothing of it.
///
/// # Errors
/// [`Error::Usage`] that names the output.
pub fn distinct<'a>(output: &Path, inputs: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let place = resolved(output);
    match inputs.into_iter().find(|input| resolved(input).starts_with(&place)) {
        None => Ok(()),
        Some(input) => {
            let input = if input == output { "what it is made of".into() } else { input.display().to_string() };
            Err(Error::Usage(format!("{}: the output would take the place of {input}", output.display())))
        }
    }
}

/// The path without links, as far as it is there.
fn resolved(path: &Path) -> PathBuf {
    if is_remote(path) {
        return path.into();
    }
    // Of what is to be made, the folder is there.
    let parent = || {
        let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        Some(folder.canonicalize().ok()?.join(path.file_name()?))
    };
    path.canonicalize().ok().or_else(parent).unwrap_or_else(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_that_is_an_input_or_holds_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("image.ome.zarr/labels/cells")).unwrap();
        let refused = |output: PathBuf, input: PathBuf| distinct(&output, [at("other").as_path(), &input]).is_err();
        assert!(refused(at("image.ome.zarr"), at("image.ome.zarr")));
        assert!(refused(at("image.ome.zarr"), at("image.ome.zarr/labels/cells")));
        assert!(refused(at("image.ome.zarr/../image.ome.zarr"), at("image.ome.zarr/labels/..")));
        assert!(!refused(at("image.ome.zarr/labels/cells"), at("image.ome.zarr")));
        assert!(!refused(at("image.ome"), at("image.ome.zarr")));
        assert!(!refused(at("not/there"), at("not/here")));
        assert!(refused(at("not/there"), at("not/there")));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(at("image.ome.zarr"), at("link")).unwrap();
            assert!(refused(at("image.ome.zarr"), at("link")));
            assert!(refused(at("link"), at("image.ome.zarr")));
        }
        assert!(refused("s3://slides/a.ome.zarr".into(), "s3://slides/a.ome.zarr".into()));
        assert!(!refused("s3://slides/b.ome.zarr".into(), "s3://slides/a.ome.zarr".into()));
        let said = distinct(&at("link"), [at("link").as_path()]).unwrap_err().to_string();
        assert!(said.ends_with("link: the output would take the place of what it is made of"), "{said}");
    }
}
