#!/usr/bin/env python3
"""Runs MONAI and microtome on the same pixels with the same random network and compares their masks.

usage: check_monai.py MICROTOME SLIDE WORK_FOLDER

MICROTOME is the binary, SLIDE a slide that OpenSlide reads; WORK_FOLDER is where models, pictures and stores are left. A UNet with residual
units and random weights, its outputs centred so that every class wins somewhere, runs over crops of the slide: through MONAI's
sliding_window_inference with its own Gaussian or constant weights, and through `-m` as a state dict with recipe.json; and as a bundle,
whose transforms and inferer MONAI's own parser makes of its inference.json. Bound: 99.98 % of pixels equal.
Before that the logits of one tile by networks of all four classes, wide enough for every fast algorithm, are compared with
MONAI's in microtome's default arithmetic, as test vectors of packages. Bound: 1e-4 of the largest logit.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import openslide
import torch
from monai.bundle import ConfigParser
from monai.inferers import sliding_window_inference
from monai.networks import nets
from PIL import Image
from safetensors.torch import save_file

from compare_masks import compare, read_mask

# x, y, width, height: tissue, stroma and a little glass of CMU-1-Small-Region; one larger than a tile both ways, one smaller along y.
CROP, NARROW = (400, 600, 500, 413), (500, 700, 300, 90)
ROI, HEADS, LEAST_EQUAL = 128, 3, 0.9998
ARGUMENTS = {
    "spatial_dims": 2,
    "in_channels": 3,
    "out_channels": HEADS,
    "channels": [16, 32, 64],
    "strides": [2, 2],
    "num_res_units": 2,
}
# Crop, overlap, weights.
CASES = [
    ("crop", CROP, 0.5, "gaussian"),
    ("crop", CROP, 0.25, "gaussian"),
    ("crop", CROP, 0.25, "constant"),
    ("narrow", NARROW, 0.5, "gaussian"),
    ("narrow", NARROW, 0.25, "gaussian"),
]
# Networks for single tiles.
LOGIT_BOUND = 1e-4
WIDE = [
    ("UNet", {"channels": [32, 48, 64, 96], "strides": [2, 2, 2], "num_res_units": 2, "norm": "batch"}),
    ("BasicUNet", {"features": [32, 32, 64, 64, 96, 32], "upsample": "pixelshuffle"}),
    (
        "DynUNet",
        {
            "kernel_size": [3] * 4,
            "strides": [1, 2, 2, 2],
            "upsample_kernel_size": [2] * 3,
            "filters": [32, 48, 64, 96],
            "res_block": True,
        },
    ),
    ("SegResNet", {"init_filters": 32, "blocks_down": [1, 2, 2], "blocks_up": [1, 1]}),
]
WINDOWS = {"gaussian": "gaussian-monai", "constant": "constant"}


def randomized(net):
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.copy_((2.0 / parameter[0].numel()) ** 0.5 * torch.randn(parameter.shape))
    return net.eval()


def recipe_of(folder, name, arguments, net, **others):
    folder.mkdir(exist_ok=True)
    torch.save({"state_dict": net.state_dict()}, folder / "weights.pt")
    recipe = {
        "framework": "monai",
        "network": name,
        "arguments": arguments,
        "weights": ["weights.pt"],
        "tile": {"width": ROI, "height": ROI},
        "normalization": [{"scheme": "rgb-to01"}] * 3,
        "classes": ["background", "one", "two"],
        **others,
    }
    (folder / "recipe.json").write_text(json.dumps(recipe))


def logits_of_a_tile(microtome, work, name, arguments, rgb):
    """The largest difference of a logit, as a fraction of the largest, in the default arithmetic."""
    arguments = {"spatial_dims": 2, "in_channels": 3, "out_channels": HEADS, **arguments}
    net = randomized(getattr(nets, name)(**arguments))
    recipe, package = work / f"logits-{name}", work / f"package-{name}"
    recipe_of(recipe, name, arguments, net)
    shutil.rmtree(package, ignore_errors=True)
    subprocess.run([microtome, "model", "import", recipe, package, "--model-mpp", "1"], check=True, stdout=subprocess.DEVNULL)
    with torch.no_grad():
        logits = net(torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255)[0]
    (package / "test").mkdir(exist_ok=True)
    Image.fromarray(rgb).save(package / "test" / "input.png")
    Image.fromarray(logits.argmax(0).numpy().astype(np.uint8)).save(package / "test" / "mask.png")
    save_file({"logits": logits.contiguous()}, package / "test" / "logits.safetensors")
    # In place of the one that the import has computed; its table is the last.
    manifest = package / "model.toml"
    kept = manifest.read_text().partition("\n[test]\n")[0]
    manifest.write_text(f'{kept}\n[test]\ncomputed_by = "MONAI"\nmethod = "check_monai.py"\n')
    answer = subprocess.run([microtome, "model", "info", package, "--check", "--json"], stdout=subprocess.PIPE).stdout
    agreement = json.loads(answer)["agreement"]
    return agreement["max_logit_difference"] / agreement["max_logit"]


def network(example):
    """Random weights, and outputs that lie around 0 on the example."""
    net = randomized(nets.UNet(**ARGUMENTS))
    with torch.no_grad():
        logits = net(example)
        net.model[2][1].conv.unit0.conv.bias -= logits.mean(dim=(0, 2, 3))
    return net


def inference(overlap):
    """What a bundle's inference.json says."""
    keys = {"keys": "image"}
    return {
        "network_def": {"_target_": "UNet", **ARGUMENTS},
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", **keys},
                {"_target_": "EnsureChannelFirstd", **keys},
                {"_target_": "ScaleIntensityRanged", **keys, "a_min": 0, "a_max": 255, "b_min": -1, "b_max": 1, "clip": True},
                {"_target_": "EnsureTyped", **keys},
            ],
        },
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [96, ROI], "overlap": overlap, "mode": "gaussian"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "AsDiscreted", "keys": "pred", "argmax": True}],
        },
    }


def segment(microtome, model, picture, store):
    flags = ["--overwrite", "--quiet", "--exact", "--tissue", "none", "--model-mpp", "native", "--no-tta"]
    subprocess.run([microtome, "segment", picture, "-m", model, "-o", store, *flags], check=True)
    return read_mask(store)


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    microtome, slide_path, work = sys.argv[1], *map(pathlib.Path, sys.argv[2:])
    torch.manual_seed(1)
    work.mkdir(parents=True, exist_ok=True)
    slide = openslide.OpenSlide(slide_path)
    pictures = {}
    for name, (x, y, width, height) in [("crop", CROP), ("narrow", NARROW)]:
        image = slide.read_region((x, y), 0, (width, height)).convert("RGB")
        image.save(work / f"{name}.png")
        pictures[name] = np.array(image)
    tensor = lambda name: torch.from_numpy(pictures[name]).permute(2, 0, 1)[None].float()  # noqa: E731
    missed = False

    def report(what, mask, reference, seconds):
        equal, dice = compare(mask, reference)
        shares = [f"{np.mean(reference == v) * 100:.0f} %" for v in range(HEADS)]
        good = equal >= LEAST_EQUAL
        print(f"{what}: {equal * 100:.5f} % equal, {np.count_nonzero(mask != reference)} of {mask.size} pixels differ, Dice {dice:.6f};"
              f" classes {', '.join(shares)}; MONAI took {seconds:.1f} s{'' if good else ': MISSED'}", flush=True)
        return not good

    for name, arguments in WIDE:
        difference = logits_of_a_tile(microtome, work, name, arguments, pictures["crop"][:ROI, :ROI])
        good = difference <= LOGIT_BOUND
        missed |= not good
        print(f"{name}: {difference:.2e} of the largest logit{'' if good else ': MISSED'}", flush=True)

    net = network(tensor("crop")[..., :ROI, :ROI] / 255)
    for name, crop, overlap, mode in CASES:
        model = work / f"recipe-{overlap}-{mode}"
        recipe_of(model, "UNet", ARGUMENTS, net, step=1 - overlap, placement="monai", window=WINDOWS[mode])
        start = time.monotonic()
        with torch.no_grad():
            logits = sliding_window_inference(tensor(name) / 255, (ROI, ROI), 4, net, overlap=overlap, mode=mode)
        seconds = time.monotonic() - start
        reference = logits[0].argmax(0).numpy()
        mask = segment(microtome, model, work / f"{name}.png", work / f"{name}.ome.zarr")
        missed |= report(f"{name}, overlap {overlap}, {mode}", mask, reference, seconds)

    for overlap in (0.25, 0.5):
        model = work / f"bundle-{overlap}"
        for folder in ("configs", "models"):
            (model / folder).mkdir(parents=True, exist_ok=True)
        (model / "configs" / "metadata.json").write_text(json.dumps({"version": "0.0.1", "name": "random"}))
        (model / "configs" / "inference.json").write_text(json.dumps(inference(overlap)))
        parser = ConfigParser()
        parser.read_config(str(model / "configs" / "inference.json"))
        image = parser.get_parsed_content("preprocessing")({"image": str(work / "crop.png")})["image"].as_tensor()[None]
        net = network(image[..., :ROI, :ROI])
        torch.save(net.state_dict(), model / "models" / "model.pt")
        start = time.monotonic()
        with torch.no_grad():
            logits = parser.get_parsed_content("inferer")(image, net)
        seconds = time.monotonic() - start
        reference = parser.get_parsed_content("postprocessing")({"pred": logits[0]})["pred"].numpy()[0].T
        mask = segment(microtome, model, work / "crop.png", work / "bundle.ome.zarr")
        missed |= report(f"bundle, overlap {overlap}", mask, reference, seconds)
    if missed:
        sys.exit("microtome and MONAI differ by more than the bound")


if __name__ == "__main__":
    main()
