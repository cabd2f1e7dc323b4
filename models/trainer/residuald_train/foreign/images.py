"""Makes a bundle of a foreign ONNX model of images.

The daemon gives uint8 [N, H, W, C]. The model gets float [N, C, H, W], pixels in 0..1 less `pixel_mean` over
`pixel_std`. A model is one of:

- `anomaly-map`: outputs `anomaly_map` [N, 1, H, W] or [N, H, W], and `pred_score` [N]; Anomalib exports these. Without
  `pred_score` the score is the map's highest value.
- `reconstruction`: an output of the input's shape. Heat is the squared error, the score is its mean over the image.
- `denoiser`: inputs `sample` and `timestep` as in diffusers, pixels in -1..1. Heat is the squared error of the
  predicted noise at a few timesteps, with the same noise for every image.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import TensorProto

from .. import TrainerError
from ..bundle.calibrate import INTERVALS, TAIL, score_distribution
from ..bundle.export import as_json, make_manifest
from ..bundle.golden import golden_images, image_record
from ..console import say
from ..images.data import fingerprint, read_folder
from ..images.pixels import Shape, decode, image_scores, rows, to_rows
from .graph import Builder
from .model import FLOATS
from .proof import check_finite, opened, outputs
from .schedule import schedule
from .tables import denoise, fixed_noise, parts

KINDS = "anomaly-map", "reconstruction", "denoiser"
MIN_IMAGES = 16
RELATIVE, ABSOLUTE = 1e-4, 1e-6  # tolerance of golden scores; deep networks round much
REPEATED = 4  # images that are scored twice


@dataclass(frozen=True)
class Plan:
    """What the graph does with the model's outputs."""

    kind: str
    score: str | None  # the output to use; None: the highest value of the map
    heat: str | None
    mean: np.ndarray  # per channel, in 0..1
    std: np.ndarray
    alphas: dict = field(default_factory=dict)
    predicts: str = "epsilon"


def bundle(model, data, settings, where, source=None):
    """A model of images and a folder of normal ones -> ({name: bytes} of the bundle, the lines of a summary)."""
    shape = shape_of(model, settings, where)
    plan, lines = planned(model, shape, settings, where)
    folder, *more = data if isinstance(data, list | tuple) else [data]
    if more:
        raise TrainerError("--data must be one folder of normal images")
    good, _ = read_folder(Path(folder), getattr(source, "normal", None))
    if len(good) < MIN_IMAGES:
        raise TrainerError(f"--data has {len(good)} normal images; thresholds need at least {MIN_IMAGES}")
    x, owner = to_rows(good, shape)
    graph = onnx_of(model, shape, plan)
    run = opened(graph, where)
    found = outputs(run, x, 1)
    check_finite(x, found, "images")
    if any(a.tobytes() != b[:REPEATED].tobytes() for a, b in zip(outputs(run, x[:REPEATED], 1), found, strict=True)):
        raise TrainerError(f"{where}: the same image gets another score when it is scored again")
    score = image_scores(found[0], owner)
    files = {
        "model.onnx": graph,
        "calibration.json": as_json(score_distribution(score, INTERVALS, TAIL)),
        "golden.ndjson": golden_of(run, shape, x, settings.seed),
    }
    training = {"seed": settings.seed, "held_out_rows": len(good), "data": fingerprint(good)}
    facts = {"name": settings.name, "version": settings.version, "training": training}
    manifest = make_manifest(files, facts, shape.manifest(), facts_of(model, plan), (RELATIVE, ABSOLUTE))
    lines.append(f"calibrated on {len(good)} normal images; the model must not have been trained on them")
    if settings.false_alarm_rate * (len(good) + 1) < 1:
        lines.append(f"{len(good)} images support false-alarm rates down to {1 / (len(good) + 1):.2g}")
    return files | {"manifest.json": manifest}, lines


def shape_of(model, settings, where):
    """The images that the model takes -> Shape. Raises TrainerError for dynamic sides without --size."""
    value = next(value for value in model.inputs if len(value.shape) == 4)
    if len(model.inputs) > 1 and sorted(v.name for v in model.inputs) != ["sample", "timestep"]:
        raise TrainerError(
            f"{where} has {len(model.inputs)} inputs; a model of images has one, or `sample` and `timestep`"
        )
    _, channels, height, width = value.shape
    if settings.size:
        height, width = height or settings.size[0], width or settings.size[1]
        if (height, width) != tuple(settings.size):
            raise TrainerError(f"--size: input {value} takes images of {height}x{width} only")
    if channels not in (1, 3) or value.element not in FLOATS:
        raise TrainerError(f"{where}: input {value} must be float [N, C, H, W] with 1 or 3 channels")
    if not height or not width:
        raise TrainerError(
            f"{where}: input {value} has dynamic sides; pass the size of its training images with --size"
        )
    return Shape(height, width, channels)


def planned(model, shape, settings, where):
    """Chooses what to do with the model's outputs -> (Plan, lines that say so)."""
    maps = [v for v in model.outputs if v.element in FLOATS and is_map(v.shape)]
    scores = [v.name for v in model.outputs if v.element in FLOATS and v.shape in ((None,), (None, 1))]
    same = [v.name for v in model.outputs if v.element in FLOATS and is_image(v.shape, shape)]
    named = [v.name for v in maps if v.name == "anomaly_map"]
    kind = settings.kind or (
        "denoiser" if len(model.inputs) > 1 else "anomaly-map" if named or not same else "reconstruction"
    )
    mean, std = (np.array(v, np.float32) for v in (settings.pixel_mean or (0,), settings.pixel_std or (1,)))
    if kind not in KINDS:
        raise TrainerError(f"--kind {kind}: a model of images is one of {', '.join(KINDS)}")
    if len(mean) not in (1, shape.channels) or len(std) not in (1, shape.channels) or not (std > 0).all():
        raise TrainerError(f"--pixel-mean and --pixel-std need {shape.channels} values, the latter above 0")
    outputs = "; ".join(map(str, model.outputs))
    lines = [f"model: {model.producer or 'unknown producer'}, read as {kind}; images of {shape.height}x{shape.width}"]
    if kind != "anomaly-map":
        output = settings.output or next(iter(same), None)
        if output not in same:
            raise TrainerError(f"{where}: no output is an image like the input. It has {outputs}")
        if kind == "reconstruction":
            return Plan(kind, None, output, mean, std), lines
        alphas, predicts = schedule(settings.scheduler, settings.timesteps)
        lines.append(f"denoiser: predicts {predicts}, at timesteps {', '.join(map(str, alphas))}")
        return Plan(kind, None, output, np.float32([0.5]), np.float32([0.5]), alphas, predicts), lines
    heat = next(iter(named), next((v.name for v in maps), None))
    score = settings.output or ("pred_score" if "pred_score" in scores else next(iter(scores), None))
    if score is None and heat is None:
        raise TrainerError(f"{where}: no output is a score [N] or a map [N, 1, H, W]. It has {outputs}")
    lines.append(f"score: {f'`{score}`' if score else f'the highest value of `{heat}`'}")
    lines.append(
        f"heat: `{heat}`" if heat else "heat: none, because the model has no map; verdicts will have no regions"
    )
    lines.append("reconstruction: none, because the model makes no image; verdicts show the image itself")
    return Plan(kind, score, heat, mean, std), lines


def is_map(shape):
    return len(shape) == 3 or (len(shape) == 4 and shape[1] == 1)


def is_image(found, shape):
    return len(found) == 4 and all(
        a in (None, b) for a, b in zip(found[1:], (shape.channels, shape.height, shape.width), strict=True)
    )


def onnx_of(model, shape, plan):
    """The bytes of a scorer graph: x uint8 [N, H, W, C] -> score [N], residual [N, H, W], reconstruction like x."""
    builder = Builder(model.opsets, max(model.ir_version, 8))
    pixels = builder.add("Div", builder.cast("x"), builder.constant(np.float32(255)))
    if plan.mean.any():
        pixels = builder.add("Sub", pixels, builder.constant(plan.mean))
    if (plan.std != 1).any():
        pixels = builder.add("Div", pixels, builder.constant(plan.std))
    image = builder.add("Transpose", pixels, perm=[0, 3, 1, 2])
    made = {"anomaly-map": mapped, "reconstruction": reconstructed, "denoiser": denoised}[plan.kind]
    score, heat, expected = made(builder, model, shape, plan, image)
    sides = builder.constant(np.array([-1, shape.height, shape.width], np.int64))
    builder.add("Reshape", score, builder.constant(np.array([-1], np.int64)), output="score")
    builder.add("Reshape", heat, sides, output="residual")
    if expected is None:
        builder.add("Identity", "x", output="reconstruction")
    else:
        back = builder.add("Transpose", expected, perm=[0, 2, 3, 1])
        back = builder.add("Add", builder.add("Mul", back, builder.constant(plan.std)), builder.constant(plan.mean))
        back = builder.add("Round", builder.add("Mul", back, builder.constant(np.float32(255))))
        back = builder.add("Clip", back, *(builder.constant(np.float32(v)) for v in (0, 255)))
        builder.add("Cast", back, to=TensorProto.UINT8, output="reconstruction")
    heat_shape, row = ["batch", shape.height, shape.width], ["batch", shape.height, shape.width, shape.channels]
    tensors = [("score", TensorProto.FLOAT, ["batch"]), ("residual", TensorProto.FLOAT, heat_shape)]
    return builder.model([("x", TensorProto.UINT8, row)], [*tensors, ("reconstruction", TensorProto.UINT8, row)])


def float_output(builder, model, found, name):
    element = next(value.element for value in model.outputs if value.name == name)
    return found[name] if element == TensorProto.FLOAT else builder.cast(found[name])


def called(builder, model, image):
    (value,) = model.inputs
    fed = image if value.element == TensorProto.FLOAT else builder.cast(image, value.element)
    return model.call(builder, {value.name: fed})


def mapped(builder, model, shape, plan, image):
    found = called(builder, model, image)
    if plan.heat is None:
        score = float_output(builder, model, found, plan.score)
        zeros = builder.add("Mul", sliced_channel(builder, image), builder.constant(np.float32(0)))
        return score, zeros, None
    heat = float_output(builder, model, found, plan.heat)
    value = next(value for value in model.outputs if value.name == plan.heat)
    if plan.score is None:
        flat = builder.add("Reshape", heat, builder.constant(np.array([0, -1], np.int64)))
        highest = [builder.constant(np.array([1], np.int64))]  # of TopK, which is the same in every opset
        score = builder.add("TopK", flat, *highest)
    else:
        score = float_output(builder, model, found, plan.score)
    if value.shape[-2:] != (shape.height, shape.width):
        if len(value.shape) == 3:
            heat = builder.add("Unsqueeze", heat, builder.constant(np.array([1], np.int64)))
        whole = builder.add("Shape", image)
        ends = (builder.constant(np.array([v], np.int64)) for v in (0, 1, 0))
        batch = builder.add("Slice", whole, *ends)
        sizes = builder.constant(np.array([1, shape.height, shape.width], np.int64))
        heat = builder.add("Resize", heat, "", "", builder.add("Concat", batch, sizes, axis=0), mode="linear")
    return score, heat, None


def sliced_channel(builder, image):
    ends = (builder.constant(np.array([v], np.int64)) for v in (0, 1, 1))
    return builder.add("Slice", image, *ends)


def reconstructed(builder, model, shape, plan, image):
    found = float_output(builder, model, called(builder, model, image), plan.heat)
    return *mean_square(builder, shape, builder.add("Sub", image, found)), found


def mean_square(builder, shape, *errors):
    """Errors [N, C, H, W] -> (their mean square [N, 1], the same for each pixel [N, H * W])."""
    square = [builder.add("Mul", error, error) for error in errors]
    total = square[0] if len(square) == 1 else builder.add("Sum", *square)
    flat = np.array([-1, shape.channels, shape.height * shape.width], np.int64)
    total = builder.add("Reshape", total, builder.constant(flat))
    weight = np.full((1, shape.channels), 1 / (shape.channels * len(errors)), np.float32)
    heat = builder.add("MatMul", builder.constant(weight), total)  # [N, 1, H * W]
    pixels = shape.height * shape.width
    return builder.add("MatMul", heat, builder.constant(np.full((pixels, 1), 1 / pixels, np.float32))), heat


def denoised(builder, model, shape, plan, image):
    errors, clean = [], None
    noise = fixed_noise(plan.alphas, shape.channels, shape.height, shape.width)
    for (timestep, alpha), constant in zip(plan.alphas.items(), noise, strict=True):
        sample = builder.add("Mul", image, builder.constant(np.float32(alpha**0.5)))
        sample = builder.add("Add", sample, builder.constant(constant[None] * np.float32((1 - alpha) ** 0.5)))
        found = denoise(builder, model, sample, timestep, plan.heat)
        predicted, restored = parts(builder, sample, found, alpha, plan.predicts)
        errors.append(builder.add("Sub", predicted, builder.constant(constant[None])))
        clean = clean or restored
    return *mean_square(builder, shape, *errors), clean


def golden_of(run, shape, x, seed):
    """Golden images with their scores -> the content of golden.ndjson. Leaves out images without a finite score."""
    lines = []
    for image in golden_images(shape, x, np.random.default_rng(seed)):
        score = float(outputs(run, rows(decode(image, shape.channels), shape), 1)[0].max())
        if np.isfinite(score):
            lines.append(json.dumps({"record": image_record(image), "score": score}))
        else:
            say("golden records: an image without a finite score is left out")
    return ("\n".join(lines) + "\n").encode()


def facts_of(model, plan):
    """What the manifest says about scoring."""
    score = {
        "anomaly-map": plan.score or f"highest value of {plan.heat}",
        "reconstruction": "mean squared error of the reconstruction",
        "denoiser": "mean squared error of the predicted noise",
    }[plan.kind]
    out = {"recipe": f"foreign: {plan.kind}", "score": score, "heat": plan.heat, "opset": model.opsets.get("")}
    out |= {"pixel_mean": plan.mean.tolist(), "pixel_std": plan.std.tolist()}
    out |= {"model": {"producer": model.producer, "sha256": model.sha256, "one_by_one": model.one_by_one}}
    if plan.kind == "denoiser":
        out |= {"timesteps": list(plan.alphas), "alphas": list(plan.alphas.values()), "predicts": plan.predicts}
    return out
