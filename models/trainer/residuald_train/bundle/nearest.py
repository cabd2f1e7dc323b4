"""`nearest.onnx` and `normals.ndjson`: the most similar normal record, which the daemon shows beside an anomaly."""

import json

import numpy as np
import torch
from residuald import select
from torch import nn

from ..tabular.coreset import Kernel
from .export import to_onnx
from .golden import one_line


class Nearest(nn.Module):
    """x float32 [N, F] -> the index of the nearest center, int64 [N], over the observed features.

    The distance is that of `kernel`. Scorer and kernel are those of one bundle.
    """

    def __init__(self, scorer, kernel):
        super().__init__()
        self.scorer, self.kernel = scorer, kernel
        self.register_buffer("unweighted", -kernel.counts.log().to(kernel.precision))

    def forward(self, x):
        z, observed = self.scorer.space(x)
        return (self.kernel.logits(z, self.scorer.hidden(z, observed)) + self.unweighted).argmax(1)


def representatives(kernel):
    """For each center the number of its nearest training row, among the rows of its cluster, int64 [m]."""
    away = (kernel.rows - kernel.centers[kernel.owner]).square().sum(1).numpy()
    owner = kernel.owner.numpy()
    order = np.lexsort((away, owner))
    return order[np.searchsorted(owner[order], np.arange(len(kernel.centers)))]


def files(scorer, X, options, table, name=None):
    """X float32 [n, F]: the rows that `scorer` was fitted on; `table` [n]: their records -> {name: bytes}.

    `name`: the column of the records' ids, or None. A recipe without a kernel gets one for this purpose.
    """
    kernel = scorer.kernel
    if kernel is None:
        with torch.no_grad():
            Z, _ = scorer.space(torch.as_tensor(X))
        kernel = Kernel(Z, scorer.space.sums[:, scorer.optional], options.coreset, seed=options.seed)
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
