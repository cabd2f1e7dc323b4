"""Makes the images and captions of models/textures: squares of three textures, some with a drawn defect.

The photographs are those of surface.py, which says where they come from; squares come from the same left two thirds.
The photographs are gray. Colours are a tint that the caption names. The words of the captions are in texture_words.py.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageFilter
from surface import EDGE, TEXTURES, blend, curve, ellipse, mixed, soft
from texture_words import PLAIN, WITH, WORDS

SIZE = 256  # of a drawn image, and of what a defect is drawn on
SQUARE = 128  # of the images for training
SQUARES = 2  # are cut from an image with a defect; the one that shows more of the defect is kept
EACH = 500  # images of each texture
DEFECTIVE = 0.65
CAPTIONS = 12  # of each image
COLOURED = 0.6  # share of the captions that name the colour

# Red, green and blue that are added where the photograph is half bright, in 255ths.
TINTS = {
    "brick": {"red": (62, -22, -36), "yellow": (44, 24, -52), "gray": (0, 0, 0)},
    "grass": {"green": (-22, 36, -34), "dry": (46, 22, -46), "gray": (0, 0, 0)},
    "gravel": {"brown": (34, 2, -30), "blue": (-26, -4, 38), "gray": (0, 0, 0)},
}
DEFECTS = "scratch", "stain", "hole", "smear"


def cut(texture, rng, left=0.0, right=EDGE, size=SIZE):
    """A random crop between two shares of a photograph's width -> Pillow image of mode L."""
    h, w = texture.shape
    x = rng.integers(int(left * w), max(int(right * w) - size, int(left * w)) + 1)
    y = rng.integers(0, h - size + 1)
    return Image.fromarray(texture[y : y + size, x : x + size])


def draw(image, defect, shade, rng):
    """Pillow image of mode L -> the same with a defect, `shade`: bright or dark."""
    if defect == "scratch":
        return blend(image, soft(curve(image, rng, 4, 7), 0.8), 240 if shade == "bright" else 10)
    if defect == "hole":
        return blend(image, soft(ellipse(image, rng, 0.05, 0.09), 0.8), 4)
    if defect == "smear":
        blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(8)), np.float32)
        return mixed(image, blurred, soft(ellipse(image, rng, 0.14, 0.24), 2))
    z = np.asarray(image, np.float32)
    z = z * 0.35 if shade == "dark" else z + 0.65 * (255 - z)
    return mixed(image, z, soft(ellipse(image, rng, 0.1, 0.2), 3))


def tinted(image, colour):
    """Pillow image of mode L -> RGB. Black stays black and white stays white."""
    light = np.asarray(image, np.float32)[..., None] / 255
    return Image.fromarray(
        (255 * light + 4 * light * (1 - light) * np.float32(colour)).round().clip(0, 255).astype(np.uint8)
    )


def caption(texture, tint, defect, shade, rng, words=WORDS, plain=PLAIN, with_defect=WITH):
    """A random caption. It may leave the colour and the shade out."""

    def pick(options):
        return options[rng.integers(len(options))]

    m = pick(words[texture]).format(c=tint if rng.random() < COLOURED else "")
    if defect is None:
        text = pick(plain).format(m=m)
    else:
        s = pick(words[shade]) if defect in ("scratch", "stain") else ""
        text = pick(with_defect).format(m=m, d=pick(words[defect]).format(s=s))
    return " ".join(text.split()).replace(" ,", ",")


def square(before, after, rng):
    """Cuts an image with a defect, where it differs most from the one without -> Pillow image of mode L."""
    before, after = np.asarray(before), np.asarray(after)
    corners = rng.integers(0, SIZE - SQUARE + 1, (SQUARES, 2))
    places = [np.s_[y : y + SQUARE, x : x + SQUARE] for y, x in corners]
    return Image.fromarray(after[max(places, key=lambda place: np.count_nonzero(before[place] != after[place]))])


def of_texture(photograph, name, rng):
    """-> (RGB image of SQUARE pixels, tint, defect or None, shade)."""
    image, defect, shade = cut(photograph, rng), None, "bright" if rng.random() < 0.5 else "dark"
    drawn = image
    if rng.random() < DEFECTIVE:
        defect = DEFECTS[rng.integers(len(DEFECTS))]
        drawn = draw(image, defect, shade, rng)
    image = square(image, drawn, rng)
    tint = list(TINTS[name])[rng.integers(len(TINTS[name]))]
    return tinted(image, TINTS[name][tint]), tint, defect, shade


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", type=Path, required=True, help="folder for the images")
    p.add_argument("--captions", type=Path, required=True, help="CSV file for the captions")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    rng = np.random.default_rng(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.captions, "w", newline="") as f:
        lines = csv.writer(f)
        lines.writerow(["image", "caption"])
        for name in TEXTURES:
            photograph = getattr(skimage.data, name)()
            for i in range(EACH):
                image, tint, defect, shade = of_texture(photograph, name, rng)
                file = f"{name}-{i:03}.png"
                image.save(args.out / file)
                for text in {caption(name, tint, defect, shade, rng): None for _ in range(CAPTIONS)}:
                    lines.writerow([file, text])


if __name__ == "__main__":
    main()
