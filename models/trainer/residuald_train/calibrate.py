"""What normal scores look like, from held-out rows; the daemon's thresholds and p-values come from this."""

from collections import Counter
from decimal import Decimal

import numpy as np

from . import TrainerError

TAIL, PARTS = 10_000, 1000
SEGMENT_TAIL, SEGMENT_PARTS = 1000, 100
LEAST_RECORDS, MOST_SEGMENTS, LONGEST_VALUE = 20, 1000, 256


def calibrate(score, residual, by=None, values=None):
    """score float32 [n], residual float32 [n, F] of held-out normals -> the content of calibration.json.

    With `by`, a dotted path, and `values`, what the records hold there (None where nothing), also by segment.
    """
    whole = kept(score, PARTS, TAIL) | {"residual_scale": residual.mean(0, dtype=np.float64).tolist()}
    return whole if by is None else whole | {"segments": segments(score, by, list(map(segment_of, values)))}


def kept(score, parts, tail):
    exact = np.sort(score.astype(np.float64))
    quantiles = np.quantile(exact, np.linspace(0, 1, parts + 1), method="linear")
    return {"count": len(exact), "quantiles": quantiles.tolist(), "tail": exact[-tail:].tolist()}


def segments(score, by, values):
    """The scores of each segment, and of all relative to the median of theirs; src/bundle/segments.rs says what for."""
    counts = Counter(value for value in values if value is not None)
    order = sorted((-count, value) for value, count in counts.items() if count >= LEAST_RECORDS)
    chosen = sorted(value for _, value in order[:MOST_SEGMENTS])
    if not chosen:
        raise TrainerError(f"--segment {by}: no value has {LEAST_RECORDS} held-out rows; {len(counts)} different ones")
    place = {value: i for i, value in enumerate(chosen)}
    places = np.array([place.get(value, len(chosen)) for value in values])
    own, relative = [], score.copy()
    for i in range(len(chosen) + 1):
        rows = places == i
        if rows.any():
            own.append(kept(score[rows], SEGMENT_PARTS, SEGMENT_TAIL))
            typical = np.float32(own[-1]["quantiles"][SEGMENT_PARTS // 2])
            with np.errstate(over="ignore"):
                relative[rows] = score[rows] / (typical if typical > 0 else np.float32(1))
    shape = kept(np.minimum(relative, np.finfo(np.float32).max), PARTS, TAIL)
    named = [{"value": value} | scores for value, scores in zip(chosen, own, strict=False)]
    return {"by": {"field": by}, "shape": shape, "values": named}


def segment_of(value):
    """The text of a value as the daemon has it: a string, a boolean or a number; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = value if -(2**63) <= value < 2**64 else float(value)
    if isinstance(value, float):
        text = None if value != value else format(Decimal(float.__repr__(value)), "f")
        text = text and text.removesuffix(".0")
    elif isinstance(value, bool):
        text = "true" if value else "false"
    else:
        text = str(value) if isinstance(value, str | int) else None
    return text if text is None or len(text.encode()) <= LONGEST_VALUE else None
