#!/usr/bin/env python3
"""Checks a store of labels or of a picture with other people's programs: says what it checked and exits 0, or says what is wrong and exits 1.

    python check_store.py STORE [--expect-mpp F] [--size WxH] [--format 0.5|0.4] [--image IMAGE] [--schemas FOLDER]

Needs: pip install zarr numpy ome-zarr-models jsonschema

- zarr-python 3 opens the group and every level, and decodes every chunk;
- ome-zarr-models accepts the metadata, and so do the official JSON schemas where they are given (the folder that holds
  ngff-0.5/schemas and ngff-0.4/schemas: with --schemas, or in $MICROTOME_DATA/ngff);
- with --image the store is a label of that image: listed, in its version, with as many levels where its size allows, and over its area;
- every level is, pixel for pixel, the majority of the level below it, or of a picture its mean, rounded half up;
- scale, translation, axes, colours and the names of the classes or channels are what they should be.
"""

import argparse
import json
import os
import pathlib
import re
import sys
import warnings

import numpy as np
import zarr


class Fault(Exception):
    """What is wrong, as a sentence."""


def require(condition, sentence):
    if not condition:
        raise Fault(sentence)


def majority(level):
    """The next level: of each 2 x 2 pixels that exist the most frequent label, the lowest of several.

    A pixel with as many equals as any other in its block is a winner, so the lowest label among the winners is the answer; this
    shares no idea with the counting in the writer. Pixels beyond an odd edge do not exist.
    """
    height, width = level.shape
    half = ((height + 1) // 2, (width + 1) // 2)
    nothing = np.iinfo(np.int64).max
    padded = np.full((2 * half[0], 2 * half[1]), nothing, np.int64)
    padded[:height, :width] = level
    block = np.stack([padded[y::2, x::2] for y in (0, 1) for x in (0, 1)])
    equals = (block[:, None] == block[None, :]).sum(axis=1)
    equals[block == nothing] = 0
    return np.where(equals == equals.max(axis=0), block, nothing).min(axis=0)


def mean(level):
    """The next level: of each 2 x 2 pixels that exist the mean of each channel, rounded half up. Axes c, y, x."""
    channels, height, width = level.shape
    half = ((height + 1) // 2, (width + 1) // 2)
    sums = np.zeros((channels, *half), np.int64)
    counts = np.zeros(half, np.int64)
    for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
        part = level[:, y::2, x::2].astype(np.int64)
        sums[:, : part.shape[1], : part.shape[2]] += part
        counts[: part.shape[1], : part.shape[2]] += 1
    return (2 * sums + counts) // (2 * counts)


def check_schemas(attributes, folder, is_label):
    import jsonschema
    import referencing

    schemas = [json.loads(path.read_text()) for path in sorted(folder.glob("*.schema"))]
    registry = referencing.Registry().with_resources(
        (schema["$id"], referencing.Resource.from_contents(schema, referencing.jsonschema.DRAFT202012)) for schema in schemas
    )
    for name in ("strict_image.schema", "strict_label.schema")[: 2 if is_label else 1]:
        schema = next(schema for schema in schemas if schema["$id"].endswith("/" + name))
        validator = jsonschema.Draft202012Validator(schema, registry=registry)
        for error in validator.iter_errors(attributes):
            raise Fault(f"{name}: {error.message} at {error.json_path}")


def check_models(group, is_label, version):
    if version == "0.4":
        from ome_zarr_models.v04.image import Image
        from ome_zarr_models.v04.image_label import ImageLabel
    else:
        from ome_zarr_models.v05.image import Image
        from ome_zarr_models.v05.image_label import ImageLabel

    # A warning is a finding, too: it stands for a SHOULD of the specification.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            (ImageLabel if is_label else Image).from_zarr(group)
        except Exception as error:  # whatever it raises is what it found
            raise Fault(f"ome-zarr-models: {error}") from error


def close(a, b, relative=1e-6):
    return abs(a - b) <= relative * abs(b)


def check(arguments):
    root = pathlib.Path(arguments.store)
    version = "0.5" if (root / "zarr.json").is_file() else "0.4"
    require(arguments.format in (None, version), f"the version is {version}, not {arguments.format}")
    if version == "0.5":
        attributes = json.loads((root / "zarr.json").read_text())["attributes"]
        documents = ("zarr.json",)
        is_chunk = lambda parts: "c" in parts
    else:
        require((root / ".zgroup").is_file() and (root / ".zattrs").is_file(), "there is neither a zarr.json nor a .zgroup with .zattrs")
        attributes = json.loads((root / ".zattrs").read_text())
        documents = (".zgroup", ".zattrs", ".zarray")
        is_chunk = lambda parts: all(part.isdigit() for part in parts)
    strangers = []
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        # Labels are stores of their own.
        if path.is_file() and parts[0] != "labels" and path.name not in documents and not is_chunk(parts):
            strangers.append("/".join(parts))
    require(not strangers, f"there are files that no store has: {strangers}")

    group = zarr.open_group(str(root), mode="r")
    require(group.metadata.zarr_format == (3 if version == "0.5" else 2), f"the group is Zarr version {group.metadata.zarr_format}")
    ome = group.attrs["ome"] if version == "0.5" else group.attrs.asdict()
    stated = ome["version"] if version == "0.5" else ome["multiscales"][0]["version"]
    require(stated == version, f"the version is {stated}, not {version}")
    multiscale = ome["multiscales"][0]
    is_label = "image-label" in ome
    require(is_label != ("omero" in ome), "it is either labels or a picture with channels, and says both or neither")
    check_models(group, is_label, version)
    print("ome-zarr-models accepts it")
    if arguments.schemas is None:
        print("SKIPPED: no JSON schemas of OME-NGFF given")
    else:
        check_schemas(attributes, arguments.schemas / f"ngff-{version}/schemas", is_label)
        print("the strict JSON schemas accept it")

    axes = multiscale["axes"]
    names = ["y", "x"] if is_label else ["c", "y", "x"]
    require([axis["name"] for axis in axes] == names, f"the axes are {axes}, not {names}")
    require([axis["type"] for axis in axes] == (["channel"] if not is_label else []) + ["space"] * 2, f"the types of the axes are wrong: {axes}")
    units = {axis.get("unit") for axis in axes[-2:]}
    require(units in ({"micrometer"}, {None}), f"the units are {units}, not micrometer")
    if arguments.expect_mpp is not None:
        require(units == {"micrometer"}, "a resolution is expected, and the axes have no unit")

    below = below_scale = below_shift = None
    for n, dataset in enumerate(multiscale["datasets"]):
        array = group[dataset["path"]]
        require(np.issubdtype(array.dtype, np.unsignedinteger), f"level {n} has the type {array.dtype}")
        if version == "0.5":
            require(array.metadata.dimension_names == tuple(names), f"level {n}: the dimensions are {array.metadata.dimension_names}")
            require(array.shards is not None, f"level {n} has no shards")
            require(all(s % c == 0 for s, c in zip(array.shards, array.chunks)), f"level {n}: shards are not made of whole chunks")
        else:
            require(array.metadata.dimension_separator == "/", f"level {n}: chunks are not in nested folders")
            require(array.attrs["_ARRAY_DIMENSIONS"] == names, f"level {n}: the dimensions are {array.attrs['_ARRAY_DIMENSIONS']}")
        transformations = dataset["coordinateTransformations"]
        kinds = [transformation["type"] for transformation in transformations]
        require(kinds == ["scale", "translation"], f"level {n}: the transformations are {kinds}")
        scale, shift = transformations[0]["scale"], transformations[1]["translation"]
        level = array[:]
        if not is_label:
            require(array.chunks[0] == 1, f"level {n}: a chunk holds {array.chunks[0]} channels")
            if version == "0.5":
                require(array.shards[0] == level.shape[0], f"level {n}: a shard holds {array.shards[0]} of {level.shape[0]} channels")
            require((scale.pop(0), shift.pop(0)) == (1, 0), f"level {n}: channels are scaled or moved")
        if n == 0:
            if arguments.size is not None:
                require(level.shape[:-3:-1] == arguments.size, f"level 0 has {level.shape} rows and columns, not the size expected")
            if arguments.expect_mpp is not None:
                for name, value in zip("yx", scale):
                    require(close(value, arguments.expect_mpp), f"level 0 has {value} micrometres per pixel along {name}, not {arguments.expect_mpp}")
            elif units == {None}:
                require(scale == [1, 1], f"the scale of level 0 is {scale}, and there is no unit")
        else:
            require(all(close(a, 2 * b) for a, b in zip(scale, below_scale)), f"level {n}: the scale {scale} is not twice {below_scale}")
            # The centre of the first pixel moves by half a pixel of the level below.
            expected = [t + s / 2 for t, s in zip(below_shift, below_scale)]
            require(all(close(a, b) for a, b in zip(shift, expected)), f"level {n}: the translation is {shift}, not {expected}")
            wanted = majority(below) if is_label else mean(below)
            require(level.shape == wanted.shape, f"level {n} has {level.shape} rows and columns, not {wanted.shape}")
            wrong = np.argwhere(level != wanted)
            if len(wrong):
                *channel, y, x = wrong[0]
                what, unit = ("majority", "pixels") if is_label else ("mean", "samples")
                raise Fault(
                    f"level {n} is no {what} of level {n - 1}: {len(wrong)} {unit} differ, the first at row {y}, column {x}: "
                    f"{level[(*channel, y, x)]} of {below[(*channel, slice(2 * y, 2 * y + 2), slice(2 * x, 2 * x + 2))].tolist()}"
                )
        values = f"labels {np.unique(level).tolist()[:20]}" if is_label else f"means of the channels {level.mean(axis=(1, 2)).round(2).tolist()[:20]}"
        print(f"level {n}: {level.shape[-1]} x {level.shape[-2]}, scale y {scale[0]} x {scale[1]}, {values}")
        below, below_scale, below_shift = level, scale, shift
        if n == 0:
            finest = level

    method = "mode" if is_label else "mean"
    require(multiscale["type"] == method, f"the method is {multiscale['type']!r}, not {method!r}")
    require(isinstance(attributes.get("microtome"), dict), "the attribute 'microtome' is missing")
    if is_label:
        check_classes(ome["image-label"], {int(label) for label in np.unique(finest)}, version)
    else:
        check_channels(ome["omero"]["channels"], finest)
    if arguments.image is not None:
        check_place(root, arguments.image, version, multiscale, finest.shape)


def check_place(root, image, version, multiscale, shape):
    """A label belongs to its image, is found by it, and lies on it."""
    require(root.resolve().parent == (image / "labels").resolve(), "the label does not lie in the image's labels")
    host = zarr.open_group(str(image), mode="r")
    get = lambda group: group.attrs["ome"] if version == "0.5" else group.attrs.asdict()
    require(root.name in get(host["labels"])["labels"], f"the label is not listed: {get(host['labels'])['labels']}")
    label = get(zarr.open_group(str(root), mode="r"))["image-label"]
    require(label["source"]["image"] == "../../", f"the source is {label['source']}")
    require((root / label["source"]["image"]).resolve() == image.resolve(), "the source is not the image")
    theirs = get(host)["multiscales"][0]
    wanted = min(len(theirs["datasets"]), int(np.ceil(np.log2(max(shape)))) + 1)
    require(len(multiscale["datasets"]) == wanted, f"there are {len(multiscale['datasets'])} levels, not {wanted}")
    units = [[axis.get("unit") for axis in of["axes"][-2:]] for of in (multiscale, theirs)]
    require(units[0] == units[1], f"the units of label and image are {units}")

    def area(of, size):
        steps = {step["type"]: step[step["type"]] for step in of["datasets"][0]["coordinateTransformations"]}
        shift = steps.get("translation", [0] * len(of["axes"]))
        # From the outer edge of the first pixel to that of the last one.
        return [(t - s / 2, t - s / 2 + s * n) for s, t, n in zip(steps["scale"][-2:], shift[-2:], size[-2:])]

    ours, all_of_it = area(multiscale, shape), area(theirs, host[theirs["datasets"][0]["path"]].shape)
    pixel = multiscale["datasets"][0]["coordinateTransformations"][0]["scale"][-2:]
    for (a, b), (c, d), one in zip(ours, all_of_it, pixel):
        require(abs(a - c) < 1e-6 * one, f"the label begins at {a}, the image at {c}")
        require(abs(b - d) <= one, f"the label ends at {b}, the image at {d}")
    print(f"a label of {image.name}: {ours} on {all_of_it}")


def check_classes(label, labels, version):
    require(label.get("version") == version, "the image-label has no version")
    colors = {color["label-value"]: color["rgba"] for color in label["colors"]}
    names = {entry["label-value"]: entry["class"] for entry in label["properties"]}
    require(set(colors) == set(names), f"colours {sorted(colors)} and names {sorted(names)} are not of the same labels")
    require(labels <= set(colors), f"the labels {sorted(labels - set(colors))} have no colour")
    require(colors[0][3] == 0, "background is not transparent")
    visible = [tuple(rgba[:3]) for value, rgba in colors.items() if value]
    require(all(rgba[3] == 255 for value, rgba in colors.items() if value), "a class is transparent")
    print(f"classes {names}, {len(set(visible))} colours")


def check_channels(channels, level):
    require(len(channels) == level.shape[0], f"{len(channels)} channels are described, and there are {level.shape[0]}")
    top = np.iinfo(level.dtype).max
    for channel in channels:
        name, window = channel["label"], channel["window"]
        require(re.fullmatch("[0-9A-F]{6}", channel["color"]), f"the colour of {name!r} is {channel['color']!r}")
        require(window == {"min": 0, "max": top, "start": 0, "end": top}, f"the window of {name!r} is {window}")
    print(f"channels {[(channel['label'], channel['color']) for channel in channels]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--expect-mpp", type=float, help="micrometres per pixel of level 0")
    parser.add_argument("--size", type=lambda text: tuple(int(n) for n in text.split("x")), help="width x height of level 0")
    data = os.environ.get("MICROTOME_DATA")
    parser.add_argument("--format", help="the version that is expected")
    parser.add_argument("--image", type=pathlib.Path, help="the image in whose labels the store lies")
    schemas = pathlib.Path(data) / "ngff" if data else None
    parser.add_argument("--schemas", type=pathlib.Path, default=schemas if schemas and schemas.is_dir() else None)
    arguments = parser.parse_args()
    try:
        check(arguments)
    except Fault as fault:
        sys.exit(f"{arguments.store}: {fault}")


if __name__ == "__main__":
    main()
