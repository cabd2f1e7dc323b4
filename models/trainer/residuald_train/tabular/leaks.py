"""Columns that give the label away: their values alone tell anomalies from normal rows."""

import numpy as np

from ..bench.metrics import auroc
from ..console import say
from .features import encode

LEAST_AUROC = 0.99
LEAST_ROWS = 20  # of normal and of anomalous rows


def say_leaks(table, anomalous, features):
    """Says which columns give the label away. `anomalous`: bool [rows], or None without labels."""
    if anomalous is None:
        return
    for path, area in leaks(table, anomalous, features):
        say(
            f"`{path}` alone tells anomalies from normal rows (AUROC {area:.3f}): if it is known only after the fact, "
            f"such as a status or a decision, leave it out with --drop {path}"
        )


def leaks(table, anomalous, features):
    """Columns whose values alone rank anomalies above normal rows, or below -> [(path, AUROC)], the clearest first."""
    X, accepted, _ = encode(table, features)
    X, anomalous = X[accepted], anomalous[accepted]
    if min(anomalous.sum(), (~anomalous).sum()) < LEAST_ROWS:
        return []
    found = {}
    for column, feature in zip(X.T, features, strict=True):
        values = rates(column, anomalous) if feature.type == "categorical" else known(column)
        area = auroc(values[~anomalous], values[anomalous])
        area = max(area, 1 - area)
        if area >= LEAST_AUROC:
            found[feature.path] = max(area, found.get(feature.path, 0))
    return sorted(found.items(), key=lambda item: -item[1])


def known(column):
    """float32 [n] with NaN -> the same with a value below all others for NaN."""
    least = np.nanmin(column) if np.isfinite(column).any() else 0.0
    return np.where(np.isnan(column), least - 1, column)


def rates(column, anomalous):
    """The codes of categories [n] -> the share of anomalies in each row's category."""
    _, codes = np.unique(known(column), return_inverse=True)
    return (np.bincount(codes, weights=anomalous) / np.bincount(codes))[codes]
