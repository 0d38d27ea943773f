//! Networks of MONAI, small and with random weights: with nothing but the repository.
//!
//! The folders of `monai` beside this file, with logits by PyTorch 2.15 and MONAI 1.6.1, come from `tests/python/monai_fixtures.py`.

use std::path::{Path, PathBuf};

use microtome_io::{Pixels, Size};
use microtome_unet::{
    Arithmetic, Checkpoint, Device, Execution, MirrorAxes, Mirroring, Model, ModelOptions, Normalization, Normalizer,
    Output, PackageOptions, Placement, Precision, Tile, Window,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// A folder of `monai`, and what its architecture's line begins with.
const NETWORKS: &[(&str, &str)] = &[
    ("unet", "UNet 2D of MONAI, 3 levels of 4, 6, 8 features, instance norm"),
    ("unet-residual", "UNet 2D of MONAI, 4 levels of 4, 5, 5, 6 features, residual units of 2, batch norm"),
    ("basic-unet", "BasicUNet 2D of MONAI, 4, 4, 6, 6, 8, 5 features, instance norm"),
    ("basic-unet-nontrainable", "BasicUNet 2D of MONAI, 4, 4, 6, 6, 8, 4 features, group norm"),
    ("basic-unet-pixelshuffle", "BasicUNet 2D of MONAI, 4, 4, 4, 4, 4, 4 features, instance norm"),
    ("dyn-unet", "DynUNet 2D of MONAI, 4 stages of 4, 5, 6, 6 features, instance norm"),
    ("dyn-unet-residual", "DynUNet 2D of MONAI, 3 stages of 4, 6, 6 features with shortcuts, batch norm"),
    ("seg-res-net", "SegResNet 2D of MONAI, 3 levels from 4 features, 6 blocks, group norm"),
    ("seg-res-net-deconv", "SegResNet 2D of MONAI, 3 levels from 4 features, 6 blocks, instance norm"),
    ("seg-res-net-pixelshuffle", "SegResNet 2D of MONAI, 2 levels from 4 features, 3 blocks, group norm"),
];
/// The largest difference from MONAI's logits, as a fraction of the largest of them.
/// Measured: 4.2e-6 with AVX-512, 6.8e-6 with AVX2, 7.3e-6 in plain Rust. These networks are too narrow for fast algorithms:
/// `tests/python/check_monai.py` compares wider ones, with 1.2e-5 at most.
const BOUND: f32 = 2e-5;

/// MONAI's logits for one size of tile.
#[derive(Debug, Deserialize)]
struct Expected {
    width: u64,
    height: u64,
    logits: Vec<f32>,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/monai").join(name)
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn open(path: &Path) -> Result<Model, String> {
    Model::open(path, &ModelOptions::default()).map_err(|e| e.to_string())
}

/// A copy of a folder that is given another file.
fn changed(from: &Path, file: &str, content: &Value) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).unwrap() {
            let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
            if from.is_dir() {
                std::fs::create_dir(&to).unwrap();
                copy(&from, &to);
            } else {
                std::fs::copy(&from, &to).unwrap();
            }
        }
    }
    let temporary = tempfile::tempdir().unwrap();
    copy(from, temporary.path());
    std::fs::write(temporary.path().join(file), content.to_string()).unwrap();
    temporary
}

/// The samples of the script's `picture`.
fn picture(tile: Size) -> Pixels {
    let mut state = 5_u32;
    let sample = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    Pixels::from_u8(tile, 3, std::iter::repeat_with(sample).take(tile.area() as usize * 3).collect())
}

/// The same with rows for columns, as MONAI's readers hand over pictures.
fn transposed(picture: &Pixels) -> Pixels {
    let Size { width, height } = picture.size();
    let (samples, channels) = (picture.as_u8().unwrap(), picture.channels());
    let at = |x: u64, y: u64| &samples[(y * width + x) as usize * channels..][..channels];
    let turned = (0..width).flat_map(|x| (0..height).flat_map(move |y| at(x, y).to_vec()));
    Pixels::from_u8(Size::new(height, width), channels, turned.collect())
}

fn logits(model: &Model, arithmetic: Arithmetic) -> Vec<f32> {
    logits_of(model, arithmetic, &picture(model.card().tile))
}

fn logits_of(model: &Model, arithmetic: Arithmetic, picture: &Pixels) -> Vec<f32> {
    let (device, mirroring, precision) = (Device::Cpu, Mirroring::Off, Precision::F32);
    let predictor = model.predictor(&Execution { device, mirroring, precision, arithmetic }).unwrap();
    let normalizer = Normalizer::new(&model.card().normalization, &[]).unwrap();
    predictor.predict(&[Tile::full(picture)], &normalizer).unwrap().remove(0).values
}

/// The largest difference, as a fraction of the largest expected logit.
fn difference(model: &Model, arithmetic: Arithmetic, expected: &[f32]) -> f32 {
    let found = logits(model, arithmetic);
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

#[test]
fn logits_of_every_network_are_monais() {
    for (name, line) in NETWORKS {
        let folder = folder(name);
        let recipe: Value = read(&folder.join("recipe.json"));
        for Expected { width, height, logits: expected } in read::<Vec<Expected>>(&folder.join("logits.json")) {
            let mut recipe = recipe.clone();
            recipe["tile"] = json!({"width": width, "height": height});
            let copy = changed(&folder, "recipe.json", &recipe);
            let model = open(copy.path()).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(model.card().architecture.starts_with(line), "{name}: {}", model.card().architecture);
            for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
                let difference = difference(&model, arithmetic, &expected);
                println!("{name}, {width} x {height}, {arithmetic}: {difference:e} of the largest logit");
                assert!(difference < BOUND, "{name}, {width} x {height}, {arithmetic}: {difference:e}");
            }
            // The package made of it says the same.
            let package = copy.path().join("package");
            model.save_package(&package, &PackageOptions::default()).unwrap();
            let copy = open(&package).unwrap();
            assert_eq!(logits(&copy, Arithmetic::Exact), logits(&model, Arithmetic::Exact), "{name}");
            assert_eq!(copy.card(), model.card());
        }
    }
}

/// A picture that lies on its side gives logits that lie on their side.
#[test]
fn a_network_that_takes_x_first_sees_pictures_on_their_side() {
    for (name, _) in NETWORKS {
        let folder = folder(name);
        let Expected { width, height, logits: expected } = read::<Vec<Expected>>(&folder.join("logits.json")).remove(0);
        let mut recipe: Value = read(&folder.join("recipe.json"));
        recipe["axes"] = json!("xy");
        recipe["tile"] = json!({"width": height, "height": width});
        let copy = changed(&folder, "recipe.json", &recipe);
        let model = open(copy.path()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let lying = transposed(&picture(Size::new(width, height)));
        let found = logits_of(&model, Arithmetic::Exact, &lying);
        // Row x, column y of each plane.
        let (width, height) = (width as usize, height as usize);
        let planes = 0..expected.len() / (width * height);
        let at = |plane: usize, x: usize, y: usize| expected[(plane * height + y) * width + x];
        let turned = planes.flat_map(|p| (0..width).flat_map(move |x| (0..height).map(move |y| (p, x, y))));
        let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let differences = turned.zip(&found).map(|((p, x, y), found)| (at(p, x, y) - found).abs());
        let difference = differences.fold(0.0, f32::max) / largest;
        println!("{name}: {difference:e} of the largest logit");
        assert!(found.len() == expected.len() && difference < BOUND, "{name}: {difference:e}");
    }
}

#[test]
fn what_a_constructor_cannot_honour_is_named() {
    let message = |name: &str, change: fn(&mut Value)| {
        let folder = folder(name);
        let mut recipe: Value = read(&folder.join("recipe.json"));
        change(&mut recipe["arguments"]);
        let copy = changed(&folder, "recipe.json", &recipe);
        let message = open(copy.path()).unwrap_err();
        message.replace(&format!("{}: ", copy.path().join("recipe.json").display()), "")
    };
    let basic = |change| message("basic-unet", change);
    assert_eq!(
        basic(|a| a["spatial_dims"] = json!(3)),
        "arguments.spatial_dims is 3; networks of 2 dimensions are supported"
    );
    assert_eq!(basic(|a| a["spatial_dims"] = Value::Null), "arguments.spatial_dims is missing");
    assert_eq!(basic(|a| a["depth"] = json!(3)), "arguments.depth is no argument that is known");
    assert_eq!(basic(|a| a["features"] = json!([4, 4])), "arguments.features are 2; there must be 6");
    assert_eq!(
        basic(|a| a["act"] = json!("elu")),
        "arguments.act is elu; relu, leakyrelu, prelu, swish, memswish, mish and gelu are supported"
    );
    assert_eq!(
        basic(|a| a["norm"] = json!("layer")),
        "arguments.norm is layer; instance, batch, syncbatch and group are supported"
    );
    assert!(
        basic(|a| a["norm"] = json!(["batch", {"track_running_stats": false}])).contains("what else is in the batch")
    );
    assert_eq!(basic(|a| a["norm"] = json!(["group", {"num_groups": 3}])), "the network has 3 groups of 4 channels");
    assert_eq!(basic(|a| a["act"] = json!(["relu"])), "arguments.act is neither a name nor a name with arguments");
    assert_eq!(basic(|a| a["act"] = json!(["swish", {"alpha": 2}])), "arguments.act.alpha is 2; 1 is supported");
    let dynamic = |change| message("dyn-unet", change);
    assert_eq!(
        dynamic(|a| a["strides"] = json!([1, 3, 2, 2])),
        "the network has a stride of 3x3; 1 and 2 are supported"
    );
    assert_eq!(
        dynamic(|a| a["kernel_size"] = json!([3, 3])),
        "the network has 2 kernels for 4 stages; there must be 4"
    );
    assert!(
        dynamic(|a| a["res_block"] = json!(true))
            .contains("its weights are not this network's: missing input_block.conv3.conv.weight")
    );
    let residual = |change| message("seg-res-net", change);
    // MONAI's own nonlinearity here is one in place.
    let in_place = "arguments.act works in place, as it does by default: without a norm it changes what shortcuts carry, \
                    which is not supported";
    assert_eq!(residual(|a| a["norm"] = json!("")), in_place);
    let without = |act: Value| {
        let folder = folder("seg-res-net");
        let mut recipe: Value = read(&folder.join("recipe.json"));
        (recipe["arguments"]["norm"], recipe["arguments"]["act"]) = (json!(""), act);
        open(changed(&folder, "recipe.json", &recipe).path()).unwrap_err()
    };
    assert!(without(json!(["leakyrelu", {"inplace": true}])).ends_with(in_place));
    for act in [json!(["relu", {"inplace": false}]), json!("relu")] {
        let message = without(act);
        assert!(message.contains("its weights are not this network's"), "{message}");
    }
    assert_eq!(
        residual(|a| a["blocks_up"] = json!([1])),
        "the network has 1 blocks_up for 3 blocks_down; there must be 2"
    );
}

#[test]
fn a_bundle_is_what_monai_makes_of_it() {
    let folder = folder("bundle");
    let model = open(&folder).unwrap();
    let card = model.card();
    assert_eq!((card.name.as_str(), card.tile), ("Random stripes", Size::new(24, 16)));
    assert_eq!((card.step, card.placement, card.window), (0.375, Placement::Monai, Window::GaussianMonai));
    assert_eq!(card.channels, ["R", "G", "B"]);
    assert_eq!((card.output.clone(), card.mirror_axes), (Output::Labels, MirrorAxes::NONE));
    let classes: Vec<(u16, &str)> = card.classes.iter().map(|c| (c.value, c.name.as_str())).collect();
    assert_eq!(classes, [(0, "background"), (1, "stripe")]);
    assert_eq!(card.mpp, None);
    let provenance = card.provenance.as_deref().unwrap();
    assert_eq!(
        provenance,
        "MONAI bundle Random stripes, version 0.1.2, by nobody. It was trained on pictures with x as their first axis; kernels and tile \
         are transposed here. Its post-processing is not applied: KeepLargestConnectedComponentd."
    );
    let Normalization::Linear { lower, upper, .. } = card.normalization[0] else { panic!("{:?}", card.normalization) };
    assert!((lower.unwrap() - 51.0).abs() < 1e-9 && (upper.unwrap() - 204.0).abs() < 1e-9);
    let expected = read::<Vec<Expected>>(&folder.join("logits.json")).remove(0);
    for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
        let difference = difference(&model, arithmetic, &expected.logits);
        println!("bundle, {arithmetic}: {difference:e} of the largest logit");
        assert!(difference < BOUND, "bundle, {arithmetic}: {difference:e}");
    }
}

#[test]
fn what_a_bundle_asks_for_and_cannot_have_is_named() {
    let folder = folder("bundle");
    let message = |change: &dyn Fn(&mut Value)| {
        let mut configuration: Value = read(&folder.join("configs/inference.json"));
        change(&mut configuration);
        let copy = changed(&folder, "configs/inference.json", &configuration);
        let message = open(copy.path()).unwrap_err();
        message.replace(&format!("{}: ", copy.path().join("configs/inference.json").display()), "")
    };
    let network = |key: &'static str, value: Value| message(&|c| c["network_def"][key] = value.clone());
    assert_eq!(
        network("channels", json!("$[4, 6, 8]")),
        "network_def.channels is an expression ($[4, 6, 8]), which is not evaluated: write its value there"
    );
    assert_eq!(network("channels", json!("@depth")), "network_def.channels refers to depth, which is not there");
    assert_eq!(
        network("channels", json!("@network_def::channels")),
        "network_def.channels holds references or values more than 64 deep"
    );
    let error = message(&|c| {
        let level = |i: usize| if i == 0 { json!("x") } else { json!(vec![format!("@more::{}", i - 1); 40]) };
        c["more"] = (0..20).map(level).collect();
        c["network_def"]["channels"] = json!("@more::19");
    });
    assert!(error.ends_with("its references come to more than 1048576 bytes"), "{error}");
    assert!(network("_target_", json!("monai.networks.nets.SwinUNETR")).starts_with("the network SwinUNETR of monai"));
    assert_eq!(network("_mode_", json!("callable")), "network_def has _mode_, which is not supported");
    let transform =
        |value: Value| message(&|c| c["preprocessing"]["transforms"].as_array_mut().unwrap().insert(2, value.clone()));
    assert_eq!(
        transform(json!({"_target_": "Spacingd", "keys": "image", "pixdim": [1, 1]})),
        "preprocessing.transforms[2] is Spacingd, which is not supported: pictures are resampled to the model's micrometres per pixel"
    );
    assert_eq!(
        transform(json!({"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x"})),
        "preprocessing.transforms[2].func is an expression ($lambda x: x), which is not evaluated: write its value there"
    );
    assert_eq!(
        transform(json!({"_target_": "ScaleIntensityd", "keys": "image"})),
        "preprocessing.transforms[2].channel_wise is false: statistics of all channels together are not supported"
    );
    assert_eq!(
        transform(json!({"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": true})),
        "preprocessing.transforms[3] comes after a normalisation with the image's own statistics"
    );
    assert_eq!(
        message(&|c| {
            let transforms = c["preprocessing"]["transforms"].as_array_mut().unwrap();
            transforms.push(json!({"_target_": "CastToTyped", "keys": "image", "dtype": "$torch.uint8"}));
        }),
        "preprocessing.transforms[5].dtype is $torch.uint8, and intensities are changed before it, which is not supported"
    );
    // One type for each entry, one that is told by a reference, and one that a change of intensities itself ends with.
    let last =
        |value: Value| message(&|c| c["preprocessing"]["transforms"].as_array_mut().unwrap().push(value.clone()));
    let cast = |keys: Value, dtype: Value| last(json!({"_target_": "CastToTyped", "keys": keys, "dtype": dtype}));
    let whole = "and intensities are changed before it, which is not supported";
    assert!(cast(json!(["label", "image"]), json!(["$torch.float32", "$torch.uint8"])).ends_with(whole));
    assert!(cast(json!("image"), json!("@kind")).contains("no name of a type"));
    let range =
        json!({"a_min": 0, "a_max": 255, "b_min": 0, "b_max": 1, "_target_": "ScaleIntensityRanged", "keys": "image"});
    let error = message(&|c| {
        let mut range = range.clone();
        range["dtype"] = json!("$np.uint8");
        c["preprocessing"]["transforms"].as_array_mut().unwrap().insert(2, range);
    });
    assert!(error.contains("transforms[2].dtype is $np.uint8"), "{error}");
    let inferer = |key: &'static str, value: Value| message(&|c| c["inferer"][key] = value.clone());
    assert!(inferer("_target_", json!("SimpleInferer")).starts_with("inferer is SimpleInferer; only SlidingWindow"));
    assert_eq!(inferer("padding_mode", json!("reflect")), "inferer.padding_mode is reflect; constant is supported");
    assert_eq!(inferer("sigma_scale", json!(0.25)), "inferer.sigma_scale must be 0.125");
    assert_eq!(bundle(|c| c["inferer"]["overlap"] = json!(0.9)).unwrap().card().step, 1.0 - 0.9);
    assert_eq!(inferer("overlap", json!([0.5, 0.25])), "inferer.overlap differs between the axes");
    assert_eq!(inferer("roi_size", json!([-1, 16])), "inferer.roi_size must be positive along both axes");
    let behind = |value: Value| message(&|c| c["postprocessing"]["transforms"][2] = value.clone());
    assert_eq!(
        behind(json!({"_target_": "VoteEnsembled", "keys": "pred"})),
        "postprocessing.transforms[2] is VoteEnsembled, which is not supported"
    );
    assert_eq!(
        behind(json!({"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5})),
        "postprocessing.transforms[2].threshold must be 0.5, of a sigmoid"
    );
    assert_eq!(
        behind(json!({"_target_": "AsDiscreted", "keys": "pred", "argmax": true, "threshold": 0.5})),
        "postprocessing.transforms[2].threshold comes after argmax, which is not supported"
    );
    assert_eq!(
        behind(json!({"_target_": "AsDiscreted", "keys": ["label", "pred"], "argmax": [true]})),
        "postprocessing.transforms[2].argmax has fewer entries than keys"
    );
}

/// The bundle with another `inference.json`.
fn bundle(change: impl FnOnce(&mut Value)) -> Result<Model, String> {
    let folder = folder("bundle");
    let file = "configs/inference.json";
    let mut configuration: Value = read(&folder.join(file));
    change(&mut configuration);
    let copy = changed(&folder, file, &configuration);
    open(copy.path()).map_err(|e| e.replace(&format!("{}: ", copy.path().join(file).display()), ""))
}

fn transforms<'a>(configuration: &'a mut Value, name: &str) -> &'a mut Vec<Value> {
    configuration[name]["transforms"].as_array_mut().unwrap()
}

#[test]
fn a_picture_has_the_name_under_which_it_is_loaded() {
    let original = bundle(|_| {}).unwrap();
    let named = |keys: Value| {
        move |c: &mut Value| transforms(c, "preprocessing").iter_mut().for_each(|t| t["keys"] = keys.clone())
    };
    assert_eq!(bundle(named(json!("input"))).unwrap().card(), original.card());
    assert_eq!(bundle(named(json!(["label", "scan"]))).unwrap().card(), original.card());
    // What is done to labels does not count, and what is done to anything else is not passed over.
    let range = |keys: &'static str| {
        let range = json!({"_target_": "ScaleIntensityRanged", "keys": keys, "a_min": 0, "a_max": 9});
        bundle(move |c| transforms(c, "preprocessing").push(range))
    };
    assert_eq!(range("label").unwrap().card(), original.card());
    let less = json!({"_target_": "DeleteItemsd", "keys": ["image_meta_dict"]});
    let less = bundle(move |c| transforms(c, "preprocessing").push(less));
    assert_eq!(less.unwrap().card(), original.card());
    assert_eq!(
        range("scan").unwrap_err(),
        "preprocessing.transforms[5] is ScaleIntensityRanged of scan, which is not supported: the picture is image"
    );
    assert_eq!(
        bundle(named(json!(["image", "label", "depth"]))).unwrap_err(),
        "preprocessing.transforms[0] is of image, depth; one picture is supported"
    );
    let renamed = bundle(|c| {
        let sigmoid = json!({"_target_": "Activationsd", "keys": "logits", "sigmoid": true});
        let threshold = json!({"_target_": "AsDiscreted", "keys": "logits", "threshold": 0.5});
        *transforms(c, "postprocessing") = vec![sigmoid, threshold];
    });
    assert_eq!(
        renamed.unwrap_err(),
        "postprocessing.transforms[0] is Activationsd of logits, which is not supported: the network's output is pred"
    );
}

#[test]
fn transforms_are_those_that_the_run_refers_to() {
    fn moved(configuration: &mut Value, from: &str, to: &str) {
        let value = configuration.as_object_mut().unwrap().remove(from).unwrap();
        configuration[to] = value;
    }
    let original = bundle(|_| {}).unwrap();
    let before = |transform: Value| {
        bundle(move |c| {
            transforms(c, "preprocessing")[2]["keys"] = json!("image");
            moved(c, "preprocessing", "prepared");
            c["dataset"]["transform"] = transform;
        })
    };
    assert_eq!(before(json!("@prepared")).unwrap().card(), original.card());
    let missing = before(Value::Null).unwrap_err();
    assert!(missing.starts_with("preprocessing is missing, and so is dataset.transform: write "), "{missing}");
    assert!(before(json!("$prepared")).unwrap_err().starts_with("dataset.transform is an expression ($prepared)"));
    // The name alone makes nothing happen.
    let other = bundle(|c| {
        c["other"] = json!([{"_target_": "LoadImaged", "keys": "image"}]);
        c["dataset"]["transform"] = json!("@other");
    });
    assert_eq!(other.unwrap().card().normalization, [Normalization::None; 3]);

    let behind = |change: fn(&mut Value)| {
        bundle(move |c| {
            let sigmoid = json!({"_target_": "Activationsd", "keys": "pred", "sigmoid": true});
            *transforms(c, "postprocessing") = vec![sigmoid];
            moved(c, "postprocessing", "decided");
            change(c);
        })
        .map(|model| model.card().output.clone())
    };
    let missing = behind(|_| {}).unwrap_err();
    assert!(missing.starts_with("postprocessing is missing, and so is evaluator.postprocessing: write "), "{missing}");
    let regions: Result<_, String> = Ok(Output::Regions { class_order: vec![1, 2] });
    assert_eq!(behind(|c| c["evaluator"] = json!({"postprocessing": "@decided"})), regions);
    let handler = |c: &mut Value| {
        c["after"] = json!({"_target_": "monai.handlers.PostProcessing", "transform": "@decided"});
        c["handlers"] = json!(["$print", {"_target_": "StatsHandler"}, "@after"]);
    };
    assert_eq!(behind(handler), regions);
    // One that is switched off decides nothing, whatever it would.
    let off = json!({"_target_": "PostProcessing", "_disabled_": true, "transform": "$@decided"});
    let with_off = bundle(move |c| c["handlers"] = json!([off]));
    assert_eq!(with_off.unwrap().card(), original.card());
    assert_eq!(
        behind(|c| c["handlers"] = json!([{"_target_": "PostProcessing", "transform": "$@decided"}])).unwrap_err(),
        "handlers.transform is an expression ($@decided), which is not evaluated: write its value there"
    );
}

/// Lists hold an entry for each of the keys, in their order.
#[test]
fn what_a_transform_does_to_another_entry_does_not_count() {
    let folder = folder("bundle");
    let output = |keys: Value, sigmoid: Value, threshold: Value| {
        let mut configuration: Value = read(&folder.join("configs/inference.json"));
        configuration["postprocessing"]["transforms"] = json!([
            {"_target_": "Activationsd", "keys": keys, "sigmoid": sigmoid},
            {"_target_": "AsDiscreted", "keys": keys, "threshold": threshold},
        ]);
        let copy = changed(&folder, "configs/inference.json", &configuration);
        open(copy.path()).unwrap().card().output.clone()
    };
    let regions = Output::Regions { class_order: vec![1, 2] };
    assert_eq!(output(json!("pred"), json!(true), json!(0.5)), regions);
    let (other_first, other_last) = (json!(["label", "pred"]), json!(["pred", "label"]));
    assert_eq!(output(other_first.clone(), json!([false, true]), json!([null, 0.5])), regions);
    assert_eq!(output(other_last.clone(), json!([true, false]), json!([0.5, null])), regions);
    assert_eq!(output(other_first, json!([true, false]), json!([0.5, null])), Output::Labels);
    assert_eq!(output(other_last, json!([false, true]), json!([null, 0.5])), Output::Labels);
}

/// Only nnU-Net keeps a best checkpoint beside the last.
#[test]
fn the_best_checkpoint_of_a_model_with_one_is_refused() {
    let options = ModelOptions { checkpoint: Checkpoint::Best, ..ModelOptions::default() };
    let unet = folder("unet");
    let package = tempfile::tempdir().unwrap();
    open(&unet).unwrap().save_package(package.path(), &PackageOptions::default()).unwrap();
    for path in [unet.join("recipe.json"), folder("bundle"), package.path().to_owned()] {
        let message = Model::open(&path, &options).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{}: the best checkpoint is asked for", path.display())), "{message}");
    }
}

#[test]
fn what_is_missing_from_a_bundle_is_named() {
    let folder = folder("bundle");
    let message = |change: &dyn Fn(&Path)| {
        let copy = changed(&folder, "nothing", &Value::Null);
        change(copy.path());
        open(copy.path()).unwrap_err().replace(&format!("{}: ", copy.path().display()), "")
    };
    let weights = "models/model.pt";
    assert!(message(&|b| std::fs::remove_file(b.join(weights)).unwrap()).starts_with("models/model.pt is missing"));
    let script = message(&|b| std::fs::rename(b.join(weights), b.join("models/model.ts")).unwrap());
    assert!(script.contains("models/model.ts is a TorchScript program, which is not run"), "{script}");
    let (json, yaml) = ("configs/inference.json", "configs/inference.yaml");
    let error = message(&|b| std::fs::rename(b.join(json), b.join(yaml)).unwrap());
    assert!(error.starts_with("configs/inference.yaml is not read; write it as configs/inference.json"), "{error}");
    assert!(message(&|b| std::fs::remove_file(b.join(json)).unwrap()).starts_with("configs/inference.json is missing"));
}
