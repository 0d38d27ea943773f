#!/usr/bin/env python3
"""Checks a label store with other people's programs: says what it checked and exits 0, or says what is wrong and exits 1.

    python check_store.py STORE [--expect-mpp F] [--size WxH] [--schemas FOLDER]

Needs: pip install zarr numpy ome-zarr-models jsonschema

- zarr-python 3 opens the group and every level, and decodes every chunk;
- ome-zarr-models accepts the metadata, and so do the official JSON schemas where they are given (the folder `schemas` of OME-NGFF 0.5:
  with --schemas, or in $MICROTOME_DATA/ngff/ngff-0.5);
- every level is, pixel for pixel, the majority of the level below it;
- scale, translation, axes, colours and the names of the classes are what they should be.
"""

import argparse
import json
import os
import pathlib
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


def check_schemas(document, folder):
    import jsonschema
    import referencing

    schemas = [json.loads(path.read_text()) for path in sorted(folder.glob("*.schema"))]
    registry = referencing.Registry().with_resources(
        (schema["$id"], referencing.Resource.from_contents(schema, referencing.jsonschema.DRAFT202012)) for schema in schemas
    )
    for name in ("strict_image.schema", "strict_label.schema"):
        schema = next(schema for schema in schemas if schema["$id"].endswith("/" + name))
        validator = jsonschema.Draft202012Validator(schema, registry=registry)
        for error in validator.iter_errors(document["attributes"]):
            raise Fault(f"{name}: {error.message} at {error.json_path}")


def check_models(group):
    from ome_zarr_models.v05.image_label import ImageLabel

    # A warning is a finding, too: it stands for a SHOULD of the specification.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            ImageLabel.from_zarr(group)
        except Exception as error:  # whatever it raises is what it found
            raise Fault(f"ome-zarr-models: {error}") from error


def close(a, b, relative=1e-6):
    return abs(a - b) <= relative * abs(b)


def check(arguments):
    root = pathlib.Path(arguments.store)
    require((root / "zarr.json").is_file(), "there is no zarr.json")
    document = json.loads((root / "zarr.json").read_text())
    strangers = [
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and path.name != "zarr.json" and "c" not in path.relative_to(root).parts
    ]
    require(not strangers, f"there are files that no store has: {strangers}")

    group = zarr.open_group(str(root), mode="r")
    require(group.metadata.zarr_format == 3, "the group is not Zarr version 3")
    ome = group.attrs["ome"]
    require(ome["version"] == "0.5", f"the version is {ome['version']}, not 0.5")
    multiscale = ome["multiscales"][0]
    check_models(group)
    print("ome-zarr-models accepts it")
    if arguments.schemas is None:
        print("SKIPPED: no JSON schemas of OME-NGFF given")
    else:
        check_schemas(document, arguments.schemas)
        print("the strict JSON schemas accept it")

    axes = multiscale["axes"]
    require([axis["name"] for axis in axes] == ["y", "x"], f"the axes are {axes}, not y and x")
    units = {axis.get("unit") for axis in axes}
    require(units in ({"micrometer"}, {None}), f"the units are {units}, not micrometer")
    if arguments.expect_mpp is not None:
        require(units == {"micrometer"}, "a resolution is expected, and the axes have no unit")

    below = below_scale = below_shift = None
    for n, dataset in enumerate(multiscale["datasets"]):
        array = group[dataset["path"]]
        require(np.issubdtype(array.dtype, np.unsignedinteger), f"level {n} has the type {array.dtype}")
        require(array.metadata.dimension_names == ("y", "x"), f"level {n}: the dimensions are {array.metadata.dimension_names}")
        require(array.shards is not None, f"level {n} has no shards")
        require(all(s % c == 0 for s, c in zip(array.shards, array.chunks)), f"level {n}: shards are not made of whole chunks")
        transformations = dataset["coordinateTransformations"]
        kinds = [transformation["type"] for transformation in transformations]
        require(kinds == ["scale", "translation"], f"level {n}: the transformations are {kinds}")
        scale, shift = transformations[0]["scale"], transformations[1]["translation"]
        level = array[:]
        if n == 0:
            if arguments.size is not None:
                require((level.shape[1], level.shape[0]) == arguments.size, f"level 0 has {level.shape} rows and columns, not the size expected")
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
            wanted = majority(below)
            require(level.shape == wanted.shape, f"level {n} has {level.shape} rows and columns, not {wanted.shape}")
            wrong = np.argwhere(level != wanted)
            if len(wrong):
                y, x = wrong[0]
                raise Fault(
                    f"level {n} is no majority of level {n - 1}: {len(wrong)} pixels differ, the first at row {y}, column {x}: "
                    f"{level[y, x]} of {below[2 * y:2 * y + 2, 2 * x:2 * x + 2].tolist()}"
                )
        print(f"level {n}: {level.shape[1]} x {level.shape[0]}, scale y {scale[0]} x {scale[1]}, labels {np.unique(level).tolist()[:20]}")
        below, below_scale, below_shift = level, scale, shift
        if n == 0:
            labels = {int(label) for label in np.unique(level)}

    label = ome["image-label"]
    require(label.get("version") == "0.5", "the image-label has no version")
    colors = {color["label-value"]: color["rgba"] for color in label["colors"]}
    names = {entry["label-value"]: entry["class"] for entry in label["properties"]}
    require(set(colors) == set(names), f"colours {sorted(colors)} and names {sorted(names)} are not of the same labels")
    require(labels <= set(colors), f"the labels {sorted(labels - set(colors))} have no colour")
    require(colors[0][3] == 0, "background is not transparent")
    visible = [tuple(rgba[:3]) for value, rgba in colors.items() if value]
    require(all(rgba[3] == 255 for value, rgba in colors.items() if value), "a class is transparent")
    require(multiscale["type"] == "mode", f"the method is {multiscale['type']!r}, not 'mode'")
    require(isinstance(document["attributes"].get("microtome"), dict), "the attribute 'microtome' is missing")
    print(f"classes {names}, {len(set(visible))} colours")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--expect-mpp", type=float, help="micrometres per pixel of level 0")
    parser.add_argument("--size", type=lambda text: tuple(int(n) for n in text.split("x")), help="width x height of level 0")
    data = os.environ.get("MICROTOME_DATA")
    schemas = pathlib.Path(data) / "ngff/ngff-0.5/schemas" if data else None
    parser.add_argument("--schemas", type=pathlib.Path, default=schemas if schemas and schemas.is_dir() else None)
    arguments = parser.parse_args()
    try:
        check(arguments)
    except Fault as fault:
        sys.exit(f"{arguments.store}: {fault}")


if __name__ == "__main__":
    main()
