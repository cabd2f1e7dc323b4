"""The rank space: a table's numbers as the normal scores of their ranks among the training rows.

In a right-skewed column, small values lie close together, so what is oddly small there is near other values in units of
standard deviations. Among ranks it is not.
"""

import numpy as np
import torch
from scipy.special import ndtr, ndtri
from torch import nn

from ..preprocessing import CLAMP
from .network import row_sum

KNOTS = 17  # quantiles of a column, from -3 to 3 standard deviations of a normal distribution
TAIL = 2 * CLAMP  # length of the line beyond the last knot


class Ranks(nn.Module):
    """z [N, D], standardised -> r [N, D]. Columns of numbers become normal scores with variance 1; the others stay.

    For each column, r is piecewise linear and increasing in z, with the slope of a standard deviation beyond the
    training rows. So a far value stays far, and `inverse` is exact.
    """

    def __init__(self, Z, numbers, columns=None):
        """Z [n, D]: training rows. `numbers`: the columns of numbers. `columns` [n, D]: 1 where a value is known."""
        super().__init__()
        self.numbers = list(numbers)
        if not self.numbers:
            return
        curves = [curve(Z[:, j] if columns is None else Z[columns[:, j] > 0, j]) for j in self.numbers]
        knots, scores = zip(*curves, strict=True)
        widest = max(map(len, knots))
        self.segments = widest + 1
        self.register_buffer("pick", torch.eye(Z.shape[1])[:, self.numbers])  # [D, m]
        self.register_buffer("others", 1 - self.pick.sum(1))  # [D]
        for name, values in (("z", knots), ("r", scores)):
            values = np.array([np.pad(v, (0, widest - len(v)), mode="edge") for v in values])
            ends = np.concatenate([values[:, :1] - TAIL, values, values[:, -1:] + TAIL], 1)
            self.register_buffer(f"{name}_start", torch.as_tensor(ends[:, :-1], dtype=torch.float32))  # [m, segments]
            self.register_buffer(f"{name}_length", torch.as_tensor(np.diff(ends), dtype=torch.float32))

    def forward(self, z):
        return self.along(z, self.z_start, self.z_length, self.r_start, self.r_length) if self.numbers else z

    def inverse(self, r):
        return self.along(r, self.r_start, self.r_length, self.z_start, self.z_length) if self.numbers else r

    def along(self, x, start, length, to, rise):
        """Each column of x [N, D] follows its segments: from `start`, `length` long, to `to`, `rise` high."""
        every = len(self.numbers) == x.shape[1]
        of_numbers = x if every else x @ self.pick
        done = ((of_numbers.unsqueeze(2) - start) * (1 / length.clamp(min=1e-30))).clamp(0, 1)
        y = row_sum((done * rise).reshape(-1, self.segments)).reshape(-1, len(self.numbers)) + to[:, 0]
        return y if every else y @ self.pick.T + x * self.others


def curve(values):
    """The known values of a column -> (knots [k], scores [k]), both increasing, at least one."""
    values = np.sort(values.double().numpy())
    if not len(values):
        return np.zeros(1), np.zeros(1)
    n = len(values)
    least = 0.5 / n
    knots = np.unique(values)
    if len(knots) > KNOTS:
        shares = np.clip(ndtr(np.linspace(-3, 3, KNOTS)), least, 1 - least)
        knots = np.unique(np.quantile(values, shares))
    shares = (np.searchsorted(values, knots, "left") + np.searchsorted(values, knots, "right")) / (2 * n)
    scores = ndtri(np.clip(shares, least, 1 - least))
    tails = np.maximum(values - knots[-1], 0) - np.maximum(knots[0] - values, 0)
    every = np.interp(values, knots, scores) + tails
    deviation = every.std()
    return knots, (scores - every.mean()) / (deviation if deviation > 1e-6 else 1)
