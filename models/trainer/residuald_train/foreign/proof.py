"""Proves a scorer graph before it is written: the same bits in any batch, and finite outputs."""

import numpy as np
import onnxruntime

from .. import TrainerError
from ..bundle.served import session

SIZES = 16, 48, 64, 256  # the daemon pads batches of table rows to multiples of 16
ROUNDING = 1e-4  # relative difference up to which scores differ by rounding alone
NAMES = "score", "residual", "reconstruction"


def opened(model, where):
    """The bytes of a scorer graph -> its session. Raises TrainerError if ONNX Runtime refuses it."""
    try:
        return session(model)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise TrainerError(
            f"{where}: ONNX Runtime {onnxruntime.__version__} refuses the wrapped graph: {text}"
        ) from None


def outputs(run, X, batch, names=NAMES):
    """X [n, ...] -> outputs [n, ...] in the order of `names`, in batches padded with zeros, as the daemon runs them."""
    found = []
    for first in range(0, len(X), batch):
        part = X[first : first + batch]
        rows = np.zeros((batch, *X.shape[1:]), X.dtype)
        rows[: len(part)] = part
        try:
            got = run.run(list(names), {"x": rows})
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise TrainerError(f"the model fails on a batch of {batch} records: {text}") from None
        for name, values in zip(names, got, strict=True):
            if len(values) != batch:
                raise TrainerError(f"the model returns {len(values)} values of `{name}` for a batch of {batch} records")
        found.append([values[: len(part)] for values in got])
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def batch_difference(run, X):
    """The largest relative difference of a score between batches and places: 0.0 if every bit of all outputs agrees."""
    rows = np.resize(X, (256, X.shape[1]))
    want, worst = outputs(run, rows, SIZES[-1]), 0.0
    for size in SIZES:
        for shift in (0, 1, 5, 11):
            order = np.roll(np.arange(len(rows)), shift)
            got = outputs(run, rows[order], size)
            for a, b in zip(want, got, strict=True):
                if a[order].tobytes() != b.tobytes():
                    scale = np.maximum(np.abs(want[0]), np.abs(want[0]).mean()).max()
                    away = np.nan_to_num(np.abs(a[order].astype(np.float64) - b), nan=np.inf).max()
                    worst = max(worst, away / max(scale if a is want[0] else np.abs(a).max(), 1e-30), 1e-12)
    return float(worst)


def check_finite(X, found, records):
    """Raises TrainerError if an output of a normal record is not finite or a score is negative."""
    score = found[0]
    bad = ~np.isfinite(score) | (score < 0)
    for values in found[1:]:
        bad |= ~np.isfinite(values).all(tuple(range(1, values.ndim)))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        values = np.array2string(X[first].ravel()[:8], precision=6)
        raise TrainerError(
            f"a score is negative, or it or its reasons are not finite, for {int(bad.sum())} of {len(X)} normal "
            f"{records}; for example row {first + 1}, {values}, has the score {score[first]}"
        )
