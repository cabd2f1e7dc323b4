"""Whether drawn rows are copies of training rows: the reference rows of a bundle, and the gate.

The bundle keeps M training rows and M held-out rows. A row that was drawn without knowledge of the training rows is as
often closest to one of the kept training rows as to one of the kept held-out rows. This is exact for any data, because
both are random samples of the same rows. So the gate is a sign test, at several distances: a few close copies must not
disappear among many ordinary rows.

Distances are Euclidean, in the denoiser's space, with all features known. Drawn rows are decoded and encoded again
first, so that real and drawn rows are compared alike.
"""

import io
import math

import numpy as np
import torch

MOST_KEPT = 20_000  # rows of each kind
TYPICAL_ROWS = 2000  # held-out rows whose distances to training rows set the distances at which the gate looks
LOOKS = 0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0  # quantiles of these distances
LEVEL = 0.01  # the most probable it may be that a sample without knowledge of the training rows is refused
EXCESS = 0.6  # share of the close rows that must be closer to training rows, besides being significant
SAME = 1e-9  # squared distances below are 0


def reference_rows(train, held_out, seed=0):
    """Rows [n, F] and [m, F] -> float32 [2 M, F]: M training rows, then M held-out rows, both drawn at random."""
    rng, kept = np.random.default_rng(seed), min(MOST_KEPT, len(train), len(held_out))
    rows = [rows[rng.permutation(len(rows))[:kept]] for rows in (train, held_out)]
    return np.ascontiguousarray(np.concatenate(rows), np.float32)


def as_npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@torch.no_grad()
def encoded(space, x):
    """Rows [N, F] -> [N, D] float64."""
    return torch.cat([space.encode(part) for part in torch.as_tensor(x).split(1024)]).double().numpy()


def distance_to_closest(rows, others):
    """[N, D], [M, D] float64 -> [N]: the Euclidean distance of each row to the closest of the others."""
    half = (others**2).sum(1) / 2
    parts = [rows[i : i + 512] for i in range(0, len(rows), 512)]
    square = np.concatenate([(p**2).sum(1) + 2 * (half - p @ others.T).min(1) for p in parts])
    return np.sqrt(np.where(square < SAME, 0, square))


def check_drawn(space, drawn, reference):
    """Drawn rows [N, F] and a bundle's reference rows [2 M, F] -> what `gate` returns."""
    train, held_out = np.split(encoded(space, reference), 2)
    z = encoded(space, drawn)
    typical = distance_to_closest(held_out[:TYPICAL_ROWS], train)
    return gate(distance_to_closest(z, train), distance_to_closest(z, held_out), typical)


def gate(t, h, typical):
    """Distances of the drawn rows to the closest kept training row, t [N], and held-out row, h [N] -> dict.

    `typical`: distances of the first min(M, 2000) kept held-out rows to the closest kept training row.

    The gate looks at each of 8 distances q, the quantiles LOOKS of `typical` (NumPy's linear interpolation; for the
    last, q is infinite). Let A be the number of rows with t <= q and t < h, and B that of rows with h <= q and h < t.
    Without knowledge of the training rows A is binomial(A + B, 1/2). The sample is refused if at any q

        P(binomial(A + B, 1/2) >= A) < LEVEL / 8   and   A >= EXCESS (A + B).

    By Bonferroni's inequality a sample without knowledge of them is refused with a probability below LEVEL. Returns
    `passed`, and for each q in `looks`: distance, A (training), B (held_out), p, refused.
    """
    looks = []
    for share in LOOKS:
        q = float(np.quantile(typical, share)) if share < 1 else math.inf
        a = int(((t <= q) & (t < h)).sum())
        b = int(((h <= q) & (h < t)).sum())
        p = upper_tail(a + b, a)
        refused = p < LEVEL / len(LOOKS) and a >= EXCESS * (a + b)
        looks.append({"distance": q, "training": a, "held_out": b, "p": p, "refused": refused})
    return {"passed": not any(look["refused"] for look in looks), "looks": looks}


def upper_tail(n, k):
    """P(binomial(n, 1/2) >= k), from the logarithms of the terms."""
    terms = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k, n + 1)
    ]
    top = max(terms, default=0.0)
    return min(1.0, math.exp(top) * math.fsum(math.exp(term - top) for term in terms))
