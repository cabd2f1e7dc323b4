"""A bundle in memory, which judges records and images with the daemon's own code."""

import json
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

from . import _native
from .frames import check_is_data, images_of, is_arrow, is_records, kind_of, paths_of, table_of, without_unnamed_index
from .verdicts import Verdicts

MOST_THREADS = 1024
MOST_REASONS = 1 << 31


class Bundle:
    """A model with its schema and thresholds. `Bundle.load(path)` reads one.

    Scores are bit for bit those of `residuald score` and of the daemon on a CPU. A bundle can be pickled: the copy
    loads the same folder again, and refuses it if its content has changed.
    """

    def __init__(self, native: _native.Bundle, arguments: dict[str, Any]) -> None:
        self._native = native
        self._arguments = arguments
        self.path = Path(arguments["path"])
        self.manifest = json.loads((self.path / "manifest.json").read_bytes())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        false_alarm_rate: float | None = None,
        threshold: float | None = None,
        threads: int | None = None,
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> "Bundle":
        """Reads a bundle's folder, verifies its hashes and proves it by its golden records.

        false_alarm_rate: the share of normal records that may be flagged, in (0, 1). Default: 0.001, or the lowest
            that the bundle's calibration supports.
        threshold: a score above which records are flagged, instead.
        threads: the number of CPU threads, 1 to 1024. Default: one for each core.
        device: "cpu", or "cuda" for the first GPU, which needs ORT_DYLIB_PATH to name ONNX Runtime's CUDA build.

        Raises Error with every fault of the bundle, and ValueError for an argument out of its range.
        """
        if device not in ("cpu", "cuda"):
            raise ValueError(f'device must be "cpu" or "cuda", not {device!r}')
        if false_alarm_rate is not None and threshold is not None:
            raise ValueError("set false_alarm_rate or threshold, not both")
        if false_alarm_rate is not None and not (isinstance(false_alarm_rate, Real) and 0 < false_alarm_rate < 1):
            raise ValueError(f"false_alarm_rate must be a number between 0 and 1, not {false_alarm_rate!r}")
        if threshold is not None and not (isinstance(threshold, Real) and 0 < threshold < 1e30):
            raise ValueError(f"threshold must be a number above 0, not {threshold!r}")
        if threads is not None and not whole(threads, 1, MOST_THREADS):
            raise ValueError(f"threads must be a whole number from 1 to {MOST_THREADS}, not {threads!r}")
        use_installed_runtime()
        path = os.path.abspath(path)
        native = _native.Bundle.load(path, threads, false_alarm_rate, threshold, device == "cuda")
        rest = {"false_alarm_rate": false_alarm_rate, "threshold": threshold, "threads": threads, "device": device}
        return cls(native, {"path": path} | rest)

    @classmethod
    def from_sklearn(
        cls, estimator: Any, schema: Any, data: Any, out: str | os.PathLike[str], **options: Any
    ) -> "Bundle":
        """Makes a bundle of a fitted estimator of scikit-learn in the folder `out`, and loads it.

        schema: features as dicts, a schema file, or None to guess them. data: normal records that the estimator was not
        fitted on, as files, an array or a data frame; they calibrate the thresholds. The options are those of
        `residuald_train.wrap`. Needs residuald-train and skl2onnx. Raises residuald_train.TrainerError.
        """
        return cls.load(_trainer().from_sklearn(estimator, schema, data, out, **options))

    @classmethod
    def from_pyod(cls, detector: Any, schema: Any, data: Any, out: str | os.PathLike[str], **options: Any) -> "Bundle":
        """Like `from_sklearn`, for a fitted detector of PyOD."""
        return cls.load(_trainer().from_pyod(detector, schema, data, out, **options))

    @classmethod
    def from_onnx(cls, model: Any, schema: Any, data: Any, out: str | os.PathLike[str], **options: Any) -> "Bundle":
        """Like `from_sklearn`, for the ONNX file `model` of any network, for tables or images."""
        return cls.load(_trainer().from_onnx(model, schema, data, out, **options))

    @property
    def name(self) -> str:
        return self.manifest["name"]

    @property
    def version(self) -> str:
        return self.manifest["version"]

    @property
    def sha256(self) -> str:
        """SHA-256 of the manifest, which identifies the whole bundle. Verdicts hold it as `model.sha256`."""
        return self._native.sha256

    @property
    def kind(self) -> str:
        """ "tabular" or "image"."""
        return self.manifest["input"]["kind"]

    @property
    def features(self) -> list[dict[str, Any]]:
        """The features of a row as dicts, as in the manifest. An image bundle has none."""
        return self.manifest["input"].get("features", [])

    @property
    def threshold(self) -> float:
        """The score above which a record is an anomaly, unless its segment has a threshold of its own."""
        return self._native.threshold

    def __repr__(self) -> str:
        return f"<Bundle {self.name} {self.version}, {self.kind}, threshold {self.threshold:.4g}, {self.path}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_same, (self._arguments, self.sha256)

    def score(
        self,
        data: Any,
        *,
        key: str | None = None,
        explain: Literal["anomalies", "all", "none"] = "anomalies",
        reasons: int = 5,
        maps: bool = False,
        envelope: Sequence[str] = (),
        unwrap: str = "none",
        allow_nan: bool = False,
        bit_depth: int = 16,
        progress: Callable[[int], object] | None = None,
    ) -> Verdicts:
        """Judges records or images -> Verdicts [n], in the order of `data`.

        data: for a tabular bundle a data frame of pandas or Polars, an Arrow table, a sequence of dicts or of JSON
            texts, a path or a list of paths, a Table, or a NumPy array [n, features] of raw values in the order of
            `features` (NaN = missing). For an image bundle a sequence of paths, encoded images (bytes), PIL images, or
            NumPy arrays, uint8 [height, width] or [height, width, channels].
        key: the column that holds the message key, for a bundle that is calibrated by key.
        explain: which records get reasons: "anomalies", "all" or "none".
        reasons: the number of reasons for a record, or of regions in an image.
        maps: also make the heatmap and the reconstruction of each explained image, as PNG.
        envelope, allow_nan: how JSON records in files, dicts or texts are wrapped, as for `residuald.read`.
        unwrap: where the records of a line of a file are, as for `residuald.read`.
        bit_depth: how many bits the camera uses in gray images of 16 bits, 9 to 16, as in training.
        progress: called with the number of records that are done.

        A record that the schema refuses, or an image that cannot be read, gets NaN, and its reason in
        `Verdicts.refused`. Raises Error if `data` cannot be read, and ValueError for another argument.
        """
        if explain not in ("anomalies", "all", "none"):
            raise ValueError(f'explain must be "anomalies", "all" or "none", not {explain!r}')
        if not whole(reasons, 0):
            raise ValueError(f"reasons must be a whole number of at least 0, not {reasons!r}")
        if progress is not None and not callable(progress):
            raise ValueError(f"progress must be a function of the number of records that are done, not {progress!r}")
        if key is not None and not isinstance(key, str):
            raise ValueError(f"key must be the name of a column, not {key!r}")
        if not whole(bit_depth, 9, 16):
            raise ValueError(f"bit_depth must be a whole number from 9 to 16, not {bit_depth!r}")
        envelope = (envelope,) if isinstance(envelope, str) else tuple(envelope)
        check_is_data(data)
        reasons = min(reasons, MOST_REASONS)
        if self.kind == "image":
            if key is not None or envelope or unwrap != "none" or allow_nan:
                raise ValueError("key, envelope, unwrap and allow_nan apply to tables only")
            images = images_of(data)
            outputs = self._native.score_images(images.encoded, explain, reasons, maps, bit_depth, progress)
            outputs["refused"] = [
                (row, reason, images.unreadable.get(row, detail)) for row, reason, detail in outputs["refused"]
            ]
            outputs["notes"] += images.notes()
            return Verdicts(self, outputs, "pandas", None)
        if maps or bit_depth != 16:
            raise ValueError("maps and bit_depth apply to images only")
        if self._native.by_key != (key is not None):
            raise ValueError(
                "the bundle is calibrated by message key: name the column that holds it with key="
                if self._native.by_key
                else "key= applies only to a bundle that is calibrated by message key: remove it"
            )
        files = paths_of(data)
        if files is not None:
            wrapped = list(envelope), unwrap, allow_nan
            outputs = self._native.score_files(files, key, wrapped, explain, reasons, progress)
        elif unwrap != "none":
            raise ValueError("unwrap applies to files: give the records of a list one by one")
        elif envelope or (allow_nan and is_records(data)):
            if not is_records(data):
                raise ValueError("envelope applies to JSON records, in files, dicts or texts")
            outputs = self._score_wrapped(data, key, envelope, allow_nan, explain, reasons, progress)
        elif is_arrow(data) and key is None:
            outputs = self._native.score_arrow(without_unnamed_index(data), explain, reasons, progress)
        else:
            table = table_of(data, self.features)
            keys = None if key is None else table.texts(key)
            outputs = self._native.score(table, keys, explain, reasons, progress)
        kind, index = kind_of(data)
        return Verdicts(self, outputs, kind, index)

    def _score_wrapped(self, data, key, envelope, allow_nan, explain, reasons, progress):
        table, unopened = table_of(data).opened(list(envelope), allow_nan)
        keys = None if key is None else table.texts(key)
        outputs = self._native.score(table, keys, explain, reasons, progress)
        outputs["refused"] = [(row, *unopened.get(row, (reason, said))) for row, reason, said in outputs["refused"]]
        return outputs


def whole(value: Any, least: int, most: float = float("inf")) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= value <= most


def _trainer() -> Any:
    try:
        import residuald_train
    except ImportError:
        raise ImportError("this needs the trainer: pip install 'residuald[train]'") from None
    return residuald_train


def _load_same(arguments: dict[str, Any], sha256: str) -> Bundle:
    """Loads a pickled bundle's folder, which must still hold the same bundle."""
    bundle = Bundle.load(**arguments)
    if bundle.sha256 != sha256:
        raise _native.Error(
            f"{bundle.path} is not the bundle that was pickled: its sha256 is {bundle.sha256}, it was {sha256}"
        )
    return bundle


def use_installed_runtime() -> None:
    """Takes ONNX Runtime from the package onnxruntime, without importing it. ORT_DYLIB_PATH goes before."""
    spec = find_spec("onnxruntime")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for pattern in ("libonnxruntime.so.*", "libonnxruntime*.dylib", "onnxruntime.dll"):
            for library in sorted(Path(folder, "capi").glob(pattern)):
                _native.use_library(library)
                return
