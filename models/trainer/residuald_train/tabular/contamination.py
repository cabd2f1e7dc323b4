"""Finds likely anomalies in unlabelled history, so that training can leave them out (`--contamination`).

Rows are ranked by their distance to the k-th nearest row of a random sample, where k is the suspected share of that
sample. So a cluster of anomalies counts as normal only if it is larger than the suspected share. Scoring each row with
models that were fitted without it works less well, because anomalies of one kind explain one another (RESEARCH.md).
"""

import math

import numpy as np
import torch

from ..preprocessing import Preprocessing

SAMPLE = 2000  # size of the random sample to which distances are measured
CHUNK = 1024


def suspects(features, X, share, seed=0):
    """X float32 [n, F], NaN = missing -> bool [n] that marks the `share` of the rows most likely to be anomalies."""
    with torch.no_grad():
        Z = Preprocessing(features, X)(torch.as_tensor(X))[0]
        sample = torch.as_tensor(np.random.default_rng(seed).permutation(len(Z))[:SAMPLE])
        k = min(math.ceil(share * len(sample)) + 1, len(sample))  # + 1 because the row itself may be in the sample
        distances = [torch.cdist(rows, Z[sample]).kthvalue(k, 1).values for rows in Z.split(CHUNK)]
    chosen = np.zeros(len(Z), bool)
    chosen[np.argsort(-torch.cat(distances).numpy(), kind="stable")[: round(share * len(Z))]] = True
    return chosen
