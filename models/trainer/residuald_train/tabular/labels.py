"""Labels: which rows are normal. The trainer learns only from normal rows. Labels are never features."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import TrainerError
from ..console import say
from .data import read
from .decode import category

MAX_ROWS = 1_000_000


@dataclass(frozen=True)
class DataSource:
    """The files to read, with the options that describe them."""

    files: list[Path]
    label: str | None = None  # the column that tells normal rows
    normal: str | None = None  # its value on normal rows
    drop: tuple[str, ...] = ()  # columns that are not features
    max_rows: int = MAX_ROWS
    seed: int = 0


def read_labelled(source, label=None):
    """DataSource -> (Table, label or None). A label is {"path": column, "normal": value}.

    If the source names no label, the label passed in (that of a schema) is used, or else the column `y` of NPZ files.
    """
    table = read(source.files, source.max_rows, source.seed)
    say(*table.messages)
    if source.label:
        label = {"path": source.label, "normal": json_value(source.normal or "0")}
    elif source.normal:
        raise TrainerError(
            "--normal is given without --label; pass --label COL to name the column that holds the value"
        )
    elif label is None and "y" in table.columns and all(str(f).endswith(".npz") for f in source.files):
        label = {"path": "y", "normal": 0}
        say("label: `y`, normal = 0 (the convention of NPZ files)")
    if label and label["path"] not in table.columns:
        raise TrainerError(
            f"the label column `{label['path']}` is not in the data; columns: {shortened(table.columns)}"
        )
    for column in source.drop:
        check_column(table, column, "--drop")
    return table, label


def read_labelled_like(source, manifest):
    """Like `read_labelled`, but falls back to the label that the bundle was trained with, if the data has it."""
    table, label = read_labelled(source)
    if label is None and (trained := manifest.get("training", {}).get("options", {}).get("label")):
        label = trained if trained["path"] in table.columns else None
    return table, label


def check_column(table, column, option):
    if column not in table.columns:
        raise TrainerError(f"{option}: no column `{column}` in the data; columns: {shortened(table.columns)}")


def shortened(names):
    return ", ".join(list(names)[:40])


def json_value(text):
    """Converts a command-line value to its JSON value: "0" -> 0, "normal." -> "normal."."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float) else text


def is_normal(column, normal):
    """Which labels equal `normal`: bool [n]. Compared as numbers if both are numbers, otherwise as strings."""
    try:
        number = float(normal)
    except (TypeError, ValueError):
        number = None
    if column.dtype != object:
        return column == number if number is not None else np.zeros(len(column), bool)
    text = category(normal)
    return np.array([v is not None and category(v) == text for v in column.tolist()], bool)


def anomalous_rows(table, label):
    """Which rows are labelled as anomalous: bool [rows], or None without a label."""
    return ~is_normal(table.columns[label["path"]], label["normal"]) if label else None


def split_by_label(table, label):
    """Splits a table -> (normal rows, anomalous rows), both Tables. The second is None without a label.

    Raises TrainerError if no row is normal.
    """
    if not label:
        return table, None
    normal = is_normal(table.columns[label["path"]], label["normal"])
    if not normal.any():
        values = list(dict.fromkeys(map(str, table.columns[label["path"]][:1000].tolist())))[:10]
        raise TrainerError(
            f"no row has `{label['path']}` = {label['normal']!r}; it holds {shortened(values)}; "
            "pass the value of normal rows with --normal"
        )
    return table.take(np.flatnonzero(normal)), table.take(np.flatnonzero(~normal))
