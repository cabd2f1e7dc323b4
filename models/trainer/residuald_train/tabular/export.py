"""Makes the bundle of a tabular model: graph, calibration, golden records and manifest."""

import numpy as np
import residuald

from .. import TrainerError
from ..bundle.calibrate import calibrate
from ..bundle.export import as_json, make_manifest, to_onnx
from ..bundle.golden import golden_lines, golden_records
from ..bundle.parity import MARGIN, allowed_error, check_parity, rounding_sensitivity, tolerance
from ..bundle.served import run_onnx, session
from .features import encode, schema_to_json
from .scorer import run_torch

PARITY_ROWS = 20_000


def make_bundle(scorer, features, held_out, records, facts, segment=None, segment_values=None, more=None):
    """Makes the bundle's files -> ({name: bytes}, parity error, held-out scores [n]). Writes nothing to disk.

    `held_out`: float32 [n, F], the normal rows to calibrate on. `records`: the normal records (bytes) to draw golden
    records from. `facts`: the manifest's name, version and training. `segment`: the path of the field to calibrate by.
    `segment_values` [n]: the values of this field in the held-out rows. `more`: {name: bytes}, optional further files.
    Raises TrainerError if ONNX Runtime and torch disagree, or if no golden record is robust.
    """
    model = to_onnx(scorer)
    lines, golden = robust_golden(scorer, features, records, facts["training"]["seed"])
    parity = check_parity(scorer, model, np.concatenate([golden, held_out[:PARITY_ROWS]]))
    run = session(model)
    score, residual, _ = run_onnx(run, held_out)
    files = {
        "model.onnx": model,
        "calibration.json": as_json(calibrate(score, residual, segment, segment_values)),
        "golden.ndjson": golden_lines(lines, run_onnx(run, golden)[0]),
        **(more or {}),
    }
    manifest = make_manifest(
        files, facts, schema_to_json(features), scorer.facts(), tolerance(scorer), {"curves": scorer.curves}
    )
    return files | {"manifest.json": manifest}, parity, score


def robust_golden(scorer, features, records, seed):
    """Makes golden records whose scores do not depend on rounding -> (JSON strings [k], rows float32 [k, F])."""
    lines = golden_records(features, records, np.random.default_rng(seed))
    golden, accepted, _ = encode(residuald.Table(lines), features)
    lines, golden = [line for line, fits in zip(lines, accepted, strict=True) if fits], golden[accepted]
    # Another processor may round differently. A golden score that depends on rounding could fail there without a fault.
    allowed = allowed_error(scorer, run_torch(scorer, golden)[0])
    robust = MARGIN * rounding_sensitivity(scorer, golden) <= allowed
    if not robust.any():
        raise TrainerError(
            "every golden score depends on how the record's numbers are rounded, so the daemon could not verify the "
            "bundle; make columns that hold only a few different values categorical in the schema"
        )
    return [line for line, keep in zip(lines, robust, strict=True) if keep], golden[robust]
