"""Stores weights as float16: half the size. ONNX Runtime widens them when it loads a graph, and computes in float32."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LEAST = 256  # values of a tensor that is worth it


def round_weights(module):
    """Rounds the parameters of a torch module to float16 in place, so that it computes what `halved` stores."""
    for value in module.parameters():
        if value.numel() >= LEAST:
            value.data = value.data.half().float()


def halved(graph):
    """The bytes of an ONNX graph -> those of one with its large float32 weights as float16, each with a Cast."""
    model = onnx.load_from_string(graph)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and value.size >= LEAST:
            name, short = tensor.name, f"{tensor.name}_half"
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float16), short))
            model.graph.node.insert(0, helper.make_node("Cast", [short], [name], to=TensorProto.FLOAT))
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)
