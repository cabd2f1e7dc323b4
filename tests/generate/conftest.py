"""What the tests of drawn records share: a small table of mixed types, a bundle trained on it, the daemon's binary."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
RESIDUALD = os.environ.get("RESIDUALD", str(ROOT / "target/debug/residuald"))
KAFKA = ROOT / "tests/kafka/kafka.sh"
KINDS = ["contactless", "chip", "online"]


def residuald(*arguments, **options):
    """Runs the binary -> its completed process."""
    command = [RESIDUALD, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def records(count, seed):
    """Payments: a heavy tail, a count, a relation, a category, a time, and values that are missing for a reason."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        kind = KINDS[rng.choice(3, p=[0.6, 0.3, 0.1])]
        amount = float(np.round(np.exp(rng.normal(3 + (kind == "online"), 0.8)), 2))
        record = {
            "time": f"2026-03-{2 + i % 7:02d}T{rng.integers(8, 20):02d}:{rng.integers(60):02d}:00Z",
            "amount": amount,
            "tax": float(np.round(0.2 * amount + rng.normal(0, 0.05), 2)),
            "entry": {"kind": kind, "repeat": bool(rng.random() < 0.2)},
            "items": int(rng.poisson(2) + 1),
        }
        if kind == "online":
            record["delivery_days"] = int(rng.integers(1, 6))
        out.append(record)
    return out


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


needs_kafka = pytest.mark.skipif(
    not (ROOT / ".kafka/libs").exists() or shutil.which("java") is None, reason="make kafka, and install Java 17"
)


@contextmanager
def cluster(folder, topics):
    """A real Kafka with these topics -> its bootstrap servers."""

    def kafka(*arguments):
        command = ["bash", str(KAFKA), *arguments, "--dir", str(folder)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    (*_, brokers) = kafka("start", "--while-pid", str(os.getpid()))
    try:
        for topic in topics:
            kafka("topic", "create", topic, "--partitions", "2")
        yield brokers
    finally:
        kafka("stop")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """A bundle that records can be drawn from, trained in a minute."""
    folder = tmp_path_factory.mktemp("generative")
    data = write(folder / "history.ndjson", records(4000, 1))
    command = [
        sys.executable,
        "-m",
        "residuald_train.cli",
        "tabular",
        "--data",
        data,
        "--name",
        "shop",
        "--recipe",
        "kernel",
    ]
    command += ["--held-out", "0.4", "--generative", "--generative-steps", "2000", "--out", folder / "bundle"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "bundle"


@pytest.fixture
def generate(bundle, tmp_path):
    """`residuald generate` -> (the path of the file, its completed process). The name tells the file's format."""

    def run(*arguments, name="drawn.ndjson", model=bundle):
        out = tmp_path / name
        return out, residuald("generate", model, "--out", out, "--start", "2026-03-02", *arguments)

    return run
