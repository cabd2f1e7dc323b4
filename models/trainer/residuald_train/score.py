"""The scorer graph: raw row in; score, residual and reconstruction out. This module is what is exported."""

import numpy as np
import torch
from torch import nn

from .diffusion import Blind
from .nets import row_sum


class Scorer(nn.Module):
    """x float32 [N, F] -> score [N], residual [N, F], reconstruction [N, F].

    One call of the denoiser on the clean record. residual_f is feature f's share of the mean squared residual
    over the features that are observed; the score is the root of their sum, in standard deviations.
    """

    def __init__(self, features, space, width):
        super().__init__()
        self.space = space
        self.optional = [j for j, f in enumerate(features) if f.missing == "impute"]
        self.register_buffer("pick", torch.eye(len(features))[:, self.optional])
        self.denoiser = Blind(len(space.owner), len(self.optional), width)

    def forward(self, x):
        z, observed = self.space(x)
        D, _ = self.denoiser(z, 1 - observed @ self.pick)
        count = row_sum(observed).clamp(min=1)
        error = z - D
        residual = (error * error) @ self.space.sums * observed / count
        score = row_sum(residual).squeeze(1).sqrt()
        return score, residual, self.space.raw(D, x)


@torch.no_grad()
def run_torch(scorer, X):
    """X [n, F] -> (score, residual, reconstruction) as numpy arrays."""
    parts = [scorer(torch.as_tensor(X[i : i + 4096])) for i in range(0, len(X), 4096)]
    return tuple(torch.cat(p).numpy() for p in zip(*parts, strict=True))


def auroc(normal, anomalous):
    """The chance that an anomaly scores above a normal record, ties counting half."""
    scores = np.concatenate([normal, anomalous])
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = len(normal), len(anomalous)
    return (ranks[n:].sum() - m * (m + 1) / 2) / (n * m)
