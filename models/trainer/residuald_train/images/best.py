"""The recipe `best` for images: the blind network beside closed forms. Images in; score, heat, reconstruction out."""

import torch
from torch import nn

from .gaussian import Coarse, strongest
from .kernel import chunks, fit_closed
from .profile import Profile, contrast, profile, registration
from .terms import Sum, out_of_fold, some_rows
from .unet import flops

TERMS = (  # name, weight, whether r multiplies it
    ("network", 1, False),
    ("network, by place", 1, True),
    ("mean heat, by place", 1, True),
    ("whole image", 2, True),
    ("patches", 1, True),
)
PLACES = 3 / 16  # side of the box that surprise is averaged over, as a share of its map


class ByPlace(nn.Module):
    """The network's heat [N, 1, H/2, W/2], surprise [N, h, w] -> the term of `blind` with both over what is usual."""

    def __init__(self, blind, heat, surprise):
        super().__init__()
        self.score, self.unlikely = blind.score, blind.unlikely
        self.register_buffer("heat", profile(heat), persistent=False)
        self.register_buffer("surprise", profile(surprise, PLACES), persistent=False)

    def forward(self, heat, surprise):
        return self.score(heat / self.heat) * self.unlikely(surprise / self.surprise)


class Scorer(nn.Module):
    """x uint8 [N, H, W, C] -> score [N], heat [N, H, W], reconstruction uint8 [N, H, W, C].

    Heat and reconstruction are those of the recipe `blind`, and so is the first term. The others are weighted by r, how
    far normal images show the same thing at the same place: the first term, and the mean heat, over what is usual at
    each place; the 10 strongest places of a Gaussian's residual; the worst patches. Where r is 0, the score is that of
    `blind`.
    """

    def __init__(self, blind, a, heat, surprise, r, groups, seed):
        """blind: a trained Scorer. Of n normal images: a [n, C, 32, 32], heat [n, H/2, W/2], surprise [n, h, w], r."""
        super().__init__()
        self.shape, self.blind = blind.shape, blind
        self.steps, self.losses = blind.steps, blind.losses
        self.coarse = Coarse(blind.shape)
        closed = fit_closed(a, groups, seed)
        self.gaussian, self.patches = closed.gaussian, closed.patches
        self.by_place, self.profile = ByPlace(blind, heat, surprise), Profile.fit(heat)
        self.r = r

        def by_place(x, rows):
            fitted = ByPlace(blind, heat[rows], surprise[rows])
            return lambda rows: fitted(heat[rows][:, None], surprise[rows])

        terms = (
            blind.score(heat[:, None]) * blind.unlikely(surprise),
            out_of_fold(by_place, torch.arange(len(a)), closed.fold),
            out_of_fold(lambda heat, rows: Profile.fit(heat[rows]), heat, closed.fold),
            strongest(closed.residual),
            closed.worst,
        )
        weights = {name: w * (self.r if by_r else 1) for name, w, by_r in TERMS}
        self.sum = Sum(weights, terms)

    def forward(self, x):
        z, heat, levels, *maps = self.blind.look(x)
        surprise = self.blind.surprise(levels)
        a = self.coarse(z)
        terms = (
            self.blind.score(heat) * self.blind.unlikely(surprise),
            self.by_place(heat, surprise),
            self.profile(heat.squeeze(1)),
            strongest(self.gaussian(a)),
            self.patches(a),
        )
        return self.sum(terms), *self.blind.finish(*maps)

    def facts(self):
        """Facts about the recipe for the manifest."""
        h, w, c = self.shape.height, self.shape.width, self.shape.channels
        return self.blind.facts() | {
            "recipe": "best",
            "aggregation": "mean of the terms' standard scores by weight, in the unit of the first",
            "network": self.blind.facts()["aggregation"],
            "registration": round(self.r, 3),
            "terms": self.sum.facts(),
            "gflop": round(flops(self, torch.zeros(1, h, w, c, dtype=torch.uint8)) / 1e9, 3),
        }


@torch.no_grad()
def add_closed_forms(blind, images, groups, seed):
    """A trained Scorer of `blind`, normal images uint8 [n, H, W, C] and their groups [n] -> Scorer in eval mode."""
    rows, parts = some_rows(groups, seed), []
    coarse = Coarse(blind.shape)
    for i in chunks(rows):
        z, heat, levels, *_ = blind.look(torch.as_tensor(images[i]))
        parts.append((coarse(z), heat.squeeze(1), blind.surprise(levels), contrast(blind.normalise, z)))
    *views, local = map(torch.cat, zip(*parts, strict=True))
    return Scorer(blind, *views, registration(local), groups[rows], seed).eval()
