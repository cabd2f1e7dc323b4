"""Quantile transforms, kept as piecewise-linear tables: they make any continuous feature about normal, and back.

A value becomes z = Φ⁻¹(u), where u in 0..1 is its mid-rank among the training values. Knots are the distinct values at
both ends, so that the tails are exact, and quantiles between them.
"""

import numpy as np
import torch
from scipy.special import ndtri
from torch import nn

QUANTILES = 400  # knots at even ranks, and as many at even z
TAIL = 24  # values at each end that are knots
ATOM = 0.004  # least share of the values for an atom, a point mass
PROMINENCE = 8  # an atom is at least this many times as common as the typical value near it
NEAR = 10  # distinct values on each side that count as near
MOST_ATOMS = 48
MOST_DECIMALS = 6


def mid_ranks(values):
    """float [n] -> (distinct values [k], mid-rank of each in 0..1 [k], share of each [k])."""
    distinct, counts = np.unique(values, return_counts=True)
    return distinct, (np.cumsum(counts) - counts / 2) / len(values), counts / len(values)


def find_atoms(share):
    """Shares of the distinct values in their order -> bool [k]: the point masses within a continuous feature."""
    near = np.array([np.median(share[max(0, i - NEAR) : i + NEAR + 1]) for i in range(len(share))])
    atoms = (share >= ATOM) & (share >= PROMINENCE * near)
    if atoms.sum() > MOST_ATOMS:
        atoms &= share >= np.sort(share[atoms])[-MOST_ATOMS]
    return atoms


def choose_knots(rank, atoms):
    """Mid-ranks of the distinct values -> bool [k]: which of them are knots."""
    keep, every = atoms.copy(), np.arange(len(rank))
    keep[:TAIL] = keep[-TAIL:] = True
    z = ndtri(rank)
    for scale in (rank, z):
        keep[np.round(np.interp(np.linspace(scale[0], scale[-1], QUANTILES), scale, every)).astype(int)] = True
    return keep


def decimals(values):
    """The fewest decimals, up to MOST_DECIMALS, that write every value to the precision of float32; -1 if more."""
    wide, narrow = values.astype(np.float64), values.astype(np.float32)
    return next((d for d in range(MOST_DECIMALS + 1) if np.all(np.round(wide, d).astype(np.float32) == narrow)), -1)


class Tables(nn.Module):
    """C piecewise-linear functions, [N, C] -> [N, C]. Beyond its ends each is constant.

    They consist of comparisons, exact sums, Gather and elementwise arithmetic, so a row does not depend on its batch.
    """

    def __init__(self, inputs, outputs):
        """`inputs`, `outputs`: C pairs of ascending knots and the values there."""
        super().__init__()
        longest = max([2, *map(len, inputs)])

        def table(rows, fill=None):
            rows = [np.append(row, np.full(longest - len(row), row[-1] if fill is None else fill)) for row in rows]
            return torch.as_tensor(np.array(rows, np.float64).reshape(-1, longest)).float()

        slopes = [
            np.append(np.diff(y) / np.maximum(np.diff(x), 1e-30), 0) for x, y in zip(inputs, outputs, strict=True)
        ]
        self.register_buffer("knots", table(inputs, np.inf))
        self.register_buffer("first", torch.arange(len(inputs)) * longest)
        self.register_buffer("start", table(inputs).flatten())
        self.register_buffer("value", table(outputs).flatten())
        self.register_buffer("slope", table(slopes).flatten())
        for name, rows in ("low", inputs), ("least", outputs):
            self.register_buffer(name, torch.tensor([row[0] for row in rows], dtype=torch.float32))
        for name, rows in ("high", inputs), ("most", outputs):
            self.register_buffer(name, torch.tensor([row[-1] for row in rows], dtype=torch.float32))

    def forward(self, x):
        x = torch.minimum(torch.maximum(x, self.low), self.high)
        index = (x.unsqueeze(2) >= self.knots).long().sum(2) - 1 + self.first
        y = self.value[index] + (x - self.start[index]) * self.slope[index]
        return torch.minimum(torch.maximum(y, self.least), self.most)
