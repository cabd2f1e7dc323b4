"""Draws the images of src/restore-images.md with the commands on that page and models/surface.

python docs/restored.py PAIRS, where PAIRS is the folder of the model for camera B that
models/trainer/examples/translated_surface.py trains.
"""

import argparse
import base64
import gzip
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

HERE = Path(__file__).resolve().parent
BUNDLE = HERE.parent / "models/surface"
sys.path.append(str(HERE.parent / "models/trainer/examples"))
OUT = HERE / "src/screenshots"
SIDE, GAP = 192, 8
SHOWN = 6  # columns of a sheet

from translated_surface import camera_b  # noqa: E402


def sample():
    """-> [(gray image, label, surface)] of the bundle's sample."""
    with gzip.open(BUNDLE / "sample.ndjson.gz") as lines:
        records = [json.loads(line) for line in lines]
    return [(Image.open(io.BytesIO(base64.b64decode(r["image"]))), r["label"], r["surface"]) for r in records]


def of_each_surface(found):
    """The first images of each surface, SHOWN in all."""
    surfaces = sorted({surface for _, _, surface in found})
    by_surface = [[image for image, _, name in found if name == surface] for surface in surfaces]
    return [images[i] for i in range(SHOWN // len(surfaces)) for images in by_surface]


def save(images, folder):
    folder.mkdir()
    for i, image in enumerate(images):
        image.save(folder / f"{i}.png")


def load(folder):
    return [Image.open(folder / f"{i}.png").convert("RGB") for i in range(SHOWN)]


def residuald(*arguments):
    subprocess.run(["residuald", *map(str, arguments)], check=True)


def sheet(rows, name):
    """Rows of images, one above the other."""
    step = SIDE + GAP
    canvas = Image.new("RGB", (SHOWN * step - GAP, len(rows) * step - GAP), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            canvas.paste(image.resize((SIDE, SIDE)), (x * step, y * step))
    canvas.save(OUT / name, quality=88)


def denoised(work, normal):
    rng = np.random.default_rng(0)
    noise = [25 * rng.standard_normal((image.height, image.width)) for image in normal]
    noisy = [np.round(np.asarray(image) + n).clip(0, 255) for image, n in zip(normal, noise, strict=True)]
    save([Image.fromarray(image.astype(np.uint8)) for image in noisy], work / "noisy")
    residuald("denoise", work / "noisy", "--bundle", BUNDLE, "--out", work / "clean")
    sheet([load(work / "noisy"), load(work / "clean"), [image.convert("RGB") for image in normal]], "denoised.jpg")


def repaired(work, defective):
    save(defective, work / "parts")
    verdicts = work / "verdicts.ndjson"
    residuald("score", work / "parts", "--bundle", BUNDLE, "--out", verdicts)
    regions = {
        verdict["file"]: verdict.get("regions") or [] for verdict in map(json.loads, verdicts.read_text().splitlines())
    }
    residuald("inpaint", BUNDLE, work / "parts", "--regions", verdicts, "--steps", 20, "--out", work / "repaired")
    marked = load(work / "parts")
    for i, image in enumerate(marked):
        for region in regions[f"{i}.png"]:
            x, y, w, h = (region[key] for key in ("x", "y", "width", "height"))
            ImageDraw.Draw(image).rectangle((x, y, x + w - 1, y + h - 1), outline="#d9730d")
    sheet([marked, load(work / "repaired")], "repaired.jpg")


def translated(work, normal, model):
    rng = np.random.default_rng(0)
    save([Image.fromarray(camera_b(np.asarray(image), rng)) for image in normal], work / "camera-b")
    residuald("translate", model, work / "camera-b", "--out", work / "as-camera-a")
    rows = [load(work / "camera-b"), load(work / "as-camera-a"), [image.convert("RGB") for image in normal]]
    sheet(rows, "translated.jpg")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("pairs", type=Path, help="model that translates from camera B")
    args = p.parse_args()
    images = sample()
    normal = of_each_surface([image for image in images if not image[1]])
    defective = of_each_surface([image for image in images if image[1]])
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        denoised(work, normal)
        repaired(work, defective)
        translated(work, normal, args.pairs)


if __name__ == "__main__":
    main()
