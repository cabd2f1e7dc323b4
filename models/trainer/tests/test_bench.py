"""`residuald-train bench` on small made-up sets."""

import json

import numpy as np
import pytest

from residuald_train.bench import tabular_peers as peers
from residuald_train.bench.datasets import Split, contaminate, half, load_split, read_set, split
from residuald_train.bench.result_tables import leads_table, trust_table, trust_totals
from residuald_train.bench.tabular import check_trust
from residuald_train.cli import main


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
    for run in results["runs"]:
        assert ("reason_lowers" in run) == (run["method"] in ("kernel", "blind"))
    text = (out / "results.md").read_text()
    assert "| kernel |" in text
    assert {r["half"] for r in results["runs"]} == {half("a")} == {half("b")}
    assert f"## sets, clean: {half('a')} half" in text
    assert "2 sets, 1 seeds" in text
    page = (out / "results.html").read_text()
    assert page.count("<svg") == (4 if "1-NN" in methods else 2)
    assert page.count("<table>") == text.count("| --- |\n|")
    assert "http" not in page.replace("http://www.w3.org", "")
    kept = results["runs"][0]["auroc"] = 12.5
    (out / "results.json").write_text(json.dumps(results))
    assert bench(sets, out, *options) == 0
    again = json.loads((out / "results.json").read_text())
    assert again["runs"][0]["auroc"] == kept
    capsys.readouterr()
    assert bench(sets, out, *options, "--seeds", "1", "--steps", "30") == 65
    assert "has other settings" in capsys.readouterr().err


class Ruler:
    """A fake bundle: residuals are the squared values, the score is the root of their sum, the reconstruction is 0."""

    def run(self, _, inputs):
        square = inputs["x"] ** 2
        return np.sqrt(square.sum(1)), square, 0 * square


def test_thresholds_and_reasons_are_counted():
    rng = np.random.default_rng(0)
    test = np.concatenate([rng.normal(size=(4000, 3)), 9 + rng.normal(size=(50, 3))]).astype(np.float32)
    found = check_trust(Ruler(), Split(test[:1], test, np.arange(4050) >= 4000), 0)
    assert found["false_alarms"]["0.01"][1:] == [2000, 20 / 2001]
    assert found["false_alarms"]["0.001"][1:] == [2000, 2 / 2001]
    assert 5 < found["false_alarms"]["0.01"][0] < 40
    assert found["reason_lowers"] == [50 + found["false_alarms"]["0.01"][0]] * 2
    more = check_trust(Ruler(), Split(test[:1], test[2000:], np.arange(2050) >= 2000, spare=test[:2000]), 0)
    assert more["false_alarms"]["0.001"][1:] == [2000, 2 / 2001]
    assert 50 < more["reason_lowers"][0] < found["reason_lowers"][0]
    few = check_trust(Ruler(), Split(test[:1], test[-150:], np.arange(150) >= 100), 0)
    assert few["false_alarms"] == {}
    assert few["reason_lowers"][0] == few["reason_lowers"][1] >= 50
    runs = [
        {"method": "kernel", "set": "a", **found},
        {"method": "kernel", "set": "b", **few},
        {"method": "1-NN", "set": "a"},
    ]
    k = found["false_alarms"]["0.01"][0]
    assert f"{k} of 2000" in trust_totals(runs)
    assert f"| 1 % | {k / 2000 / (20 / 2001):.2f}, 1 set |" in trust_totals(runs)
    twice = trust_totals([*runs, {**runs[0], "set": "c"}])
    assert f"| {k / 2000 / (20 / 2001):.2f} ± 0.00, 2 sets |" in twice
    assert "| b | -, - of 0; 100 % of" in trust_table(runs)
    assert trust_totals(runs[2:]) == trust_table(runs[2:]) == ""


@pytest.fixture
def fixed(tmp_path):
    """A set with a fixed split, an id that leaks and one that does not."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "fixed"
    folder.mkdir()
    order = rng.permutation(500)
    rows = rng.normal(size=(500, 4))
    rows[:, 2], rows[:, 3] = np.where(order < 300, 2 * order, 2 * (order - 300) + 1), np.arange(500)
    anomalous = np.arange(500) >= 400  # the last rows, so the last column is an id that leaks
    rows[anomalous, :2] += 4
    names = ["a", "b", "order_id", "Unnamed: 0"]
    train, test = rows[:300], rows[300:]
    np.savez(folder / "c.npz", train=train, test=test, test_labels=anomalous[300:].astype(int), feature_names=names)
    return folder


def test_a_fixed_split_is_kept_and_its_leaking_id_named(fixed):
    data = load_split(fixed / "c.npz", "fixed", 0)
    assert data.leaks == ("Unnamed: 0",)
    assert len(data.train) == 300
    assert data.anomalous.tolist() == [False] * 100 + [True] * 100
    assert np.array_equal(data.test[:, 3], np.arange(300, 500))
    fewer = load_split(fixed / "c.npz", "fixed", 0, (50, 40, 10))
    assert (len(fewer.train), len(fewer.test), fewer.anomalous.sum()) == (50, 40, 20)
    assert not {r.tobytes() for r in fewer.spare} & {r.tobytes() for r in fewer.test}


def test_families_and_halves(sets, fixed, tmp_path, capsys):
    out, options = (
        tmp_path / "out",
        ["--seeds", "1", "--recipe", "kernel", "--no-peers", "--protocol", "clean", "published"],
    )
    assert main(["bench", "--data", str(sets), str(fixed), "--out", str(out), "--jobs", "1", "--fast", *options]) == 0
    found = json.loads((out / "results.json").read_text())["runs"]
    assert {(r["family"], r["set"], r["protocol"]) for r in found} == {
        *(("sets", name, protocol) for name in "ab" for protocol in ("clean", "published")),
        ("fixed", "c", "fixed"),
    }
    assert [r["leaks"] for r in found if r["set"] == "c"] == [["Unnamed: 0"]]
    other = {"development": "report", "report": "development"}[half("c")]
    capsys.readouterr()
    again = ["--out", str(tmp_path / "half"), "--jobs", "1", "--fast", "--part", other, *options]
    assert main(["bench", "--data", str(fixed), *again]) == 65
    assert "has no set of the" in capsys.readouterr().err


def test_leads_are_counted_by_set():
    leads = {"a": 5, "b": 1, "c": -2, "d": 0}
    runs = [{"method": "1-NN", "set": name, "seed": 0, "auroc": 80, "ap": 60} for name in leads]
    runs += [{"method": "kernel", "set": name, "seed": 0, "auroc": 80 + v, "ap": 60 - v} for name, v in leads.items()]
    line = leads_table(runs).splitlines()[-1]
    assert line == "| kernel | +1.00 / -1.00 | +0.50 / -0.50 | -1.00 / -3.00 | c -2.00 / -5.00 | 2 : 1 / 1 : 2 |"


def test_ecod_does_not_depend_on_the_other_rows():
    """Counted by hand: of 1, 2, 3, 4 and 9 itself, one is at least 9 and five are at most 9."""
    score = peers.ecod(np.array([[1.0], [2], [3], [4]]))
    np.testing.assert_allclose(score(np.array([[9.0]])), -np.log(1 / 5))
    np.testing.assert_allclose(score(np.array([[9.0]] * 50)), -np.log(1 / 5))
    np.testing.assert_allclose(score(np.array([[2.0]])), -np.log(3 / 5))


def test_ecod_is_pyods_of_one_row():
    pyod = pytest.importorskip("pyod.models.ecod")
    rng = np.random.default_rng(0)
    train, test = np.round(np.exp(rng.normal(size=(200, 5))), 1), np.round(np.exp(1.5 * rng.normal(size=(20, 5))), 1)
    model = pyod.ECOD(n_jobs=1).fit(train)
    np.testing.assert_allclose(peers.ecod(train)(test), [model.decision_function(row[None])[-1] for row in test])


@pytest.mark.parametrize("name", ["DTE-NP", "LOF", "one-class SVM", "PCA", "isolation forest", "ECOD"])
def test_peers_rank_what_is_far_highest(name):
    rng = np.random.default_rng(0)
    train = rng.normal(size=(300, 4)).astype(np.float32)
    score = peers.fit(name, train, 0)
    assert score(np.full((1, 4), 4.0)) > score(train).max()


def test_a_folder_without_sets(tmp_path, capsys):
    assert bench(tmp_path, tmp_path / "out") == 65
    assert "has no .npz or .csv file" in capsys.readouterr().err


def test_clean_splits_share_no_row(sets):
    X, anomalous = read_set(sets / "a.npz")
    data = split(X, anomalous, "clean", 3)
    assert len(data.train) == 110
    assert data.anomalous.sum() == anomalous.sum()
    assert not {r.tobytes() for r in data.train} & {r.tobytes() for r in data.test}
    assert not np.array_equal(data.train, split(X, anomalous, "clean", 4).train)


def test_published_splits_repeat_no_row_of_large_sets():
    X = np.arange(50_100, dtype=np.float32)[:, None]
    data = split(X, np.arange(len(X)) % 100 == 0, "published", 0, (60_000, 60_000, 300))
    rows = np.concatenate([data.train, data.test])[:, 0]
    assert len(rows) == len(np.unique(rows)) == 50_000


def test_published_splits_repeat_rows_of_small_sets(sets):
    X, anomalous = read_set(sets / "b.csv")
    data = split(X, anomalous, "published", 0)
    assert len(data.train) + len(data.test) == 1000
    assert {r.tobytes() for r in data.train} & {r.tobytes() for r in data.test}


def test_contaminated_rows_are_not_tested_on(sets):
    data = split(*read_set(sets / "a.npz"), "clean", 0)
    mixed = contaminate(data, 0.05, 0)
    assert mixed.mixed == 6  # of 116
    assert len(mixed.train) + len(mixed.test) == len(data.train) + len(data.test)
    moved = {r.tobytes() for r in mixed.train[-6:]}
    assert moved <= {r.tobytes() for r in data.test[data.anomalous]}
    assert not moved & {r.tobytes() for r in mixed.test}
    assert contaminate(data, 0.2, 0).mixed == 10  # half of the anomalies


def test_bench_with_contamination(sets, tmp_path, capsys):
    out, options = tmp_path / "out", ["--seeds", "1", "--recipe", "kernel", "--no-peers", "--contamination", "0.05"]
    assert bench(sets, out, *options) == 0
    results = json.loads((out / "results.json").read_text())
    by = {(r["set"], r["method"]): r for r in results["runs"]}
    assert {method for _, method in by} == {"kernel", "kernel, clean", "kernel, told"}
    assert by["a", "kernel, told"]["found"] == by["a", "kernel"]["mixed"] == 6
    assert by["a", "kernel, told"]["auroc"] > by["a", "kernel"]["auroc"]
    assert "5 % of the training rows are labelled anomalies" in (out / "results.md").read_text()
    assert bench(sets, out, *options[:-1], "0.4") == 65
    assert "--contamination must be a share from 0 to 0.2" in capsys.readouterr().err


def test_caps_keep_anomalies(sets):
    data = split(*read_set(sets / "a.npz"), "clean", 0, caps=(50, 40, 10))
    assert len(data.train) == 50
    assert len(data.test) == 40
    assert data.anomalous.sum() == 10
    normal = {r.tobytes() for r in data.spare}
    assert len(normal) == len(data.spare) == 110 - 30
    assert not normal & {r.tobytes() for part in (data.train, data.test) for r in part}
