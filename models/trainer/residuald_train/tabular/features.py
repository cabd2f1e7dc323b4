"""The input schema: an ordered list of features. Each feature is one column of the model's input row."""

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .. import TrainerError
from .decode import EPOCH_UNITS, RefusedError, decode_value

TYPES = ("number", "bool", "categorical", "timestamp")
PARTS = {"hour_of_day": 24.0, "day_of_week": 7.0}  # part of a timestamp -> its period
KEYS = {"name", "path", "type", "missing", "vocabulary", "part", "epoch_unit", "unit"}


@dataclass(frozen=True)
class Feature:
    """One column of the row: the path of its value in the record, and how to read it."""

    name: str
    path: str
    type: str
    missing: str = "reject"
    vocabulary: tuple[str, ...] = ()
    part: str | None = None
    epoch_unit: str | None = None
    unit: str | None = None

    @cached_property
    def codes(self):
        """{category: code}, where the code is the index in the vocabulary."""
        return {text: code for code, text in enumerate(self.vocabulary)}

    def to_json(self):
        out = {"name": self.name, "path": self.path, "type": self.type}
        if self.type == "categorical":
            out["vocabulary"] = list(self.vocabulary)
        out |= {key: getattr(self, key) for key in ("part", "epoch_unit") if getattr(self, key)}
        out["missing"] = self.missing
        if self.unit:
            out["unit"] = self.unit
        return out


def schema_to_json(features, label=None):
    """The manifest's `input` object. Only the trainer reads `label` {"path", "normal"}."""
    out = {"kind": "tabular", "features": [feature.to_json() for feature in features]}
    return out | ({"label": label} if label else {})


def load_schema(path):
    """Reads and checks a schema file -> (features, label or None)."""
    try:
        schema = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TrainerError(f"cannot read schema {path}: {error}") from None
    if not isinstance(schema, dict) or schema.get("kind") != "tabular" or not schema.get("features"):
        raise TrainerError(f'schema {path}: must be {{"kind": "tabular", "features": [...]}} with at least one feature')
    try:
        features = [check_feature(entry) for entry in schema["features"]]
    except TrainerError as error:
        raise TrainerError(f"schema {path}: {error}") from None
    twice = [name for name, count in Counter(f.name for f in features).items() if count > 1]
    if twice:
        raise TrainerError(f"schema {path}: two features are named `{twice[0]}`; rename one")
    label = schema.get("label")
    if label is not None and not (isinstance(label, dict) and set(label) == {"path", "normal"}):
        raise TrainerError(f'schema {path}: `label` must be {{"path": ..., "normal": ...}}')
    return features, label


def check_feature(entry):
    """A JSON object -> Feature. Raises TrainerError that names the feature and the fault."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
        raise TrainerError("every feature needs a `name`")
    where = f"feature `{entry['name']}`"

    def check(ok, message):
        if not ok:
            raise TrainerError(f"{where}: {message}")

    unknown = sorted(set(entry) - KEYS)
    check(not unknown, f"unknown key `{unknown[0] if unknown else ''}`; use {', '.join(sorted(KEYS))}")
    check(isinstance(entry.get("path"), str) and all(entry["path"].split(".")), "`path` must be a dotted path")
    check(entry.get("type") in TYPES, f"`type` must be one of {', '.join(TYPES)}")
    check(entry.get("missing", "reject") in ("impute", "reject"), "`missing` must be impute or reject")
    vocabulary = entry.get("vocabulary", [])
    if entry["type"] == "categorical":
        texts = isinstance(vocabulary, list) and vocabulary and all(isinstance(v, str) for v in vocabulary)
        check(
            texts and len(set(vocabulary)) == len(vocabulary),
            "`vocabulary` must be a list of distinct strings",
        )
    else:
        check("vocabulary" not in entry, "`vocabulary` is only allowed for type categorical")
    if entry["type"] == "timestamp":
        check(entry.get("part") in PARTS, f"`part` must be one of {', '.join(PARTS)}")
        check(entry.get("epoch_unit", "s") in EPOCH_UNITS, f"`epoch_unit` must be one of {', '.join(EPOCH_UNITS)}")
    else:
        allowed = "part" not in entry and "epoch_unit" not in entry
        check(allowed, "`part` and `epoch_unit` are only allowed for type timestamp")
    check(isinstance(entry.get("unit", ""), str), "`unit` must be a string")
    return Feature(**{**entry, "vocabulary": tuple(vocabulary)})


def encode(table, features):
    """Table -> (X float32 [n, F], accepted bool [n], Counter {reason: rows refused for it})."""
    X = np.empty((table.rows, len(features)), np.float32)
    accepted, refused = np.ones(table.rows, bool), Counter()
    for j, feature in enumerate(features):
        if feature.path not in table.columns:
            if feature.missing == "reject":
                raise TrainerError(f"`{feature.path}` of feature `{feature.name}` is not in the data; edit the schema")
            X[:, j] = np.nan
            continue
        X[:, j], refusals = encode_column(table.columns[feature.path], feature)
        for row, reason in refusals.items():
            if accepted[row]:
                refused[reason] += 1
            accepted[row] = False
    return X, accepted, refused


def encode_column(column, feature):
    """One column -> (float32 [n], {row: reason of refusal}). Follows the rules of `decode_value`, but faster."""
    if column.dtype != object and feature.type == "number":
        with np.errstate(over="ignore"):
            values = column.astype(np.float32)
        bad = {int(i): f"{feature.name}: does not fit float32" for i in np.flatnonzero(np.isinf(values))}
        if feature.missing == "reject":
            missing = f"{feature.name}: `{feature.path}` is missing"
            bad |= {int(i): missing for i in np.flatnonzero(np.isnan(values))}
        return values, bad
    out, bad, cache = np.full(len(column), np.nan, np.float32), {}, {}
    for row, value in enumerate(column.tolist()):
        if value != value:  # NaN in a numeric column means missing
            value = None
        key = (type(value), getattr(value, "text", value))
        if key not in cache:
            if len(cache) > 100_000:
                cache.clear()
            try:
                cache[key] = decode_value(feature, value)
            except RefusedError as error:
                cache[key] = error
        if isinstance(cache[key], RefusedError):
            bad[row] = str(cache[key])
        else:
            out[row] = cache[key]
    return out, bad
