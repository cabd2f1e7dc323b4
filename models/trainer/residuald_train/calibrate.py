"""What normal scores look like, from held-out rows; the daemon's thresholds and p-values come from this."""

import numpy as np

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
