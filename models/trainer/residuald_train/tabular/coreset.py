"""The closed-form denoiser: the exact posterior mean, if records are noised copies of a weighted coreset of centers.

Nothing is trained. The coreset is made by k-means.
"""

import warnings

import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import nn

from .network import row_sum

ROWS = 20_000  # most rows that k-means is fitted to; every row is counted afterwards
CHUNK = 1024
CENTERS = 1000
NEVER = -1e30  # the logit of a center that must not be used


def coreset(Z, size, seed):
    """Rows [n, D] -> (centers [m, D], rows per center [m], center of each row [n]), m at most `size`.

    k-means (Lloyd) needs a quarter of the centers that random rows would need. With n <= size every row is a center.
    """
    n = len(Z)
    if n <= size:
        return Z.clone(), torch.ones(n), torch.arange(n)
    rng = np.random.default_rng(seed)
    some = Z.numpy() if n <= ROWS else Z.numpy()[rng.choice(n, ROWS, replace=False)]
    # One thread, because the rounding of a center depends on how its sum is split. Duplicate rows cause a warning.
    with threadpool_limits(1), warnings.catch_warnings(action="ignore"):
        means = KMeans(size, init="random", n_init=1, max_iter=15, random_state=seed).fit(some)
        owner = np.concatenate([means.predict(Z.numpy()[i : i + 16_384]) for i in range(0, n, 16_384)])
    used, owner = np.unique(owner, return_inverse=True)
    owner = torch.as_tensor(owner)
    counts = torch.bincount(owner, minlength=len(used)).double()
    sums = torch.zeros(len(used), Z.shape[1], dtype=torch.double).index_add_(0, owner, Z.double())
    return (sums / counts[:, None]).float(), counts.float(), owner


def neighbour_distance(Z, seed, neighbours=5, sample=2000):
    """Median over rows of the mean squared distance to the `neighbours` nearest other rows, per dimension."""
    rows = torch.as_tensor(np.random.default_rng(seed).permutation(len(Z))[:sample])
    others = Z[: ROWS * 5]
    found = []
    for part in rows.split(CHUNK // 4):
        d = torch.cdist(Z[part], others, compute_mode="use_mm_for_euclid_dist").square()
        own = part < len(others)
        d[torch.nonzero(own)[:, 0], part[own]] = torch.inf
        found.append(d.topk(min(neighbours, len(others) - 1), largest=False).values.mean(1))
    return float(torch.cat(found).median()) / Z.shape[1]


def size_for(columns):
    """The number of centers that a table of so many columns gets: 1,000, and up to 4,000 where distances are cheap."""
    return round(CENTERS * min(max(40 / (columns + 10), 1), 4))


class Kernel(nn.Module):
    """z [N, D], indicators of hidden features [N, I] -> (E[x | z] [N, D], free energy [N, 1]).

    The model is z = x + σn, where x is one of the centers. The posterior mean is
    E[x | z] = softmax(log count - |z - c|² / 2σ²) · C, over the observed columns. Hidden columns get their conditional
    mean. σ² is `width` times the typical squared distance between neighbours, at least `LEAST`.

    The free energy -2σ² log Σ share exp(-|z - c|² / 2σ²), with share = count / Σ count, is -log p(z) as a squared
    distance. It is at least 0. If z_j alone is replaced by its posterior mean, it falls by at least z_j's squared
    residual (Jensen's inequality), so the reasons that it gives are right.

    If records lie close together compared with their distance from the origin, float32 cannot resolve the distances, so
    logits are float64.
    """

    LEAST, PRECISE = 1e-4, 100.0

    def __init__(self, Z, sums, size=1000, width=2.0, seed=0):
        """Z [n, D]: training rows. `sums` [D, I] of 0 and 1: the columns of each feature that may be hidden."""
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
        self.register_buffer("total", self.counts.sum())

    def _apply(self, change):
        """Moves the tensors that only training needs along with the others; they are not part of the exported graph."""
        self.counts, self.owner, self.rows = change(self.counts), change(self.owner), change(self.rows)
        return super()._apply(change)

    def logits(self, z, hidden):
        logits = z.to(self.precision) @ self.towards + self.bias
        return logits + hidden.to(self.precision) @ self.hidden_bias if hidden.shape[1] else logits

    def shares(self, logits):
        """Logits [N, m] -> (shares [N, m], which add up to 1, log of the sum of their exponentials [N, 1])."""
        most = logits.amax(1, keepdim=True)
        share = torch.softmax((logits - most).float() if self.precision == torch.float64 else logits, 1)
        return share, most - share.amax(1, keepdim=True).log().to(self.precision)

    def free_energy(self, z, log_sum, rows):
        """`rows`: the number of training rows behind the centers, [N, 1] or a number."""
        square = row_sum(z.to(self.precision).square())
        free = square - 2 * self.variance * (log_sum - rows.log().to(self.precision))
        return free.float().clamp(min=0)

    def forward(self, z, hidden):
        share, log_sum = self.shares(self.logits(z, hidden))
        return share @ self.centers, self.free_energy(z, log_sum, self.total)

    def without(self, rows, z, hidden, columns):
        """Like `forward`, but leaves each row out of its own center, for z [N, D] made from training rows.

        `rows` [N]: the numbers of these training rows. `columns` [N, D] of 0 and 1 marks the observed columns; None
        means that all are observed.
        """
        owner, every = self.owner[rows], torch.arange(len(rows), device=z.device)
        count, center, x = self.counts[owner], self.centers[owner], self.rows[rows]
        rest = (count - 1).clamp(min=1)
        moved = torch.where(count[:, None] > 1, (count[:, None] * center - x) / rest[:, None], center)
        logits = self.logits(z, hidden)
        square = moved.square() if columns is None else moved.square() * columns
        nearness = (z * moved - square / 2).to(self.precision).sum(1) / self.variance
        logits[every, owner] = torch.where(count > 1, rest.log() + nearness, NEVER).to(self.precision)
        share, log_sum = self.shares(logits)
        mean = share @ self.centers + share[every, owner][:, None] * (moved - center)
        return mean, self.free_energy(z, log_sum, self.total - 1)
