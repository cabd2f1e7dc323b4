"""Labels: which rows are normal. The trainer learns only from normal rows. Labels are never features."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import TrainerError
from ..console import say
from .data import read, with_flags

MAX_ROWS = 1_000_000


@dataclass(frozen=True)
class DataSource:
    """The files to read, with the options that describe them."""

    files: list[Path]
    label: str | None = None  # the column that tells normal rows
    normal: str | None = None  # its value on normal rows
    drop: tuple[str, ...] = ()  # columns that are not features
    keep: tuple[str, ...] = ()  # columns that are features, even if they look like ids
    max_rows: int = MAX_ROWS
    missing: tuple[str | float, ...] = ()  # values that count as missing in every column
    seed: int = 0
    format: str | None = None  # of the files; None: as their names or their content tell
    envelope: tuple[str, ...] = ()  # what surrounds each JSON record, the outermost first
    unwrap: str = "none"  # where the records of a line are
    allow_nan: bool = False  # whether NaN in JSON is a missing value


def read_labelled(source, label=None):
    """DataSource -> (Table, label or None). A label is {"path": column, "normal": value}.

    If the source names no label, the label passed in (that of a schema) is used, or else the column `y` of NPZ files.
    Rows without a label are left out, as `residuald score` leaves them out of its comparison. Raises TrainerError.
    """
    wrapping = {"envelope": list(source.envelope), "unwrap": source.unwrap, "allow_nan": source.allow_nan}
    table = read(source.files, source.max_rows, source.seed, source.format, **wrapping)
    say(*map(with_flags, table.notes))
    if source.label:
        label = {"path": source.label, "normal": json_value(source.normal or "0")}
    elif source.normal:
        raise TrainerError(
            "--normal is given without --label; pass --label COL to name the column that holds the value"
        )
    elif label is None and "y" in table.paths and all(str(file["path"]).endswith(".npz") for file in table.files):
        label = {"path": "y", "normal": 0}
        say("label: `y`, normal = 0 (the convention of NPZ files)")
    if label and label["path"] not in table.paths:
        raise TrainerError(f"the label column `{label['path']}` is not in the data; columns: {shortened(table.paths)}")
    for option, columns in (("--drop", source.drop), ("--keep", source.keep)):
        for column in columns:
            check_column(table, column, option)
    return with_label(table, label), label


def read_labelled_like(source, manifest):
    """Like `read_labelled`, but falls back to the label that the bundle was trained with, if the data has it."""
    table, label = read_labelled(source)
    if label is None and (trained := manifest.get("training", {}).get("options", {}).get("label")):
        label = trained if trained["path"] in table.paths else None
        table = with_label(table, label)
    return table, label


def with_label(table, label):
    """A table without its rows whose label is missing, which are neither normal nor anomalous. Says how many."""
    if not label:
        return table
    labelled = np.array([text is not None for text in table.texts(label["path"])], bool)
    if labelled.all():
        return table
    if not labelled.any():
        raise TrainerError(
            f"the label `{label['path']}` is missing in all {len(table)} rows; pass --label COL to name another column"
        )
    say(f"label: {len(table) - labelled.sum()} of {len(table)} rows have no `{label['path']}`: left out")
    return table.take(np.flatnonzero(labelled))


def check_column(table, column, option):
    if column not in table.paths:
        raise TrainerError(f"{option}: no column `{column}` in the data; columns: {shortened(table.paths)}")


def shortened(names):
    return ", ".join(list(names)[:40])


def json_value(text):
    """Converts a command-line value to its JSON value: "0" -> 0, "normal." -> "normal."."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float) else text


def normal_rows(table, label):
    """Which rows have the normal label: bool [rows]. Compared as numbers if both are numbers, otherwise as strings."""
    normal = label["normal"]
    return table.is_normal(label["path"], normal if isinstance(normal, str) else json.dumps(normal))


def anomalous_rows(table, label):
    """Which rows are labelled as anomalous: bool [rows], or None without a label."""
    return ~normal_rows(table, label) if label else None


def split_by_label(table, label):
    """Splits a table -> (normal rows, anomalous rows), both Tables. The second is None without a label.

    Raises TrainerError if no row is normal.
    """
    if not label:
        return table, None
    normal = normal_rows(table, label)
    if not normal.any():
        values = list(dict.fromkeys(map(str, table.take(np.arange(min(1000, len(table)))).texts(label["path"]))))[:10]
        raise TrainerError(
            f"no row has `{label['path']}` = {label['normal']!r}; it holds {shortened(values)}; "
            "pass the value of normal rows with --normal"
        )
    return table.take(np.flatnonzero(normal)), table.take(np.flatnonzero(~normal))
