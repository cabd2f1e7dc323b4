"""Measures the images that models/textures draws.

1. A classifier of material and defect, a small convolutional network that is trained here on crops of photographs with
   drawn defects and never on drawn images, names what each drawn image shows. The prompts are captions of the kind that
   the model was trained on, and paraphrases with words and templates that no training caption has.
2. The kernel inception distance (Binkowski et al. 2018, arXiv 1801.01401) in the features of that classifier, on crops
   of 96 pixels without defect, all in gray: to crops of the right third of the photographs, which no training saw. It is
   unbiased, so it is honest on few images. Features are of a network of our own: values cannot be compared with others'.
3. Near-copies: the share of drawn crops that are closer to a training crop than 99 % of held-out crops are, by the
   correlation of pixels, over all places of the photographs' left part.

Needs scikit-image. `--drawn DIR` keeps the images, with a sheet of 64.
"""

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image
from surface import EDGE, TEXTURES
from textures import (
    DEFECTS,
    PARAPHRASED_PLAIN,
    PARAPHRASED_WITH,
    PARAPHRASES,
    PLAIN,
    SIZE,
    TINTS,
    WITH,
    WORDS,
    caption,
    of_texture,
)
from torch import nn

CROP = 96
KINDS = (None, *DEFECTS)
STEPS = 900  # of the classifier's training
COPY = 0.99  # quantile of held-out crops beyond which a crop counts as a copy


class Classifier(nn.Module):
    """RGB images float32 [N, 3, H, W] in 0..1 -> features [N, 128], logits of material [N, 3] and defect [N, 5]."""

    def __init__(self):
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        parts = []
        for a, b in zip(widths, widths[1:], strict=False):
            parts += [nn.Conv2d(a, b, 5 if a == 3 else 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]
            parts += [nn.Conv2d(b, b, 3, 1, 1), nn.BatchNorm2d(b), nn.ReLU()]
        self.body = nn.Sequential(*parts)
        self.material, self.defect = nn.Linear(128, 3), nn.Linear(256, len(KINDS))

    def forward(self, x):
        h = self.body(x)
        mean, most = h.mean((2, 3)), h.amax((2, 3))
        return mean, self.material(mean), self.defect(torch.cat([mean, most], 1))


def as_tensor(images):
    return torch.as_tensor(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 255


def train_classifier(photographs, seed):
    """Trains on fresh images of textures.py with another seed, half of them at half size -> Classifier in eval mode."""
    torch.manual_seed(seed)
    rng, model = np.random.default_rng(seed), Classifier()
    adam = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(adam, 2e-3, total_steps=STEPS)
    for _ in range(STEPS):
        x, material, defect = batch(photographs, 16, rng)
        x = x * (0.85 + 0.3 * torch.rand(len(x), 1, 1, 1)) + 0.02 * torch.randn_like(x)
        _, a, b = model(x)
        error = F.cross_entropy(a, material) + F.cross_entropy(b, defect)
        adam.zero_grad()
        error.backward()
        adam.step()
        rate.step()
    return model.eval()


def batch(photographs, count, rng):
    images, materials, defects = [], [], []
    for _ in range(count):
        k = int(rng.integers(3))
        image, _, defect, _ = of_texture(photographs[TEXTURES[k]], TEXTURES[k], rng)
        images.append(image)
        materials.append(k)
        defects.append(KINDS.index(defect))
    return as_tensor(images), torch.tensor(materials), torch.tensor(defects)


@torch.no_grad()
def named(model, images):
    """-> (material [N], defect [N]) as indices."""
    parts = [model(as_tensor(images[i : i + 32])) for i in range(0, len(images), 32)]
    return (torch.cat([p[k] for p in parts]).argmax(1).numpy() for k in (1, 2))


def prompts(paraphrased, each, rng):
    """-> [(material, defect, prompt)], `each` of every material and defect."""
    words = {name: PARAPHRASES[name] for name in PARAPHRASES} if paraphrased else WORDS
    plain, with_defect = (PARAPHRASED_PLAIN, PARAPHRASED_WITH) if paraphrased else (PLAIN, WITH)
    out = []
    for name in TEXTURES:
        for defect in KINDS:
            for _ in range(each):
                tint, shade = str(rng.choice(list(TINTS[name]))), ("bright", "dark")[rng.integers(2)]
                out.append((name, defect, caption(name, tint, defect, shade, rng, words, plain, with_defect)))
    return out


def draw(args, prompt, count, seed, out):
    """Draws images with the daemon's program -> the images."""
    command = [args.residuald, "generate", args.model, "--prompt", prompt, "--count", str(count), "--seed", str(seed)]
    command += ["--out", out, "--force", "--json"] + (["--steps", str(args.steps)] if args.steps else [])
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds.append(json.loads(done.stdout)["seconds"] / count)
    return [Image.open(out / f"{i:06}.png").convert("RGB") for i in range(count)]


seconds = []  # of each drawn image


def accuracy(args, model, paraphrased, rng):
    """Prints how often the classifier names material and defect of drawn images as the prompt does -> the images."""
    asked, images = prompts(paraphrased, args.each, rng), []
    for i, (_, _, prompt) in enumerate(asked):
        images += draw(args, prompt, 1, 1000 + i, args.drawn / ("paraphrased" if paraphrased else "known") / f"{i:03}")
    material, defect = named(model, images)
    right = [
        (TEXTURES[m] == name, KINDS[d] == kind) for m, d, (name, kind, _) in zip(material, defect, asked, strict=True)
    ]
    share = [100 * float(np.mean([r[k] for r in right])) for k in (0, 1)]
    both = 100 * float(np.mean([a and b for a, b in right]))
    what = "paraphrases" if paraphrased else "captions of the known kind"
    print(f"| {what} | {len(asked)} | {share[0]:.1f} | {share[1]:.1f} | {both:.1f} |", flush=True)
    for kind in KINDS:
        hits = [b for (_, b), (_, k, _) in zip(right, asked, strict=True) if k == kind]
        print(f"|   {kind or 'no defect'} | {len(hits)} | | {100 * np.mean(hits):.1f} | |", flush=True)
    return images


def crops(photograph, left, right, count, rng):
    h, w = photograph.shape
    low, high = int(left * w), int(right * w) - CROP
    xs, ys = rng.integers(low, high + 1, count), rng.integers(0, h - CROP + 1, count)
    return np.stack([photograph[y : y + CROP, x : x + CROP] for x, y in zip(xs, ys, strict=True)])


def gaussian(photograph, count, rng):
    """The Gaussian model of a texture: random phases for the spectrum of its left part (Galerne et al. 2011)."""
    part = photograph[:, : int(EDGE * photograph.shape[1])].astype(float)
    mean, out = part.mean(), []
    spectrum = np.abs(np.fft.fft2(part - mean))
    for _ in range(count):
        phase = np.fft.fft2(rng.standard_normal(part.shape))
        drawn = np.real(np.fft.ifft2(spectrum * phase / np.abs(phase))) + mean
        out.append(crops(drawn.round().clip(0, 255).astype(np.uint8), 0, 1, 1, rng)[0])
    return np.stack(out)


@torch.no_grad()
def features(model, gray):
    """Crops uint8 [N, H, W] -> [N, 128]."""
    x = torch.as_tensor(gray).float()[:, None].expand(-1, 3, -1, -1) / 255
    return torch.cat([model(part)[0] for part in x.split(64)]).double().numpy()


def kid(a, b):
    """The unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3."""

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    n, m = len(a), len(b)
    within = [(kernel(x, x).sum() - np.trace(kernel(x, x))) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return float(within[0] + within[1] - 2 * kernel(a, b).sum() / (n * m))


def highest_correlation(crop, photograph):
    """The highest correlation of a crop with any place of the photograph's left part, mirrored or not."""
    from skimage.feature import match_template

    part = photograph[:, : int(EDGE * photograph.shape[1])].astype(float)
    return max(float(match_template(part, c.astype(float)).max()) for c in (crop, crop[:, ::-1]))


def gray(images):
    """The photographs' gray is the middle of the tinted colours' range: undone by the mean over the channels."""
    return [np.asarray(image, float).mean(2).round().astype(np.uint8) for image in images]


def compare(args, model, photographs, rng):
    """Prints the distance to held-out crops, and the share of copies, for each texture."""
    print("\n| texture | crops | KID x 1000 to held-out crops | near-copies |\n| --- | --- | --- | --- |")
    for name in TEXTURES:
        photograph, count = photographs[name], args.crops
        drawn = gray(draw(args, f"gray {name}" if name != "brick" else "gray bricks", count, 50, args.drawn / name))
        held = crops(photograph, EDGE, 1, count, rng)
        limit = np.quantile([highest_correlation(c, photograph) for c in crops(photograph, EDGE, 1, count, rng)], COPY)
        found = {
            "drawn": np.stack([image[80 : 80 + CROP, 80 : 80 + CROP] for image in drawn]),
            "of the training part": crops(photograph, 0, EDGE, count, rng),
            "Gaussian texture": gaussian(photograph, count, rng),
            "held out, others": crops(photograph, EDGE, 1, count, rng),
        }
        to = features(model, held)
        for kind, some in found.items():
            copies = np.mean([highest_correlation(c, photograph) > limit for c in some])
            print(
                f"| {name}, {kind} | {len(some)} | {1000 * kid(features(model, some), to):.1f} | {copies:.2f} |",
                flush=True,
            )


def sheet(images, path):
    """Writes a square sheet of up to 64 images at half size."""
    side = min(8, int(len(images) ** 0.5))
    out = Image.new("RGB", (side * SIZE // 2, side * SIZE // 2))
    for i, image in enumerate(images[: side * side]):
        out.paste(image.resize((SIZE // 2, SIZE // 2), Image.LANCZOS), (i % side * SIZE // 2, i // side * SIZE // 2))
    out.save(path)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", type=Path, default=Path("models/textures"))
    p.add_argument("--residuald", default="target/release/residuald", metavar="PROGRAM")
    p.add_argument("--drawn", type=Path, default=Path("build/textures"), help="folder for drawn images")
    p.add_argument("--each", type=int, default=5, help="prompts of each material and defect (default 5)")
    p.add_argument("--crops", type=int, default=64, help="images of each texture for the distance (default 64)")
    p.add_argument("--steps", type=int, help="steps of a draw (default: the model's)")
    args = p.parse_args()
    args.drawn.mkdir(parents=True, exist_ok=True)
    rng, photographs = np.random.default_rng(1), {name: getattr(skimage.data, name)() for name in TEXTURES}
    model = train_classifier(photographs, 77)
    x, material, defect = batch(photographs, 300, np.random.default_rng(78))
    with torch.no_grad():
        _, a, b = model(x)
    right = [float((out.argmax(1) == want).float().mean()) for out, want in ((a, material), (b, defect))]
    print(f"classifier on fresh crops: material {100 * right[0]:.1f} %, defect {100 * right[1]:.1f} %\n")
    print("| prompts | images | material right, % | defect right, % | both, % |\n| --- | --- | --- | --- | --- |")
    images = accuracy(args, model, False, rng)
    accuracy(args, model, True, rng)
    order = np.random.default_rng(0).permutation(len(images))
    sheet([images[i] for i in order], args.drawn / "sheet.png")
    compare(args, model, photographs, rng)
    print(f"\nseconds an image: {np.median(seconds):.1f} (median)")


if __name__ == "__main__":
    main()
