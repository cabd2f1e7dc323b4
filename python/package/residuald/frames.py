"""Data of other libraries as tables and images, and columns as their data frames. Imports none of them by itself."""

import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from os import PathLike
from uuid import UUID

import numpy as np

from . import _native


def table_of(data, features=None):
    """Records in any accepted form -> Table. `features` name the columns of a NumPy array. Raises Error."""
    check_is_data(data)
    if isinstance(data, _native.Table):
        return data
    if (files := paths_of(data)) is not None:
        return _native.read(files)
    if isinstance(data, np.ndarray):
        return table_of_array(data, features)
    if is_arrow(data):
        return _native.Table.from_arrow(without_unnamed_index(data))
    if hasattr(data, "__array__"):
        return table_of_array(np.asarray(data), features)
    if isinstance(data, Mapping):
        raise _native.Error("a dict is one record: give a list of dicts, or a data frame")
    if not isinstance(data, Sequence):
        data = list(data)
    if not data:
        return _native.Table([])
    if all(isinstance(record, Mapping) for record in data):
        try:
            return _native.Table([json.dumps(record, default=plain) for record in data])
        except (TypeError, RecursionError) as error:
            raise _native.Error(f"a record is not JSON: {error}") from None
    if all(isinstance(record, bytes | str) for record in data):
        return _native.Table(list(data))
    raise _native.Error(
        f"records must be a data frame, a NumPy array, paths, or a sequence of dicts or JSON texts, not {kinds(data)}"
    )


def is_arrow(data):
    """Whether data is a data frame or table with Arrow's C stream interface. Raises Error for a Series."""
    if is_from(data, "pandas", "Series") or is_from(data, "polars", "Series"):
        raise _native.Error("a Series holds one column: give a data frame")
    return hasattr(data, "__arrow_c_stream__")


def is_records(data):
    """Whether data are JSON records: a Table, or a sequence of dicts or texts."""
    if isinstance(data, _native.Table):
        return True
    return isinstance(data, list | tuple) and len(data) > 0 and isinstance(data[0], Mapping | str | bytes)


def has_names(data):
    """Whether the columns of data have names: not those of an array, or of what NumPy makes one of."""
    check_is_data(data)
    if isinstance(data, np.ndarray):
        return False
    if isinstance(data, _native.Table) or paths_of(data) is not None or is_arrow(data) or hasattr(data, "columns"):
        return True
    return isinstance(data, list | tuple) and len(data) > 0 and isinstance(data[0], Mapping | str | bytes)


def check_is_data(data):
    """Raises Error for what cannot hold records, with what to do."""
    if is_from(data, "polars", "LazyFrame"):
        raise _native.Error("a LazyFrame has no rows yet: call .collect()")
    readable, protocols = str | PathLike | Iterable | _native.Table, ("__arrow_c_stream__", "__array__", "save")
    is_data = isinstance(data, readable) or any(hasattr(data, name) for name in protocols)
    if not is_data or isinstance(data, np.generic):
        raise _native.Error(
            f"an object of type {type(data).__name__} is not data: give a data frame, a NumPy array, a sequence of "
            "records or images, or paths"
        )


def without_unnamed_index(data):
    """A pandas frame without the levels of its index that have no name, which Arrow would make columns."""
    if not is_from(data, "pandas", "DataFrame") or is_from(data.index, "pandas", "RangeIndex"):
        return data
    unnamed = [level for level, name in enumerate(data.index.names) if name is None]
    return data.reset_index(level=unnamed, drop=True) if unnamed else data


def paths_of(data):
    """The paths of files, a list, or None if the data are something else. A text that begins with { is a record."""
    if isinstance(data, str | PathLike):
        return [os.fspath(data)]
    if not isinstance(data, list | tuple) or not data:
        return None
    is_path = (
        isinstance(path, PathLike) or (isinstance(path, str) and not path.lstrip().startswith("{")) for path in data
    )
    return [os.fspath(path) for path in data] if all(is_path) else None


def table_of_array(array, features):
    """A NumPy array [n, features] of raw values -> Table. The columns are in the order of the schema."""
    if features is None:
        raise _native.Error("a NumPy array has no column names: give a data frame")
    if array.ndim != 2 or array.shape[1] != len(features):
        raise _native.Error(
            f"a NumPy array must be [n, {len(features)}], a column for each feature of the schema in its order, "
            f"but it is {list(array.shape)}"
        )
    paths = [feature.get("path", feature["name"]) for feature in features]
    if shared := [path for path in paths if paths.count(path) > 1]:
        raise _native.Error(
            f"several features read the field `{shared[0]}`, so an array has no column for it: give a data frame "
            "with the fields of the records"
        )
    if array.dtype.kind in "fiub":
        return _native.Table.from_rows(paths, array.astype(np.float64, copy=False))
    return _native.Table([record_of(zip(paths, row, strict=True)) for row in array.tolist()])


def record_of(pairs):
    """(dotted path, value) pairs -> the JSON of one record. NaN and None are left out, as missing."""
    record = b"{}"
    for path, value in pairs:
        if value is not None and value == value:
            record = _native.set_field(record, path, json.dumps(value, default=plain))
    return record


def plain(value):
    """A value that JSON does not have, as the nearest that it has."""
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, UUID):
        return str(value)
    raise _native.Error(f"a value of type {type(value).__name__} is not JSON: {value!r:.80}")


@dataclass
class Images:
    """Images as the daemon reads them. One that cannot be read is empty, and `unreadable` says why."""

    encoded: list[bytes] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)
    converted: Counter = field(default_factory=Counter)  # (mode, new mode): number of PIL images

    def notes(self):
        return [f"{count} images of mode {old} were converted to {new}" for (old, new), count in self.converted.items()]


def images_of(data):
    """Images in any accepted form -> Images. Raises Error for what is no image at all."""
    if hasattr(data, "columns") or isinstance(data, Mapping | _native.Table):
        raise _native.Error(f"the bundle reads images, not tables: give paths or images, not {type(data).__name__}")
    if isinstance(data, np.ndarray) and data.ndim < 4:
        raise _native.Error(
            f"an array {list(data.shape)} can be one image or several: give [array] for one image, [height, width] or "
            "[height, width, channels], and list(array) for gray images [n, height, width]"
        )
    alone = isinstance(data, str | PathLike | bytes) or hasattr(data, "save")
    images = Images()
    for at, image in enumerate([data] if alone else data):
        try:
            images.encoded.append(encoded(image, images.converted))
        except (OSError, UnreadableError) as error:
            if alone:
                raise _native.Error(str(error)) from None
            images.encoded.append(b"")
            images.unreadable[at] = str(error)
    return images


class UnreadableError(Exception):
    """One image cannot be read; the others can."""


# Modes that PNG lacks, and what they become. The conversion of other modes would lose or invent values.
CONVERTED = {"CMYK": "RGB", "RGBX": "RGB", "PA": "RGBA"}
OF_PNG = "1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B"


def encoded(image, converted):
    """An image -> its encoded bytes. Counts conversions in `converted`. Raises OSError or UnreadableError."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | PathLike):
        with open(image, "rb") as stream:
            return stream.read(MOST_BYTES + 1)
    if isinstance(image, np.ndarray):
        image = image_of_array(image)
    if not (hasattr(image, "save") and hasattr(image, "mode")):
        raise _native.Error(f"an image must be a path, bytes, a PIL image or a NumPy array, not {type(image).__name__}")
    if image.mode not in (*OF_PNG, *CONVERTED):
        raise UnreadableError(
            f"a PIL image of mode {image.mode} cannot be converted exactly: convert it as in training, to L or RGB"
        )
    stream = io.BytesIO()
    try:
        if image.mode in CONVERTED:
            old = image.mode
            image = image.convert(CONVERTED[old])
            converted[old, image.mode] += 1
        image.save(stream, format="PNG", compress_level=1)
    except (OSError, SyntaxError, SystemError, ValueError) as error:
        raise UnreadableError(f"Pillow cannot read the image: {error}") from None
    return stream.getvalue()


MOST_BYTES = 32 << 20  # The daemon refuses a larger image, too.


def image_of_array(array):
    try:
        from PIL import Image
    except ImportError:
        raise _native.Error("images as NumPy arrays need Pillow: pip install pillow") from None
    if array.dtype != np.uint8:
        raise _native.Error(
            f"an image as a NumPy array must be uint8, 0 to 255, but it is {array.dtype}: convert it as in training"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise _native.Error(f"an image must be [height, width] or [height, width, 1, 3 or 4], not {list(array.shape)}")
    return Image.fromarray(np.ascontiguousarray(array))


def kind_of(data):
    """What a caller works with -> (kind of frame, index of a pandas frame or None)."""
    if is_from(data, "pandas", "DataFrame"):
        return "pandas", data.index
    if is_from(data, "polars", "DataFrame"):
        return "polars", None
    if is_from(data, "pyarrow", "Table") or is_from(data, "pyarrow", "RecordBatch"):
        return "arrow", None
    return "pandas", None


def is_from(data, module, name):
    """Whether data is of that class. The module is not imported: without it, nothing is of its classes."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(data, getattr(loaded, name))


def frame(columns, kind, index):
    """{name: array [n]} -> a data frame of that kind."""
    try:
        if kind == "pandas":
            import pandas

            return pandas.DataFrame(columns, index=index)
        if kind == "polars":
            import polars

            return polars.DataFrame({name: listed(column) for name, column in columns.items()})
        if kind == "arrow":
            import pyarrow

            return pyarrow.table({name: listed(column) for name, column in columns.items()})
    except ImportError as missing:
        raise ImportError(f'{missing.name} is not installed: install it, or ask for kind="dict"') from None
    if kind == "dict":
        return columns
    raise ValueError(f'kind must be "pandas", "polars", "arrow" or "dict", not {kind!r}')


def listed(column):
    return column.tolist() if column.dtype == object else column


def kinds(data):
    found = sorted({type(record).__name__ for record in data})
    return ", ".join(found[:5])
