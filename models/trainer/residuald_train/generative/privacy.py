"""Whether drawn rows are copies of training rows: the gate, and what a bundle keeps for it.

The bundle keeps M training rows and M held-out rows, in the denoiser's space. Rows that were drawn without knowledge of
the training rows are as often closest to one of the training rows as to one of the held-out rows. This is exact for any
data, because both are random samples of the same rows. So the gate is a sign test (`gate`), at several distances, so that
a few close copies do not disappear among many ordinary rows.
"""

import math

import numpy as np
import torch
from torch import nn

MOST_KEPT = 10_000  # rows kept of each kind
REFERENCE = 0.2, 50, 2000  # share, fewest and most held-out rows for the reference distances
QUANTILES = np.linspace(0, 1, 101)
DISTANCES = 0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0  # quantiles of the reference distances at which the gate looks
LEVEL = 0.01  # probability of refusing a sample that knows nothing of the training rows, at most
EXCESS = 0.6  # share of the close rows that must be closer to training rows, besides being significant


class Closest(nn.Module):
    """sample [N, D], encoded rows -> distance to the closest kept training row [N], and held-out row [N].

    Kept rows are stored in half precision.
    """

    def __init__(self, train, held_out):
        """Encoded rows [M, D] each."""
        super().__init__()
        self.register_buffer("train_rows", train.half())
        self.register_buffer("held_out_rows", held_out.half())

    def forward(self, sample):
        return self.distance(sample, self.train_rows), self.distance(sample, self.held_out_rows)

    def distance(self, sample, rows):
        rows = rows.float()
        ones = torch.ones(sample.shape[1], 1)
        half = rows.square().sum(1) / 2
        nearest = (half - sample @ rows.T).amin(1, keepdim=True)
        return (sample.square() @ ones + 2 * nearest).clamp(min=0).sqrt().squeeze(1)


def again(space, x):
    """Rows [N, F] -> decoded and encoded again [N, D], as drawn rows are seen."""
    parts = [space.encode(space.decode(space.encode(part))) for part in torch.as_tensor(x).split(1024)]
    return torch.cat(parts)


def distances(closest, samples):
    parts = [closest(part) for part in samples.split(512)]
    return tuple(torch.cat(p).numpy() for p in zip(*parts, strict=True))


@torch.no_grad()
def reference(space, train, held_out, seed=0):
    """Rows [n, F] and [m, F] -> (Closest, the object `reference` of generative.json).

    `closest_training`: 101 quantiles of the distance of held-out rows that are not kept to the kept training rows.
    `share_closer_to_training`: the share of these rows that are closer to a training row; ties count half.
    """
    rng = np.random.default_rng(seed)
    share, fewest, most = REFERENCE
    apart = min(most, max(fewest, round(share * len(held_out))), len(held_out) - 1)
    kept = min(MOST_KEPT, len(held_out) - apart, len(train))
    order = rng.permutation(len(held_out))
    others, mine = held_out[order[:apart]], held_out[order[apart : apart + kept]]
    closest = Closest(again(space, train[rng.permutation(len(train))[:kept]]), again(space, mine)).eval()
    to_train, to_held_out = distances(closest, again(space, others))
    closer = np.mean((to_train < to_held_out) + 0.5 * (to_train == to_held_out))
    facts = {
        "rows": kept,
        "closest_training": [float(q) for q in np.quantile(to_train, QUANTILES).astype(np.float32)],
        "share_closer_to_training": float(closer),
    }
    return closest, facts


def gate(to_train, to_held_out, closest_training):
    """Distances [N] of drawn rows to the closest kept training and held-out row -> {"passed", "looks"}.

    `closest_training`: the 101 quantiles of the bundle. For each quantile in DISTANCES, q: let A be the number of rows
    with to_train <= q and to_train < to_held_out, and B that with to_held_out <= q and to_held_out < to_train (for the
    last, q is infinite). Without knowledge of the training rows A is binomial(A + B, 1/2). The sample is refused if, at
    any q, P(binomial(A + B, 1/2) >= A) < LEVEL / 8 and A / (A + B) >= EXCESS. `looks` has q, A, B and this probability.
    """
    looks = []
    for quantile in DISTANCES:
        q = closest_training[round(100 * quantile)] if quantile < 1 else math.inf
        a = int(((to_train <= q) & (to_train < to_held_out)).sum())
        b = int(((to_held_out <= q) & (to_held_out < to_train)).sum())
        looks.append({"distance": q, "training": a, "held_out": b, "p": upper_tail(a + b, a)})
    copies = [
        x
        for x in looks
        if x["p"] < LEVEL / len(DISTANCES) and x["training"] >= EXCESS * (x["training"] + x["held_out"])
    ]
    return {"passed": not copies, "looks": looks}


def upper_tail(n, k):
    """P(binomial(n, 1/2) >= k), from the logarithms of the binomial coefficients."""
    terms = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k, n + 1)
    ]
    top = max(terms, default=0.0)
    return min(1.0, math.exp(top) * math.fsum(math.exp(t - top) for t in terms))
