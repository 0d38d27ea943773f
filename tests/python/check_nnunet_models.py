#!/usr/bin/env python3
"""Makes models of every kind with the real nnU-Net, runs it and microtome on the same pixels, and compares their masks.

usage: check_nnunet_models.py MICROTOME SLIDE WORK_FOLDER [NAME...]

MICROTOME is the binary, SLIDE a slide that OpenSlide reads; WORK_FOLDER is where models, pictures and stores are left. Weights are random,
drawn with a fixed seed, but such that classes tie where their logits are near 0, as those of trained networks do: there nnU-Net's sums in f16
are most precise. Checkpoints are written by nnU-Net's trainer, and the archive by nnUNetv2_export_model_to_zip. MODELS lists the models, each
with and without mirroring; with NAMEs only these are run. microtome runs with --exact and sums in f32, its default, and in f16 as nnU-Net
does. Bound: 99.98 % of pixels equal.
"""

import contextlib
import copy
import io
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

# x, y, width, height: tissue, stroma and a little glass of CMU-1-Small-Region.
CROP = (400, 600, 380, 300)
# Rows, columns.
TILE = (64, 96)
MIN_EQUAL = {"f32": 0.9998, "f16-nnunet": 0.9998}

LABELS = {"labels": {"background": 0, "tumour": 1, "stroma": 2, "ignore": 3}}
REGIONS = {"labels": {"background": 0, "tissue": [1, 2, 3], "tumour": [2, 3], "core": [3]}, "regions_class_order": [1, 2, 3]}


def features(stages):
    return [min(32 * 2**s, 512) for s in range(stages)]


# Those of nnU-Net's planner for a small tile.
PLAIN = {"n_stages": 5, "features_per_stage": features(5), "n_conv_per_stage": [2] * 5, "n_conv_per_stage_decoder": [2] * 4}
# Those of its planner of the preset ResEnc M.
RESIDUAL = {"n_stages": 5, "features_per_stage": features(5), "n_blocks_per_stage": [1, 3, 4, 6, 6], "n_conv_per_stage_decoder": [1] * 4}
BOTTLENECK = {
    "n_stages": 4, "features_per_stage": [32, 64, 64, 128], "n_blocks_per_stage": [1, 2, 2, 2], "n_conv_per_stage_decoder": [1, 2, 1],
    "block": "dynamic_network_architectures.building_blocks.residual.BottleneckD", "bottleneck_channels": [8, 16, 16, 32],
}
SMALL = {"n_stages": 4, "features_per_stage": [16, 32, 64, 64], "n_conv_per_stage": 2, "n_conv_per_stage_decoder": 1}
Z, RGB = "ZScoreNormalization", "RGBTo01Normalization"
# Class, arguments, trainer, what dataset.json says of labels, folds, normalisation.
MODELS = {
    "plain": ("PlainConvUNet", PLAIN, "nnUNetTrainer", LABELS, 1, Z),
    "plain-2-folds": ("PlainConvUNet", SMALL, "nnUNetTrainer_onlyMirror01", LABELS, 2, RGB),
    "plain-regions": ("PlainConvUNet", SMALL, "nnUNetTrainer", REGIONS, 1, "RescaleTo01Normalization"),
    "batch-norm": ("PlainConvUNet", SMALL, "nnUNetTrainerBN", LABELS, 1, "CTNormalization"),
    "residual-encoder-m": ("ResidualEncoderUNet", RESIDUAL, "nnUNetTrainer", REGIONS, 1, Z),
    "bottleneck-2-folds": ("ResidualEncoderUNet", BOTTLENECK, "nnUNetTrainer", LABELS, 2, Z),
    "residual": ("ResidualUNet", {**RESIDUAL, "n_blocks_per_stage": [1, 2, 2, 2, 2]}, "nnUNetTrainer", LABELS, 1, RGB),
    "residual-regions-2-folds": ("ResidualUNet", BOTTLENECK, "nnUNetTrainer", REGIONS, 2, "NoNormalization"),
}


def plans(name, network, keywords, scheme):
    stages = keywords["n_stages"]
    arguments = {
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * stages,
        "strides": [[1, 1]] + [[2, 2]] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        **keywords,
    }
    resampling = {
        f"resampling_fn_{what}{suffix}": value
        for what, order in [("data", 3), ("seg", 1), ("probabilities", 1)]
        for suffix, value in [
            ("", "resample_data_or_seg_to_shape"),
            ("_kwargs", {"is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None}),
        ]
    }
    intensities = {"mean": 200.0, "median": 210.0, "std": 30.0, "min": 20.0, "max": 255.0, "percentile_00_5": 90.0, "percentile_99_5": 245.0}
    return {
        "dataset_name": name,
        "plans_name": "randomPlans",
        "original_median_spacing_after_transp": [999.0, 1.0, 1.0],
        "original_median_shape_after_transp": [1, 300, 380],
        "image_reader_writer": "NaturalImage2DIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "2d": {
                "data_identifier": "randomPlans_2d",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(TILE),
                "median_image_size_in_voxels": [300.0, 380.0],
                "spacing": [1.0, 1.0],
                "normalization_schemes": [scheme] * 3,
                "use_mask_for_norm": [False] * 3,
                **resampling,
                "architecture": {
                    "network_class_name": f"dynamic_network_architectures.architectures.unet.{network}",
                    "arch_kwargs": arguments,
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"] + (["block"] if "block" in arguments else []),
                },
                "batch_dice": True,
            }
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): intensities for c in range(3)},
    }


def initialize(trainer, rgb, fold):
    """Random weights, such that all classes occur in the picture; those of other folds than the first are near its."""
    import torch

    from unet_fixtures import randomize

    network, configuration = trainer.network.eval(), trainer.configuration_manager
    height, width = (n // 16 * 16 for n in rgb.shape[:2])
    channels = rgb[:height, :width].transpose(2, 0, 1)[:, None].astype(np.float32)
    intensities = trainer.plans_manager.foreground_intensity_properties_per_channel
    channels = configuration.preprocessor_class(verbose=False)._normalize(channels, np.zeros_like(channels[:1]), configuration, intensities)
    torch.manual_seed(1)
    with torch.no_grad():
        randomize(network)
        head = network.decoder.seg_layers[-1]
        seen = []
        handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        network(torch.from_numpy(channels[:, 0])[None])
        handle.remove()
        direction = torch.randn(head.in_channels)
        values = torch.einsum("c,bchw->bhw", direction, seen[0])
        direction, middle = direction / values.std(), float(values.median() / values.std())
        # Regions inside each other; bands, with background between them.
        if trainer.label_manager.has_regions:
            factors, biases = [1.0, 1.0, 1.0], [0.4 - middle, -middle, -0.4 - middle]
        else:
            factors, biases = [0.0, 1.0, -1.0], [0.0, -0.3 - middle, -0.3 + middle]
        head.weight.copy_((torch.tensor(factors)[:, None] * direction)[..., None, None])
        head.bias.copy_(torch.tensor(biases))
        torch.manual_seed(100 + fold)
        for parameter in network.parameters() if fold else []:
            parameter.mul_(1 + 0.05 * torch.randn(parameter.shape))


def make(rgb, name, network, keywords, trainer_name, labels, folds, scheme):
    """Has nnU-Net's trainer write checkpoints of random weights. Returns the folder."""
    import nnunetv2
    import torch
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = os.path.join(nnunetv2.__path__[0], "training", "nnUNetTrainer")
    trainer_class = recursive_find_python_class(folder, trainer_name, "nnunetv2.training.nnUNetTrainer")
    data_set = {"channel_names": {"0": "R", "1": "G", "2": "B"}, **labels, "numTraining": 1, "file_ending": ".png"}
    content = plans(f"Dataset999_{name.replace('-', '')}", network, keywords, scheme)
    for fold in range(folds):
        # It changes what it is given.
        arguments = {**copy.deepcopy(content), "continue_training": False}
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = trainer_class(arguments, "2d", fold, data_set, torch.device("cpu"))
        heads = trainer.label_manager.num_segmentation_heads
        trainer.network = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 3, heads, True)
        initialize(trainer, rgb, fold)
        trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        trainer.save_checkpoint(os.path.join(trainer.output_folder, "checkpoint_final.pth"))
        # The archive is not made without them.
        pathlib.Path(trainer.output_folder, "progress.png").touch()
        summary = pathlib.Path(trainer.output_folder, "validation", "summary.json")
        summary.parent.mkdir(exist_ok=True)
        summary.write_text("{}")
    folder = pathlib.Path(trainer.output_folder_base)
    for file, value in [("plans", content), ("dataset", data_set), ("dataset_fingerprint", {})]:
        (folder / f"{file}.json").write_text(json.dumps(value, indent=1))
    return folder


def export(folder, folds, out):
    from nnunetv2.model_sharing.model_export import export_pretrained_model

    trainer, plans_name, _ = folder.name.split("__")
    with contextlib.redirect_stdout(io.StringIO()):
        export_pretrained_model(folder.parent.name, str(out), ("2d",), trainer, plans_name, tuple(range(folds)))


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    microtome, slide_path, work, names = sys.argv[1], *map(pathlib.Path, sys.argv[2:4]), sys.argv[4:]
    results = work.resolve() / "results"
    results.mkdir(parents=True, exist_ok=True)
    os.environ |= {"nnUNet_raw": os.devnull, "nnUNet_preprocessed": str(results), "nnUNet_results": str(results)}
    import openslide
    import torch
    from PIL import Image

    from check_nnunet import predict, segment
    from compare_masks import compare

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    x, y, width, height = CROP
    rgb = np.asarray(openslide.OpenSlide(slide_path).read_region((x, y), 0, (width, height)).convert("RGB"))
    picture = work / "crop.png"
    Image.fromarray(rgb).save(picture)
    missed = False
    for name, model in MODELS.items():
        if names and name not in names:
            continue
        folder = make(rgb, name, *model)
        folds = model[4]
        for mirroring in (True, False):
            start = time.monotonic()
            with contextlib.redirect_stdout(io.StringIO()):
                reference = predict(folder, rgb, mirroring, folds=tuple(range(folds)))
            seconds = time.monotonic() - start
            shares = ", ".join(f"{v}: {n / reference.size:.1%}" for v, n in zip(*np.unique(reference, return_counts=True)))
            print(f"{name}, {folds} folds, {'with' if mirroring else 'no'} mirroring ({shares}): nnU-Net took {seconds:.1f} s", flush=True)
            for accumulate, bound in MIN_EQUAL.items():
                start = time.monotonic()
                mask = segment(microtome, folder, picture, work / "mask.ome.zarr", 0.5, mirroring, accumulate)
                seconds = time.monotonic() - start
                equal, dice = compare(mask, reference)
                missed |= equal < bound
                print(f"  {accumulate}: {equal * 100:.5f} % equal, {np.count_nonzero(mask != reference)} of {mask.size} pixels differ,"
                      f" Dice {dice:.6f}, {seconds:.1f} s{': MISSED' if equal < bound else ''}", flush=True)
        archive = work / f"{name}.zip"
        export(folder, folds, archive)
        same = np.array_equal(segment(microtome, archive, picture, work / "zip.ome.zarr", 0.5, False, "f16-nnunet"), mask)
        missed |= not same
        print(f"  from the archive: {'the same mask' if same else 'ANOTHER MASK'}", flush=True)
    if missed:
        sys.exit("microtome and nnU-Net differ by more than the bounds")


if __name__ == "__main__":
    main()
