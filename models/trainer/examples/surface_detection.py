"""Measures how well a bundle detects the defects in its sample: AUROC by defect, and flags at the 99 % quantile."""

import argparse
import base64
import gzip
import json
from pathlib import Path

import numpy as np

from residuald_train.bench.metrics import image_metrics
from residuald_train.bundle.served import run_onnx, session
from residuald_train.images.pixels import Shape, decode, rows

p = argparse.ArgumentParser(description=__doc__)
p.add_argument("bundle", type=Path)
folder = p.parse_args().bundle

shape = json.loads((folder / "manifest.json").read_text())["input"]
shape = Shape(shape["height"], shape["width"], shape["channels"])
run = session((folder / "model.onnx").read_bytes())
with gzip.open(folder / "sample.ndjson.gz") as sample:
    records = [json.loads(line) for line in sample]
x = np.concatenate([rows(decode(base64.b64decode(r["image"]), shape.channels), shape) for r in records])
score = run_onnx(run, x, 8)[0]
labels = np.array([r["defect"] or "good" for r in records])
print(", ".join(f"{k} {100 * v:.1f}" for k, v in image_metrics(score, labels).items()))

quantiles = json.loads((folder / "calibration.json").read_text())["quantiles"]
flagged = score > quantiles[990]
print(f"flagged at 1 %: {flagged.sum()} of {len(records)}, {(flagged & (labels == 'good')).sum()} of them normal")
for name in sorted(set(labels) - {"good"}):
    print(f"  {name}: {flagged[labels == name].sum()} of {(labels == name).sum()}")
for name in sorted({r["surface"] for r in records}):
    here = np.array([r["surface"] == name for r in records]) & (labels == "good")
    print(f"  normal {name}: {flagged[here].sum()} of {here.sum()}")
