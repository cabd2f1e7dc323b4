"""Which estimators `from_sklearn` takes, and which columns they get. Their scores are tested in tests/foreign."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import residuald
from sklearn.cluster import KMeans
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

import residuald_train
from residuald_train import TrainerError

X = np.random.default_rng(0).normal(size=(400, 4)) * [1, 10, 100, 1000]
FOREST = IsolationForest(n_estimators=10, random_state=0)


def scores(folder):
    return residuald.Bundle.load(folder, threshold=1).score(X[:50]).anomaly_score


def test_an_estimator_fitted_on_an_array_says_which_columns_it_gets(tmp_path, capsys):
    forest = FOREST.fit(X)
    frame = pd.DataFrame(X, columns=["d", "c", "b", "a"])
    frame.to_csv(tmp_path / "rows.csv", index=False)
    said = "columns are taken by position: d, c, b, a\n"
    expected = -forest.score_samples(X[:50].astype(np.float32))
    kinds = frame, tmp_path / "rows.csv", frame.to_dict("records"), pa.table(frame)
    for number, data in enumerate(kinds):
        residuald_train.from_sklearn(forest, None, data, tmp_path / f"{number}")
        assert said in capsys.readouterr().err
        assert np.ptp(scores(tmp_path / f"{number}") - expected) < 1e-5
    schema = [{"name": name, "path": name, "type": "number"} for name in "abcd"]
    residuald_train.from_sklearn(forest, schema, frame, tmp_path / "abcd")
    assert "columns are taken by position: a, b, c, d\n" in capsys.readouterr().err
    residuald_train.from_sklearn(forest, schema, X, tmp_path / "array")
    assert "by position" not in capsys.readouterr().err
    by_name = IsolationForest(n_estimators=10, random_state=0).fit(frame)
    residuald_train.from_sklearn(by_name, schema, frame, tmp_path / "named")
    assert "by position" not in capsys.readouterr().err
    assert np.ptp(scores(tmp_path / "named") - expected) < 1e-5


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (FOREST.__class__(), "This IsolationForest instance is not fitted yet. Call 'fit'"),
        (make_pipeline(StandardScaler(), OneClassSVM()), "instance is not fitted yet. Call 'fit'"),
        (IsolationForest, "is a class, not an instance"),
        (None, "is not an estimator instance"),
        (RandomForestClassifier(5).fit(X, X[:, 0] > 0), "RandomForestClassifier is not an outlier detector: fit one"),
        (LinearRegression().fit(X, X[:, 0]), "LinearRegression is not an outlier detector"),
        (KMeans(3).fit(X), "KMeans is not an outlier detector"),
        (StandardScaler().fit(X), "StandardScaler is not an outlier detector"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_fitted_outlier_detector_is_refused(estimator, message, tmp_path):
    with pytest.raises(TrainerError, match=message):
        residuald_train.from_sklearn(estimator, None, X, tmp_path / "b")
