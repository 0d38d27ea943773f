"""Patches for training: where they are taken from, and what is done to them. All chance comes from the generator that is handed in.

A patch is (rgb, target, weight): bytes; whether a pixel is nucleus; how much it counts in the loss.
"""

import io

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy import ndimage

from images import IGNORED, density
from slide import EOSIN, HAEMATOXYLIN, SLIDE_TRAINED_TO

# What separates two nuclei that touch is background, and counts as much as this many pixels.
BORDER_WEIGHT = 2.0
# Micrometres per pixel of patches; the package is made for 0.5, and is to be usable from 0.25 to 0.6.
FINEST, COARSEST = 0.22, 0.68


class Source:
    """A picture from which patches are taken at any scale and angle: halved once and twice, so that reducing it does not skip pixels."""

    def __init__(self, picture):
        self.picture = picture
        # Of the slide, the rows that are held out are not even seen.
        rows = slice(SLIDE_TRAINED_TO if picture.group == "slide" else None)
        # Absorption instead of bytes: what lies outside of the picture is then 0.
        self.levels = [torch.from_numpy(255.0 - picture.rgb[rows].astype(np.float32)).permute(2, 0, 1)[None]]
        for _ in range(2):
            self.levels.append(torch.nn.functional.avg_pool2d(self.levels[-1], 2, ceil_mode=False))
        self.labels = picture.labels[rows]
        self.tissue = None
        if picture.group == "slide":
            row, column = np.nonzero(self.labels)
            self.tissue = np.stack([column, row], 1)
            row, column = np.nonzero((self.labels == 0) & (density(picture.rgb[rows]).mean(2) > 0.3))
            self.dark = np.stack([column, row], 1)

    def sample(self, rng, side, mpp=None):
        """Bytes, labels and whether the pixel is in the picture, at a random place, angle and scale."""
        height, width = self.labels.shape
        mpp = mpp or scale(rng)
        factor = mpp / self.picture.mpp
        if self.tissue is not None:
            # Around a nucleus or what may be one; around horn, ink, collagen, which are dark and none; or anywhere, glass included.
            kind = rng.random()
            if kind < 0.8:
                places = self.tissue if kind < 0.55 else self.dark
                centre = places[rng.integers(len(places))] + rng.normal(0, 30, 2)
            else:
                centre = rng.random(2) * (width, height)
        else:
            centre = (0.1 + 0.8 * rng.random(2)) * (width, height)
        angle = rng.random() * 2 * np.pi
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        stretch = np.exp(rng.normal(0, 0.06, 2)) * rng.choice([-1.0, 1.0], 2)
        matrix = factor * turn * stretch
        v, u = np.mgrid[:side, :side].astype(np.float64) - (side - 1) / 2
        x = matrix[0, 0] * u + matrix[0, 1] * v + centre[0]
        y = matrix[1, 0] * u + matrix[1, 1] * v + centre[1]
        level = 0 if factor < 1.5 else 1 if factor < 3 else 2
        stored = self.levels[level]
        of = np.array([stored.shape[3], stored.shape[2]]) * 2**level
        grid = np.stack([2 * x / of[0] - 1, 2 * y / of[1] - 1], -1).astype(np.float32)
        taken = torch.nn.functional.grid_sample(stored, torch.from_numpy(grid)[None], align_corners=False)
        rgb = 255.0 - taken[0].permute(1, 2, 0).numpy()
        column, row = np.floor(x).astype(int), np.floor(y).astype(int)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        labels = self.labels[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
        return rgb, np.where(inside, labels, 0), inside


def scale(rng):
    """Micrometres per pixel of a patch: half of them near 0.5, the others anywhere."""
    if rng.random() < 0.5:
        return 0.5 * np.exp(rng.normal(0, 0.08))
    return np.exp(rng.uniform(np.log(FINEST), np.log(COARSEST)))


def target(labels, inside):
    """Nucleus or not, and what each pixel counts: nothing where it is unknown, more between nuclei that touch."""
    nucleus = labels > 0
    touching = np.zeros(labels.shape, bool)
    for a, b in (((slice(None), slice(None, -1)), (slice(None), slice(1, None))), ((slice(None, -1),), (slice(1, None),))):
        touching[a] |= (labels[a] != labels[b]) & nucleus[a] & nucleus[b]
    weight = np.where(touching, BORDER_WEIGHT, 1.0) * (labels != IGNORED) * np.where(inside, 1.0, 0.2)
    return nucleus & ~touching, weight.astype(np.float32)


def unit(vector):
    return vector / np.linalg.norm(vector)


def haematoxylin(rng):
    """A haematoxylin: between blue and purple."""
    kinds = np.array([HAEMATOXYLIN, [0.74, 0.62, 0.26], [0.58, 0.76, 0.28], [0.70, 0.66, 0.20], [0.62, 0.68, 0.39]])
    return unit(np.maximum(rng.dirichlet(np.ones(len(kinds))) @ kinds + rng.normal(0, 0.03, 3), 0.02)).astype(np.float32)


def eosin(rng):
    """An eosin: from pink to orange."""
    kinds = np.array([EOSIN, [0.09, 0.95, 0.28], [0.20, 0.90, 0.38], [0.12, 0.84, 0.52], [0.30, 0.88, 0.36]])
    return unit(np.maximum(rng.dirichlet(np.ones(len(kinds))) @ kinds + rng.normal(0, 0.03, 3), 0.02)).astype(np.float32)


def field(rng, side, sigma, along=1.0):
    """Smooth noise between about -1 and 1, drawn out along a random direction."""
    small = max(4, int(np.ceil(side / sigma)) + 3)
    noise = torch.from_numpy(rng.normal(0, 1, (1, 1, small, small)).astype(np.float32))
    angle = rng.random() * np.pi
    v, u = np.mgrid[:side, :side].astype(np.float32) / side * 2 - 1
    span = min(1.0, side / sigma / small)
    x = (np.cos(angle) * u + np.sin(angle) * v) * span / along * 0.7
    y = (-np.sin(angle) * u + np.cos(angle) * v) * span * 0.7
    grid = torch.from_numpy(np.stack([x, y], -1).astype(np.float32))[None]
    drawn = torch.nn.functional.grid_sample(noise, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return drawn[0, 0].numpy()


def stroma(rng, side):
    """How much eosin there is: fibres with clefts between them, even cytoplasm, red cells."""
    even = rng.uniform(0.1, 0.5) + rng.uniform(0, 0.15) * field(rng, side, rng.uniform(10, 60))
    fibres = field(rng, side, rng.uniform(2.5, 7), rng.uniform(3, 12)) + 0.5 * field(rng, side, rng.uniform(2, 4), rng.uniform(2, 8))
    fibres = np.clip(fibres * rng.uniform(0.2, 0.8) + rng.uniform(0.0, 0.5), 0, 1.2)
    mixed = np.clip(field(rng, side, rng.uniform(15, 60)) * 2 + rng.uniform(-1, 2), 0, 1)
    amount = mixed * fibres + (1 - mixed) * even
    if rng.random() < 0.3:  # Clefts and lumina.
        amount = amount * np.clip(field(rng, side, rng.uniform(8, 40), rng.uniform(1, 4)) * 3 + rng.uniform(0.3, 2.5), 0, 1)
    if rng.random() < 0.25:  # Red cells, or hyaline as red as they are.
        discs = np.zeros((side, side), np.float32)
        v, u = np.mgrid[:side, :side]
        middle = rng.random(2) * side
        for _ in range(rng.integers(3, 25)):
            x, y = middle + rng.normal(0, side / 6, 2)
            radius = rng.uniform(5, 9)
            discs = np.maximum(discs, np.clip(radius - np.hypot(u - x, v - y), 0, 1.5) / 1.5)
        amount = amount * (1 - discs) + discs * rng.uniform(0.7, 1.4)
    return np.maximum(amount + rng.normal(0, 0.02, amount.shape), 0).astype(np.float32)


def as_h_and_e(rng, source, rgb, nucleus):
    """A stained image of nuclei alone as it would look with eosin: its stain becomes haematoxylin, and stroma is drawn beneath."""
    absorbed = np.maximum(density(rgb) - source.picture.background, -0.05)
    own = absorbed[nucleus].mean(0) if nucleus.sum() > 20 else HAEMATOXYLIN
    own = unit(np.maximum(own, 0.02))
    blue = np.maximum(absorbed @ own, 0) * rng.uniform(0.5, 1.3)
    side = rgb.shape[0]
    red = stroma(rng, side) * rng.uniform(0.3, 1.0)
    soft = ndimage.gaussian_filter(nucleus.astype(np.float32), 1.0)
    red *= 1 - rng.uniform(0.0, 0.9) * soft
    if rng.random() < 0.5:  # Cytoplasm that takes haematoxylin, too, so that nuclei stand out less.
        haze = np.clip(field(rng, side, rng.uniform(10, 50)) + rng.uniform(0, 1), 0, 1.5) * rng.uniform(0.05, 0.28)
        blue = blue + haze * (1 - 0.7 * soft)
    if rng.random() < 0.3:  # Open chromatin: a pale middle.
        inner = ndimage.gaussian_filter(ndimage.binary_erosion(nucleus, iterations=2).astype(np.float32), 1.0)
        blue = blue * (1 - rng.uniform(0.2, 0.6) * inner)
    return blue[..., None] * haematoxylin(rng) + red[..., None] * eosin(rng)


def restained(rng, source, rgb, nucleus):
    """A stained image of nuclei alone in another purple, on a background between its own and none."""
    absorbed = density(rgb) - source.picture.background * rng.uniform(0, 1)
    if rng.random() < 0.6:
        own = unit(np.maximum(absorbed[nucleus].mean(0) if nucleus.sum() > 20 else HAEMATOXYLIN, 0.02))
        amount = np.maximum(absorbed @ own, 0)
        absorbed = absorbed + amount[..., None] * (haematoxylin(rng) - own)
    return absorbed * np.exp(rng.normal(0, 0.22))


def jittered(rng, absorbed):
    """H&E with more or less of each stain, and in other tones."""
    stains = np.stack([HAEMATOXYLIN, EOSIN, np.cross(HAEMATOXYLIN, EOSIN)])
    stains = stains / np.linalg.norm(stains, axis=1, keepdims=True)
    amounts = np.maximum(absorbed, -0.02) @ np.linalg.inv(stains)
    amounts[..., 0] = amounts[..., 0] * np.exp(rng.normal(0, 0.3))
    amounts[..., 1] = amounts[..., 1] * np.exp(rng.normal(0, 0.35))
    if rng.random() < 0.7:
        weight = rng.uniform(0.2, 1.0)
        stains[0] = unit(stains[0] * (1 - weight) + haematoxylin(rng) * weight)
        stains[1] = unit(stains[1] * (1 - weight) + eosin(rng) * weight)
    return amounts @ stains


def pen(rng, rgb):
    """Strokes of a pen: the picture with them, and where they are."""
    side = rgb.shape[0]
    drawn = Image.new("L", (side, side))
    pencil = ImageDraw.Draw(drawn)
    for _ in range(rng.integers(1, 4)):
        points = [tuple(rng.uniform(-0.3, 1.3, 2) * side) for _ in range(rng.integers(2, 4))]
        pencil.line(points, fill=255, width=int(rng.uniform(4, 70)), joint="curve")
    cover = ndimage.gaussian_filter(np.asarray(drawn, np.float32) / 255, rng.uniform(0.7, 4))
    inks = np.array([[20, 40, 150], [15, 15, 25], [10, 110, 60], [170, 20, 40], [80, 30, 130], [20, 110, 150]], np.float32)
    ink = density(np.clip(inks[rng.integers(len(inks))] + rng.normal(0, 20, 3), 3, 245))
    texture = 1 + 0.25 * field(rng, side, rng.uniform(4, 30))
    absorbed = density(rgb) + (cover * np.maximum(texture, 0.2) * rng.uniform(0.4, 1.3))[..., None] * ink
    return 256 * 10**-absorbed - 1, cover > 0.15


def glass(rng, side):
    """Empty glass: even, shaded, noisy, with specks, as dark as 195."""
    level = rng.uniform(195, 256) + rng.normal(0, 4, 3) * (rng.random() < 0.5)
    rgb = np.broadcast_to(level.astype(np.float32), (side, side, 3)).copy()
    if rng.random() < 0.4:
        v, u = np.mgrid[:side, :side] / side - 0.5
        rgb += ((u * rng.normal(0, 15) + v * rng.normal(0, 15)))[..., None]
    if rng.random() < 0.4:
        rgb += (field(rng, side, rng.uniform(3, 60), rng.uniform(1, 6)) * rng.uniform(0, 12))[..., None]
    if rng.random() < 0.4:
        rgb += rng.normal(0, rng.uniform(0.5, 14), (side, side, 3 if rng.random() < 0.6 else 1))
    if rng.random() < 0.3:  # Dust and bubbles.
        v, u = np.mgrid[:side, :side]
        dark = np.zeros((side, side), np.float32)
        for _ in range(rng.integers(1, 8)):
            x, y = rng.random(2) * side
            radius = np.exp(rng.uniform(np.log(0.7), np.log(25)))
            away = np.hypot(u - x, (v - y) * rng.uniform(0.6, 1.6))
            if radius > 6:  # The rim of a bubble, or a faint blot.
                dark += np.exp(-(((away - radius) / rng.uniform(1, 3)) ** 2)) * rng.uniform(0.1, 0.6)
            else:
                dark += np.clip(radius - away, 0, 1) * rng.uniform(0.2, 1)
        rgb *= 1 - np.clip(dark, 0, 0.9)[..., None] * rng.uniform(0.6, 1.0, 3)
    return rgb


def optics(rng, rgb):
    """What a scanner does to a picture: blur, sharpening, gamma, saturation, noise, JPEG."""
    if rng.random() < 0.35:
        rgb = ndimage.gaussian_filter(rgb, (*[rng.uniform(0.3, 1.4)] * 2, 0))
    elif rng.random() < 0.3:
        rgb = rgb + rng.uniform(0.3, 1.2) * (rgb - ndimage.gaussian_filter(rgb, (1, 1, 0)))
    rgb = np.clip(rgb, 0, 255)
    if rng.random() < 0.3:
        rgb = 255 * (rgb / 255) ** np.exp(rng.normal(0, 0.2))
    if rng.random() < 0.3:
        grey = rgb.mean(2, keepdims=True)
        rgb = grey + (rgb - grey) * rng.uniform(0.6, 1.3)
    if rng.random() < 0.3:
        rgb = rgb + rng.normal(0, rng.uniform(1, 9), rgb.shape)
    rgb = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        packed = io.BytesIO()
        Image.fromarray(rgb).save(packed, "JPEG", quality=int(rng.integers(30, 96)), subsampling=int(rng.integers(0, 3)))
        rgb = np.asarray(Image.open(packed))
    return rgb


def light(rng, absorbed):
    """The bytes of a picture that absorbs so much, on glass of any brightness above 200."""
    level = (rng.uniform(200, 256) if rng.random() < 0.6 else rng.uniform(235, 256)) + rng.normal(0, 3, 3)
    return level * 10 ** -np.maximum(absorbed, -0.05)


def stained(rng, sources, side):
    """An image of the Data Science Bowl: a quarter of them as they are, the others in other colours or as H&E."""
    source = sources[rng.integers(len(sources))]
    rgb, labels, inside = source.sample(rng, side)
    nucleus, weight = target(labels, inside)
    if rng.random() < 0.25:
        return rgb * rng.uniform(0.9, 1.05), nucleus, weight
    if source.picture.group == "pink_he":
        absorbed = jittered(rng, density(rgb) - source.picture.background * rng.uniform(0, 0.3))
    elif rng.random() < 0.5:
        absorbed = as_h_and_e(rng, source, rgb, labels > 0)
    else:
        absorbed = restained(rng, source, rgb, labels > 0)
    return light(rng, absorbed), nucleus, weight


def tissue(rng, source, side):
    """A part of the slide, in other tones."""
    rgb, labels, inside = source.sample(rng, side)
    nucleus, weight = target(labels, inside)
    return light(rng, jittered(rng, density(rgb, 245.0))), nucleus, weight


def nothing(rng, sources, slide, side):
    """A patch without nuclei: glass, stroma drawn by chance, what is far out of focus; or one with pen on it."""
    nucleus, weight = np.zeros((side, side), bool), np.ones((side, side), np.float32)
    kind = rng.random()
    if kind < 0.45:
        return glass(rng, side), nucleus, weight
    if kind < 0.65:
        absorbed = stroma(rng, side)[..., None] * rng.uniform(0.3, 1.3) * eosin(rng)
        if rng.random() < 0.4:
            haze = np.clip(field(rng, side, rng.uniform(6, 50), rng.uniform(1, 6)) + rng.uniform(0, 1), 0, 2)
            absorbed = absorbed + (haze * rng.uniform(0.05, 0.35))[..., None] * haematoxylin(rng)
        return light(rng, absorbed), nucleus, weight
    rgb, present, counted = tissue(rng, slide, side) if rng.random() < 0.5 else stained(rng, sources, side)
    if kind < 0.78:
        return ndimage.gaussian_filter(rgb, (*[rng.uniform(5, 10)] * 2, 0)), nucleus, weight
    if rng.random() < 0.5:
        rgb, present, counted = glass(rng, side), nucleus, weight
    rgb, covered = pen(rng, rgb)
    return rgb, present & ~covered, np.where(covered, 1, counted).astype(np.float32)


def batch(rng, sources, slide, side, count):
    """`count` patches as tensors: bytes N x 3 x side x side, targets and weights N x side x side. Of 16: 8 images, 5 of the slide, 3 without nuclei."""
    patches = []
    for n in range(count):
        kind = n * 16 // count
        if kind < 8:
            rgb, nucleus, weight = stained(rng, sources, side)
        elif kind < 13:
            rgb, nucleus, weight = tissue(rng, slide, side)
        else:
            rgb, nucleus, weight = nothing(rng, sources, slide, side)
        patches.append((optics(rng, rgb), nucleus, weight))
    rgb, nucleus, weight = (np.stack(part) for part in zip(*patches))
    return torch.from_numpy(rgb).permute(0, 3, 1, 2), torch.from_numpy(nucleus), torch.from_numpy(weight)
