"""Quantizes the networks' large matrix products to 8-bit integers: static quantization in ONNX Runtime's QDQ format.

Activations are uint8 with one scale for each tensor. The ranges seen on calibration rows fix the scales, so a row's
score does not depend on the rest of its batch. Weights are int8 with one scale for each channel and use only 7 of the 8
bits. With 8, processors with AVX2 but without VNNI saturate when they add two products in 16 bits, and scores would
depend on the machine. With 7, the integer arithmetic is exact everywhere. Rounding the weights with regard to typical
activations (GPTQ) makes up for the lost bit. Only the residual blocks are quantized: the first and last layers are
small, and the last one's output is the residual itself.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from .. import TrainerError, __version__
from .served import run_onnx, session

BLOCK, NETWORK = ".blocks.", ".denoiser."  # substrings of the weights' names
BATCH = 256
LEVELS = 64  # quantization steps of a weight on each side of zero
DAMPING = 0.01  # share of the Hessian's mean diagonal that is added to the diagonal (GPTQ)
# Number of perturbations that test a score's robustness, and their relative size, larger than rounding differences.
TRIALS, WEIGHT_NOISE = 8, 1e-6


class Batches:
    """Serves X float32 [n, F] in batches, with the interface of ONNX Runtime's CalibrationDataReader."""

    def __init__(self, X):
        self.parts = ({"x": X[i : i + BATCH]} for i in range(0, len(X), BATCH))

    def get_next(self):
        return next(self.parts, None)


def to_int8(model, X):
    """Bytes of a float32 graph, X float32 [n, F] calibration rows -> (bytes of the quantized graph, facts about it).

    Raises TrainerError if the graph has no network.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    graph = onnx.load_from_string(model)
    layers = [node for node in graph.graph.node if node.op_type == "Gemm" and BLOCK in node.input[1]]
    if not layers:
        raise TrainerError("the bundle has no network to quantize; bundles of the recipe `kernel` have none")
    scales = round_weights(graph, layers, X)
    channels = {"axis": 0, "quant_type": quantization.QuantType.QInt8, "zero_point": 0}
    add_pre_process_metadata(graph)  # suppresses a warning; an exported graph needs no pre-processing
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
            nodes_to_quantize=[node.name for node in layers],
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options={
                "OpTypesToExcludeOutputQuantization": ["Gemm"],
                "TensorQuantOverrides": {w: [channels | {"scale": s} for s in scale] for w, scale in scales.items()},
            },
        )
        graph = onnx.load(path)
    graph.producer_name, graph.producer_version = "residuald-train", __version__
    del graph.metadata_props[:], graph.graph.value_info[:]
    if [entry.domain for entry in graph.opset_import] != [""]:
        raise TrainerError(
            "the quantized graph has operators outside the ONNX standard; install the onnxruntime of requirements.lock"
        )
    onnx.checker.check_model(graph, full_check=True)
    facts = {
        "weights": "int8, 7 bits used, a scale a channel",
        "activations": "uint8, a scale a tensor",
        "layers": [name.removesuffix(".weight") for name in scales],
    }
    return graph.SerializeToString(deterministic=True), facts


def round_weights(graph, layers, X):
    """Rounds the layers' weights in place, given the activations on rows X [n, F] -> {weight: scales [channels]}."""
    watched = onnx.ModelProto()
    watched.CopyFrom(graph)
    inputs = list(dict.fromkeys(node.input[0] for node in layers))
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inputs)
    run = session(watched.SerializeToString())
    moments = dict.fromkeys((node.input[1] for node in layers), 0)  # a layer may be used more than once
    for i in range(0, len(X), BATCH):
        found = dict(zip(inputs, run.run(inputs, {"x": X[i : i + BATCH]}), strict=True))
        for node in layers:
            A = found[node.input[0]].astype(np.float64)
            moments[node.input[1]] = moments[node.input[1]] + A.T @ A
    scales = {}
    for weight in graph.graph.initializer:
        if weight.name in moments:
            rounded, scales[weight.name] = gptq_round(numpy_helper.to_array(weight), moments[weight.name])
            weight.CopyFrom(numpy_helper.from_array(rounded, weight.name))
    return scales


def gptq_round(W, moments):
    """W [out, in], moments AᵀA [in, in] of its inputs A -> (W with each row rounded to a grid, grid steps [out]).

    Minimises the change of A Wᵀ by letting later columns compensate for the rounding error of earlier ones (GPTQ;
    Frantar et al. 2023).
    """
    order = np.argsort(-moments.diagonal())
    H = moments[np.ix_(order, order)]
    H = H + max(DAMPING * H.diagonal().mean(), 1e-12) * np.eye(len(H))
    upper = np.linalg.cholesky(np.linalg.inv(H)).T
    W, rounded = W[:, order].astype(np.float64), np.empty(W.shape)
    most = np.abs(W).max(1)
    step = np.where(most > 0, most, 1).astype(np.float32) / LEVELS
    for i in range(W.shape[1]):
        rounded[:, i] = np.clip(np.rint(W[:, i] / step), -LEVELS, LEVELS) * step
        W[:, i + 1 :] -= np.outer((W[:, i] - rounded[:, i]) / upper[i, i], upper[i, i + 1 :])
    return rounded[:, np.argsort(order)].astype(np.float32), step


def check_batches(model, X):
    """Raises TrainerError unless a row of X float32 [n, F] has bit-identical outputs in every batch and position."""
    run, X = session(model), np.resize(X, (1024, X.shape[1]))
    want = run.run(None, {"x": X})
    for batch in (16, 64):
        order = np.random.default_rng(batch).permutation(len(X)).reshape(-1, batch)
        for part in order:
            for got, reference in zip(run.run(None, {"x": X[part]}), want, strict=True):
                if got.tobytes() != reference[part].tobytes():
                    raise TrainerError("quantized scores depend on the batch on this machine, so nothing was written")


def robust_rows(model, X, allowed):
    """Marks the rows of X whose score changes by at most the share `allowed` when weights are perturbed -> bool [n].

    The perturbation is about as large as rounding differences between processors. In a few rows it moves an activation
    to the next quantization level.
    """
    graph, want = onnx.load_from_string(model), run_onnx(session(model), X)[0]
    weights = [(w, numpy_helper.to_array(w)) for w in graph.graph.initializer if NETWORK in w.name]
    weights = [(w, values) for w, values in weights if values.dtype == np.float32]
    keep, rng = np.ones(len(X), bool), np.random.default_rng(0)
    for _ in range(TRIALS):
        for weight, values in weights:
            changed = values * (1 + WEIGHT_NOISE * rng.standard_normal(values.shape))
            weight.CopyFrom(numpy_helper.from_array(changed.astype(np.float32), weight.name))
        got = run_onnx(session(graph.SerializeToString()), X)[0]
        keep &= np.abs(got - want) <= allowed * np.abs(want)
    return keep
