"""How good drawn images are, on the 1,797 handwritten digits of scikit-learn (8x8, enlarged to 32x32).

python examples/drawn_digits.py write digits
residuald-train images --data digits --size 32 --channels 1 --generative --out models/digits
residuald generate models/digits --count 360 --out drawn
python examples/drawn_digits.py measure digits drawn

Two measures, by Euclidean distance between pixels. The two-sample test of nearest neighbours (Lopez-Paz and Oquab 2017,
k = 1, leave one out): how often the nearest other image is of the same kind, drawn or held out; 50 % if they cannot be
told apart. And the distance to the nearest training image: much less than that of held-out images would be copies.
Training images in place of drawn ones show what the measures give for real images.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from residuald_train.images.data import read_folder, split

SIDE = 32
HELD_OUT, SEED = 0.2, 0  # as residuald-train images splits by default


def write(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for i, digit in enumerate(load_digits().images):
        image = Image.fromarray((digit * 255 / 16).round().astype(np.uint8))
        image.resize((SIDE, SIDE), Image.BILINEAR).save(folder / f"{i:04}.png")


def pixels(paths):
    """Paths of images -> float64 [n, H W] in 0..1."""
    return np.stack([np.asarray(Image.open(path), float).ravel() / 255 for path in paths])


def distances(a, b):
    """float64 [n, D], [m, D] -> Euclidean distances [n, m]."""
    square = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    return np.sqrt(square.clip(0))


def told_apart(a, b):
    """Two samples of equal size [n, D] -> the share of images whose nearest other image is of their own sample."""
    both, kind = np.concatenate([a, b]), np.repeat([0, 1], len(a))
    apart = distances(both, both)
    np.fill_diagonal(apart, np.inf)
    return (kind[apart.argmin(1)] == kind).mean()


def measure(data, drawn):
    fit_on, held_out = split(read_folder(data)[0], HELD_OUT, SEED)
    train, real = (pixels([image.path for image in images]) for images in (fit_on, held_out))
    order = np.random.default_rng(SEED).permutation(len(train))
    samples = {"drawn": (pixels(sorted(drawn.glob("*.png"))), train), "training": (train[order], None)}
    count = min(len(real), len(samples["drawn"][0]))
    real = real[:count]
    near = np.median(distances(real, train).min(1))
    print(f"{count} held-out images: {near:.2f} to the nearest of {len(train)} training images, median")
    for name, (sample, others) in samples.items():
        near = "" if others is None else f", {np.median(distances(sample[:count], others).min(1)):.2f} to the nearest"
        print(f"{count} {name} images: apart from held-out ones {100 * told_apart(sample[:count], real):.1f} %{near}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("verb", choices=["write", "measure"])
    p.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="write: the digits; measure: digits, drawn")
    args = p.parse_args()
    (write if args.verb == "write" else measure)(*args.folders)


if __name__ == "__main__":
    main()
