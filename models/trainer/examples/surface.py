"""Makes the images of models/surface: crops of three textures of scikit-image, some of them with a drawn defect.

brick.png, grass.png and gravel.png are photographs in scikit-image's wheel (skimage/data). According to the docstrings
of `skimage.data.brick`, `grass` and `gravel`, they are under CC0 1.0 (from CC0Textures, Bricks25 and Gravel04; and
DeviantArt, linolafett, Grass-01). Training images come from the left two thirds of each, in five bands of rows that
share no pixel, one of which is for calibration. The sample stream comes from the right third, so no pixel is in both.
"""

import argparse
import base64
import gzip
import io
import json
import math
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageFilter

TEXTURES = "brick", "grass", "gravel"
SIZE = 96
TRAIN = 400  # training crops of each texture
BANDS = 5
SAMPLE = 500
DEFECTIVE = 0.2
EDGE = 0.66  # share of a photograph's width, from the left, that is for training


def cut(texture, rng, band=None):
    """A random crop of SIZE pixels from a band of the left part, or from the right part -> Pillow image of mode L."""
    h, w = texture.shape
    middle = int(w * EDGE)
    if band is None:
        x, y = rng.integers(middle, w - SIZE + 1), rng.integers(0, h - SIZE + 1)
    else:
        x, y = rng.integers(0, middle - SIZE + 1), h // BANDS * band + rng.integers(0, h // BANDS - SIZE + 1)
    return Image.fromarray(texture[y : y + SIZE, x : x + SIZE])


def soft(mask, radius):
    return np.asarray(mask.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def scratch(image, rng, _):
    """Draws a thin curved line, much brighter or darker than the texture."""
    mask = curve(image, rng, 2, 4)
    return blend(image, soft(mask, 0.6), 235 if rng.random() < 0.5 else 15)


def curve(image, rng, thinnest, beyond):
    """A mask of a curved line, at least `thinnest` and less than `beyond` pixels wide -> Pillow image of mode L."""
    mask, t = Image.new("L", image.size), np.linspace(0, 1, 20)
    angle, length = rng.uniform(0, math.pi), rng.uniform(0.4, 0.8) * image.width
    middle, bend = rng.uniform(0.35, 0.65, 2) * image.width, rng.uniform(-0.15, 0.15) * image.width
    along, across = (t - 0.5) * length, bend * np.sin(math.pi * t)
    x = middle[0] + along * math.cos(angle) - across * math.sin(angle)
    y = middle[1] + along * math.sin(angle) + across * math.cos(angle)
    ImageDraw.Draw(mask).line(list(zip(x, y, strict=True)), 255, int(rng.integers(thinnest, beyond)))
    return mask


def stain(image, rng, _):
    """Draws a round spot that is much darker or brighter but keeps the structure."""
    m = soft(ellipse(image, rng, 0.1, 0.22), 2)
    return mixed(image, np.asarray(image, np.float32) * (0.45 if rng.random() < 0.6 else 1.6), m)


def hole(image, rng, _):
    """Draws a small black hole with a sharp edge."""
    return blend(image, soft(ellipse(image, rng, 0.05, 0.1), 0.6), 5)


def smear(image, rng, _):
    """Draws a spot in which the structure is blurred."""
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(4)), np.float32)
    return mixed(image, blurred, soft(ellipse(image, rng, 0.16, 0.28), 1.5))


def foreign(image, rng, others):
    """Draws a patch of another texture with the same mean brightness."""
    m = soft(ellipse(image, rng, 0.16, 0.28), 1)
    other = np.asarray(cut(others[rng.integers(len(others))], rng), np.float32)
    here = np.asarray(image, np.float32)
    return mixed(image, other + (here * m).sum() / m.sum() - (other * m).sum() / m.sum(), m)


def ellipse(image, rng, low, high):
    mask = Image.new("L", image.size)
    rx, ry = rng.uniform(low, high, 2) * image.width
    x, y = rng.uniform(0.25, 0.75, 2) * image.width
    ImageDraw.Draw(mask).ellipse([x - rx, y - ry, x + rx, y + ry], 255)
    return mask


def blend(image, m, value):
    return mixed(image, np.float32(value), m)


def mixed(image, z, m):
    x = np.asarray(image, np.float32)
    return Image.fromarray((x + m * (z - x)).round().clip(0, 255).astype(np.uint8))


DEFECTS = {"scratch": scratch, "stain": stain, "hole": hole, "smear": smear, "foreign": foreign}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--train", type=Path, required=True, help="folder for the normal training images")
    p.add_argument("--groups", type=Path, required=True, help="CSV file with the band of each image")
    p.add_argument("--sample", type=Path, required=True, help="file for the sample stream, .ndjson.gz")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    rng = np.random.default_rng(args.seed)
    textures = {name: getattr(skimage.data, name)() for name in TEXTURES}

    args.train.mkdir(parents=True, exist_ok=True)
    groups = ["image,tile"]
    for name, texture in textures.items():
        for i in range(TRAIN):
            cut(texture, rng, i % BANDS).save(args.train / f"{name}-{i:03}.png")
            groups.append(f"{name}-{i:03}.png,band-{i % BANDS}")
    args.groups.write_text("\n".join(groups) + "\n")

    lines = []
    for i in range(SAMPLE):
        name = TEXTURES[rng.integers(len(TEXTURES))]
        image, defect = cut(textures[name], rng), None
        if rng.random() < DEFECTIVE:
            defect = sorted(DEFECTS)[rng.integers(len(DEFECTS))]
            others = [t for other, t in textures.items() if other != name]
            image = DEFECTS[defect](image, rng, others)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        record = {"id": f"s-{i:04}", "surface": name, "label": int(defect is not None), "defect": defect}
        lines.append(json.dumps(record | {"image": base64.b64encode(buffer.getvalue()).decode()}) + "\n")
    with open(args.sample, "wb") as out, gzip.GzipFile("", "wb", mtime=0, fileobj=out) as packed:
        packed.write("".join(lines).encode())


if __name__ == "__main__":
    main()
