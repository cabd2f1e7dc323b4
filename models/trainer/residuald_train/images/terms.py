"""Adds the terms of a score: each is standardised on normal images that it was not fitted to, capped, and weighted."""

import numpy as np
import torch
from torch import nn

from ..console import say

FOLDS = 4
MOST = 1000  # rows that closed forms are fitted to; bounds memory and time
LEAST, LEAST_DEVIATION = 1e-6, 0.02  # of a term; of its logarithm
CAP = 10.0  # deviations, beyond which a term grows only by the logarithm


def capped(z):
    """Standard scores -> the same up to ±10, then ±(10 + log(1 + |z| - 10)): severity still tells far from farther."""
    return torch.where(z.abs() > CAP, z.sign() * (CAP + torch.log1p((z.abs() - CAP).clamp(min=0))), z)


class Sum(nn.Module):
    """Terms, K times [N] -> score [N].

    The mean of the capped standard scores of the terms' logarithms by weight, in the unit of the first term: with no
    other weight the score is that term.
    """

    def __init__(self, weights, terms):
        """weights {name: weight}; terms, as many times [n]: the terms of normal images."""
        super().__init__()
        self.names, self.weights = list(weights), [float(w) for w in weights.values()]
        logs = [logarithm(t.double()) for t in terms]
        self.mean = [float(x.mean()) for x in logs]
        self.deviation = [max(float(x.std(correction=0)), LEAST_DEVIATION) for x in logs]

    def forward(self, terms):
        total = 0
        for weight, mean, deviation, t in zip(self.weights, self.mean, self.deviation, terms, strict=True):
            if weight:
                total = total + weight * capped((logarithm(t) - mean) / deviation)
        return torch.exp(self.mean[0] + self.deviation[0] / sum(self.weights) * total)

    def facts(self):
        """What each term weighs, as a share of 1, and its mean and deviation on normal images, for the manifest."""
        share = [w / sum(self.weights) for w in self.weights]
        columns = zip(self.names, share, self.mean, self.deviation, strict=True)
        return [
            {"term": name, "weight": round(w, 3), "log_mean": round(m, 3), "log_deviation": round(d, 3)}
            for name, w, m, d in columns
        ]


def logarithm(t):
    return torch.log(t.clamp(min=LEAST))


def some_rows(groups, seed):
    """Groups [n] of rows -> the rows that closed forms are fitted to, at most MOST of them. Says if it is not all."""
    if len(groups) <= MOST:
        return np.arange(len(groups))
    say(f"closed forms: fitted to {MOST:,} of {len(groups):,} rows, drawn at random")
    return np.sort(np.random.default_rng(seed).permutation(len(groups))[:MOST])


def folds(groups, count, seed):
    """Groups [n] -> the fold of each row [n]. A group is in one fold, unless there are fewer groups than folds."""
    names, index = np.unique(groups, return_inverse=True)
    if len(names) < count:
        index = np.arange(len(groups))
    order = np.random.default_rng(seed).permutation(index.max() + 1)
    return torch.as_tensor((order % count)[index])


def out_of_fold(fit, x, fold):
    """x [n, …]; fit(x, rows bool [n]) -> function of x; fold [n] -> what it gives for rows it was not fitted to [n]."""
    out = None
    for k in range(FOLDS):
        here = fold == k
        if here.any():
            found = fit(x, ~here)(x[here])
            out = found.new_zeros(len(x), *found.shape[1:]) if out is None else out
            out[here] = found
    return out
