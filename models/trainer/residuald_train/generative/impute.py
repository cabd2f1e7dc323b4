"""Fills missing values by several draws, with all other values known."""

import numpy as np

from .sample import draw

DRAWS = 19  # the interval from the lowest to the highest of m draws holds (m - 1) / (m + 1) of the values: 90 %


def impute(space, denoiser, x, hidden, draws=DRAWS, seed=0, steps=20):
    """Rows x [n, F], hidden bool [n, F] -> (filled [n, F], low [n, F], high [n, F]).

    Numbers are filled with the median of the draws, others with their mode; low and high are the lowest and the highest
    draw. A draw that is missing counts only where most draws are missing. What is not hidden stays.
    """
    known = np.tile((~hidden).astype(np.float32), (draws, 1))
    held = np.tile(np.where(hidden, 0, x).astype(np.float32), (draws, 1))
    held[np.tile(np.isnan(x) & ~hidden, (draws, 1))] = np.nan  # known to be missing
    drawn = draw(space, denoiser, len(held), seed, steps, held, known).reshape(draws, *x.shape)
    filled, low, high = x.copy(), x.copy(), x.copy()
    for j, feature in enumerate(space.features):
        rows = np.flatnonzero(hidden[:, j])
        values = drawn[:, rows, j]
        lacking = np.isnan(values).mean(0) > 0.5
        present = np.where(np.isnan(values).all(0), 0, values)
        middle = np.nanmedian(present, 0) if feature.type in ("number", "timestamp") else modes(present)
        for out, value in ((filled, middle), (low, np.nanmin(present, 0)), (high, np.nanmax(present, 0))):
            out[rows, j] = np.where(lacking, np.nan, value)
    return filled, low, high


def modes(values):
    """[draws, k] -> [k]: the most frequent value of each column without NaN, the lowest if there are several."""
    return np.array([most_frequent(column[~np.isnan(column)]) for column in values.T])


def most_frequent(values):
    distinct, counts = np.unique(values, return_counts=True)
    return distinct[counts.argmax()]
