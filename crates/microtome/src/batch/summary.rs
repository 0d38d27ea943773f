//! All reports of a folder together: a table for spreadsheets, one for people, and one for who queries.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use microtome_io::Class;
use serde::Serialize;
use serde_json::Value as Json;

use super::folder::{Folder, SlideFolder, SlideReport, Slides, Status, json, put, small};
use super::manifest::check_id;
use super::sqlite::{self, Table, Value};
use super::{Identify, work};
use crate::report::html::{Html, Sortable};
use crate::{Error, Result};

/// What was put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Merged {
    /// Slides that are done.
    pub done: usize,
    /// Of those, slides of which parts could not be read.
    pub with_faults: usize,
    /// Slides that failed.
    pub failed: usize,
    /// Slides that nobody has tried yet.
    pub waiting: usize,
    /// Slides whose reports hold what can name a person, whether it was asked for or not.
    pub identified: usize,
}

/// A class of a slide.
#[derive(Debug, Clone)]
struct Area {
    class: Class,
    pixels: Option<u64>,
    mm2: Option<f64>,
    share: Option<f64>,
}

/// A slide in the tables.
struct Row {
    report: SlideReport,
    areas: Vec<Area>,
}

/// A column that all slides have: its name with its unit, its type in SQL, and what a slide has in it.
type Column = (&'static str, &'static str, fn(&Row) -> Value);

const TEXT: &str = "TEXT";
const WHOLE: &str = "INTEGER";
const REAL: &str = "REAL";

/// What tables say of a slide, but for its classes.
const COLUMNS: [Column; 24] = [
    ("id", TEXT, |row| row.report.id.as_str().into()),
    ("group", TEXT, |row| row.report.group.clone().into()),
    ("status", TEXT, |row| Value::Text(row.report.status.to_string())),
    ("code", WHOLE, |row| Value::Integer(row.report.code.into())),
    ("error", TEXT, |row| row.report.error.clone().into()),
    ("attempts", WHOLE, |row| Value::Integer(row.report.attempts.into())),
    ("seconds", REAL, |row| Some(row.report.seconds).into()),
    ("finished", TEXT, |row| Some(row.report.finished.clone()).filter(|text| !text.is_empty()).into()),
    ("format", TEXT, |row| row.text("/format")),
    ("width_px", WHOLE, |row| row.whole("/slide/width")),
    ("height_px", WHOLE, |row| row.whole("/slide/height")),
    ("mpp_x_um", REAL, |row| row.real("/geometry/resolution/mpp/x")),
    ("mpp_y_um", REAL, |row| row.real("/geometry/resolution/mpp/y")),
    ("mpp_source", TEXT, |row| row.source()),
    ("target_mpp_x_um", REAL, |row| row.real("/geometry/target/mpp/x")),
    ("target_mpp_y_um", REAL, |row| row.real("/geometry/target/mpp/y")),
    ("region", TEXT, |row| row.text("/region/kind")),
    ("region_px", WHOLE, |row| row.whole("/region/pixels")),
    ("region_mm2", REAL, |row| row.real("/region/mm2")),
    ("tiles_run", WHOLE, |row| row.whole("/tiles/run")),
    ("tiles_skipped", WHOLE, |row| row.whole("/tiles/skipped")),
    ("tiles_unreadable", WHOLE, |row| row.count("/unreadable")),
    ("model", TEXT, |row| row.text("/model")),
    ("output", TEXT, |row| Some(row.report.output.clone()).filter(|text| !text.is_empty()).into()),
];

impl Row {
    fn of(report: SlideReport) -> Self {
        let areas = report.summary.as_ref().and_then(|summary| summary.get("areas")?.as_array());
        let area = |area: &Json| {
            let class = serde_json::from_value(area.get("class")?.clone()).ok()?;
            let number = |name: &str| area.get(name).and_then(Json::as_f64);
            let pixels = area.get("pixels").and_then(Json::as_u64);
            Some(Area { class, pixels, mm2: number("mm2"), share: number("share") })
        };
        let areas = areas.into_iter().flatten().filter_map(area).collect();
        Self { report, areas }
    }

    fn at(&self, pointer: &str) -> Option<&Json> {
        self.report.summary.as_ref()?.pointer(pointer)
    }

    fn text(&self, pointer: &str) -> Value {
        self.at(pointer).and_then(Json::as_str).map(str::to_owned).into()
    }

    fn whole(&self, pointer: &str) -> Value {
        self.at(pointer).and_then(Json::as_u64).into()
    }

    fn real(&self, pointer: &str) -> Value {
        self.at(pointer).and_then(Json::as_f64).into()
    }

    fn count(&self, pointer: &str) -> Value {
        self.at(pointer).and_then(Json::as_array).map(|array| array.len() as u64).into()
    }

    /// Who says what the resolution is.
    fn source(&self) -> Value {
        let source = self.at("/geometry/resolution/source");
        let source = source.and_then(|source| serde_json::from_value(source.clone()).ok());
        source.map(|source: microtome_io::slide::ResolutionSource| source.to_string()).into()
    }
}

/// Puts together what lies in the folder of a batch: all reports, whichever shard wrote them, sorted by id, into `summary.csv`, `summary.html` and
/// `results.sqlite`. Doing it again changes nothing, and several may do it at once.
///
/// What can name a person is in the tables only if it is both asked for and in the reports.
///
/// # Errors
/// [`Error::Usage`] if the folder holds no batch, [`Error::Io`] if it cannot be read or written.
pub fn report(folder: &Path, identify: Identify) -> Result<Merged> {
    let folder = Folder::new(folder);
    let rows = rows(&folder)?;
    let mut merged = Merged::default();
    for Row { report, .. } in &rows {
        match report.status {
            Status::Done => merged.done += 1,
            Status::Failed => merged.failed += 1,
            Status::Waiting => merged.waiting += 1,
        }
        merged.with_faults += usize::from(report.status == Status::Done && report.code != 0);
        merged.identified += usize::from(report.identity.is_some());
    }
    let classes = classes(&rows);
    put(&folder.csv(), &csv(&rows, &classes, identify, &folder)?)?;
    put(&folder.database(), &sqlite::database(&tables(&rows, identify)))?;
    put(&folder.html(), html(&rows, &classes, merged, identify, &folder).as_bytes())?;
    Ok(merged)
}

/// All slides of the folder, by their ids: those that have a report, and those of the manifest that have none.
fn rows(folder: &Folder) -> Result<Vec<Row>> {
    let io = |source| Error::Io { path: folder.path().into(), source };
    let slides: Option<Slides> = json(&folder.slides());
    let mut reports: BTreeMap<String, SlideReport> = BTreeMap::new();
    for entry in std::fs::read_dir(folder.path()).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let Some(id) = name.to_str().filter(|id| check_id(id).is_ok()) else { continue };
        // A folder that was renamed is not the slide's any more.
        if let Some(report) = SlideReport::read(&folder.slide(id)).filter(|report| report.id == id) {
            reports.insert(id.into(), report);
        }
    }
    if slides.is_none() && reports.is_empty() {
        return Err(Error::Usage(format!("{}: holds no results of a batch", folder.path().display())));
    }
    for slide in slides.unwrap_or_default().slides {
        reports.entry(slide.id.clone()).or_insert_with(|| SlideReport {
            id: slide.id,
            group: slide.group,
            status: Status::Waiting,
            code: 0,
            error: None,
            attempts: 0,
            finished: String::new(),
            seconds: 0.0,
            output: String::new(),
            summary: None,
            identity: None,
        });
    }
    Ok(reports.into_values().map(Row::of).collect())
}

/// All classes that any slide has, by value and name.
fn classes(rows: &[Row]) -> Vec<(u16, String)> {
    let all: BTreeSet<(u16, String)> =
        rows.iter().flat_map(|row| &row.areas).map(|area| (area.class.value, area.class.name.clone())).collect();
    all.into_iter().collect()
}

impl Row {
    fn area(&self, (value, name): &(u16, String)) -> Option<&Area> {
        self.areas.iter().find(|area| area.class.value == *value && area.class.name == *name)
    }

    fn slide(&self) -> Value {
        self.report.identity.as_ref().map(|identity| identity.slide.clone()).into()
    }
}

fn csv(rows: &[Row], classes: &[(u16, String)], identify: Identify, folder: &Folder) -> Result<Vec<u8>> {
    let text = |value: Value| match value {
        Value::Null => String::new(),
        Value::Integer(number) => number.to_string(),
        Value::Real(number) => number.to_string(),
        // What would be a formula in a spreadsheet is one no longer.
        Value::Text(text) if text.starts_with(['=', '+', '-', '@']) => format!("'{text}"),
        Value::Text(text) => text,
    };
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut write = |record: Vec<String>| {
        writer.write_record(&record).map_err(|error| Error::Io { path: folder.csv(), source: error.into() })
    };
    let mut titles: Vec<String> = COLUMNS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    if identify == Identify::Yes {
        titles.push("slide".into());
    }
    for (_, class) in classes {
        titles.extend(["px", "mm2", "share"].map(|unit| text(Value::Text(format!("{class}_{unit}")))));
    }
    write(titles)?;
    for row in rows {
        let mut record: Vec<String> = COLUMNS.iter().map(|(.., of)| text(of(row))).collect();
        if identify == Identify::Yes {
            record.push(text(row.slide()));
        }
        for class in classes {
            let area = row.area(class);
            record.push(text(area.and_then(|area| area.pixels).into()));
            record.push(text(area.and_then(|area| area.mm2).into()));
            record.push(text(area.and_then(|area| area.share).into()));
        }
        write(record)?;
    }
    writer.into_inner().map_err(|error| Error::Io { path: folder.csv(), source: error.into_error() })
}

/// `slides` has a row for each slide, `areas` one for each slide and class.
fn tables(rows: &[Row], identify: Identify) -> [Table; 2] {
    let mut columns: Vec<_> = COLUMNS.iter().map(|(name, kind, _)| (*name, *kind)).collect();
    if identify == Identify::Yes {
        columns.push(("slide", TEXT));
    }
    let slide = |row: &Row| {
        let mut values: Vec<Value> = COLUMNS.iter().map(|(.., of)| of(row)).collect();
        if identify == Identify::Yes {
            values.push(row.slide());
        }
        values
    };
    let area = |row: &Row, area: &Area| {
        let [r, g, b] = area.class.color;
        vec![
            Value::from(row.report.id.as_str()),
            Value::Integer(area.class.value.into()),
            area.class.name.as_str().into(),
            area.class.code.clone().into(),
            Value::Text(format!("#{r:02x}{g:02x}{b:02x}")),
            area.pixels.into(),
            area.mm2.into(),
            area.share.into(),
        ]
    };
    let areas = rows.iter().flat_map(|row| row.areas.iter().map(move |a| area(row, a))).collect();
    let names = [
        ("id", TEXT),
        ("value", WHOLE),
        ("class", TEXT),
        ("terminology_code", TEXT),
        ("color", TEXT),
        ("area_px", WHOLE),
        ("area_mm2", REAL),
        ("share_of_region", REAL),
    ];
    [
        Table { name: "slides", columns, rows: rows.iter().map(slide).collect() },
        Table { name: "areas", columns: names.to_vec(), rows: areas },
    ]
}

fn html(rows: &[Row], classes: &[(u16, String)], merged: Merged, identify: Identify, folder: &Folder) -> String {
    let mut page = Html::with_sorting("Slides of a batch");
    let Merged { done, with_faults, failed, waiting, .. } = merged;
    let faults =
        if with_faults > 0 { format!(" ({with_faults} with parts that could not be read)") } else { String::new() };
    page.paragraph(&format!("{} slides: {done} done{faults}, {failed} failed, {waiting} waiting.", rows.len()));
    page.paragraph("Areas are square millimetres of the mask, and per cent of what was segmented of the slide. Each column can be sorted.");
    let mut titles: Vec<String> = ["picture", "id", "group", "status"].map(Into::into).to_vec();
    if identify == Identify::Yes {
        titles.extend(["label", "slide", "scanner's texts"].map(Into::into));
    }
    for (_, class) in classes {
        titles.extend([format!("{class}, mm²"), format!("{class}, %")]);
    }
    titles.extend(
        ["segmented, mm²", "µm per pixel", "from", "unreadable tiles", "time, s", "attempts", "model"].map(Into::into),
    );
    let number = |value: Value, digits: usize| match value {
        Value::Integer(n) => Sortable::Number(Some(n as f64), n.to_string()),
        Value::Real(n) => Sortable::Number(Some(n), format!("{n:.digits$}")),
        _ => Sortable::Number(None, String::new()),
    };
    let text = |value: Value| match value {
        Value::Text(text) => Sortable::Text(text),
        _ => Sortable::Text(String::new()),
    };
    let table: Vec<Vec<Sortable>> = rows
        .iter()
        .map(|row| {
            let SlideReport { id, group, status, error, .. } = &row.report;
            let own = folder.slide(id);
            let mut cells = vec![
                Sortable::Picture(picture(row, &own), format!("{id}, with the outlines of its mask")),
                link(row, folder),
                Sortable::Text(group.clone().unwrap_or_default()),
                Sortable::Text(match error {
                    Some(error) => format!("{status}: {error}"),
                    None if row.report.code != 0 => format!("{status}, with faults"),
                    None => status.to_string(),
                }),
            ];
            if identify == Identify::Yes {
                let identity = row.report.identity.as_ref();
                cells.push(Sortable::Picture(identity.and_then(|_| small(&own.label())), format!("the label of {id}")));
                cells.push(text(row.slide()));
                let said = identity.map(|identity| {
                    let texts = identity.properties.iter().map(|(name, value)| format!("{name} = {value}"));
                    texts.collect::<Vec<_>>().join("\n")
                });
                cells.push(Sortable::Text(said.unwrap_or_default()));
            }
            for class in classes {
                let area = row.area(class);
                cells.push(number(area.and_then(|area| area.mm2).into(), 4));
                cells.push(number(area.and_then(|area| area.share).map(|share| 100.0 * share).into(), 2));
            }
            cells.extend([
                number(row.real("/region/mm2"), 4),
                number(row.real("/geometry/resolution/mpp/x"), 4),
                text(row.source()),
                number(row.count("/unreadable"), 0),
                number(Value::Real(row.report.seconds), 1),
                number(Value::Integer(row.report.attempts.into()), 0),
                text(row.text("/model")),
            ]);
            cells
        })
        .collect();
    page.sortable(&titles, &table);
    page.finish_with_sorting()
}

fn picture(row: &Row, own: &SlideFolder) -> Option<Vec<u8>> {
    (row.report.status == Status::Done).then(|| small(&own.thumbnail())).flatten()
}

/// The id, which leads to the page of the run, if there is one.
fn link(row: &Row, folder: &Folder) -> Sortable {
    let id = row.report.id.clone();
    let output = Path::new(&row.report.output);
    let below = output.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    let page = Some(folder.path().join(output)).filter(|_| below && !row.report.output.is_empty());
    let page = page.and_then(|mask| work::page_of(&mask));
    let path = page.as_deref().and_then(|page| page.strip_prefix(folder.path()).ok());
    match path {
        Some(path) => Sortable::Link(id, path.iter().map(|part| part.to_string_lossy().into_owned()).collect()),
        None => Sortable::Text(id),
    }
}
