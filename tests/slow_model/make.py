"""Writes the bundle in this folder, whose model takes as long as its records request.

    .venv/bin/python tests/slow_model/make.py

A record is {"value": v, "work": w}. The score is |v|. A batch multiplies two 512 by 512 matrices as often as the sum of
its records' `work`. The product enters the scores multiplied by zero. Warm-up and golden records have no work.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime

HERE = Path(__file__).resolve().parent
TOLERANCE = 1e-6
GOLDEN = [float(value) for value in range(-16, 16)]

GRAPH = """
<ir_version: 9, opset_import: ["": 20]>
slow_model (float[batch, 2] x) => (float[batch] score, float[batch, 2] residual, float[batch, 2] reconstruction)
<int64[1] first = {0}, int64[1] second = {1}, int64[1] third = {2}, float zero = {0}, bool go_on = {1}>
{
    value = Slice (x, first, second, second)
    work = Slice (x, second, third, second)
    asked = ReduceSum <keepdims = 0> (work)
    rounds = Cast <to = 7> (asked)
    start = Constant <value = int64[2] {512, 512}> ()
    ones = ConstantOfShape <value = float[1] {1}> (start)
    unit = EyeLike (ones)
    worked = Loop <body = once (int64 round, bool was, float[512, 512] matrix) =>
        (bool still, float[512, 512] product) {
        still = Identity (was)
        product = MatMul (matrix, unit)
    }> (rounds, go_on, unit)
    trace = ReduceSum <keepdims = 0> (worked)
    nothing = Mul (trace, zero)
    square = Mul (value, value)
    own = Add (square, nothing)
    none = Mul (work, zero)
    residual = Concat <axis = 1> (own, none)
    total = ReduceSum <keepdims = 0> (residual, second)
    score = Sqrt (total)
    expected = Mul (value, zero)
    reconstruction = Concat <axis = 1> (expected, work)
}
"""


def main():
    model = onnx.parser.parse_model(GRAPH)
    onnx.checker.check_model(model, full_check=True)
    graph = model.SerializeToString(deterministic=True)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    rows = np.array([[value, 0] for value in GOLDEN], dtype=np.float32)
    score, residual, _ = session.run(None, {"x": rows})
    assert (score == np.abs(rows[:, 0])).all()
    assert (residual[:, 1] == 0).all()

    normal = [i / 128 for i in range(129)]
    files = {
        "model.onnx": graph,
        "calibration.json": as_json(
            {
                "count": len(normal),
                "quantiles": [normal[0], normal[-1]],
                "tail": normal,
                "residual_scale": [1.0, 1.0],
            }
        ),
        "golden.ndjson": b"".join(
            as_json({"record": {"value": value, "work": 0}, "score": abs(value)}) for value in GOLDEN
        ),
    }
    feature = {"type": "number", "missing": "reject"}
    manifest = {
        "format": 1,
        "name": "slow_model",
        "version": "1",
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "input": {
            "kind": "tabular",
            "features": [{"name": name, "path": name, **feature} for name in ("value", "work")],
        },
        "scoring": {"recipe": "the absolute value, slowly"},
        "golden": {"relative_tolerance": TOLERANCE, "absolute_tolerance": TOLERANCE},
    }
    for name, content in {**files, "manifest.json": as_json(manifest)}.items():
        (HERE / name).write_bytes(content)


def as_json(value):
    return json.dumps(value).encode() + b"\n"


if __name__ == "__main__":
    main()
