//! What lies at a path where a store is to go, and how a store of ours is removed.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::entries::join;
use super::place::{self, Item, Kind, Mark, Place, Take, There};
use super::{Format, folder, ngff};
use crate::{Error, Result};

/// The file that says "a store of ours, and not finished".
///
/// It is the first thing in a new store and the last to go, so that at every moment in between a crash leaves something that can be told
/// from a stranger's folder. A file beside the data, rather than an entry in the metadata, because the root metadata must not exist before
/// the data does; an empty one, because a finished store must hold nothing that differs between runs, and so nothing of it may stay.
pub(crate) const MARKER: &str = ".microtome-unfinished";
/// The folder for pictures that travel with an image, each an image of its own in it: `associated/macro`.
pub const ASSOCIATED: &str = "associated";
/// The metadata of a node of Zarr 3.
pub(super) const METADATA: &str = "zarr.json";
/// What makes a group an image, by version of Zarr, 3 and 2. The second is beside `.zgroup`.
const ROOTS: [&str; 2] = [METADATA, ".zattrs"];
/// The most that we read of one metadata file. Real ones have a few kilobytes.
pub(super) const METADATA_LIMIT: u64 = 16 << 20;

/// What is at a path.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Found {
    /// Nothing, or an empty folder.
    Nothing,
    /// A finished store of ours, with its root attribute `microtome`: the image's attributes and the notes of its last moment.
    Complete(Map<String, Value>),
    /// A store of ours whose writing did not come to its end.
    Unfinished,
    /// A store of ours that a process is writing right now.
    InUse,
    /// A store of ours in an object store that another machine has begun, and may be writing: nothing here can tell.
    Elsewhere,
    /// Something else.
    Foreign,
}

/// Says what is at `path`.
///
/// # Errors
/// [`Error::Io`] or [`Error::Transient`] if that cannot be found out.
pub fn inspect(path: impl AsRef<Path>) -> Result<Found> {
    inspect_place(&*place::of(path.as_ref())?)
}

pub(super) fn inspect_place(place: &dyn Place) -> Result<Found> {
    match place.there()? {
        There::Nothing => return Ok(Found::Nothing),
        There::Other => return Ok(Found::Foreign),
        There::Values => {}
    }
    match place.mark()? {
        Mark::None => {}
        Mark::Left => return Ok(Found::Unfinished),
        Mark::Held => return Ok(Found::InUse),
        Mark::Elsewhere => return Ok(Found::Elsewhere),
    }
    for root in ROOTS {
        // Whatever is wrong with a stranger's file is no error of this question.
        let document = match place.value(root, METADATA_LIMIT) {
            Ok(None) => continue,
            Ok(Some(bytes)) => serde_json::from_slice::<Value>(&bytes).unwrap_or(Value::Null),
            Err(error @ (Error::Io { .. } | Error::Transient { .. })) => return Err(error),
            Err(_) => Value::Null,
        };
        let (ome, ours) = if root == METADATA {
            (&document["attributes"]["ome"], &document["attributes"][ngff::OURS])
        } else {
            (&document, &document[ngff::OURS])
        };
        return Ok(match (&ome["multiscales"], ours) {
            (Value::Array(_), Value::Object(ours)) => Found::Complete(ours.clone()),
            _ => Found::Foreign,
        });
    }
    Ok(Found::Foreign)
}

/// Makes a finished store of ours unfinished again, so that it can be gone on with. Its pixels stay.
///
/// # Errors
/// [`Error::Usage`] if there is none; [`Error::Io`] or [`Error::Transient`] if its files cannot be changed.
pub fn reopen(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let place = place::of(path)?;
    let Found::Complete(_) = inspect_place(&*place)? else {
        return Err(Error::usage(path, "there is no finished store to reopen"));
    };
    // The mark first: at no moment is it a stranger's.
    let _hold = place.take(Take::Any)?;
    ROOTS.into_iter().chain([".zgroup"]).try_for_each(|name| place.delete(name))?;
    place.sync(&[MARKER.into()])
}

/// Removes a store of ours, finished or not; nothing at all is fine, too.
///
/// Anything that we did not put there makes it refuse before it removes anything. If it is interrupted, what is left is an unfinished store.
///
/// # Errors
/// [`Error::Usage`] if [`inspect`] says [`Found::Foreign`] or [`Found::InUse`], if `path` is a symbolic link, or if the store holds
/// something foreign; [`Error::Io`] or [`Error::Transient`] if something cannot be removed.
pub fn remove(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let place = place::of(path)?;
    match inspect_place(&*place)? {
        Found::Nothing => return Ok(()),
        Found::Foreign => return Err(Error::usage(path, "this is no store of microtome's, so it is not removed")),
        Found::InUse => return Err(Error::usage(path, "another process is writing there, so it is not removed")),
        Found::Complete(_) | Found::Unfinished | Found::Elsewhere => {}
    }
    if place.is_link() {
        return Err(Error::usage(path, "this is a symbolic link, and what it points to is not removed"));
    }
    let mut rest = Vec::new();
    for item in place.list("")? {
        let Item { name, kind } = &item;
        match name.as_str() {
            MARKER => {}
            // The root metadata, which make it a store to others, go first.
            name if ROOTS.contains(&name) && *kind == Kind::Value => rest.insert(0, item),
            ".zgroup" if *kind == Kind::Value => rest.push(item),
            "labels" if *kind == Kind::Group => {
                let message = "the image has labels, which would go with it, so it is not removed: move or remove its folder \"labels\" first";
                return Err(Error::usage(path, message));
            }
            name if is_level(name, *kind) || is_partial(name, *kind) => rest.push(item),
            ASSOCIATED if *kind == Kind::Group => match stranger_among(&*place)? {
                None => rest.push(item),
                Some(name) => {
                    let message =
                        format!("the store holds {name:?}, which microtome did not write, so it is not removed");
                    return Err(Error::usage(path, message));
                }
            },
            _ => {
                let message = format!("the store holds {name:?}, which microtome did not write, so it is not removed");
                return Err(Error::usage(path, message));
            }
        }
    }
    // From here on it is unfinished.
    let hold = place.take(Take::Any).map_err(|error| match error {
        Error::Usage { .. } => Error::usage(path, "another process is writing there, so it is not removed"),
        other => other,
    })?;
    for Item { name, kind } in rest {
        if kind == Kind::Group {
            // What describes a level goes before its values: of a level without it nothing counts as finished, however far this comes.
            for document in [METADATA, ".zarray"] {
                place.delete(&join(&name, document))?;
            }
            place.delete_group(&name)
        } else {
            place.delete(&name)
        }?;
    }
    place.unmark()?;
    // Over NFS a file that is open keeps its folder from being removed, also when it has lost its name.
    drop(hold);
    place.vanish()
}

fn is_level(name: &str, kind: Kind) -> bool {
    kind == Kind::Group && name.bytes().all(|b| b.is_ascii_digit())
}

/// Of what a process that was killed did not get to rename.
fn is_partial(name: &str, kind: Kind) -> bool {
    kind == Kind::Value && folder::is_partial(Path::new(name))
}

/// What is not ours among the pictures that travel along, if anything.
fn stranger_among(place: &dyn Place) -> Result<Option<String>> {
    let metadata = |name: &str| [METADATA, ".zgroup", ".zattrs"].contains(&name);
    for Item { name, kind } in place.list(ASSOCIATED)? {
        let picture = join(ASSOCIATED, &name);
        if kind != Kind::Group {
            if !metadata(&name) && !is_partial(&name, kind) {
                return Ok(Some(picture));
            }
            continue;
        }
        for Item { name, kind } in place.list(&picture)? {
            let ours = kind == Kind::Value && (metadata(&name) || name == MARKER);
            if !ours && !is_level(&name, kind) && !is_partial(&name, kind) {
                return Ok(Some(join(&picture, &name)));
            }
        }
    }
    Ok(None)
}

/// Makes a group without attributes in a store that is being written, in place of any that is there: `associated`, for pictures that travel along.
///
/// # Errors
/// [`Error::Io`] or [`Error::Transient`] if it cannot be written.
pub fn make_group(store: impl AsRef<Path>, group: &str, format: Format) -> Result<()> {
    let place = place::of(store.as_ref())?;
    let (name, document) = match format {
        Format::V0_5 => (METADATA, json!({ "zarr_format": 3, "node_type": "group" })),
        Format::V0_4 => (".zgroup", json!({ "zarr_format": 2 })),
    };
    let key = join(group, name);
    place.put(&key, &ngff::to_bytes(&document))?;
    place.sync(&[key])
}

/// Removes what is at `group` of a store that is being written, whatever it is.
///
/// # Errors
/// [`Error::Io`] or [`Error::Transient`] if something cannot be removed.
pub fn remove_group(store: impl AsRef<Path>, group: &str) -> Result<()> {
    place::of(store.as_ref())?.delete_group(group)
}

/// The bytes of all values of a store, finished or not.
///
/// # Errors
/// [`Error::Io`] or [`Error::Transient`] if they cannot be listed.
pub fn stored_bytes(store: impl AsRef<Path>) -> Result<u64> {
    let mut bytes = 0;
    place::of(store.as_ref())?.walk("", &mut |_, length| bytes += length)?;
    Ok(bytes)
}
