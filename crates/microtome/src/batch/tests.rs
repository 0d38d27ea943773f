//! A batch as a whole, with models that are formulas.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use microtome_io::slide::SlideReader;
use microtome_io::store::OmeZarr;
use microtome_io::{Level, Pixels, SampleType, Size};
use microtome_testkit::tiff::TiffSlide;
use microtome_testkit::{FailingSlide, FunctionModel, SyntheticSlide};
use microtome_unet::{Card, Logits, MemoryEstimate, Normalizer, Predictor, Tile};
use serde_json::Value;

use super::folder::{Folder, SlideReport};
use super::*;
use crate::{OnBadTile, Settings, TargetResolution, TissueMode};

/// A folder with slides, and the manifest of them.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A slide of two levels at 0.5 um per pixel, another for each seed.
    fn slide(&self, name: &str, seed: u64) {
        slide(seed).write(&self.path(name)).unwrap();
    }

    fn manifest(&self, text: &str) -> Manifest {
        std::fs::write(self.path("archive.csv"), text).unwrap();
        Manifest::read(&self.path("archive.csv")).unwrap()
    }

    /// So many slides, called `s0`, `s1`, ...
    fn archive(&self, count: u64) -> Manifest {
        (0..count).for_each(|i| self.slide(&format!("{i}.tif"), i));
        let rows: String = (0..count).map(|i| format!("{i}.tif,s{i}\n")).collect();
        self.manifest(&format!("slide,id\n{rows}"))
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(name)).unwrap()).unwrap()
    }
}

fn slide(seed: u64) -> TiffSlide {
    let mut slide = TiffSlide::rgb(&[(400, 300), (200, 150)], move |level, x, y, channel| {
        (((x << level) / 16 * 31 + (y << level) / 16 * 17 + seed * 53 + 50 * channel as u64) % 256) as u16
    });
    slide.resolution = Some((20_000.0, 20_000.0, 3));
    slide
}

fn model() -> FunctionModel {
    let mut model = FunctionModel::new(Size::new(128, 128), &[100.5]);
    model.card_mut().classes[1].name = "tumour".into();
    model
}

fn settings() -> Settings {
    Settings {
        model_mpp: Some(TargetResolution::Native),
        tissue: TissueMode::None,
        memory: 1 << 30,
        threads: Some(2),
        chunk: 64,
        shard: 128,
        ..Settings::default()
    }
}

fn run(manifest: &Manifest, model: &dyn Predictor, folder: &Path, options: Options) -> Finished {
    let segmenter = Segmenter::new(model, settings()).unwrap();
    Batch::new(manifest, &segmenter, folder, options).unwrap().run(&Nobody).unwrap()
}

fn options(of: impl FnOnce(&mut Options)) -> Options {
    let mut options = Options::default();
    of(&mut options);
    options
}

/// Every file below a folder but those that tell times: reports, events, tables and what belongs to runs.
fn stores(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = super::files::files(folder).unwrap();
    let is_store = |name: &Path| name.ancestors().any(|part| part.extension().is_some_and(|ending| ending == "zarr"));
    files
        .into_iter()
        .filter(|(name, _)| is_store(name))
        .map(|(name, _)| (name.clone(), std::fs::read(folder.join(&name)).unwrap()))
        .collect()
}

/// Every file below a folder, with the moment of its last change.
fn everything(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let files = super::files::files(folder).unwrap();
    let content = |name: PathBuf| {
        let path = folder.join(&name);
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        (name, (std::fs::read(path).unwrap(), modified))
    };
    files.into_iter().map(|(name, _)| content(name)).collect()
}

fn events(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn count(events: &[Value], event: &str, id: &str) -> usize {
    events.iter().filter(|line| line["event"] == event && line["id"] == id).count()
}

/// A model over some slides of which it fails in the worst way.
#[derive(Debug)]
struct Panicking(FunctionModel);

impl Predictor for Panicking {
    fn card(&self) -> &Card {
        self.0.card()
    }

    fn predict(&self, tiles: &[Tile<'_>], normalizer: &Normalizer) -> microtome_unet::Result<Vec<Logits>> {
        for tile in tiles {
            assert!(tile.pixels.as_u8().unwrap().iter().any(|&sample| sample != 7), "a slide of nothing but sevens");
        }
        self.0.predict(tiles, normalizer)
    }

    fn identity(&self) -> String {
        self.0.identity()
    }

    fn memory(&self, batch: usize) -> MemoryEstimate {
        self.0.memory(batch)
    }
}

#[test]
fn every_slide_is_tried_and_none_stops_the_others() {
    let place = Place::new();
    (0..3).for_each(|i| place.slide(&format!("{i}.tif"), i));
    TiffSlide::rgb(&[(300, 200)], |_, _, _, _| 7).write(&place.path("panic.tif")).unwrap();
    std::fs::write(place.path("bad.svs"), "no slide").unwrap();
    let text = "slide,id,group\n0.tif,a,x\nbad.svs,b,x\npanic.tif,c,\nnone.tif,d,\n1.tif,e,y\n2.tif,f,y\n";
    let manifest = place.manifest(text);
    for jobs in [1, 3] {
        let folder = place.path(&format!("out-{jobs}"));
        let finished = run(&manifest, &Panicking(model()), &folder, options(|o| o.jobs = jobs));
        assert_eq!((finished.exit_code(), finished.stopped), (Some(3), false));
        let found: Vec<_> = finished.outcomes.iter().map(|o| (o.id.as_str(), o.line, o.status, o.code)).collect();
        let (done, failed) = (Status::Done, Status::Failed);
        let expected = [
            ("a", 2, done, 0),
            ("b", 3, failed, 4),
            ("c", 4, failed, 1),
            ("d", 5, failed, 4),
            ("e", 6, done, 0),
            ("f", 7, done, 0),
        ];
        assert_eq!(found, expected);
        let error = |id: usize| finished.outcomes[id].error.as_deref().unwrap();
        assert!(error(1).starts_with("the slide: ") && error(1).contains("no format"), "{}", error(1));
        assert!(error(2).contains("nothing but sevens"), "{}", error(2));
        assert!(error(3).contains("No such file"), "{}", error(3));
        let out = Folder::new(&folder);
        for (id, is_done) in [("a", true), ("b", false), ("c", false), ("d", false), ("e", true)] {
            let own = out.slide(id);
            assert_eq!(own.done().exists(), is_done, "{id}");
            assert_eq!(own.thumbnail().exists(), is_done, "{id}");
            assert!(SlideReport::read(&own).is_some() && !own.lease().exists(), "{id}");
        }
        OmeZarr::open(folder.join("e/mask.ome.zarr")).unwrap();
        let lines = events(&out.events(None));
        for id in ["a", "b", "c", "d", "e", "f"] {
            assert_eq!(count(&lines, "slide-started", id), 1, "{id}");
            let ended = count(&lines, "slide-done", id) + count(&lines, "slide-failed", id);
            assert_eq!(ended, 1, "{id}");
        }
        assert_eq!(lines[0]["event"], "batch-started");
        assert_eq!(lines[lines.len() - 1]["event"], "batch-ended");
        let csv = std::fs::read_to_string(out.csv()).unwrap();
        let ids: Vec<&str> = csv.lines().skip(1).filter_map(|line| line.split(',').next()).collect();
        assert_eq!(ids, ["a", "b", "c", "d", "e", "f"]);
        assert!(csv.lines().next().unwrap().ends_with("tumour_px,tumour_mm2,tumour_share"), "{csv}");
    }
    // At once or one after the other, the bytes are the same.
    assert!(stores(&place.path("out-1")) == stores(&place.path("out-3")));
}

#[test]
fn the_code_is_the_largest_that_applies() {
    let outcome =
        |status, code| Outcome { id: String::new(), line: 1, status, code, error: None, by: By::ThisRun, seconds: 0.0 };
    let (done, failed) = (Status::Done, Status::Failed);
    let cases: [(&[(Status, u8)], u8); 11] = [
        (&[], 0),
        (&[(done, 0), (done, 0)], 0),
        (&[(done, 0), (done, 3)], 3),
        (&[(done, 0), (failed, 4)], 3),
        (&[(failed, 4), (failed, 4)], 4),
        (&[(failed, 6), (failed, 6)], 6),
        (&[(failed, 6), (failed, 4)], 4),
        (&[(failed, 6), (done, 0)], 3),
        (&[(failed, 5)], 5),
        (&[(done, 0), (failed, 75)], 75),
        (&[(failed, 4), (failed, 75)], 75),
    ];
    for (outcomes, code) in cases {
        let outcomes = outcomes.iter().map(|&(status, code)| outcome(status, code)).collect();
        assert_eq!(Finished { outcomes, stopped: false }.exit_code(), Some(code));
    }
    assert_eq!(Finished { outcomes: Vec::new(), stopped: true }.exit_code(), None);
    let cases: [(&[u8], usize, Option<u8>); 9] = [
        (&[], 0, None),
        (&[], 3, None),
        (&[1], 2, Some(3)),
        (&[2], 1, Some(4)),
        (&[5, 5], 2, Some(5)),
        (&[6], 1, Some(6)),
        (&[5, 6], 2, Some(4)),
        (&[6, 6], 3, Some(3)),
        (&[6, 75], 3, Some(75)),
    ];
    for (failures, slides, code) in cases {
        assert_eq!(code_of(failures, slides), code, "{failures:?} of {slides}");
    }
}

#[test]
fn an_output_that_somebody_is_writing_is_a_failure_that_passes() {
    let place = Place::new();
    let manifest = place.archive(2);
    let out = place.path("out");
    let mask = out.join("s0/mask.ome.zarr");
    std::fs::create_dir_all(&mask).unwrap();
    let mark = std::fs::File::create(mask.join(".microtome-unfinished")).unwrap();
    mark.lock().unwrap();
    let finished = run(&manifest, &model(), &out, Options::default());
    let found: Vec<_> = finished.outcomes.iter().map(|o| (o.status, o.code)).collect();
    assert_eq!(found, [(Status::Failed, 75), (Status::Done, 0)], "{finished:?}");
    assert_eq!(finished.exit_code(), Some(75));
    drop(mark);
    assert_eq!(run(&manifest, &model(), &out, Options::default()).exit_code(), Some(0));
}

#[test]
fn a_folder_that_cannot_be_made_fails_its_slide_alone() {
    let place = Place::new();
    let manifest = place.archive(3);
    let stage = Stage { folder: place.path("stage"), limit: None };
    let cases = [
        ("plain", Options::default()),
        ("staged", options(|o| o.stage = Some(stage))),
        ("shard", options(|o| o.shard = Some(Shard { index: 0, count: 1 }))),
    ];
    for (name, options) in cases {
        let out = place.path(name);
        std::fs::create_dir(&out).unwrap();
        std::fs::write(out.join("s1"), "a file").unwrap();
        let alone = options.shard.is_none();
        let finished = run(&manifest, &model(), &out, options);
        assert_eq!(finished.exit_code(), Some(3), "{name}: {finished:?}");
        let found: Vec<_> = finished.outcomes.iter().map(|o| o.status).collect();
        assert_eq!(found, [Status::Done, Status::Failed, Status::Done], "{name}");
        assert_eq!(std::fs::read(out.join("s1")).unwrap(), b"a file");
        let rows = std::fs::read_to_string(out.join("summary.csv")).map_or(0, |csv| csv.lines().count());
        assert_eq!(rows, if alone { 4 } else { 0 }, "{name}");
        let events = if alone { "events.jsonl" } else { "events-0-of-1.jsonl" };
        let events = std::fs::read_to_string(out.join(events)).unwrap();
        assert_eq!(events.matches("\"slide-failed\"").count(), 1, "{name}: {events}");
    }
}

#[test]
fn what_is_done_is_not_done_again() {
    let place = Place::new();
    let manifest = place.archive(3);
    let out = place.path("out");
    assert_eq!(run(&manifest, &model(), &out, Options::default()).exit_code(), Some(0));
    let before = everything(&out);
    // The slides need not even be there.
    std::fs::remove_file(place.path("1.tif")).unwrap();
    let again = run(&manifest, &model(), &out, Options::default());
    assert!(again.outcomes.iter().all(|o| o.by == By::EarlierRun && o.code == 0), "{again:?}");
    assert_eq!(again.exit_code(), Some(0));
    assert!(everything(&out) == before, "something was touched");

    // A slide that was replaced is another one, a mask that is gone is made again, and so is what has no mark.
    place.slide("0.tif", 17);
    place.slide("1.tif", 1);
    std::fs::remove_dir_all(out.join("s1/mask.ome.zarr")).unwrap();
    std::fs::remove_file(out.join("s2/done")).unwrap();
    let again = run(&manifest, &model(), &out, Options::default());
    let found: Vec<_> = again.outcomes.iter().map(|o| (o.status, o.code, o.by)).collect();
    assert_eq!(
        found,
        [(Status::Failed, 5, By::ThisRun), (Status::Done, 0, By::ThisRun), (Status::Done, 0, By::EarlierRun)]
    );
    assert!(out.join("s2/done").exists() && !out.join("s0/done").exists());
    assert_eq!(place.json("out/s1/report.json")["attempts"], 2);
    // Asked for, it is replaced.
    let replaced = run(&manifest, &model(), &out, options(|o| o.existing = Existing::Replace));
    assert_eq!(replaced.exit_code(), Some(0));
    assert!(replaced.outcomes.iter().all(|o| o.by == By::ThisRun));
}

#[test]
fn with_other_settings_what_is_there_is_the_result_of_another_run() {
    let place = Place::new();
    let manifest = place.archive(2);
    let out = place.path("out");
    run(&manifest, &model(), &out, Options::default());
    let other = FunctionModel::new(Size::new(128, 128), &[140.5]);
    let finished = run(&manifest, &other, &out, Options::default());
    assert_eq!(finished.exit_code(), Some(5), "{finished:?}");
    // Nothing of the budget, the batch or the threads is part of a result.
    let (one, mut two) = (model(), settings());
    (two.memory, two.batch, two.threads) = (2 << 30, Some(3), Some(1));
    let segmenter = Segmenter::new(&one, two).unwrap();
    let first = Segmenter::new(&one, settings()).unwrap();
    assert_eq!(segmenter.identity(), first.identity());
    let mut three = settings();
    three.on_bad_tile = OnBadTile::Fill;
    assert_ne!(Segmenter::new(&one, three).unwrap().identity(), first.identity());
}

#[test]
fn what_failed_is_tried_again() {
    let place = Place::new();
    place.slide("0.tif", 0);
    std::fs::write(place.path("1.tif"), "no slide").unwrap();
    let manifest = place.manifest("slide,id\n0.tif,a\n1.tif,b\n");
    let out = place.path("out");
    assert_eq!(run(&manifest, &model(), &out, Options::default()).exit_code(), Some(3));
    assert_eq!(run(&manifest, &model(), &out, Options::default()).exit_code(), Some(3));
    place.slide("1.tif", 1);
    assert_eq!(run(&manifest, &model(), &out, Options::default()).exit_code(), Some(0));
    let report = place.json("out/b/report.json");
    assert_eq!((&report["attempts"], &report["status"], &report["error"]), (&3.into(), &"done".into(), &Value::Null));
    let lines = events(&out.join("events.jsonl"));
    assert_eq!((count(&lines, "slide-failed", "b"), count(&lines, "slide-done", "b")), (2, 1));
    assert_eq!(count(&lines, "slide-started", "a"), 1);
}

#[test]
fn resolution_level_region_and_output_are_those_of_the_manifest() {
    let place = Place::new();
    place.slide("0.tif", 0);
    let rectangle = r#"{"type":"Polygon","coordinates":[[[0,0],[200,0],[200,300],[0,300],[0,0]]]}"#;
    std::fs::write(place.path("left.geojson"), rectangle).unwrap();
    let manifest = place.manifest(
        "slide,id,mpp,level,roi,out\n0.tif,own,,,,\n0.tif,same,0.5,,,\n0.tif,told,0.25,,,\n0.tif,coarse,,1,,\n\
         0.tif,left,,,left.geojson,\n0.tif,there,,,,masks/there.ome.zarr\n0.tif,none,,7,,\n",
    );
    let out = place.path("out");
    let finished = run(&manifest, &model(), &out, Options::default());
    assert_eq!(finished.exit_code(), Some(3));
    assert!(finished.outcomes[6].error.as_deref().unwrap().contains("no level 7"), "{finished:?}");
    let resolution =
        |id: &str| place.json(&format!("out/{id}/report.json"))["summary"]["geometry"]["resolution"].clone();
    let own = resolution("own");
    assert_eq!((&own["mpp"]["x"], own["source"] == "given"), (&0.5.into(), false), "{own}");
    assert_eq!(resolution("same"), own, "the slide's own word is not another one's");
    assert_eq!((&resolution("told")["mpp"]["x"], &resolution("told")["source"]), (&0.25.into(), &"given".into()));
    let mask = |path: &str| OmeZarr::open(out.join(path)).unwrap();
    assert!(stores(&out.join("own")) == stores(&out.join("same")));
    let coarse = mask("coarse/mask.ome.zarr");
    assert_eq!((coarse.info().levels[0].size, coarse.info().levels[0].mpp.unwrap().x), (Size::new(200, 150), 1.0));
    let whole = mask("masks/there.ome.zarr").read_region(Level(0), Size::new(400, 300).rect()).unwrap();
    let left = mask("left/mask.ome.zarr").read_region(Level(0), Size::new(400, 300).rect()).unwrap();
    for (i, (left, whole)) in left.as_u8().unwrap().iter().zip(whole.as_u8().unwrap()).enumerate() {
        assert_eq!(*left, if i % 400 < 200 { *whole } else { 0 });
    }
    // Where the region came from is nobody's business.
    assert!(!std::fs::read_to_string(out.join("left/mask.ome.zarr.run/report.json")).unwrap().contains("left.geojson"));
}

#[test]
fn contradictions_and_impossible_wishes_are_refused() {
    let place = Place::new();
    let manifest = place.manifest("slide,id,mpp\n0.tif,a,0.25\ns3://x/y.svs,b,\n");
    let (model, mut other) = (model(), settings());
    let plain = Segmenter::new(&model, settings()).unwrap();
    let refused = |segmenter: &Segmenter<'_>, options| {
        Batch::new(&manifest, segmenter, &place.path("out"), options).map(|_| ()).unwrap_err().to_string()
    };
    assert!(refused(&plain, options(|o| o.jobs = 0)).contains("one slide"));
    other.mpp = Some(0.5);
    assert!(refused(&Segmenter::new(&model, other).unwrap(), Options::default()).contains("line 2"));
    assert!(!place.path("out").exists());
}

#[test]
fn what_does_not_fit_is_said_with_the_number_of_jobs() {
    let place = Place::new();
    let manifest = place.archive(2);
    let (model, mut small) = (model(), settings());
    small.memory = 200 << 20;
    let segmenter = Segmenter::new(&model, small).unwrap();
    let out = place.path("out");
    let batch = Batch::new(&manifest, &segmenter, &out, options(|o| o.jobs = 4)).unwrap();
    let finished = batch.run(&Nobody).unwrap();
    assert_eq!(finished.exit_code(), Some(6), "{finished:?}");
    assert!(finished.outcomes[0].error.as_deref().unwrap().contains("--jobs 4"), "{finished:?}");
    let alone = Batch::new(&manifest, &segmenter, &out, Options::default()).unwrap();
    assert_eq!(alone.run(&Nobody).unwrap().exit_code(), Some(0));
}

/// Stops after so many slides.
struct Stopping {
    after: usize,
    ended: AtomicUsize,
}

impl Watcher for Stopping {
    fn ends(&self, _: &Outcome) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    fn cancelled(&self) -> bool {
        self.ended.load(Ordering::Relaxed) >= self.after
    }
}

#[test]
fn a_batch_that_is_stopped_goes_on() {
    let place = Place::new();
    let manifest = place.archive(5);
    let (out, whole) = (place.path("out"), place.path("whole"));
    let model = model();
    let segmenter = Segmenter::new(&model, settings()).unwrap();
    let batch = Batch::new(&manifest, &segmenter, &out, Options::default()).unwrap();
    let stopped = batch.run(&Stopping { after: 2, ended: AtomicUsize::new(0) }).unwrap();
    assert!(stopped.stopped && stopped.exit_code().is_none());
    let waiting = stopped.outcomes.iter().filter(|o| o.status == Status::Waiting).count();
    assert_eq!(waiting, 3, "{stopped:?}");
    assert!((0..5).all(|i| !out.join(format!("s{i}/lease")).exists()));
    // What is there can be put together, and says what is not.
    let merged = report(&out, Identify::No).unwrap();
    assert_eq!((merged.done, merged.waiting, merged.failed), (2, 3, 0));
    let finished = batch.run(&Nobody).unwrap();
    assert_eq!(finished.exit_code(), Some(0));
    run(&manifest, &model, &whole, Options::default());
    assert!(stores(&out) == stores(&whole));
}

#[test]
fn several_over_one_folder_share_the_work_and_do_nothing_twice() {
    let place = Place::new();
    let manifest = place.archive(10);
    std::fs::write(place.path("3.tif"), "no slide").unwrap();
    let (out, whole) = (place.path("out"), place.path("whole"));
    let finished: Vec<Finished> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..3).map(|_| scope.spawn(|| run(&manifest, &model(), &out, Options::default()))).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for finished in &finished {
        assert_eq!(finished.exit_code(), Some(3), "each says how all ended: {finished:?}");
        assert_eq!(finished.outcomes[3].code, 4);
    }
    let lines = events(&out.join("events.jsonl"));
    for i in 0..10 {
        let id = format!("s{i}");
        assert_eq!(count(&lines, "slide-started", &id), 1, "{id}: {lines:#?}");
        let by_this = finished.iter().filter(|f| f.outcomes[i].by == By::ThisRun).count();
        assert_eq!(by_this, 1, "{id}");
        assert!(!out.join(&id).join("lease").exists());
    }
    run(&manifest, &model(), &whole, Options::default());
    assert!(stores(&out) == stores(&whole));
    assert_eq!(std::fs::read_to_string(out.join("summary.csv")).unwrap().lines().count(), 11);
}

#[test]
fn shards_make_the_whole_and_their_reports_merge() {
    let place = Place::new();
    let manifest = place.archive(9);
    std::fs::write(place.path("4.tif"), "no slide").unwrap();
    let (out, whole) = (place.path("out"), place.path("whole"));
    let mut seen = Vec::new();
    for index in 0..4 {
        let finished = run(&manifest, &model(), &out, options(|o| o.shard = Some(Shard { index, count: 4 })));
        seen.extend(finished.outcomes.iter().map(|o| o.id.clone()));
        assert!(out.join(format!("events-{index}-of-4.jsonl")).exists() || finished.outcomes.is_empty());
    }
    assert!(!out.join("summary.csv").exists() && !out.join("events.jsonl").exists());
    seen.sort();
    assert_eq!(seen, (0..9).map(|i| format!("s{i}")).collect::<Vec<_>>());
    let merged = report(&out, Identify::No).unwrap();
    assert_eq!((merged.done, merged.failed, merged.waiting), (8, 1, 0));
    let before = everything(&out);
    assert_eq!(report(&out, Identify::No).unwrap(), merged);
    assert!(everything(&out) == before, "doing it again changes nothing");
    run(&manifest, &model(), &whole, Options::default());
    assert!(stores(&out) == stores(&whole));
    // More shards than slides is no error.
    let empty =
        run(&manifest, &model(), &place.path("more"), options(|o| o.shard = Some(Shard { index: 40, count: 50 })));
    assert_eq!((empty.outcomes.len(), empty.exit_code()), (0, Some(0)));
}

#[test]
fn copies_are_read_in_place_of_slides_and_change_nothing() {
    let place = Place::new();
    let manifest = place.archive(4);
    let (out, whole, stage) = (place.path("out"), place.path("whole"), place.path("stage"));
    let size = std::fs::metadata(place.path("0.tif")).unwrap().len();
    for (name, limit) in [("enough", None), ("one", Some(size)), ("none", Some(size - 1))] {
        let out = out.with_extension(name);
        let staged = options(|o| {
            o.jobs = 2;
            o.stage = Some(Stage { folder: stage.clone(), limit });
        });
        assert_eq!(run(&manifest, &model(), &out, staged).exit_code(), Some(0), "{name}");
        assert_eq!(std::fs::read_dir(&stage).unwrap().count(), 0, "{name}: nothing is left");
        run(&manifest, &model(), &whole, Options::default());
        assert!(stores(&out) == stores(&whole), "{name}");
    }
}

/// Notes what is said.
#[derive(Default)]
struct Listening(Mutex<Vec<String>>);

impl Watcher for Listening {
    fn note(&self, text: &str) {
        self.0.lock().unwrap().push(text.into());
    }

    fn ends(&self, outcome: &Outcome) {
        self.0.lock().unwrap().push(format!("{outcome:?}"));
    }
}

#[test]
fn nothing_names_a_person_unless_asked() {
    let place = Place::new();
    place.slide("DOE_JANE.tif", 2);
    let mut told = slide(1);
    told.description =
        Some("Aperio Image Library v10.0.51\r\n400x300 |AppMag = 20|MPP = 0.5|Patient = DOE^JANE|".into());
    told.write(&place.path("DOE_JANE_2.svs")).unwrap();
    std::fs::write(place.path("DOE_JANE_3.svs"), "DOE^JANE is no slide").unwrap();
    let text = "slide,id\nDOE_JANE.tif,a\nDOE_JANE_2.svs,b\nDOE_JANE_3.svs,c\nDOE_JANE_4.svs,d\n";
    let manifest = place.manifest(text);
    let model = model();
    let segmenter = Segmenter::new(&model, settings()).unwrap();
    for identify in [Identify::No, Identify::Yes] {
        let out = place.path(&format!("out-{identify:?}"));
        let batch = Batch::new(&manifest, &segmenter, &out, options(|o| o.identify = identify)).unwrap();
        let listening = Listening::default();
        let finished = batch.run(&listening).unwrap();
        assert_eq!(finished.exit_code(), Some(3), "{finished:?}");
        report(&out, identify).unwrap();
        let mut said = listening.0.into_inner().unwrap().join("\n").into_bytes();
        for (name, _) in super::files::files(&out).unwrap() {
            said.extend(name.to_string_lossy().as_bytes());
            said.extend(std::fs::read(out.join(name)).unwrap());
        }
        let holds = |word: &str| said.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word.as_bytes()));
        let asked = identify == Identify::Yes;
        for word in ["DOE_JANE", "DOE^JANE"] {
            assert_eq!(holds(word), asked, "{word}, {identify:?}");
        }
        assert!(out.join("a/thumbnail.jpg").exists());
        assert_eq!(batch.missing().unwrap().len(), 1);
        // Of a slide with a picture of its label, that is kept only if it is asked for.
        let label = Pixels::filled(Size::new(40, 30), SampleType::U8, &[10, 250, 10]);
        let labelled = SyntheticSlide::new(Size::new(60, 40), 5).with_associated("label", label);
        let own = Folder::new(&out).slide("a");
        let found = batch.identity(&manifest.entries()[0], &labelled, &own).unwrap();
        assert_eq!((found.is_some(), own.label().exists()), (asked, asked));
    }
    // What was kept is left out again by whoever does not ask for it.
    let out = place.path("out-Yes");
    report(&out, Identify::No).unwrap();
    for name in ["summary.csv", "summary.html", "results.sqlite"] {
        let text = String::from_utf8_lossy(&std::fs::read(out.join(name)).unwrap()).to_uppercase();
        assert!(!text.contains("DOE_JANE") && !text.contains("DOE^JANE"), "{name}");
    }
}

#[test]
fn a_label_is_kept_where_it_is_asked_for_and_can_be_read() {
    let place = Place::new();
    let (manifest, model) = (place.archive(1), model());
    let segmenter = Segmenter::new(&model, settings()).unwrap();
    let label = Pixels::filled(Size::new(40, 30), SampleType::U8, &[10, 250, 10]);
    let labelled = SyntheticSlide::new(Size::new(60, 40), 5).with_associated("label", label);
    let unreadable = FailingSlide::new(labelled.clone()).with_bad_picture("label");
    let out = place.path("out");
    let own = Folder::new(&out).slide("s0");
    own.create().unwrap();
    let cases: [(Identify, &dyn SlideReader, bool); 4] = [
        (Identify::Yes, &labelled, true),
        (Identify::No, &labelled, false),
        (Identify::No, &labelled, false),
        (Identify::Yes, &unreadable, false),
    ];
    for (identify, slide, kept) in cases {
        let batch = Batch::new(&manifest, &segmenter, &out, options(|o| o.identify = identify)).unwrap();
        let found = batch.identity(&manifest.entries()[0], slide, &own).unwrap();
        assert_eq!((found.is_some(), own.label().exists()), (identify == Identify::Yes, kept), "{identify:?}");
    }
}

#[test]
fn what_was_left_half_written_an_hour_ago_goes() {
    let place = Place::new();
    let manifest = place.archive(1);
    let out = place.path("out");
    run(&manifest, &model(), &out, Options::default());
    std::fs::remove_file(out.join("s0/done")).unwrap();
    let left = |name: &str, minutes: u64| {
        let path = out.join(format!("{name}.{minutes}.part"));
        let modified = SystemTime::now() - Duration::from_mins(minutes);
        std::fs::File::create(&path).unwrap().set_modified(modified).unwrap();
        path
    };
    let names = [".batch.json", "s0/.report.json", "s0/mask.ome.zarr.run/report.json"];
    let (old, young) = (names.map(|name| left(name, 61)), names.map(|name| left(name, 55)));
    assert_eq!(run(&manifest, &model(), &out, Options::default()).exit_code(), Some(0));
    for path in old {
        assert!(!path.exists(), "{}", path.display());
    }
    for path in young {
        assert!(path.exists(), "{}: its process may live", path.display());
    }
}

#[test]
fn classes_are_no_formulas_in_a_spreadsheet() {
    let place = Place::new();
    let manifest = place.archive(1);
    let mut model = model();
    model.card_mut().classes[1].name = "=x".into();
    run(&manifest, &model, &place.path("out"), Options::default());
    let csv = std::fs::read_to_string(place.path("out/summary.csv")).unwrap();
    assert!(csv.lines().next().unwrap().ends_with(",'=x_px,'=x_mm2,'=x_share"), "{csv}");
}

#[test]
fn a_run_whose_report_was_lost_still_has_its_areas() {
    let place = Place::new();
    let manifest = place.archive(1);
    let out = place.path("out");
    run(&manifest, &model(), &out, Options::default());
    let before = place.json("out/s0/report.json");
    // As a crash between the mask and its report leaves it.
    std::fs::remove_file(out.join("s0/mask.ome.zarr.run/report.json")).unwrap();
    std::fs::remove_file(out.join("s0/done")).unwrap();
    assert_eq!(run(&manifest, &model(), &out, Options::default()).exit_code(), Some(0));
    let after = place.json("out/s0/report.json");
    let (before, after) = (&before["summary"]["areas"][0], &after["summary"]["areas"][0]);
    assert!(before["pixels"].as_u64().unwrap() > 0);
    for name in ["class", "pixels", "mm2"] {
        assert_eq!(before[name], after[name], "{name}");
    }
    assert_eq!(after["share"], Value::Null, "of what it was a share is not known any more");
}

#[test]
fn hundreds_of_slides_that_are_done_take_no_time() {
    let place = Place::new();
    place.slide("a.tif", 0);
    let rows: String = (0..400).map(|i| format!("a.tif,s{i:03}\n")).collect();
    let manifest = place.manifest(&format!("slide,id\n{rows}"));
    let out = place.path("out");
    let model = model();
    let segmenter = Segmenter::new(&model, settings()).unwrap();
    let batch = Batch::new(&manifest, &segmenter, &out, Options::default()).unwrap();
    // One is done; the others are made to look like it, because 400 runs take a minute.
    let one = place.manifest("slide,id\na.tif,s000\n");
    run(&one, &model, &out, Options::default());
    let (report_of, stamp) = (place.json("out/s000/report.json"), folder::Stamp::of(&place.path("a.tif")));
    for entry in &manifest.entries()[1..] {
        let own = Folder::new(&out).slide(&entry.id);
        std::fs::create_dir_all(out.join(&entry.out)).unwrap();
        std::fs::write(out.join(&entry.out).join("zarr.json"), "{}").unwrap();
        let mut report = report_of.clone();
        report["id"] = entry.id.clone().into();
        std::fs::write(own.report(), report.to_string()).unwrap();
        let done = folder::Done { id: entry.id.clone(), key: batch.key(entry), stamp, code: 0 };
        std::fs::write(own.done(), serde_json::to_string(&done).unwrap()).unwrap();
    }
    let start = Instant::now();
    let finished = batch.run(&Nobody).unwrap();
    let time = start.elapsed();
    assert!(finished.exit_code() == Some(0) && finished.outcomes.iter().all(|o| o.by == By::EarlierRun));
    println!("400 slides that are done: {time:?}");
    assert!(time < Duration::from_secs(2), "{time:?}");
}

#[test]
fn an_audit_finds_what_a_night_would() {
    let place = Place::new();
    place.slide("0.tif", 0);
    place.slide("1.tif", 1);
    std::fs::copy(place.path("0.tif"), place.path("copy.tif")).unwrap();
    let mut coarse = slide(3);
    coarse.resolution = Some((5_000.0, 5_000.0, 3));
    coarse.write(&place.path("coarse.tif")).unwrap();
    let mut unknown = slide(4);
    unknown.resolution = None;
    unknown.write(&place.path("unknown.tif")).unwrap();
    let mut wide = slide(5);
    wide.resolution = Some((20_000.0, 10_000.0, 3));
    wide.write(&place.path("wide.tif")).unwrap();
    // Of the first tile of level 0 only its beginning is a stream.
    let mut broken = slide(6);
    broken.compression = microtome_testkit::tiff::Compression::Deflate;
    let mut bytes = broken.bytes();
    let at = bytes.windows(2).position(|w| w == [0x78, 0x9c]).unwrap();
    bytes[at..at + 40].fill(0xff);
    std::fs::write(place.path("broken.tif"), bytes).unwrap();
    std::fs::write(place.path("bad.svs"), "no slide").unwrap();
    let manifest = place.manifest(
        "slide,id,mpp\n0.tif,plain,\n1.tif,told,0.25\ncopy.tif,copy,\ncoarse.tif,coarse,\nunknown.tif,unknown,\n\
         wide.tif,wide,\nbroken.tif,broken,\nbad.svs,bad,\nnone.tif,none,\n",
    );
    let model = model();
    let segmenter = Segmenter::new(&model, settings()).unwrap();
    let options = AuditOptions { sample: None, ..AuditOptions::default() };
    let found = audit(&manifest, Some(&segmenter), &options, &Nobody).unwrap();
    assert_eq!(found.exit_code(), 3);
    let of = |id: &str| found.slides.iter().find(|slide| slide.id == id).unwrap();
    let says = |id: &str, word: &str| {
        let slide = of(id);
        assert!(slide.findings.iter().any(|finding| finding.contains(word)), "{word:?} of {slide:?}");
    };
    assert_eq!(of("plain").findings, Vec::<String>::new());
    assert_eq!((of("plain").mpp_x, of("plain").bytes.unwrap() > 1000), (Some(0.5), true));
    says("told", "the manifest says 0.25 um per pixel, the slide 0.5 x 0.5");
    says("copy", "the same bytes as plain");
    assert_eq!(of("copy").duplicate_of.as_deref(), Some("plain"));
    says("coarse", "2 um per pixel, where half");
    says("unknown", "not known");
    says("wide", "not square");
    says("broken", "1 of 47 tiles that were tried cannot be read");
    says("bad", "no format");
    says("none", "No such file");
    assert!(of("bad").format.is_none() && of("none").bytes.is_none());
    assert!(of("plain").hours.unwrap() > 0.0 && matches!(found.speed, Some(Speed::Tile(_))));
    let text = found.to_string();
    assert!(!text.contains(&place.path("").display().to_string()), "{text}");
    let csv = String::from_utf8(found.csv()).unwrap();
    assert_eq!(csv.lines().count(), 10, "{csv}");

    let options = AuditOptions { sample: Some(5), speed: Some(Speed::Pixels(0.12)), ..options };
    let found = audit(&manifest, None, &options, &Nobody).unwrap();
    assert!(found.slides.iter().all(|slide| slide.tiles_tried == if slide.format.is_some() { 5 } else { 0 }));
    // 400 x 300 pixels at 0.12 Mpx/s are a second.
    assert!((found.slides[0].hours.unwrap() * 3600.0 - 1.0).abs() < 1e-9);
}
