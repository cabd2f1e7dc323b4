"""Reads labelled data sets for `bench` and splits them into training and test rows."""

import re
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np

from .. import TrainerError
from ..tabular.data import read
from ..tabular.features import Feature, encode
from ..tabular.labels import normal_rows, with_label
from .metrics import auroc

LABELS = "y", "label", "Label", "class", "Class", "outlier", "anomaly"  # names of label columns
CAPS = 10_000, 4_000, 300  # most training rows, most test rows, fewest anomalies to keep when test rows are left out
FAST_CAPS = 1_500, 1_000, 200
MAX_SPARE = 100_000  # most normal rows outside training and test, on which false alarms are counted
FIXED = "train", "test", "test_labels"  # arrays of a set whose split is fixed, as in OddBench
PROTOCOLS = "clean", "published"  # for the other sets
HALVES = "development", "report"
ID_NAME = re.compile(r"(^|[^a-z])(id|ids|index|key)$|[a-z]I[dD]$|^unnamed", re.IGNORECASE)
ID_DISTINCT = 0.95  # share of distinct values from which a column of whole numbers counts as an id
LEAK_AUROC = 0.6  # of an id alone, in either direction


@dataclass
class Split:
    train: np.ndarray  # float32 [n, F], normal rows
    test: np.ndarray  # float32 [m, F]
    anomalous: np.ndarray  # bool [m]
    mixed: int = 0  # number of anomalies, at the end of `train`
    spare: np.ndarray | None = None  # float32 [k, F], normal rows outside training and test
    leaks: tuple[str, ...] = ()  # id columns that alone tell anomalies from normal rows


def half(name):
    """The half of its family that a set is in: settings are chosen on one and reported on the other.

    The CRC-32 of the set's name decides, so a set stays in its half whatever other sets there are.
    """
    return HALVES[zlib.crc32(name.encode()) % 2]


def protocols_of(path, wanted):
    """The protocols to run a set with: those wanted, or "fixed" alone if the file itself says how it is split."""
    return ["fixed"] if is_fixed(path) else list(wanted)


def is_fixed(path):
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return {f"{name}.npy" for name in FIXED} <= set(archive.namelist())


def load_split(path, protocol, seed, caps=CAPS):
    """A file -> Split. With the protocol "fixed", the seed only draws the rows that `caps` leave over."""
    if protocol == "fixed":
        return split_fixed(*read_fixed(path), seed, caps)
    return split(*read_set(path), protocol, seed, caps)


def read_fixed(path):
    """A set with a fixed split -> (train float32 [n, F], test [m, F], anomalous bool [m], names of leaking ids)."""
    with np.load(path, allow_pickle=False) as file:
        train, test, anomalous = file["train"], file["test"], file["test_labels"] != 0
        names = file["feature_names"] if "feature_names" in file.files else range(train.shape[1])
        names = [str(name) for name in names]
    if train.ndim != 2 or test.shape != (len(anomalous), train.shape[1]) or not 0 < anomalous.sum() < len(anomalous):
        raise TrainerError(f"{path}: train and test must be tables of the same columns, test with both labels")
    leaks = leaking_ids(np.concatenate([train, test]).astype(float), names, test.astype(float), anomalous)
    limit = np.finfo(np.float32).max
    train, test = (
        np.clip(np.nan_to_num(rows.astype(float)), -limit, limit).astype(np.float32) for rows in (train, test)
    )
    return train, test, anomalous, leaks


def leaking_ids(every, names, test, anomalous):
    """The names of the columns that identify a row or what it belongs to, and that alone rank the anomalies.

    An id is a column of whole numbers with an id's name, or with hardly a value twice. It leaks if its AUROC is at
    least LEAK_AUROC in one direction: rows were sorted before they got ids, so an id says nothing about a new row.
    """
    found = []
    for j, name in enumerate(names):
        column = np.nan_to_num(every[:, j])
        if not (column == np.round(column)).all():
            continue
        distinct = len(np.unique(column)) / len(column)
        if distinct < ID_DISTINCT and not ID_NAME.search(name):
            continue
        values = np.nan_to_num(test[:, j])
        area = auroc(values[~anomalous], values[anomalous])
        if max(area, 1 - area) >= LEAK_AUROC:
            found.append(name)
    return tuple(found)


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
    rows are first resampled with replacement to 1,000 rows, so the same row may be on both sides. 50,000 rows are
    drawn without replacement from larger sets. Then the first half in the order drawn, or of the file, is for training.
    """
    if protocol == "published":
        wanted = 1000 if len(X) < 1000 else 50_000 if len(X) > 50_000 else None
        if wanted:
            rows = np.random.RandomState(seed).choice(len(X), wanted, replace=wanted > len(X))
            X, anomalous = X[rows], anomalous[rows]
    normal, other = np.flatnonzero(~anomalous), np.flatnonzero(anomalous)
    if protocol == "clean":
        normal = np.random.default_rng(seed).permutation(normal)
    half = round(len(normal) / 2)
    train, rest = normal[:half], normal[half:]
    rng = np.random.default_rng(1000 + seed)
    train, tested, spare = capped(rng, train, rest, other, caps)
    X = X.astype(np.float32)
    return Split(X[train], X[tested], anomalous[tested], spare=X[spare])


def split_fixed(train, test, anomalous, leaks, seed, caps=CAPS):
    """Applies `caps` to a fixed split, whose training rows are all normal -> Split."""
    normal, other = np.flatnonzero(~anomalous), np.flatnonzero(anomalous)
    rows, tested, spare = capped(np.random.default_rng(1000 + seed), np.arange(len(train)), normal, other, caps)
    return Split(train[rows], test[tested], anomalous[tested], spare=test[spare], leaks=leaks)


def capped(rng, train, rest, other, caps):
    """Numbers of training rows, of normal and of anomalous test rows -> (train, test, normal rows in neither)."""
    most, tested, kept = caps
    untrained = rest
    if len(train) > most:
        train = rng.choice(train, most, replace=False)
    if len(rest) + len(other) > tested:
        share = tested / (len(rest) + len(other))
        k = min(len(other), max(round(share * len(other)), kept))
        rest = rng.choice(rest, min(len(rest), tested - k), replace=False)
        other = rng.choice(other, k, replace=False)
    spare = rng.permutation(np.setdiff1d(untrained, rest))[:MAX_SPARE]
    return train, np.concatenate([rest, other]), spare


def contaminate(data, share, seed):
    """Moves anomalies from the test to the training rows until they are `share` of them, but at most half of them."""
    other = np.flatnonzero(data.anomalous)
    wanted = min(round(share / (1 - share) * len(data.train)), len(other) // 2)
    moved = np.random.default_rng(3000 + seed).choice(other, wanted, replace=False)
    stay = np.setdiff1d(np.arange(len(data.test)), moved)
    train = np.concatenate([data.train, data.test[moved]])
    return Split(train, data.test[stay], data.anomalous[stay], wanted, data.spare, data.leaks)
