"""Makes the bundle of an image model, with the same four files as a tabular bundle."""

import json

import numpy as np
import torch

from ..bundle.calibrate import INTERVALS, TAIL, score_distribution
from ..bundle.export import as_json, make_manifest, to_onnx
from ..bundle.golden import golden_images, image_record
from ..bundle.parity import ABSOLUTE, check_image_parity
from ..bundle.served import run_onnx, session
from .pixels import decode, image_scores, rows
from .scorer import run_torch

PARITY_ROWS = 64
BATCH = 8  # rows that ONNX Runtime scores at a time; a larger batch takes much memory


def make_bundle(scorer, x, owner, facts, more=None):
    """Makes the bundle's files -> ({name: bytes}, parity error, scores of the held-out images). Writes nothing to disk.

    `x`: uint8 [n, H, W, C], rows of held-out normal images. `owner` [n]: the index of each row's image. `facts`: the
    manifest's name, version and training. `more`: {name: bytes}, optional further files. Raises TrainerError if ONNX
    Runtime and torch disagree.
    """
    shape = scorer.shape
    model = to_onnx(scorer, (torch.zeros(2, *x.shape[1:], dtype=torch.uint8),))
    run = session(model)
    images = golden_images(shape, x, np.random.default_rng(facts["training"]["seed"]))
    tiles = [rows(decode(image, shape.channels), shape) for image in images]
    golden_owner, golden = np.repeat(np.arange(len(tiles)), [len(t) for t in tiles]), np.concatenate(tiles)
    check = np.concatenate([golden, x[:PARITY_ROWS]])
    want, got = run_torch(scorer, check), run_onnx(run, check, BATCH)
    relative, parity = check_image_parity(want, got)
    score = image_scores(run_onnx(run, x, BATCH)[0], owner)
    golden_scores = image_scores(want[0][: len(golden)], golden_owner)
    lines = [
        json.dumps({"record": image_record(image), "score": float(s)})
        for image, s in zip(images, golden_scores, strict=True)
    ]
    files = {
        "model.onnx": model,
        "calibration.json": as_json(score_distribution(score, INTERVALS, TAIL)),
        "golden.ndjson": ("\n".join(lines) + "\n").encode(),
        **(more or {}),
    }
    manifest = make_manifest(files, facts, shape.manifest(), scorer.facts(), (relative, ABSOLUTE))
    return files | {"manifest.json": manifest}, parity, score
