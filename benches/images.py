#!/usr/bin/env python3
"""Compares images per second of the daemon and of ONNX Runtime alone, by image size, recipe and batch size.

    .venv/bin/python benches/images.py [--sizes 32 64 ...] [--recipes blind ddim] [--records N] [--rounds N]
    .venv/bin/python benches/images.py --kafka [--records N] [--rounds N]

For each size and recipe, a bundle is trained for two steps on crops of scikit-image's textures. Two steps are enough
because speed does not depend on the weights. ONNX Runtime is then timed with one thread on prepared tensors at each
batch size, and `residuald bench` measures the scorer and the whole pipeline on JPEGs of that size, on all cores.
Prints two tables in Markdown.

With --kafka, the 500 sample images of models/surface are sent repeatedly through a daemon on a real Apache Kafka,
with at-least-once and with exactly-once delivery. The baseline is ONNX Runtime alone on the prepared tensors, with one
session and one thread per core.

Compare the ratios, not the rates: both sides of a ratio ran under the same load of the machine. Needs
`make build venv`, and with --kafka also `make kafka` and Java.
"""

import argparse
import base64
import concurrent.futures
import gzip
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import skimage.data
from delivery import KINDS, cluster, records_per_second
from PIL import Image

from residuald_train.images.pixels import Shape, decode, rows

ROOT = Path(__file__).resolve().parent.parent
RESIDUALD = ROOT / "target/release/residuald"
TRAINER = ROOT / ".venv/bin/residuald-train"
SURFACE = ROOT / "models/surface"
BATCHES = 1, 2, 4, 8, 16
IMAGES = 24


def crops(size: int) -> list[Image.Image]:
    """Random crops of three textures, [size, size] pixels each."""
    rng, out = np.random.default_rng(size), []
    for i in range(IMAGES):
        texture = (skimage.data.brick, skimage.data.grass, skimage.data.gravel)[i % 3]()
        y, x = (rng.integers(0, side - min(size, side) + 1) for side in texture.shape)
        out.append(Image.fromarray(texture[y : y + size, x : x + size]).resize((size, size)))
    return out


def bundle(directory: Path, size: int, recipe: str) -> Path:
    images, out = directory / f"images-{size}", directory / f"{recipe}-{size}"
    images.mkdir(exist_ok=True)
    lines = []
    for i, image in enumerate(crops(size)):
        image.save(images / f"{i}.png")
        jpeg = io.BytesIO()
        image.save(jpeg, "JPEG", quality=75)
        lines.append(json.dumps({"image": base64.b64encode(jpeg.getvalue()).decode()}))
    command = [TRAINER, "images", "--data", images, "--out", out, "--size", str(size), "--recipe", recipe]
    subprocess.run([*command, "--steps", "2"], check=True, capture_output=True)
    with gzip.open(out / "sample.ndjson.gz", "wt") as sample:
        sample.write("\n".join(lines) + "\n")
    return out


def one_thread(model: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def by_batch(model: Path, size: int, rounds: int) -> dict[int, float]:
    """Images per second by batch size, with one thread: medians over the rounds. Every round times each batch size."""
    session = one_thread(model)
    pixels = np.random.default_rng(0).integers(0, 256, (max(BATCHES), size, size, 1), np.uint8)
    rates: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    for round_number in range(-1, rounds):  # the first is a warm-up
        for batch in BATCHES:
            began = time.perf_counter()
            for start in range(0, max(BATCHES), batch):
                session.run(None, {"x": pixels[start : start + batch]})
            if round_number >= 0:
                rates[batch].append(max(BATCHES) / (time.perf_counter() - began))
    return {batch: statistics.median(rate) for batch, rate in rates.items()}


def end_to_end(bundle: Path, records: int, rounds: int) -> dict:
    command = [RESIDUALD, "bench", "--bundle", bundle, "--records", str(records), "--rounds", str(rounds), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def onnx_runtime_alone(tensors: list[np.ndarray]) -> float:
    """Images per second of ONNX Runtime in batches of one, with one session per core."""
    sessions = [one_thread(SURFACE / "model.onnx") for _ in os.sched_getaffinity(0)]
    for session in sessions:
        session.run(None, {"x": tensors[0]})

    def share(number: int) -> None:
        for tensor in tensors[number :: len(sessions)]:
            sessions[number].run(None, {"x": tensor})

    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(share, range(len(sessions))))
    return len(tensors) / (time.perf_counter() - began)


def on_kafka(records: int, rounds: int) -> None:
    with gzip.open(SURFACE / "sample.ndjson.gz", "rt") as sample:
        images = [base64.b64decode(json.loads(line)["image"]) for line in sample]
    declared = json.loads((SURFACE / "manifest.json").read_text())["input"]
    shape = Shape(declared["height"], declared["width"], declared["channels"])
    times = -(-records // len(images))
    tensors = [rows(decode(image, shape.channels), shape) for image in images] * times
    ratios: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with cluster(1) as brokers:
        produce = [RESIDUALD, "produce", SURFACE / "sample.ndjson.gz", "--topic", "in", "--brokers", brokers]
        for _ in range(times):
            subprocess.run([*produce, "--key", "id", "--json"], check=True, stdout=subprocess.PIPE)
        for number in range(rounds):
            for kind in KINDS:
                settings = [
                    f"kafka.brokers={brokers}",
                    "kafka.topics=in",
                    f"kafka.group_id={kind}-{number}",
                    f"kafka.delivery={kind}",
                    f"model.bundle={json.dumps(str(SURFACE))}",
                    "threshold.false_alarm_rate=0.01",
                    "http.listen=127.0.0.1:0",
                ]
                rate, base = records_per_second(settings, len(tensors)), onnx_runtime_alone(tensors)
                ratios[kind].append(rate / base)
                print(f"round {number + 1}, {kind}: {rate:.0f} of {base:.0f} images/s, {rate / base:.3f}", flush=True)
    for kind, found in ratios.items():
        print(f"{kind}: {statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f}) of ONNX Runtime alone")


def table(head: list[str], body: list[list[str]]) -> str:
    return "\n".join(" | ".join(["", *row, ""]).strip() for row in [head, ["---"] * len(head), *body])


def by_size(recipes: list[str], sizes: list[int], records: int, rounds: int) -> None:
    batches, wholes = [], []
    with tempfile.TemporaryDirectory(prefix="residuald-images-") as directory:
        for recipe in recipes:
            for size in sizes:
                made = bundle(Path(directory), size, recipe)
                gflop = json.loads((made / "manifest.json").read_text())["scoring"]["gflop"]
                rate = by_batch(made / "model.onnx", size, rounds)
                over_one = [f"{rate[batch] / rate[1]:.2f}" for batch in BATCHES[1:]]
                batches.append([recipe, str(size), f"{gflop:.3f}", f"{rate[1]:.1f}", *over_one])
                print(batches[-1], file=sys.stderr)
                found = end_to_end(made, records, rounds)
                low, high = found["end_to_end_over_score_range"]
                micros = [found[part]["cpu_us_per_record"] for part in ("decode", "score", "end_to_end")]
                whole = f"{found['end_to_end_over_score']:.2f} ({low:.2f} to {high:.2f})"
                persec = [f"{found[part]['records_per_second']:.1f}" for part in ("score", "end_to_end")]
                wholes.append([recipe, str(size), *(f"{m:.0f}" for m in micros), *persec, whole])
                print(wholes[-1], file=sys.stderr)
    ratios = (f"batch {b} / batch 1" for b in BATCHES[1:])
    print(table(["recipe", "size", "GFLOP", "images/s, batch 1", *ratios], batches))
    print()
    parts = [
        "decode, CPU µs",
        "score, CPU µs",
        "whole, CPU µs",
        "scorer, images/s",
        "whole, images/s",
        "whole / scorer",
    ]
    print(table(["recipe", "size", *parts], wholes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    parser.add_argument("--recipes", nargs="+", choices=["blind", "ddim"], default=["blind", "ddim"])
    parser.add_argument(
        "--records", type=int, default=1000, help="images in each measurement of the daemon (default 1000)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median is reported (default 3)")
    parser.add_argument(
        "--kafka", action="store_true", help="measure the sample of models/surface on a real Apache Kafka"
    )
    args = parser.parse_args()
    os.environ.setdefault("ORT_DYLIB_PATH", str(ROOT / ".onnxruntime/libonnxruntime.so"))
    if args.kafka:
        on_kafka(args.records, args.rounds)
    else:
        by_size(args.recipes, args.sizes, args.records, args.rounds)


if __name__ == "__main__":
    main()
