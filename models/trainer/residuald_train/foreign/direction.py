"""Which way a foreign score points: assumed from what is known about its producer, and tested on distorted records."""

import numpy as np

from .. import TrainerError
from ..bench.metrics import auroc

ROWS = 2000  # most rows that are distorted
SURE = 0.6  # AUROC from which the distorted rows tell the direction
KNOWN = {"pred_score": True, "anomaly_score": True}
SKLEARN = {"scores", "score_samples", "decision_function"}  # of skl2onnx: high for normal records, as in scikit-learn


def distorted(features, X, rng):
    """X float32 [n, F] -> float32 [n, F]: about half of each row's values are wrong.

    A number moves by 5 to 30 standard deviations. Any other value is that of another row.
    """
    rows = X[rng.permutation(len(X))[:ROWS]].copy()
    for j, feature in enumerate(features):
        chosen = rng.random(len(rows)) < 0.5
        if feature.type == "number":
            far = rng.choice((-1, 1), len(rows)) * rng.uniform(5, 30, len(rows))
            moved = rows[:, j] + far * np.nanstd(X[:, j], dtype=np.float64)
        else:
            moved = rng.permutation(rows[:, j])
        rows[:, j] = np.where(chosen, moved, rows[:, j])
    return rows


def assumed(output, producer):
    """Whether a higher output is more anomalous, as far as its name and producer tell; None if they do not."""
    if output in KNOWN:
        return KNOWN[output]
    return False if producer.startswith("skl2onnx") and output in SKLEARN else None


def direction(output, producer, given, normal, broken):
    """Raw scores of normal and of distorted rows -> (whether a higher one is more anomalous, what to tell the user).

    `given`: the user's choice, or None. Raises TrainerError if the distorted rows contradict an assumption, or tell
    nothing where nothing is assumed.
    """
    area = auroc(normal, broken)
    seen = f"distorted records score {'higher' if area > 0.5 else 'lower'} than normal ones (AUROC {area:.3f})"
    option = "pass --higher-is anomalous or --higher-is normal"
    if given is not None:
        word = "anomalous" if given else "normal"
        doubt = "" if (area if given else 1 - area) >= 0.5 else "; this does not fit: check --higher-is"
        return given, f"direction: higher `{output}` is {word}, as given; {seen}{doubt}"
    guess = assumed(output, producer)
    if guess is None:
        if SURE > area > 1 - SURE:
            raise TrainerError(f"whether a higher `{output}` is more anomalous is not known, and {seen}: {option}")
        return area > 0.5, f"direction: higher `{output}` is {'anomalous' if area > 0.5 else 'normal'}, because {seen}"
    if (area if guess else 1 - area) < 1 - SURE:
        name = "anomalous" if guess else "normal"
        raise TrainerError(f"a higher `{output}` of {producer or 'this model'} should be {name}, but {seen}: {option}")
    why = f"the convention of {producer}" if not guess else "its name says so"
    return guess, f"direction: higher `{output}` is {'anomalous' if guess else 'normal'}, {why}; {seen}"
