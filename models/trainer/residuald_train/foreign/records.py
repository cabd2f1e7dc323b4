"""The normal records for a foreign model, from files or from Python, and the schema that reads them."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import residuald

from .. import TrainerError
from ..console import say
from ..tabular.data import file_facts
from ..tabular.features import check_features, encode, infer_schema, load_schema
from ..tabular.labels import DataSource, read_labelled, split_by_label

MIN_ROWS = 100


@dataclass
class Records:
    """Normal records that the schema accepts, and the rows that the daemon makes of them."""

    table: residuald.Table
    features: list
    X: np.ndarray  # float32 [n, F], NaN = missing
    facts: list  # the files, for the manifest

    def choose(self, names):
        """The same records with the features of these names, in this order."""
        place = {feature.name: j for j, feature in enumerate(self.features)}
        order = [place[name] for name in names]
        if left := [feature.name for feature in self.features if feature.name not in names]:
            say(f"left out {len(left)} features that are not among the model's columns: {', '.join(left[:20])}")
        return Records(self.table, [self.features[j] for j in order], self.X[:, order], self.facts)


def records(data, schema=None, source=None):
    """Reads normal records -> Records.

    `data`: paths of files, a residuald.Table, a DataFrame (of pandas or Polars), an Arrow table, a list of dicts, or an
    array [n, F] of numbers in the order of the schema's features. `schema`: a path or a list of features; None infers
    one. `source`: a DataSource with further options of files, like the label.
    """
    features, label = schema_of(schema)
    if isinstance(data, str | Path):
        data = [data]
    if isinstance(data, list | tuple) and all(isinstance(item, str | Path) for item in data):
        source = source or DataSource(list(data))
        table, label = read_labelled(source, label)
        facts = file_facts(table)
        table, _ = split_by_label(table, label)
    else:
        table, facts = table_of(data, features), []
    if features is None:
        features = infer_schema(table, label)
    features = [feature for feature in features if not (label and feature.path == label["path"])]
    X, accepted, refused = encode(table, features)
    for reason, count in refused.most_common(10):
        say(f"left out {count} rows that the schema refuses: {reason}")
    kept = np.flatnonzero(accepted)
    if len(kept) < MIN_ROWS:
        raise TrainerError(f"{len(kept)} normal rows fit the schema; thresholds need at least {MIN_ROWS}")
    return Records(table.take(kept), features, X[kept], facts)


def schema_of(schema):
    if schema is None:
        return None, None
    if isinstance(schema, str | Path):
        return load_schema(Path(schema))
    if isinstance(schema, dict):
        schema = schema.get("features", [])
    return check_features([f if isinstance(f, dict) else f.to_json() for f in schema]), None


def table_of(data, features):
    """A Table, a DataFrame, an Arrow table, dicts or an array -> residuald.Table of records as from a producer."""
    if isinstance(data, residuald.Table):
        return data
    if hasattr(data, "collect") and not hasattr(data, "to_dicts"):
        raise TrainerError("a LazyFrame has no rows yet: call .collect()")
    if hasattr(data, "to_dicts"):
        rows = data.to_dicts()
    elif hasattr(data, "to_dict"):
        rows = data.to_dict(orient="records")
    elif hasattr(data, "__arrow_c_stream__") and hasattr(data, "to_pylist"):
        rows = data.to_pylist()
    elif isinstance(data, list | tuple) and data and all(isinstance(row, dict) for row in data):
        rows = data
    else:
        X = np.asarray(data)
        if X.ndim != 2:
            raise TrainerError(
                "data must be paths of files, a residuald.Table, a DataFrame, an Arrow table, a list of dicts or an "
                f"array [n, F], not {type(data).__name__}"
            )
        paths = [f.path for f in features] if features else [f"f{j}" for j in range(X.shape[1])]
        if len(paths) != X.shape[1]:
            raise TrainerError(f"data has {X.shape[1]} columns, but the schema has {len(paths)} features")
        rows = [dict(zip(paths, row, strict=True)) for row in X.tolist()]
    return residuald.Table([json.dumps(record(row), ensure_ascii=False, default=str) for row in rows])


def record(row):
    """A row {dotted path: value} -> a nested record. Missing values are null, so every row has all columns in order."""
    out = {}
    for path, value in row.items():
        value = value.item() if isinstance(value, np.generic) else value
        if (isinstance(value, float) and not math.isfinite(value)) or value != value:
            value = None
        *parents, last = str(path).split(".")
        inside = out
        for parent in parents:
            inside = inside.setdefault(parent, {})
        inside[last] = value
    return out
