"""The detector with scikit-learn's interface."""

import gc
import pickle
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import residuald
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

RANDOM = np.random.default_rng(0)
NORMAL = RANDOM.normal(size=(1500, 3)) @ [[1, 0.9, 0], [0, 0.3, 0], [0, 0, 1]]
FRESH = RANDOM.normal(size=(1500, 3)) @ [[1, 0.9, 0], [0, 0.3, 0], [0, 0, 1]]
ODD = FRESH[:50] * [1, -1, 1] + [0, 0, 4]


@pytest.fixture(scope="module")
def detector():
    return residuald.Detector(recipe="kernel", false_alarm_rate=0.02).fit(NORMAL)


def test_it_tells_the_odd_from_the_normal(detector):
    assert (detector.predict(ODD) == -1).mean() > 0.8
    assert (detector.predict(FRESH) == -1).mean() < 0.05
    labels = np.r_[np.zeros(len(FRESH)), np.ones(len(ODD))]
    scores = detector.score_samples(np.r_[FRESH, ODD])
    assert roc_auc_score(labels, -scores) > 0.95
    assert (np.sign(detector.decision_function(ODD)) == detector.predict(ODD)).all()


def test_the_recipe_best_is_trained_by_default(detector):
    best = residuald.Detector(steps=50, false_alarm_rate=0.02).fit(NORMAL)
    assert best.bundle_.manifest["training"]["options"]["recipe"] == "best"
    assert (best.predict(ODD) == -1).mean() > 0.5


def test_what_is_saved_is_a_bundle(detector, tmp_path):
    detector.save(tmp_path / "b")
    bundle = residuald.Bundle.load(tmp_path / "b", false_alarm_rate=0.02)
    assert bundle.sha256 == detector.bundle_.sha256
    assert (-bundle.score(ODD).anomaly_score == detector.score_samples(ODD)).all()
    with pytest.raises(FileExistsError, match="force=True"):
        detector.save(tmp_path / "b")
    detector.save(tmp_path / "b", force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(FileExistsError, match="not a bundle"):
        detector.save(tmp_path / "mine", force=True)


def test_copies(detector):
    copy = pickle.loads(pickle.dumps(detector))
    assert (copy.score_samples(ODD) == detector.score_samples(ODD)).all()
    assert clone(detector).get_params() == detector.get_params()
    pipeline = make_pipeline(StandardScaler(), residuald.Detector(recipe="kernel")).fit(NORMAL)
    assert set(pipeline.predict(ODD)) <= {-1, 1}


def test_a_frame_with_text_and_what_is_left_out_is_said():
    frame = pd.DataFrame(NORMAL, columns=["a", "b", "c"])
    frame["kind"] = np.where(NORMAL[:, 0] > 0, "plus", "minus")
    frame["row"] = np.arange(len(frame))
    with pytest.warns(UserWarning, match="row"):
        detector = residuald.Detector(recipe="kernel", false_alarm_rate=0.02).fit(frame)
    assert [feature["name"] for feature in detector.features_] == ["a", "b", "c", "kind"]
    assert list(detector.feature_names_in_) == list(frame.columns)
    odd = frame.assign(kind=frame["kind"].map({"plus": "minus", "minus": "plus"}))
    wrong = detector.score_records(odd)
    assert wrong.is_anomaly.mean() > 10 * detector.score_records(frame).is_anomaly.mean()
    assert wrong.reasons()["feature"].iloc[0] in ("a", "b", "kind")


def test_a_bundle_of_another_librarys_model(tmp_path):
    forest = IsolationForest(n_estimators=20, random_state=0).fit(NORMAL)
    schema = [{"name": name, "path": name, "type": "number"} for name in "abc"]
    bundle = residuald.Bundle.from_sklearn(forest, schema, FRESH, tmp_path / "forest")
    mine, theirs = bundle.score(ODD).anomaly_score, -forest.score_samples(ODD.astype(np.float32))
    assert np.ptp(mine - theirs) < 1e-5, "the same but for a constant"


def test_a_table_that_cannot_be_trained_on_is_refused():
    with pytest.raises(ValueError, match="n_samples=3"):
        residuald.Detector().fit(NORMAL[:3])
    with pytest.raises(ValueError, match="recipe"):
        residuald.Detector(recipe="nonsense").fit(NORMAL)
    for name, value in (("false_alarm_rate", "x"), ("leave_out", "x"), ("held_out", None), ("steps", 1.5)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            residuald.Detector(**{name: value}).fit(NORMAL)
    with pytest.raises(ValueError, match="NoneType is not data"):
        residuald.Detector().fit(None)
    with pytest.raises(ValueError, match="collect"):
        residuald.Detector().fit(pl.DataFrame(NORMAL).lazy())


class Repeating(residuald.Detector):
    """Trains on each record four times, because scikit-learn's checks train on fewer records than the trainer takes."""

    def fit(self, X, y=None):
        rows = np.asarray(X)
        return super().fit(np.repeat(rows, 4, axis=0) if rows.ndim == 2 and len(rows) > 1 else X)


def test_scikit_learns_checks():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(
            Repeating(recipe="kernel", false_alarm_rate=0.2),
            on_fail=None,
        )
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert failed == {}


def test_fitted_on_an_array_it_takes_a_frames_columns_by_position(detector):
    frame = pd.DataFrame(ODD, columns=["a", "b", "c"], index=[f"r{row}" for row in range(len(ODD))])
    expected = detector.score_samples(ODD)
    assert len(np.unique(expected)) > 40
    for data in (frame, pl.DataFrame(ODD, schema=["a", "b", "c"]), ODD.tolist()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn's, that the detector was fitted without names
            assert (detector.score_samples(data) == expected).all()
    assert list(detector.score_records(frame).frame().index) == list(frame.index)
    with pytest.raises(ValueError, match="X has 4 features, but Detector is expecting 3"):
        detector.predict(frame.assign(d=0.0))
    with pytest.raises(ValueError, match="X has 2 features, but Detector is expecting 3"):
        detector.predict(frame[["a", "b"]])


def test_records_without_any_of_its_columns_are_refused(detector, tmp_path):
    frame = pd.DataFrame(ODD, columns=["a", "b", "c"])
    frame.to_csv(tmp_path / "odd.csv", index=False)
    for data in (frame.to_dict("records"), tmp_path / "odd.csv", residuald.read([tmp_path / "odd.csv"])):
        with pytest.raises(ValueError, match=r"lack columns .*: x0, x1, x2; they have a, b, c"):
            detector.score_samples(data)
    named = frame.set_axis(["x0", "x1", "x2"], axis=1).to_dict("records")
    assert (detector.score_samples(named) == detector.score_samples(ODD)).all()


def test_it_fits_on_whatever_a_bundle_scores(tmp_path):
    frame = pd.DataFrame(NORMAL, columns=["c", "b", "a"])
    frame.to_csv(tmp_path / "normal.csv", index=False)
    odd = pd.DataFrame(ODD, columns=["c", "b", "a"])
    odd.to_csv(tmp_path / "odd.csv", index=False)
    new = residuald.Detector(recipe="kernel", false_alarm_rate=0.02)
    expected = clone(new).fit(frame).score_samples(odd)
    assert np.isfinite(expected).all()
    path = tmp_path / "normal.csv"
    for data in (path, str(path), [path], frame.to_dict("records"), residuald.read([path]), pl.DataFrame(frame)):
        fitted = clone(new).fit(data)
        assert list(fitted.feature_names_in_) == ["c", "b", "a"]
        odds = odd, odd[["a", "b", "c"]], odd.to_dict("records"), tmp_path / "odd.csv", pl.DataFrame(odd)
        for records in odds:
            assert (fitted.score_samples(records) == expected).all()
        with pytest.warns(UserWarning, match="does not have valid feature names"):
            assert (fitted.score_samples(ODD) == expected).all()
    with pytest.raises(ValueError, match=r"lack columns .*: b; they have a, c, d"):
        fitted.predict(odd.rename(columns={"b": "d"}))


def test_a_discarded_detector_leaves_no_folder_and_no_warning(detector):
    copy = pickle.loads(pickle.dumps(detector))
    folder = copy.bundle_.path
    assert (folder / "manifest.json").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del copy
        gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize("name", [None, "age"])
def test_an_index_of_pandas_is_no_feature(name):
    frame = pd.DataFrame(NORMAL, columns=["a", "b", "c"])
    index = pd.Index(np.random.default_rng(1).normal(size=len(frame)), name=name)
    detector = residuald.Detector(recipe="kernel", false_alarm_rate=0.02).fit(frame.set_index(index))
    assert [feature["name"] for feature in detector.features_] == ["a", "b", "c"]
    odd = pd.DataFrame(ODD, columns=["a", "b", "c"])
    moved = odd.set_index(index[: len(odd)])
    assert (detector.score_samples(moved) == detector.score_samples(odd)).all()
    assert (detector.score_records(moved).frame().index == moved.index).all()
