#!/usr/bin/env python3
"""Makes an OME-Zarr pyramid of a slide with zarr-python and numpy: what `cargo xtask bench pyramid` compares with.

    bench_zarr.py SLIDE OUT.ome.zarr CHUNK SHARD LEVELS THREADS

The pyramid is the one of `microtome convert`: axes c, y, x, halved LEVELS - 1 times by the mean of 2 x 2 pixels, rounded half up, zstd
level 1, in chunks and shards of so many pixels. Level 0 is decoded by tifffile. THREADS shards are made at a time, each from the
four of the level before it, which are read again, so that memory does not grow with the slide. The metadata are those
that make the levels an image, and no more. Prints a line of JSON: versions.
"""

import concurrent.futures
import json
import sys

import numpy as np
import tifffile
import zarr
from zarr.codecs import ZstdCodec


def halve(block):
    """The mean of the pixels that exist, rounded half up; an odd edge is its own neighbour. Axes c, y, x."""
    _, height, width = block.shape
    if height % 2 or width % 2:
        block = np.pad(block, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    sums = block[:, 0::2].astype(np.uint16) + block[:, 1::2]
    return ((sums[:, :, 0::2] + sums[:, :, 1::2] + 2) // 4).astype(np.uint8)


def main(slide, out, *numbers):
    chunk, shard, levels, threads = map(int, numbers)
    zarr.config.set({"threading.max_workers": threads})
    source = zarr.open(tifffile.imread(slide, aszarr=True, level=0), mode="r")
    source = source["0"] if isinstance(source, zarr.Group) else source
    height, width, channels = source.shape
    group = zarr.open_group(out, mode="w")
    arrays = []
    for n in range(levels):
        shape = channels, -(-height // 2**n), -(-width // 2**n)
        arrays.append(
            group.create_array(
                str(n), shape=shape, dtype="uint8", chunks=(1, chunk, chunk), shards=(channels, shard, shard),
                compressors=ZstdCodec(level=1), fill_value=0, dimension_names=("c", "y", "x"),
            )
        )

    def make(n, y, x):
        if n == 0:
            pixels = np.moveaxis(source[y : y + shard, x : x + shard], -1, 0)
        else:
            pixels = halve(arrays[n - 1][:, 2 * y : 2 * (y + shard), 2 * x : 2 * (x + shard)])
        arrays[n][:, y : y + shard, x : x + shard] = pixels

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for n, array in enumerate(arrays):
            corners = [(n, y, x) for y in range(0, array.shape[1], shard) for x in range(0, array.shape[2], shard)]
            list(pool.map(lambda corner: make(*corner), corners))
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    scales = [[{"type": "scale", "scale": [1.0, 2.0**n, 2.0**n]}] for n in range(levels)]
    datasets = [{"path": str(n), "coordinateTransformations": scale} for n, scale in enumerate(scales)]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"name": "slide", "axes": axes, "datasets": datasets}]}
    print(json.dumps({"zarr": zarr.__version__, "tifffile": tifffile.__version__, "numpy": np.__version__}))


main(*sys.argv[1:])
