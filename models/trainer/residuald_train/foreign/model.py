"""Reads a foreign ONNX model, and refuses with a reason what the daemon could not serve. Does not import torch."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnx import TensorProto, compose, helper

from .. import TrainerError
from ..bundle.served import session
from .graph import ML

LARGEST = 1 << 30  # bytes; the daemon's limit for a graph
OLDEST_OPSET = 7  # that ONNX Runtime supports
FIRST_OPSET, LIFTED_OPSET = 13, 17  # older than the first, a model is lifted: Squeeze and Unsqueeze had other inputs
DOMAINS = {"", "ai.onnx", ML, "com.microsoft"}  # whose operators ONNX Runtime has itself
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16}
INTEGERS = {TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL}


@dataclass(frozen=True)
class Tensor:
    """An input or output: its element type as in TensorProto, and its shape, None where a dimension is dynamic."""

    name: str
    element: int
    shape: tuple[int | None, ...]

    def __str__(self):
        sides = ", ".join("?" if side is None else str(side) for side in self.shape)
        return f"`{self.name}` {helper.tensor_dtype_to_string(self.element).split('.')[-1].lower()} [{sides}]"


@dataclass
class ForeignModel:
    """A checked model. All names inside its graph start with `model/`; inputs and outputs keep theirs."""

    graph: onnx.GraphProto
    opsets: dict[str, int]
    ir_version: int
    inputs: list[Tensor]
    outputs: list[Tensor]
    producer: str
    sha256: str
    one_by_one: bool = False  # run a row at a time
    notes: list[str] = field(default_factory=list)

    def call(self, builder, feeds):
        """Adds a run of the model to a graph -> {output: tensor}. `feeds`: {input: tensor}, with a batch axis first."""
        feeds = {f"model/{name}": tensor for name, tensor in feeds.items()}
        if self.one_by_one:
            rows = {f"model/{t.name}": t.element for t in self.inputs if t.shape and t.shape[0] is None}
            found = builder.one_by_one(
                self.graph, feeds, rows, {f"model/{t.name}": t.element for t in self.outputs if t.shape}
            )
        else:
            found = builder.inline(self.graph, feeds)
        return {name.removeprefix("model/"): tensor for name, tensor in found.items()}


def load(source, embed_data=False):
    """A path or the bytes of an ONNX model -> ForeignModel. Raises TrainerError that says what to change.

    `embed_data`: put external data, which is in files beside the model, into it.
    """
    where, content = (source, None) if not isinstance(source, bytes) else ("the model", source)
    if content is None:
        try:
            with open(source, "rb") as stream:
                content = stream.read(LARGEST + 1)
        except OSError as error:
            raise TrainerError(f"cannot read {source}: {error.strerror}") from None
    if len(content) > LARGEST:
        raise TrainerError(f"{where} has more than 1 GiB, the daemon's limit for a graph")
    if content[4:8] == b"ORTM":
        raise TrainerError(f"{where} is in ONNX Runtime's own format; export it as ONNX")
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise TrainerError(f"{where} is not an ONNX model: {first_line(error)}") from None
    if not model.graph.node or not model.graph.input or not model.graph.output:
        raise TrainerError(f"{where} is not an ONNX model with inputs, operators and outputs")
    sha256 = hashlib.sha256(content).hexdigest()
    if embed_data and not isinstance(source, bytes) and external(model.graph):
        model = embedded(source)
    check_content(model, where)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
        check_content(model, where)
    run = accepted(model, where)
    model, note = lifted(model, run, where)
    found = described(model, run, sha256, where)
    found.notes.extend(note)
    return found


def embedded(path):
    """The model in a file, with its external data. Raises TrainerError if that cannot be read."""
    try:
        model = onnx.load(path)
    except Exception as error:
        raise TrainerError(f"{path}: its external data cannot be read: {first_line(error)}") from None
    if model.ByteSize() > LARGEST:
        raise TrainerError(f"{path} with its external data has more than 1 GiB, the daemon's limit for a graph")
    return model


def accepted(model, where):
    """An ONNX Runtime session of a model. Raises TrainerError if it refuses the model."""
    try:
        return session(model.SerializeToString())
    except Exception as error:
        raise TrainerError(refusal(model, where, error)) from None


def lifted(model, run, where):
    """A model of an old opset in a newer one, if it then gives the same outputs -> (model, notes)."""
    opset = main_opset(model)
    if opset >= FIRST_OPSET:
        return model, []
    try:
        newer = onnx.version_converter.convert_version(model, LIFTED_OPSET)
        same = outputs_agree(run, accepted(newer, where))
    except Exception:
        same = False
    if not same:
        raise TrainerError(
            f"{where}: opset {opset} is too old, and the model cannot be converted; export it with opset "
            f"{FIRST_OPSET} or newer"
        )
    return newer, [f"the model has opset {opset}; it was converted to opset {LIFTED_OPSET} and gives the same outputs"]


def outputs_agree(one, other):
    """Whether two sessions give the same bits for 16 random rows, or a fixed batch. Only for inputs of numbers."""
    rng, feeds = np.random.default_rng(0), {}
    for value in one.get_inputs():
        sides = [side if isinstance(side, int) else 16 if i == 0 else 8 for i, side in enumerate(value.shape)]
        dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64}[value.type]
        feeds[value.name] = rng.standard_normal(sides).astype(dtype)
    pairs = zip(one.run(None, feeds), other.run(None, feeds), strict=True)
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


def main_opset(model):
    """The opset of the default operators."""
    versions = {o.domain: o.version for o in model.opset_import}
    return versions.get("", versions.get("ai.onnx", FIRST_OPSET))


def described(model, run, sha256, where):
    """Checks the tensors of a model that ONNX Runtime accepts -> ForeignModel. `run` is its session."""
    graph, notes = model.graph, []
    constants = {initializer.name for initializer in graph.initializer}
    for value in [value for value in graph.input if value.name in constants]:
        graph.input.remove(value)  # up to IR version 3, constants were listed as inputs, too
    inputs = [tensor(value) for value in graph.input]
    outputs = [tensor(value, shape) for value, shape in zip(graph.output, output_shapes(run), strict=True)]
    one_by_one = False
    for value in inputs:
        if value.shape and value.shape[0] not in (None, 1):
            raise TrainerError(
                f"{where}: input {value} has a fixed batch of {value.shape[0]}; export it with a dynamic first side"
            )
    rows = [value for value in inputs if len(value.shape) > 1]
    if any(value.shape[0] == 1 for value in rows):
        one_by_one = True
        inputs = [Tensor(t.name, t.element, (None, *t.shape[1:])) if t in rows else t for t in inputs]
        outputs = [Tensor(t.name, t.element, (None, *t.shape[1:])) if t.shape[:1] == (1,) else t for t in outputs]
        notes.append(
            "the model has a fixed batch of 1, so it runs on one record at a time; an export with a dynamic first "
            "dimension would be faster"
        )
    del graph.value_info[:]  # shapes of another batch
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = compose.add_prefix_graph(graph, "model/")
    opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return ForeignModel(graph, opsets, model.ir_version, inputs, outputs, producer, sha256, one_by_one, notes)


def check_content(model, where):
    """Raises TrainerError for external data, custom and random operators, and an old opset."""
    if found := external(model.graph):
        raise TrainerError(
            f"{where}: tensor `{found[:80]}` keeps its data in another file, which no hash would cover; pass "
            "--embed-data to put it into the bundle's graph"
        )
    own = {(function.domain, function.name) for function in model.functions}
    for node in nodes(model.graph):
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
            raise TrainerError(
                f"{where}: operator {node.domain}:{node.op_type} is not one of ONNX Runtime's own, and the daemon "
                "loads no libraries of custom operators; export the model with standard operators"
            )
        random = node.op_type in RANDOM or (node.op_type == "Dropout" and trains(node, model.graph))
        if random and node.domain in ("", "ai.onnx"):
            raise TrainerError(
                f"{where}: operator {node.op_type} is random, but a record must always get the same score; export the "
                "model in evaluation mode, or make its noise a constant"
            )
    if (opset := main_opset(model)) < OLDEST_OPSET:
        raise TrainerError(f"{where}: opset {opset} is too old; export it with opset {FIRST_OPSET} or newer")


def refusal(model, where, error):
    """The message for a model that ONNX Runtime refuses."""
    versions = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)
    hint = ""
    if "opset" in str(error).lower() or "ir version" in str(error).lower():
        hint = f" The model has opset {versions} and IR version {model.ir_version}: export it with an older opset."
    return f"{where}: ONNX Runtime {onnxruntime.__version__} refuses it: {first_line(error)}.{hint}"


def nodes(graph):
    """All nodes of a graph and of the graphs inside them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from nodes(inner)


def external(graph):
    """The name of a tensor whose data is outside the file, or None."""
    tensors = list(graph.initializer)
    for sparse in graph.sparse_initializer:
        tensors += [sparse.values, sparse.indices]
    for node in graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            for inner in [attribute.g, *attribute.graphs]:
                if found := external(inner):
                    return found
    return next(
        (t.name or "(unnamed)" for t in tensors if t.data_location == TensorProto.EXTERNAL or t.external_data), None
    )


def trains(node, graph):
    """Whether a Dropout node may be in training mode, in which it is random."""
    if len(node.input) < 3 or not node.input[2]:
        return False
    values = [onnx.numpy_helper.to_array(i) for i in graph.initializer if i.name == node.input[2]]
    return not values or bool(np.any(values[0]))


def tensor(value, shape=None):
    declared = value.type.tensor_type
    sides = declared.shape.dim if declared.HasField("shape") else []
    found = tuple(side.dim_value if side.HasField("dim_value") else None for side in sides)
    return Tensor(value.name, declared.elem_type, found if shape is None else shape)


def output_shapes(run):
    """The outputs' shapes as ONNX Runtime infers them, None where a side is dynamic."""
    return [
        tuple(side if isinstance(side, int) and side > 0 else None for side in output.shape or ())
        for output in run.get_outputs()
    ]


def first_line(error):
    return " ".join(str(error).split())[:300].rstrip(".")
