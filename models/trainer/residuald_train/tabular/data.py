"""Reads CSV, Parquet, NDJSON (each also .gz) and NPZ files into columns named by dotted paths, sampling large data."""

import gzip
import hashlib
import io
import itertools
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from tqdm import tqdm

from .. import TrainerError
from .decode import RefusedError, parse_record

FORMATS = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet", ".npz": "npz"}
FORMATS |= dict.fromkeys([".ndjson", ".jsonl", ".json"], "ndjson")


@dataclass
class Table:
    """Columns of equal length [rows]: int64, float64 (NaN = missing) or Python objects (None = missing)."""

    columns: dict[str, np.ndarray]
    rows: int
    files: list[dict] = field(default_factory=list)  # keys: file, sha256, rows, and drawn if sampled
    messages: list[str] = field(default_factory=list)

    def take(self, index):
        """A Table of the rows with the numbers in `index`, in this order."""
        columns = {path: column[index] for path, column in self.columns.items()}
        return Table(columns, len(index), self.files, self.messages)

    def only(self, paths):
        """A Table of the columns whose paths are in `paths`."""
        columns = {path: column for path, column in self.columns.items() if path in paths}
        return Table(columns, self.rows, self.files, self.messages)

    def record(self, row):
        """One row as a nested object, as a producer would send it, without missing values."""
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


def read(paths, max_rows=None, seed=0):
    """Reads files in order into one Table. Raises TrainerError that names the file.

    If the files hold more than `max_rows` rows in total, `max_rows` of them are drawn at random, each row equally
    likely. Only the drawn rows are kept in memory (NPZ excepted).
    """
    tables, sources = [], [DataFile(path) for path in map(Path, paths)]
    chosen = draw([source.count() for source in sources], max_rows, seed) if max_rows else [None] * len(sources)
    for source, rows in zip(sources, chosen, strict=True):
        columns, messages = source.read(rows)
        found = len(next(iter(columns.values()), ()))
        if not found and rows is None:
            raise TrainerError(f"{source.path} has no rows")
        facts = {"file": source.path.name, "sha256": source.digest(), "rows": found}
        if rows is not None:
            facts |= {"rows": source.rows, "drawn": found}
            messages = [f"{source.path.name}: {found} of {source.rows} rows, drawn at random (--max-rows)", *messages]
        if found:
            tables.append(Table(columns, found, [facts], messages))
    return join(tables)


def draw(counts, most, seed):
    """Number of rows in each file -> the row numbers drawn from each file, ascending.

    Every row is equally likely. None for each file if the total is at most `most`: all rows are read.
    """
    total = sum(counts)
    if total <= most:
        return [None] * len(counts)
    rows = np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
    ends = np.cumsum(counts)
    parts = np.split(rows, np.searchsorted(rows, ends[:-1]))
    return [part - (end - count) for part, end, count in zip(parts, ends, counts, strict=True)]


# Raised by the readers if a file is damaged or its suffix is wrong.
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    OverflowError,
    RecursionError,
    MemoryError,
    pa.ArrowException,
    zipfile.BadZipFile,
    zlib.error,
)
LONGEST_REASON = 300


def one_line(error):
    """The message of an error on one line and cut to LONGEST_REASON, because some errors quote the data."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}…"


class DataFile:
    """A file of records. Every error names the file."""

    def __init__(self, path):
        self.path, self.rows = path, None
        suffixes = [s for s in path.suffixes if s != ".gz"]
        self.kind = FORMATS.get(suffixes[-1].lower() if suffixes else "")
        if self.kind is None:
            raise TrainerError(
                f"cannot tell the format of {path}: use a .csv, .parquet or .ndjson file (each also .gz), or .npz"
            )

    def open(self):
        """The content as a stream of bytes. Decompresses Parquet and NPZ in memory, because their readers seek."""
        if self.path.suffix != ".gz":
            return self.path.open("rb")
        return gzip.open(self.path) if self.kind in ("csv", "ndjson") else io.BytesIO(gzip.open(self.path).read())

    def attempt(self, act):
        try:
            with self.open() as stream:
                return act(stream)
        except UNREADABLE as error:
            raise TrainerError(f"cannot read {self.path}: {one_line(error)}") from None

    def count(self):
        self.rows = self.attempt(COUNTERS[self.kind])
        return self.rows

    def read(self, rows=None):
        """Reads all rows, or those with the numbers `rows` (ascending) -> ({path: column}, messages for the user)."""
        return self.attempt(lambda stream: READERS[self.kind](stream, self.path.name, rows))

    def digest(self):
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def join(tables):
    """Concatenates tables. A column that one table lacks is missing (None) in its rows."""
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
            f"the key `{dotted[0]}` is empty or contains a dot, so a dotted path cannot address it; rename the column"
        )


def read_ndjson(stream, name, chosen=None):
    columns, rows, bad = {}, 0, 0
    lines = enumerate(stream, 1)
    if chosen is not None:
        wanted = set((chosen + 1).tolist())
        lines = ((number, line) for number, line in lines if number in wanted)
    for number, line in tqdm(lines, desc=f"read {name}", unit=" records", mininterval=0.5):
        if not line.strip():
            continue
        try:
            record = flatten(parse_record(line))
        except RefusedError as error:
            bad += 1
            if bad > max(10, (rows + bad) // 10):
                raise TrainerError(f"{name} line {number}: {error} (and {bad - 1} lines before it)") from None
            continue
        for path, value in record.items():
            values = columns.setdefault(path, [])
            values.extend([None] * (rows - len(values)))  # missing in the earlier records
            values.append(value)
        rows += 1
    for values in columns.values():
        values.extend([None] * (rows - len(values)))
    messages = [f"{name}: left out {bad} lines that are not a JSON object"] if bad else []
    arrays = sorted(path for path, values in columns.items() if any(isinstance(v, list) for v in values))
    messages += [f"`{path}` holds arrays and is ignored" for path in arrays]
    return {path: typed_array(values) for path, values in columns.items() if path not in arrays}, messages


def flatten(record, prefix=""):
    no_dots(record)
    flat = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def typed_array(values):
    """JSON values -> int64 if all are integers, float64 if all are numbers and some are floats, otherwise objects."""
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
    return object_array(values)


def object_array(values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


def read_csv(stream, name, chosen=None):
    if chosen is not None:
        # Column types are inferred from all drawn rows, so the values stay strings until then.
        drawn, stream = pick(untyped_batches(stream, pa.string()), chosen, name), io.BytesIO()
        pa.csv.write_csv(drawn, stream)
        stream.seek(0)
    # No time matches this format, so times stay strings.
    options = pa.csv.ConvertOptions(timestamp_parsers=["\x01"], strings_can_be_null=True)
    return from_arrow(pa.csv.read_csv(stream, convert_options=options), name)


def untyped_batches(stream, kind):
    """CSV as batches whose columns all have the Arrow type `kind` (string or binary). Values stay as written."""
    head = pa.csv.read_csv(io.BytesIO(stream.readline() + b"\n")).column_names
    stream.seek(0)
    options = pa.csv.ConvertOptions(column_types=dict.fromkeys(head, kind), strings_can_be_null=False)
    return pa.csv.open_csv(stream, convert_options=options)


def read_parquet(stream, name, chosen=None):
    if chosen is None:
        return from_arrow(pa.parquet.read_table(stream), name)
    return from_arrow(pick(pa.parquet.ParquetFile(stream).iter_batches(), chosen, name), name)


def pick(batches, chosen, name):
    """The rows of the numbers `chosen` (ascending) from a stream of batches -> pa.Table."""
    parts, start = [], 0
    with tqdm(total=len(chosen), desc=f"read {name}", unit=" rows", mininterval=0.5) as bar:
        for batch in batches:
            inside = chosen[slice(*np.searchsorted(chosen, [start, start + batch.num_rows]))] - start
            parts.append(batch.take(pa.array(inside)))
            start += batch.num_rows
            bar.update(len(inside))
    return pa.Table.from_batches(parts)


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
            columns[path] = object_array([None if t == "NaTZ" else t for t in text])
        elif pa.types.is_date(kind) or pa.types.is_time(kind):
            columns[path] = object_array([None if v is None else str(v) for v in column.to_pylist()])
        elif pa.types.is_nested(kind) or pa.types.is_binary(kind):
            messages.append(f"`{path}` holds {kind} and is ignored")
        else:
            columns[path] = object_array(column.to_pylist())
    return columns, messages


def leaves(table, prefix=""):
    """Yields (dotted path, column) for each column; structs are flattened."""
    no_dots(table.column_names)
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_struct(column.type):
            inner = column.combine_chunks()
            inner = inner.chunk(0) if isinstance(inner, pa.ChunkedArray) else inner
            names = [f.name for f in inner.type]
            yield from leaves(pa.table(inner.flatten(), names=names), f"{prefix}{name}.")
        else:
            yield prefix + name, column


def read_npz(stream, name, chosen=None):
    arrays = np.load(stream, allow_pickle=False)
    if "X" not in arrays or arrays["X"].ndim != 2 or arrays["X"].dtype.kind not in "fiub":
        raise TrainerError(f"{name}: needs a numeric 2-d array X, and optionally labels y (0 = normal)")
    X, every = arrays["X"], slice(None) if chosen is None else chosen
    columns = {
        f"x{j}": X[every, j].astype(np.float64) for j in tqdm(range(X.shape[1]), desc=f"read {name}", unit=" columns")
    }
    if "y" in arrays:
        if arrays["y"].shape != (len(X),):
            raise TrainerError(f"{name}: y must have one label for each row of X")
        columns["y"] = arrays["y"][every].astype(np.int64)
    return columns, []


READERS = {"csv": read_csv, "parquet": read_parquet, "ndjson": read_ndjson, "npz": read_npz}


def count_npz(stream):
    arrays = np.load(stream, allow_pickle=False)
    return arrays["X"].shape[0] if "X" in arrays and arrays["X"].ndim else 0


COUNTERS = {
    "csv": lambda stream: sum(batch.num_rows for batch in untyped_batches(stream, pa.binary())),
    "parquet": lambda stream: pa.parquet.ParquetFile(stream).metadata.num_rows,
    "ndjson": lambda stream: sum(1 for _ in stream),
    "npz": count_npz,
}
