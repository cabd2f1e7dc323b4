"""Finds rows that are likely anomalies in unlabelled history, to leave them out: `--contamination`.

A row's strangeness is its distance to the k-th nearest of a sample of the other rows, where k is the suspected share of
that sample. So a cluster of anomalies counts as normal only if it is larger than the suspected share. Scoring each row
by models that were fitted without it works less well (RESEARCH.md): anomalies of one kind explain one another.
"""

import math

import numpy as np
import torch

from ..preprocessing import Preprocessing

SAMPLE = 2000  # rows, drawn at random, that distances are measured to
CHUNK = 1024


def suspects(features, X, share, seed=0):
    """X float32 [n, F], NaN = missing -> bool [n]: which rows are suspected, a `share` of them."""
    with torch.no_grad():
        Z = Preprocessing(features, X)(torch.as_tensor(X))[0]
        sample = torch.as_tensor(np.random.default_rng(seed).permutation(len(Z))[:SAMPLE])
        k = min(math.ceil(share * len(sample)) + 1, len(sample))  # + 1 because the row itself may be in the sample
        distances = [torch.cdist(rows, Z[sample]).kthvalue(k, 1).values for rows in Z.split(CHUNK)]
    chosen = np.zeros(len(Z), bool)
    chosen[np.argsort(-torch.cat(distances).numpy(), kind="stable")[: round(share * len(Z))]] = True
    return chosen
