"""Stained images with outlined nuclei: which are held out, at what resolution they are taken to be, and how a mask is measured on them.

Images are given by path and never copied. All are RGB of 8 bits; labels are 0 (no nucleus), 1, 2, ... (a nucleus each), and IGNORED.
Needs numpy and Pillow alone, so that tests/python/check_nuclei.py can ask the built program the same questions.
"""

import csv
import hashlib
import pathlib

import numpy as np
from PIL import Image

# A label that says nothing: the pixel takes no part in the loss, nor in a measurement.
IGNORED = -1
# A file is held out where the SHA-256 of its name is a multiple of this.
HELD_OUT_OF = 5


def held_out(name):
    """Whether a file is held out, by nothing but its name."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT_OF == 0


def micrometres_per_pixel(group, background_blue):
    """The resolution that is assumed of an image of the Data Science Bowl, which states none.

    purple_on_purple comes from one camera at two magnifications, and its background tells which: blue is 205 to 209 in one part, where
    nuclei measure 12 to 25 pixels (the median of an image), and 199 to 202 in the other, where they measure 25 to 60. Nuclei of the same
    kinds of tissue are as large as on slides at 20x (0.5) and at 40x (0.25).
    purple_on_white shows small lymphocytes and the ghosts of red cells, both of about 7 micrometres, and both about 20 pixels wide: 0.35.
    pink_he has nuclei of 33 to 39 pixels, those of H&E at 40x.
    """
    if group == "purple_on_purple":
        return 0.5 if background_blue > 203 else 0.25
    return {"purple_on_white": 0.35, "pink_he": 0.25}[group]


class Picture:
    """An image, its labels, its resolution, and what its background absorbs (optical density of each channel)."""

    def __init__(self, name, group, rgb, labels, mpp):
        self.name, self.group, self.rgb, self.labels, self.mpp = name, group, rgb, labels, mpp
        self.background = density(np.median(rgb[labels == 0], axis=0).astype(np.float32))

    @property
    def held_out(self):
        return held_out(self.name)


def density(rgb, white=256.0):
    """Optical density: what is absorbed of the light, as the negative decimal logarithm of the part that passes."""
    return -np.log10((rgb.astype(np.float32) + 1.0) / white)


def dsb(folder):
    """The stained images of the Data Science Bowl 2018 (BBBC038, CC0), by name.

    FOLDER holds dsb2018-index.csv with the columns id and group, and dsb2018-stained with images/ID.png and labels/ID.png.
    """
    folder = pathlib.Path(folder)
    pictures = []
    with open(folder / "dsb2018-index.csv", newline="") as index:
        rows = sorted(csv.DictReader(index), key=lambda row: row["id"])
    for row in rows:
        name = f"{row['id']}.png"
        image = folder / "dsb2018-stained/images" / name
        if not image.exists():
            continue
        rgb = np.asarray(Image.open(image).convert("RGB"))
        labels = np.asarray(Image.open(folder / "dsb2018-stained/labels" / name)).astype(np.int32)
        blue = np.median(rgb[labels == 0][:, 2])
        pictures.append(Picture(name, row["group"], rgb, labels, micrometres_per_pixel(row["group"], blue)))
    return pictures


def rescaled(rgb, labels, factor):
    """An image and its labels at `factor` times the resolution; Pillow's box filter averages the pixels under a larger one."""
    size = (round(rgb.shape[1] * factor), round(rgb.shape[0] * factor))
    if size == (rgb.shape[1], rgb.shape[0]):
        return rgb, labels
    method = Image.Resampling.BOX if factor < 1 else Image.Resampling.BILINEAR
    image = Image.fromarray(rgb).resize(size, method)
    return np.asarray(image), np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))


def dice(mask, labels):
    """Dice over pixels whose label is known; 1 where neither has any."""
    known = labels != IGNORED
    truth, mask = (labels > 0) & known, mask & known
    total = truth.sum() + mask.sum()
    return 2 * (truth & mask).sum() / total if total else 1.0
