#!/usr/bin/env python3
"""Measures the CPU cost of a record by features, model, message size, image size, partitions and processes.

    benches/scaling/run.py [--rounds N] [--fast]

Writes benches/scaling.json and benches/SCALING.md with a plot. Bundles are trained for a few steps only, because their
speed does not depend on what they have learned. `make bench-scaling` sets everything up and runs this.
"""

import argparse
import base64
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import page
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches/peers"))

import broker  # noqa: E402
import measure  # noqa: E402
from contenders import BUNDLE, ENVIRONMENT, RESIDUALD, Contender, residuald, screened  # noqa: E402
from versions import machine  # noqa: E402

TRAINER = ROOT / ".venv/bin/residuald-train"
FEATURES, RECIPES = (3, 10, 30, 100, 300, 1000), ("kernel", "blind", "best")
MESSAGES = (0, 1_000, 10_000, 100_000)  # bytes to pad to; 0 leaves messages unchanged
SIDES = (32, 64, 128, 256, 512)  # pixels
PARTITIONS, PROCESSES = (1, 4, 16, 64), (1, 2, 4)
ROWS, SAMPLE, IMAGES = 5_000, 2_000, 24
BROKER_CAPACITY = 64 << 20  # bytes of records that fit into the embedded broker
SEED = 0


def say(*words):
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)


def call(*command):
    done = subprocess.run(list(map(str, command)), env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr[-3000:]}")
    return done.stdout


def bench(bundle, data, payload, rounds, most=100_000):
    """Runs `residuald bench` with up to `most` records of `payload` bytes -> its report."""
    records = int(min(BROKER_CAPACITY / payload, most))
    command = RESIDUALD, "bench", "--bundle", bundle, "--data", data, "--json"
    return json.loads(call(*command, "--records", records, "--rounds", rounds))


def rows_of(features):
    """JSON records with `features` correlated numbers each."""
    random = np.random.default_rng(SEED)
    hidden = random.normal(size=(ROWS, max(2, features // 4)))
    rows = hidden @ random.normal(size=(hidden.shape[1], features)) + random.normal(size=(ROWS, features))
    names = [f"x{j}" for j in range(features)]
    return [json.dumps(dict(zip(names, map(float, row.round(3)), strict=True))) for row in rows]


def tables(folder, options):
    for features in options.features:
        lines, data = rows_of(features), folder / f"{features}.ndjson"
        sample = folder / f"{features}-sample.ndjson"
        data.write_text("\n".join(lines) + "\n")
        sample.write_text("\n".join(lines[:SAMPLE]) + "\n")
        payload = sample.stat().st_size / SAMPLE
        for recipe in RECIPES:
            bundle = folder / f"{recipe}-{features}"
            train = "tabular", "--data", data, "--out", bundle, "--recipe", recipe, "--steps", 20, "--held-out", 0.3
            call(TRAINER, *train)
            report = bench(bundle, sample, payload, options.rounds)
            say(f"{features} features, {recipe}: {report['end_to_end']['cpu_us_per_record']:.1f} µs per record")
            yield {"features": features, "recipe": recipe, "bytes": round(payload), **report}


def messages(folder, options):
    lines = subprocess.run(["gzip", "-dc", BUNDLE / "sample.ndjson.gz"], check=True, capture_output=True, text=True)
    lines = lines.stdout.splitlines()[:SAMPLE]
    for size in options.messages:
        # Pad with a field that the model does not read, in front of those that it does.
        padded = [f'{{"note":"{"x" * max(0, size - len(line) - 10)}",{line[1:]}' for line in lines] if size else lines
        data = folder / f"message-{size}.ndjson"
        data.write_text("\n".join(padded) + "\n")
        payload = data.stat().st_size / len(padded)
        report = bench(BUNDLE, data, payload, options.rounds)
        say(f"{payload:,.0f} bytes: {report['end_to_end']['cpu_us_per_record']:.1f} µs per record")
        yield {"bytes": round(payload), **report}


def images(folder, options):
    random = np.random.default_rng(SEED)
    for side in options.sides:
        data, bundle = folder / f"images-{side}", folder / f"images-{side}-bundle"
        data.mkdir()
        for i in range(IMAGES):
            noise = random.integers(90, 160, (side // 8, side // 8), dtype=np.uint8)
            Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(data / f"{i}.jpg")
        call(TRAINER, "images", "--data", data, "--out", bundle, "--size", side, "--steps", 2, "--held-out", 0.5)
        encoded = [base64.b64encode(file.read_bytes()).decode() for file in sorted(data.iterdir())]
        sample = folder / f"images-{side}.ndjson"
        sample.write_text("".join(json.dumps({"image": image}) + "\n" for image in encoded))
        payload = sample.stat().st_size / IMAGES
        report = bench(bundle, sample, payload, 1, 1_000)
        say(f"{side} pixels: {report['end_to_end']['cpu_us_per_record'] / 1e3:.2f} ms per image")
        yield {"side": side, "bytes": round(payload), **report}


def behind_kafka(options):
    """Measures cost by partitions and processes, with and without the screen. The broker runs on the same machine."""
    with broker.started() as kafka:
        kafka.create("dead-letters")
        # The first round is a warm-up, in which the broker's JVM compiles its code. main() drops its results.
        for partitions in (4, *options.partitions):
            broker.PARTITIONS = partitions
            topic = f"in-{partitions}-{time.monotonic_ns()}"
            measure.fill(kafka, topic, options.records)
            for processes in options.processes if partitions == max(options.processes) ** 2 else (1,):
                for name, command in (("off", residuald), ("on", screened)):
                    of = Contender(command, processes=processes, members=processes)
                    group = f"{topic}-{processes}-{name}"
                    run, _ = measure.throughput(kafka, of, group, topic, options.records)
                    say(
                        f"{partitions} partitions, {processes} processes, screen {name}: {run['cpu']:.1f} µs per record"
                    )
                    yield {"partitions": partitions, "processes": processes, "screen": name, **run}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of each measurement; medians are reported (default 3)"
    )
    parser.add_argument(
        "--records", type=int, default=400_000, help="records in the runs with Apache Kafka (default 400000)"
    )
    parser.add_argument(
        "--fast", action="store_true", help="run only the smallest cases, as a smoke test; writes no files"
    )
    options = parser.parse_args()
    options.features, options.messages, options.sides = FEATURES, MESSAGES, SIDES
    options.partitions, options.processes = PARTITIONS, PROCESSES
    if options.fast:
        options.features, options.messages, options.sides = FEATURES[:2], MESSAGES[:2], SIDES[:1]
        options.partitions, options.rounds, options.records = (4,), 1, 100_000
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        results = {
            "machine": machine(),
            "records": options.records,
            "kafka": list(behind_kafka(options))[2:],
            "messages": list(messages(folder, options)),
            "tables": list(tables(folder, options)),
            "pictures": list(images(folder, options)),
        }
    print(page.text(results))
    if not options.fast:
        (ROOT / "benches/scaling.json").write_text(json.dumps(results, indent=1) + "\n")
        (ROOT / "benches/SCALING.md").write_text(page.text(results))
        (ROOT / "benches/scaling.svg").write_text(page.plot(results))


if __name__ == "__main__":
    main()
