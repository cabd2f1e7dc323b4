"""Turns a foreign model of table rows into a scorer graph: x -> score, residual, reconstruction.

Four kinds of model are known, by their inputs and outputs:

- `score`: one output [N] or [N, 1], as from scikit-learn and PyOD through skl2onnx.
- `reconstruction`: an output of the input's shape, as from an autoencoder. The score is the mean squared error.
- `denoiser`: inputs `sample` and `timestep`, as in diffusers. The score is the mean squared error of the predicted
  noise, at a few timesteps and with the same noise for every record.
"""

from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto

from .. import TrainerError
from .columns import Encoder, check_separate, separate_inputs, sliced
from .graph import Builder
from .model import FLOATS

KINDS = "score", "reconstruction", "denoiser"
SCORES = "pred_score", "anomaly_score", "score_samples", "scores", "decision_function"  # the first of these is chosen
OCCLUDED = 64  # most features whose reasons are found by occlusion unless asked for


@dataclass(frozen=True)
class Plan:
    """What the graph does with the model's output. `higher`: whether a higher output is more anomalous."""

    kind: str
    output: str
    higher: bool = True
    lowest: float = 0.0  # subtracted from an output that can be negative; smaller ones count as equal
    reasons: str = "occlusion"  # or deviation; only for a score
    passes_missing: bool = False  # whether the model itself fills in missing values
    alphas: dict = field(default_factory=dict)  # for a denoiser: {timestep: share of the signal that is left}
    predicts: str = "epsilon"
    error: str = "mean square"  # of a reconstruction; or distance, the root of the sum of squares


@dataclass(frozen=True)
class Typical:
    """What normal rows are like: a value and a spread of each feature, float32 [F]."""

    value: np.ndarray
    spread: np.ndarray


def typical(features, X):
    """X float32 [n, F], NaN = missing -> Typical: medians, and for categories and booleans the most frequent value."""
    value, spread = np.zeros(len(features), np.float32), np.ones(len(features), np.float32)
    for j, feature in enumerate(features):
        seen = X[:, j][~np.isnan(X[:, j])]
        if not len(seen):
            continue
        if feature.type in ("categorical", "bool"):
            values, counts = np.unique(seen, return_counts=True)
            value[j] = values[counts.argmax()]
        else:
            value[j] = np.median(seen)
            spread[j] = max(np.std(seen, dtype=np.float64), 1e-6 * abs(float(value[j])), 1e-12)
    return Typical(value, spread)


def takes_columns(model):
    """Whether the model has one input for each feature, rather than one input of rows."""
    if any(value.name == "timestep" for value in model.inputs):
        return False
    return len(model.inputs) > 1 or model.inputs[0].element == TensorProto.STRING


def kind_of(model, width, kind, output, where):
    """What a model is, and its output to use -> (kind, output). Raises TrainerError if nothing fits, or too much.

    `width`: the columns of its rows; None if it has an input for each feature. `kind`, `output`: the user's choice.
    """
    outputs = "; ".join(map(str, model.outputs))
    if output is not None and output not in [value.name for value in model.outputs]:
        raise TrainerError(f"{where} has no output `{output}`; it has {outputs}")
    fits = fitting(model, width, output)
    named = [name for name in SCORES if name in fits["score"]]
    if kind is None and any(value.name == "timestep" for value in model.inputs):
        kind = "denoiser"
    if kind is None:
        scores = named or (fits["score"] if not fits["reconstruction"] else [])
        kind = "score" if scores else "reconstruction" if not fits["score"] else None
    found = named[:1] or fits["score"] if kind == "score" else fits["reconstruction"]
    if kind is None or len(found) > 1:
        both = " and ".join(f"`{name}`" for name in (found if kind else [*fits["score"], *fits["reconstruction"]]))
        raise TrainerError(f"{where}: {both} could be meant; choose with --kind and --output. It has {outputs}")
    if not found:
        wanted = {"score": "a score, float [N] or [N, 1]"}.get(kind, f"float [N, {width}] like its input")
        also = "a score, float [N] or [N, 1], or " if kind == "reconstruction" else ""
        raise TrainerError(f"{where}: no output is {also}{wanted}. It has {outputs}")
    return kind, found[0]


def fitting(model, width, output=None):
    """The outputs that can be a score, and those that have the input's shape: {kind: names}."""
    floats = [v for v in model.outputs if v.element in FLOATS and output in (None, v.name)]
    shaped = {(None, width), (None, None)} if width and width > 1 else set()
    same = [value.name for value in floats if value.shape in shaped]
    scores = [value.name for value in floats if value.shape in ((None,), (None, 1)) and value.name not in same]
    return {"score": scores, "reconstruction": same}


def check_row(model, encoder, where):
    """Raises TrainerError unless the model has one input of rows with as many columns as the encoder gives."""
    names = sorted(value.name for value in model.inputs)
    if len(names) > 1 and names != ["sample", "timestep"]:
        raise TrainerError(f"{where}: the inputs of a denoiser are `sample` and `timestep`, not {', '.join(names)}")
    row = next(value for value in model.inputs if len(names) == 1 or value.name == "sample")
    if len(row.shape) != 2 or row.element not in FLOATS:
        raise TrainerError(f"{where}: input {row} is not one of table rows, which is float [N, {encoder.width}]")
    if row.shape[1] is None:
        raise TrainerError(
            f"{where}: input {row} has a dynamic number of columns; export it with a fixed one, "
            f"[None, {encoder.width}] for this schema"
        )
    if row.shape[1] != encoder.width:
        raise TrainerError(
            f"{where}: input {row} has {row.shape[1]} columns, but these features give {encoder.width}: "
            f"{', '.join(f'{c.feature} ({c.width})' for c in encoder.columns[:40])}. Name the model's columns "
            "in its order with --columns"
        )


class Scorer:
    """Builds the graph of a model of table rows. `columns`: one Column for each of `features`, in the same order."""

    def __init__(self, model, features, columns, plan, typical, where="the model"):
        self.model, self.features, self.plan, self.typical = model, features, plan, typical
        self.separate = takes_columns(model)
        self.encoder = None if self.separate else Encoder(columns, features)
        if self.separate:
            check_separate(model, features, where)
        else:
            check_row(model, self.encoder, where)

    def onnx(self):
        """The bytes of the scorer graph."""
        builder, count = Builder(self.model.opsets, max(self.model.ir_version, 8)), len(self.features)
        filled = self.filled(builder)
        build = {"score": self.scored, "reconstruction": self.reconstructed, "denoiser": self.denoised}
        score, residual, expected = build[self.plan.kind](builder, filled)
        missing = builder.add("IsNaN", "x")
        builder.add("Where", missing, builder.constant(np.float32(0)), residual, output="residual")
        builder.add("Identity", expected, output="reconstruction")
        builder.add("Reshape", score, builder.constant(np.array([-1], np.int64)), output="score")
        rows = ["batch", count]
        outputs = [("score", TensorProto.FLOAT, ["batch"])]
        outputs += [(name, TensorProto.FLOAT, rows) for name in ("residual", "reconstruction")]
        return builder.model([("x", TensorProto.FLOAT, rows)], outputs)

    def raw(self):
        """The bytes of a graph x -> raw [N]: the score as the model gives it."""
        builder = Builder(self.model.opsets, max(self.model.ir_version, 8))
        found = self.output(builder, self.call(builder, self.filled(builder))[0])
        builder.add("Reshape", found, builder.constant(np.array([-1], np.int64)), output="raw")
        rows = ["batch", len(self.features)]
        return builder.model([("x", TensorProto.FLOAT, rows)], [("raw", TensorProto.FLOAT, ["batch"])])

    def filled(self, builder):
        """x with missing values replaced by typical ones, unless the model does it itself."""
        if self.plan.passes_missing or all(feature.missing == "reject" for feature in self.features):
            return "x"
        return builder.add("Where", builder.add("IsNaN", "x"), builder.constant(self.typical.value), "x")

    def call(self, builder, x):
        """x [M, F] -> (the model's outputs, its input rows [M, D] or None)."""
        if self.separate:
            return self.model.call(builder, separate_inputs(builder, x, self.model, self.features)), None
        z = self.encoder.forward(builder, x)
        (value,) = self.model.inputs
        return self.model.call(builder, {value.name: z if value.element == 1 else builder.cast(z, value.element)}), z

    def scored(self, builder, x):
        """A model with a score. Reasons: by how much the score falls when a feature gets its typical value."""
        count = len(self.features)
        if self.plan.reasons == "deviation":
            score = self.anomalous(builder, self.call(builder, x)[0])
            away = builder.add("Sub", x, builder.constant(self.typical.value))
            away = builder.add("Div", away, builder.constant(self.typical.spread))
            residual = builder.add("Mul", away, away)
            residual = builder.add("Min", residual, builder.constant(np.float32(1e12)))
        else:
            hidden = np.concatenate([np.zeros((1, count), bool), np.eye(count, dtype=bool)])[None]
            rows = builder.add("Unsqueeze", x, builder.constant(np.array([1], np.int64)))
            rows = builder.add("Where", builder.constant(hidden), builder.constant(self.typical.value), rows)
            rows = builder.add("Reshape", rows, builder.constant(np.array([-1, count], np.int64)))
            found = self.anomalous(builder, self.call(builder, rows)[0])
            found = builder.add("Reshape", found, builder.constant(np.array([-1, count + 1], np.int64)))
            score = sliced(builder, found, 0, 1)
            fall = builder.add("Sub", score, sliced(builder, found, 1, count + 1))
            residual = builder.add("Max", fall, builder.constant(np.float32(0)))
        # A missing value has no expected one to compare with; the typical value is as good as any.
        expected = builder.add("Where", builder.add("IsNaN", "x"), builder.constant(self.typical.value), "x")
        expected = builder.add("Sub", expected, expected)
        return score, residual, builder.add("Add", expected, builder.constant(self.typical.value))

    def anomalous(self, builder, outputs):
        """The model's outputs -> its score, higher for anomalies and never negative, [M, 1] or [M]."""
        score = self.output(builder, outputs)
        if not self.plan.higher:
            score = builder.add("Neg", score)
        if self.plan.lowest:
            score = builder.add("Sub", score, builder.constant(np.float32(self.plan.lowest)))
        return builder.add("Max", score, builder.constant(np.float32(0)))

    def reconstructed(self, builder, x):
        """A model that returns its input: the score is the mean squared error over the model's own columns."""
        outputs, z = self.call(builder, x)
        found = self.output(builder, outputs)
        return *self.mean_square(builder, builder.add("Sub", z, found)), self.encoder.inverse(builder, found)

    def mean_square(self, builder, *errors):
        """Errors [M, D] -> the score [M, 1] and the part of each feature in the squares [M, F]."""
        square = [builder.add("Mul", error, error) for error in errors]
        total = square[0] if len(square) == 1 else builder.add("Sum", *square)
        distance = self.plan.error == "distance"
        share = 1 if distance else 1 / (len(errors) * self.encoder.width)
        part = total if distance else builder.add("Mul", total, builder.constant(np.float32(share)))
        score = builder.add("MatMul", part, builder.constant(np.ones((self.encoder.width, 1), np.float32)))
        return builder.add("Sqrt", score) if distance else score, self.encoder.per_feature(builder, part)

    def denoised(self, builder, x):
        """A denoiser: the score is the mean squared error of the noise that it predicts."""
        z, errors, clean = self.encoder.forward(builder, x), [], None
        noise = fixed_noise(self.plan.alphas, self.encoder.width)
        for (timestep, alpha), constant in zip(self.plan.alphas.items(), noise, strict=True):
            added = constant[None] * np.float32((1 - alpha) ** 0.5)
            sample = builder.add("Mul", z, builder.constant(np.float32(alpha**0.5)))
            sample = builder.add("Add", sample, builder.constant(added))
            found = denoise(builder, self.model, sample, timestep, self.plan.output)
            predicted, restored = parts(builder, sample, found, alpha, self.plan.predicts)
            errors.append(builder.add("Sub", predicted, builder.constant(constant[None])))
            clean = clean or restored  # of the lowest timestep, whose estimate is the closest
        return *self.mean_square(builder, *errors), self.encoder.inverse(builder, clean)

    def output(self, builder, outputs):
        """The output that the plan uses, as float32."""
        element = next(value.element for value in self.model.outputs if value.name == self.plan.output)
        found = outputs[self.plan.output]
        return found if element == TensorProto.FLOAT else builder.cast(found)


def fixed_noise(alphas, *shape):
    """The noise of each timestep, float32 [T, ...]: the same for every record and every build."""
    return np.random.default_rng(0).standard_normal((len(alphas), *shape)).astype(np.float32)


def denoise(builder, model, sample, timestep, output):
    """Adds a call of a diffusers-style model -> its output. `timestep` is an integer."""
    value = next(value for value in model.inputs if value.name == "timestep")
    dtype = np.float32 if value.element in FLOATS else np.int64
    constant = builder.constant(np.full(() if value.shape == () else 1, timestep, dtype))
    if value.shape == (None,):  # one for each row
        rows = sliced(builder, builder.add("Shape", sample), 0, 1, axis=0)
        constant = builder.add("Expand", constant, rows)
    if value.element not in (TensorProto.FLOAT, TensorProto.INT64):
        constant = builder.cast(constant, value.element)
    found = model.call(builder, {"sample": sample, "timestep": constant})[output]
    element = next(value.element for value in model.outputs if value.name == output)
    return found if element == TensorProto.FLOAT else builder.cast(found)


def parts(builder, sample, found, alpha, predicts):
    """A denoiser's output -> (the predicted noise, the predicted clean row), as in DDIMScheduler.step of diffusers."""
    a, b = np.float32(alpha**0.5), np.float32((1 - alpha) ** 0.5)

    def weighted(u, x, v, y):
        left = builder.add("Mul", x, builder.constant(np.float32(u)))
        return builder.add("Add", left, builder.add("Mul", y, builder.constant(np.float32(v))))

    if predicts == "epsilon":
        return found, weighted(1 / a, sample, -b / a, found)
    if predicts == "v_prediction":
        return weighted(b, sample, a, found), weighted(a, sample, -b, found)
    return weighted(1 / b, sample, -a / b, found), found
