"""Makes the images and captions of models/textures: 256x256 crops of three textures, some with a drawn defect.

The photographs are those of surface.py, which says where they come from; crops come from the same left two thirds. The
photographs are gray. Colours are a tint that the caption names. Captions are put together from words and templates;
PARAPHRASES has words and templates of the same meaning that no caption for training uses.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageFilter
from surface import EDGE, TEXTURES, blend, curve, ellipse, mixed, soft

SIZE = 256
EACH = 500  # images of each texture
DEFECTIVE = 0.65
CAPTIONS = 4  # of each image
COLOURED = 0.6  # share of the captions that name the colour

# Red, green and blue that are added where the photograph is half bright, in 255ths.
TINTS = {
    "brick": {"red": (62, -22, -36), "yellow": (44, 24, -52), "gray": (0, 0, 0)},
    "grass": {"green": (-22, 36, -34), "dry": (46, 22, -46), "gray": (0, 0, 0)},
    "gravel": {"brown": (34, 2, -30), "blue": (-26, -4, 38), "gray": (0, 0, 0)},
}
WORDS = {
    "brick": ("{c} bricks", "a {c} brick wall", "{c} brickwork", "a wall of {c} brick"),
    "grass": ("{c} grass", "a {c} lawn", "{c} blades of grass", "a field of {c} grass"),
    "gravel": ("{c} gravel", "{c} pebbles", "small {c} stones", "a bed of {c} gravel"),
    "scratch": ("a {s} scratch", "a {s} scratched line", "a thin {s} scratch", "a long {s} scratch"),
    "stain": ("a {s} stain", "a {s} spot", "a {s} stained area", "a round {s} stain"),
    "hole": ("a hole", "a black hole", "a small hole", "a small black hole"),
    "smear": ("a smear", "a blurred spot", "a smeared area", "a blurry patch"),
    "bright": ("bright", "light", "white"),
    "dark": ("dark", "black"),
}
PLAIN = "{m}", "a photo of {m}", "clean {m}", "{m} without defect", "a close-up of {m}", "{m}, nothing else"
WITH = (
    "{m} with {d}",
    "{d} on {m}",
    "a photo of {m} with {d}",
    "{m}, {d}",
    "{m} that has {d}",
    "a close-up of {m} with {d}",
)
PATCH = "a patch of {o}", "a piece of {o}", "some {o} in it"
PARAPHRASES = {
    "brick": ("{c} masonry", "a {c} brick facade", "a {c} house wall"),
    "grass": ("{c} turf", "a {c} meadow", "{c} sod"),
    "gravel": ("{c} crushed rock", "{c} shingle", "a {c} stony path"),
    "scratch": ("a {s} scrape", "a {s} streak", "a {s} scuff line"),
    "stain": ("a {s} blotch", "a {s} mark like spilled liquid", "a {s} discoloured area"),
    "hole": ("a puncture", "a drilled opening", "a small cavity"),
    "smear": ("a smudge", "an out-of-focus area", "a rubbed, fuzzy region"),
    "bright": ("pale", "whitish"),
    "dark": ("dim", "blackish"),
}
PARAPHRASED_PLAIN = "an image showing {m}", "flawless {m}", "{m} in perfect condition"
PARAPHRASED_WITH = "there is {d} across {m}", "{m} damaged by {d}", "an image of {m} showing {d}"
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


def of_texture(photograph, name, rng):
    """-> (RGB image, tint, defect or None, shade)."""
    image, defect, shade = cut(photograph, rng), None, "bright" if rng.random() < 0.5 else "dark"
    if rng.random() < DEFECTIVE:
        defect = DEFECTS[rng.integers(len(DEFECTS))]
        image = draw(image, defect, shade, rng)
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
