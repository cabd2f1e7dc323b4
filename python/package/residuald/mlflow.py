"""Bundles as MLflow models: `log_model` and `save_model` write them, `mlflow.pyfunc.load_model` reads them.

>>> import residuald.mlflow
>>> info = residuald.mlflow.log_model("models/payments", name="payments")
>>> mlflow.pyfunc.load_model(info.model_uri).predict(df)  # the frame of Verdicts
"""

import shutil
import tempfile
from pathlib import Path

from . import __version__
from .bundle import Bundle

try:
    import mlflow.pyfunc
except ImportError as missing:
    raise ImportError("residuald.mlflow needs MLflow: pip install mlflow-skinny pandas") from missing

REQUIREMENTS = [f"residuald=={__version__}", "pandas"]


def save_model(bundle, path, **options):
    """Writes a bundle (a Bundle or its folder) to the folder `path` as an MLflow model of the flavor `python_function`.

    The options are those of `mlflow.pyfunc.save_model`, `signature` and `input_example` for instance. The bundle is
    loaded first, so what cannot be served is not saved.
    """
    with Copy(bundle) as folder:
        mlflow.pyfunc.save_model(path, **arguments(folder, options))


def log_model(bundle, name, **options):
    """Like `save_model`, but logs the model under `name` to the current run -> mlflow.models.model.ModelInfo."""
    with Copy(bundle) as folder:
        return mlflow.pyfunc.log_model(name=name, **arguments(folder, options))


def arguments(folder, options):
    return {"loader_module": __name__, "data_path": str(folder), "pip_requirements": REQUIREMENTS} | options


class Copy:
    """A proved copy of a bundle's folder, under a constant name."""

    def __init__(self, bundle):
        self.source = (bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)).path

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        return shutil.copytree(self.source, Path(self.folder.name, "bundle"))

    def __exit__(self, *_):
        self.folder.cleanup()


def _load_pyfunc(path):
    return Served(Bundle.load(path))


class Served:
    """What MLflow calls. `predict` takes the parameters `explain` and `reasons` of `Bundle.score`."""

    def __init__(self, bundle):
        self.bundle = bundle

    def predict(self, data, params=None):
        """Records -> a pandas frame with a row for each."""
        return self.bundle.score(data, **(params or {})).frame("pandas")
