"""What the Python peers share: the bundle, a record to a row, a score to a message. Written for speed."""

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import onnxruntime
import orjson

RATE = 1e-3
REASONS = 5


class Bundle:
    def __init__(self, folder):
        folder = Path(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        calibration = json.loads((folder / "calibration.json").read_text())
        self.model = {"name": manifest["name"], "version": manifest["version"]}
        self.features = manifest["input"]["features"]
        self.names = [f["name"] for f in self.features]
        self.columns = [column(f) for f in self.features]
        self.tail, self.count = np.array(calibration["tail"], np.float32), calibration["count"]
        self.threshold = self.tail[-int(RATE * (self.count + 1) + 1e-9)]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)

    def row(self, record):
        return [column(record) for column in self.columns]

    def run(self, rows):
        """[n, F] -> score [n], residual [n, F], reconstruction [n, F]."""
        return self.session.run(None, {"x": np.array(rows, np.float32)})

    def verdict(self, name, record, row, score, residual, expected):
        """A flagged record as bytes."""
        top = np.argsort(-residual)[:REASONS]
        total = residual.sum()
        at_least = len(self.tail) - np.searchsorted(self.tail, score)
        return orjson.dumps(
            {
                "id": name,
                "model": self.model,
                "anomaly_score": score,
                "p_value": (1 + at_least) / (self.count + 1),
                "anomaly_grade": score / self.threshold,
                "threshold": self.threshold,
                "relevant_attribution": [
                    {
                        "feature": self.names[j],
                        "share": residual[j] / total,
                        "observed": row[j],
                        "expected": expected[j],
                    }
                    for j in top
                ],
                "record": record,
            },
            option=orjson.OPT_SERIALIZE_NUMPY,
        )


def column(feature):
    """A feature -> a function from a record to its number. A record that lacks it raises."""
    *parents, key = feature["path"].split(".")
    kind, absent = feature["type"], float("nan") if feature["missing"] == "impute" else None

    def find(record):
        for parent in parents:
            record = record.get(parent)
            if record is None:
                return None
        return record.get(key)

    if kind == "categorical":
        codes = {text: code for code, text in enumerate(feature["vocabulary"])}
        number = lambda value: codes.get(value, -1)  # noqa: E731
    elif kind == "timestamp" and feature["part"] == "hour_of_day":

        def number(value):
            time = datetime.fromisoformat(value)
            return time.hour + time.minute / 60 + (time.second + time.microsecond / 1e6) / 3600
    elif kind == "timestamp":
        number = lambda value: datetime.fromisoformat(value).weekday()  # noqa: E731
    else:
        number = float

    def read(record):
        value = find(record)
        if value is None:
            if absent is None:
                raise KeyError(feature["path"])
            return absent
        return number(value)

    return read
