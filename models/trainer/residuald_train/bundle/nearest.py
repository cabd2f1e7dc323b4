"""`nearest.onnx` and `normals.ndjson`, with which the daemon shows the most similar normal record beside an anomaly."""

import json

import numpy as np
import torch
from residuald import select
from torch import nn

from ..tabular.coreset import Kernel, size_for
from .export import to_onnx
from .golden import one_line


class Nearest(nn.Module):
    """x float32 [N, F] -> the index int64 [N] of the nearest center, by the kernel's distance over observed features.

    `scorer` and `kernel` must belong to the same bundle.
    """

    def __init__(self, scorer, kernel):
        super().__init__()
        self.scorer, self.kernel = scorer, kernel
        self.register_buffer("unweighted", -kernel.counts.log().to(kernel.precision))

    def forward(self, x):
        z, observed = self.scorer.space(x)
        return (self.kernel.logits(z, self.scorer.hidden(z, observed)) + self.unweighted).argmax(1)


def representatives(kernel):
    """The number of the training row that is nearest to each center, among the rows of its cluster: int64 [m]."""
    away = (kernel.rows - kernel.centers[kernel.owner]).square().sum(1).numpy()
    owner = kernel.owner.numpy()
    order = np.lexsort((away, owner))
    return order[np.searchsorted(owner[order], np.arange(len(kernel.centers)))]


def files(scorer, X, options, table, name=None):
    """Makes the two files -> {name: bytes}. A recipe without a kernel gets one for this purpose.

    X float32 [n, F]: the rows on which `scorer` was fitted. `table` [n]: their records. `name`: the column with the
    records' ids, or None.
    """
    kernel = scorer.kernel
    if kernel is None:
        with torch.no_grad():
            Z, _ = scorer.space(torch.as_tensor(X))
        size = options.coreset or size_for(Z.shape[1])
        kernel = Kernel(Z, scorer.space.sums[:, scorer.optional], size, seed=options.seed)
    kept = table.take(representatives(kernel))
    paths = list({feature.path for feature in scorer.space.features})
    ids = kept.texts(name) if name else [None] * len(kept)

    def normal(row):
        known = "" if ids[row] is None else f'"id": {json.dumps(ids[row], ensure_ascii=False)}, '
        return f'{{{known}"record": {one_line(select(kept.record(row), paths))}}}'

    lines = [normal(row) for row in range(len(kept))]
    return {
        "nearest.onnx": to_onnx(Nearest(scorer, kernel), (torch.zeros(3, X.shape[1]),), outputs=("nearest",)),
        "normals.ndjson": "".join(line + "\n" for line in lines).encode(),
    }
