#!/usr/bin/env python3
"""Checks a DeepZoom that `microtome preview` wrote, in OpenSlide's terms: says what it checked and exits 0, or what is wrong and exits 1.

    python check_deepzoom.py OUT.dzi SLIDE [--tile-size 254] [--overlap 1] [--tile-format jpg|png|webp] [...]

SLIDE is read by OpenSlide. Its `DeepZoomGenerator` says how many levels there are and how large, how many tiles, and how large each is with
its overlap: for each there must be a file of that size, and there must be no other. What the pixels should be is computed here, with numpy:
the highest level is the slide's level 0, or at most --tolerance from it (a decoder's business); each level before it is the mean of the 2 x 2 pixels
that exist, rounded half up. PNG tiles and lossless WebP tiles must be that exactly (with --tolerance: level by level from
the tiles' own highest level). JPEG tiles must be as near to it as Pillow's own of the same quality and chroma subsampling, up to --loss decibels.
With --copied, tiles of levels that the slide stores, in tiles of this size, must hold the same compressed bytes wherever they are whole; those at
the edges, and other levels, are judged as before.

With --prove the check is tried on damaged copies of the tiles, all of which it must refuse.
"""

import argparse
import io
import math
import pathlib
import shutil
import sys
import tempfile
import xml.etree.ElementTree

import numpy as np
import openslide
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image, JpegImagePlugin

NAMESPACE = "http://schemas.microsoft.com/deepzoom/2008"
SUBSAMPLINGS = {"4:4:4": 0, "4:2:0": 2}


class Fault(Exception):
    """What is wrong, as a sentence."""


def require(condition, sentence):
    if not condition:
        raise Fault(sentence)


def halve(level):
    """The mean of the pixels that exist, rounded half up. Axes y, x, samples."""
    height, width, _ = level.shape
    padded = np.pad(level, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge").astype(np.uint32)
    return ((padded[0::2, 0::2] + padded[1::2, 0::2] + padded[0::2, 1::2] + padded[1::2, 1::2] + 2) // 4).astype(np.uint8)


def check_description(path, slide, arguments):
    image = xml.etree.ElementTree.parse(path).getroot()
    require(image.tag == f"{{{NAMESPACE}}}Image", f"the root is {image.tag}")
    wanted = {"TileSize": str(arguments.tile_size), "Overlap": str(arguments.overlap)}
    for name, value in wanted.items():
        require(image.get(name) == value, f"{name} is {image.get(name)}, not {value}")
    size = image.find(f"{{{NAMESPACE}}}Size")
    require(size is not None, "there is no Size")
    width, height = slide.dimensions
    require((size.get("Width"), size.get("Height")) == (str(width), str(height)), f"the size is {size.attrib}, not {width} x {height}")
    extension = image.get("Format")
    require(extension in {"jpg": ("jpg", "jpeg"), "png": ("png",), "webp": ("webp",)}[arguments.tile_format], f"the format is {extension}")
    return extension


def place(column, row, size, arguments):
    """The part of a level that a tile shows, with its overlap: left, top, right, bottom."""
    step, overlap = arguments.tile_size, arguments.overlap
    low = [max(0, n * step - overlap) for n in (column, row)]
    high = [min(limit, (n + 1) * step + overlap) for n, limit in zip((column, row), size)]
    return (*low, *high)


def check_geometry(path, slide, extension, arguments):
    """Every tile is there, as large as OpenSlide says, and nothing else is. The levels, each with its tiles and their places."""
    generator = DeepZoomGenerator(slide, arguments.tile_size, arguments.overlap)
    folder = path.with_name(path.stem + "_files")
    levels = {entry.name for entry in folder.iterdir()}
    wanted = {str(level) for level in range(generator.level_count)}
    require(levels == wanted, f"the levels are {sorted(levels)}, and OpenSlide's {sorted(wanted)}")
    pyramid = []
    for level in range(generator.level_count):
        (columns, rows), size = generator.level_tiles[level], generator.level_dimensions[level]
        there = {entry.name for entry in (folder / str(level)).iterdir()}
        wanted = {f"{column}_{row}.{extension}" for row in range(rows) for column in range(columns)}
        require(there == wanted, f"level {level}: {sorted(wanted - there)[:5]} are missing, {sorted(there - wanted)[:5]} should not be there")
        tiles = []
        for row in range(rows):
            for column in range(columns):
                tile = folder / str(level) / f"{column}_{row}.{extension}"
                left, top, right, bottom = place(column, row, size, arguments)
                require(
                    (right - left, bottom - top) == generator.get_tile_dimensions(level, (column, row)),
                    f"{tile}: this check and OpenSlide do not agree on its size",
                )
                with Image.open(tile) as image:
                    kind = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}.get(image.format)
                    require(kind == arguments.tile_format, f"{tile} holds {image.format}")
                    require(image.size == (right - left, bottom - top), f"{tile} has {image.size} pixels, not {right - left} x {bottom - top}")
                    if kind == "jpg" and image.mode == "RGB":
                        sampling = JpegImagePlugin.get_sampling(image)
                        # Tiles that were copied keep what the slide has.
                        require(
                            sampling == SUBSAMPLINGS[arguments.subsampling] or arguments.copied,
                            f"{tile}: its chroma is subsampled in the way {sampling}",
                        )
                tiles.append((tile, (left, top, right, bottom)))
        pyramid.append((size, tiles))
    count = sum(len(tiles) for _, tiles in pyramid)
    require(count == generator.tile_count, f"there are {count} tiles, and {generator.tile_count} in OpenSlide")
    print(f"{count} tiles in {len(pyramid)} levels, each of the size that OpenSlide's DeepZoomGenerator says, and no other file")
    return pyramid


def decoded(tile):
    with Image.open(tile) as image:
        return np.asarray(image.convert("RGB"))


def assembled(size, tiles, arguments):
    """A level put together from its tiles without their overlaps."""
    width, height = size
    level = np.zeros((height, width, 3), np.uint8)
    step = arguments.tile_size
    for tile, (left, top, right, bottom) in tiles:
        column, row = (int(n) for n in tile.stem.split("_"))
        inner = column * step, row * step, min((column + 1) * step, width), min((row + 1) * step, height)
        pixels = decoded(tile)
        level[inner[1] : inner[3], inner[0] : inner[2]] = pixels[inner[1] - top : inner[3] - top, inner[0] - left : inner[2] - left]
    return level


def noise(pixels, wanted):
    """The mean square of the difference."""
    return float(((pixels.astype(np.int32) - wanted) ** 2).mean())


def pillows(wanted, arguments):
    """The pixels after Pillow has compressed them."""
    stream = io.BytesIO()
    Image.fromarray(wanted).save(stream, "JPEG", quality=arguments.quality, subsampling=SUBSAMPLINGS[arguments.subsampling])
    return decoded(stream)


def check_lossless(number, tiles, level):
    for tile, (left, top, right, bottom) in tiles:
        pixels, wanted = decoded(tile), level[top:bottom, left:right]
        if not np.array_equal(pixels, wanted):
            y, x, _ = np.argwhere(pixels != wanted)[0]
            raise Fault(f"level {number}, {tile.name}: row {y}, column {x} is {pixels[y, x]}, not {wanted[y, x]}")
    return "exact"


def check_lossy(number, tiles, level, arguments):
    """Each tile within `--loss` of Pillow's, in decibels."""
    worst = -math.inf
    for tile, (left, top, right, bottom) in tiles:
        wanted = np.ascontiguousarray(level[top:bottom, left:right])
        ours, theirs = noise(decoded(tile), wanted), noise(pillows(wanted, arguments), wanted)
        # Half a level of noise more than Pillow's counts for nothing: of flat tiles there is none in either.
        loss = 10 * math.log10((ours + 0.25) / (theirs + 0.25))
        require(loss <= arguments.loss, f"level {number}, {tile.name}: {loss:.2f} dB more noise than Pillow's ({ours:.2f}, {theirs:.2f})")
        worst = max(worst, loss)
    return f"at most {worst:.2f} dB more noise than Pillow's"


def scan(stream):
    """The compressed pixels of a JPEG stream: what follows its first start of scan, which names the components."""
    at = 2
    while stream[at + 1] != 0xDA:
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return stream[at:].removesuffix(b"\xff\xd9")


def stored_page(size, arguments):
    """The page of the slide, a TIFF, that is a level of this size in tiles as large as ours."""
    import tifffile

    for page in tifffile.TiffFile(arguments.slide).pages:
        if page.is_tiled and (page.imagewidth, page.imagelength, page.tilewidth, page.tilelength) == (*size, *(arguments.tile_size,) * 2):
            return page
    return None


def check_copied(number, page, tiles, slide, arguments):
    """Whole tiles hold the slide's own bytes, and look as OpenSlide shows them. Returns the rest."""
    level = slide.level_dimensions.index((page.imagewidth, page.imagelength))
    pixels = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"))
    across = -(-page.imagewidth // page.tilewidth)
    rest = []
    with open(arguments.slide, "rb") as file:
        for tile, box in tiles:
            left, top, right, bottom = box
            if (right - left, bottom - top) != (page.tilewidth, page.tilelength):
                rest.append((tile, box))
                continue
            column, row = (int(n) for n in tile.stem.split("_"))
            index = row * across + column
            file.seek(page.dataoffsets[index])
            stream = file.read(page.databytecounts[index])
            require(scan(stream) == scan(tile.read_bytes()), f"level {number}, {tile.name} does not hold the slide's bytes")
            distance = np.abs(decoded(tile).astype(np.int16) - pixels[top:bottom, left:right])
            require(distance.max() == 0, f"level {number}, {tile.name} looks other than in OpenSlide, by up to {distance.max()}")
    print(f"level {number}: {len(tiles) - len(rest)} of {len(tiles)} tiles hold the slide's own bytes")
    require(len(rest) < len(tiles), f"level {number}: no tile is whole, so that nothing could be copied")
    return rest


def check(arguments):
    path, slide = pathlib.Path(arguments.description), openslide.OpenSlide(arguments.slide)
    extension = check_description(path, slide, arguments)
    pyramid = check_geometry(path, slide, extension, arguments)
    level = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    lossless = arguments.tile_format != "jpg"
    if lossless and arguments.tolerance:
        # From here on the tiles' own highest level counts, which is as near to OpenSlide's as decoders are.
        own = assembled(*pyramid[-1], arguments)
        distance = np.abs(own.astype(np.int16) - level)
        require(distance.max() <= arguments.tolerance, f"the highest level is off by up to {distance.max()}, more than {arguments.tolerance}")
        print(f"the highest level differs from OpenSlide's by at most {distance.max()}, by {distance.mean():.4f} in the mean")
        level = own
    for number in range(len(pyramid) - 1, -1, -1):
        size, tiles = pyramid[number]
        if number < len(pyramid) - 1:
            level = halve(level)
        require(level.shape[1::-1] == tuple(size), f"level {number}: the mean has {level.shape}")
        page = stored_page(size, arguments) if arguments.copied else None
        require(page is not None or not arguments.copied or number < len(pyramid) - 1, "the slide does not store level 0 in such tiles")
        if page is not None:
            tiles = check_copied(number, page, tiles, slide, arguments)
        if not tiles:
            continue  # all of it was copied
        said = check_lossless(number, tiles, level) if lossless else check_lossy(number, tiles, level, arguments)
        print(f"level {number}: {size[0]} x {size[1]}, {len(tiles)} tiles, {said}")
    print(f"{path.name} is the DeepZoom of {pathlib.Path(arguments.slide).name}")


# ---- the check, checked


def tile_of(folder, level=None):
    levels = sorted((entry for entry in folder.iterdir()), key=lambda entry: int(entry.name))
    return sorted((levels[-1] if level is None else levels[level]).iterdir())[0]


def repainted(tile, change):
    with Image.open(tile) as image:
        pixels, options = np.asarray(image).copy(), {"subsampling": JpegImagePlugin.get_sampling(image)} if image.format == "JPEG" else {}
        kind = image.format
    options |= {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(change(pixels)).save(tile, kind, **options)


def painted_square(pixels):
    pixels[: max(1, len(pixels) // 8), : max(1, len(pixels) // 8)] ^= 64
    return pixels


def damaged_text(old, new):
    def damage(description, _):
        text = description.read_text()
        assert old in text, text
        description.write_text(text.replace(old, new))

    return damage


DAMAGES = {
    "a tile lost": lambda _, folder: tile_of(folder).unlink(),
    "a tile too many": lambda _, folder: shutil.copy(tile_of(folder), tile_of(folder).with_stem("99_99")),
    "a level lost": lambda _, folder: shutil.rmtree(folder / "3"),
    "a level too many": lambda _, folder: (folder / "99").mkdir(),
    "a tile cut": lambda _, folder: repainted(tile_of(folder), lambda pixels: pixels[:-1]),
    "a square painted over": lambda _, folder: repainted(tile_of(folder), painted_square),
    "a square painted over, coarse": lambda _, folder: repainted(tile_of(folder, -3), painted_square),
    "a tile shifted": lambda _, folder: repainted(tile_of(folder), lambda pixels: np.roll(pixels, 2, 1)),
    "another tile size": damaged_text('TileSize="', 'TileSize="1'),
    "another overlap": damaged_text('Overlap="', 'Overlap="1'),
    "another size": damaged_text('Width="', 'Width="1'),
}


def prove(arguments):
    """Every damage is noticed."""
    description = pathlib.Path(arguments.description)
    for name, damage in DAMAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder) / description.name
            shutil.copy(description, copy)
            files = copy.with_name(copy.stem + "_files")
            shutil.copytree(description.with_name(description.stem + "_files"), files)
            damage(copy, files)
            arguments.description = copy
            output, sys.stdout = sys.stdout, io.StringIO()
            try:
                check(arguments)
                found = None
            except Fault as fault:
                found = str(fault)
            finally:
                sys.stdout = output
        require(found, f"a damage is not noticed: {name}")
        print(f"noticed: {name}: {found[:150]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("description")
    parser.add_argument("slide")
    parser.add_argument("--tile-size", type=int, default=254)
    parser.add_argument("--overlap", type=int, default=1)
    parser.add_argument("--tile-format", choices=("jpg", "png", "webp"), default="jpg")
    parser.add_argument("--quality", type=int, default=90)
    parser.add_argument("--subsampling", choices=sorted(SUBSAMPLINGS), default="4:2:0")
    parser.add_argument("--tolerance", type=int, default=0, help="how far level 0 may be from OpenSlide's")
    parser.add_argument("--loss", type=float, default=1.0, help="decibels by which a JPEG tile may be noisier than Pillow's")
    parser.add_argument("--copied", action="store_true")
    parser.add_argument("--prove", action="store_true")
    arguments = parser.parse_args()
    try:
        check(arguments)
        if arguments.prove:
            prove(arguments)
    except Fault as fault:
        sys.exit(f"{arguments.description}: {fault}")


if __name__ == "__main__":
    main()
