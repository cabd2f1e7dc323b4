"""Leaves out rows that are likely anomalies, where nobody looked at all of them: `--contamination`.

A row's strangeness is its distance to the k-th nearest of the others, k the suspected share of them: rows that lie
together vouch for one another only if they are more than that share. Models that are fitted on the rows, asked about
rows they never saw, do worse at this (RESEARCH.md): anomalies of one kind explain one another.
"""

import math

import numpy as np
import torch

from .nets import Space

OTHERS = 2000  # drawn at random to measure the distance to
CHUNK = 1024


def suspects(features, X, share, seed=0):
    """X float32 [n, F], NaN = missing -> bool [n]: the share of rows that are strangest."""
    with torch.no_grad():
        Z = Space(features, X)(torch.as_tensor(X))[0]
        others = torch.as_tensor(np.random.default_rng(seed).permutation(len(Z))[:OTHERS])
        k = min(math.ceil(share * len(others)) + 1, len(others))  # one of them may be the row itself
        distances = [torch.cdist(rows, Z[others]).kthvalue(k, 1).values for rows in Z.split(CHUNK)]
    chosen = np.zeros(len(Z), bool)
    chosen[np.argsort(-torch.cat(distances).numpy(), kind="stable")[: round(share * len(Z))]] = True
    return chosen
