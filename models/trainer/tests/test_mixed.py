"""Tests on realistic tables: mixed types, unseen categories, heavy tails, constants, duplicates, gaps, many columns.

`tabular` writes a bundle only if torch and ONNX Runtime agree on its golden records and held-out rows.
"""

import json

import numpy as np
import pytest
from conftest import encoded

from residuald_train.bundle.served import Served
from residuald_train.cli import main

KINDS = "small", "medium", "large"


def record(rng):
    size = int(rng.choice(3, p=[0.5, 0.3, 0.2]))
    base = (1 + size) * (1 + rng.pareto(1.5))  # infinite variance
    out = {
        "time": f"2026-0{rng.integers(1, 10)}-{rng.integers(1, 29):02}T{rng.integers(24):02}:30:00+02:00",
        "kind": KINDS[size],
        "heavy": float(base),
        "follows": float(3 * np.log(base) + 0.1 * rng.normal()),
        "online": bool(size == 2 or rng.random() < 0.02),
        "skewed": float(rng.standard_cauchy()),
        "constant": 7,
        "same": "x",
        "nothing": None,
        "count": int(rng.poisson(2)),
    }
    for name in ("kind", "follows", "online", "skewed"):
        if rng.random() < 0.08:
            out[name] = None
    return out


@pytest.fixture(scope="module", params=["blind", "best"])
def mixed(request, tmp_path_factory):
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("mixed")
    records = [record(rng) for _ in range(1500)]
    records += [records[0]] * 400 + [records[1]] * 100
    (folder / "d.ndjson").write_text("".join(json.dumps(r) + "\n" for r in records))
    options = ["--recipe", request.param, "--steps", "600", "--width", "48", "--out", str(folder / "b")]
    assert main(["tabular", "--data", str(folder / "d.ndjson"), *options]) == 0
    return Served(folder / "b")


def rows(served, records):
    return encoded(records, served.features)


def fresh(n=400):
    rng = np.random.default_rng(1)
    return [r for r in (record(rng) for _ in range(3 * n)) if None not in {**r, "nothing": 0}.values()][:n]


def test_what_says_nothing_is_left_out(mixed):
    names = [f.name for f in mixed.features]
    assert names == ["time_hour_of_day", "time_day_of_week", "kind", "heavy", "follows", "online", "skewed", "count"]
    assert mixed.golden_passed() == len(mixed.golden)


def test_scores_are_finite_whatever_comes(mixed):
    strange = [
        {"kind": "never seen"},
        {"heavy": 3e38, "skewed": -3e38},
        {"heavy": 0.0, "follows": -1e30},
        dict.fromkeys(("kind", "follows", "online", "skewed")),
        {"count": 10**15},
    ]
    plain = fresh(50)
    normal = mixed.score(rows(mixed, plain))[0]
    for change in strange:
        score, residual, expected = mixed.score(rows(mixed, [r | change for r in plain]))
        assert np.isfinite(score).all()
        assert np.isfinite(residual).all()
        assert np.isfinite(expected).all()
    assert np.median(mixed.score(rows(mixed, [r | {"heavy": 1e9} for r in plain]))[0]) > np.median(normal)
    unseen = mixed.score(rows(mixed, [r | {"kind": "never seen"} for r in plain]))
    assert np.median(unseen[0]) > np.median(normal)
    assert (unseen[1].argmax(1) == 2).mean() > 0.8


def test_what_is_filled_in_is_sensible(mixed):
    records = fresh()
    X, names = rows(mixed, records), [f.name for f in mixed.features]

    def filled(name):
        j = names.index(name)
        hidden = X.copy()
        hidden[:, j] = np.nan
        return mixed.score(hidden)[2][:, j], X[:, j]

    guess, truth = filled("follows")
    # The blind network fills in timidly. `most`: of the error of always saying the median.
    most, lean = (0.8, 0.15) if mixed.manifest["scoring"]["recipe"] == "blind" else (0.5, 0.5)
    assert np.median(abs(guess - truth)) < most * np.median(abs(np.median(truth) - truth))
    assert np.corrcoef(guess, truth)[0, 1] > 0.8
    guess, truth = filled("online")
    assert guess.min() >= 0
    assert guess.max() <= 1
    assert guess[truth == 1].mean() > guess[truth == 0].mean() + lean
    guess, truth = filled("kind")
    assert set(guess) <= {0, 1, 2}
    assert (guess == truth)[X[:, names.index("online")] == 1].mean() > 0.8
    assert (guess == truth).mean() > 0.5


@pytest.mark.parametrize(("recipe", "steps"), [("blind", 100), ("hybrid", 50)])
def test_a_thousand_features(recipe, steps, tmp_path):
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(5, 1000))
    X = rng.normal(size=(700, 5)) @ mix + 0.5 * rng.normal(size=(700, 1000))
    X, fresh = X[:500], X[500:].astype(np.float32)
    X[rng.random(X.shape) < 0.02] = np.nan
    np.savez(tmp_path / "wide.npz", X=X)
    options = ["--recipe", recipe, "--steps", str(steps), "--out", str(tmp_path / "b")]
    assert main(["tabular", "--data", str(tmp_path / "wide.npz"), *options]) == 0
    served = Served(tmp_path / "b")
    assert len(served.features) == 1000
    assert served.golden_passed() == len(served.golden)
    broken = fresh + 3 * rng.normal(size=fresh.shape).astype(np.float32)
    assert np.median(served.score(broken)[0]) > np.quantile(served.score(fresh)[0], 0.95)
    hidden = fresh.copy()
    hidden[:, :50] = np.nan
    guess = served.score(hidden)[2][:, :50]
    assert np.isfinite(guess).all()
    if recipe == "hybrid":  # the kernel fills in; the blind network would need more steps than a test has
        assert abs(guess - fresh[:, :50]).mean() < 0.7 * abs(fresh[:, :50]).mean()
