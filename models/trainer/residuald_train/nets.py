"""The network, and the preprocessing that stands before it in the same graph."""

import math

import numpy as np
import torch
from torch import nn

from .features import PARTS

CLAMP = 30.0
FINITE = 3e38  # of float32


class Net(nn.Module):
    """Pre-LayerNorm residual blocks of width `h`. [N, inputs] -> [N, h], for a linear head to read."""

    def __init__(self, inputs, h=96, blocks=2):
        super().__init__()
        self.inp = nn.Linear(inputs, h)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(h), nn.Linear(h, 2 * h), nn.SiLU(), nn.Linear(2 * h, h)) for _ in range(blocks)
        )
        self.out = nn.Sequential(nn.LayerNorm(h), nn.SiLU())

    def forward(self, x, shift=0):
        h = self.inp(x) + shift
        for block in self.blocks:
            h = h + block(h)
        return self.out(h)


def row_sum(x):
    """[N, k] -> [N, 1] by a matrix product: ONNX Runtime's Reduce operators round a row differently at
    different places of the batch, its matrix product does not."""
    return x @ torch.ones(x.shape[1], 1)


def zero_linear(h, outputs):
    """A linear layer that starts at zero."""
    linear = nn.Linear(h, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class Space(nn.Module):
    """Raw rows [N, F] <-> the space that is denoised [N, D], each feature a block of unit total variance.

    A number or boolean is one column, (x - center) / spread, with `tame` its asinh, which tames heavy tails but keeps
    them unbounded; a category is one column for each vocabulary entry and one for `unseen`; a part of a timestamp
    is (sin, cos). Blocks are then centred and divided by the root of their total variance. A missing feature is
    zero, its mean, and `observed` says so; it is None if no feature may be missing. What the features do not ask for is
    not computed: at 30 numbers a quarter of a record's cost.
    """

    def __init__(self, features, X, tame=True):
        super().__init__()
        self.tame = tame
        self.features = features
        self.complete = all(f.missing == "reject" for f in features)
        self.numbers = all(f.type in ("number", "bool") for f in features)  # then a column is a feature
        self.plain_list = plain = [j for j, f in enumerate(features) if f.type in ("number", "bool")]
        self.cyclic_list = cyclic = [j for j, f in enumerate(features) if f.type == "timestamp"]
        self.categorical_list = [j for j, f in enumerate(features) if f.type == "categorical"]
        periods = [PARTS[features[j].part] for j in cyclic]
        one_hot = [(j, code) for j, f in enumerate(features) for code in categories(f)]
        owner = plain + cyclic + cyclic + [j for j, _ in one_hot]  # the feature that a column belongs to

        def constant(name, value, dtype=torch.float32):
            self.register_buffer(name, torch.as_tensor(np.array(value), dtype=dtype))

        def pick(owners):
            """[len(owners), F] of 0 and 1. A product with it picks columns, exactly for finite numbers, and in ONNX
            Runtime several times faster than Gather does."""
            return np.eye(len(features))[np.array(owners, int)]

        constant("plain", pick(plain).T)
        constant("cyclic", pick(cyclic).T)
        constant("periods", periods)
        constant("one_hot", pick([j for j, _ in one_hot]).T)
        constant("code", [code for _, code in one_hot])
        constant("owner", owner, torch.long)
        constant("sums", pick(owner))  # [D, F]: adds a block's columns up
        constant("order", pick(plain + cyclic + self.categorical_list))
        constant("least", [0 if features[j].type == "bool" else -FINITE for j in plain])
        constant("most", [1 if features[j].type == "bool" else FINITE for j in plain])
        constant("whole", [features[j].part == "day_of_week" for j in cyclic])
        constant("fill", np.zeros(len(features)))
        constant("center", np.zeros(len(plain)))
        constant("spread", np.ones(len(plain)))
        constant("mean", np.zeros(len(owner)))
        constant("scale", np.ones(len(owner)))
        self.fit(X)

    def fit(self, X):
        """Sets means and scales from rows, NaN left out."""
        X = torch.as_tensor(X)
        center, spread = moments(X[:, self.plain_list].double().numpy())
        self.center.copy_(torch.as_tensor(center))
        self.spread.copy_(torch.as_tensor(positive(spread, center)))
        columns = self.columns(torch.nan_to_num(X)).double().numpy()
        mean, deviation = moments(np.where(torch.isnan(X)[:, self.owner].numpy(), np.nan, columns))
        total = np.sqrt(deviation**2 @ self.sums.double().numpy())[self.owner]  # of a column's block
        self.mean.copy_(torch.as_tensor(mean))
        self.scale.copy_(torch.as_tensor(positive(total, mean)))

    def columns(self, x):
        """[N, F] without NaN -> [N, D], not yet centred and scaled."""
        parts = []
        if self.plain_list:
            standard = ((x if self.numbers else x @ self.plain) - self.center) / self.spread
            parts.append(asinh(standard) if self.tame else standard)
        if self.cyclic_list:
            angle = x @ self.cyclic * (2 * math.pi / self.periods)
            parts += [angle.sin(), angle.cos()]
        if self.categorical_list:
            parts.append((x @ self.one_hot == self.code).float())
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def forward(self, x):
        """Raw [N, F] -> (z [N, D], observed [N, F] of 0 and 1, or None)."""
        if self.complete:
            return ((self.columns(x) - self.mean) / self.scale).clamp(-CLAMP, CLAMP), None
        missing = torch.isnan(x)
        observed = 1 - missing.float()
        z = (self.columns(torch.where(missing, self.fill, x)) - self.mean) / self.scale
        return z.clamp(-CLAMP, CLAMP) * self.of_columns(observed), observed

    def of_columns(self, observed):
        """[N, F] of 0 and 1 -> [N, D], each column as its feature."""
        return observed if observed is None or self.numbers else observed @ self.sums.T

    def of_features(self, energy):
        """[N, D] -> [N, F], each feature's columns added up."""
        return energy if self.numbers else energy @ self.sums

    def raw(self, z, x):
        """[N, D] -> raw units [N, F]: what the daemon shows as expected in place of raw rows x [N, F].

        Of a boolean how much it leans to true. Of a category the likeliest other than x's own (of a missing one the
        likeliest): that x's own is likely too explains nothing.
        """
        columns = z.clamp(-CLAMP, CLAMP) * self.scale + self.mean
        parts, n, k = [], len(self.plain_list), len(self.cyclic_list)
        if n:
            value = columns[:, :n]
            if self.tame:
                value = (value.exp() - (-value).exp()) / 2  # sinh, which ONNX Runtime takes a number at a time
            value = value * self.spread + self.center
            parts.append(torch.minimum(torch.maximum(value, self.least), self.most))
        if k:
            parts.append(clock(columns[:, n : n + k], columns[:, n + k : n + 2 * k], self.periods, self.whole))
        a = n + 2 * k
        for j in self.categorical_list:
            v = len(self.features[j].vocabulary)
            own = (x[:, j : j + 1] == torch.arange(v)).float()
            parts.append((columns[:, a : a + v] - 1e6 * own).argmax(1, keepdim=True).float())
            a += v + 1
        return parts[0] if self.numbers else torch.cat(parts, 1) @ self.order


def asinh(u):
    """Of logarithms, which ONNX Runtime takes eight at a time; torch.asinh one by one. Infinite beyond 1e19."""
    return u.sign() * (u.abs() + (u * u + 1).sqrt()).log()


def moments(columns):
    """Mean and standard deviation of each column, NaN left out; 0 where there is nothing else."""
    present = ~np.isnan(columns)
    count = np.maximum(present.sum(0), 1)
    mean = np.where(present, columns, 0).sum(0) / count
    return mean, np.sqrt((np.where(present, columns - mean, 0) ** 2).sum(0) / count)


def positive(scale, mean):
    """1 in place of a scale that is rounding error."""
    return np.where(scale > 1e-7 * np.abs(mean) + 1e-30, scale, 1)


def categories(feature):
    """The codes a categorical can take, unseen last; none for other features."""
    return [*range(len(feature.vocabulary)), -1] if feature.type == "categorical" else []


def clock(sin, cos, periods, whole):
    """(sin, cos) [N, k] of any length -> [N, k] in [0, period), rounded where `whole` is 1."""
    length = (sin * sin + cos * cos).sqrt()
    half = torch.atan(torch.where(cos < 0, -sin, sin) / (length + cos.abs()).clamp(min=1e-6))
    angle = 2 * half + math.pi * (cos < 0).float()  # atan2, which ONNX has not
    value = angle * (periods / (2 * math.pi))
    value = torch.where(whole > 0, value.round(), value)
    value = torch.where(value < 0, value + periods, value)
    return torch.where(value >= periods, torch.zeros_like(value), value)
