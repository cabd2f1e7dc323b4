"""Defects that `--defects` mixes into training, beside the corruption of the recipe blind: drawn by code or from words.

Training on drawn defects is that of DRÆM (Zavrtanik et al. 2021) and TransFusion (Fučka et al. 2024). Both kinds are
pairs of a normal image and the same image with a defect: the network learns to restore it, and its level head to tell
it from what is normal. `CodeDefects` draws scratches, holes and smears under masks of fractal noise (Perlin 1985).
`DrawnDefects` takes pairs that a text-to-image pipeline drew (drawn.py).
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .corruption import chance, column, fine_structure, gaussian_field, integer, log_uniform, mean_under, uniform
from .scorer import standardise

NAMES = "scratch", "hole", "smear"
SHARE = 0.25  # share of the images of each step that get a defect instead of the recipe's corruption
OCTAVES = 4
AMPLITUDE = 1.0, 6.0  # in standard deviations of the image's fine structure


@dataclass(frozen=True)
class Defects:
    """What `--defects` asks for, as the manifest and the checkpoint record it."""

    words: tuple  # of NAMES, or prompts for a pipeline
    share: float = SHARE
    pipeline: str | None = None  # SHA-256 of the U-Net that draws the words; None: code draws them
    pairs: int | None = None  # how many pairs the pipeline draws


def fractal(n, size, knots, g):
    """Fractal noise [n, 1, size, size] of unit deviation: octaves, each twice as fine and half as strong."""
    f = sum(gaussian_field(n, size, knots << k, knots << k, g) / 2**k for k in range(OCTAVES))
    return f / f.flatten(1).std(1).view(n, 1, 1, 1)


def axes(n, size, g, away=0.25):
    """Pixel coordinates [n, 1, size, size] along and across a random direction, from a random place.

    `away`: how far the place may be from the middle on each axis, as a share of the size.
    """
    t = torch.arange(size) - size / 2
    y, x = (t.view(shape) - uniform((n, 1, 1, 1), -away, away, g) * size for shape in ((1, 1, -1, 1), (1, 1, 1, -1)))
    angle = uniform((n, 1, 1, 1), 0, torch.pi, g)
    return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()


def scratches(n, size, g):
    """Masks in 0..1 of thin lines, 1 to 4 pixels wide: bent a little, some jagged like cracks, with interruptions."""
    along, across = axes(n, size, g)
    bend = column(n, 0.02, 0.1, g) * size * gaussian_field(n, size, 2, 2, g)
    jagged = column(n, 0.1, 2, g) * fractal(n, size, 8, g)
    line = torch.exp(-(((across + bend + jagged) / column(n, 0.5, 2, g)).square()))
    ends = torch.sigmoid(column(n, 0.1, 0.5, g) * size - along.abs())
    return line * ends * torch.sigmoid(4 * (fractal(n, size, 4, g) + 1))


def holes(n, size, g):
    """Masks in 0..1 of ragged ellipses, from 2 pixels to a quarter of the size in radius, with sharp edges."""
    radius = log_uniform((n, 1, 1, 1), 2, size / 4, g)
    return ragged(radius, axes(n, size, g), g)


def patches(n, size, g):
    """Masks in 0..1 of what a pipeline paints anew: ragged ellipses anywhere, with soft edges."""
    radius = log_uniform((n, 1, 1, 1), size / 12, size / 4, g)
    return ragged(radius, axes(n, size, g, away=0.45), g, soft=4)


def ragged(radius, axes, g, soft=1):
    """Masks of ellipses [n, 1, s, s] whose longer half axis is `radius`, with edges of fractal noise."""
    along, across = axes
    n, size = along.shape[0], along.shape[3]
    distance = ((along / radius).square() + (across / (radius * column(n, 0.4, 1, g))).square()).sqrt()
    edge = uniform((n, 1, 1, 1), 0.05, 0.4, g) * fractal(n, size, 8, g)
    return torch.sigmoid((1 - distance + edge) * radius * column(n, 0.7, 3, g) / soft)


def smears(n, size, g):
    """Masks in 0..1 of clouds with soft edges: fractal noise above a level, 1 to 20 % of the area."""
    f = fractal(n, size, 2, g)
    area = (log_uniform((n,), 0.01, 0.2, g) * size * size).long()
    level = f.flatten(1).sort(1, descending=True).values.gather(1, area[:, None]).view(n, 1, 1, 1)
    return torch.sigmoid((f - level) * column(n, 3, 20, g))


MASKS = {"scratch": scratches, "hole": holes, "smear": smears}


class CodeDefects:
    """Draws the defects `names` into images. Masks are made once and cropped at random, as those of the Corruption."""

    def __init__(self, names, corruption):
        self.of, self.g = corruption, corruption.g
        size = corruption.size + corruption.size // 4
        self.masks = {name: corruption.bank(lambda name=name: MASKS[name](8, size, self.g), 0.25) for name in names}

    def __call__(self, x):
        """Standardised images [n, C, s, s] -> (the same, with defects)."""
        names = sorted(self.masks)
        spread = fine_structure(x)
        y = [self.draw(names[integer(len(names), self.g)], x[i : i + 1], spread[i : i + 1]) for i in range(len(x))]
        return x, torch.cat(y)

    def draw(self, name, x, spread):
        g, c = self.g, x.shape[1]
        m = self.of.pick(self.masks[name], 1)
        dark = -1 if chance(g) < 2 / 3 else 1
        a = dark * column(1, *AMPLITUDE, g).to(x.device) * spread
        tint = 1 + 0.3 * self.of.offset(1, c)
        if name == "scratch":
            return x + a * tint * m + relief(m, 0.5 * a, g)
        if name == "hole":
            z = mean_under(x, m) + a * tint + 0.3 * chance(g) * (x - mean_under(x, m))
            return x + m * (z - x) + relief(m, 0.5 * a, g)
        k = (7, 11, 17)[integer(3, g)]
        window, pad = ((1, k), (0, k // 2)) if chance(g) < 0.5 else ((k, 1), (k // 2, 0))
        dragged = F.avg_pool2d(x, window, 1, pad, count_include_pad=False)
        return x + m * (dragged - x + 0.5 * a * tint)


def relief(m, a, g):
    """A light and a dark flank of the mask m, as under light from a random side, of strength up to `a`."""
    shift = [integer(5, g) - 2 for _ in range(2)]
    return chance(g) * a * (torch.roll(m, shift, (2, 3)) - m)


@dataclass(frozen=True)
class Pairs:
    """Squares of normal images, painted anew in part. They replace what is at `corner` in the image `row`."""

    row: np.ndarray  # int64 [n]: which of the training images
    corner: np.ndarray  # int64 [n, 2]: the square's top and left in pixels
    middle: np.ndarray  # int64 [n, 2]: the middle of what was painted, down and right from the corner in pixels
    square: np.ndarray  # uint8 [n, s, s, C]

    def with_defect(self, images, picked):
        """Images uint8 [n, H, W, C] and indices of pairs [m] -> (m of the images, the same with their defects)."""
        x = images[self.row[picked]]
        y, side = x.copy(), self.square.shape[1]
        for image, i in zip(y, picked, strict=True):
            top, left = self.corner[i]
            image[top : top + side, left : left + side] = self.square[i]
        return x, y


class DrawnDefects:
    """Crops of images and of the same images with defects that a pipeline drew. `crops`: the Crops of the training."""

    def __init__(self, pairs, crops):
        self.pairs, self.crops = pairs, crops

    def __call__(self, x):
        """Takes x [n, C, s, s] for its length alone -> n crops of normal images, the same with defects."""
        picked = torch.randint(len(self.pairs.row), (len(x),), generator=self.crops.g).numpy()
        x, y = (torch.as_tensor(each).to(x.device) for each in self.pairs.with_defect(self.crops.images, picked))
        h, w = x.shape[1:3]
        down, right = torch.as_tensor(self.pairs.corner[picked] + self.pairs.middle[picked]).T
        around = torch.stack([(2 * right + 1) / w - 1, (2 * down + 1) / h - 1], 1)
        x, mean, deviation = standardise(x)
        y = (y.float().permute(0, 3, 1, 2) - mean) / deviation
        return self.crops.cut(x, y, around=around)
