#!/usr/bin/env python3
"""Makes a gigapixel slide that takes a few megabytes on disk.

usage: big_slide.py OUT.svs SOURCE WIDTHxHEIGHT [--tissue SHARE] [--mpp UM] [--distinct]

OUT.svs is a BigTIFF with a pyramid as Aperio's scanners leave it; SOURCE a slide that OpenSlide reads, of whose level 0 the tissue
is made. The slide is divided into blocks of 2048 x 2048 pixels, each of which is all tissue or all white: tissue where its centre
lies in a band across the middle, or in one of the ellipses that are drawn, from a fixed seed, until both cover SHARE of the slide. Every block of tissue shows the
same pixels, and the entries of the table of tiles that show the same pixels point at the same bytes. That suits questions of
memory, geometry and overhead; it says little of reading, because a cache of bytes would hold the few tiles there are.
With --distinct the pixels of each block are shifted, around its own edges, by one of 16129 offsets, and so nearly each tile of
tissue has bytes of its own: about 30 MB for every 100 megapixels of tissue. Tiles are JPEG of quality 90, with chroma at half the resolution.
"""

import argparse
import functools
import io
import pathlib
import random
import struct

import numpy as np
import openslide
from PIL import Image

TILE, BLOCK, QUALITY, SEED, BAND = 256, 2048, 90, 7, 2
# Coarsest level: its longer side has at most so many pixels. A block then has at least one pixel up to slides of 2 million.
COARSEST = 1024


def halve(pixels):
    """Means of 2 x 2 pixels, rounded."""
    sums = pixels.astype(np.uint16)
    sums = sums[0::2] + sums[1::2]
    return ((sums[:, 0::2] + sums[:, 1::2] + 2) // 4).astype(np.uint8)


def tissue_blocks(columns, rows, share):
    """Which blocks are tissue, rows x columns."""
    chance = random.Random(SEED)
    y, x = np.mgrid[0:rows, 0:columns] + 0.5
    tissue = np.zeros((rows, columns), bool)
    # A band from edge to edge: wherever strips lie, one of them is full of tissue for a while, as it may be on any slide.
    tissue[rows // 2 : rows // 2 + BAND] = True
    while tissue.mean() < share:
        centre = chance.uniform(0, columns), chance.uniform(0, rows)
        radius = chance.uniform(0.02, 0.12) * columns + 0.5, chance.uniform(0.02, 0.12) * rows + 0.5
        tissue |= ((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2 <= 1
    return tissue


class Blocks:
    """The pixels of blocks at every level."""

    def __init__(self, source, tissue, distinct):
        slide = openslide.OpenSlide(source)
        pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
        repeats = -(-BLOCK // pixels.shape[0]), -(-BLOCK // pixels.shape[1]), 1
        self.levels = [np.tile(pixels, repeats)[:BLOCK, :BLOCK]]
        while len(self.levels[-1]) > 1:
            self.levels.append(halve(self.levels[-1]))
        self.tissue, self.distinct = tissue, distinct

    def offset(self, row, column):
        """How far a block is shifted at level 0, in whole pixels of level 4."""
        number = column * 73856093 ^ row * 19349663
        return (number // 127 % 127 * 16, number % 127 * 16) if self.distinct else (0, 0)

    def key(self, row, column):
        """Blocks with the same key show the same pixels: None for white and for what is beyond the edge."""
        inside = row < self.tissue.shape[0] and column < self.tissue.shape[1]
        return self.offset(row, column) if inside and self.tissue[row, column] else None

    @functools.lru_cache(maxsize=16)  # tiles of a block are drawn one after the other
    def pixels(self, level, key):
        if key is None:
            return np.full((BLOCK >> level, BLOCK >> level, 3), 255, np.uint8)
        shifted = min(level, 4)
        pixels = np.roll(self.levels[shifted], (key[0] >> shifted, key[1] >> shifted), (0, 1))
        for _ in range(shifted, level):
            pixels = halve(pixels)
        return pixels


class BigTiff:
    """A file of pages, each with a table of tiles (BigTIFF: https://www.awaresystems.be/imaging/tiff/bigtiff.html)."""

    def __init__(self, file):
        self.file = file
        file.write(struct.pack("<2s3HQ", b"II", 43, 8, 0, 0))
        self.link = 8
        self.stored = {}

    def append(self, data):
        """Writes at the end, at an even place; returns the place and the length."""
        self.file.write(b"\0" * (self.file.tell() % 2))
        return self.file.tell(), self.file.write(data)

    def tile(self, key, draw):
        """The place and length of the tile `key`, drawn and stored where it is not in the file yet."""
        if key not in self.stored:
            jpeg = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(draw())).save(jpeg, "JPEG", quality=QUALITY, subsampling="4:2:0")
            self.stored[key] = self.append(jpeg.getvalue())
        return self.stored[key]

    def page(self, width, height, tiles, description, kind):
        """Writes a page whose tiles, row by row, lie at `tiles`."""
        text = description.encode() + b"\0"
        short, long, long8, ascii_ = ("H", 3), ("I", 4), ("Q", 16), ("s", 2)
        fields = [
            (254, long, [kind]), (256, long, [width]), (257, long, [height]), (258, short, [8, 8, 8]),
            (259, short, [7]), (262, short, [6]), (270, ascii_, text), (277, short, [3]), (284, short, [1]),
            (322, long, [TILE]), (323, long, [TILE]), (324, long8, [place for place, _ in tiles]),
            (325, long8, [length for _, length in tiles]), (530, short, [2, 2]),
        ]
        entries = b""
        for tag, (letter, number), values in fields:
            data = values if letter == "s" else struct.pack(f"<{len(values)}{letter}", *values)
            value = data.ljust(8, b"\0") if len(data) <= 8 else struct.pack("<Q", self.append(data)[0])
            entries += struct.pack("<HHQ", tag, number, len(values)) + value
        place, length = self.append(struct.pack("<Q", len(fields)) + entries + struct.pack("<Q", 0))
        self.file.seek(self.link)
        self.file.write(struct.pack("<Q", place))
        self.link = place + length - 8
        self.file.seek(0, io.SEEK_END)


def table(tiff, blocks, level, width, height):
    """Where the tiles of a level lie."""
    columns, rows = -(-width // TILE), -(-height // TILE)
    size = BLOCK >> level
    for row in range(rows):
        for column in range(columns):
            if size >= TILE:  # a part of one block
                across = size // TILE
                key = blocks.key(row // across, column // across)
                y, x = row % across * TILE, column % across * TILE
                name = (level, key, y, x) if key else None
                yield tiff.tile(name, lambda: blocks.pixels(level, key)[y : y + TILE, x : x + TILE])
            else:  # several blocks
                across = TILE // size
                keys = tuple(tuple(blocks.key(row * across + j, column * across + i) for i in range(across)) for j in range(across))
                name = (level, keys) if any(any(line) for line in keys) else None
                yield tiff.tile(name, lambda: np.vstack([np.hstack([blocks.pixels(level, key) for key in line]) for line in keys]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("source")
    parser.add_argument("size")
    parser.add_argument("--tissue", type=float, default=0.36)
    parser.add_argument("--mpp", type=float, default=0.25)
    parser.add_argument("--distinct", action="store_true")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    tissue = tissue_blocks(-(-width // BLOCK), -(-height // BLOCK), arguments.tissue)
    blocks = Blocks(arguments.source, tissue, arguments.distinct)
    partial = arguments.out.with_name(arguments.out.name + ".part")
    with partial.open("wb") as file:
        tiff = BigTiff(file)
        level, size = 0, (width, height)
        while True:
            header = f"Aperio Image Library v12.0.0\r\n{width}x{height} [0,0 {width}x{height}] ({TILE}x{TILE})"
            if level == 0:
                description = f"{header} JPEG/RGB Q={QUALITY}|AppMag = {round(10 / arguments.mpp)}|MPP = {arguments.mpp}"
            else:
                description = f"{header} -> {size[0]}x{size[1]} JPEG/RGB Q={QUALITY}"
            tiff.page(*size, list(table(tiff, blocks, level, *size)), description, min(level, 1))
            if max(size) <= COARSEST:
                break
            level, size = level + 1, (size[0] // 2, size[1] // 2)
    partial.rename(arguments.out)
    print(f"{arguments.out}: {width} x {height} pixels in {level + 1} levels, {tissue.mean():.1%} tissue, {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
