"""Measures how well a bundle detects the labelled anomalies of a sample: python detection.py BUNDLE SAMPLE.ndjson.gz

The thresholds come only from the bundle's calibration, as in the daemon. Labels are used only for evaluation.
"""

import json
import sys
from pathlib import Path

import numpy as np

from residuald_train.bench.metrics import auroc
from residuald_train.bundle.served import run_onnx, session
from residuald_train.tabular.data import read
from residuald_train.tabular.features import check_features, encode

bundle = Path(sys.argv[1])
features = check_features(json.loads((bundle / "manifest.json").read_text())["input"]["features"])
sample = read([sys.argv[2]])
X, _, _ = encode(sample, features)
label, scenario = ~sample.is_normal("label", "0"), np.array(sample.texts("scenario"))
score, residual, _ = run_onnx(session((bundle / "model.onnx").read_bytes()), X)
calibration = json.loads((bundle / "calibration.json").read_text())

kinds = sorted(set(scenario[label]))
print(f"AUROC {auroc(score[~label], score[label]):.4f}:", end="")
print("".join(f" {kind} {auroc(score[~label], score[scenario == kind]):.3f}" for kind in kinds))
for rate in (1e-2, 1e-3, 1e-4):
    threshold = calibration["tail"][-max(1, int(rate * (calibration["count"] + 1)))]
    flagged = score >= threshold
    print(
        f"rate {rate:g}: {flagged.sum()} alerts, {flagged[~label].sum()} false ({flagged[~label].mean():.2%}),",
        f"precision {label[flagged].mean():.3f}, recall {flagged[label].mean():.3f};",
        *(f"{kind} {flagged[scenario == kind].mean():.2f}" for kind in kinds),
    )
