//! Whatever a file holds, its parser returns.

use microtome_io::{Downsample, Level, Size};
use microtome_tile::{Resampling, Roi, TargetGrid};
use proptest::prelude::*;

use super::*;

const ORIGIN: Translation = Translation { x: 0.0, y: 0.0 };

fn grid(size: Size, downsample: f64) -> TargetGrid {
    TargetGrid {
        size,
        mpp: None,
        level: Level::FINEST,
        step: Downsample { x: 1.0, y: 1.0 },
        resampling: Resampling::None,
        downsample: Downsample { x: downsample, y: downsample },
    }
}

fn load_bytes(bytes: &[u8], values: &[&str], target: &TargetGrid) -> Result<Region> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("region");
    std::fs::write(&path, bytes).unwrap();
    let values = values.iter().map(|&v| v.into()).collect();
    load(&RoiSource { path, values }, Place { slide: Size::new(70, 50), origin: ORIGIN, mpp: None, target })
}

/// JSON made of the words that count.
fn json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::{Map, Value};
    let word = prop::sample::select(vec![
        "type",
        "coordinates",
        "geometry",
        "geometries",
        "features",
        "properties",
        "classification",
        "name",
        "names",
        "Feature",
        "FeatureCollection",
        "Polygon",
        "MultiPolygon",
        "GeometryCollection",
        "Point",
        "any",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-99i64..99).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
        prop::collection::vec(prop::collection::vec((-9i64..90, -9i64..90), 0..5), 0..3)
            .prop_map(|rings| serde_json::json!(rings)),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((word.clone(), inner), 0..6).prop_map(|members| Value::Object(
                members.into_iter().map(|(k, v)| (k.into(), v)).collect::<Map<_, _>>()
            )),
        ]
    })
}

/// A feature, mended to one that could be right.
fn feature() -> impl Strategy<Value = serde_json::Value> {
    (prop::sample::select(vec!["Polygon", "MultiPolygon", "GeometryCollection"]), json(), json(), json()).prop_map(
        |(kind, coordinates, geometries, class)| {
            serde_json::json!({ "type": "Feature", "properties": { "classification": class },
                "geometry": { "type": kind, "coordinates": coordinates, "geometries": geometries } })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn json_of_chance(document in prop_oneof![json(), feature()], cut in 0usize..400) {
        let text = document.to_string();
        for text in [text.as_bytes(), &text.as_bytes()[..cut.min(text.len())]] {
            for asked in [&[][..], &["any".to_owned()]] {
                if let Ok(polygons) = geojson::parse(text, asked) {
                    let _ = Roi::from_polygons(&polygons, &grid(Size::new(35, 25), 2.0));
                }
            }
        }
    }

    #[test]
    fn bytes_of_chance(
        head in prop::sample::select(vec![
            &b"\x89PNG\r\n\x1a\n"[..], b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x07\0\0\0\x05\x08\0\0\0\0", b"{", b"{\"type\":", b" [", b"",
        ]),
        tail in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = load_bytes(&[head, &tail].concat(), &["1"], &grid(Size::new(70, 50), 1.0));
    }

    /// A good picture with a byte or two changed.
    #[test]
    fn pictures_with_faults(at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..3)) {
        let target = grid(Size::new(70, 50), 1.0);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roi.png");
        let mut builder = Roi::builder(Size::new(18, 13), Downsample { x: 4.0, y: 4.0 });
        for y in 0..13 {
            builder.push_row([0..y, 14..18]).unwrap();
        }
        picture::write(&builder.finish(), &target, &path).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        for (index, value) in at {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        let _ = load_bytes(&bytes, &["255"], &target);
    }

    /// What is written comes back, bit for bit, whatever the sizes.
    #[test]
    fn a_written_region_is_read_back(
        size in (1u64..40, 1u64..20), step in (0.7f64..9.0, 0.7f64..9.0), downsample in 0.9f64..5.0,
        rows in prop::collection::vec(prop::collection::vec((0u64..40, 0u64..20), 0..4), 20),
    ) {
        let (size, step) = (Size::new(size.0, size.1), Downsample { x: step.0, y: step.1 });
        let pixels = |n: u64, step: f64| ((n as f64 * step).round() as u64).max(1);
        let target = grid(Size::new(pixels(size.width, step.x), pixels(size.height, step.y)), downsample);
        let mut builder = Roi::builder(size, step);
        for row in rows.iter().take(size.height as usize) {
            builder.push_row(row.iter().map(|&(start, n)| start..start + n)).unwrap();
        }
        let roi = builder.finish();
        prop_assume!(roi.cells() > 0);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roi.png");
        picture::write(&roi, &target, &path).unwrap();
        let slide = Size::new(pixels(target.size.width, downsample), pixels(target.size.height, downsample));
        let source = RoiSource { path, values: vec!["255".into()] };
        let region = load(&source, Place { slide, origin: ORIGIN, mpp: None, target: &target });
        prop_assert_eq!(region.unwrap().roi, roi);
    }
}

#[test]
fn too_many_corners_are_refused() {
    let text = format!(r#"{{"type":"Polygon","coordinates":[[{}[1,1]]]}}"#, "[1,2],".repeat(3 << 20));
    let message = geojson::parse(text.as_bytes(), &[]).unwrap_err();
    assert!(message.contains("more than 2097152 corners"), "{message}");
}

#[test]
fn classes_derived_from_others_have_a_name_of_both() {
    let text = r#"{"type":"Feature","properties":{"classification":{"names":["Tumor","Positive"]}},
        "geometry":{"type":"Polygon","coordinates":[[[0,0],[9,0],[9,9]]]}}"#;
    assert_eq!(geojson::parse(text.as_bytes(), &["Tumor: Positive".into()]).unwrap().len(), 1);
    assert!(geojson::parse(text.as_bytes(), &["Tumor".into()]).is_err());
}
