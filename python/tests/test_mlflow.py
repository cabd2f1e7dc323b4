"""A bundle as an MLflow model, logged to a store in a folder and loaded again."""

from pathlib import Path

import mlflow
import pytest
import residuald
import residuald.mlflow

PAYMENTS = Path(__file__).resolve().parents[2] / "models/payments"


def test_a_bundle_is_logged_and_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the only store of mlflow-skinny that is not a server
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    bundle = residuald.Bundle.load(PAYMENTS)
    records = residuald.read([PAYMENTS / "sample.ndjson.gz"], max_rows=500)
    frame = bundle.score(records).frame()
    with mlflow.start_run():
        info = residuald.mlflow.log_model(bundle, name="payments")
    model = mlflow.pyfunc.load_model(info.model_uri)
    predicted = model.predict(records)
    assert (predicted["anomaly_score"] == frame["anomaly_score"]).all()
    assert (predicted["is_anomaly"] == frame["is_anomaly"]).all()


def test_what_is_no_bundle_is_not_saved(tmp_path):
    with pytest.raises(residuald.Error, match="refused"):
        residuald.mlflow.save_model(tmp_path, tmp_path / "model")
    assert not (tmp_path / "model").exists()
