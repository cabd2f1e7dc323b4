"""Writes the graphs in this folder. Each breaks one rule of the contract for scorer graphs.

    .venv/bin/python tests/hostile_bundle/make.py

A test puts them into a copy of `tests/slow_model`, where a record is {"value": v, "work": w} and its score is |v|.
"""

from pathlib import Path

import onnx
import onnx.parser

HERE = Path(__file__).resolve().parent

GRAPH = """
<ir_version: 9, opset_import: ["": 20]>
hostile (float[batch, 2] x) => (float[batch] score, float[batch, 2] residual, float[batch, 2] reconstruction)
<int64[1] first = {0}, int64[1] second = {1}, int64[1] third = {2}, int64[1] few = {8}, float zero = {0}>
{
    column = Slice (x, first, second, second)
    flat = ReduceSum <keepdims = 0> (column, second)
    size = Abs (flat)
    nothing = Mul (x, zero)
    work = Slice (x, second, third, second)
    asked = ReduceSum <keepdims = 0> (work)
    BODY
}
"""

OUTPUTS = {"score": "Identity (size)", "residual": "Identity (nothing)", "reconstruction": "Identity (nothing)"}

BROKEN = {
    # Eight rows, regardless of the batch size.
    "few_scores": {"score": "Slice (size, first, few)"},
    "few_residuals": {"residual": "Slice (nothing, first, few)"},
    "few_reconstructions": {"reconstruction": "Slice (nothing, first, few)"},
    # The right number of rows, until a record has work.
    "few_later": {
        "score": "If (lazy) <then_branch = some () => (float[m] cut) { cut = Slice (size, first, few) }, "
        "else_branch = all () => (float[n] whole) { whole = Identity (size) }>"
    },
    "negative": {"score": "Identity (flat)"},
    "not_finite": {"score": "Log (flat)"},
    "residual_not_finite": {"residual": "Log (x)"},
}


def main():
    for name, broken in BROKEN.items():
        lines = ["lazy = Greater (asked, zero)"] if "lazy" in str(broken) else []
        lines += [f"{output} = {made}" for output, made in (OUTPUTS | broken).items()]
        model = onnx.parser.parse_model(GRAPH.replace("BODY", "\n    ".join(lines)))
        # Inferred shapes would reveal some of the faults before the graph runs.
        del model.graph.value_info[:]
        (HERE / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
