"""Infers a schema from the data, as a draft for the user to edit."""

from collections import Counter

import numpy as np

from .. import TrainerError
from ..console import say
from .decode import category, parse_rfc3339
from .features import PARTS, Feature

MAX_VOCABULARY = 100


def infer_schema(table, label, drop):
    """Table -> features, without the label and the columns in `drop`. Prints what was left out and why."""
    features, messages = infer_features(table, {*drop, *([label["path"]] if label else [])})
    say(*(f"schema: {message}" for message in messages))
    return features


def infer_features(table, leave_out=()):
    """Table -> (features, messages). Skips the columns in `leave_out`."""
    features, messages = [], []
    for path, column in table.columns.items():
        if path in leave_out:
            continue
        found, why = infer_column(path, column)
        features += found
        if why:
            messages.append(f"`{path}` {why}")
    if not features:
        raise TrainerError("no column varies, so there is nothing to learn; check the data, --drop and --label")
    names = Counter(f.name for f in features)
    if any(count > 1 for count in names.values()):
        raise TrainerError(
            f"two columns give features the same name `{names.most_common(1)[0][0]}`; rename one of them"
        )
    return features, messages


def infer_column(path, column):
    """One column -> (its features, None), or ([], the reason why it is left out)."""
    name = path.replace(".", "_")
    if column.dtype != object:
        present, missing = column[~np.isnan(column)], bool(np.isnan(column).any())
        if len(present) == 0 or present.min() == present.max():
            return [], "is constant and is left out"
        return [Feature(name, path, "number", "impute" if missing else "reject")], None

    values = [v for v in column.tolist() if v is not None]
    missing = "impute" if len(values) < len(column) else "reject"
    kinds = set(map(type, values))
    counts = Counter(map(category, values))
    if None in counts:
        return [], "mixes objects with plain values and is left out"
    if len(counts) < 2:
        return [], "is constant and is left out"
    if kinds == {bool}:
        return [Feature(name, path, "bool", missing)], None
    if bool not in kinds and all(issubclass(k, int | float) for k in kinds):
        return [Feature(name, path, "number", missing)], None
    if kinds == {str} and all(map(parse_rfc3339, values)):
        return [Feature(f"{name}_{part}", path, "timestamp", missing, part=part) for part in PARTS], None
    words = vocabulary(counts)
    if (len(words) < len(counts) and sum(counts[w] for w in words) < len(values) / 2) or is_id(counts, values):
        return [], f"looks like an id ({len(counts)} different values) and is left out"
    return [Feature(name, path, "categorical", missing, words)], None


def is_id(counts, values):
    return len(counts) == len(values) > 20


def vocabulary(counts):
    """The MAX_VOCABULARY most frequent categories, ties in alphabetical order. Rarer ones count as unseen."""
    ordered = sorted(counts, key=lambda text: (-counts[text], text))
    return tuple(ordered[:MAX_VOCABULARY])
