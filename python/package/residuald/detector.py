"""An anomaly detector with scikit-learn's interface, which trains a bundle and scores with it."""

import contextlib
import io
import json
import shutil
import tempfile
import warnings
import weakref
from numbers import Real
from pathlib import Path

import numpy as np

try:
    from sklearn.base import BaseEstimator, OutlierMixin
    from sklearn.utils.validation import check_is_fitted, validate_data

    from residuald_train import TrainerError
    from residuald_train.tabular.labels import MAX_ROWS, DataSource
    from residuald_train.tabular.pipeline import MIN_ROWS, Settings, train_bundle
    from residuald_train.tabular.recipes import RECIPES
except ImportError as missing:
    raise ImportError(f"Detector needs {missing.name}: pip install 'residuald[train]'") from missing

from . import _native
from .bundle import Bundle, whole
from .frames import has_names, kind_of, paths_of, table_of


class Detector(OutlierMixin, BaseEstimator):
    """Learns what normal records look like, and scores how badly new ones are reconstructed.

    recipe: "best", "kernel", "hybrid" or "ddim"; see the trainer's README.
    false_alarm_rate: the share of normal records that `predict` may flag. Default: 0.001, or the lowest that the
        held-out records support.
    schema: features as dicts, as in a manifest. Default: guessed from a data frame, or a number for each column of an
        array.
    drop, keep: columns to leave out, and columns to take although they look like identifiers or only grow.
    leave_out: the share of the most unusual training records to leave out as likely anomalies, in [0, 0.5). Unlike
        scikit-learn's `contamination` it does not set the threshold.
    held_out: the share of the records to calibrate on, not to train on.
    steps: training steps of 128 rows. The recipe "kernel" has none.
    random_state: the seed.
    verbose: print the trainer's messages.

    After `fit`: `bundle_` is the Bundle, `features_` its schema, `notes_` what the trainer said, and `offset_` =
    -threshold.

    As in scikit-learn, columns have names or places. Fitted on named columns, the detector takes named columns in any
    order, and an array in the order of those. Fitted on an array, it takes the columns of arrays and data frames by
    position.
    """

    def __init__(
        self,
        recipe="best",
        *,
        false_alarm_rate=None,
        schema=None,
        drop=(),
        keep=(),
        leave_out=0.0,
        held_out=0.2,
        steps=1000,
        random_state=0,
        verbose=False,
    ):
        self.recipe = recipe
        self.false_alarm_rate = false_alarm_rate
        self.schema = schema
        self.drop = drop
        self.keep = keep
        self.leave_out = leave_out
        self.held_out = held_out
        self.steps = steps
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y=None):
        """Trains on records X [n, columns], all or nearly all of them normal. `y` is ignored. Returns self.

        X: what `Bundle.score` takes: an array, a data frame, a sequence of dicts or of JSON texts, paths of files, or a
        Table. Columns that are left out and rows that are refused are said in a warning. Raises ValueError.
        """
        self._check_parameters()
        X = without_index(X)
        schema = self.schema
        self._by_position = not has_names(X)
        if self._by_position:
            # An array's columns are numbers; the checks are scikit-learn's.
            X = self._numbers(X, reset=True)
            if len(X) < MIN_ROWS:
                raise ValueError(f"n_samples={len(X)}: training needs at least {MIN_ROWS} records")
            schema = schema or [number(column) for column in range(X.shape[1])]
            self._columns = [feature.get("path", feature["name"]) for feature in schema]
        table = table_of(X, schema)
        if not self._by_position:
            self._take_names(X, table)
        with tempfile.TemporaryDirectory() as folder:
            self._train(table, schema, Path(folder))
        self._load()
        self.features_ = self.bundle_.features
        self.offset_ = -self.bundle_.threshold
        return self

    def _check_parameters(self):
        rate = self.false_alarm_rate
        for name, holds, rule in (
            ("recipe", self.recipe in RECIPES, f"be one of {', '.join(RECIPES)}"),
            (
                "leave_out",
                isinstance(self.leave_out, Real) and 0 <= self.leave_out < 0.5,
                "be a share from 0 to below 0.5",
            ),
            ("held_out", isinstance(self.held_out, Real) and 0 < self.held_out < 1, "be a share between 0 and 1"),
            ("steps", whole(self.steps, 1), "be a whole number above 0"),
            ("false_alarm_rate", rate is None or (isinstance(rate, Real) and 0 < rate < 1), "be between 0 and 1"),
        ):
            if not holds:
                raise ValueError(f"{name} must {rule}, but it is {getattr(self, name)!r}")

    def _numbers(self, X, reset):
        return validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan")

    def _take_names(self, X, table):
        names = frame_names(X)
        names = table.paths if names is None else names
        self._columns = [str(name) for name in names]
        self.n_features_in_ = len(names)
        vars(self).pop("feature_names_in_", None)
        if all(isinstance(name, str) for name in names):
            self.feature_names_in_ = np.array(names, dtype=object)

    def _train(self, table, schema, folder):
        records, written = folder / "records.ndjson", folder / "schema.json"
        with records.open("wb") as stream:
            for row in range(len(table)):
                stream.write(table.record(row) + b"\n")
        if schema is not None:
            written.write_text(json.dumps({"kind": "tabular", "features": list(schema)}))
        said = io.StringIO()
        out = contextlib.nullcontext() if self.verbose else contextlib.redirect_stdout(io.StringIO())
        try:
            with out, contextlib.redirect_stderr(said):
                train_bundle(
                    Settings(
                        DataSource([records], drop=tuple(self.drop), keep=tuple(self.keep), max_rows=MAX_ROWS),
                        out=folder / "bundle",
                        name="detector",
                        schema=None if schema is None else written,
                        recipe=self.recipe,
                        seed=int(self.random_state or 0),
                        steps=self.steps,
                        held_out=self.held_out,
                        contamination=self.leave_out,
                    )
                )
        except TrainerError as error:
            raise ValueError(str(error)) from None
        told = [line for line in said.getvalue().splitlines() if line.startswith(("schema:", "left out"))]
        self.notes_ = [*table.notes, *told]
        if self.notes_:
            warnings.warn("\n".join(self.notes_), UserWarning, stacklevel=3)
        self.files_ = {file.name: file.read_bytes() for file in sorted((folder / "bundle").iterdir())}

    def _load(self):
        folder = tempfile.mkdtemp(prefix="residuald-")
        try:
            for name, content in self.files_.items():
                Path(folder, name).write_bytes(content)
            self.bundle_ = Bundle.load(folder, false_alarm_rate=self.false_alarm_rate)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(self.bundle_, shutil.rmtree, folder, ignore_errors=True)

    def __getstate__(self):
        state = super().__getstate__()
        return {name: value for name, value in state.items() if name != "bundle_"}

    def __setstate__(self, state):
        super().__setstate__(state)
        if "files_" in state:
            self._load()

    def score_records(self, X, **options):
        """Judges records -> Verdicts [n], with reasons. X and the options are those of `Bundle.score`.

        An array, and a data frame if the detector was fitted on an array, is taken by position. Raises ValueError if
        columns are lacking.
        """
        check_is_fitted(self)
        if not has_names(X) or (self._by_position and frame_names(X) is not None):
            return self._score_by_position(X, options)
        if frame_names(X) is not None:
            self._check_columns({str(name) for name in frame_names(X)}, all)
        elif self._by_position or paths_of(X) is None:
            X = table_of(X)
            self._check_columns(set(X.paths), any)
        kind, index = kind_of(X)
        return self.bundle_.score(without_index(X), **options).like(kind, index)

    def _score_by_position(self, X, options):
        kind, index = kind_of(X)
        if self._by_position:
            X = self._numbers(X, reset=False)
        else:
            X = validate_data(self, X, reset=False, dtype=None, ensure_all_finite=False)
        table = table_of(X, [{"name": path} for path in self._columns])
        return self.bundle_.score(table, **options).like(kind, index)

    def _check_columns(self, names, enough):
        """Raises ValueError unless all, or any, of the features' columns are among `names`."""
        paths = [feature.get("path", feature["name"]) for feature in self.features_]
        lacking = [path for path in paths if not any(path == name or path.startswith(f"{name}.") for name in names)]
        if names and lacking and not enough(path not in lacking for path in paths):
            raise ValueError(
                f"the records lack columns that the detector was fitted on: {', '.join(lacking[:20])}; "
                f"they have {', '.join(sorted(names)[:20])}. Name the columns as in training"
                + (", or give an array, whose columns are taken by position" if self._by_position else "")
            )

    def score_samples(self, X):
        """X [n, columns] -> float64 [n], minus the anomaly score, so that lower is more anomalous. NaN if refused."""
        return -self.score_records(X, explain="none").anomaly_score.astype(np.float64)

    def decision_function(self, X):
        """X [n, columns] -> float64 [n]: negative for anomalies, as in scikit-learn."""
        return self.score_samples(X) - self.offset_

    def predict(self, X):
        """X [n, columns] -> int [n]: 1 for normal records, -1 for anomalies and for records that are refused."""
        verdicts = self.score_records(X, explain="none")
        flagged = verdicts.is_anomaly | np.isnan(verdicts.anomaly_score)
        return np.where(flagged, -1, 1)

    def save(self, path, *, force=False):
        """Writes the bundle's folder, which the daemon can serve. Replaces an existing bundle only with `force`."""
        check_is_fitted(self)
        path = Path(path)
        if path.exists() and any(path.iterdir()):
            if not force:
                raise FileExistsError(f"{path} is not empty: choose another folder, or set force=True")
            if not (path / "manifest.json").exists():
                raise FileExistsError(f"{path} is not a bundle, so it is not replaced: choose another folder")
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        for name, content in self.files_.items():
            (path / name).write_bytes(content)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


def number(column):
    """The feature of an array's column, which has no name."""
    return {"name": f"x{column}", "path": f"x{column}", "type": "number", "missing": "impute"}


def frame_names(X):
    """The names of a data frame's columns, or None for other data."""
    if isinstance(X, _native.Table):
        return None
    if hasattr(X, "column_names"):
        return list(X.column_names)
    return list(X.columns) if hasattr(X, "columns") else None


def without_index(X):
    """A pandas frame without its index, which scikit-learn does not take for a column; other data as they are."""
    return X.reset_index(drop=True) if kind_of(X)[1] is not None else X
