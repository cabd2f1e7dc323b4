"""Reads and judges records as the residuald daemon does, by the daemon's own code.

>>> import residuald
>>> bundle = residuald.Bundle.load("models/payments")
>>> verdicts = bundle.score(df)  # a data frame of pandas or Polars, an Arrow table, a NumPy array, dicts, files
>>> verdicts.frame()  # a row for each record: score, p-value, grade, threshold, severity
>>> verdicts.reasons()  # a row for each reason: feature, share, observed, expected

Files of records, and the rows that a model gets:

>>> table = residuald.read(["history.ndjson.gz"])
>>> features, notes = table.infer(leave_out=["label"])
>>> X, accepted, refused = table.encode(features)  # X float32 [n, F], accepted bool [n]

Samplers of diffusion models, with the names and defaults of diffusers:

>>> scheduler = residuald.Scheduler({"_class_name": "DDIMScheduler", "clip_sample": False})
>>> run = scheduler.run(steps=10)
>>> noise = residuald.normals(seed=7, samples=range(4), draws=1 + len(run), dimensions=12)  # float32 [draws, 4, 12]
>>> sample = noise[0] * run.init_noise_sigma
>>> for i, t in enumerate(run.timesteps):
...     output = model(run.scale_input(i, sample), t)
...     sample = run.step(i, output, sample, noise[1 + i])

A schema is a sequence of dicts, one for each feature, as under `input.features` in a bundle's manifest.
"""

from ._native import (
    Error,
    RefusedError,
    Run,
    Scheduler,
    Schema,
    Table,
    __version__,
    check_schema,
    normals,
    read,
    select,
    set_field,
)
from .bundle import Bundle
from .verdicts import Verdicts

__all__ = [
    "Bundle",
    "Error",
    "RefusedError",
    "Run",
    "Scheduler",
    "Schema",
    "Table",
    "Verdicts",
    "__version__",
    "check_schema",
    "decode",
    "normals",
    "read",
    "select",
    "set_field",
]


def __getattr__(name):
    # Detector imports torch and scikit-learn, so it is loaded when it is used.
    if name == "Detector":
        from .detector import Detector

        return Detector
    raise AttributeError(f"module 'residuald' has no attribute {name!r}")


def __dir__():
    return [*__all__, "Detector"]


def decode(schema, record):
    """One record, the JSON text of an object -> float32 [features]. Raises RefusedError.

    `schema`: dicts as in a manifest, or a Schema, which is faster for many records.
    """
    return (schema if isinstance(schema, Schema) else Schema(schema)).decode(record)
