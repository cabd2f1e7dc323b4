"""The closed-form denoiser: the exact posterior mean if the records were the coreset's, noised. Nothing is trained."""

import warnings

import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import nn

ROWS = 20_000  # that the clusters are made from; all rows are counted
CHUNK = 1024
NEVER = -1e30  # a logit


def coreset(Z, size, seed):
    """Rows [n, D] -> (centers [m, D], counts [m], the center that each row counts for [n]), m at most `size`.

    k-means (Lloyd) gives with a quarter of the centers what random rows give. Fewer rows are their own centers.
    """
    n = len(Z)
    if n <= size:
        return Z.clone(), torch.ones(n), torch.arange(n)
    rng = np.random.default_rng(seed)
    some = Z.numpy() if n <= ROWS else Z.numpy()[rng.choice(n, ROWS, replace=False)]
    # One thread: a sum of a center depends on how it is split. It warns of fewer different rows than centers.
    with threadpool_limits(1), warnings.catch_warnings(action="ignore"):
        means = KMeans(size, init="random", n_init=1, max_iter=15, random_state=seed).fit(some)
        owner = np.concatenate([means.predict(Z.numpy()[i : i + 16_384]) for i in range(0, n, 16_384)])
    used, owner = np.unique(owner, return_inverse=True)
    owner = torch.as_tensor(owner)
    counts = torch.bincount(owner, minlength=len(used)).double()
    sums = torch.zeros(len(used), Z.shape[1], dtype=torch.double).index_add_(0, owner, Z.double())
    return (sums / counts[:, None]).float(), counts.float(), owner


def neighbour_distance(Z, seed, neighbours=5, asked=2000):
    """Median over rows of the mean squared distance to the nearest others, a dimension."""
    rows = torch.as_tensor(np.random.default_rng(seed).permutation(len(Z))[:asked])
    others = Z[: ROWS * 5]
    found = []
    for part in rows.split(CHUNK // 4):
        d = torch.cdist(Z[part], others, compute_mode="use_mm_for_euclid_dist").square()
        own = part < len(others)
        d[torch.nonzero(own)[:, 0], part[own]] = torch.inf
        found.append(d.topk(min(neighbours, len(others) - 1), largest=False).values.mean(1))
    return float(torch.cat(found).median()) / Z.shape[1]


class Kernel(nn.Module):
    """z [N, D] and indicators of what is hidden [N, I] -> E[x | z] [N, D], z = x + σn, x one of the weighted centers.

    softmax(log count - |z - c|² / 2σ²) · C, over the observed columns; what is hidden gets its mean given the others.
    σ² is `width` times the typical squared distance between neighbours, at least `LEAST`. Where records lie close
    together for their distance from the origin, float32 cannot tell the distances apart and the logits are double.
    """

    LEAST, PRECISE = 1e-4, 100.0

    def __init__(self, Z, sums, size=1000, width=2.0, seed=0):
        """`sums` [D, I] of 0 and 1 adds up the columns of each feature that may be hidden."""
        super().__init__()
        centers, self.counts, self.owner = coreset(Z, size, seed)
        self.rows, self.variance = Z, max(width * neighbour_distance(Z, seed), self.LEAST)
        double = Z.square().sum(1).median() / self.variance > self.PRECISE
        self.precision = torch.float64 if double else torch.float32
        wide = centers.double()
        self.register_buffer("centers", centers)
        self.register_buffer("towards", (wide / self.variance).T.contiguous().to(self.precision))
        bias = self.counts.log().double() - wide.square().sum(1) / (2 * self.variance)
        self.register_buffer("bias", bias.to(self.precision))
        hidden_bias = (wide.square() @ sums.double()).T / (2 * self.variance)
        self.register_buffer("hidden_bias", hidden_bias.contiguous().to(self.precision))

    def logits(self, z, hidden):
        logits = z.to(self.precision) @ self.towards + self.bias
        return logits + hidden.to(self.precision) @ self.hidden_bias if hidden.shape[1] else logits

    def shares(self, logits):
        if self.precision == torch.float64:
            logits = (logits - logits.amax(1, keepdim=True)).float()
        return torch.softmax(logits, 1)

    def forward(self, z, hidden):
        return self.shares(self.logits(z, hidden)) @ self.centers

    def without(self, rows, z, hidden, columns):
        """As forward, for z made from the training rows [N] of that number, each left out of its center.

        `columns` [N, D] of 0 and 1: what is observed of z; None: all.
        """
        owner, every = self.owner[rows], torch.arange(len(rows))
        count, center, x = self.counts[owner], self.centers[owner], self.rows[rows]
        rest = (count - 1).clamp(min=1)
        moved = torch.where(count[:, None] > 1, (count[:, None] * center - x) / rest[:, None], center)
        logits = self.logits(z, hidden)
        square = moved.square() if columns is None else moved.square() * columns
        nearness = (z * moved - square / 2).to(self.precision).sum(1) / self.variance
        logits[every, owner] = torch.where(count > 1, rest.log() + nearness, NEVER).to(self.precision)
        share = self.shares(logits)
        return share @ self.centers + share[every, owner][:, None] * (moved - center)
