#!/usr/bin/env python3
"""Measures the package: held-out images, scale, glass, the held-out rows of the slide; and draws pictures.

usage: evaluate.py --dsb FOLDER --slide CMU-1-Small-Region.svs [--package FOLDER] [--unseen PICTURE --unseen-mpp UM] [--pictures FOLDER]

--unseen is a picture of H&E from elsewhere, whose weak labels (slide.py) are compared with the mask.
The network computes here in PyTorch, in f32, over each image as a whole: tiles, blending and the program itself are not part of this.
"""

import argparse
import pathlib

import numpy as np
import torch
from PIL import Image

import images
import network
import package
import slide as slides
from images import dice, rescaled

# Micrometres per pixel at which the network is tried.
SCALES = (0.25, 0.35, 0.5, 0.6)


def segment(weights, rgb, piece=1024, margin=128):
    """Where the network sees nuclei. Around the image is white glass, as around a tile that is not full; large images are done in pieces."""
    height, width = rgb.shape[:2]
    mask = np.zeros((height, width), bool)
    for top in range(0, height, piece):
        for left in range(0, width, piece):
            y, x = max(top - margin, 0), max(left - margin, 0)
            part = torch.from_numpy(rgb[y : top + piece + margin, x : left + piece + margin].copy()).permute(2, 0, 1)[None]
            pad = [0, -part.shape[3] % 16 + 32, 0, -part.shape[2] % 16 + 32]
            with torch.inference_mode():
                logits = network.forward(weights, torch.nn.functional.pad(network.normalized(part), pad))[0]
            found = (logits[1] > logits[0]).numpy()[top - y : top - y + piece, left - x : left - x + piece]
            mask[top : top + piece, left : left + piece] = found[: height - top, : width - left]
    return mask


def at(weights, picture, mpp):
    """Dice of a picture that is rescaled to `mpp` micrometres per pixel, measured there."""
    rgb, labels = rescaled(picture.rgb, picture.labels, picture.mpp / mpp)
    return dice(segment(weights, rgb), labels)


def slide_rows(slide):
    """The rows of the slide that are held out."""
    return slide.rgb[slides.SLIDE_HELD_OUT_FROM :], slide.labels[slides.SLIDE_HELD_OUT_FROM :]


def fields(side=256, seed=1):
    """Empty fields by name: white, every grey above 200, noise of any strength, shading, tint, JPEG."""
    rng = np.random.default_rng(seed)
    for level in range(200, 256, 5):
        flat = np.full((side, side, 3), float(level))
        yield f"grey {level}", flat
        for sigma in (1, 3, 8, 15):
            yield f"grey {level}, noise of each channel, sigma {sigma}", flat + rng.normal(0, sigma, flat.shape)
            yield f"grey {level}, noise of brightness, sigma {sigma}", flat + rng.normal(0, sigma, (side, side, 1))
        yield f"{level} to 255, shaded", flat + np.linspace(0, 255 - level, side)[:, None, None]
        yield f"grey {level}, tinted", flat + rng.normal(0, 5, 3)


def glass(weights):
    """The largest share of foreground on an empty field, and which field that is."""
    worst = (0.0, "none")
    for name, field in fields():
        mask = segment(weights, np.clip(np.rint(field), 0, 255).astype(np.uint8))
        worst = max(worst, (float(mask.mean()), name))
    return worst


def short(weights, pictures, slide):
    """A line for the log."""
    at_half = [at(weights, p, network.MPP) for p in pictures]
    own = [dice(segment(weights, p.rgb), p.labels) for p in pictures]
    rgb, labels = slide_rows(slide)
    return (
        f"held out: Dice {np.mean(at_half):.4f} at {network.MPP} um, {np.mean(own):.4f} as they are, worst {min(at_half):.3f}; "
        f"rows of the slide {dice(segment(weights, rgb), labels):.4f} (weak labels)"
    )


def outlined(rgb, mask, color=(0, 255, 0)):
    """The picture with the edge of the mask drawn on it."""
    edge = np.zeros(mask.shape, bool)
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    drawn = rgb.copy()
    drawn[edge] = color
    return drawn


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dsb", type=pathlib.Path, required=True)
    parser.add_argument("--slide", type=pathlib.Path, required=True)
    parser.add_argument("--package", type=pathlib.Path, default=pathlib.Path(__file__).parent.parent)
    parser.add_argument("--unseen", type=pathlib.Path)
    parser.add_argument("--unseen-mpp", type=float, default=network.MPP)
    parser.add_argument("--pictures", type=pathlib.Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    weights = package.load(arguments.package)
    pictures = images.dsb(arguments.dsb)

    chosen = [p for p in pictures if p.held_out]
    results = {p.name: {mpp: at(weights, p, mpp) for mpp in SCALES} | {"own": dice(segment(weights, p.rgb), p.labels)} for p in chosen}
    print(f"{len(chosen)} images held out (SHA-256 of the file name is a multiple of {images.HELD_OUT_OF}); Dice as they are, and at micrometres per pixel")
    print("file             group             assumed    own  " + "  ".join(f"{mpp:5}" for mpp in SCALES))
    for p in chosen:
        numbers = "  ".join(f"{results[p.name][key]:.3f}" for key in ("own", *SCALES))
        print(f"{p.name[:12]}...  {p.group:16}  {p.mpp:5}    {numbers}")
    groups = {"all": chosen} | {g: [p for p in chosen if p.group == g] for g in sorted({p.group for p in chosen})}
    for name, members in groups.items():
        numbers = "  ".join(f"{np.mean([results[p.name][key] for p in members]):.3f}" for key in ("own", *SCALES))
        print(f"mean of {name} ({len(members)}): {numbers}")
    print("pink images of H&E:")
    for p in pictures:
        if p.group == "pink_he":
            print(f"  {p.name}: {at(weights, p, network.MPP):.3f} at {network.MPP} um, {'held out' if p.held_out else 'trained on'}")
    slide = slides.read(arguments.slide)
    rgb, labels = slide_rows(slide)
    print(f"rows of the slide that are held out, against weak labels: Dice {dice(segment(weights, rgb), labels):.3f}")
    if arguments.unseen:
        rgb = np.asarray(Image.open(arguments.unseen).convert("RGB"))
        unseen = images.Picture(arguments.unseen.name, "unseen", rgb, slides.weak_labels(rgb), arguments.unseen_mpp)
        numbers = ", ".join(f"{at(weights, unseen, mpp):.3f} at {mpp}" for mpp in SCALES)
        print(f"{unseen.name}, taken to have {unseen.mpp} um, against weak labels: Dice {numbers} um")
    share, name = glass(weights)
    print(f"empty fields: at most {share * 100:.4f} % foreground ({name})")
    if arguments.pictures:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
        drawn = Image.fromarray(outlined(slide.rgb, segment(weights, slide.rgb)))
        drawn.save(arguments.pictures / "slide.png")
        for name, (x, y) in {"stroma": (800, 1100), "epithelium": (1000, 600), "hair": (1000, 1800), "held-out": (1500, 2400)}.items():
            drawn.crop((x, y, x + 512, y + 512)).save(arguments.pictures / f"{name}.png")
        for p in chosen + ([unseen] if arguments.unseen else []):
            both = np.concatenate([outlined(p.rgb, p.labels > 0), outlined(p.rgb, segment(weights, p.rgb), (255, 0, 0))], 1)
            Image.fromarray(both).save(arguments.pictures / f"{p.name[:12]}-mask.png")
        print(f"pictures are in {arguments.pictures}: of each image the truth in green, the mask in red")


if __name__ == "__main__":
    main()
