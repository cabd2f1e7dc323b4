"""Calibration: the distribution of normal scores on held-out rows. Thresholds and p-values are computed from it.

The daemon reads it in src/bundle, with the same definitions of thresholds, p-values and segments.
"""

import math
from collections import Counter

import numpy as np

from .. import TrainerError

TAIL, INTERVALS = 10_000, 1000  # number of highest scores that are stored, and of intervals between quantiles
SEGMENT_TAIL, SEGMENT_INTERVALS = 1000, 100  # the same for each segment
MIN_RECORDS, MAX_SEGMENTS = 20, 1000  # fewest rows of a segment, and most segments


def calibrate(score, residual, by=None, values=None):
    """score float32 [n], residual float32 [n, F] of held-out normals -> the content of calibration.json.

    With `by` (the dotted path of a field) and `values` [n] (the segments' names, None if missing) also by segment.
    """
    whole = score_distribution(score, INTERVALS, TAIL) | {"residual_scale": residual.mean(0, dtype=np.float64).tolist()}
    return whole if by is None else whole | {"segments": segments(score, by, values)}


def score_distribution(score, intervals, tail):
    """score float32 [n] -> its count, `intervals` + 1 quantiles (linear interpolation) and `tail` highest values."""
    exact = np.sort(score.astype(np.float64))
    quantiles = np.quantile(exact, np.linspace(0, 1, intervals + 1), method="linear")
    return {"count": len(exact), "quantiles": quantiles.tolist(), "tail": exact[-tail:].tolist()}


def segments(score, by, values):
    """The score distribution of each segment, and that of all scores divided by the median of their segment.

    score float32 [n], values [n] of strings or None. src/bundle/segments.rs describes how the daemon uses both.
    """
    counts = Counter(value for value in values if value is not None)
    order = sorted((-count, value) for value, count in counts.items() if count >= MIN_RECORDS)
    chosen = sorted(value for _, value in order[:MAX_SEGMENTS])
    if not chosen:
        raise TrainerError(
            f"--segment {by}: none of its {len(counts)} values has {MIN_RECORDS} held-out rows; choose a column with "
            "fewer values or use more data"
        )
    index = {value: i for i, value in enumerate(chosen)}
    segment = np.array([index.get(value, len(chosen)) for value in values])  # all other values share the last segment
    own, relative = [], score.copy()
    for i in range(len(chosen) + 1):
        rows = segment == i
        if rows.any():
            own.append(score_distribution(score[rows], SEGMENT_INTERVALS, SEGMENT_TAIL))
            typical = np.float32(own[-1]["quantiles"][SEGMENT_INTERVALS // 2])
            with np.errstate(over="ignore"):
                relative[rows] = score[rows] / (typical if typical > 0 else np.float32(1))
    shape = score_distribution(np.minimum(relative, np.finfo(np.float32).max), INTERVALS, TAIL)
    named = [{"value": value} | scores for value, scores in zip(chosen, own, strict=False)]
    return {"by": {"field": by}, "shape": shape, "values": named}


class RateTooFineError(TrainerError):
    """The calibration is too small for this false-alarm rate. `needed` is the number of records that it would need."""

    def __init__(self, rate, needed, count):
        super().__init__(f"a false-alarm rate of {rate:g} needs {needed} calibration records, there are {count}")
        self.needed = needed


class Calibration:
    """The content of calibration.json, with the daemon's definitions of p-value and threshold (src/bundle)."""

    def __init__(self, content):
        self.count = int(content["count"])
        self.quantiles, self.tail = (np.array(content[key], np.float32) for key in ("quantiles", "tail"))
        if self.count < 1 or not 0 < len(self.tail) <= self.count or len(self.quantiles) < 2:
            raise ValueError("calibration.json: count, quantiles and tail are inconsistent")

    def p_value(self, score):
        """Scores [n] -> conformal p-values (1 + #{calibration >= score}) / (count + 1), interpolated below the tail."""
        score = np.asarray(score, np.float32)
        exact = len(self.tail) - np.searchsorted(self.tail, score, side="left")
        at_least = exact.astype(np.float64)
        if len(self.tail) < self.count:
            level = np.interp(score, self.quantiles, np.linspace(0, 1, len(self.quantiles)))
            body = np.maximum((1 - level) * self.count, len(self.tail))
            at_least = np.where(score > self.tail[0], at_least, body)
        return (1 + at_least) / (self.count + 1)

    def finest_rate(self):
        """The lowest false-alarm rate that this calibration supports."""
        return 1 / (self.count + 1)

    def rank(self, rate):
        """k = floor(rate (count + 1)): the threshold is the k-th largest score. 1e-9 absorbs rounding."""
        k = math.floor(rate * (self.count + 1) + 1e-9)
        if k == 0:
            raise RateTooFineError(rate, math.ceil(1 / rate - 1e-9) - 1, self.count)
        return k

    def threshold(self, rate):
        """The threshold (float32) for a false-alarm rate; higher scores are flagged. Raises RateTooFineError."""
        k = self.rank(rate)
        if k <= len(self.tail):
            return self.tail[-k]
        return np.float32(np.interp(1 - rate, np.linspace(0, 1, len(self.quantiles)), self.quantiles))
