"""Checks that ONNX Runtime computes the same scores as torch, before anything is written."""

import numpy as np

from .. import TrainerError
from ..tabular.scorer import run_torch
from .served import run_onnx, session

RELATIVE, ABSOLUTE = 1e-5, 1e-6  # tolerance of golden scores
LOOSEST = 0.01  # largest relative tolerance, for deep image networks
MARGIN = 4  # allowed multiple of a score's sensitivity to input rounding; another runtime rounds every step differently
ROUNDING = 2.0**-22  # relative change of the input that measures this sensitivity: two float32 steps


def tolerance(scorer):
    """(relative, absolute) difference that is allowed between the scores of two processors.

    It is larger with a kernel, which subtracts nearly equal numbers.
    """
    return (RELATIVE, ABSOLUTE) if scorer.kernel is None else (10 * RELATIVE, 10 * ABSOLUTE)


def allowed_error(scorer, score):
    """Scores [n] -> the absolute difference that is allowed for each of them [n]."""
    relative, absolute = tolerance(scorer)
    return absolute + relative * np.abs(score)


def check_parity(scorer, model, X):
    """X float32 [n, F] -> the largest difference between ONNX Runtime and torch. Raises TrainerError if they disagree.

    A score may differ by more than the tolerance if it is sensitive to the rounding of its record's numbers.
    """
    want, got = run_torch(scorer, X)[0].astype(np.float64), run_onnx(session(model), X)[0]
    error, limit = np.abs(got - want), allowed_error(scorer, want)
    wide = ~(error <= limit)
    limit[wide] += MARGIN * rounding_sensitivity(scorer, X[wide])
    if not (error <= limit).all() or not np.isfinite(got).all():
        raise TrainerError(f"ONNX Runtime and torch disagree by {error.max()} on a score; nothing was written")
    return float(error.max())


def rounding_sensitivity(scorer, X, tries=8):
    """X float32 [n, F] -> the largest change of each score [n] when the record's numbers are rounded differently.

    The change is large if a record lies between two centers and the kernel is much narrower than their distance.
    """
    if not len(X):
        return np.zeros(0)
    number = np.array([feature.type == "number" for feature in scorer.space.features])
    want, rng = run_torch(scorer, X)[0].astype(np.float64), np.random.default_rng(0)
    moved = np.zeros(len(X))
    for _ in range(tries):
        sign = rng.choice((-1, 1), X.shape) * number
        moved = np.maximum(moved, np.abs(run_torch(scorer, (X * (1 + ROUNDING * sign)).astype(np.float32))[0] - want))
    return moved


def check_image_parity(want, got):
    """Compares (score, heat, reconstruction) of torch (`want`) and ONNX Runtime (`got`).

    Returns (relative tolerance for golden scores, largest difference of a score). Raises TrainerError if they disagree.
    The tolerance is 1e-5 if possible. A deeper network rounds more and gets a larger one.
    """
    relative, error = image_score_tolerance(want[0], got[0])
    if np.abs(want[2].astype(int) - got[2]).max() > 1 or not np.allclose(want[1], got[1], LOOSEST, 1e-3):
        raise TrainerError("ONNX Runtime and torch disagree on heat or reconstruction; nothing was written")
    return relative, error


def image_score_tolerance(want, got):
    """Scores [n] of torch and of ONNX Runtime -> (relative tolerance, largest difference)."""
    error = np.abs(got.astype(np.float64) - want)
    for relative in (RELATIVE, 1e-4, 1e-3, LOOSEST):
        if np.isfinite(got).all() and (error <= ABSOLUTE + 0.5 * relative * np.abs(want)).all():
            return relative, float(error.max())
    raise TrainerError(f"ONNX Runtime and torch disagree by {error.max()} on a score; nothing was written")
