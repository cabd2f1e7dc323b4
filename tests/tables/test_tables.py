"""Real tables with their raw mess: train, score, stream through Apache Kafka, score in Python: the same verdicts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import residuald
from conftest import TABLES

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from stream_dataset import Cluster, judge_stream  # noqa: E402

RESIDUALD = os.environ.get("RESIDUALD", str(ROOT / "target/debug/residuald"))
# The later rows of the stream, so that a debug build is done in a minute.
STREAMED = 3000


@pytest.fixture(scope="session")
def brokers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kafka")
    with Cluster(folder / "kafka", [f"{name}-" for name in TABLES], partitions=1) as brokers:
        yield brokers


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Trains once for each table -> (folder, what the trainer said)."""
    made = {}

    def train(name):
        if name in made:
            return made[name]
        folder = tmp_path_factory.mktemp(name)
        for file, lines in zip(("past.csv", "later.csv"), TABLES[name].split(), strict=True):
            (folder / file).write_text("\n".join(lines) + "\n")
        lines = (folder / "later.csv").read_text().splitlines(keepends=True)
        (folder / "stream.csv").write_text("".join(lines[: 1 + STREAMED]))
        command = [sys.executable, "-m", "residuald_train.cli", "tabular", "--data", folder / "past.csv"]
        done = subprocess.run([*command, "--out", folder / "bundle"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made[name] = folder, done.stderr
        return made[name]

    return train


def score(folder, file, rate):
    """Runs `residuald score` -> (its report, its lines)."""
    out = folder / "verdicts.ndjson"
    command = [RESIDUALD, "score", folder / file, "--bundle", folder / "bundle", "--false-alarm-rate", str(rate)]
    done = subprocess.run([*command, "--json", "--out", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("name", TABLES)
def test_the_trainer_says_what_it_did_with_each_column(trained, name):
    folder, said = trained(name)
    for note in TABLES[name].said:
        assert note in said
    features = json.loads((folder / "bundle/manifest.json").read_text())["input"]["features"]
    types = {feature["name"]: feature["type"] for feature in features}
    assert TABLES[name].features.items() <= types.items()
    left_out = [line for line in said.splitlines() if "left out" in line]
    header = (folder / "past.csv").read_text().splitlines()[0].split(",")
    for column in header:
        in_features = any(feature["path"] == column for feature in features)
        assert in_features or any(f"`{column}`" in line for line in left_out), f"nothing is said about {column}"


@pytest.mark.parametrize("name", TABLES)
def test_later_rows_are_flagged_as_often_as_asked(trained, name):
    """At most twice as often, beyond what chance explains: the table's next period differs from its past."""
    table, (folder, _) = TABLES[name], trained(name)
    report, _ = score(folder, "later.csv", table.rate)
    assert report["dead_letters"] == table.refused
    n = report["scored"]
    chance = 3 * (2 * table.rate * (1 - 2 * table.rate) / n) ** 0.5
    assert report["alert_rate"] <= 2 * table.rate + chance, report


@pytest.mark.parametrize("name", TABLES)
def test_the_verdicts_are_the_same_everywhere(trained, brokers, name):
    table, (folder, _) = TABLES[name], trained(name)
    report, lines = score(folder, "stream.csv", table.rate)
    scores = [np.float32(line["anomaly_score"]) for line in lines if "anomaly_score" in line]
    bundle = residuald.Bundle.load(folder / "bundle", false_alarm_rate=table.rate)
    verdicts = bundle.score(folder / "stream.csv")
    kept = ~np.isnan(verdicts.anomaly_score)
    assert verdicts.anomaly_score[kept].tolist() == scores
    assert verdicts.is_anomaly.sum() == report["anomalies"]
    assert {row + 1 for row in verdicts.refused} == {line["record"] for line in lines if "error" in line}
    streamed, status = judge_stream(
        RESIDUALD, brokers, folder / "bundle", folder / "stream.csv", len(lines), table.rate, f"{name}-"
    )
    assert status["dead_letters"] == report["dead_letters"]
    assert [np.float32(verdict["anomaly_score"]) for verdict in streamed] == scores
    assert sum(verdict["severity"] is not None for verdict in streamed) == report["anomalies"]
