"""A slide with weak labels, for the part of H&E that the stained images lack."""

import pathlib

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage import measure, morphology, segmentation

from images import IGNORED, Picture, density

# Rows of the slide from here on are held out; rows between the two belong to neither side.
SLIDE_TRAINED_TO, SLIDE_HELD_OUT_FROM = 2240, 2304

# Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23 (2001): what haematoxylin and eosin take from red, green and blue.
HAEMATOXYLIN = np.array([0.650, 0.704, 0.286], np.float32)
EOSIN = np.array([0.072, 0.990, 0.105], np.float32)


# Horn, the hair in its follicle and detached flakes of CMU-1-Small-Region, drawn by hand: dark, and without nuclei that could be told.
WITHOUT_NUCLEI = [
    [
        (1400, 1010), (1440, 965), (1500, 940), (1560, 915), (1600, 900), (1630, 915), (1720, 950), (1725, 1040), (1640, 1090),
        (1620, 1290), (1600, 1400), (1650, 1380), (1700, 1320), (1760, 1300), (1810, 1360), (1800, 1400), (1740, 1430), (1690, 1455),
        (1640, 1480), (1590, 1535), (1550, 1600), (1510, 1680), (1470, 1730), (1420, 1790), (1370, 1840), (1330, 1870), (1270, 1850),
        (1220, 1790), (1190, 1720), (1165, 1660), (1160, 1610), (1195, 1510), (1225, 1420), (1235, 1320), (1255, 1230), (1290, 1180),
        (1330, 1130), (1370, 1070),
    ],
    [
        (1320, 1985), (1345, 2010), (1335, 2060), (1300, 2120), (1250, 2160), (1205, 2165), (1195, 2120), (1210, 2060), (1250, 2010),
        (1290, 1985),
    ],
    [
        (1640, 940), (1740, 930), (1830, 1020), (1960, 980), (2000, 1060), (2010, 1450), (1860, 1430), (1800, 1310), (1740, 1260),
        (1650, 1150), (1640, 1050),
    ],
]  # fmt: skip


def read(path):
    """CMU-1-Small-Region.svs (OpenSlide's, CC0) at 0.499 micrometres per pixel, with weak labels."""
    import openslide

    with openslide.OpenSlide(str(path)) as opened:
        rgb = np.asarray(opened.read_region((0, 0), 0, opened.dimensions).convert("RGB"))
        mpp = float(opened.properties["openslide.mpp-x"])
    return Picture(pathlib.Path(path).name, "slide", rgb, weak_labels(rgb, WITHOUT_NUCLEI), mpp)


def weak_labels(rgb, without_nuclei=()):
    """Nuclei of the slide by a classical method, as labels; what is in doubt is IGNORED.

    Colour deconvolution after Ruifrok and Johnston with the complement of both stains as the third; of haematoxylin, what exceeds the mean of
    the tissue around it by a part of its deviation; a watershed of the distance from the edge between nuclei that touch. Eosin hardly takes
    red light, so a nucleus must. Looked at over the whole slide: it finds most nuclei, misses some pale ones, and takes horn for nuclei,
    which `without_nuclei` corrects: polygons of (x, y) in which nothing is one.
    """
    absorbed = np.maximum(density(rgb, 244.0), 0.0)
    stains = np.stack([HAEMATOXYLIN, EOSIN, np.cross(HAEMATOXYLIN, EOSIN)])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    haematoxylin = ndimage.gaussian_filter((absorbed @ np.linalg.inv(stains))[..., 0], 0.8)
    red = ndimage.gaussian_filter(absorbed[..., 0], 0.8)
    tissue = ndimage.uniform_filter(absorbed.mean(2), 9) > 0.08

    def around(values):
        """The sum over the tissue within some 30 pixels."""
        return ndimage.uniform_filter(ndimage.uniform_filter(values * tissue, 41), 21)

    count = np.maximum(around(np.ones_like(haematoxylin)), 1e-3)
    mean = around(haematoxylin) / count
    deviation = np.sqrt(np.maximum(around(haematoxylin**2) / count - mean**2, 0.0))
    ink = (rgb[..., 1] > rgb[..., 0] + 18.0) & (rgb[..., 1] > 50)
    near_ink = ndimage.binary_dilation(ink, iterations=4)
    nuclei = (haematoxylin > np.clip(mean + np.maximum(0.55 * deviation, 0.06), 0.22, 0.62)) & (red > 0.30) & ~ink
    nuclei = ndimage.binary_fill_holes(ndimage.binary_opening(nuclei, np.ones((3, 3))))
    nuclei = morphology.remove_small_objects(nuclei, max_size=35)
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(nuclei), 1.0)
    labels = segmentation.watershed(-depth, measure.label(morphology.h_maxima(depth, 0.75)), mask=nuclei).astype(np.int32)
    doubtful = (haematoxylin > np.clip(mean + 0.1 * deviation, 0.18, 0.5)) & (red > 0.22) & ~nuclei

    # What is too large or too ragged for a nucleus is in doubt, and so is a nucleus beside horn. Ink is no nucleus, nor is what it colours.
    horn = Image.new("1", (rgb.shape[1], rgb.shape[0]))
    for polygon in without_nuclei:
        ImageDraw.Draw(horn).polygon(polygon, fill=1)
    horn = np.asarray(horn)
    beside = ndimage.binary_dilation(horn, iterations=20)
    odd, inked = [], []
    for nucleus in measure.regionprops(labels, intensity_image=near_ink.astype(np.float32)):
        if nucleus.intensity_mean > 0.3:
            inked.append(nucleus.label)
        elif nucleus.area > 700 or nucleus.solidity < 0.75:
            odd.append(nucleus.label)
    none = np.isin(labels, inked) | (doubtful & (near_ink | beside)) | horn | ink
    # Pieces of tissue smaller than a cell's surroundings are dust and flakes on the glass.
    none |= tissue & ~morphology.remove_small_objects(tissue, max_size=6000)
    labels[np.isin(labels, odd) | (beside & (labels > 0)) | doubtful] = IGNORED
    labels[none] = 0
    return labels
