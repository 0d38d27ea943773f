"""Writes JPEG pictures, and decodes these and others that are there by libjpeg-turbo, as imagecodecs has it.

    jpeg_pixels.py FOLDER

Every FOLDER/NAME.jpg, of which the script writes some itself (Pillow's and libjpeg-turbo's encoders), gets FOLDER/NAME.raw: its samples, row by
row. Needs numpy, imagecodecs, Pillow.
"""

import sys
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image

folder = Path(sys.argv[1])
random = np.random.default_rng(11)


def picture(height, width, channels):
    """Waves with edges and noise, of more colours than slides have."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    planes = [128 + 90 * np.sin(x / (5 + 3 * c) + c) * np.cos(y / (7 - 2 * c)) for c in range(channels)]
    pixels = np.stack(planes, -1) + random.normal(0, 12, (height, width, channels))
    pixels[height // 3 : height // 2, width // 4 : width // 2] = random.integers(0, 256, channels)
    return pixels.clip(0, 255).astype(np.uint8)


sizes = [(1, 1), (2, 3), (3, 2), (4, 5), (5, 4), (8, 8), (7, 17), (17, 7), (16, 16), (33, 31), (64, 100), (123, 77), (256, 240)]
for height, width in sizes:
    rgb, grey = picture(height, width, 3), picture(height, width, 1)[..., 0]
    for quality in [5, 50, 90, 100]:
        name = f"{height}x{width}-{quality}"
        for subsampling in ["444", "422", "420", "440", "411"]:
            for optimize in [False, True]:
                code = imagecodecs.jpeg8_encode(rgb, level=quality, subsampling=subsampling, optimize=optimize)
                (folder / f"turbo-{name}-{subsampling}-{int(optimize)}.jpg").write_bytes(code)
        code = imagecodecs.jpeg8_encode(rgb, level=quality, colorspace="RGB", outcolorspace="RGB")
        (folder / f"turbo-{name}-rgb.jpg").write_bytes(code)
        PIL.Image.fromarray(grey).save(folder / f"pillow-{name}-grey.jpg", quality=quality)
        for subsampling in [0, 1, 2]:
            options = {"quality": quality, "subsampling": subsampling, "restart_marker_blocks": 5}
            PIL.Image.fromarray(rgb).save(folder / f"pillow-{name}-{subsampling}.jpg", **options)

for path in sorted(folder.glob("*.jpg")):
    path.with_suffix(".raw").write_bytes(np.ascontiguousarray(imagecodecs.jpeg8_decode(path.read_bytes())).tobytes())
print(imagecodecs.jpeg8_version())
