//! Stores that others wrote.

use std::path::{Path, PathBuf};

use microtome_io::Level;
use microtome_io::store::OmeZarr;
use sha2::{Digest, Sha256};

/// The folder of real files, if it holds stores.
pub(crate) fn data() -> Option<PathBuf> {
    microtome_testkit::data("zarr")?.parent().map(PathBuf::from)
}

fn groups(folder: &Path, found: &mut Vec<PathBuf>) {
    if ["zarr.json", ".zattrs", ".zgroup", ".zarray"].iter().any(|name| folder.join(name).is_file()) {
        found.push(folder.into());
    }
    let mut inner: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    inner.sort();
    for path in &inner {
        groups(path, found);
    }
}

#[test]
fn every_store_is_read_or_refused_with_a_sentence() {
    let Some(data) = data() else { return };
    let mut found = Vec::new();
    groups(&data.join("zarr"), &mut found);
    let mut read = Vec::new();
    for path in &found {
        let name = path.strip_prefix(&data).unwrap().display().to_string();
        match OmeZarr::open(path) {
            Err(error) => println!("{name}: refused: {error}"),
            Ok(store) => {
                for (n, level) in store.info().levels.iter().enumerate() {
                    store.read_region(Level(n), level.size.rect()).unwrap();
                }
                println!("{name}: {:?}", store.info());
                read.push(name);
            }
        }
    }
    println!("{} of {} nodes are stores that are read", read.len(), found.len());
    let expected: Vec<_> = PIXELS.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(read, expected);
}

/// What of `zarr/` has two dimensions and unsigned integers, and the SHA-256 of the pixels of each level, channels last. The rest is volumes,
/// floating point, old versions, compressed with blosc, or no image.
/// Made with zarr-python 3.1.6: `hashlib.sha256(numpy.ascontiguousarray(numpy.moveaxis(array[:], 0, -1))).hexdigest()`, without `moveaxis` for two axes.
const PIXELS: &[(&str, &[&str])] = &[
    (
        "zarr/ome-zarr-fiji-java/2d_testing/2d_dataset_v5.ome.zarr",
        &[
            "766d84b4496810e1ab513ae17430b9aad4da14cff889dd86f22ba9e6d6eeda99",
            "1f849482d8aa8a74214f3f4853c7891e0aec358b304a06ef16ca152f91f564c7",
        ],
    ),
    (
        "zarr/ome-zarr-fiji-java/3d_testing/xyc/3d_dataset_v5.ome.zarr",
        &[
            "6f1c98aa2441e1c52d7b90acf1c0b01764ef48bdaf4a0f538907aba929bfef5b",
            "6a03530d609a5a612a42cb91539fd798a24c30c1970fd218bc30675b69bea86a",
        ],
    ),
    (
        "zarr/ome-zarr-fiji-java/single_resolution_testing/single_resolution_dataset_v5.ome.zarr",
        &["40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880"],
    ),
];

#[test]
fn pixels_are_those_that_zarr_python_reads() {
    let Some(data) = data() else { return };
    for (name, hashes) in PIXELS {
        let store = OmeZarr::open(data.join(name)).unwrap();
        assert_eq!(store.info().levels.len(), hashes.len());
        for (n, (level, hash)) in store.info().levels.iter().zip(*hashes).enumerate() {
            let pixels = store.read_region(Level(n), level.size.rect()).unwrap();
            let digest = Sha256::digest(pixels.as_u8().unwrap());
            let hex = digest.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
            assert_eq!(hex, **hash, "{name}, level {n}");
        }
    }
}
