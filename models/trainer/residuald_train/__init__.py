"""Trains diffusion models on normal records or images, and exports them as bundles for the residuald daemon.

- `preprocessing`: raw rows to standardised columns and back; part of the exported graph.
- `tabular`: from files of records to a bundle. `tabular.pipeline` is the whole of it, top to bottom.
- `images`: from a folder of images to a bundle, with the same module names.
- `bundle`: what is in a bundle: the ONNX export, calibration, golden records, the screen, nearest normals, int8.
- `bench`: measures detection on labelled data, beside simpler methods.
- `report`: the model card, its plots, and contact sheets of images.
- `cli`: one file for each verb; parses arguments and calls the above.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("residuald-train")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0.1.0"


class TrainerError(Exception):
    """A fault that the user can correct. The message is one line: what is wrong, where, and what to do."""
