//! What is said of the image that is written, and of the run that writes it.

use microtome_io::slide::{AssociatedImage, ICC_FAULT, SlideInfo, SlideReader};
use microtome_io::store::{ASSOCIATED, Channel, Content, ICC_PROFILE, SHOWS_LABEL, StoreLevel, StoredImage};
use microtome_io::{SampleType, Size, base64};
use microtome_tile::pyramid::Reduction;
use serde_json::{Map, Value, json};

use super::associated;
use super::options::{ConvertOptions, Levels, OnBadPicture};
use super::plan::ConvertPlan;
use crate::output::Fingerprint;
use crate::{Error, Result};

/// The version of the method: raised whenever the same slide and options would give other bytes.
const METHOD: u64 = 2;

/// Larger profiles are left out: root metadata must stay what readers read at once. Those of scanners have up to a few hundred thousand bytes.
const MOST_ICC_BYTES: usize = 8 << 20;

/// Everything that can change a byte of the result.
pub(super) fn fingerprint(
    slide: &dyn SlideReader,
    options: &ConvertOptions,
    plan: &ConvertPlan,
) -> Result<Fingerprint> {
    let mut run = Map::new();
    let mut set = |name: &str, value: Value| run.insert(name.into(), value);
    set("microtome", env!("CARGO_PKG_VERSION").into());
    set("conversion", METHOD.into());
    set("decoder", microtome_io::slide::JPEG_DECODER.into());
    set("slide", slide.content_id().map_err(Error::Read)?.into());
    set("colors", json!(slide.info().colors));
    set("resolution", json!(plan.resolution));
    set("level", json!(plan.level));
    set("rect", json!(plan.rect));
    set("levels", plan.levels.len().into());
    set("copied", copied(plan));
    set("reduction", plan.reduction.name().into());
    set("chunk", options.chunk.into());
    set("shard", options.shard.into());
    set("format", options.encoding.format.version().into());
    set("compression", json!(options.encoding.compression));
    set("name", options.name.clone().into());
    set("associated", json!(associated::names(slide.info(), options).collect::<Vec<_>>()));
    if options.on_bad_picture == OnBadPicture::LeaveOut {
        set("on_bad_picture", "skip".into());
    }
    Ok(Fingerprint::new(run))
}

/// Levels of the image, but the finest, that are levels of the slide: `{"2": 1}`.
fn copied(plan: &ConvertPlan) -> Value {
    let levels = plan.copied.iter().filter(|(level, _)| level.0 > 0);
    Value::Object(levels.map(|(level, of)| (level.to_string(), of.0.into())).collect())
}

/// The image, but for its pixels.
pub(super) fn image(
    slide: &dyn SlideReader,
    options: &ConvertOptions,
    plan: &ConvertPlan,
    fingerprint: &Fingerprint,
) -> StoredImage {
    let info = slide.info();
    let mut attributes = fingerprint.attributes();
    if let Some(profile) = slide.icc_profile().filter(|profile| profile.len() <= MOST_ICC_BYTES) {
        attributes.insert(ICC_PROFILE.into(), base64::encode(profile).into());
    }
    let pictures = associated::folders(info, options);
    if !pictures.is_empty() {
        attributes.insert(ASSOCIATED.into(), pictures.into());
    }
    let mut args = Map::new();
    args.insert("source".into(), source(info, plan));
    if options.levels == Levels::Source {
        args.insert("copied".into(), copied(plan));
    }
    let content = match &info.classes {
        Some(classes) => Content::Labels { classes: classes.clone() },
        None => Content::Image { channels: channels(info) },
    };
    StoredImage { attributes, ..described(options, plan.reduction, plan.levels.clone(), (info.sample, content), args) }
}

/// A picture that travels along, but for its pixels: nothing says how large they are.
pub(super) fn associated_image(
    options: &ConvertOptions,
    picture: &AssociatedImage,
    size: Size,
    (sample, channels): (SampleType, usize),
) -> StoredImage {
    let levels = microtome_tile::pyramid::level_sizes(size, options.chunk).len();
    let levels = StoreLevel::finest(size, None).pyramid(levels);
    let mut attributes = Map::new();
    attributes.insert(ASSOCIATED.into(), picture.name.clone().into());
    if picture.shows_label {
        attributes.insert(SHOWS_LABEL.into(), true.into());
    }
    let options = ConvertOptions { name: picture.name.clone(), ..options.clone() };
    let content = Content::Image { channels: unnamed(channels).collect() };
    // Means whatever the slide's levels are made of: pictures are for people.
    StoredImage { attributes, ..described(&options, Reduction::Mean, levels, (sample, content), Map::new()) }
}

fn described(
    options: &ConvertOptions,
    reduction: Reduction,
    levels: Vec<StoreLevel>,
    (sample, content): (SampleType, Content),
    args: Map<String, Value>,
) -> StoredImage {
    let method = match reduction {
        Reduction::Mean => "microtome: mean of 2 x 2 pixels, a half rounded up",
        Reduction::Mode => "microtome: majority of 2 x 2 pixels, ties to the lower value",
        Reduction::Nearest => "microtome: the top left of 2 x 2 pixels",
        Reduction::Max => "microtome: maximum of 2 x 2 pixels",
    };
    let mut metadata = Map::new();
    metadata.insert("method".into(), method.into());
    metadata.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    metadata.insert("args".into(), Value::Object(args));
    StoredImage {
        name: options.name.clone(),
        levels,
        chunk: Size::new(options.chunk, options.chunk),
        shard: Size::new(options.shard, options.shard),
        encoding: options.encoding,
        sample,
        content,
        source: None,
        method: reduction.name().into(),
        metadata,
        attributes: Map::new(),
    }
}

/// What is told of the slide: nothing that could name a person, and so neither its file, nor its properties, nor a date.
fn source(info: &SlideInfo, plan: &ConvertPlan) -> Value {
    let mut source = Map::new();
    source.insert("format".into(), info.format.clone().into());
    source.insert("size".into(), json!(info.size()));
    source.insert("level".into(), json!(plan.level));
    source.insert("rect".into(), json!(plan.rect));
    source.insert("colors".into(), json!(info.colors));
    source.insert("objective_power".into(), json!(info.objective_power));
    source.insert("resolution".into(), json!(plan.resolution));
    source.insert("background".into(), json!(info.background));
    source.insert("bounds".into(), json!(info.bounds));
    Value::Object(source)
}

/// The channels of a slide: red, green and blue, or those that it names, in the colours that it gives them.
fn channels(info: &SlideInfo) -> Vec<Channel> {
    let names = Some(&info.channel_names).filter(|names| names.len() == info.channels);
    let channel = |(n, other): (usize, Channel)| {
        let name = names.map(|names| names[n].clone()).filter(|name| !name.is_empty());
        // Where nothing is named, samples of one pixel may be the colours of one channel of OME's.
        let color = shown_color(info, n).or_else(|| stated_color(info, n).filter(|_| names.is_some()));
        let color = color.or_else(|| name.as_deref().and_then(color_named));
        Channel { name: name.unwrap_or(other.name), color: color.unwrap_or(other.color), window: shown_window(info, n) }
    };
    unnamed(info.channels).enumerate().map(channel).collect()
}

/// Channels without names: three are red, green and blue, one is grey, and others are shown in colours that can be told apart.
fn unnamed(count: usize) -> impl Iterator<Item = Channel> {
    const COLORS: [[u8; 3]; 7] =
        [[0, 0, 255], [0, 255, 0], [255, 0, 0], [0, 255, 255], [255, 0, 255], [255, 255, 0], [255, 255, 255]];
    let channel = move |n: usize| {
        let (name, color) = match (count, n) {
            (1, _) => ("grey".into(), [255; 3]),
            (3, 0) => ("red".into(), [255, 0, 0]),
            (3, 1) => ("green".into(), [0, 255, 0]),
            (3, _) => ("blue".into(), [0, 0, 255]),
            _ => (format!("channel {n}"), COLORS[n % COLORS.len()]),
        };
        Channel::new(name, color)
    };
    (0..count).map(channel)
}

/// The colour that a channel is called by.
fn color_named(name: &str) -> Option<[u8; 3]> {
    ["red", "green", "blue"].iter().position(|&color| color == name).map(|n| {
        let mut color = [0; 3];
        color[n] = 255;
        color
    })
}

/// The colour in which an OME-Zarr image shows a channel.
fn shown_color(info: &SlideInfo, channel: usize) -> Option<[u8; 3]> {
    let hex = info.properties.get(&format!("omero.channel[{channel}].color")).filter(|hex| hex.len() == 6)?;
    let [_, red, green, blue] = u32::from_str_radix(hex, 16).ok()?.to_be_bytes();
    Some([red, green, blue])
}

/// The values between which an OME-Zarr image shows a channel.
fn shown_window(info: &SlideInfo, channel: usize) -> Option<[u16; 2]> {
    let (start, end) = info.properties.get(&format!("omero.channel[{channel}].window"))?.split_once(',')?;
    Some([start.parse().ok()?, end.parse().ok()?])
}

/// The colour that the metadata of another format give a channel.
fn stated_color(info: &SlideInfo, channel: usize) -> Option<[u8; 3]> {
    let property = |name: String| info.properties.get(&name).map(String::as_str);
    if let Some(rgba) = property(format!("ome.Channel[{channel}].Color")) {
        // OME's model: red, green, blue and opacity as the bytes of a signed number, red first.
        let [red, green, blue, _] = rgba.trim().parse::<i32>().ok()?.to_be_bytes();
        return Some([red, green, blue]);
    }
    let rgb = property(format!("perkinelmer.channel[{channel}].Color"))?;
    let values: Vec<u8> = rgb.split(',').map(|v| v.trim().parse().ok()).collect::<Option<_>>()?;
    values.try_into().ok()
}

/// What a user should be told about what is written.
pub(super) fn notes(slide: &dyn SlideReader, options: &ConvertOptions, plan: &ConvertPlan) -> Vec<String> {
    let info = slide.info();
    let mut notes = Vec::new();
    if plan.resolution.is_none() {
        notes.push("the slide's resolution is not known (--mpp gives it): the image has no units of length".into());
    }
    let left_out: Vec<&str> = associated::left_out(info, options).collect();
    if !left_out.is_empty() {
        let names = left_out.join(", ");
        notes.push(format!(
            "the picture of the slide's label is left out ({names}), because it can carry a patient's name; --label-image keeps it"
        ));
    }
    if info.format == "ome-zarr" && info.path.join("labels").is_dir() {
        notes.push("the labels in the image are not converted with it: each is a store of its own".into());
    }
    if let Some(fault) = info.properties.get(ICC_FAULT) {
        notes.push(format!("the ICC profile is left out, because it cannot be read: {fault}"));
    }
    if let Some(bytes) = slide.icc_profile().map(<[u8]>::len).filter(|&bytes| bytes > MOST_ICC_BYTES) {
        notes.push(format!("the ICC profile is left out: it has {bytes} bytes, more than {MOST_ICC_BYTES}"));
    }
    if options.levels == Levels::Source && plan.copied.len() == 1 {
        notes.push(
            "no level of the slide has the ratio and the size of one here (--levels source): all are computed".into(),
        );
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slide(channels: usize, names: &[&str], properties: &[(&str, &str)]) -> SlideInfo {
        let size = Size::new(10, 10);
        let mut info = SlideInfo::new("x", "test", size, size, channels, SampleType::U16);
        info.channel_names = names.iter().map(|&name| name.into()).collect();
        info.properties = properties.iter().map(|&(key, value)| (key.into(), value.into())).collect();
        info
    }

    fn shown(info: &SlideInfo) -> Vec<(String, [u8; 3])> {
        channels(info).into_iter().map(|channel| (channel.name, channel.color)).collect()
    }

    #[test]
    fn channels_have_the_names_and_colours_of_the_slide() {
        let rgb = slide(3, &[], &[]);
        assert_eq!(
            shown(&rgb),
            [("red".into(), [255, 0, 0]), ("green".into(), [0, 255, 0]), ("blue".into(), [0, 0, 255])]
        );
        assert_eq!(shown(&slide(1, &[], &[])), [("grey".into(), [255; 3])]);
        // -16776961 is 0xFF0000FF: red, opaque.
        let ome = slide(2, &["DAPI", ""], &[("ome.Channel[0].Color", "-16776961")]);
        assert_eq!(shown(&ome), [("DAPI".into(), [255, 0, 0]), ("channel 1".into(), [0, 255, 0])]);
        let qptiff = slide(1, &["CD8"], &[("perkinelmer.channel[0].Color", "255,60,157")]);
        assert_eq!(shown(&qptiff), [("CD8".into(), [255, 60, 157])]);
        let zarr = slide(2, &["a", "b"], &[("omero.channel[1].color", "0A0b0C")]);
        assert_eq!(shown(&zarr), [("a".into(), [0, 0, 255]), ("b".into(), [10, 11, 12])]);
        // What is no colour is none.
        let odd = slide(1, &["a"], &[("perkinelmer.channel[0].Color", "300,1,2")]);
        assert_eq!(shown(&odd), [("a".into(), [255; 3])]);
    }
}
