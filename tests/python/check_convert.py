#!/usr/bin/env python3
"""Checks an image that `microtome convert` wrote, with other people's programs: says what it checked and exits 0, or what is wrong and exits 1.

    python check_convert.py STORE SLIDE [--format 0.5|0.4] [--reduction mean|mode|nearest|max] [...]

STORE is a folder, or a ZIP archive. SLIDE is what it was made from: read by tifffile (.tif, .tiff), by zarr-python (a folder or .zip with
OME-Zarr), else by OpenSlide.

- zarr-python 3 opens the group and every level, and decodes every chunk;
- ome-zarr-models accepts the metadata without a warning, and so do the official JSON schemas, strict, where they are given (the folders
  `ngff-0.4` and `ngff-0.5`: in --schemas, or in $MICROTOME_DATA/ngff); ome-zarr-py opens what lies in a folder and sees the same levels;
- level 0 is the slide's, sample by sample, or nowhere further from it than --tolerance, and in the mean no further than --mean-tolerance;
- every other level is, sample by sample, the reduction of the level before it, computed here; with --levels-source it is the slide's own where
  that has one of the same size;
- sizes, scale, translation, units, names and colours of the channels and the pictures that travel along are what they should be;
- chunks and shards have the size that was asked for, and no chunk of nothing but zeros is stored.

With --prove the check is tried on damaged copies of the store, all of which it must refuse. STORE is then a folder.
"""

import argparse
import base64
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
import warnings

import numpy as np
import zarr


class Fault(Exception):
    """What is wrong, as a sentence."""


def require(condition, sentence):
    if not condition:
        raise Fault(sentence)


# ---- the slide, read by others


def is_zarr(path):
    return path.suffix == ".zip" or path.is_dir() and any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs"))


def channels_first(pixels, axes):
    """Axes c, y, x of an array with the axes named; axes of length 1 besides those are dropped."""
    axes = axes.lower().replace("s", "c")
    if axes.count("c") == 2:  # OME-TIFF: channels of several samples, which follow each other
        c, s = axes.index("c"), axes.rindex("c")
        pixels = np.moveaxis(pixels, (c, s), (0, 1))
        pixels = pixels.reshape(-1, *pixels.shape[2:])
        axes = "c" + axes.replace("c", "")
    for axis in range(len(axes) - 1, -1, -1):
        if axes[axis] not in "cyx":
            require(pixels.shape[axis] == 1, f"the slide has {pixels.shape[axis]} planes along {axes[axis]}")
            pixels, axes = np.take(pixels, 0, axis), axes[:axis] + axes[axis + 1 :]
    if "c" not in axes:
        pixels, axes = pixels[None], "c" + axes
    return np.transpose(pixels, [axes.index(axis) for axis in "cyx"])


def slide_levels(path):
    """The levels of the slide: for each its size as (height, width), and a function that reads it, axes c, y, x."""
    if is_zarr(path):
        group = zarr.open_group(str(path), mode="r")
        multiscale = (group.attrs.get("ome") or group.attrs)["multiscales"][0]
        axes = "".join(axis if isinstance(axis, str) else axis["name"] for axis in multiscale.get("axes", "tczyx"))
        arrays = [group[dataset["path"]] for dataset in multiscale["datasets"]]
        sizes = [(array.shape[axes.index("y")], array.shape[axes.index("x")]) for array in arrays]
        return [(size, lambda array=array: channels_first(array[...], axes)) for size, array in zip(sizes, arrays)]
    if path.suffix in (".tif", ".tiff"):
        import tifffile

        levels = tifffile.TiffFile(path).series[0].levels
        sizes = [(level.shape[level.axes.index("Y")], level.shape[level.axes.index("X")]) for level in levels]
        return [(size, lambda level=level: channels_first(level.asarray(), level.axes)) for size, level in zip(sizes, levels)]
    import openslide

    slide = openslide.OpenSlide(path)

    def read(number):
        region = slide.read_region((0, 0), number, slide.level_dimensions[number])
        return np.moveaxis(np.asarray(region.convert("RGB")), -1, 0)

    return [((height, width), lambda number=number: read(number)) for number, (width, height) in enumerate(slide.level_dimensions)]


# ---- the levels, computed


def blocks(level):
    """The four pixels under each one of the next level, as an axis of their own. An odd edge stands twice for itself."""
    _, height, width = level.shape
    padded = np.pad(level, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    return np.stack([padded[:, y::2, x::2] for y in (0, 1) for x in (0, 1)])


def mean(level):
    """Rounded half up."""
    return ((blocks(level).astype(np.uint32).sum(axis=0) + 2) // 4).astype(level.dtype)


def mode(level):
    """The most frequent sample of each channel, the lowest of several: no idea is shared with the writer, which sorts."""
    four = blocks(level).astype(np.int64)
    count = (four[:, None] == four[None, :]).sum(axis=1)
    return np.where(count == count.max(axis=0), four, np.iinfo(np.int64).max).min(axis=0).astype(level.dtype)


def nearest(level):
    return level[:, ::2, ::2]


def highest(level):
    return blocks(level).max(axis=0)


REDUCTIONS = {"mean": mean, "mode": mode, "nearest": nearest, "max": highest}


# ---- metadata, judged by others


def check_schemas(version, attributes, folder):
    import jsonschema
    import referencing

    schemas = [json.loads(path.read_text()) for path in sorted((folder / f"ngff-{version}/schemas").glob("*.schema"))]
    require(schemas, f"there are no schemas in {folder}/ngff-{version}/schemas")
    registry = referencing.Registry().with_resources(
        (schema["$id"], referencing.Resource.from_contents(schema, referencing.jsonschema.DRAFT202012)) for schema in schemas
    )
    schema = next(schema for schema in schemas if schema["$id"].endswith("/strict_image.schema"))
    for error in jsonschema.Draft202012Validator(schema, registry=registry).iter_errors(attributes):
        raise Fault(f"strict_image.schema of {version}: {error.message} at {error.json_path}")
    print(f"the strict JSON schemas of {version} accept it")


def check_models(version, group):
    if version == "0.5":
        from ome_zarr_models.v05.image import Image
    else:
        from ome_zarr_models.v04.image import Image
    # A warning is a finding, too: it stands for a SHOULD of the specification.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # files of slides that are no longer wanted
        try:
            Image.from_zarr(group)
        except Exception as error:  # whatever it raises is what it found
            raise Fault(f"ome-zarr-models: {error}") from error
    print("ome-zarr-models accepts it")


def check_ome_zarr_py(version, path, levels, names):
    import ome_zarr
    from ome_zarr.format import FormatV04, FormatV05
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    location = parse_url(str(path), fmt=FormatV05() if version == "0.5" else FormatV04())
    require(location is not None, "ome-zarr-py sees no store")
    nodes = list(Reader(location)())
    require(nodes, "ome-zarr-py finds no image")
    seen = [tuple(data.shape) for data in nodes[0].data]
    require(seen == [level.shape for level in levels], f"ome-zarr-py sees levels of {seen}")
    for number, (data, level) in enumerate(zip(nodes[0].data, levels)):
        require(np.array_equal(np.asarray(data), level), f"ome-zarr-py reads other pixels than zarr-python at level {number}")
    seen = nodes[0].metadata.get("channel_names")
    require(seen == names, f"ome-zarr-py names the channels {seen}")
    print(f"ome-zarr-py {ome_zarr.__version__} reads the same levels and channels")


# ---- the store


def close(a, b, relative):
    return len(a) == len(b) and all(abs(p - q) <= relative * max(abs(p), abs(q), 1e-3) for p, q in zip(a, b))


def compare(what, level, wanted, tolerance, mean_tolerance):
    require(level.shape == wanted.shape, f"{what} has the shape {level.shape}, not {wanted.shape}")
    require(level.dtype == wanted.dtype, f"{what} has the type {level.dtype}, not {wanted.dtype}")
    distance = np.abs(level.astype(np.int64) - wanted)
    if distance.max(initial=0) > tolerance:
        wrong = np.argwhere(distance > tolerance)
        c, y, x = wrong[0]
        raise Fault(
            f"{what}: {len(wrong)} samples are off by more than {tolerance}, the first at channel {c}, row {y}, column {x}: "
            f"{level[c, y, x]}, not {wanted[c, y, x]}"
        )
    require(distance.mean() <= mean_tolerance, f"{what} is off by {distance.mean():.4f} in the mean, more than {mean_tolerance}")
    return f"largest difference {distance.max(initial=0)}, mean {distance.mean():.4f}"


def check_transformations(n, dataset, finest, reduction):
    transformations = dataset["coordinateTransformations"]
    kinds = [transformation["type"] for transformation in transformations]
    require(kinds == ["scale", "translation"], f"level {n}: the transformations are {kinds}")
    scale, shift = transformations[0]["scale"], transformations[1]["translation"]
    # A resolution goes through a fraction in a TIFF; between levels there is no such step.
    relative = 1e-6 if n == 0 else 1e-12
    wanted = [1, *(s * 2**n for s in finest["scale"])]
    require(close(scale, wanted, relative), f"level {n}: the scale is {scale}, not {wanted}")
    # The centre of the first pixel moves by (2^n - 1) / 2 pixels of level 0, unless it is the first pixel of level 0.
    pixels = 0 if reduction == "nearest" else (2**n - 1) / 2
    wanted = [0, *(t + s * pixels for s, t in zip(finest["scale"], finest["translation"]))]
    require(close(shift, wanted, relative), f"level {n}: the translation is {shift}, not {wanted}")
    if n == 0:
        finest.update(scale=scale[1:], translation=shift[1:])
    return scale


def check_chunks(n, array, arguments):
    chunks, shards = array.chunks, array.shards
    require(chunks[0] == 1, f"level {n}: a chunk holds {chunks[0]} channels")
    require(chunks[1:] == (arguments.chunk,) * 2, f"level {n}: a chunk has {chunks[1:]} pixels, not {arguments.chunk}")
    if arguments.format == "0.4":
        require(array.metadata.zarr_format == 2, f"level {n} is not Zarr version 2")
        require(array.metadata.dimension_separator == "/", f"level {n}: chunks are not in nested folders")
        return
    require(array.metadata.zarr_format == 3, f"level {n} is not Zarr version 3")
    require(array.metadata.dimension_names == ("c", "y", "x"), f"level {n}: the dimensions are {array.metadata.dimension_names}")
    wanted = (array.shape[0], arguments.shard, arguments.shard)
    require(shards == wanted, f"level {n}: a shard has {shards} samples, not {wanted}")


def check_stored(root, n, array, level, arguments):
    """Chunk files, of 0.5 shard files, are there where there is something, and nowhere else."""
    side = arguments.chunk if arguments.format == "0.4" else arguments.shard
    prefix = root / str(n) / ("" if arguments.format == "0.4" else "c")
    files = {tuple(int(part) for part in path.relative_to(prefix).parts) for path in prefix.rglob("*") if path.is_file() and not path.name.startswith(".") and path.name != "zarr.json"}
    wanted = set()
    for y in range(0, level.shape[1], side):
        for x in range(0, level.shape[2], side):
            block = level[:, y : y + side, x : x + side]
            place = y // side, x // side
            if arguments.format == "0.4":
                wanted |= {(c, *place) for c in range(level.shape[0]) if block[c].any()}
            elif block.any():
                wanted.add((0, *place))
    require(files == wanted, f"level {n}: {sorted(files - wanted)[:5]} are stored and should not be, {sorted(wanted - files)[:5]} are not")
    return len(files)


def check_channels(omero, dtype, count, names, colors):
    channels = omero["channels"]
    require(len(channels) == count, f"{len(channels)} channels are described, and there are {count}")
    top = np.iinfo(dtype).max
    for channel in channels:
        require(re.fullmatch("[0-9A-F]{6}", channel["color"]), f"the colour of {channel['label']!r} is {channel['color']!r}")
        window = channel["window"]
        require(0 == window["min"] <= window["start"] < window["end"] <= window["max"] <= top, f"the window of {channel['label']!r} is {window}")
    labels = [channel["label"] for channel in channels]
    require(names is None or labels == names, f"the channels are called {labels}, not {names}")
    shown = [channel["color"] for channel in channels]
    if colors is None and count == 3:
        colors = ["FF0000", "00FF00", "0000FF"]
    require(colors is None or shown == colors, f"the channels have the colours {shown}, not {colors}")
    print(f"channels {[(channel['label'], channel['color']) for channel in channels]}")
    return labels


def check(arguments):
    path, slide = pathlib.Path(arguments.store), pathlib.Path(arguments.slide)
    archived = path.suffix == ".zip"
    require(path.is_file() if archived else path.is_dir(), "there is no store")
    group = zarr.open_group(zarr.storage.ZipStore(str(path), mode="r") if archived else str(path), mode="r")
    version = arguments.format
    require(group.metadata.zarr_format == (3 if version == "0.5" else 2), f"the group is of Zarr version {group.metadata.zarr_format}")
    attributes = group.attrs.asdict()
    ome = attributes["ome"] if version == "0.5" else attributes
    multiscale = ome["multiscales"][0]
    require((ome if version == "0.5" else multiscale).get("version") == version, f"the version is not {version}")
    check_models(version, group)
    if arguments.schemas is None:
        print("SKIPPED: no JSON schemas of OME-NGFF given")
    else:
        check_schemas(version, attributes, arguments.schemas)

    axes = multiscale["axes"]
    require([(axis["name"], axis["type"]) for axis in axes] == [("c", "channel"), ("y", "space"), ("x", "space")], f"the axes are {axes}")
    units = [axis.get("unit") for axis in axes]
    unit = "micrometer" if arguments.expect_mpp else None
    require(units == [None, unit, unit], f"the units are {units}")
    require(multiscale["type"] == arguments.reduction, f"the method is {multiscale['type']!r}")
    about = multiscale["metadata"]
    require(about.get("version") and about.get("method"), f"the metadata do not say program and method: {about}")
    require(isinstance(attributes.get("microtome"), dict), "the attribute 'microtome' is missing")

    # Where level 0 lies: of a part of a level that is d times as coarse, pixel x is centred at (x + 0.5) d - 0.5 pixels of the slide.
    levels_there = slide_levels(slide)
    (height0, width0), (height, width) = levels_there[0][0], levels_there[arguments.level][0]
    x, y, w, h = arguments.rect or (0, 0, width, height)
    downsample = height0 / height, width0 / width
    mpp = arguments.expect_mpp or (1.0, 1.0)
    pixel = [d * m for d, m in zip(downsample, (mpp[-1], mpp[0]))]
    corner = [((at + 0.5) * d - 0.5) * m for at, d, m in zip((y, x), downsample, (mpp[-1], mpp[0]))]
    finest = {"scale": pixel, "translation": corner}

    stored, levels = 0, []
    datasets = multiscale["datasets"]
    for n, dataset in enumerate(datasets):
        require(dataset["path"] == str(n), f"level {n} lies at {dataset['path']!r}")
        array = group[dataset["path"]]
        check_chunks(n, array, arguments)
        level = array[...]
        scale = check_transformations(n, dataset, finest, arguments.reduction)
        if n == 0:
            wanted = levels_there[arguments.level][1]()[:, y : y + h, x : x + w]
            said = compare("level 0 beside the slide", level, wanted, arguments.tolerance, arguments.mean_tolerance)
        else:
            own = next((read for size, read in levels_there[1:] if size == level.shape[1:]), None) if arguments.levels_source else None
            wanted = own() if own else REDUCTIONS[arguments.reduction](levels[-1])
            bounds = (arguments.tolerance, arguments.mean_tolerance) if own else (0, 0)
            said = compare(f"level {n}, " + ("the slide's own," if own else f"{arguments.reduction} of level {n - 1},"), level, wanted, *bounds)
            said = ("the slide's own, " if own else f"{arguments.reduction} of the level before, ") + said
        if not archived:
            stored += check_stored(path, n, array, level, arguments)
        print(f"level {n}: {level.shape[2]} x {level.shape[1]} x {level.shape[0]} {level.dtype}, scale y {scale[1]} x {scale[2]}: {said}")
        levels.append(level)
    if arguments.levels is not None:
        require(len(levels) == arguments.levels, f"there are {len(levels)} levels, not {arguments.levels}")
    else:
        longest = [max(level.shape[1:]) for level in levels]
        require(longest[-1] <= arguments.chunk and all(side > arguments.chunk for side in longest[:-1]), f"levels end at {longest}")
    names = check_channels(ome["omero"], levels[0].dtype, levels[0].shape[0], arguments.channels, arguments.colors)
    check_pictures(group, slide, arguments)
    check_profile(attributes["microtome"], arguments.profile)
    text = json.dumps(attributes)
    require(slide.name not in text, f"the metadata name the slide's file, which can be a patient's name: {slide.name}")
    if archived:
        print("SKIPPED: ome-zarr-py reads no ZIP archives")
    else:
        print(f"{stored} files of chunks, none of nothing")
        check_ome_zarr_py(version, path, levels, names)
    print(f"{path.name}: OME-Zarr {version} of {len(levels)} levels is what {slide.name} should become")


def check_pictures(group, slide, arguments):
    """The pictures that travel along, which are images of their own: no others, and such as OpenSlide shows where it reads the slide."""
    there = sorted(name for name, _ in group["associated"].groups()) if "associated" in group else []
    require(there == sorted(arguments.pictures), f"the pictures that travel along are {there}, not {sorted(arguments.pictures)}")
    if not there:
        return
    import openslide

    pictures = openslide.OpenSlide(slide).associated_images
    for name in there:
        picture = group[f"associated/{name}"]
        check_models(arguments.format, picture)
        attributes = picture.attrs.asdict()
        if arguments.schemas is not None:
            check_schemas(arguments.format, attributes, arguments.schemas)
        levels = [picture[dataset["path"]][...] for dataset in (attributes.get("ome") or attributes)["multiscales"][0]["datasets"]]
        wanted = np.moveaxis(np.asarray(pictures[name].convert("RGB")), -1, 0)
        said = compare(f"the picture {name!r}", levels[0], wanted, 0, 0)
        for n, level in enumerate(levels[1:], 1):
            compare(f"level {n} of the picture {name!r}", level, mean(levels[n - 1]), 0, 0)
        print(f"the picture {name!r}, {levels[0].shape[2]} x {levels[0].shape[1]}, {len(levels)} levels: {said}")


def check_profile(attributes, path):
    """The colour profile is that of the TIFF, or there is none."""
    kept = attributes.get("icc_profile")
    if path is None:
        require(kept is None, "there is a colour profile, and none is expected")
        return
    import tifffile

    wanted = tifffile.TiffFile(path).pages[0].tags["InterColorProfile"].value
    require(kept is not None and base64.b64decode(kept, validate=True) == wanted, "the colour profile is not the slide's")
    print(f"the colour profile is kept, {len(wanted)} bytes")


# ---- the check, checked


def edit(name, change):
    """A damage of the metadata of the group."""

    def damage(root, version):
        path = root / ("zarr.json" if version == "0.5" else ".zattrs")
        document = json.loads(path.read_text())
        attributes = document["attributes"] if version == "0.5" else document
        change(attributes["ome"] if version == "0.5" else attributes)
        path.write_text(json.dumps(document))

    damage.__name__ = name
    return damage


def sample(n):
    """A damage of one sample of a level, counted from the end if negative."""

    def damage(root, _):
        group = zarr.open_group(str(root), mode="r+")
        names = sorted((name for name in group.array_keys() if name.isdigit()), key=int)
        array = group[names[n]]
        array[0, -1, -1] = int(array[0, -1, -1]) ^ 32

    damage.__name__ = f"a sample of level {n}"
    return damage


def lost_chunk(root, version):
    folder = root / "0" / ("c" if version == "0.5" else "")
    next(path for path in sorted(folder.rglob("*")) if path.is_file() and path.name[0].isdigit()).unlink()


def torn_chunk(root, version):
    folder = root / "0" / ("c" if version == "0.5" else "")
    path = next(path for path in sorted(folder.rglob("*")) if path.is_file() and path.name[0].isdigit())
    path.write_bytes(path.read_bytes()[:-7])


def lost_level(root, _):
    shutil.rmtree(root / "1")


def transform(level, kind, factor, offset):
    def change(ome):
        transformations = ome["multiscales"][0]["datasets"][level]["coordinateTransformations"]
        values = next(t for t in transformations if t["type"] == kind)[kind]
        values[-1] = values[-1] * factor + offset

    return edit(f"{kind} of level {level}", change)


DAMAGES = [
    sample(0),
    sample(-1),
    lost_chunk,
    torn_chunk,
    lost_level,
    transform(0, "scale", 1.001, 0),
    transform(1, "scale", 1.001, 0),
    transform(1, "translation", 1, 0.01),
    edit("a level unlisted", lambda ome: ome["multiscales"][0]["datasets"].pop()),
    edit("the unit of an axis", lambda ome: ome["multiscales"][0]["axes"][1].update(unit="nanometer")),
    edit("the axes in another order", lambda ome: ome["multiscales"][0]["axes"].reverse()),
    edit("the method", lambda ome: ome["multiscales"][0].update(type="gaussian")),
    edit("no name", lambda ome: ome["multiscales"][0].pop("name")),
    edit("a channel too few", lambda ome: ome["omero"]["channels"].pop()),
    edit("a colour", lambda ome: ome["omero"]["channels"][0].update(color="red")),
    edit("a window", lambda ome: ome["omero"]["channels"][0]["window"].pop("end")),
]


def prove(arguments):
    """Every damage is noticed."""
    root = pathlib.Path(arguments.store)
    for damage in DAMAGES:
        if arguments.schemas is None and damage.__name__ == "no name":
            continue  # only the strict schema asks for one
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder) / root.name
            shutil.copytree(root, copy)
            damage(copy, arguments.format)
            arguments.store = copy
            output, sys.stdout = sys.stdout, open(os.devnull, "w")
            try:
                check(arguments)
                found = None
            except Fault as fault:
                found = str(fault)
            except Exception as error:  # zarr-python's own way of refusing a store
                found = f"{type(error).__name__}: {error}"
            finally:
                sys.stdout.close()
                sys.stdout = output
        require(found, f"a damage is not noticed: {damage.__name__}")
        print(f"noticed: {damage.__name__}: {found[:150]}")


def numbers(text):
    return tuple(float(part) for part in text.split(","))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("slide")
    parser.add_argument("--format", choices=("0.5", "0.4"), default="0.5")
    parser.add_argument("--reduction", choices=sorted(REDUCTIONS), default="mean")
    parser.add_argument("--level", type=int, default=0, help="the level of the slide that level 0 is")
    parser.add_argument("--rect", type=lambda text: tuple(map(int, text.split(","))), help="the part of it: left, top, width, height")
    parser.add_argument("--levels", type=int, help="how many there are; else until the longer side fits into a chunk")
    parser.add_argument("--levels-source", action="store_true")
    parser.add_argument("--tolerance", type=int, default=0)
    parser.add_argument("--mean-tolerance", type=float, default=0.0)
    parser.add_argument("--expect-mpp", type=numbers, help="micrometres per pixel of the slide's level 0: one number, or x,y")
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--shard", type=int, default=1024)
    parser.add_argument("--channels", type=lambda text: text.split(","), help="their names")
    parser.add_argument("--colors", type=lambda text: text.split(","), help="their colours; of three else red, green and blue")
    parser.add_argument("--pictures", type=lambda text: text.split(","), default=[], help="names of the pictures that travel along; else none")
    data = os.environ.get("MICROTOME_DATA")
    schemas = pathlib.Path(data) / "ngff" if data else None
    parser.add_argument("--schemas", type=pathlib.Path, default=schemas if schemas and schemas.is_dir() else None)
    parser.add_argument("--profile", help="a TIFF whose colour profile is to be kept")
    parser.add_argument("--prove", action="store_true")
    arguments = parser.parse_args()
    try:
        check(arguments)
        if arguments.prove:
            prove(arguments)
    except Fault as fault:
        sys.exit(f"{arguments.store}: {fault}")


if __name__ == "__main__":
    main()
