"""Code that the Python peers share, written for speed: load a bundle, turn a record into a row, encode a verdict."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime
import orjson

REASONS = 5
FALSE_ALARMS = 1e-3  # the share of normal records that may be flagged


class Bundle:
    """A bundle with an ONNX Runtime session of one thread."""

    def __init__(self, folder):
        folder = Path(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        calibration = json.loads((folder / "calibration.json").read_text())
        self.model = {"name": manifest["name"], "version": manifest["version"]}
        features = manifest["input"]["features"]
        self.names = [feature["name"] for feature in features]
        self.row = reader(features)
        self.tail, self.count = np.array(calibration["tail"], np.float32), calibration["count"]
        self.threshold = self.tail[-int(FALSE_ALARMS * (self.count + 1) + 1e-9)]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, ["CPUExecutionProvider"])

    def score(self, rows):
        """Rows [n, F] -> score [n], residual [n, F], reconstruction [n, F]."""
        return self.session.run(None, {"x": np.array(rows, np.float32)})

    def flagged(self, score):
        return (score > self.threshold).nonzero()[0]

    def verdict(self, topic, partition, offset, payload, row, score, residual, expected):
        top = np.argsort(-residual)[:REASONS]
        total = residual.sum()
        at_least = len(self.tail) - np.searchsorted(self.tail, score)
        verdict = {
            "id": f"{topic}-{partition}-{offset}",
            "source": {"topic": topic, "partition": partition, "offset": offset},
            "model": self.model,
            "anomaly_score": score,
            "p_value": (1 + at_least) / (self.count + 1),
            "anomaly_grade": score / self.threshold,
            "threshold": self.threshold,
            "relevant_attribution": [
                {"feature": self.names[j], "share": residual[j] / total, "observed": row[j], "expected": expected[j]}
                for j in top
            ],
            "record": orjson.Fragment(payload),
        }
        return orjson.dumps(verdict, option=orjson.OPT_SERIALIZE_NUMPY)


def reader(features):
    """Builds a function that turns a record (a dict) into its row (a tuple). It raises KeyError for a missing field.

    The function's source is generated from the features, as dataclasses do for __init__. Avoiding a loop and a call for
    each feature makes it twice as fast.
    """
    names = {"time_of": datetime.fromisoformat, "UTC": UTC, "NOTHING": {}}
    lines, found, values = ["def row(record):"], {"": "record"}, []
    required = {feature["path"].rpartition(".")[0] for feature in features if feature["missing"] == "reject"}
    for j, feature in enumerate(features):
        parent, _, key = feature["path"].rpartition(".")
        if parent not in found:
            found[parent] = f"parent{j}"
            get = f"record[{parent!r}]" if parent in required else f"(record.get({parent!r}) or NOTHING)"
            lines.append(f"    parent{j} = {get}")
        at = found[parent]
        value = f"{at}[{key!r}]" if feature["missing"] == "reject" else f"{at}.get({key!r})"
        if feature["type"] == "categorical":
            names[f"codes{j}"] = {text: code for code, text in enumerate(feature["vocabulary"])} | {None: None}
            value = f"codes{j}.get({value}, -1)"
        elif feature["type"] == "timestamp":
            if feature["path"] not in found:
                found[feature["path"]] = f"time{j}"
                lines.append(f"    time{j} = time_of({value})")
                lines.append(f"    if time{j}.tzinfo is not UTC: time{j} = time{j}.astimezone(UTC)")
            time = found[feature["path"]]
            hour = f"{time}.hour + {time}.minute / 60 + ({time}.second + {time}.microsecond / 1e6) / 3600"
            value = hour if feature["part"] == "hour_of_day" else f"{time}.weekday()"
        values.append(value)
    exec("\n".join([*lines, f"    return {', '.join(values)}"]), names)
    return names["row"]
