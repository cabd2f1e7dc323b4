"""What the tests of foreign models share: normal records, and the verdicts of the daemon's own binary."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
RESIDUALD = os.environ.get("RESIDUALD", str(ROOT / "target/debug/residuald"))
NAMES = [f"s{j}" for j in range(6)]
SCHEMA = [{"name": name, "path": name, "type": "number"} for name in NAMES]
MIXING = np.random.default_rng(7).standard_normal((3, 6))


def normals(count, seed):
    """Correlated normal rows, float32 [count, 6], of different scales."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, 3)) @ MIXING + 0.2 * rng.standard_normal((count, 6))
    return (rows * [1, 2, 5, 10, 0.5, 3] + [0, 5, -20, 100, 1, 0]).astype(np.float32)


def write_ndjson(path, X, names=NAMES):
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in X.tolist()))
    return path


def residuald(*arguments):
    """Runs the daemon's binary -> its completed process."""
    command = [RESIDUALD, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def check():
    """`residuald check` of a bundle -> what it prints. Golden records, tensors and hashes must hold."""

    def run(bundle):
        done = residuald("check", "--bundle", bundle)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def judge(tmp_path):
    """`residuald score` of a file -> (its JSON report, a verdict for each record)."""

    def run(bundle, data, rate=0.05):
        out = tmp_path / "verdicts.ndjson"
        options = ["--bundle", bundle, "--false-alarm-rate", rate, "--out", out, "--top", 0, "--json"]
        done = residuald("score", data, *options)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout), [json.loads(line) for line in out.read_text().splitlines()]

    return run
