#!/usr/bin/env python3
"""Checks on real data that streaming through a real Apache Kafka gives the same scores as scoring a file.

Splits the normal rows of a labelled data set in half, trains a bundle on one half, produces the other half and every
anomaly to Kafka, scores them with `residuald run` and reads the verdicts with kcat. Fails unless all of this holds:

- Every record is accounted for.
- The AUROC over the stream equals that of `residuald score` on the file to 1e-6, and the scores are bit-identical.
- The trainer's own decoder and ONNX Runtime give the same scores within the bundle's tolerance, which is 1e-5 relative,
  or 1e-4 with a kernel.

    .venv/bin/python tests/stream_dataset.py ../shared/data/adbench/34_smtp.npz
    .venv/bin/python tests/stream_dataset.py flows.csv --label attack --normal benign --steps 3000

Prints one JSON line: dataset, records, scored, auroc_stream, auroc_file, average_precision, parity, seconds.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = ROOT.parent / "shared/data/adbench/34_smtp.npz"
KAFKA = ROOT / "tests/kafka/kafka.sh"
LABEL = "label"
TOPICS = ("in", "anomalies", "scores", "dead")
PARTITIONS = 3
AGREE = 1e-6
ALARM_RATE = 0.01
NEEDED = {"java": "openjdk-17-jre-headless", "kcat": "kcat"}


def main():
    options = parse_options()
    need_tools(options)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        started = time.monotonic()
        train, stream, records = split(options, folder)
        say(f"{records} records to stream, training on {sum(1 for _ in train.open()) - 1} normal ones")
        bundle = folder / options.dataset.name.split(".")[0]
        call(ROOT / ".venv/bin/residuald-train", "tabular", "--data", train, "--out", bundle, *trainer_options(options))
        on_file = score_file(options, bundle, stream)
        with Cluster(folder / "kafka") as brokers:
            streaming = time.monotonic()
            rate = alarm_rate(bundle)
            verdicts, status = judge_stream(options.residuald, brokers, bundle, stream, records, rate)
            seconds = time.monotonic() - streaming
        report = check(options, records, on_file, verdicts, status)
        compare(report, bundle, on_file, verdicts)
        report |= {"seconds": round(time.monotonic() - started, 1), "stream_seconds": round(seconds, 1)}
        faults = report.pop("faults")
        print(json.dumps(report))
        for fault in faults:
            say(f"FAILED: {fault}")
        sys.exit(bool(faults))


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, nargs="?", default=DEFAULT, help=".npz with X and y, or .csv")
    parser.add_argument("--label", default=LABEL, help="label column of a CSV file (label)")
    parser.add_argument("--normal", default="0", help="label of normal rows in a CSV file (0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and of the training (0)")
    parser.add_argument("--steps", type=int, help="training steps (the trainer's default)")
    parser.add_argument("--residuald", type=Path, default=binary(), help="the binary (newest of release and debug)")
    return parser.parse_args()


def binary():
    builds = [ROOT / "target" / build / "residuald" for build in ("release", "debug")]
    return max(builds, key=lambda path: path.stat().st_mtime if path.exists() else 0)


def need_tools(options):
    """Skips the test if the data set or a tool is missing. With RESIDUALD_TEST_STRICT, a missing tool fails it."""
    if not options.dataset.exists():
        say(f"!!! SKIPPED stream_dataset: there is no data set {options.dataset}; pass the path of one")
        sys.exit(0)
    missing = [f"install {tool} (Debian: {package})" for tool, package in NEEDED.items() if not shutil.which(tool)]
    if not options.residuald.exists():
        missing.append("build residuald (make build)")
    if not (ROOT / ".venv/bin/residuald-train").exists():
        missing.append("install the trainer (make venv)")
    if missing:
        say("!!! SKIPPED stream_dataset: " + "; ".join(missing))
        sys.exit(bool(os.environ.get("RESIDUALD_TEST_STRICT")))


def say(text):
    print(text, file=sys.stderr, flush=True)


def environment():
    library = ROOT / ".onnxruntime/libonnxruntime.so"
    return {"ORT_DYLIB_PATH": str(library), **os.environ}


def call(*command):
    """Runs a command -> its standard output. Exits with the end of its output if it fails."""
    done = subprocess.run([str(part) for part in command], env=environment(), text=True, capture_output=True)
    if done.returncode:
        sys.exit(
            f"{Path(command[0]).name} failed with exit status {done.returncode}:\n"
            f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.stdout


def trainer_options(options):
    steps = [] if options.steps is None else ["--steps", options.steps]
    return ["--seed", options.seed, "--label", LABEL, *steps]


def split(options, folder):
    """Writes train.csv (half of the normal rows) and stream.csv (the rest, shuffled) -> their paths, rows to stream.

    The last column is the label.
    """
    header, rows, anomalous = read(options)
    rng = np.random.default_rng(options.seed)
    normal = rng.permutation(np.flatnonzero(~anomalous))
    half = len(normal) // 2
    stream = rng.permutation(np.concatenate([normal[half:], np.flatnonzero(anomalous)]))
    if half == 0 or not anomalous.any():
        sys.exit(f"{options.dataset} must hold at least two normal rows and an anomaly")
    paths = folder / "train.csv", folder / "stream.csv"
    for path, chosen in zip(paths, (np.sort(normal[:half]), stream), strict=True):
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*header, LABEL])
            writer.writerows([*rows[i], int(anomalous[i])] for i in chosen)
    return *paths, len(stream)


def read(options):
    """Reads the data set -> (column names, rows, anomalous bool [rows])."""
    if options.dataset.suffix == ".npz":
        data = np.load(options.dataset)
        header = [f"x{i}" for i in range(data["X"].shape[1])]
        return header, data["X"].tolist(), data["y"] != 0
    with options.dataset.open(newline="") as file:
        header, *rows = csv.reader(file)
    if options.label not in header:
        sys.exit(f"{options.dataset} has no column {options.label}; name the label column with --label")
    at = header.index(options.label)
    anomalous = np.array([row[at] != options.normal for row in rows])
    without = [row[:at] + row[at + 1 :] for row in rows]
    return header[:at] + header[at + 1 :], without, anomalous


def score_file(options, bundle, stream):
    """Runs `residuald score` -> its JSON report, with the scores added."""
    lines = stream.with_suffix(".verdicts")
    asked = ["--label", LABEL, "--false-alarm-rate", alarm_rate(bundle), "--json", "--out", lines]
    said = json.loads(call(options.residuald, "score", stream, "--bundle", bundle, *asked))
    judged = [json.loads(line) for line in lines.read_text().splitlines()]
    return said | {"scores": [v["anomaly_score"] for v in judged if "anomaly_score" in v]}


def alarm_rate(bundle):
    """ALARM_RATE, or the lowest rate that the calibration supports if that is higher."""
    return max(ALARM_RATE, 1 / json.loads((bundle / "calibration.json").read_text())["count"])


class Cluster:
    """A context manager that runs a real Apache Kafka with the topics `prefix` + TOPICS for each prefix."""

    def __init__(self, folder, prefixes=("",), partitions=PARTITIONS):
        self.folder, self.partitions = folder, partitions
        self.topics = [prefix + topic for prefix in prefixes for topic in TOPICS]

    def __enter__(self):
        brokers = call(KAFKA, "start", "--dir", self.folder, "--while-pid", os.getpid()).split()[-1]
        for topic in self.topics:
            call(KAFKA, "topic", "create", topic, "--partitions", self.partitions, "--dir", self.folder)
        return brokers

    def __exit__(self, *_):
        call(KAFKA, "stop", "--dir", self.folder)


def judge_stream(residuald, brokers, bundle, stream, records, rate, prefix=""):
    """Produces the records while the daemon runs -> (all verdicts, the daemon's last /status)."""
    settings = {
        "kafka.brokers": brokers,
        "kafka.topics": prefix + "in",
        "model.bundle": bundle,
        "output.anomalies_topic": prefix + "anomalies",
        "output.scores_topic": prefix + "scores",
        "output.dead_letter_topic": prefix + "dead",
        "http.listen": "127.0.0.1:0",
        "telemetry.log_format": "json",
        "threshold.false_alarm_rate": rate,
    }
    command = [residuald, "run"]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    log = (bundle.parent / "daemon.log").open("w+")
    daemon = subprocess.Popen([str(part) for part in command], env=environment(), stderr=log)
    try:
        address = wait("HTTP", daemon, log, lambda: address_in(log.name))
        wait("readiness", daemon, log, lambda: get(address, "/readyz") is not None)
        sent = call(residuald, "produce", stream, "--topic", prefix + "in", "--brokers", brokers, "--json")
        produced = json.loads(sent)
        if produced["produced"] != records:
            sys.exit(f"residuald produce sent {produced['produced']} of {records} records: {produced}")
        wait("every record to be accounted for", daemon, log, lambda: is_done(status_of(address), records))
        status = status_of(address)
    finally:
        daemon.send_signal(signal.SIGTERM)
        code = daemon.wait(60)
    if code:
        sys.exit(f"residuald run failed with exit status {code}:\n{Path(log.name).read_text()[-2000:]}")
    lines = call("kcat", "-b", brokers, "-C", "-t", prefix + "scores", "-o", "beginning", "-e", "-q").splitlines()
    return [json.loads(line) for line in lines], status


def wait(what, daemon, log, found, patience=300):
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and daemon.poll() is None:
        if answer := found():
            return answer
        time.sleep(0.05)
    sys.exit(f"the daemon exited or timed out while waiting for {what}:\n{Path(log.name).read_text()[-2000:]}")


def address_in(log):
    for line in Path(log).read_text().splitlines():
        if line.startswith("{") and (address := json.loads(line).get("address")):
            return address
    return None


def get(address, path):
    """The body, or None if the answer is not 200."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.read()
    except urllib.error.HTTPError:
        return None


def status_of(address):
    return json.loads(get(address, "/status"))["records"]


def is_done(status, records):
    accounted = status["scored"] + status["dead_letters"] + status["skipped"]
    return accounted >= records and status["in_flight"] == 0


def check(options, records, on_file, verdicts, status):
    """Compares stream and file -> the report; its `faults` lists the differences."""
    scores = np.array([np.float32(v["anomaly_score"]) for v in verdicts])
    labels = np.array([v["record"][LABEL] != 0 for v in verdicts])
    labelled = on_file["labelled"]
    stream = auroc(scores, labels)
    ids = {v["id"] for v in verdicts}
    faults = []
    if status["consumed"] != records or status["unaccounted"]:
        faults.append(f"{records} records were sent, but the daemon counts {status}")
    if status["scored"] != len(verdicts) or len(ids) != len(verdicts):
        faults.append(
            f"{status['scored']} records were scored, but {len(verdicts)} verdicts with {len(ids)} ids were read"
        )
    if on_file["scored"] != len(verdicts):
        faults.append(f"{on_file['scored']} records were scored from the file, but {len(verdicts)} from the stream")
    if not abs(stream - labelled["auroc"]) <= AGREE:
        faults.append(f"the AUROC is {stream} over the stream, but {labelled['auroc']} over the file")
    return {
        "dataset": options.dataset.name,
        "records": records,
        "scored": status["scored"],
        "dead_letters": status["dead_letters"],
        "auroc_stream": stream,
        "auroc_file": labelled["auroc"],
        "average_precision": labelled["average_precision"],
        "faults": faults,
    }


def compare(report, bundle, on_file, verdicts):
    """Adds `parity`, the largest relative difference between the trainer's and the daemon's scores, to the report."""
    import residuald

    from residuald_train.bundle.served import run_onnx, session
    from residuald_train.tabular.features import check_features

    manifest = json.loads((bundle / "manifest.json").read_text())
    features = check_features(manifest["input"]["features"])
    streamed = np.array([v["anomaly_score"] for v in verdicts], np.float32)
    if not np.array_equal(np.sort(streamed), np.sort(np.array(on_file["scores"], np.float32))):
        report["faults"].append("the stream and the file have different scores")
    rows = residuald.Table([json.dumps(v["record"]) for v in verdicts]).encode([f.to_json() for f in features])[0]
    own = run_onnx(session((bundle / "model.onnx").read_bytes()), rows)[0].astype(float)
    difference, tolerance = abs(streamed - own), manifest["golden"]
    report["parity"] = float((difference / np.maximum(abs(own), 1e-6)).max())
    if (difference > tolerance["absolute_tolerance"] + tolerance["relative_tolerance"] * abs(own)).any():
        report["faults"].append(
            f"a score of trainer and daemon differs by {report['parity']:.1e} relative, more than the tolerance"
        )


def auroc(scores, labels):
    """Mann-Whitney U over (positives * negatives), ties by mid-ranks; independent of the one in Rust."""
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    positives = int(labels.sum())
    u = ranks[labels].sum() - positives * (positives + 1) / 2
    return float(u / (positives * (len(labels) - positives)))


if __name__ == "__main__":
    main()
