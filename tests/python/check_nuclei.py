#!/usr/bin/env python3
"""Asks the built program what models/nuclei is worth: Dice on held-out images, at several scales, and empty glass.

usage: check_nuclei.py MICROTOME SEG_FOLDER WORK_FOLDER

MICROTOME is the binary. SEG_FOLDER holds dsb2018-index.csv and dsb2018-stained, the images of the Data Science Bowl 2018; those that the
training held out are taken (models/nuclei/train/images.py says which, and what resolution is assumed of them). Each is rescaled by Pillow, and
the network gets it as it is then (--model-mpp native, --tissue none). Bounds: mean Dice at 0.5 um at least 0.85; at 0.25 and 0.6 um within
0.05 of that; on fields of glass at most 0.1 % foreground.
"""

import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image

from compare_masks import read_mask

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "models/nuclei/train"))
import images  # noqa: E402

MICROMETRES = (0.25, 0.5, 0.6)
DICE, DRIFT, GLASS = 0.85, 0.05, 0.001


def segment(microtome, pictures, work):
    """The masks of pictures (by name), by one call of the program."""
    (work / "masks").mkdir(parents=True)
    for name, rgb in pictures.items():
        Image.fromarray(rgb).save(work / f"{name}.png")
    files = [work / f"{name}.png" for name in pictures]
    subprocess.run(
        [microtome, "segment", *files, "-m", REPOSITORY / "models/nuclei", "-o", work / "masks", "--model-mpp", "native", "--tissue", "none",
         "--quiet"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return {name: read_mask(work / "masks" / f"{name}.ome.zarr") != 0 for name in pictures}


def glass():
    """Empty fields by name: even and noisy, of any brightness above 200."""
    rng = np.random.default_rng(2)
    for level in (200, 210, 220, 230, 243, 255):
        for sigma in (0, 2, 6, 12):
            for planes in (1, 3):
                field = level + rng.normal(0, sigma, (320, 320, planes)) + np.zeros(3)
                yield f"glass-{level}-{sigma}-{planes}", np.clip(np.rint(field), 0, 255).astype(np.uint8)


def main():
    microtome, folder, work = (pathlib.Path(argument) for argument in sys.argv[1:])
    held_out = [picture for picture in images.dsb(folder) if picture.held_out]
    if not held_out:
        sys.exit(f"{folder} holds no image that was held out")
    means = {}
    for mpp in MICROMETRES:
        scaled = {p.name.removesuffix(".png"): images.rescaled(p.rgb, p.labels, p.mpp / mpp) for p in held_out}
        masks = segment(microtome, {name: rgb for name, (rgb, _) in scaled.items()}, work / f"{mpp}")
        means[mpp] = float(np.mean([images.dice(masks[name], labels) for name, (_, labels) in scaled.items()]))
        print(f"{len(held_out)} held-out images at {mpp} um: mean Dice {means[mpp]:.4f}")
    share, name = max((float(mask.mean()), name) for name, mask in segment(microtome, dict(glass()), work / "glass").items())
    print(f"empty glass: at most {share * 100:.4f} % foreground ({name}: brightness, noise, its planes)")
    missed = [f"mean Dice at 0.5 um is below {DICE}"] if means[0.5] < DICE else []
    missed += [f"mean Dice at {mpp} um is off by more than {DRIFT}" for mpp in MICROMETRES if abs(means[mpp] - means[0.5]) > DRIFT]
    missed += ["the model sees nuclei on empty glass"] if share > GLASS else []
    if missed:
        sys.exit("; ".join(missed))


if __name__ == "__main__":
    main()
