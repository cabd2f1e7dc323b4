"""Tests of `quantize`: the 8-bit bundle, scores that do not depend on their batch, and the reported changes."""

import hashlib
import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from test_bundle import check
from test_model import FEATURES, rows
from test_recipes import assert_independent_of_batch, fresh

from residuald_train import TrainerError
from residuald_train.bundle.export import as_json, to_onnx
from residuald_train.bundle.golden import record_text
from residuald_train.bundle.int8 import LEVELS, check_batches, gptq_round, robust_rows, to_int8
from residuald_train.bundle.quantize import RELATIVE, ROBUST, compare, quantize
from residuald_train.bundle.served import Served, run_onnx, session
from residuald_train.cli import main
from residuald_train.tabular.data import read
from residuald_train.tabular.network import row_sum
from residuald_train.tabular.train import Options, fit


@pytest.fixture(scope="module", params=["hybrid", "ddim"])
def graphs(request):
    options = Options(request.param, steps=15, width=32, coreset=50)
    model = to_onnx(fit(FEATURES, rows(), options, quiet=True))
    return model, to_int8(model, rows())[0]


def integers(model):
    weights = [numpy_helper.to_array(w) for w in onnx.load_from_string(model).graph.initializer]
    return [w for w in weights if w.dtype == np.int8 and w.ndim == 2]


def test_a_score_does_not_depend_on_its_batch(graphs):
    check_batches(graphs[1], fresh(3))
    assert_independent_of_batch(session(graphs[1]), fresh(3))


def test_scores_stay_close_also_far_out(graphs):
    (want, *_), (got, *_) = (run_onnx(session(model), fresh(5)) for model in graphs)
    assert np.isfinite(got).all()
    change = np.abs(got - want) / want
    assert np.median(change) < 0.03
    assert np.quantile(change, 0.95) < 0.15


def test_integers_are_exact_where_processors_add_in_16_bits(graphs):
    """Two products of uint8 and 7-bit weights fit in 16 bits, so integer kernels compute the same as floats."""
    model = graphs[1]
    assert integers(model)
    assert all(
        2 * 255 * int(np.abs(w.astype(int)).max()) < 2**15 and np.abs(w).max() <= LEVELS for w in integers(model)
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain, X = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]), rows(600, 7)
    want, got = run_onnx(session(model), X)[0], run_onnx(plain, X)[0]
    agree = np.abs(got - want) <= 1e-4 * want
    assert agree.mean() > 0.95  # in the others, an activation is on the edge between two levels
    calm = robust_rows(model, X, ROBUST)
    assert calm.mean() > 0.8
    assert (np.abs(got - want) <= RELATIVE * want)[calm].all()


def test_rounding_for_the_activations_beats_rounding_to_the_nearest():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(2000, 8)) @ rng.normal(size=(8, 48)) + 0.1 * rng.normal(size=(2000, 48))
    W = rng.normal(size=(20, 48)).astype(np.float32)
    W[3] = 0
    rounded, step = gptq_round(W, A.T @ A)
    levels = rounded / step[:, None]
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
    assert np.abs(levels).max() <= LEVELS + 1e-3
    assert not rounded[3].any()
    nearest = np.rint(W / step[:, None]) * step[:, None]
    assert np.square(A @ (rounded - W).T).mean() < 0.25 * np.square(A @ (nearest - W).T).mean()


@pytest.fixture(scope="module")
def quantized(small, history, tmp_path_factory):
    """The small bundle, which also holds files of other verbs, and its quantized copy."""
    bundle = tmp_path_factory.mktemp("bundles") / "more"
    bundle.mkdir()
    for path in small.iterdir():
        (bundle / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in ("normals.ndjson", "screen.onnx"):
        (bundle / name).write_bytes(b"more")
        manifest["files"][name] = hashlib.sha256(b"more").hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"screen": {}, "calibration": {}}))
    out = bundle.with_name("int8")
    labelled = bundle.with_name("labelled.ndjson")
    records = [json.loads(line) for line in history.read_text().splitlines()]
    broken = [record | {"amount": 5e4 + i, "label": 1} for i, record in enumerate(records[:30])]
    labelled.write_text("".join(json.dumps(r) + "\n" for r in records + broken))
    assert main(["quantize", str(bundle), "--data", str(labelled), "--out", str(out)]) == 0  # the label: the bundle's
    return bundle, out


def test_a_bundle_as_the_daemon_loads_it(quantized):
    bundle, out = quantized
    before, manifest = json.loads((bundle / "manifest.json").read_text()), check(out)
    assert manifest["name"] == before["name"]
    assert manifest["version"] == before["version"] + "-int8"
    assert manifest["input"] == before["input"]
    assert manifest["training"] == before["training"]
    assert (out / "normals.ndjson").read_bytes() == b"more"
    assert not (out / "screen.onnx").exists()  # made from the other scores
    assert "screen" not in manifest
    assert "calibration" not in manifest
    assert (out / "model.onnx").stat().st_size < 0.8 * (bundle / "model.onnx").stat().st_size


def test_the_manifest_says_what_it_costs(quantized):
    facts = json.loads((quantized[1] / "manifest.json").read_text())["scoring"]["quantization"]
    calibration = json.loads((quantized[1] / "calibration.json").read_text())
    assert len(facts["layers"]) == 4
    assert facts["range_rows"] + facts["calibration_rows"] == 600
    assert facts["calibration_rows"] == calibration["count"]
    assert facts["data"][0]["rows"] == 630
    found = facts["measured"]
    assert (found["rows"], found["anomalies"]) == (480, 30)
    assert all(area > 0.95 for area in found["auroc"] + found["average_precision"])
    assert 0 < found["score_change"]["median"] < found["score_change"]["largest"]
    assert [row["false_alarm_rate"] for row in found["verdicts"]] == [0.01]  # 450 rows do not tell one in a thousand
    assert found["verdicts"][0]["same"] > 0.97
    assert found["speedup"] > 0


def test_the_card_says_so(quantized, tmp_path):
    assert main(["report", str(quantized[1]), "--out", str(tmp_path / "card.html")]) == 0
    assert "in 8-bit integers; scores changed by" in (tmp_path / "card.html").read_text()


def test_what_changes_is_counted():
    score = np.arange(1, 1101, dtype=np.float32)
    residual = np.tile(np.float32([1, 0]), (1100, 1))
    swapped, other = score.copy(), residual.copy()
    swapped[[990, 991]] = swapped[[991, 990]]  # the threshold is the tenth largest of 1,000
    other[1099] = [0, 1]
    found = compare((score, residual), (swapped, other), 1000)
    assert found["auroc"] == [1, 1]
    assert found["score_change"]["median"] == 0
    assert found["verdicts"][0] == {
        "false_alarm_rate": 0.01,
        "same": 1 - 2 / 1100,
        "flagged": [109, 109],
        "flagged_by_both": 108,
        "with_the_same_first_reason": 107,
    }
    assert found["verdicts"][1]["flagged"] == [100, 100]
    assert "auroc" not in compare((score, residual), (swapped, other), 1100)


def test_a_golden_record_stays_as_it_is_written():
    assert (
        record_text('{"record": {"code": 1.50, "in": {"a": "}"}}, "score": 0.5}') == '{"code": 1.50, "in": {"a": "}"}}'
    )
    assert record_text('{"score":1, "record":{"a":1e30}}') == '{"a":1e30}'


def test_a_calibration_by_segment_stays_one(small, history):
    served, table = Served(small), read([str(history)])
    calibration = json.loads(served.files["calibration.json"])
    for by, said in [({"field": "merchant.category"}, None), ("key", "message key")]:
        served.files["calibration.json"] = as_json(calibration | {"segments": {"by": by}})
        if said:
            with pytest.raises(TrainerError, match=said):
                quantize(served, table)
        else:
            segments = json.loads(quantize(served, table)["calibration.json"])["segments"]
            assert segments["by"] == by
            assert [s["value"] for s in segments["values"]] == ["fuel", "grocery", "travel"]


def test_wrong_uses(small, quantized, history, tmp_path, capsys):
    few = tmp_path / "few.ndjson"
    few.write_text("\n".join(history.read_text().splitlines()[:90]) + "\n")
    for bundle, data, out, said in [
        (small, history, small, "is the bundle itself"),
        (quantized[1], history, tmp_path / "b", "is already quantized"),
        (small, few, tmp_path / "b", "90 normal rows fit"),
    ]:
        assert main(["quantize", str(bundle), "--data", str(data), "--out", str(out)]) == 65
        error = capsys.readouterr().err
        assert said in error.splitlines()[-1]
        assert "Traceback" not in error
    assert not (tmp_path / "b").exists()
    with pytest.raises(TrainerError, match="of the recipe `kernel` have none"):
        to_int8(to_onnx(RowSum(), (torch.zeros(3, 6),), outputs=("score",)), rows())


class RowSum(torch.nn.Module):
    def forward(self, x):
        return row_sum(x)
