import json

import numpy as np
import pytest
import residuald

from residuald_train.cli import main
from residuald_train.tabular.features import encode


def payments(n=600, seed=0):
    """Small nested records with mixed types: a category, a boolean, a time, and missing values."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        amount = float(np.round(rng.lognormal(3, 1), 2))
        record = {
            "id": f"p-{i:04}",
            "time": f"2026-01-{1 + i % 28:02}T{rng.integers(8, 20):02}:{rng.integers(60):02}:00Z",
            "amount": amount,
            "count": int(rng.integers(4)),
            "merchant": {"category": str(rng.choice(["grocery", "fuel", "travel"], p=[0.6, 0.3, 0.1]))},
            "present": bool(rng.random() < 0.7),
            "currency": "EUR",
            "tags": ["a", "b"],
            "label": 0,
        }
        if rng.random() < 0.8:
            record["twice"] = 2 * amount + float(rng.normal())
        out.append(record)
    return out


def encoded(records, features):
    """Records (dicts or JSON texts) that the schema accepts -> float32 [n, F]."""
    X, accepted, refused = encode(
        residuald.Table([r if isinstance(r, str) else json.dumps(r) for r in records]), features
    )
    assert accepted.all(), refused
    return X


@pytest.fixture(scope="session")
def history(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "history.ndjson"
    path.write_text("".join(json.dumps(r) + "\n" for r in payments()))
    return path


@pytest.fixture(scope="session")
def train_small(history):
    """A function that trains on the small records and writes a bundle -> exit code."""
    options = ["--label", "label", "--recipe", "blind", "--steps", "150", "--width", "32"]
    return lambda out: main(["tabular", "--data", str(history), *options, "--out", str(out)])


@pytest.fixture(scope="session")
def small(train_small, tmp_path_factory):
    """A bundle trained on the small records."""
    out = tmp_path_factory.mktemp("bundles") / "small"
    assert train_small(out) == 0
    return out
