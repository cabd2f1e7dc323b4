"""Measures `residuald denoise` on the normal images of models/surface's sample, which training never saw.

Gaussian noise of 10, 25 and 50 of 255 is added, and the sum is rounded to 8 bits and clipped, as a file holds it. No
method is told the noise level: the others get scikit-image's estimate. The weight of total variation was chosen for
each level on training images, because its best value depends on the texture.

Prints the mean PSNR in dB and SSIM of each method. Needs scikit-image and bm3d (PyPI).
"""

import argparse
import base64
import gzip
import io
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, estimate_sigma

LEVELS = 10, 25, 50
WEIGHTS = 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3
CLEAN = 40.0  # dB that an image without noise keeps at least


def sample_images(path, count):
    """-> the first normal images of each surface, uint8 [H, W], as many of each."""
    found = {}
    with gzip.open(path) as lines:
        for record in map(json.loads, lines):
            if not record["label"]:
                content = base64.b64decode(record["image"])
                found.setdefault(record["surface"], []).append(np.asarray(Image.open(io.BytesIO(content))))
    return [image for images in found.values() for image in images[: count // len(found)]]


def noisy(image, sigma, rng):
    return (image + sigma * rng.standard_normal(image.shape)).round().clip(0, 255).astype(np.uint8)


def total_variation(image, weight):
    return 255 * denoise_tv_chambolle(image / 255, weight=weight)


def nl_means(image):
    sigma = estimate_sigma(image / 255)
    return 255 * denoise_nl_means(image / 255, h=0.8 * sigma, sigma=sigma, patch_size=5, patch_distance=10)


def bm3d(image):
    from bm3d import bm3d as run  # slow to import

    return 255 * run(image / 255, estimate_sigma(image / 255))


def best_weight(train, sigma, rng):
    """The weight of total variation with the highest PSNR on training images."""
    noised = [(image, noisy(image, sigma, rng)) for image in train]
    return max(WEIGHTS, key=lambda w: np.mean([psnr(image, total_variation(y, w)) for image, y in noised]))


def psnr(image, found):
    return peak_signal_noise_ratio(image, found.round().clip(0, 255).astype(np.uint8), data_range=255)


def quality(images, found):
    """-> mean (PSNR, SSIM)."""
    eight_bits = [f.round().clip(0, 255).astype(np.uint8) for f in found]
    pairs = list(zip(images, eight_bits, strict=True))
    same = [structural_similarity(a, b, data_range=255) for a, b in pairs]
    return float(np.mean([psnr(a, b) for a, b in pairs])), float(np.mean(same))


def residuald(program, bundle, images):
    """-> the images that `residuald denoise` writes."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before"), Path(folder, "after")
        before.mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(before / f"{i:04}.png")
        subprocess.run(
            [program, "denoise", before, "--bundle", bundle, "--out", after], check=True, stdout=subprocess.DEVNULL
        )
        return [np.asarray(Image.open(after / f"{i:04}.png")) for i in range(len(images))]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--bundle", type=Path, default=Path("models/surface"))
    p.add_argument("--train", type=Path, required=True, help="training images, which surface.py writes")
    p.add_argument("--residuald", default="target/release/residuald", metavar="PROGRAM")
    p.add_argument("--count", type=int, default=60, help="number of images (default 60)")
    args = p.parse_args()
    rng = np.random.default_rng(0)
    images = sample_images(args.bundle / "sample.ndjson.gz", args.count)
    train = [np.asarray(Image.open(path)) for path in sorted(args.train.glob("*-00[0-4].png"))]
    print("| noise | method | PSNR | SSIM |\n| --- | --- | --- | --- |")
    for sigma in LEVELS:
        weight = best_weight(train, sigma, rng)
        noised = [noisy(image, sigma, rng) for image in images]
        methods = {
            "none": noised,
            "total variation": [total_variation(y, weight) for y in noised],
            "non-local means": [nl_means(y) for y in noised],
            "BM3D": [bm3d(y) for y in noised],
            "residuald": residuald(args.residuald, args.bundle, noised),
        }
        for name, found in methods.items():
            psnr_, ssim = quality(images, found)
            print(f"| {sigma} | {name} | {psnr_:.2f} | {ssim:.3f} |", flush=True)
    kept = np.array([psnr(a, b) for a, b in zip(images, residuald(args.residuald, args.bundle, images), strict=True)])
    below = int((kept < CLEAN).sum())
    print(f"without noise: {below} of {len(kept)} images below {CLEAN:.0f} dB, the lowest {kept.min():.1f} dB")


if __name__ == "__main__":
    main()
