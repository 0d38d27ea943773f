//! What a URL names.

use std::path::Path;

use object_store::path::Path as Key;

use super::SCHEME;
use crate::{Error, Result};

/// A bucket, and a key in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) bucket: String,
    pub(super) key: Key,
}

impl Url {
    /// # Errors
    /// [`Error::Usage`] for what names no object in a bucket.
    pub(super) fn parse(path: &Path) -> Result<Self> {
        let usage = |message: &str| Error::usage(path, format!("{message}: object stores are named s3://BUCKET/NAME"));
        let Some(text) = path.to_str() else { return Err(usage("this is no text")) };
        // Joined on Windows, a path has its own separator.
        let text = if cfg!(windows) { text.replace('\\', "/") } else { text.to_owned() };
        let Some(rest) = text.strip_prefix(SCHEME) else { return Err(usage("this is no URL")) };
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let sound = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if bucket.is_empty() || !bucket.chars().all(sound) {
            return Err(usage("there is no bucket of that name"));
        }
        let key = key.trim_end_matches('/');
        if key.is_empty() {
            return Err(usage("this is a whole bucket"));
        }
        // Keys with empty parts, or with `..`, are no paths.
        let key =
            Key::parse(key).map_err(|error| Error::usage(path, format!("this is no name of an object: {error}")))?;
        Ok(Self { bucket: bucket.into(), key })
    }

    /// The key of a value of the store whose keys begin with this one.
    pub(super) fn join(&self, key: &str) -> Key {
        if key.is_empty() {
            return self.key.clone();
        }
        // As it is: what others call their levels must not be spelt anew.
        let inside = Key::parse(key).unwrap_or_else(|_| Key::from(key));
        self.key.parts().chain(inside.parts()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_bucket_and_a_key() {
        let url = |text: &str| Url::parse(Path::new(text));
        let found = url("s3://slides/a/b c.ome.zarr/").unwrap();
        assert_eq!((found.bucket.as_str(), found.key.as_ref()), ("slides", "a/b c.ome.zarr"));
        assert_eq!(found.join("0/c/1/2").as_ref(), "a/b c.ome.zarr/0/c/1/2");
        assert_eq!(found.join(".microtome-unfinished").as_ref(), "a/b c.ome.zarr/.microtome-unfinished");
        assert_eq!(found.join("s~0/[a]").as_ref(), "a/b c.ome.zarr/s~0/[a]");
        for wrong in
            ["s3://", "s3://slides", "s3://slides/", "s3:///a", "s3://a b/c", "s3://slides/a//b", "s3://slides/../b"]
        {
            let error = url(wrong).unwrap_err();
            assert!(matches!(error, Error::Usage { .. }), "{wrong}: {error}");
        }
    }
}
