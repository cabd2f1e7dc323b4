"""Exports a model as ONNX and writes the bundle's folder, completely or not at all.

`tabular/export.py` and `images/export.py` determine the content of a bundle.
"""

import contextlib
import io
import json
import logging
import os
import shutil
import tempfile
import warnings
from datetime import UTC, datetime
from pathlib import Path

import onnx

from .. import TrainerError, __version__
from .served import sha256s

OPSET = 20
# Keys of a feature that a daemon which knows only format 1 would ignore.
OF_FORMAT_2 = {"number_format", "true_values", "false_values", "time_format", "time_zone", "missing_values"}
FORBIDDEN = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}
FORBIDDEN |= {"If", "Loop", "Scan", "Dropout"}
OUTPUTS = "score", "residual", "reconstruction"
INDEXES = {"bundle": "manifest.json", "pipeline": "model_index.json"}  # the file that tells what a folder is


def to_onnx(module, example=None, inputs=("x",), outputs=OUTPUTS, batched=1, any_size=()):
    """Module -> the bytes of an ONNX graph with a dynamic batch axis, only default operators and no control flow.

    `example`: example inputs with two or more rows; by default float32 [3, F], as for a tabular scorer. The first
    `batched` inputs have a dynamic batch axis, or those of these names. `any_size`: names of inputs [N, C, H, W] whose
    H and W are dynamic, too. Raises TrainerError for randomness and for other operators.
    """
    import torch  # slow to import, and not needed to write a bundle

    if example is None:
        example = (torch.zeros(3, len(module.space.features)),)
    # Without a name: diffusers' upsampling has a branch for large batches, which does the same.
    free = torch.export.Dim.DYNAMIC
    batch = {0: free if any_size else torch.export.Dim("batch")}
    with_batch = inputs[:batched] if isinstance(batched, int) else batched
    dynamic = {name: dict(batch) if name in with_batch else None for name in inputs}
    for name in any_size:
        dynamic[name] |= {2: free, 3: free}
    for name in ("torch.onnx", "onnx_ir", "onnxscript", "torch.utils.flop_counter"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            tuple(example),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            dynamo=True,
        )
    model = program.model_proto
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]  # stack traces with local paths
        if node.domain not in ("", "ai.onnx") or node.op_type in FORBIDDEN:
            raise TrainerError(
                f"the exported graph contains {node.domain}:{node.op_type}, which this version of torch should not "
                "produce; install the versions of requirements.lock"
            )
    for part in (model, model.graph):
        del part.metadata_props[:]
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
    model.producer_name, model.producer_version = "residuald-train", __version__
    del model.functions[:], model.graph.value_info[:]
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def make_manifest(files, facts, model_input, scoring, tolerance, training=None):
    """Returns the bytes of manifest.json.

    `files`: the bundle's other files, {name: bytes}. `facts`: name, version and training. `tolerance`: (relative,
    absolute) tolerance of golden scores. `training`: further facts about the training, from the recipe.
    """
    relative, absolute = tolerance
    manifest = {
        "format": bundle_format(model_input),
        "name": facts["name"],
        "version": facts["version"],
        "files": sha256s(files),
        "input": model_input,
        "scoring": {**scoring, "opset": scoring.get("opset", OPSET)},
        "golden": {"relative_tolerance": relative, "absolute_tolerance": absolute},
        "training": {
            "time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "trainer": f"residuald-train {__version__}",
            **facts["training"],
            **(training or {}),
        },
    }
    return as_json(manifest, indent=1)


def bundle_format(model_input):
    """The lowest format that holds the schema, so that an older daemon reads what it can and refuses the rest."""
    features = model_input.get("features", ())
    newer = any(OF_FORMAT_2 & set(f) or f.get("epoch_unit") in ("d", "ns") for f in features)
    return 2 if newer or "missing_values" in model_input else 1


def as_json(value, indent=None):
    """Encodes a value as JSON in UTF-8, with a final line break."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent) + "\n").encode()


def check_out(out, replace=False, what="bundle"):
    """Raises TrainerError if `out` holds anything but a bundle or pipeline (`what`), or one without `replace`."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / INDEXES[what]).exists():
        raise TrainerError(f"{out} exists and is not a {what}; pass another --out")
    if not replace:
        raise TrainerError(f"{out} holds a {what} already; pass another --out, or --force to replace it")


def write(out, files, replace=False, what="bundle"):
    """Writes {path: bytes} to the folder `out` by one rename. Keeps other files at its top, like a README."""
    check_out(out, replace, what)
    out.parent.mkdir(parents=True, exist_ok=True)
    out = out.resolve()
    fresh, old = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent)), None
    try:
        fresh.chmod(0o755)
        for name, content in files.items():
            (fresh / name).parent.mkdir(exist_ok=True)
            (fresh / name).write_bytes(content)
        old = fresh.with_name(fresh.name + "-old")
        if out.exists():
            written = {Path(name).parts[0] for name in files}
            for kept in out.iterdir():
                if kept.name not in written:
                    (shutil.copytree if kept.is_dir() else shutil.copy2)(kept, fresh / kept.name)
            os.rename(out, old)
        os.rename(fresh, out)
    finally:
        if old and old.exists() and not out.exists():  # stopped between the two renames
            os.rename(old, out)
        shutil.rmtree(fresh, ignore_errors=True)
        if old:
            shutil.rmtree(old, ignore_errors=True)
