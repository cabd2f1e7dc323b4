"""The recipe `kernel` for images: closed forms only. Images in; score, heat and reconstruction out."""

import os
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from ..console import say
from .gaussian import Coarse, Gaussian, strongest
from .patches import Patches
from .profile import Profile, contrast, registration
from .scorer import Normalise, standardise
from .terms import FOLDS, Sum, folds, out_of_fold, some_rows
from .unet import flops

TERMS = (  # name, weight, whether r multiplies it
    ("whole image", 1, False),
    ("by place", 1, True),
    ("patches", 1, True),
)


@dataclass(frozen=True)
class Options:
    seed: int = 0
    device: str = "cpu"  # this and the next two: of a denoiser to draw with
    amp: bool = False
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))


class Scorer(nn.Module):
    """x uint8 [N, H, W, C] -> score [N], heat [N, H, W], reconstruction uint8 [N, H, W, C].

    Heat is how much a Gaussian's denoiser changes the image at each place of a 32x32 grid. The terms are its 10
    strongest places; weighted by r, its mean over what is usual at each place, and the patches that a denoiser of
    patches restores worst. r is how far normal images show the same thing at the same place (`profile.registration`).
    """

    def __init__(self, shape, a, r, groups, seed):
        """a: coarse normal images [n, C, 32, 32]; r: their registration; groups [n]: of one object, one name."""
        super().__init__()
        self.shape = shape
        self.coarse = Coarse(shape)
        closed = fit_closed(a, groups, seed)
        self.gaussian, self.patches = closed.gaussian, closed.patches
        heat = closed.residual.abs().mean(1)
        self.profile = Profile.fit(heat)
        self.r = r
        by_place = out_of_fold(lambda heat, rows: Profile.fit(heat[rows]), heat, closed.fold)
        weights = {name: w * (self.r if by_r else 1) for name, w, by_r in TERMS}
        self.sum = Sum(weights, (strongest(closed.residual), by_place, closed.worst))
        self.steps, self.losses = 0, []

    def forward(self, x):
        z, mean, deviation = standardise(x)
        a = self.coarse(z)
        residual = self.gaussian(a)
        heat = residual.abs().mean(1)
        score = self.sum((strongest(residual), self.profile(heat), self.patches(a)))
        size = self.shape.height, self.shape.width
        shown, change = (
            F.interpolate(t, size=size, mode="bilinear", align_corners=False) for t in (heat[:, None], residual)
        )
        clean = ((z - change) * deviation + mean).round().clamp(0, 255)
        return score, shown.squeeze(1), clean.to(torch.uint8).permute(0, 2, 3, 1)

    def facts(self):
        """Facts about the recipe for the manifest."""
        h, w, c = self.shape.height, self.shape.width, self.shape.channels
        return {
            "recipe": "kernel",
            "calls": 0,
            "aggregation": "mean of the terms' standard scores by weight, in the unit of the first",
            "registration": round(self.r, 3),
            "terms": self.sum.facts(),
            "gflop": round(flops(self, torch.zeros(1, h, w, c, dtype=torch.uint8)) / 1e9, 3),
        }


@dataclass(frozen=True)
class Closed:
    """What both recipes with closed forms fit to coarse images."""

    gaussian: Gaussian
    patches: Patches
    fold: torch.Tensor  # [n]
    residual: torch.Tensor  # [n, C, 32, 32], of a Gaussian that was not fitted to the image's fold
    worst: torch.Tensor  # [n], the patches' term, likewise


def fit_closed(a, groups, seed):
    """Coarse normal images [n, C, 32, 32], their groups [n] -> Closed."""
    if (count := len(set(groups))) < FOLDS:
        say(f"closed forms: the images to train on have {count} groups, fewer than {FOLDS} folds, so folds split them")
    fold, half = folds(groups, FOLDS, seed), folds(groups, 2, seed) == 1

    def patches(a, rows):
        return Patches.fit(a[rows], half[rows], seed)

    everything = torch.ones(len(a), dtype=torch.bool)
    residual = out_of_fold(lambda a, rows: Gaussian.fit(a[rows]), a, fold)
    worst = out_of_fold(patches, a, fold)
    return Closed(Gaussian.fit(a), patches(a, everything), fold, residual, worst)


@torch.no_grad()
def fit(shape, images, groups, options):
    """Normal images uint8 [n, H, W, C] and their groups [n] -> Scorer in eval mode, on the CPU."""
    torch.set_num_threads(options.threads)
    rows = some_rows(groups, options.seed)
    coarse, normalise, parts = Coarse(shape), Normalise(min(shape.height, shape.width)), []
    for i in chunks(rows):
        z, _, _ = standardise(torch.as_tensor(images[i]))
        parts.append((coarse(z), contrast(normalise, z)))
    a, local = map(torch.cat, zip(*parts, strict=True))
    return Scorer(shape, a, registration(local), groups[rows], options.seed).eval()


def chunks(rows, size=16):
    return [rows[i : i + size] for i in range(0, len(rows), size)]
