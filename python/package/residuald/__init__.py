"""Reads files of records as the residuald daemon does, by the daemon's own code.

>>> import residuald
>>> table = residuald.read(["history.ndjson.gz"])
>>> features, notes = table.infer(leave_out=["label"])
>>> X, accepted, refused = table.encode(features)  # X float32 [n, F], accepted bool [n]

A schema is a sequence of dicts, one for each feature, as under `input.features` in a bundle's manifest.
"""

from ._native import (
    Error,
    RefusedError,
    Schema,
    Table,
    __version__,
    check_schema,
    read,
    select,
    set_field,
)

__all__ = [
    "Error",
    "RefusedError",
    "Schema",
    "Table",
    "__version__",
    "check_schema",
    "decode",
    "read",
    "select",
    "set_field",
]


def decode(schema, record):
    """One record, the JSON text of an object -> float32 [features]. Raises RefusedError.

    `schema`: dicts as in a manifest, or a Schema, which is faster for many records.
    """
    return (schema if isinstance(schema, Schema) else Schema(schema)).decode(record)
