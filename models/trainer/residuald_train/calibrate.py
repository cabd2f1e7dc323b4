"""What normal scores look like, from held-out rows; the daemon's thresholds and p-values come from this."""

import math

import numpy as np

from . import TrainerError

TAIL = 10_000


def calibrate(score, residual):
    """score float32 [n], residual float32 [n, F] of held-out normals -> the content of calibration.json."""
    exact = np.sort(score.astype(np.float64))
    return {
        "count": len(exact),
        "quantiles": np.quantile(exact, np.linspace(0, 1, 1001), method="linear").tolist(),
        "tail": exact[-TAIL:].tolist(),
        "residual_scale": residual.mean(0, dtype=np.float64).tolist(),
    }


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
