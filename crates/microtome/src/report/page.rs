//! The summary as a page that people read: one file that loads nothing.

use std::path::Path;

use microtome_io::Class;
use microtome_io::slide::{Colors, JPEG_DECODER, SlideReader};
use microtome_tile::Roi;
use microtome_unet::Card;
use serde_json::{Map, Value};

use super::html::{Cell, Html};
use super::pictures::Pictures;
use super::{RegionKind, Summary, level_and_resampling};
use crate::plan::{Geometry, Tiling};
use crate::units::Bytes;
use crate::{Error, Result};

/// What a page is made of. The slide's path and its label are no part of it: they may name a patient.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    pub(crate) slide: &'a dyn SlideReader,
    /// The region that ran, where not everything did.
    pub(crate) roi: Option<&'a Roi>,
    /// The finished mask.
    pub(crate) mask: &'a Path,
    /// Of each model.
    pub(crate) cards: &'a [&'a Card],
    /// The root attribute `microtome` of the mask: the fingerprint, and the settings it stands for.
    pub(crate) attributes: &'a Map<String, Value>,
    pub(crate) summary: &'a Summary,
}

impl Page<'_> {
    /// The page's text.
    ///
    /// Memory: two pictures of at most 900 pixels a side, and what [`overview`](crate::preview::overview) takes to read the slide.
    ///
    /// # Errors
    /// [`Error::Read`] if slide or mask cannot be read.
    pub(crate) fn render(&self) -> Result<String> {
        let summary = self.summary;
        let pictures = Pictures::draw(self.slide, &summary.geometry.target, self.roi, self.mask)?;
        let name = self.mask.file_name().unwrap_or_default().to_string_lossy();
        let mut page = Html::new(&name);
        page.paragraph(&format!("Segmented by microtome {} with {}", env!("CARGO_PKG_VERSION"), summary.model));
        let region = match summary.region.kind {
            RegionKind::Tissue => "The slide, with the tissue that was found outlined in blue",
            RegionKind::Region => "The slide, with the region that was given outlined in blue",
            RegionKind::Slide => "The slide, all of which was segmented",
        };
        page.figure(&pictures.region, region, &[]);
        let classes: Vec<&Class> = summary.areas.iter().map(|area| &area.class).collect();
        page.figure(&pictures.mask, "The mask, each class outlined in its colour", &classes);
        if let Some(note) = pictures.note {
            page.paragraph(note);
        }
        self.areas(&mut page);
        self.unreadable(&mut page);
        self.slide(&mut page)?;
        self.work(&mut page);
        self.times(&mut page);
        self.memory(&mut page);
        self.model(&mut page);
        self.settings(&mut page);
        Ok(page.finish())
    }

    fn areas(&self, page: &mut Html) {
        let Summary { areas, region, .. } = self.summary;
        let mm2 = |area: Option<f64>| Cell::Number(area.map_or_else(|| "unknown".into(), |a| format!("{a:.4}")));
        let mut rows: Vec<_> = areas
            .iter()
            .map(|area| {
                let share = format!("{:.2}", area.share * 100.0);
                let pixels = Cell::Number(area.pixels.to_string());
                vec![Cell::Class(&area.class), pixels, mm2(area.mm2), Cell::Number(share)]
            })
            .collect();
        let (all, whole) = (format!("all of the {}", region.kind), Cell::Number("100.00".into()));
        rows.push(vec![Cell::Text(all), Cell::Number(region.pixels.to_string()), mm2(region.mm2), whole]);
        page.heading("Areas");
        page.table(&["class", "pixels", "mm²", &format!("% of the {}", region.kind)], &rows);
        if let Some(note) = self.summary.tissue_note {
            page.paragraph(&format!("Tissue: {note}."));
        }
    }

    fn unreadable(&self, page: &mut Html) {
        let tiles = &self.summary.unreadable;
        if tiles.is_empty() {
            return;
        }
        page.heading("Unreadable tiles of the slide");
        page.paragraph("What they touch is background in the mask.");
        let number = |n: u64| Cell::Number(n.to_string());
        let rows: Vec<_> = tiles
            .iter()
            .map(|t| {
                let place = [t.level.0 as u64, t.tile.column, t.tile.row];
                place.map(number).into_iter().chain([Cell::Text(t.cause.clone())]).collect()
            })
            .collect();
        page.table(&["level", "column", "row", "cause"], &rows);
    }

    fn slide(&self, page: &mut Html) -> Result<()> {
        let Summary { geometry, roi, .. } = self.summary;
        let mut facts = vec![
            ("format", self.summary.format.clone()),
            ("size", format!("{} pixels at level 0", self.summary.slide)),
            ("content id", self.slide.content_id().map_err(Error::Read)?),
        ];
        facts.push(match &geometry.resolution {
            Some(r) => ("resolution", format!("{} x {} µm per pixel at level 0, from: {}", r.mpp.x, r.mpp.y, r.source)),
            None => ("resolution", "unknown".into()),
        });
        if geometry.colors == Colors::Srgb {
            facts.push(("colours", "sRGB, converted by the slide's ICC profile".into()));
        }
        if let Some(crop) = &geometry.crop {
            facts.push(("crop to what is not black", crop.to_string()));
        }
        if let Some(share) = self.summary.tissue_share {
            facts.push(("tissue", format!("{:.2} % of the slide", share * 100.0)));
        }
        if let Some(given) = roi {
            let values = match given.source.values.as_slice() {
                [] => String::new(),
                values => format!(", where it is {}", values.join(" or ")),
            };
            facts.push(("region", format!("{:.2} % of the slide, given by the user{values}", given.share * 100.0)));
        }
        page.heading("Slide");
        page.facts(&facts);
        Ok(())
    }

    fn work(&self, page: &mut Html) {
        let Summary { geometry, tiles, .. } = self.summary;
        let Geometry { target, tilings, accumulate, .. } = geometry;
        let mpp = target.mpp.map_or_else(String::new, |mpp| format!(" of {:.4} x {:.4} µm", mpp.x, mpp.y));
        let repeated = match (tiles.repeated, self.summary.scratch_bytes) {
            (0, _) => "none".into(),
            (n, 0) => format!("{n} run twice, in two strips"),
            (n, bytes) => format!("{n} kept between strips, through {} of scratch file", Bytes(bytes)),
        };
        page.heading("Work");
        let mut facts =
            vec![("target grid", format!("{} pixels{mpp}", target.size)), ("read from", level_and_resampling(target))];
        for Tiling { model, tile, step, placement, window, .. } in tilings {
            let of = if tilings.len() > 1 { format!(", {model}") } else { String::new() };
            let placed = plain(placement);
            facts.push(("tile", format!("{tile} pixels, step {step} of a tile, placed as {placed} does{of}")));
            facts.push(("weights and sums", format!("{}, {}{of}", plain(window), plain(accumulate))));
        }
        if tilings.len() > 1 {
            facts.push(("models", format!("{}, the mean of their probabilities", tilings.len())));
        }
        facts.extend([
            ("tiles run", format!("{} of {}", tiles.run, tiles.grid)),
            ("tiles skipped", format!("{}, which touch nothing that was wanted", tiles.skipped)),
            ("tiles repeated", repeated),
            ("resumed", format!("{} shards were finished by an earlier process", self.summary.resumed_shards)),
        ]);
        page.facts(&facts);
    }

    fn times(&self, page: &mut Html) {
        let summary = self.summary;
        page.heading("Time");
        page.paragraph(&format!(
            "{:.2} s in all, {:.2} megapixels of the target grid per second, {} threads. \
             Reading, inference, blending and writing overlap.",
            summary.seconds,
            summary.megapixels() / summary.seconds,
            summary.threads
        ));
        let rows: Vec<_> = summary
            .stages
            .named()
            .into_iter()
            .filter(|(_, stage)| !stage.busy.is_zero())
            .map(|(name, stage)| {
                let times = [stage.busy, stage.starved, stage.blocked];
                let times = times.map(|time| Cell::Number(format!("{:.2}", time.as_secs_f64())));
                std::iter::once(Cell::Text(name.into())).chain(times).collect()
            })
            .collect();
        page.table(&["stage", "busy, s", "waited for input, s", "waited for output, s"], &rows);
    }

    fn memory(&self, page: &mut Html) {
        let Summary { memory_plan: plan, peak_memory: peak, .. } = self.summary;
        let named = plan.named();
        let row = |name: &str, bytes| vec![Cell::Text(name.into()), Cell::Number(Bytes(bytes).to_string())];
        let mut rows: Vec<_> =
            named.iter().filter(|(_, bytes)| *bytes > 0).map(|(name, bytes)| row(name, *bytes)).collect();
        rows.push(row("planned: the most at once", plan.total()));
        if let Some(peak) = peak {
            rows.push(row("peak, anonymous", peak.anonymous));
            rows.push(row("peak, resident with mapped files", peak.resident));
        }
        page.heading("Memory");
        page.paragraph(&format!(
            "The first pass is over before reading begins; a strip is {} pixels wide.",
            plan.strip_width
        ));
        page.table(&["part", "at most"], &rows);
    }

    fn model(&self, page: &mut Html) {
        for (card, number) in self.cards.iter().zip(1..) {
            let mut facts = vec![
                ("name", card.name.clone()),
                ("architecture", card.architecture.clone()),
                ("SHA-256", card.sha256.clone()),
            ];
            let words =
                [("licence", &card.licence), ("provenance", &card.provenance), ("intended use", &card.intended_use)];
            facts.extend(words.into_iter().filter_map(|(name, text)| Some((name, text.clone()?))));
            let several = self.cards.len() > 1;
            page.heading(&if several { format!("Model {number}") } else { "Model".into() });
            page.facts(&facts);
        }
        page.heading("Versions");
        let system = format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH);
        page.facts(&[
            ("microtome", env!("CARGO_PKG_VERSION").into()),
            ("JPEG decoder", JPEG_DECODER.into()),
            ("system", system),
        ]);
    }

    fn settings(&self, page: &mut Html) {
        page.heading("What the mask depends on");
        page.paragraph("Two runs that agree in all of these give the same bytes.");
        let run = self.attributes.get("run").and_then(Value::as_object);
        let mut facts: Vec<_> = run.into_iter().flatten().map(|(name, value)| (name.as_str(), shown(value))).collect();
        if let Some(digest) = self.attributes.get("fingerprint") {
            facts.push(("fingerprint", shown(digest)));
        }
        page.facts(&facts);
    }
}

/// A setting as people read it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The name under which a setting is stored.
fn plain(setting: &impl serde::Serialize) -> String {
    serde_json::to_value(setting).as_ref().map_or_else(|_| "unknown".into(), shown)
}
