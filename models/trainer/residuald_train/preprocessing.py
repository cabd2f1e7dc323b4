"""Preprocessing inside the model: converts raw rows to standardised columns, and columns back to raw units.

It is the first and the last step of the exported graph, so the daemon passes raw values and gets raw values back.
"""

import math

import numpy as np
import torch
from torch import nn

from .tabular.features import PARTS

CLAMP = 30.0  # standard deviations; limits the effect of extreme values on a network
FINITE = 3e38  # just below the largest float32


class Preprocessing(nn.Module):
    """Converts raw rows float32 [N, F] to standardised columns [N, D] and back. NaN in a raw row means missing.

    Each feature becomes a block of columns with a total variance of 1 on the training rows:

    - number, bool: one column, (x - center) / spread. With `asinh_numbers` then asinh, which compresses heavy tails
      without bounding them.
    - categorical: a one-hot column for each vocabulary entry, and one for unseen values.
    - timestamp part: (sin, cos) of the angle.

    Blocks are then centred and divided by the root of their total variance. A missing feature becomes zero, which is
    its mean. Steps that these features do not need are left out of the graph; for 30 plain numbers that saves a quarter
    of a record's cost.

    Buffer names are part of the exported file: renaming one changes the bytes of model.onnx.
    """

    def __init__(self, features, X, asinh_numbers=True):
        """`features`: list of F Features. X float32 [n, F]: the training rows from which means and scales are taken."""
        super().__init__()
        self.asinh_numbers = asinh_numbers
        self.features = features
        self.never_missing = all(f.missing == "reject" for f in features)
        self.only_numbers = all(f.type in ("number", "bool") for f in features)  # then D = F
        self.plain_list = plain = [j for j, f in enumerate(features) if f.type in ("number", "bool")]
        self.cyclic_list = cyclic = [j for j, f in enumerate(features) if f.type == "timestamp"]
        self.categorical_list = [j for j, f in enumerate(features) if f.type == "categorical"]
        periods = [PARTS[features[j].part] for j in cyclic]
        one_hot = [(j, code) for j, f in enumerate(features) for code in categories(f)]
        owner = plain + cyclic + cyclic + [j for j, _ in one_hot]  # [D]: the feature that each column belongs to

        def constant(name, value, dtype=torch.float32):
            self.register_buffer(name, torch.as_tensor(np.array(value), dtype=dtype))

        def pick(owners):
            """A 0/1 matrix [len(owners), F] that selects columns by a matrix product.

            The product is exact for finite numbers and several times faster than Gather in ONNX Runtime.
            """
            return np.eye(len(features))[np.array(owners, int)]

        constant("plain", pick(plain).T)
        constant("cyclic", pick(cyclic).T)
        constant("periods", periods)
        constant("one_hot", pick([j for j, _ in one_hot]).T)
        constant("code", [code for _, code in one_hot])
        constant("owner", owner, torch.long)
        constant("sums", pick(owner))  # [D, F]: sums the columns of each block
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
        """Sets means and scales from rows X [n, F], ignoring NaN."""
        X = torch.as_tensor(X)
        center, spread = moments(X[:, self.plain_list].double().numpy())
        self.center.copy_(torch.as_tensor(center))
        self.spread.copy_(torch.as_tensor(positive(spread, center)))
        columns = self.columns(torch.nan_to_num(X)).double().numpy()
        mean, deviation = moments(np.where(torch.isnan(X)[:, self.owner].numpy(), np.nan, columns))
        total = np.sqrt(deviation**2 @ self.sums.double().numpy())[self.owner]  # [D]: deviation of each column's block
        self.mean.copy_(torch.as_tensor(mean))
        self.scale.copy_(torch.as_tensor(positive(total, mean)))

    def columns(self, x):
        """[N, F] without NaN -> [N, D], before centring and scaling."""
        parts = []
        if self.plain_list:
            standard = ((x if self.only_numbers else x @ self.plain) - self.center) / self.spread
            parts.append(asinh(standard) if self.asinh_numbers else standard)
        if self.cyclic_list:
            angle = x @ self.cyclic * (2 * math.pi / self.periods)
            parts += [angle.sin(), angle.cos()]
        if self.categorical_list:
            parts.append((x @ self.one_hot == self.code).float())
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def forward(self, x):
        """Raw rows [N, F] -> (z [N, D], observed [N, F] of 0 and 1, or None if no feature may be missing)."""
        if self.never_missing:
            return ((self.columns(x) - self.mean) / self.scale).clamp(-CLAMP, CLAMP), None
        missing = torch.isnan(x)
        observed = 1 - missing.float()
        z = (self.columns(torch.where(missing, self.fill, x)) - self.mean) / self.scale
        return z.clamp(-CLAMP, CLAMP) * self.per_column(observed), observed

    def per_column(self, observed):
        """[N, F] of 0 and 1 -> [N, D]: each column gets the value of its feature."""
        return observed if observed is None or self.only_numbers else observed @ self.sums.T

    def per_feature(self, energy):
        """[N, D] -> [N, F]: the sum over the columns of each feature."""
        return energy if self.only_numbers else energy @ self.sums

    def inverse(self, z, x):
        """z [N, D] -> raw units [N, F], which the daemon shows as the expected values beside the raw rows x [N, F].

        A bool becomes a value between 0 (false) and 1 (true). A category becomes the likeliest one other than x's own,
        because showing x's own value would explain nothing.
        """
        columns = z.clamp(-CLAMP, CLAMP) * self.scale + self.mean
        parts, n, k = [], len(self.plain_list), len(self.cyclic_list)
        if n:
            value = columns[:, :n]
            if self.asinh_numbers:
                value = (value.exp() - (-value).exp()) / 2  # sinh; the operator of ONNX Runtime is not vectorised
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
        return parts[0] if self.only_numbers else torch.cat(parts, 1) @ self.order


def asinh(u):
    """asinh(u) through the logarithm, because ONNX Runtime vectorises Log but not Asinh. Infinite for |u| > 1e19."""
    return u.sign() * (u.abs() + (u * u + 1).sqrt()).log()


def moments(columns):
    """float64 [n, k] -> (mean [k], standard deviation [k]), ignoring NaN; 0 for a column of NaN only."""
    present = ~np.isnan(columns)
    count = np.maximum(present.sum(0), 1)
    mean = np.where(present, columns, 0).sum(0) / count
    return mean, np.sqrt((np.where(present, columns - mean, 0) ** 2).sum(0) / count)


def positive(scale, mean):
    """Uses 1 in place of a scale that is only rounding error: a constant column must not be divided by almost zero."""
    return np.where(scale > 1e-7 * np.abs(mean) + 1e-30, scale, 1)


def categories(feature):
    """The codes that a categorical feature can have, -1 (unseen) last; empty for other features."""
    return [*range(len(feature.vocabulary)), -1] if feature.type == "categorical" else []


def clock(sin, cos, periods, whole):
    """(sin, cos) vectors of any length, each [N, k] -> [N, k] in [0, period), rounded to integers if `whole` is 1."""
    length = (sin * sin + cos * cos).sqrt()
    half = torch.atan(torch.where(cos < 0, -sin, sin) / (length + cos.abs()).clamp(min=1e-6))
    angle = 2 * half + math.pi * (cos < 0).float()  # atan2, which ONNX lacks
    value = angle * (periods / (2 * math.pi))
    value = torch.where(whole > 0, value.round(), value)
    value = torch.where(value < 0, value + periods, value)
    return torch.where(value >= periods, torch.zeros_like(value), value)
