//! Pictures that travel with a slide, as images of their own: `associated/NAME` in the store.
//!
//! Each is a multiscale image with a pyramid of its own, in a group that readers of the slide's image do not look into. They are written
//! before the slide's pixels, whole or not at all: of a run that goes on, those that are finished stay, others are written anew.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use microtome_io::slide::{SlideInfo, SlideReader};
use microtome_io::store::{self, Found, ImageSink, ZarrImage};
use microtome_io::{Level, Pixels, Rect, Size};
use microtome_stitch::{Product, PyramidWriter};
use microtome_tile::pyramid::{Pyramid, Reduction, Shard};
use microtome_tile::z_order;
use serde_json::Map;

use super::image;
use super::options::{ConvertOptions, LabelImage, OnBadPicture};
use crate::{Error, Result};

/// True if a picture shows the slide's label: by its name, or because scanners of that make show the glass with its label on it, in a page that they call
/// `Label Image` themselves.
fn is_label(info: &SlideInfo, name: &str) -> bool {
    name.to_lowercase().contains("label") || (info.format == "ventana" && name == "macro")
}

/// The names of the pictures that are written.
pub(super) fn names<'a>(info: &'a SlideInfo, options: &ConvertOptions) -> impl Iterator<Item = &'a str> {
    let (all, labels) = (options.associated, options.label_image == LabelImage::Kept);
    let wanted = move |name: &&str| all && (labels || !is_label(info, name));
    info.associated.iter().map(|picture| picture.name.as_str()).filter(wanted)
}

/// The names of those that are left out because they show a label.
pub(super) fn left_out<'a>(info: &'a SlideInfo, options: &ConvertOptions) -> impl Iterator<Item = &'a str> {
    let left_out = options.associated && options.label_image == LabelImage::LeftOut;
    info.associated.iter().map(|picture| picture.name.as_str()).filter(move |name| left_out && is_label(info, name))
}

/// The most bytes that writing one of them holds: the picture, in at most four channels, and as much again for its levels.
pub(super) fn bytes(info: &SlideInfo, options: &ConvertOptions) -> u64 {
    let names: BTreeSet<&str> = names(info, options).collect();
    let written = info.associated.iter().filter(|picture| names.contains(picture.name.as_str()));
    written.map(|picture| picture.size.area() * 8).max().unwrap_or(0)
}

/// A picture that was left out because it cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub(super) name: String,
    pub(super) cause: String,
}

/// Writes the pictures into the store, which is not finished yet, and says which of them could not be read.
pub(super) fn write(slide: &dyn SlideReader, options: &ConvertOptions, output: &Path) -> Result<Vec<Unreadable>> {
    let mut unreadable = Vec::new();
    let mut names = names(slide.info(), options).peekable();
    if names.peek().is_none() {
        return Ok(unreadable);
    }
    // Written anew each time: it is whole once anybody may look at it.
    store::make_group(output, store::ASSOCIATED, options.encoding.format).map_err(Error::Write)?;
    let mut taken = BTreeSet::new();
    for name in names {
        let mut folder = folder_name(name);
        while !taken.insert(folder.to_lowercase()) {
            folder.push('_');
        }
        let group = format!("{}/{folder}", store::ASSOCIATED);
        let path = output.join(&group);
        match store::inspect(&path).map_err(Error::Write)? {
            Found::Complete(_) => continue,
            Found::Nothing => {}
            Found::InUse => return Err(Error::InUse { path }),
            // Half of one, as a crash may have left it in this store of ours.
            _ => store::remove_group(output, &group).map_err(Error::Write)?,
        }
        match slide.read_associated(name) {
            Ok(picture) => write_one(&picture, name, options, &path)?,
            // About the file, and not about the picture.
            Err(error @ (microtome_io::Error::Io { .. } | microtome_io::Error::Transient { .. })) => {
                return Err(Error::Read(error));
            }
            Err(error) if options.on_bad_picture == OnBadPicture::LeaveOut => {
                unreadable.push(Unreadable { name: name.into(), cause: error.to_string() });
            }
            Err(error) => return Err(Error::Associated { name: name.into(), source: Box::new(error) }),
        }
    }
    Ok(unreadable)
}

/// A name that is one folder's on any system: letters, digits, `-`, `_` and dots inside.
fn folder_name(name: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = name.chars().map(keep).take(100).collect();
    match name.trim_matches('.') {
        "" => "picture".into(),
        name => name.into(),
    }
}

fn write_one(picture: &Pixels, name: &str, options: &ConvertOptions, path: &Path) -> Result<()> {
    let image = image::associated_image(options, name, picture.size(), (picture.sample_type(), picture.channels()));
    let shard = image.shard;
    let sizes: Vec<Size> = image.levels.iter().map(|level| level.size).collect();
    let sink = ZarrImage::create(path, image).map_err(Error::Write)?;
    let pyramid = Pyramid::new(sizes, shard, Reduction::Mean, usize::MAX);
    let writer = PyramidWriter::of_picture(&sink, pyramid, None, Duration::MAX);
    let whole = picture.size().rect();
    for at in z_order(picture.size().cells(shard)) {
        let Some(rect) = at.rect(shard).intersect(whole) else { continue };
        writer.push_at(Product::default(), Level::FINEST, at, Shard::Pixels(cut(picture, rect)))?;
    }
    sink.finish(&Map::new()).map_err(Error::Write)
}

/// A part of a picture.
fn cut(picture: &Pixels, rect: Rect) -> Pixels {
    let mut part = Pixels::filled(rect.size(), picture.sample_type(), &vec![0; picture.channels()]);
    part.blit(rect, picture, picture.size().rect());
    part
}

#[cfg(test)]
mod tests {
    use microtome_io::SampleType;

    use super::*;

    #[test]
    fn names_are_folders_of_this_store() {
        let names = ["macro", "..", "", "a/b\\c", "Übersicht", "x".repeat(300).as_str()].map(folder_name);
        assert_eq!(names[..5], ["macro", "picture", "picture", "a_b_c", "_bersicht"]);
        assert_eq!(names[5].len(), 100);
    }

    #[test]
    fn what_shows_the_label_is_known_by_its_name_or_the_scanner() {
        let info = |format| SlideInfo::new("slide", format, Size::new(9, 9), Size::new(9, 9), 3, SampleType::U8);
        let shows = |format, name| is_label(&info(format), name);
        assert!(shows("aperio", "label") && shows("aperio", "Label image") && !shows("aperio", "macro"));
        assert!(shows("ventana", "macro") && !shows("ventana", "thumbnail"));
    }
}
