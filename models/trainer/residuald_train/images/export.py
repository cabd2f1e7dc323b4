"""Writes the bundle of an image model; the same four files as of a tabular one."""

import base64
import io
import json
from datetime import UTC, datetime

import numpy as np
import torch
from PIL import Image

from .. import TrainerError, __version__
from ..export import ABSOLUTE, FORMAT, OPSET, RELATIVE, as_json, check_out, session, to_onnx, write
from ..served import sha256s
from .metrics import picture_scores
from .pixels import decode, rows
from .scorer import run_torch

__all__ = ["bundle", "check_out", "run_onnx", "session", "write"]
LOOSEST = 0.01


def run_onnx(session, x, batch=8):
    """uint8 [n, H, W, C] -> (score, heat, reconstruction)."""
    parts = [session.run(None, {"x": x[i : i + batch]}) for i in range(0, len(x), batch)]
    return tuple(np.concatenate(p) for p in zip(*parts, strict=True))


def calibration(score):
    """Held-out scores of pictures -> the content of calibration.json."""
    exact = np.sort(score.astype(np.float64))
    return {
        "count": len(exact),
        "quantiles": np.quantile(exact, np.linspace(0, 1, 1001)).tolist(),
        "tail": exact[-10_000:].tolist(),
    }


def png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def golden_pictures(shape, x, rng):
    """uint8 [n, H, W, C] -> PNGs: of the model's size, one larger, one smaller, gray, RGB, RGBA, palette, 16 bits,
    a flat one and a noisy one."""
    mode = "L" if shape.channels == 1 else "RGB"
    pick = [
        Image.fromarray(x[i].squeeze() if shape.channels == 1 else x[i], mode)
        for i in rng.choice(len(x), 12, replace=len(x) < 12)
    ]
    w, h = pick[0].size
    out = pick[:6]
    out.append(pick[6].resize((w * 3 // 2 + 5, h * 2 + 3), Image.BICUBIC))
    out.append(pick[7].resize((w * 2 // 3, h * 4 // 5), Image.BICUBIC))
    out += [pick[8].convert("L"), pick[8].convert("RGB")]
    tinted = Image.merge("RGB", [pick[9].convert("L").point(lambda v, k=k: v * k // 4) for k in (4, 3, 2)])
    out += [tinted, tinted.quantize(64), Image.merge("RGBA", [*tinted.split(), pick[10].convert("L")])]
    deep = np.asarray(pick[10].convert("L")).astype(np.uint16) * 257
    out.append(Image.fromarray(np.minimum(deep, 65535 - 256) + rng.integers(0, 257, deep.shape).astype(np.uint16)))
    out.append(Image.new(mode, (w, h), 128 if mode == "L" else (128, 90, 30)))
    out.append(Image.fromarray(rng.integers(0, 256, (h, w), np.uint8)))
    return [png(p) for p in out]


def tolerance(want, got):
    """Raises TrainerError unless torch and ONNX Runtime agree -> (relative tolerance of golden scores, largest error).

    1e-5 where the arithmetic allows it; a deeper network rounds more.
    """
    error = np.abs(got.astype(np.float64) - want)
    for relative in (RELATIVE, 1e-4, 1e-3, LOOSEST):
        if np.isfinite(got).all() and (error <= ABSOLUTE + 0.5 * relative * np.abs(want)).all():
            return relative, float(error.max())
    raise TrainerError(f"ONNX Runtime and torch disagree by {error.max()} on a score; nothing was written")


def bundle(scorer, x, owner, facts, more=None):
    """x uint8 [n, H, W, C] rows of held-out pictures, `owner` [n] whose they are -> ({name: bytes}, largest parity
    error, scores of the held-out pictures). `more` files go in as they are."""
    shape = scorer.shape
    model = to_onnx(scorer, (torch.zeros(2, *x.shape[1:], dtype=torch.uint8),))
    run = session(model)
    pictures = golden_pictures(shape, x, np.random.default_rng(facts["training"]["seed"]))
    golden = [rows(decode(p, shape.channels), shape) for p in pictures]
    whose = np.repeat(np.arange(len(golden)), [len(g) for g in golden])
    golden = np.concatenate(golden)
    check = np.concatenate([golden, x[:64]])
    want, got = run_torch(scorer, check), run_onnx(run, check)
    relative, parity = tolerance(want[0], got[0])
    if np.abs(want[2].astype(int) - got[2]).max() > 1 or not np.allclose(want[1], got[1], LOOSEST, 1e-3):
        raise TrainerError("ONNX Runtime and torch disagree on heat or reconstruction; nothing was written")
    score = picture_scores(run_onnx(run, x)[0], owner)
    lines = [
        json.dumps({"record": {"image": base64.b64encode(p).decode()}, "score": float(s)})
        for p, s in zip(pictures, picture_scores(want[0][: len(golden)], whose), strict=True)
    ]
    files = {
        "model.onnx": model,
        "calibration.json": as_json(calibration(score)),
        "golden.ndjson": ("\n".join(lines) + "\n").encode(),
        **(more or {}),
    }
    manifest = {
        "format": FORMAT,
        "name": facts["name"],
        "version": facts["version"],
        "files": sha256s(files),
        "input": shape.manifest(),
        "scoring": scorer.facts() | {"opset": OPSET},
        "golden": {"relative_tolerance": relative, "absolute_tolerance": ABSOLUTE},
        "training": {
            "time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "trainer": f"residuald-train {__version__}",
            **facts["training"],
        },
    }
    return files | {"manifest.json": as_json(manifest, indent=1)}, parity, score
