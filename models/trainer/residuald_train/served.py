"""A bundle as the daemon loads it: read, checked against its hashes, run by ONNX Runtime. No torch."""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from . import TrainerError
from .calibrate import Calibration
from .decode import decode, parse_record
from .features import check_feature


def session(model):
    """The daemon's setting: one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_onnx(session, X, batch=256):
    """X [n, F] -> (score, residual, reconstruction)."""
    parts = [session.run(None, {"x": X[i : i + batch]}) for i in range(0, len(X), batch)]
    return tuple(np.concatenate(p) for p in zip(*parts, strict=True))


def microseconds_a_row(session, X, batch=256, rounds=5):
    """Of X [n, F] on this machine's one thread: the least of some rounds, after a short one that does not count."""
    run_onnx(session, X[:batch], batch)
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        run_onnx(session, X, batch)
        taken.append(time.perf_counter() - began)
    return min(taken) / len(X) * 1e6


def sha256s(files):
    """{name: bytes} -> {name: its hash}, as a manifest lists them."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


class Served:
    """A tabular bundle. Raises TrainerError where the folder is none or a file is not the one that was exported."""

    def __init__(self, folder):
        self.folder = Path(folder)
        try:
            written = (self.folder / "manifest.json").read_bytes()
            self.manifest = json.loads(written)
            self.sha256 = hashlib.sha256(written).hexdigest()  # what verdicts name the model by
            kind = self.manifest["input"]["kind"]
            if kind != "tabular":
                raise TrainerError(
                    f"{folder} is a bundle of kind {kind}, and this wants named features, which pictures have not; "
                    "`residuald score FOLDER --html` shows pictures with their scores and heatmaps"
                )
            self.features = [check_feature(entry) for entry in self.manifest["input"]["features"]]
            self.files = files = {name: (self.folder / name).read_bytes() for name in self.manifest["files"]}
            for name, digest in self.manifest["files"].items():
                if hashlib.sha256(files[name]).hexdigest() != digest:
                    raise TrainerError(
                        f"{self.folder / name} was altered after export; its sha256 is not the manifest's"
                    )
            self.calibration = Calibration(json.loads(files["calibration.json"]))
            golden = [parse_record(line) for line in files["golden.ndjson"].splitlines()]
            self.golden = np.stack([decode(entry["record"], self.features) for entry in golden])
            self.golden_scores = np.array([entry["score"] for entry in golden])
        except OSError as error:
            raise TrainerError(f"{folder} is not a bundle: {error}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise TrainerError(f"{folder} is not a bundle that this version reads: {error!r}") from None
        self.bytes = len(files["model.onnx"])
        self.session = session(files["model.onnx"])

    def score(self, X, batch=256):
        """float32 [n, F] -> (score [n], residual [n, F], reconstruction [n, F])."""
        return run_onnx(self.session, X, batch)

    def golden_met(self):
        """How many of the golden scores this machine gives within the stated tolerance."""
        allowed = self.manifest["golden"]
        allowed = allowed["absolute_tolerance"] + allowed["relative_tolerance"] * np.abs(self.golden_scores)
        return int((np.abs(self.score(self.golden)[0] - self.golden_scores) <= allowed).sum())
