"""Writes what a bundle draws images with as a pipeline of diffusers, in the layout of optimum."""

import hashlib
import json
from pathlib import Path

from .. import TrainerError
from ..bundle.export import check_out, write

FILES = "denoiser.onnx", "scheduler_config.json", "generative.json"
SCHEDULER, STEPS = "DDIMScheduler", 50  # the only scheduler of a DDIMPipeline, and its default number of steps


def export(bundle, out, force=False):
    """Bundle for images -> pipeline in the folder `out`. Returns its number of steps, and what the user should know."""
    check_out(out, force, "pipeline")
    shape, found = read(bundle)
    files, steps, notes = pipeline(shape, found)
    write(out, files, force, "pipeline")
    return steps, notes


def read(bundle):
    """-> (the manifest's input, {name: bytes} of FILES). Raises TrainerError if images cannot be drawn with it."""
    bundle = Path(bundle)
    try:
        manifest = json.loads((bundle / "manifest.json").read_bytes())
        shape, hashes = manifest["input"], manifest["files"]
        if shape["kind"] != "image":
            raise TrainerError(f"{bundle} is a bundle of kind {shape['kind']}; only one for images has a pipeline")
        if missing := [name for name in FILES if name not in hashes]:
            raise TrainerError(
                f"{bundle} has no {missing[0]}, so it cannot draw; train it with `residuald-train images --generative`"
            )
        found = {name: (bundle / name).read_bytes() for name in FILES}
    except OSError as error:
        raise TrainerError(f"{bundle} is not a bundle: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise TrainerError(f"this version cannot read the bundle {bundle}: {error!r}") from None
    for name, content in found.items():
        if hashlib.sha256(content).hexdigest() != hashes[name]:
            raise TrainerError(f"{bundle / name} was changed after export: its SHA-256 differs from the manifest's")
    return shape, found


def pipeline(shape, found):
    """The manifest's input and {name: bytes} of FILES -> ({path: bytes}, number of steps, notes)."""
    scheduler, about = (json.loads(found[name]) for name in FILES[1:])
    if (kind := scheduler["_class_name"]) != SCHEDULER:
        raise TrainerError(f"the bundle draws with {kind}, but a DDIMPipeline would read it as {SCHEDULER}")
    network = {
        "_class_name": "UNet2DModel",
        "sample_size": [shape["height"], shape["width"]],
        "in_channels": shape["channels"],
        "out_channels": shape["channels"],
    }
    index = {"_class_name": "DDIMPipeline", "scheduler": ["diffusers", SCHEDULER], "unet": ["diffusers", "UNet2DModel"]}
    if about.get("distilled"):
        index |= {"steps": about["steps"], "distilled": True}
    configs = {
        "model_index.json": index,
        "scheduler/scheduler_config.json": scheduler,
        "unet/config.json": network,
    }
    files = {path: (json.dumps(config, indent=2) + "\n").encode() for path, config in configs.items()}
    notes = []
    if about["steps"] != STEPS:
        notes.append(f"the bundle draws with {about['steps']} steps, but a DDIMPipeline has {STEPS} by default")
    if "tiles" in shape:
        notes.append("the bundle cuts images into tiles; the pipeline draws one tile")
    return files | {"unet/model.onnx": found[FILES[0]]}, about["steps"], notes
