"""Tests of bundles written by the command line, and of the shipped one."""

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import residuald
from conftest import encoded

from residuald_train import TrainerError
from residuald_train.bundle.calibrate import calibrate
from residuald_train.bundle.export import FORBIDDEN, write
from residuald_train.bundle.golden import record_text
from residuald_train.bundle.served import run_onnx, session
from residuald_train.cli import main
from residuald_train.tabular.features import check_features

SHIPPED = Path(__file__).parents[2] / "payments"


def load(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    return manifest, check_features(manifest["input"]["features"])


def check(folder):
    """Checks a bundle as the daemon does at load -> its manifest."""
    manifest, features = load(folder)
    assert manifest["format"] == 1
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    golden = (folder / "golden.ndjson").read_text().splitlines()
    assert 32 <= len(golden) <= 128
    X = encoded(map(record_text, golden), features)
    score, residual, reconstruction = run_onnx(session((folder / "model.onnx").read_bytes()), X)
    want = np.array([json.loads(line)["score"] for line in golden])
    tolerance = manifest["golden"]
    assert (abs(score - want) <= tolerance["absolute_tolerance"] + tolerance["relative_tolerance"] * want).all()
    assert residual.shape == reconstruction.shape == X.shape
    assert np.isfinite(reconstruction).all()
    for j, feature in enumerate(features):
        assert feature.missing == "reject" or np.isnan(X[:, j]).any()
        if feature.type == "categorical":
            assert (X[:, j] == -1).any()
            assert reconstruction[:, j].min() >= 0
            assert reconstruction[:, j].max() < len(feature.vocabulary)
    calibration = json.loads((folder / "calibration.json").read_text())
    assert len(calibration["quantiles"]) == 1001
    assert calibration["quantiles"] == sorted(calibration["quantiles"])
    assert len(calibration["tail"]) == min(calibration["count"], 10_000)
    assert calibration["tail"][-1] == calibration["quantiles"][-1]
    assert len(calibration["residual_scale"]) == len(features)
    graph = onnx.load(folder / "model.onnx")
    assert not {node.op_type for node in graph.graph.node} & FORBIDDEN
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", manifest["scoring"]["opset"])]
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    return manifest


def test_small_bundle(small):
    manifest = check(small)
    assert manifest["training"]["rows"] + manifest["training"]["held_out_rows"] == 600
    assert sorted(p.name for p in small.iterdir()) == [
        "calibration.json",
        "golden.ndjson",
        "manifest.json",
        "model.onnx",
    ]


def test_same_seed_same_bytes(small, train_small, tmp_path):
    again = tmp_path / "small"
    train_small(again)
    for name in ("model.onnx", "calibration.json", "golden.ndjson"):
        assert (again / name).read_bytes() == (small / name).read_bytes()


def test_calibration_is_its_definition():
    score = np.random.default_rng(0).random(25_000).astype(np.float32)
    got = calibrate(score, np.ones((25_000, 3), np.float32) * [1, 2, 3])
    assert got["count"] == 25_000
    assert got["quantiles"][500] == np.quantile(score.astype(float), 0.5)
    assert got["tail"] == np.sort(score)[-10_000:].astype(float).tolist()
    assert got["residual_scale"] == [1, 2, 3]


def test_shipped_payments_bundle():
    manifest = check(SHIPPED)
    calibration = json.loads((SHIPPED / "calibration.json").read_text())
    assert calibration["count"] >= 20_000
    assert (SHIPPED / "model.onnx").stat().st_size < 2e6
    assert manifest["name"] == "payments"


def test_shipped_payments_sample_is_detected():
    _, features = load(SHIPPED)
    with gzip.open(SHIPPED / "sample.ndjson.gz") as sample:
        lines = sample.read().decode().splitlines()
    records = list(map(json.loads, lines))
    fraud = np.array([r["label"] for r in records], bool)
    assert len(records) == 20_000
    assert 0.01 <= fraud.mean() <= 0.02
    assert [r["time"] for r in records] == sorted(r["time"] for r in records)
    X = encoded(lines, features)
    score = run_onnx(session((SHIPPED / "model.onnx").read_bytes()), X)[0]
    calibration = json.loads((SHIPPED / "calibration.json").read_text())
    flagged = score > calibration["tail"][-round(0.001 * calibration["count"])]
    assert fraud[flagged].mean() > 0.8
    assert flagged[fraud].mean() > 0.6
    assert flagged[~fraud].mean() < 0.002


def test_an_older_bundle_is_replaced_and_other_files_stay(tmp_path):
    write(tmp_path / "b", {"manifest.json": b"1", "model.onnx": b"1"})
    (tmp_path / "b" / "README.md").write_text("mine")
    with pytest.raises(TrainerError, match="--force to replace"):
        write(tmp_path / "b", {"manifest.json": b"2"})
    write(tmp_path / "b", {"manifest.json": b"2"}, replace=True)
    assert {p.name: p.read_text() for p in (tmp_path / "b").iterdir()} == {
        "manifest.json": "2",
        "model.onnx": "1",
        "README.md": "mine",
    }
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_folder_that_is_no_bundle_is_kept(history, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["tabular", "--data", str(history), "--out", str(tmp_path)]) == 65
    assert "is not a bundle" in capsys.readouterr().err


def test_segments_are_as_the_daemon_makes_them():
    """The daemon has a test with the same records and the same expected numbers (src/bundle/segments.rs)."""
    i = np.arange(3000)
    score = ((i * 7919 % 10_007 + 1) / 10_007).astype(np.float32) * np.array([1, 4, 1, 0.5, 1], np.float32)[i % 5]
    values = [["alpha", "5411", "small" if k < 60 else None, "true", "alpha"][k % 5] for k in i]
    got = calibrate(score, np.ones((3000, 1), np.float32), "merchant.code", values)["segments"]
    assert got["by"] == {"field": "merchant.code"}
    assert [(s["value"], s["count"], len(s["quantiles"]), len(s["tail"])) for s in got["values"]] == [
        ("5411", 600, 101, 600),
        ("alpha", 1200, 101, 1000),
        ("true", 600, 101, 600),
    ]
    want = [[2.0017987, 1.4849525, 0.010792445], [0.5, 0.37020386, 0.16808234], [0.25069952, 0.18610023, 0.001848706]]
    near = [[s["quantiles"][50], s["quantiles"][37], s["tail"][0]] for s in got["values"]]
    np.testing.assert_allclose(near, want, atol=2e-7)
    shape = got["shape"]
    near = [shape["quantiles"][part] for part in (0, 1, 250, 777, 999)]
    np.testing.assert_allclose(near, [0.0001998601, 0.0020042092, 0.5, 1.5523609, 1.9979959], atol=2e-7)
    assert (shape["count"], len(shape["quantiles"]), len(shape["tail"])) == (3000, 1001, 3000)


def test_a_segment_is_the_text_that_the_daemon_reads():
    for value, text in [
        *[(5411, "5411"), (5411.0, "5411"), (0.5, "0.5"), (1e-7, "0.0000001"), (1e16, "10000000000000000")],
        *[(True, "true"), ("a", "a"), ("", ""), (2**70, "1180591620717411300000"), (None, None)],
        *[([1], None), ("é" * 128, "é" * 128), ("é" * 129, None), (1e300, None)],
    ]:
        assert residuald.Table([json.dumps({"by": value})]).segments("by") == [text], value


def test_a_bundle_calibrated_by_segment(history, tmp_path, capsys):
    options = ["--label", "label", "--steps", "20", "--width", "16", "--held-out", "0.5"]
    train = ["tabular", "--data", str(history), *options, "--out", str(tmp_path / "by"), "--segment"]
    assert main([*train, "merchant.category"]) == 0
    manifest = check(tmp_path / "by")
    assert manifest["training"]["options"]["segment"] == "merchant.category"
    segments = json.loads((tmp_path / "by" / "calibration.json").read_text())["segments"]
    assert [s["value"] for s in segments["values"]] == ["fuel", "grocery", "travel"]
    assert sum(s["count"] for s in segments["values"]) == segments["shape"]["count"] == 300
    for path, said in [("nowhere", "no column `nowhere`"), ("id", "values has 20 held-out rows")]:
        assert main([*train[:-3], "--out", str(tmp_path / "none"), "--segment", path]) == 65
        assert said in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
