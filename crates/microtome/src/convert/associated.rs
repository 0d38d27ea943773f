//! Pictures that travel with a slide, as images of their own: `associated/NAME` in the store.
//!
//! Each is a multiscale image with a pyramid of its own, in a group that readers of the slide's image do not look into. They are written
//! before the slide's pixels, whole or not at all: of a run that goes on, those that are finished stay, others are written anew.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use microtome_io::slide::{AssociatedImage, SlideInfo, SlideReader};
use microtome_io::store::{self, Found, ImageSink, ZarrImage};
use microtome_io::{Level, Pixels, Rect, Size};
use microtome_stitch::{Product, PyramidWriter};
use microtome_tile::pyramid::{Pyramid, Reduction, Shard};
use microtome_tile::z_order;
use serde_json::Map;

use super::image;
use super::options::{ConvertOptions, LabelImage, OnBadPicture};
use crate::{Error, Result};

/// The pictures that are written.
fn written<'a>(info: &'a SlideInfo, options: &ConvertOptions) -> impl Iterator<Item = &'a AssociatedImage> {
    let (all, labels) = (options.associated, options.label_image == LabelImage::Kept);
    info.associated.iter().filter(move |picture| all && (labels || !picture.shows_label))
}

/// The names of the pictures that are written.
pub(super) fn names<'a>(info: &'a SlideInfo, options: &ConvertOptions) -> impl Iterator<Item = &'a str> {
    written(info, options).map(|picture| picture.name.as_str())
}

/// The folders of the pictures that are written, in the order of these.
pub(super) fn folders(info: &SlideInfo, options: &ConvertOptions) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let folder = |name: &str| {
        let mut folder = folder_name(name);
        while !taken.insert(folder.to_lowercase()) {
            folder.push('_');
        }
        folder
    };
    names(info, options).map(folder).collect()
}

/// The names of those that are left out because they show a label.
pub(super) fn left_out<'a>(info: &'a SlideInfo, options: &ConvertOptions) -> impl Iterator<Item = &'a str> {
    let left_out = options.associated && options.label_image == LabelImage::LeftOut;
    let pictures = info.associated.iter().filter(move |picture| left_out && picture.shows_label);
    pictures.map(|picture| picture.name.as_str())
}

/// The most bytes that writing one of them holds: the picture, in at most four channels, and as much again for its levels.
pub(super) fn bytes(info: &SlideInfo, options: &ConvertOptions) -> u64 {
    written(info, options).map(|picture| picture.size.area() * 8).max().unwrap_or(0)
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
    let folders = folders(slide.info(), options);
    if folders.is_empty() {
        return Ok(unreadable);
    }
    // Written anew each time: it is whole once anybody may look at it.
    store::make_group(output, store::ASSOCIATED, options.encoding.format).map_err(Error::Write)?;
    for (wanted, folder) in written(slide.info(), options).zip(folders) {
        let name = wanted.name.as_str();
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
            Ok(picture) => write_one(&picture, wanted, options, &path)?,
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

fn write_one(picture: &Pixels, wanted: &AssociatedImage, options: &ConvertOptions, path: &Path) -> Result<()> {
    let image = image::associated_image(options, wanted, picture.size(), (picture.sample_type(), picture.channels()));
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
    use super::*;

    #[test]
    fn names_are_folders_of_this_store() {
        let names = ["macro", "..", "", "a/b\\c", "Übersicht", "x".repeat(300).as_str()].map(folder_name);
        assert_eq!(names[..5], ["macro", "picture", "picture", "a_b_c", "_bersicht"]);
        assert_eq!(names[5].len(), 100);
    }
}
