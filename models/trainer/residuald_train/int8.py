"""The networks' large matrix products in 8-bit integers: static quantization in ONNX Runtime's QDQ format.

Activations are uint8 with one scale a tensor, fixed by the ranges that calibration rows reach, so a row's score does not depend
on its batch-mates. Weights are int8 with one scale a channel and seven bits used: with eight, processors with AVX2 but
without VNNI saturate where they add two products in 16 bits, and scores depend on the machine (RESEARCH.md). With seven the
integers are exact everywhere. Only the residual blocks: the first and the last layers are small, and a residual is the last one's output.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from . import TrainerError, __version__
from .served import run_onnx, session

BLOCK, NETWORK = ".blocks.", ".denoiser."  # in the names of weights
BATCH = 256
SHAKES, SIZE = 8, 1e-6  # of the weights: what processors round differently, and more


class Batches:
    """X float32 [n, F] as ONNX Runtime's calibration wants it."""

    def __init__(self, X):
        self.parts = ({"x": X[i : i + BATCH]} for i in range(0, len(X), BATCH))

    def get_next(self):
        return next(self.parts, None)


def layers(model):
    """ModelProto -> the nodes of the residual blocks' linear layers."""
    return [n for n in model.graph.node if n.op_type == "Gemm" and BLOCK in n.input[1]]


def to_int8(model, X):
    """The bytes of a float graph and float32 [n, F] of calibration rows -> (the bytes of the quantized one, facts).

    Raises TrainerError where there is no network.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    graph = onnx.load_from_string(model)
    blocks = layers(graph)
    if not blocks:
        raise TrainerError(
            "the graph holds no network whose products could be quantized (the recipe `kernel` has none)"
        )
    add_pre_process_metadata(graph)  # else a warning: there is nothing left to fold in an exported graph
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantization.quantize_static(
            graph,
            path,
            Batches(X),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            nodes_to_quantize=[node.name for node in blocks],
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        graph = onnx.load(path)
    graph.producer_name, graph.producer_version = "residuald-train", __version__
    del graph.metadata_props[:], graph.graph.value_info[:]
    if [entry.domain for entry in graph.opset_import] != [""]:
        raise TrainerError("the quantized graph is not of ONNX's own operators; this onnxruntime is not supported")
    onnx.checker.check_model(graph, full_check=True)
    facts = {
        "weights": "int8, 7 bits used, a scale a channel",
        "activations": "uint8, a scale a tensor",
        "layers": list(dict.fromkeys(node.input[1].removesuffix(".weight") for node in blocks)),
    }
    return graph.SerializeToString(deterministic=True), facts


def check_batches(model, X):
    """Raises TrainerError unless a row has the same bits in any batch and place. X float32 [n, F]."""
    run, X = session(model), np.resize(X, (1024, X.shape[1]))
    want = run.run(None, {"x": X})
    for batch in (16, 64):
        order = np.random.default_rng(batch).permutation(len(X)).reshape(-1, batch)
        for part in order:
            for got, reference in zip(run.run(None, {"x": X[part]}), want, strict=True):
                if got.tobytes() != reference[part].tobytes():
                    raise TrainerError("a quantized score depends on its batch on this machine; nothing was written")


def steady(model, X, allowed):
    """Which rows keep their score to a share `allowed` when the network's weights are changed in their last digits, bool [n].

    Another processor rounds as little differently; in rare rows that takes an activation over to the next of 256 levels.
    """
    graph, want = onnx.load_from_string(model), run_onnx(session(model), X)[0]
    weights = [(w, numpy_helper.to_array(w)) for w in graph.graph.initializer if NETWORK in w.name]
    weights = [(w, values) for w, values in weights if values.dtype == np.float32]
    keep, rng = np.ones(len(X), bool), np.random.default_rng(0)
    for _ in range(SHAKES):
        for weight, values in weights:
            shaken = values * (1 + SIZE * rng.standard_normal(values.shape))
            weight.CopyFrom(numpy_helper.from_array(shaken.astype(np.float32), weight.name))
        got = run_onnx(session(graph.SerializeToString()), X)[0]
        keep &= np.abs(got - want) <= allowed * np.abs(want)
    return keep
