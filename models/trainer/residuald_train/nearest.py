"""`nearest.onnx` and `normals.ndjson`: normal records that the daemon shows beside an anomaly, most like it."""

import json

import numpy as np
import torch
from torch import nn

from .coreset import Kernel
from .export import to_onnx


class Nearest(nn.Module):
    """x float32 [N, F] -> the number of the nearest center, int64 [N], by the distance of the kernel over the features
    that are observed. Scorer and `kernel` are those of one bundle."""

    def __init__(self, scorer, kernel):
        super().__init__()
        self.scorer, self.kernel = scorer, kernel
        self.register_buffer("unweighted", -kernel.counts.log().to(kernel.precision))

    def forward(self, x):
        z, observed = self.scorer.space(x)
        return (self.kernel.logits(z, self.scorer.hidden(z, observed)) + self.unweighted).argmax(1)


def representatives(kernel):
    """The training row nearest to each center, of the rows that it counts, int64 [m]."""
    away = (kernel.rows - kernel.centers[kernel.owner]).square().sum(1).numpy()
    owner = kernel.owner.numpy()
    order = np.lexsort((away, owner))
    return order[np.searchsorted(owner[order], np.arange(len(kernel.centers)))]


def files(scorer, X, options, table, name=None):
    """X float32 [n, F], the rows that `scorer` was fitted on, and the table that they are of -> {name: bytes}.

    `name` is the column of the records' ids. A recipe without a kernel gets one for this alone.
    """
    kernel = scorer.kernel
    if kernel is None:
        with torch.no_grad():
            Z, _ = scorer.space(torch.as_tensor(X))
        kernel = Kernel(Z, scorer.space.sums[:, scorer.optional], options.coreset, seed=options.seed)
    fields = table.only({feature.path for feature in scorer.space.features})

    def normal(row):
        known = {"id": str(table.columns[name][row])} if name else {}
        return json.dumps(known | {"record": fields.record(row)}, ensure_ascii=False, allow_nan=False)

    lines = [normal(int(row)) for row in representatives(kernel)]
    return {
        "nearest.onnx": to_onnx(Nearest(scorer, kernel), (torch.zeros(3, X.shape[1]),), outputs=("nearest",)),
        "normals.ndjson": "".join(line + "\n" for line in lines).encode(),
    }
