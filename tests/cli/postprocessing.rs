//! `microtome postprocess`

use microtome::io::Level;
use microtome::io::store::OmeZarr;
use serde_json::Value;

use crate::{Place, microtome, repository, run};

#[test]
fn the_largest_component_stays_and_the_mask_too() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let mask = place.path("mask.ome.zarr");
    let segment = |output: &str| {
        let mut command = microtome();
        command.arg("segment").arg(&slide).arg("-m").arg(repository("tests/models/nnunet-nuclei"));
        command.arg("-o").arg(place.path(output)).args(["--model-mpp", "native", "--no-tta", "--tissue", "none"]);
        command
    };
    run(&mut segment("mask.ome.zarr")).ended(0);
    let pixels = |name: &str| {
        let store = OmeZarr::open(place.path(name)).unwrap();
        let all = store.info().levels.iter().enumerate();
        let all = all.map(|(n, level)| store.read_region(Level(n), level.size.rect()).unwrap());
        all.map(|pixels| pixels.as_u8().unwrap().to_vec()).collect::<Vec<_>>()
    };
    let before = pixels("mask.ome.zarr");

    let postprocess = |output: &str, flags: &[&str]| {
        let mut command = microtome();
        command.arg("postprocess").arg(&mask).arg("-o").arg(place.path(output)).args(flags);
        command
    };
    let said = run(&mut postprocess("kept.ome.zarr", &["--keep-largest", "1", "--json"])).ended(0).stdout;
    let step = serde_json::from_str::<Value>(&said).unwrap()["steps"][0].clone();
    let count = |key: &str| step[key].as_u64().unwrap();
    let after = pixels("kept.ome.zarr");
    let ones = |pixels: &[u8]| pixels.iter().filter(|&&v| v == 1).count() as u64;
    assert!(count("components") > 1, "{step}");
    assert_eq!(
        (ones(&before[0]) - count("cleared"), ones(&after[0]) % count("largest")),
        (ones(&after[0]), 0),
        "{step}"
    );
    assert!(before[0].iter().zip(&after[0]).all(|(b, a)| a == b || *a == 0));
    assert_eq!(before.iter().map(Vec::len).collect::<Vec<_>>(), after.iter().map(Vec::len).collect::<Vec<_>>());
    assert!(pixels("mask.ome.zarr") == before, "the mask is as it was");

    // The run that made the mask does not take it for its own.
    let [made, kept] = ["mask.ome.zarr", "kept.ome.zarr"]
        .map(|name| OmeZarr::open(place.path(name)).unwrap().info().attributes.clone());
    assert_eq!((kept.get("fingerprint"), &kept["fingerprint_of_mask"]), (None, &made["fingerprint"]));
    run(&mut segment("mask.ome.zarr")).ended(0);
    run(&mut segment("kept.ome.zarr")).refused(5, &["kept.ome.zarr", "fingerprint"]);
    assert!(pixels("kept.ome.zarr") == after);

    // Once more nothing is left to be done, and what is there is not overwritten unasked.
    run(&mut postprocess("kept.ome.zarr", &["--keep-largest", "1"])).refused(2, &["kept.ome.zarr", "--overwrite"]);
    run(&mut postprocess("kept.ome.zarr", &["--keep-largest", "1", "--overwrite"])).ended(0);
    assert!(pixels("kept.ome.zarr") == after);
    run(&mut postprocess("other.ome.zarr", &["--keep-largest", "0"])).refused(2, &["1 to 65535"]);
    run(&mut postprocess("other.ome.zarr", &[])).refused(2, &["--keep-largest"]);
    let nuclei = repository("tests/models/nnunet-nuclei");
    run(postprocess("other.ome.zarr", &[]).arg("-m").arg(&nuclei)).refused(2, &["nothing to apply"]);
    let mut missing = microtome();
    missing.arg("postprocess").arg(place.path("missing.ome.zarr")).args(["--keep-largest", "1", "-o"]);
    run(missing.arg(place.path("other.ome.zarr"))).refused(4, &["missing.ome.zarr"]);
    assert!(!place.path("other.ome.zarr").exists());
}
