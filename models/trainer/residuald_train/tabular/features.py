"""The input schema: an ordered list of features. Each feature is one column of the model's input row.

The daemon's own code checks it, guesses it, and reads records by it.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import residuald

from .. import TrainerError
from ..console import say
from .data import with_flags

PARTS = {"hour_of_day": 24.0, "day_of_week": 7.0}  # part of a timestamp -> its period


@dataclass(frozen=True)
class Feature:
    """One column of the row: where its value is in the record and how it is read."""

    name: str
    path: str
    type: str
    missing: str = "reject"
    vocabulary: tuple[str, ...] = ()
    part: str | None = None
    unit: str | None = None
    notation: dict[str, Any] = field(default_factory=dict)  # the other keys, which only the reader needs

    def to_json(self):
        out = {"name": self.name, "path": self.path, "type": self.type}
        if self.type == "categorical":
            out["vocabulary"] = list(self.vocabulary)
        if self.part:
            out["part"] = self.part
        out |= self.notation | {"missing": self.missing}
        return out | ({"unit": self.unit} if self.unit else {})


def check_features(entries):
    """JSON objects -> features. Raises TrainerError that names each feature with a fault, and the fault."""
    try:
        checked = residuald.check_schema(entries)
    except (residuald.Error, TypeError) as error:
        raise TrainerError(str(error)) from None
    return [feature(entry) for entry in checked]


def feature(entry):
    """A checked JSON object -> Feature."""
    known = {key: entry.pop(key) for key in ("name", "path", "type", "missing", "part", "unit") if key in entry}
    return Feature(**known, vocabulary=tuple(entry.pop("vocabulary", ())), notation=entry)


def schema_to_json(features, label=None, missing=()):
    """The manifest's `input` object. `label` {"path", "normal"} is read by the trainer only.

    `missing`: values that count as missing in every feature. They are written once, not for each feature.
    """
    out = {"kind": "tabular"} | ({"missing_values": list(missing)} if missing else {})
    out["features"] = [without_missing(feature.to_json(), missing) for feature in features]
    return out | ({"label": label} if label else {})


def without_missing(entry, missing):
    own = [value for value in entry.pop("missing_values", []) if value not in missing]
    return entry | ({"missing_values": own} if own else {})


def with_missing(entry, missing):
    """A feature as in a schema file -> the same with more values that count as missing."""
    own = entry.get("missing_values") or []
    more = [value for value in missing if value not in own]
    return entry | ({"missing_values": [*own, *more]} if own or more else {})


def add_missing(features, missing):
    """Features -> the same with more values that count as missing."""
    return check_features([with_missing(feature.to_json(), missing) for feature in features]) if missing else features


def load_schema(path):
    """Reads and checks a schema file -> (features, label or None)."""
    try:
        schema = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TrainerError(f"cannot read schema {path}: {error}") from None
    if not isinstance(schema, dict) or schema.get("kind") != "tabular" or not schema.get("features"):
        raise TrainerError(f'schema {path}: must be {{"kind": "tabular", "features": [...]}} with at least one feature')
    try:
        missing = schema.get("missing_values", [])
        if not isinstance(missing, list) or not all(isinstance(value, str | int | float) for value in missing):
            raise TrainerError("`missing_values` must be a list of strings and numbers")
        features = add_missing(check_features(schema["features"]), missing)
    except TrainerError as error:
        raise TrainerError(f"schema {path}: {error}") from None
    label = schema.get("label")
    if label is not None and not (isinstance(label, dict) and set(label) == {"path", "normal"}):
        raise TrainerError(f'schema {path}: `label` must be {{"path": ..., "normal": ...}}')
    return features, label


def infer_schema(table, label, drop=(), keep=(), missing=()):
    """residuald.Table -> features, without the label and the paths in `drop`. Prints notes.

    `missing`: texts and numbers that count as missing in every column.
    """
    try:
        entries, notes = table.infer([*drop, *([label["path"]] if label else [])], list(keep), list(missing))
    except residuald.Error as error:
        raise TrainerError(str(error)) from None
    say(*(f"schema: {note}" for note in notes))
    return check_features(entries)


def encode(table, features):
    """residuald.Table -> (X float32 [n, F], accepted bool [n], Counter {reason: rows refused for it})."""
    X, accepted, refused = table.encode([feature.to_json() for feature in features])
    if len(accepted) and not accepted.any():
        paths = set(table.paths)
        for feature in features:
            if feature.missing == "reject" and feature.path not in paths:
                raise TrainerError(f"`{feature.path}` of feature `{feature.name}` is not in the data; edit the schema")
    return X, accepted, Counter({with_flags(reason): count for reason, count in refused.items()})
