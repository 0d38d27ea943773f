#!/usr/bin/env python3
"""Writes slides whose every sample is known, for the checks of `microtome convert`.

usage: pyramid_slides.py FOLDER

    channels.ome.tif    16 bits, four channels with names and colours, 1301 x 957 pixels of 0.325 um, deflate; its lower right is zero
    planes.ome.zarr     OME-Zarr 0.4 by zarr-python: 16 bits, axes t, c, z, y, x, two channels, 777 x 1033 pixels of 0.65 x 0.6 um
    profile.tif         8 bits, RGB, 640 x 481 pixels without a resolution, with a colour profile

Sizes are odd, so that each level has an edge of its own.
"""

import pathlib
import sys

import numpy as np
import tifffile
import zarr
from PIL import ImageCms

CHANCE = np.random.default_rng(11)


def pixels(channels, height, width, dtype):
    """Noise on slopes, other ones for each channel, over the whole range of the type."""
    top = np.iinfo(dtype).max
    y, x = np.mgrid[0:height, 0:width]
    slopes = np.stack([(x * (3 + c) + y * (5 + 2 * c)) * top // 4096 for c in range(channels)])
    return (slopes + CHANCE.integers(0, top // 4, slopes.shape)).astype(dtype)


def channels(path):
    samples = pixels(4, 957, 1301, np.uint16)
    samples[:, 512:, 1024:] = 0
    colors = [0x0000FFFF, 0x00FF00FF, 0xFF0000FF, 0xFFFFFFFF]  # RGBA
    tifffile.imwrite(
        path,
        samples,
        ome=True,
        tile=(256, 256),
        compression="deflate",
        photometric="minisblack",
        metadata={
            "axes": "CYX",
            "PhysicalSizeX": 0.325,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": 0.325,
            "PhysicalSizeYUnit": "µm",
            "Channel": {"Name": ["DAPI", "CD3", "CD8", "PanCK"], "Color": [int(np.uint32(color).view(np.int32)) for color in colors]},
        },
    )


def planes(path):
    samples = pixels(2, 1033, 777, np.uint16)[None, :, None]
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    array = group.create_array("0", shape=samples.shape, dtype="uint16", chunks=(1, 1, 1, 300, 300), chunk_key_encoding={"name": "v2", "separator": "/"})
    array[...] = samples
    kinds = {"t": "time", "c": "channel"}
    axes = [{"name": name, "type": kinds.get(name, "space")} | ({"unit": "micrometer"} if name in "zyx" else {}) for name in "tczyx"]
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0, 0.6, 0.65]}]
    group.attrs["multiscales"] = [{"version": "0.4", "name": "planes", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]


def profile(path):
    colours = np.ascontiguousarray(np.moveaxis(pixels(3, 481, 640, np.uint8), 0, -1))
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tifffile.imwrite(path, colours, tile=(128, 128), photometric="rgb", compression="deflate", iccprofile=icc, metadata=None)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    channels(folder / "channels.ome.tif")
    planes(folder / "planes.ome.zarr")
    profile(folder / "profile.tif")


if __name__ == "__main__":
    main()
