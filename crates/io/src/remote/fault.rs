//! What an error of the object store means.

use std::error::Error as StdError;
use std::io::{Error as IoError, ErrorKind};
use std::path::Path;

use object_store::client::HttpError;

use crate::Error;

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// There is no such object.
    Absent,
    /// There is no such bucket.
    NoBucket,
    /// What is there is not what was expected.
    Conflict,
    /// The credentials do not allow it, or there are none.
    Denied,
    /// The service said, whenever it was asked, that it could not.
    Busy,
    /// The connection failed, or nothing came in time.
    Broken,
    /// The service cannot do that.
    Unable,
    /// Anything else.
    Other,
}

/// The cause of an error.
pub(super) fn cause(error: &object_store::Error) -> Cause {
    match error {
        // A list of a bucket that is not there is no `NotFound` to object_store.
        _ if text(error).contains("<Code>NoSuchBucket</Code>") => Cause::NoBucket,
        object_store::Error::NotFound { .. } => Cause::Absent,
        object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => Cause::Conflict,
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => Cause::Denied,
        object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. } => Cause::Unable,
        other => {
            for cause in chain(other) {
                // Also what cannot be decoded: it was cut off, or came from something between.
                if cause.is::<HttpError>() {
                    return Cause::Broken;
                }
            }
            match status(other) {
                Some(500..=599 | 408 | 429) => Cause::Busy,
                _ if ["SlowDown", "InternalError", "RequestTimeout"].iter().any(|code| text(other).contains(code)) => {
                    Cause::Busy
                }
                _ => Cause::Other,
            }
        }
    }
}

/// The error as one of ours.
pub(super) fn error(path: &Path, bucket: &str, error: &object_store::Error) -> Error {
    let said = said(error);
    let io = |kind, message: String| Error::io(path, IoError::new(kind, message));
    match cause(error) {
        Cause::NoBucket => io(ErrorKind::NotFound, format!("there is no bucket {bucket:?}")),
        Cause::Absent => io(ErrorKind::NotFound, "there is no such object".into()),
        Cause::Denied => {
            io(ErrorKind::PermissionDenied, format!("the object store refuses it to these credentials ({said})"))
        }
        Cause::Busy | Cause::Broken => Error::transient(
            path,
            format!("the object store failed, also when it was asked again ({said}): the same command later goes on"),
        ),
        Cause::Unable => io(ErrorKind::Unsupported, format!("the object store cannot do that ({said})")),
        Cause::Conflict | Cause::Other => io(ErrorKind::Other, format!("the object store refuses it ({said})")),
    }
}

/// What the service, or the connection, said in the end, in a few words.
fn said(error: &object_store::Error) -> String {
    let text = text(error);
    // The service's own words, where it found any: <Code>NoSuchKey</Code><Message>...</Message>.
    let between = |tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        rest.split_once(&format!("</{tag}>")).map(|(inside, _)| inside)
    };
    if let Some(code) = between("Code") {
        return match between("Message") {
            Some(message) => format!("{code}: {message}"),
            None => code.into(),
        };
    }
    if let Some(status) = status(error) {
        return format!("status {status}");
    }
    // The innermost cause says most, and names no address that could hold a secret.
    let innermost = chain(error).last().map(ToString::to_string).unwrap_or_default();
    innermost.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect()
}

/// The status of the answer, if there was one.
fn status(error: &object_store::Error) -> Option<u16> {
    let text = text(error);
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

fn chain(error: &object_store::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    std::iter::successors(Some(error as &(dyn StdError + 'static)), |error| (*error).source())
}

fn text(error: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        text.push_str(&error.to_string());
        text.push(' ');
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use object_store::client::HttpErrorKind;

    use super::*;

    fn generic(source: impl Into<Box<dyn StdError + Send + Sync>>) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: source.into() }
    }

    #[test]
    fn what_fails_for_now_is_told_from_what_fails_for_good() {
        let path = Path::new("s3://slides/a.ome.zarr/0/zarr.json");
        let http = |kind| generic(HttpError::new(kind, IoError::other("the connection was cut")));
        let status = |text: &str| generic(format!("Server returned non-2xx status code: {text}"));
        for (found, expected) in [
            (http(HttpErrorKind::Timeout), Cause::Broken),
            (http(HttpErrorKind::Connect), Cause::Broken),
            (http(HttpErrorKind::Interrupted), Cause::Broken),
            (http(HttpErrorKind::Decode), Cause::Broken),
            (status("503 Service Unavailable: <Error><Code>SlowDown</Code></Error>"), Cause::Busy),
            (status("500 Internal Server Error: "), Cause::Busy),
            (status("429 Too Many Requests: "), Cause::Busy),
            (status("400 Bad Request: <Error><Code>RequestTimeout</Code></Error>"), Cause::Busy),
            (status("400 Bad Request: <Error><Code>InvalidRequest</Code></Error>"), Cause::Other),
            (status("404 Not Found: <Error><Code>NoSuchBucket</Code></Error>"), Cause::NoBucket),
            (generic("a setting that cannot be"), Cause::Other),
        ] {
            assert_eq!(cause(&found), expected, "{found}");
            let ours = error(path, "slides", &found);
            assert_eq!(ours.is_transient(), matches!(expected, Cause::Busy | Cause::Broken), "{ours}");
            assert!(ours.to_string().starts_with("s3://slides/a.ome.zarr/0/zarr.json: "), "{ours}");
        }
        let absent = object_store::Error::NotFound {
            path: "a".into(),
            source: "<Error><Code>NoSuchBucket</Code><Message>The bucket does not exist</Message></Error>".into(),
        };
        assert!(error(path, "slides", &absent).to_string().ends_with("there is no bucket \"slides\""));
        let denied = object_store::Error::PermissionDenied {
            path: "a".into(),
            source: "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>".into(),
        };
        let denied = error(path, "slides", &denied);
        assert!(denied.to_string().contains("(AccessDenied: Access Denied)") && !denied.is_transient(), "{denied}");
        let busy = error(path, "slides", &status("503 Service Unavailable: <Error><Code>SlowDown</Code></Error>"));
        assert!(busy.to_string().contains("(SlowDown)"), "{busy}");
    }
}
