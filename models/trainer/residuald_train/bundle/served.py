"""Loads a bundle as the daemon does: verifies its hashes and runs it in ONNX Runtime. Does not import torch."""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import residuald

from .. import TrainerError
from ..tabular.features import check_features, encode
from .calibrate import Calibration
from .golden import record_text


def session(model):
    """The bytes of a graph -> an ONNX Runtime session on one thread, as in the daemon."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_onnx(session, X, batch=256):
    """X [n, ...] -> the graph's outputs, each [n, ...]. A scorer's are score, residual (or heat) and reconstruction."""
    parts = [session.run(None, {"x": X[i : i + batch]}) for i in range(0, len(X), batch)]
    return tuple(np.concatenate(p) for p in zip(*parts, strict=True))


def microseconds_a_row(session, X, batch=256, rounds=5):
    """Time to score a row of X [n, F] on one thread, in µs: the minimum over `rounds`, after a short warm-up."""
    run_onnx(session, X[:batch], batch)
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        run_onnx(session, X, batch)
        taken.append(time.perf_counter() - began)
    return min(taken) / len(X) * 1e6


def sha256s(files):
    """{name: bytes} -> {name: SHA-256 in hex}, as the manifest lists them."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


class Served:
    """A tabular bundle. Raises TrainerError if the folder is not a bundle or a file was changed after export."""

    def __init__(self, folder):
        self.folder = Path(folder)
        try:
            written = (self.folder / "manifest.json").read_bytes()
            self.manifest = json.loads(written)
            self.sha256 = hashlib.sha256(written).hexdigest()  # the id of the model in verdicts
            kind = self.manifest["input"]["kind"]
            if kind != "tabular":
                raise TrainerError(
                    f"{folder} is a bundle of kind {kind}, but this verb needs one of kind tabular; "
                    "to see images with their scores and heatmaps, use `residuald score FOLDER --html`"
                )
            self.features = check_features(self.manifest["input"]["features"])
            self.files = files = {name: (self.folder / name).read_bytes() for name in self.manifest["files"]}
            for name, digest in self.manifest["files"].items():
                if hashlib.sha256(files[name]).hexdigest() != digest:
                    raise TrainerError(
                        f"{self.folder / name} was changed after export: its SHA-256 differs from the manifest's"
                    )
            self.calibration = Calibration(json.loads(files["calibration.json"]))
            golden = files["golden.ndjson"].decode().splitlines()
            self.golden, accepted, refused = encode(residuald.Table(list(map(record_text, golden))), self.features)
            if not accepted.all():
                raise ValueError(f"golden.ndjson: {refused.most_common(1)[0][0]}")
            self.golden_scores = np.array([json.loads(line)["score"] for line in golden])
        except OSError as error:
            raise TrainerError(f"{folder} is not a bundle: {error}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise TrainerError(f"this version cannot read the bundle {folder}: {error!r}") from None
        self.bytes = len(files["model.onnx"])
        self.session = session(files["model.onnx"])

    def score(self, X, batch=256):
        """float32 [n, F] -> (score [n], residual [n, F], reconstruction [n, F])."""
        return run_onnx(self.session, X, batch)

    def golden_passed(self):
        """The number of golden scores that this machine reproduces within the manifest's tolerance."""
        allowed = self.manifest["golden"]
        allowed = allowed["absolute_tolerance"] + allowed["relative_tolerance"] * np.abs(self.golden_scores)
        return int((np.abs(self.score(self.golden)[0] - self.golden_scores) <= allowed).sum())
