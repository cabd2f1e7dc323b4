"""Scoring 100,000 records in Python, beside `residuald score`: both read the same file, load the bundle and score.

    make build venv && .venv/bin/python benches/python_score.py

Prints the seconds of each in alternation, and the ratio of the medians. A data frame is timed, too, without reading.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import pandas as pd
import residuald

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "models/payments"


def seconds(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--records", type=int, default=100_000)
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--residuald", default=str(ROOT / "target/release/residuald"))
    arguments = p.parse_args()
    sample = residuald.read([BUNDLE / "sample.ndjson.gz"])
    records = [sample.record(i % len(sample)) for i in range(arguments.records)]
    bundle = residuald.Bundle.load(BUNDLE)
    frame = pd.json_normalize([json.loads(record) for record in records])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "records.ndjson")
        file.write_bytes(b"\n".join(records) + b"\n")
        command = [arguments.residuald, "score", file, "--bundle", BUNDLE, "--json"]
        runs = {
            "residuald score": lambda: subprocess.run(command, check=True, capture_output=True),
            "Python, a file": lambda: residuald.Bundle.load(BUNDLE).score(file, explain="none"),
            "Python, a data frame": lambda: bundle.score(frame, explain="none"),
        }
        times = {name: [] for name in runs}
        for _ in range(arguments.rounds):
            for name, work in runs.items():
                times[name].append(seconds(work))
    command_median = statistics.median(times["residuald score"])
    for name, taken in times.items():
        median = statistics.median(taken)
        between = f"{min(taken):.3f} to {max(taken):.3f}"
        print(f"{name:22} {median:.3f} s ({between}), {command_median / median:.2f} times as fast")


if __name__ == "__main__":
    main()
