"""Reads CSV, Parquet, NDJSON (each also .gz) and NPZ files into columns named by dotted paths."""

import gzip
import hashlib
import io
import itertools
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from tqdm import tqdm

from . import TrainerError
from .decode import RefusedError, category, parse_record

FORMATS = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet", ".npz": "npz"}
FORMATS |= dict.fromkeys([".ndjson", ".jsonl", ".json"], "ndjson")


@dataclass
class Table:
    """Columns of equal length: int64 or float64 (NaN = missing), or Python objects (None = missing)."""

    columns: dict[str, np.ndarray]
    rows: int
    files: list[dict] = field(default_factory=list)  # file, sha256, rows
    messages: list[str] = field(default_factory=list)

    def take(self, index):
        columns = {path: column[index] for path, column in self.columns.items()}
        return Table(columns, len(index), self.files, self.messages)

    def only(self, paths):
        columns = {path: column for path, column in self.columns.items() if path in paths}
        return Table(columns, self.rows, self.files, self.messages)

    def record(self, row):
        """The row as a producer would send it: a nested object without the missing values."""
        record = {}
        for path, column in self.columns.items():
            value = column[row].item() if column.dtype != object else column[row]
            if value is None or value != value:
                continue
            *parents, key = path.split(".")
            inner = record
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[key] = value
        return record


def read(paths):
    """Reads files one after the other into one Table; raises TrainerError that names the file."""
    tables = []
    for path in map(Path, paths):
        suffixes = [s for s in path.suffixes if s != ".gz"]
        kind = FORMATS.get(suffixes[-1].lower() if suffixes else "")
        if kind is None:
            raise TrainerError(
                f"cannot tell the format of {path}; wants .csv, .parquet, .ndjson (each also .gz) or .npz"
            )
        try:
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            if path.suffix == ".gz":
                content = gzip.decompress(content)
            columns, messages = READERS[kind](content, path.name)
        except (OSError, EOFError, ValueError, KeyError, pa.ArrowException, zipfile.BadZipFile) as error:
            raise TrainerError(f"cannot read {path}: {error}") from None
        rows = len(next(iter(columns.values()), ()))
        if not rows:
            raise TrainerError(f"{path} has no rows")
        tables.append(Table(columns, rows, [{"file": path.name, "sha256": digest, "rows": rows}], messages))
    return join(tables)


def join(tables):
    """Files under one another; a column that one of them lacks is missing there."""
    if len(tables) == 1:
        return tables[0]
    columns = {}
    for path in dict.fromkeys(itertools.chain(*(t.columns for t in tables))):
        parts = [t.columns.get(path, np.full(t.rows, None, object)) for t in tables]
        if len({p.dtype for p in parts}) > 1:
            parts = [p.astype(object) for p in parts]
        columns[path] = np.concatenate(parts)
    return Table(
        columns,
        sum(t.rows for t in tables),
        [f for t in tables for f in t.files],
        list(dict.fromkeys(m for t in tables for m in t.messages)),
    )


def no_dots(names):
    dotted = [name for name in names if "." in name or not name]
    if dotted:
        raise TrainerError(
            f"the key `{dotted[0]}` has a dot in it (or is empty) and a dotted path cannot name it; rename the column"
        )


def read_ndjson(content, name):
    columns, rows, bad = {}, 0, 0
    lines = content.splitlines()
    for number, line in enumerate(tqdm(lines, desc=f"read {name}", unit=" records", mininterval=0.5), 1):
        if not line.strip():
            continue
        try:
            record = flatten(parse_record(line))
        except RefusedError as error:
            bad += 1
            if bad > max(10, number // 10):
                raise TrainerError(f"{name} line {number}: {error} (and {bad - 1} lines before it)") from None
            continue
        for path, value in record.items():
            values = columns.setdefault(path, [])
            values.extend([None] * (rows - len(values)))  # the records before this one that lack it
            values.append(value)
        rows += 1
    for values in columns.values():
        values.extend([None] * (rows - len(values)))
    messages = [f"{name}: {bad} lines that are not a JSON object were left out"] if bad else []
    arrays = sorted(path for path, values in columns.items() if any(isinstance(v, list) for v in values))
    messages += [f"`{path}` holds arrays and is ignored" for path in arrays]
    return {path: settle(values) for path, values in columns.items() if path not in arrays}, messages


def flatten(record, prefix=""):
    no_dots(record)
    flat = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def settle(values):
    """A list of JSON values -> int64 or float64 if it is all numbers that need no text, else objects."""
    kinds = set(map(type, values))
    try:
        if kinds == {int}:
            return np.array(values, np.int64)
        if any(issubclass(k, float) for k in kinds) and all(
            issubclass(k, int | float) and k is not bool for k in kinds - {type(None)}
        ):
            return np.array([np.nan if v is None else float(v) for v in values])
    except OverflowError:
        pass
    return objects(values)


def objects(values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


def read_csv(content, name):
    # No parser matches this, so a time stays the text that it was.
    options = pa.csv.ConvertOptions(timestamp_parsers=["\x01"], strings_can_be_null=True)
    return from_arrow(pa.csv.read_csv(io.BytesIO(content), convert_options=options), name)


def read_parquet(content, name):
    return from_arrow(pa.parquet.read_table(io.BytesIO(content)), name)


def from_arrow(table, name):
    columns, messages = {}, []
    for path, column in tqdm(list(leaves(table)), desc=f"read {name}", unit=" columns", mininterval=0.5):
        kind = column.type
        if pa.types.is_dictionary(kind):
            column = column.cast(kind.value_type)
            kind = column.type
        if pa.types.is_integer(kind) and not column.null_count and not pa.types.is_uint64(kind):
            columns[path] = column.to_numpy().astype(np.int64)
        elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            columns[path] = column.cast(pa.float64()).to_numpy()
        elif pa.types.is_timestamp(kind):
            text = [None if t is None else np.datetime_as_string(t) + "Z" for t in column.to_numpy()]
            columns[path] = objects([None if t == "NaTZ" else t for t in text])
        elif pa.types.is_date(kind) or pa.types.is_time(kind):
            columns[path] = objects([None if v is None else str(v) for v in column.to_pylist()])
        elif pa.types.is_nested(kind) or pa.types.is_binary(kind):
            messages.append(f"`{path}` holds {kind} and is ignored")
        else:
            columns[path] = objects(column.to_pylist())
    return columns, messages


def leaves(table, prefix=""):
    """(dotted path, column) of every column that is not a struct."""
    no_dots(table.column_names)
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_struct(column.type):
            inner = column.combine_chunks()
            inner = inner.chunk(0) if isinstance(inner, pa.ChunkedArray) else inner
            names = [f.name for f in inner.type]
            yield from leaves(pa.table(inner.flatten(), names=names), f"{prefix}{name}.")
        else:
            yield prefix + name, column


def read_npz(content, name):
    arrays = np.load(io.BytesIO(content), allow_pickle=False)
    if "X" not in arrays or arrays["X"].ndim != 2 or arrays["X"].dtype.kind not in "fiub":
        raise TrainerError(f"{name} wants a numeric 2-d array under the key X, and labels (0 = normal) under y")
    X = arrays["X"].astype(np.float64)
    columns = {f"x{j}": X[:, j].copy() for j in tqdm(range(X.shape[1]), desc=f"read {name}", unit=" columns")}
    if "y" in arrays:
        if arrays["y"].shape != (len(X),):
            raise TrainerError(f"{name}: y wants one label for each row of X")
        columns["y"] = arrays["y"].astype(np.int64)
    return columns, []


def label_is_normal(column, normal):
    """bool [n]: which labels equal `normal`, as numbers if both are, else as text."""
    try:
        number = float(normal)
    except (TypeError, ValueError):
        number = None
    if column.dtype != object:
        return column == number if number is not None else np.zeros(len(column), bool)
    text = category(normal)
    return np.array([v is not None and category(v) == text for v in column.tolist()], bool)


READERS = {"csv": read_csv, "parquet": read_parquet, "ndjson": read_ndjson, "npz": read_npz}
