#!/usr/bin/env python3
"""Makes an OME-Zarr pyramid of a slide with ome-zarr-py: what `cargo xtask bench pyramid` compares with.

    bench_ome_zarr.py SLIDE OUT.ome.zarr CHUNK SHARD LEVELS THREADS

As its documentation advises: a dask array of level 0, decoded by tifffile, goes through `write_image` with local means, in chunks and shards
of so many pixels, zstd level 1. Odd sizes are rounded down, so the coarser levels may lack a column or row. Prints a line of JSON: versions.
"""

import json
import sys

import dask
import dask.array
import ome_zarr
import tifffile
import zarr
from ome_zarr.format import FormatV05
from ome_zarr.scale import Methods
from ome_zarr.writer import write_image
from zarr.codecs import ZstdCodec


def main(slide, out, *numbers):
    chunk, shard, levels, threads = map(int, numbers)
    zarr.config.set({"threading.max_workers": threads})
    source = zarr.open(tifffile.imread(slide, aszarr=True, level=0), mode="r")
    source = source["0"] if isinstance(source, zarr.Group) else source
    image = dask.array.from_zarr(source)
    image = dask.array.moveaxis(image, -1, 0).rechunk((image.shape[-1], shard, shard))
    options = {"chunks": (1, chunk, chunk), "shards": (image.shape[0], shard, shard), "compressors": ZstdCodec(level=1)}
    with dask.config.set(scheduler="threads", num_workers=threads):
        write_image(
            image, out, scale_factors=[2**n for n in range(1, levels)], method=Methods.LOCAL_MEAN, fmt=FormatV05(),
            axes="cyx", storage_options=options,
        )
    print(json.dumps({"ome_zarr": ome_zarr.__version__, "dask": dask.__version__}))


if __name__ == "__main__":
    main(*sys.argv[1:])
