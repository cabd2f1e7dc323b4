"""The networks' large matrix products in 8-bit integers: static quantization in ONNX Runtime's QDQ format.

Activations are uint8, one scale a tensor, fixed by the ranges that calibration rows reach: so a row's score does not
depend on its batch-mates. Weights are int8, one scale a channel, of which seven bits are used: with eight, processors
with AVX2 but without VNNI saturate where they add two products in 16 bits, and scores depend on the machine. With seven
the integers are exact everywhere, and rounding the weights for the activations that they meet makes up for the bit.
Only the residual blocks are quantized: the first and last layers are small, and the last one's output is the residual.
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
LEVELS = 64  # of a weight, to each side
DAMPING = 0.01
SHAKES, SIZE = 8, 1e-6  # of the weights: more than processors round differently


class Batches:
    """X float32 [n, F] as ONNX Runtime's calibration wants it."""

    def __init__(self, X):
        self.parts = ({"x": X[i : i + BATCH]} for i in range(0, len(X), BATCH))

    def get_next(self):
        return next(self.parts, None)


def to_int8(model, X):
    """The bytes of a float graph and float32 [n, F] of calibration rows -> (the bytes of the quantized one, facts).

    Raises TrainerError where there is no network.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    graph = onnx.load_from_string(model)
    layers = [node for node in graph.graph.node if node.op_type == "Gemm" and BLOCK in node.input[1]]
    if not layers:
        raise TrainerError("the graph holds no network whose products could be quantized; the recipe `kernel` has none")
    scales = round_weights(graph, layers, X)
    channels = {"axis": 0, "quant_type": quantization.QuantType.QInt8, "zero_point": 0}
    add_pre_process_metadata(graph)  # an exported graph has nothing left to fold; without this it warns
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
        raise TrainerError("the quantized graph has others than ONNX's operators; this onnxruntime is not supported")
    onnx.checker.check_model(graph, full_check=True)
    facts = {
        "weights": "int8, 7 bits used, a scale a channel",
        "activations": "uint8, a scale a tensor",
        "layers": [name.removesuffix(".weight") for name in scales],
    }
    return graph.SerializeToString(deterministic=True), facts


def round_weights(graph, layers, X):
    """Rounds the layers' weights in place, for the activations that rows X bring -> {weight: scales [channels]}."""
    watched = onnx.ModelProto()
    watched.CopyFrom(graph)
    inputs = list(dict.fromkeys(node.input[0] for node in layers))
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inputs)
    run = session(watched.SerializeToString())
    moments = dict.fromkeys((node.input[1] for node in layers), 0)  # a layer may be asked more than once
    for i in range(0, len(X), BATCH):
        found = dict(zip(inputs, run.run(inputs, {"x": X[i : i + BATCH]}), strict=True))
        for node in layers:
            A = found[node.input[0]].astype(np.float64)
            moments[node.input[1]] = moments[node.input[1]] + A.T @ A
    scales = {}
    for weight in graph.graph.initializer:
        if weight.name in moments:
            rounded, scales[weight.name] = rounded_for(numpy_helper.to_array(weight), moments[weight.name])
            weight.CopyFrom(numpy_helper.from_array(rounded, weight.name))
    return scales


def rounded_for(W, moments):
    """W [out, in] and AᵀA [in, in] of its inputs -> (W on a grid a row, so that A Wᵀ hardly changes; steps [out]).

    What rounding a column does is made up for by the columns that are still to come (GPTQ; Frantar et al. 2023).
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
    """Which rows [n] keep their score to a share `allowed` when the network's weights change in their last digits.

    Another processor rounds as little differently; in rare rows that takes an activation to the next of its levels.
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
