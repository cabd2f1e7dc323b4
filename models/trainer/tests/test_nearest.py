"""Tests of the normal records that a bundle stores to show beside an anomaly."""

import json

import numpy as np
import pytest
from conftest import encoded

from residuald_train.bundle.served import Served, session
from residuald_train.cli import main


def train(history, out, *more):
    small = ["--steps", "20", "--width", "16"]
    return main(["tabular", "--data", str(history), "--label", "label", *small, "--out", str(out), *more])


def kept(bundle):
    lines = (bundle / "normals.ndjson").read_text().splitlines()
    return session((bundle / "nearest.onnx").read_bytes()), [json.loads(line) for line in lines]


def rows(bundle, records):
    return encoded(records, Served(bundle).features)


@pytest.mark.parametrize("recipe", ["kernel", "blind"])
def test_a_record_that_is_kept_is_nearest_to_itself(history, tmp_path, recipe):
    bundle = tmp_path / "b"
    assert train(history, bundle, "--recipe", recipe, "--nearest", "id") == 0
    run, normals = kept(bundle)
    assert len(normals) == 480  # fewer than the centers: all that trained
    X = rows(bundle, [normal["record"] for normal in normals])
    found = run.run(None, {"x": X})[0]
    assert found.dtype == np.int64
    assert found.shape == (480,)
    np.testing.assert_array_equal(X[found], X)
    # A record that is far off or missing in one field is still most similar by its other fields.
    X[:, [f.name for f in Served(bundle).features].index("twice")] = np.nan
    again = run.run(None, {"x": X})[0]
    assert (again == found).mean() > 0.9
    assert set(json.loads((bundle / "manifest.json").read_text())["files"]) >= {"nearest.onnx", "normals.ndjson"}


def test_each_center_is_stood_for_by_a_record_as_it_came(history, tmp_path):
    bundle = tmp_path / "b"
    assert train(history, bundle, "--recipe", "kernel", "--coreset", "40", "--nearest", "id") == 0
    came = {record["id"]: record for record in map(json.loads, history.read_text().splitlines())}
    run, normals = kept(bundle)
    assert 20 < len(normals) <= 40
    assert len({normal["id"] for normal in normals}) == len(normals)
    for normal in normals:
        whole = came[normal["id"]]
        assert normal["record"].items() <= whole.items()
        assert not {"id", "label"} & normal["record"].keys()
    X = rows(bundle, list(came.values()))
    found = run.run(None, {"x": X})[0]
    assert len(set(found)) == len(normals)
    of_fuel = [came[normals[i]["id"]]["merchant"]["category"] == "fuel" for i in found]
    is_fuel = [record["merchant"]["category"] == "fuel" for record in came.values()]
    assert np.mean(np.equal(of_fuel, is_fuel)) > 0.9


def test_nothing_is_kept_unless_asked_for(history, tmp_path, capsys):
    assert train(history, tmp_path / "b") == 0
    assert not (tmp_path / "b" / "normals.ndjson").exists()
    assert train(history, tmp_path / "c", "--nearest", "nobody") == 65
    assert "no column `nobody`" in capsys.readouterr().err
