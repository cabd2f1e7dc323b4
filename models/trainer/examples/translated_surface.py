"""Measures `residuald translate` with models of pairs: a second camera and night, for models/surface.

python examples/translated_surface.py work --residuald target/release/residuald

Camera B has another gain and gamma, blur, a vignette and noise; night has little light and more noise. Pairs for
training are crops of the photographs' left part as camera A and the other see them. Judged are images of the right
third, which neither training saw: normal crops for PSNR and SSIM to what camera A sees, and the sample of
models/surface, with its defects, for the AUROC of that bundle. Beside it: the images as they are, and a U-Net of the
same size that was trained for as many steps to return the target at once.
"""

import argparse
import base64
import gzip
import io
import json
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import roc_auc_score
from surface import BANDS, TEXTURES, cut

from residuald_train.images import translation
from residuald_train.images.generative import to_sample
from residuald_train.images.train import descend

PAIRS, JUDGED = 600, 90  # crops
SEED = 4000


def camera_b(image, rng):
    z = 255 * 0.8 * (image / 255) ** 1.5
    return seen(gaussian_filter(z, 1.0), 0.35, 5, rng)


def night(image, rng):
    return seen(gaussian_filter(image * 0.22, 0.5), 0.2, 5, rng)


def seen(light, vignette, noise, rng):
    """Levels of light -> uint8, with darker corners and noise."""
    h, w = light.shape
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    light = light * (1 - vignette * (x**2 + y**2) / 2)
    return (light + noise * rng.standard_normal(light.shape)).round().clip(0, 255).astype(np.uint8)


OTHERS = {"camera B": camera_b, "night": night}


def crops(count, rng, right=False):
    """-> [uint8 [H, W]] of the photographs' left part, or of their right third."""
    photographs = [getattr(skimage.data, name)() for name in TEXTURES]
    bands = [None if right else int(rng.integers(BANDS)) for _ in range(count)]
    return [np.asarray(cut(photographs[i % 3], rng, band)) for i, band in enumerate(bands)]


def sample(bundle):
    """-> (images uint8, labels) of the bundle's sample."""
    with gzip.open(bundle / "sample.ndjson.gz") as lines:
        records = [json.loads(line) for line in lines]
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(r["image"])))) for r in records]
    return images, [r["label"] for r in records]


def fit_regression(pairs, options):
    """Pairs -> a network like that of `translation`, trained to return the target; its noisy image is always zero."""
    torch.manual_seed(options.seed)
    network = translation.Denoiser(1, 1, options)
    g = torch.Generator().manual_seed(options.seed + 1)
    some = translation.Crops(pairs, options.crop, g)

    def batch_loss():
        given, target = some(options.batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.amp):
            out = network(torch.cat([torch.zeros_like(target), given], 1), torch.zeros(len(given), dtype=torch.long))
        return ((out.float() - target).square().mean(),)

    return descend(network, batch_loss, g, options, None, False, None, None, "train regression")


@torch.no_grad()
def regressed(network, images):
    def one(image):
        given = to_sample(torch.as_tensor(image[None, :, :, None]))
        out = network(torch.cat([torch.zeros_like(given), given], 1), torch.zeros(1, dtype=torch.long))
        return ((out[0, 0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()

    return [one(image) for image in images]


def save(images, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:04}.png")


def translated(program, model, work, steps, images):
    """-> the images that `residuald translate` writes."""
    save(images, work / "before")
    command = [program, "translate", model, work / "before", "--out", work / "after", "--force"]
    subprocess.run([*command, "--steps", str(steps)], check=True, stdout=subprocess.DEVNULL)
    return [np.asarray(Image.open(work / "after" / f"{i:04}.png")) for i in range(len(images))]


def auroc(program, bundle, images, labels, work):
    """-> the bundle's AUROC in %."""
    save(images, work / "scored")
    (work / "verdicts.ndjson").unlink(missing_ok=True)
    command = [program, "score", work / "scored", "--bundle", bundle, "--out", work / "verdicts.ndjson"]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    verdicts = map(json.loads, (work / "verdicts.ndjson").read_text().splitlines())
    scores = {verdict["file"]: verdict["anomaly_score"] for verdict in verdicts}
    return 100 * roc_auc_score(labels, [scores[f"{i:04}.png"] for i in range(len(images))])


def quality(targets, found):
    pairs = list(zip(targets, found, strict=True))
    psnr = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs]
    return np.mean(psnr), np.mean([structural_similarity(a, b, data_range=255) for a, b in pairs])


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("work", type=Path, help="folder for images and models; models that are there are used")
    p.add_argument("--bundle", type=Path, default=Path("models/surface"))
    p.add_argument("--residuald", default="target/release/residuald", metavar="PROGRAM")
    p.add_argument("--steps", type=int, default=3000, help="training steps of each network")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--amp", action="store_true", help="train in bfloat16")
    args = p.parse_args()
    options = replace(translation.Options(), steps=args.steps, amp=args.amp, threads=args.threads)
    targets = crops(JUDGED, np.random.default_rng(SEED), right=True)
    images, labels = sample(args.bundle)
    args.work.mkdir(parents=True, exist_ok=True)
    print(f"camera A: AUROC {auroc(args.residuald, args.bundle, images, labels, args.work):.1f} %", flush=True)
    for name, other in OTHERS.items():
        rng, model = np.random.default_rng(SEED + 1), args.work / name.replace(" ", "-")
        pairs = [(other(a, rng)[..., None], a[..., None]) for a in crops(PAIRS, rng)]
        if not model.exists():
            network = translation.fit(pairs, options)
            translation.write(model, translation.files(network, 1, 1, options)[0], False, "pipeline")
        regression = fit_regression(pairs, options)
        judged, streamed = [other(a, rng) for a in targets], [other(a, rng) for a in images]
        methods = {"as it is": list, "regression": partial(regressed, regression)}
        for steps in (1, 4, 20):
            methods[f"translate, {steps} steps"] = partial(translated, args.residuald, model, args.work, steps)
        for method, made in methods.items():
            psnr, ssim = quality(targets, made(judged))
            area = auroc(args.residuald, args.bundle, made(streamed), labels, args.work)
            print(f"{name}, {method}: {psnr:.2f} dB, SSIM {ssim:.3f}, AUROC {area:.1f} %", flush=True)


if __name__ == "__main__":
    main()
