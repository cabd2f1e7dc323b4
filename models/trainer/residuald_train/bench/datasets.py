"""Reads labelled data sets for `bench` and splits them into training and test rows."""

from dataclasses import dataclass

import numpy as np

from .. import TrainerError
from ..tabular.data import read
from ..tabular.features import Feature, encode
from ..tabular.labels import normal_rows, with_label

LABELS = "y", "label", "Label", "class", "Class", "outlier", "anomaly"  # names of label columns
CAPS = 10_000, 4_000, 300  # most training rows, most test rows, fewest anomalies to keep when test rows are left out
FAST_CAPS = 1_500, 1_000, 200
MAX_SPARE = 100_000  # most normal rows outside training and test, on which false alarms are counted


@dataclass
class Split:
    train: np.ndarray  # float32 [n, F], normal rows
    test: np.ndarray  # float32 [m, F]
    anomalous: np.ndarray  # bool [m]
    mixed: int = 0  # number of anomalies, at the end of `train`
    spare: np.ndarray | None = None  # float32 [k, F], normal rows outside training and test


def read_set(path):
    """A file -> (X float32 [n, F], anomalous bool [n]). Only numeric columns are used. Raises TrainerError.

    The label is the first column whose name is in LABELS.
    """
    table = read([path])
    label = next((name for name in LABELS if name in table.paths), None)
    if label is None:
        raise TrainerError(f"{path} has no label column; name it one of {', '.join(LABELS)} (0 = normal)")
    table = with_label(table, {"path": label})
    head = table.take(np.arange(min(len(table), 1000)))
    numeric = [name for name in table.paths if name != label and is_numeric(head, name)]
    X, accepted, _ = encode(table, [Feature(name, name, "number", "impute") for name in numeric])
    if not accepted.all():  # a column holds text further down
        numeric = [name for name in numeric if is_numeric(table, name)]
        X, accepted, _ = encode(table, [Feature(name, name, "number", "impute") for name in numeric])
    if not numeric:
        raise TrainerError(f"{path} has no numeric column besides the label")
    return np.nan_to_num(X), ~normal_rows(table, {"path": label, "normal": 0})


def is_numeric(table, path):
    """Whether every value of a field is a number or missing."""
    is_number = ~np.isnan(table.numbers(path))
    return is_number.any() and all(text is None for text in np.array(table.texts(path), object)[~is_number])


def split(X, anomalous, protocol, seed, caps=CAPS):
    """Splits a set: one half of the normal rows is for training, the other half and all anomalies are for testing.

    If a side exceeds `caps`, rows are left out at random. The protocols are:

    clean: a random half is for training. No row is on both sides.
    published: as in the data generator of "On Diffusion Modeling for Anomaly Detection" (ICLR 2024). Sets under 1,000
    rows are first resampled with replacement to 1,000 rows, and sets over 50,000 rows to 50,000, so the same row may be
    on both sides. Then the first half in file order is for training.
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
    """Moves anomalies from the test to the training rows until they are `share` of them, but at most half of them."""
    other = np.flatnonzero(data.anomalous)
    wanted = min(round(share / (1 - share) * len(data.train)), len(other) // 2)
    moved = np.random.default_rng(3000 + seed).choice(other, wanted, replace=False)
    stay = np.setdiff1d(np.arange(len(data.test)), moved)
    train = np.concatenate([data.train, data.test[moved]])
    return Split(train, data.test[stay], data.anomalous[stay], wanted, data.spare)
