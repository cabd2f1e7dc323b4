"""Labelled data sets for `bench`: how they are read, and split into training and test rows."""

from dataclasses import dataclass

import numpy as np

from .. import TrainerError
from ..tabular.data import read
from ..tabular.features import Feature, encode
from ..tabular.labels import normal_rows

LABELS = "y", "label", "Label", "class", "Class", "outlier", "anomaly"  # names of label columns
CAPS = 10_000, 4_000, 300  # training rows at most, test rows at most, anomalies that the test keeps if it is cut
FAST_CAPS = 1_500, 1_000, 200
MAX_SPARE = 100_000  # normal rows beyond the test, to count false alarms on


@dataclass
class Split:
    train: np.ndarray  # float32 [n, F], normal rows
    test: np.ndarray  # float32 [m, F]
    anomalous: np.ndarray  # bool [m]
    mixed: int = 0  # rows at the end of `train` that are anomalies
    spare: np.ndarray | None = None  # float32 [k, F], normal rows that neither trained nor fit in the test


def read_set(path):
    """A file -> (X float32 [n, F], anomalous bool [n]). Numeric columns only; the label is the first of LABELS."""
    table = read([path])
    label = next((name for name in LABELS if name in table.paths), None)
    if label is None:
        raise TrainerError(f"{path}: no label column; name one of {', '.join(LABELS)} (0 = normal)")
    head = table.take(np.arange(min(len(table), 1000)))
    numeric = [name for name in table.paths if name != label and is_numeric(head, name)]
    X, accepted, _ = encode(table, [Feature(name, name, "number", "impute") for name in numeric])
    if not accepted.all():  # a column holds text further down
        numeric = [name for name in numeric if is_numeric(table, name)]
        X, accepted, _ = encode(table, [Feature(name, name, "number", "impute") for name in numeric])
    if not numeric:
        raise TrainerError(f"{path}: no numeric column")
    return np.nan_to_num(X), ~normal_rows(table, {"path": label, "normal": 0})


def is_numeric(table, path):
    """Whether a field holds numbers, or nothing."""
    is_number = ~np.isnan(table.numbers(path))
    return is_number.any() and all(text is None for text in np.array(table.texts(path), object)[~is_number])


def split(X, anomalous, protocol, seed, caps=CAPS):
    """-> Split: half of the normal rows trains; the other half and all anomalies test; capped at random.

    clean: a random half, no row on both sides.
    published: as the generator of "On Diffusion Modeling for Anomaly Detection" (ICLR 2024). Sets under 1,000 rows are
    first resampled to 1,000 with replacement, so rows occur on both sides; sets over 50,000 rows to 50,000. Then the
    first half in file order trains.
    """
    if protocol == "published":
        wanted = 1000 if len(X) < 1000 else 50_000 if len(X) > 50_000 else None
        if wanted:
            rows = np.random.RandomState(seed).choice(len(X), wanted, replace=True)
            X, anomalous = X[rows], anomalous[rows]
    normal, other = np.flatnonzero(~anomalous), np.flatnonzero(anomalous)
    if protocol == "clean":
        normal = np.random.default_rng(seed).permutation(normal)
    half = round(len(normal) / 2)
    train, rest = normal[:half], normal[half:]
    untrained = rest
    rng, (most, tested, kept) = np.random.default_rng(1000 + seed), caps
    if len(train) > most:
        train = rng.choice(train, most, replace=False)
    if len(rest) + len(other) > tested:
        share = tested / (len(rest) + len(other))
        k = min(len(other), max(round(share * len(other)), kept))
        rest = rng.choice(rest, min(len(rest), tested - k), replace=False)
        other = rng.choice(other, k, replace=False)
    test = np.concatenate([rest, other])
    spare = rng.permutation(np.setdiff1d(untrained, rest))[:MAX_SPARE]
    X = X.astype(np.float32)
    return Split(X[train], X[test], anomalous[test], spare=X[spare])


def contaminate(data, share, seed):
    """Moves at most half of the test's anomalies to the training rows, so that they make up `share` of those."""
    other = np.flatnonzero(data.anomalous)
    wanted = min(round(share / (1 - share) * len(data.train)), len(other) // 2)
    moved = np.random.default_rng(3000 + seed).choice(other, wanted, replace=False)
    stay = np.setdiff1d(np.arange(len(data.test)), moved)
    train = np.concatenate([data.train, data.test[moved]])
    return Split(train, data.test[stay], data.anomalous[stay], wanted, data.spare)
