"""Trains diffusion models on normal records or images, and exports them as bundles for the residuald daemon.

- `preprocessing`: converts raw rows to standardised columns and back. It is part of the exported graph.
- `tabular`: trains on files of records. `tabular.pipeline` is the whole training from top to bottom.
- `images`: trains on a folder of images, with the same module names.
- `foreign`: makes bundles of models that were trained elsewhere: `wrap`, `from_onnx`, `from_sklearn`, `from_pyod`.
- `bundle`: makes the parts of a bundle: ONNX export, calibration, golden records, screen, nearest normals, int8.
- `bench`: measures detection on labelled data and compares it with simpler methods.
- `report`: the model card, its plots, and contact sheets of images.
- `cli`: parses arguments and calls the packages above. There is one file for each verb.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("residuald-train")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0.1.0"


class TrainerError(Exception):
    """An error that the user can correct. The message is one line: what is wrong, where, and what to do."""


def __getattr__(name):
    """The functions of `foreign`, which is imported when they are first used, because it needs ONNX Runtime."""
    if name in ("wrap", "from_onnx", "from_sklearn", "from_pyod"):
        return getattr(import_module(".foreign", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
