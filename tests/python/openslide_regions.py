"""What OpenSlide reads of a slide: its description as JSON, and the pixels of regions.

    openslide_regions.py SLIDE REQUEST RESULT [PICTURES]

REQUEST is a JSON list of regions, each {"level", "x", "y", "width", "height"} with the corner in level-0 pixels, as OpenSlide takes it.
RESULT receives their pixels one after the other: RGBA, 8 bits, colours not multiplied by alpha. The description goes to stdout.
PICTURES receives the pixels of the associated images likewise, in the order of their names.
"""

import json
import sys

import openslide


def main(path, request, result, pictures=None):
    slide = openslide.OpenSlide(path)
    with open(request) as file:
        regions = json.load(file)
    with open(result, "wb") as file:
        for region in regions:
            corner, size = (region["x"], region["y"]), (region["width"], region["height"])
            file.write(slide.read_region(corner, region["level"], size).tobytes())
    associated = {}
    for name, image in slide.associated_images.items():
        associated[name] = image.size
    if pictures:
        with open(pictures, "wb") as file:
            for _, image in sorted(slide.associated_images.items()):
                file.write(image.convert("RGBA").tobytes())
    description = {
        "levels": slide.level_dimensions,
        "downsamples": slide.level_downsamples,
        "properties": dict(slide.properties),
        "associated": associated,
    }
    json.dump(description, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
