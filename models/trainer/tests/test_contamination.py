"""Tests of `--contamination`, for unlabelled anomalies among the training rows."""

import json

import numpy as np
from test_model import FEATURES, rows

from residuald_train.bundle.calibrate import Calibration
from residuald_train.bundle.served import Served
from residuald_train.cli import main
from residuald_train.tabular.contamination import suspects


def test_a_cluster_smaller_than_the_share_is_suspected():
    X = rows(1900)
    cluster = rows(100, 1)
    cluster[:, 0] = 500 + cluster[:, 0]
    cluster[:, 4] = -100
    chosen = suspects(FEATURES, np.concatenate([X, cluster]), 0.05)
    assert chosen.sum() == 100
    assert chosen[1900:].mean() > 0.9
    assert not suspects(FEATURES, X, 0.0).any()


def test_tabular_leaves_suspects_out(tmp_path, capsys):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4000, 2)) @ rng.normal(size=(2, 6)) + 0.3 * rng.normal(size=(4000, 6))
    fresh, X = X[3000:].astype(np.float32), X[:3000]
    X[:100] += 6 * rng.choice([-1, 1], (1, 6))
    np.savez(tmp_path / "d.npz", X=X)
    recall, false = {}, {}
    for share in (0, 0.04):
        out = tmp_path / str(share)
        options = ["--recipe", "kernel", "--contamination", str(share), "--out", str(out)]
        assert main(["tabular", "--data", str(tmp_path / "d.npz"), *options]) == 0
        training = json.loads((out / "manifest.json").read_text())["training"]
        assert training["options"]["contamination"] == share
        assert training.get("suspected_rows", 0) == round(share * 3000)
        assert training["rows"] + training["held_out_rows"] == 3000 - round(share * 3000)
        threshold = Calibration(json.loads((out / "calibration.json").read_text())).threshold(0.02)
        recall[share] = (Served(out).score(X[:100].astype(np.float32))[0] > threshold).mean()
        false[share] = (Served(out).score(fresh)[0] > threshold).mean()
    assert "suspected: 120 rows are left out" in capsys.readouterr().out
    assert recall[0] < 0.5
    assert recall[0.04] > 0.9
    assert false[0.04] < 0.02 + 0.04
