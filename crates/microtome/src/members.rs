//! Models that segment a slide together must mean the same by what they say.

use microtome_unet::{Card, Output};

use crate::crop::CropNonzero;
use crate::{Error, Result};

/// Models run together if they agree with the first in what the mask and the channels are.
///
/// # Errors
/// [`Error::Usage`] that names the first that does not, and in what; or if there is none.
pub(crate) fn check(cards: &[&Card]) -> Result<()> {
    let Some((first, others)) = cards.split_first() else {
        return Err(Error::Usage("there is no model to run".into()));
    };
    match others.iter().find_map(|other| Some((other, difference(first, other)?))) {
        None => Ok(()),
        Some((other, difference)) => {
            let (first, other) = (&first.name, &other.name);
            Err(Error::Usage(format!("the models {first} and {other} cannot run together: {difference}")))
        }
    }
}

/// What keeps two models from running together. Colours, and what channels are called where it is no other order, do not.
fn difference(first: &Card, other: &Card) -> Option<String> {
    let text = |card: &Card| {
        let named: Vec<String> = card.classes.iter().map(|class| format!("{} {}", class.value, class.name)).collect();
        named.join(", ")
    };
    match (&first.output, &other.output) {
        (Output::Labels, Output::Labels) => {}
        (Output::Regions { class_order: a }, Output::Regions { class_order: b }) if a == b => {}
        (Output::Regions { class_order: a }, Output::Regions { class_order: b }) => {
            return Some(format!("the regions of one set the values {a:?}, those of the other {b:?}, in this order"));
        }
        (Output::Labels, Output::Regions { .. }) => {
            return Some("one has classes, and the other regions, which may overlap".into());
        }
        (Output::Regions { .. }, Output::Labels) => {
            return Some("one has regions, which may overlap, and the other classes".into());
        }
    }
    if text(first) != text(other) {
        return Some(format!("the values of one mask mean {}, those of the other {}", text(first), text(other)));
    }
    if first.channels.len() != other.channels.len() {
        return Some(format!("one takes {} channels, the other {}", first.channels.len(), other.channels.len()));
    }
    let [names, others] = [first, other].map(|card| {
        let names = card.channels.iter().map(|name| name.to_lowercase());
        names.collect::<Vec<_>>()
    });
    let [mut sorted, mut others_sorted] = [names.clone(), others.clone()];
    sorted.sort();
    others_sorted.sort();
    let reordered = sorted == others_sorted && names != others;
    reordered.then(|| {
        format!("one takes the channels {}, the other {}", first.channels.join(", "), other.channels.join(", "))
    })
}

/// The resolution that the models say they work at: the first's, from which the others' may be off by the fraction `tolerance`.
///
/// # Errors
/// [`Error::Usage`] if one does not say, or another says something else.
pub(crate) fn mpp(cards: &[&Card], tolerance: f64) -> Result<f64> {
    let of = |card: &Card| {
        card.mpp.ok_or_else(|| {
            Error::Usage(format!(
                "the model {} does not say at which resolution it works: give it (--model-mpp, micrometres per pixel), or --model-mpp native to run on level 0 as it is",
                card.name
            ))
        })
    };
    let first = of(cards[0])?;
    for card in cards {
        let mpp = of(card)?;
        if (mpp / first - 1.0).abs() > tolerance {
            return Err(Error::Usage(format!(
                "the model {} works at {mpp} um per pixel, and the first, {}, at {first}: models that run together need one resolution, to within {} % (--mpp-tolerance); --model-mpp makes all of them run at the one it gives",
                card.name,
                cards[0].name,
                tolerance * 100.0
            )));
        }
    }
    Ok(first)
}

/// Whether images are cropped for these models, if their word counts: then they must be of one mind.
///
/// # Errors
/// [`Error::Usage`] if they are not.
pub(crate) fn crop(cards: &[&Card], asked: CropNonzero) -> Result<bool> {
    let first = cards[0];
    match cards.iter().find(|card| card.crop_to_nonzero != first.crop_to_nonzero) {
        Some(other) if asked == CropNonzero::Auto => {
            let [with, without] = if first.crop_to_nonzero { [first, other] } else { [other, first] };
            Err(Error::Usage(format!(
                "the model {} crops images to what is not black, and {} does not: models that run together need one image; --crop-nonzero on or off decides for all",
                with.name, without.name
            )))
        }
        _ => Ok(first.crop_to_nonzero),
    }
}

/// The models' names, each once.
pub(crate) fn name<'a>(cards: impl IntoIterator<Item = &'a Card>) -> String {
    let mut names: Vec<&str> = Vec::new();
    for card in cards {
        if !names.contains(&card.name.as_str()) {
            names.push(&card.name);
        }
    }
    names.join(" + ")
}
