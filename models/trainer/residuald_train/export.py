"""Writes the bundle: model.onnx, calibration.json, golden.ndjson, manifest.json. All of it or nothing."""

import contextlib
import copy
import io
import json
import logging
import os
import shutil
import tempfile
import warnings
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import torch

from . import TrainerError, __version__
from .calibrate import calibrate
from .decode import decode, parse_record
from .features import schema_to_json
from .score import run_torch
from .served import run_onnx, session, sha256s

FORMAT, OPSET = 1, 20
RELATIVE, ABSOLUTE = 1e-5, 1e-6
MARGIN = 4  # times what a shaken score moves: another runtime rounds each step otherwise, not the record alone
FORBIDDEN = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}
FORBIDDEN |= {"If", "Loop", "Scan", "Dropout"}


OUTPUTS = "score", "residual", "reconstruction"


def to_onnx(module, example=None, inputs=("x",), outputs=OUTPUTS):
    """Scorer -> the bytes of model.onnx: batch axis dynamic, default domain, no control flow, no randomness.

    `example` is its inputs, of two or more rows; without it they are those of a table. The first input's batch axis
    is the dynamic one.
    """
    if example is None:
        example = (torch.zeros(3, len(module.space.features)),)
    dynamic = {0: torch.export.Dim("batch")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            tuple(example),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes={name: dynamic if i == 0 else None for i, name in enumerate(inputs)},
            opset_version=OPSET,
            dynamo=True,
        )
    model = program.model_proto
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]  # stack traces with paths of this machine
        if node.domain not in ("", "ai.onnx") or node.op_type in FORBIDDEN:
            raise TrainerError(f"the exported graph holds {node.domain}:{node.op_type}; this torch is not supported")
    for part in (model, model.graph):
        del part.metadata_props[:]
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
    model.producer_name, model.producer_version = "residuald-train", __version__
    del model.functions[:], model.graph.value_info[:]
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def golden_records(features, records, rng):
    """32 to 128 records: normal ones, and such with a value missing, a category unseen, a number far out."""
    pick = [records[i] for i in rng.choice(len(records), 32, replace=len(records) < 32)]
    out, turn = list(pick), 0

    def changed(path, value):
        nonlocal turn
        record = copy.deepcopy(pick[turn % len(pick)])
        turn += 1
        *parents, key = path.split(".")
        inner = record
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner.pop(key, None)
        if value is not None:
            inner[key] = value
        out.append(record)

    for feature in [f for f in features if f.missing == "impute"][:32]:
        changed(feature.path, None)
    for feature in [f for f in features if f.type == "categorical"][:32]:
        changed(feature.path, "\u2205 never seen")
    for i, feature in enumerate([f for f in features if f.type == "number"][:24]):
        changed(feature.path, (1e6, -1e6, 1e30, -3e38)[i % 4])
    return out


def tolerance(scorer):
    """(relative, absolute): what processors may differ by. The kernel subtracts what is nearly equal."""
    return (RELATIVE, ABSOLUTE) if scorer.kernel is None else (10 * RELATIVE, 10 * ABSOLUTE)


def allowed(scorer, score):
    relative, absolute = tolerance(scorer)
    return absolute + relative * np.abs(score)


def check_parity(scorer, model, X):
    """Raises TrainerError unless torch and ONNX Runtime agree, but for what hangs on how a record's own numbers are
    rounded; returns the largest error of a score."""
    want, got = run_torch(scorer, X)[0].astype(np.float64), run_onnx(session(model), X)[0]
    error, limit = np.abs(got - want), allowed(scorer, want)
    wide = ~(error <= limit)
    limit[wide] += MARGIN * shaken(scorer, X[wide])
    if not (error <= limit).all() or not np.isfinite(got).all():
        raise TrainerError(f"ONNX Runtime and torch disagree by {error.max()} on a score; nothing was written")
    return float(error.max())


def shaken(scorer, X, tries=8):
    """[n, F] -> how far each score moves at most [n] when the record's numbers are rounded otherwise, by a quarter of a
    millionth. Far where a record lies between centers of a kernel that is much narrower than their distance."""
    if not len(X):
        return np.zeros(0)
    number = np.array([feature.type == "number" for feature in scorer.space.features])
    want, rng = run_torch(scorer, X)[0].astype(np.float64), np.random.default_rng(0)
    moved = np.zeros(len(X))
    for _ in range(tries):
        sign = rng.choice((-1, 1), X.shape) * number
        moved = np.maximum(moved, np.abs(run_torch(scorer, (X * (1 + 2.0**-22 * sign)).astype(np.float32))[0] - want))
    return moved


def bundle(scorer, features, held_out, records, facts, segment=None, values=None, more=()):
    """Makes the files in memory -> ({name: bytes}, parity error, held-out scores).

    `held_out` float32 [n, F] normal rows, `records` raw records to take golden ones from, `facts` the
    manifest's name, version and training. `segment` is the path of the field to calibrate by, `values` what the
    held-out rows hold there. `more`: {name: bytes}, files that not every bundle has.
    """
    model = to_onnx(scorer)
    lines = [
        json.dumps(r, ensure_ascii=False, allow_nan=False)
        for r in golden_records(features, records, np.random.default_rng(facts["training"]["seed"]))
    ]
    golden = np.stack([decode(parse_record(line), features) for line in lines])
    # Another processor may round otherwise; what would then fail proves nothing.
    steady = MARGIN * shaken(scorer, golden) <= allowed(scorer, run_torch(scorer, golden)[0])
    if not steady.any():
        raise TrainerError(
            "every golden score hangs on how the record's numbers are rounded; the bundle could not prove itself. "
            "Does each column hold a few values only? Then make them categories"
        )
    lines, golden = [line for line, keep in zip(lines, steady, strict=True) if keep], golden[steady]
    parity = check_parity(scorer, model, np.concatenate([golden, held_out[:20_000]]))
    run = session(model)
    score, residual, _ = run_onnx(run, held_out)
    wanted = run_onnx(run, golden)[0]
    files = {
        "model.onnx": model,
        "calibration.json": as_json(calibrate(score, residual, segment, values)),
        "golden.ndjson": "".join(
            f'{{"record": {line}, "score": {float(want)!r}}}\n' for line, want in zip(lines, wanted, strict=True)
        ).encode(),
        **dict(more),
    }
    manifest = {
        "format": FORMAT,
        "name": facts["name"],
        "version": facts["version"],
        "files": sha256s(files),
        "input": schema_to_json(features),
        "scoring": scorer.facts() | {"opset": OPSET},
        "golden": dict(zip(("relative_tolerance", "absolute_tolerance"), tolerance(scorer), strict=True)),
        "training": {
            "time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "trainer": f"residuald-train {__version__}",
            **facts["training"],
            "curves": scorer.curves,
        },
    }
    return files | {"manifest.json": as_json(manifest, indent=1)}, parity, score


def as_json(value, indent=None):
    return (json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent) + "\n").encode()


def check_out(out):
    """Refuses a folder that holds something else than a bundle."""
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / "manifest.json").exists())):
        raise TrainerError(f"{out} exists and is not a bundle; give --out another name")


def write(out, files):
    """Puts the bundle in place in one rename; other files of an older bundle there (a README) are kept."""
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out = out.resolve()
    fresh, old = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent)), None
    try:
        fresh.chmod(0o755)
        for name, content in files.items():
            (fresh / name).write_bytes(content)
        old = fresh.with_name(fresh.name + "-old")
        if out.exists():
            for kept in out.iterdir():
                if kept.name not in files:
                    (shutil.copytree if kept.is_dir() else shutil.copy2)(kept, fresh / kept.name)
            os.rename(out, old)
        os.rename(fresh, out)
    finally:
        if old and old.exists() and not out.exists():  # stopped between the two renames
            os.rename(old, out)
        shutil.rmtree(fresh, ignore_errors=True)
        if old:
            shutil.rmtree(old, ignore_errors=True)
