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


def check_parity(scorer, model, X):
    """Raises TrainerError unless torch and ONNX Runtime agree; returns the largest error of a score."""
    relative, absolute = tolerance(scorer)
    want, got = run_torch(scorer, X), run_onnx(session(model), X)
    error = np.abs(got[0].astype(np.float64) - want[0])
    if not (error <= absolute + relative * np.abs(want[0])).all() or not np.isfinite(got[0]).all():
        raise TrainerError(f"ONNX Runtime and torch disagree by {error.max()} on a score; nothing was written")
    return float(error.max())


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
