#!/usr/bin/env python3
"""Runs ensembles of two models in the real nnU-Net and in microtome, on the same pixels, and compares their masks.

usage: check_ensemble.py MICROTOME SLIDE WORK_FOLDER

MICROTOME is the binary, SLIDE a slide that OpenSlide reads; WORK_FOLDER is where models, pictures and stores are left.
The two models are small networks with random weights that differ in tile, depth and normalisation. Their heads are scaled so that
logits spread: where two classes are as good as equal, rounding decides, in nnU-Net as here. nnU-Net predicts with each, writes the
probabilities, and averages them by its own `ensemble_folders`, which is what `nnUNetv2_ensemble` calls; microtome gets both with
`-m A -m B`. CASES are: classes with and without mirroring, and regions that overlap. Bounds: with sums in f16, as nnU-Net has
them, at least 99.98 % of the pixels are equal; with sums in f32, which are more exact than nnU-Net's, only pixels differ that nnU-Net decides by
less than its sums' own rounding.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import openslide
import torch
from PIL import Image

from compare_masks import compare, read_mask

# nnU-Net warns about each of these unless it is set; none is used for prediction.
for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.setdefault(name, os.devnull)

from nnunetv2.ensembling.ensemble import ensemble_folders  # noqa: E402
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans  # noqa: E402

# x, y, width, height of CMU-1-Small-Region: tissue, stroma and a little glass. No multiple of either tile.
CROP = (400, 600, 500, 460)
# Classes, or regions; mirroring.
CASES = [("classes", True), ("classes", False), ("regions", True)]
# With sums in f16, as nnU-Net has them.
MIN_EQUAL = 0.9998
# With sums in f32: of nnU-Net's probabilities, by how much a pixel that differs may be decided. Their own sums in f16 are 0.0005 apart near 1.
MAX_MARGIN = 0.0006

LABELS = {
    "classes": {"labels": {"background": 0, "stroma": 1, "nucleus": 2}},
    "regions": {
        "labels": {"background": 0, "tissue": [1, 2], "nucleus": 2},
        "regions_class_order": [1, 2],
    },
}
# Rows and columns of a tile, features of each stage, normalisation, seed of the weights.
MODELS = {
    "A": ((128, 128), [8, 16, 24], "RGBTo01Normalization", 1),
    "B": ((96, 160), [6, 12], "ZScoreNormalization", 2),
}
# What the weights of the last layer are multiplied by.
SPREAD = 5.0
NETWORK = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
IMPORTED = ["conv_op", "norm_op", "dropout_op", "nonlin"]


def make_model(folder, name, kind):
    """Writes a result folder of nnU-Net v2."""
    patch, features, normalization, seed = MODELS[name]
    stages = len(features)
    keywords = {
        "n_stages": stages,
        "features_per_stage": features,
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * stages,
        "strides": [[1, 1]] + [[2, 2]] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    plans = {
        "dataset_name": f"Dataset90{seed}_Random{name}",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [999.0, 1.0, 1.0],
        "original_median_shape_after_transp": [1, 512, 512],
        "image_reader_writer": "NaturalImage2DIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(c): {"max": 255.0, "mean": 150.0, "median": 150.0, "min": 0.0, "percentile_00_5": 10.0, "percentile_99_5": 250.0, "std": 50.0} for c in range(3)
        },
        "configurations": {
            "2d": {
                "data_identifier": "nnUNetPlans_2d",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(patch),
                "spacing": [1.0, 1.0],
                "normalization_schemes": [normalization] * 3,
                "use_mask_for_norm": [False] * 3,
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
                "architecture": {"network_class_name": NETWORK, "arch_kwargs": keywords, "_kw_requires_import": IMPORTED},
                "batch_dice": True,
            }
        },
    }
    dataset = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "numTraining": 0, "file_ending": ".png", **LABELS[kind]}
    heads = 3 if kind == "classes" else 2
    torch.manual_seed(seed)
    network = get_network_from_plans(NETWORK, keywords, IMPORTED, 3, heads, deep_supervision=False)
    weights = network.state_dict()
    for key, values in weights.items():
        if ".seg_layers." in key:
            values *= SPREAD
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans, indent=1))
    (folder / "dataset.json").write_text(json.dumps(dataset, indent=1))
    checkpoint = {
        "network_weights": weights,
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "2d"},
        "inference_allowed_mirroring_axes": (0, 1),
    }
    torch.save(checkpoint, folder / "fold_0/checkpoint_final.pth")


def predict(model, picture, output, mirroring):
    """nnU-Net's mask and probabilities of a picture, in a folder."""
    predictor = nnUNetPredictor(use_mirroring=mirroring, device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    predictor.predict_from_files_sequential([[str(picture)]], str(output), save_probabilities=True)
    return np.load(output / "case.npz")["probabilities"].squeeze()


def segment(microtome, models, picture, store, mirroring, accumulate):
    """microtome's mask of a picture, computed as nnU-Net does."""
    arguments = [argument for model in models for argument in ("-m", model)]
    subprocess.run(
        [microtome, "segment", picture, *arguments, "-o", store, "--overwrite", "--quiet", "--exact", "--tissue", "none",
         "--model-mpp", "native", "--accumulate", accumulate, "--tta" if mirroring else "--no-tta"],
        check=True,
    )
    return read_mask(store)


def margin(probabilities, kind):
    """How far each pixel is from being decided otherwise."""
    if kind == "regions":
        return np.abs(probabilities - 0.5).min(axis=0)
    two = np.sort(probabilities, axis=0)[-2:]
    return two[1] - two[0]


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    microtome, slide_path, work = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    work.mkdir(parents=True, exist_ok=True)
    x, y, width, height = CROP
    rgb = np.asarray(openslide.OpenSlide(slide_path).read_region((x, y), 0, (width, height)).convert("RGB"))
    picture = work / "case_0000.png"
    Image.fromarray(rgb).save(picture)
    missed = False
    for kind, mirroring in CASES:
        start = time.monotonic()
        title = f"{kind}, {'with' if mirroring else 'no'} mirroring"
        models, folders, probabilities = [], [], []
        for name in MODELS:
            model, folder = work / f"{kind}-{name}", work / f"{kind}-{name}-predicted"
            make_model(model, name, kind)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for file in ("dataset.json", "plans.json"):
                shutil.copy(model / file, folder)
            probabilities.append(predict(model, picture, folder, mirroring))
            models.append(model)
            folders.append(folder)
        together = work / f"{kind}-together"
        shutil.rmtree(together, ignore_errors=True)
        ensemble_folders([str(folder) for folder in folders], str(together), num_processes=1)
        reference = read_mask(together / "case.png")
        seconds = time.monotonic() - start
        mean = np.mean(probabilities, axis=0)
        close = np.mean(margin(mean, kind) < 1e-3)
        shares = ", ".join(f"{value}: {share * 100:.1f} %" for value, share in zip(*counted(reference)))
        print(f"{title}: nnU-Net took {seconds:.1f} s; {shares}; {close * 100:.3f} % of the pixels are decided by less than 0.001")
        for model, folder, name in zip(models, folders, MODELS):
            alone = np.mean(read_mask(folder / "case.png") != reference)
            equal, _ = compare(segment(microtome, [model], picture, work / "mask.ome.zarr", mirroring, "f32"), read_mask(folder / "case.png"))
            print(f"  {name} alone: {equal * 100:.5f} % equal; {alone * 100:.1f} % of its mask is not that of both")
        for accumulate in ("f32", "f16-nnunet"):
            mask = segment(microtome, models, picture, work / "mask.ome.zarr", mirroring, accumulate)
            equal, dice = compare(mask, reference)
            # How decided nnU-Net is in the pixel that differs although it is most so.
            decided = margin(mean, kind)[mask != reference].max(initial=0)
            holds = equal >= MIN_EQUAL if accumulate == "f16-nnunet" else decided <= MAX_MARGIN
            missed |= not holds
            print(f"  {accumulate}: {equal * 100:.5f} % equal, {np.count_nonzero(mask != reference)} of {mask.size} pixels differ,"
                  f" Dice {dice:.6f}, decided by {decided:.6f} at most{'' if holds else ': MISSED'}", flush=True)
    if missed:
        sys.exit("microtome and nnU-Net differ by more than the bound")


def counted(mask):
    """The values of a mask, and the share of each."""
    values, counts = np.unique(mask, return_counts=True)
    return values, counts / mask.size


if __name__ == "__main__":
    main()
