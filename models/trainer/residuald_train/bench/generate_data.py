"""The tables on which `bench-generate` measures: features, and rows to train on and to compare with."""

from dataclasses import dataclass

import numpy as np

from .. import TrainerError
from ..tabular.data import read
from ..tabular.features import Feature, encode, load_schema
from .datasets import read_set

FEWEST = 1000  # normal rows of a set
ROWS = {"set": 2500, "table": 5000, "fast": 1000}  # most rows to train on, and as many to compare with
MOST_COLUMNS = 40  # of a wider set, this many columns drawn at random


@dataclass
class Table:
    """Rows float32 [n, F], NaN = missing. Drawn rows are compared with `real`, which holds other rows than `train`."""

    name: str
    features: list
    train: np.ndarray
    real: np.ndarray
    target: tuple | None = None  # (score with the real training rows, column) of the target of `utility`


def load(path, schema, seed, fast=False):
    """A labelled set, or records with their schema -> Table, or None if it has too few normal rows."""
    if schema:
        features, _ = load_schema(schema)
        X, accepted, _ = encode(read([path]), features)
        X, most = X[accepted], ROWS["table"]
    else:
        X, anomalous = read_set(path)
        X, most = X[~anomalous], ROWS["set"]
        columns = [j for j in range(X.shape[1]) if (X[:, j] != X[0, j]).any()]
        if len(columns) > MOST_COLUMNS:
            columns = sorted(np.random.default_rng(0).choice(columns, MOST_COLUMNS, replace=False))
        X = X[:, columns].astype(np.float32)
        features = [Feature(f"x{j}", f"x{j}", kind(X[:, i])) for i, j in enumerate(columns)]
    if len(X) < FEWEST:
        return None
    rows = np.random.default_rng(seed).permutation(len(X))[: 2 * (ROWS["fast"] if fast else most)]
    half = len(rows) // 2
    return Table(path.name.split(".")[0], features, X[rows[:half]], X[rows[half:]])


def kind(column):
    return "bool" if np.isin(column, (0, 1)).all() else "number"


def frame(features, X):
    """Rows [n, F] -> a pandas DataFrame; categories and booleans as text, None where missing."""
    import pandas as pd

    columns = {}
    for j, feature in enumerate(features):
        column = X[:, j].astype(float)
        if discrete(feature):
            columns[feature.name] = [None if np.isnan(v) else f"v{int(v)}" for v in column]
        else:
            columns[feature.name] = column
    return pd.DataFrame(columns)


def rows(features, table):
    """What `frame` returns -> rows float32 [n, F]."""
    out = np.full((len(table), len(features)), np.nan, np.float32)
    for j, feature in enumerate(features):
        column = table[feature.name]
        if discrete(feature):
            out[:, j] = [float(v[1:]) if isinstance(v, str) else np.nan for v in column]
        else:
            out[:, j] = column.astype(float)
    return out


def discrete(feature):
    return feature.type in ("categorical", "bool") or feature.part == "day_of_week"


def metadata(features):
    columns = {f.name: {"sdtype": "categorical" if discrete(f) else "numerical"} for f in features}
    return {"columns": columns}


def check_files(folder, tables):
    """The files of labelled sets, by size, and the tables with their schema -> [(path, schema or None)]."""
    found = [(path, None) for path in sorted(folder.glob("*.npz"), key=lambda p: p.stat().st_size)] if folder else []
    if not found and not tables:
        raise TrainerError(f"--data {folder} has no .npz file; pass a folder of labelled sets (X, y)")
    return tables + found
