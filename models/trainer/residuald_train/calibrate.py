"""What normal scores look like, from held-out rows; the daemon's thresholds and p-values come from this."""

import math
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


class RateTooFineError(TrainerError):
    """A false-alarm rate that the sample cannot tell apart; `needed`: the calibration records that could."""

    def __init__(self, rate, needed, count):
        super().__init__(f"a false-alarm rate of {rate:g} needs {needed} calibration records, there are {count}")
        self.needed = needed


class Calibration:
    """calibration.json with the daemon's definitions (src/bundle/calibration.rs)."""

    def __init__(self, content):
        self.count = int(content["count"])
        self.quantiles, self.tail = (np.array(content[key], np.float32) for key in ("quantiles", "tail"))
        if self.count < 1 or not 0 < len(self.tail) <= self.count or len(self.quantiles) < 2:
            raise ValueError("calibration.json: count, quantiles and tail do not fit together")

    def p_value(self, score):
        """[n] -> conformal (1 + #{calibration >= score}) / (count + 1); exact in the tail, interpolated below it."""
        score = np.asarray(score, np.float32)
        exact = len(self.tail) - np.searchsorted(self.tail, score, side="left")
        at_least = exact.astype(np.float64)
        if len(self.tail) < self.count:
            level = np.interp(score, self.quantiles, np.linspace(0, 1, len(self.quantiles)))
            body = np.maximum((1 - level) * self.count, len(self.tail))
            at_least = np.where(score > self.tail[0], at_least, body)
        return (1 + at_least) / (self.count + 1)

    def finest_rate(self):
        return 1 / (self.count + 1)

    def rank(self, rate):
        """k of the threshold, the k-th largest score: floor(rate (count + 1)); the small term absorbs rounding."""
        k = math.floor(rate * (self.count + 1) + 1e-9)
        if k == 0:
            raise RateTooFineError(rate, math.ceil(1 / rate - 1e-9) - 1, self.count)
        return k

    def threshold(self, rate):
        """float32; a record is flagged if its score is larger. Raises RateTooFineError."""
        k = self.rank(rate)
        if k <= len(self.tail):
            return self.tail[-k]
        return np.float32(np.interp(1 - rate, np.linspace(0, 1, len(self.quantiles)), self.quantiles))
