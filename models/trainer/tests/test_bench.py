"""`residuald-train bench` on small made-up sets."""

import json

import numpy as np
import pytest

from residuald_train import peers
from residuald_train.cli import main
from residuald_train.sets import read_set, split


@pytest.fixture
def sets(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "sets"
    folder.mkdir()
    X = rng.normal(size=(240, 4)) @ rng.normal(size=(4, 4))
    y = np.arange(240) % 12 == 0
    X[y] += 6
    np.savez(folder / "a.npz", X=X, y=y)
    lines = [",".join(map(str, [*row, int(label)])) for row, label in zip(X[:, :3], y, strict=True)]
    (folder / "b.csv").write_text("u,v,w,label\n" + "\n".join(lines) + "\n")
    return folder


def bench(folder, out, *more):
    return main(["bench", "--data", str(folder), "--out", str(out), "--jobs", "1", "--fast", "--steps", "20", *more])


def test_bench_goes_on_from_where_it_is(sets, tmp_path, capsys):
    out, options = tmp_path / "out", ["--seeds", "1", "--recipe", "kernel", "blind"]
    assert bench(sets, out, *options) == 0
    results = json.loads((out / "results.json").read_text())
    methods = ["blind", "kernel", *peers.available()]
    assert sorted({r["method"] for r in results["runs"]}) == sorted(methods)
    assert len(results["runs"]) == 2 * len(methods)
    assert all(r["auroc"] > 80 for r in results["runs"] if r["method"] == "kernel")
    assert all(r["microseconds_a_row"] > 0 for r in results["runs"])
    assert set(results["costs"]) == {"MLP 256x3", "kernel", "blind"}
    text = (out / "results.md").read_text()
    assert "| kernel |" in text
    assert "2 sets, 1 seeds" in text
    kept = results["runs"][0]["auroc"] = 12.5
    (out / "results.json").write_text(json.dumps(results))
    assert bench(sets, out, *options) == 0
    again = json.loads((out / "results.json").read_text())
    assert again["runs"][0]["auroc"] == kept
    capsys.readouterr()
    assert bench(sets, out, *options, "--seeds", "1", "--steps", "30") == 65
    assert "is of other settings" in capsys.readouterr().err


def test_a_folder_without_sets(tmp_path, capsys):
    assert bench(tmp_path, tmp_path / "out") == 65
    assert "no .npz or .csv file there" in capsys.readouterr().err


def test_clean_splits_share_no_row(sets):
    X, anomalous = read_set(sets / "a.npz")
    data = split(X, anomalous, "clean", 3)
    assert len(data.train) == 110
    assert data.anomalous.sum() == anomalous.sum()
    assert not {r.tobytes() for r in data.train} & {r.tobytes() for r in data.test}
    assert not np.array_equal(data.train, split(X, anomalous, "clean", 4).train)


def test_published_splits_repeat_rows_of_small_sets(sets):
    X, anomalous = read_set(sets / "b.csv")
    data = split(X, anomalous, "published", 0)
    assert len(data.train) + len(data.test) == 1000
    assert {r.tobytes() for r in data.train} & {r.tobytes() for r in data.test}


def test_caps_keep_anomalies(sets):
    data = split(*read_set(sets / "a.npz"), "clean", 0, caps=(50, 40, 10))
    assert len(data.train) == 50
    assert len(data.test) == 40
    assert data.anomalous.sum() == 10
