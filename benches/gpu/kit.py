"""Builds the kit for the GPU measurements and packs it into parts that are small enough to transfer.

    make gpu-kit                     # here: .gpu-kit/kit and .gpu-kit/parts/kit.tar.xz.00, .01, ...
    bash benches/gpu/join.sh PARTS   # on the GPU machine: joins the parts, finds CUDA's libraries, runs run.py

The kit holds the release binary, the compiled benches/gpu/device.rs, ONNX Runtime's GPU libraries, four bundles,
100,000 records, the same networks with float16 arithmetic, and these scripts. The GPU machine needs neither network
nor compiler.
"""

import argparse
import base64
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import residuald
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PART = 48 * 2**20
RECORDS = 100_000
IMAGES = 96
# Every Linux machine with an NVIDIA driver has these libraries. The kit contains the others that the binary links.
EVERYWHERE = "linux-vdso", "ld-linux", "libc.so", "libm.so", "libdl.so", "librt.so", "libpthread.so"
# The operators that run in float16. All others are too cheap to gain from it and stay in float32.
HEAVY = {"Conv", "MatMul", "Gemm"}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=ROOT / ".gpu-kit", help="default .gpu-kit")
    p.add_argument("--preset", default="-6", help="compression preset of xz, -0 to -9 (default -6)")
    args = p.parse_args()
    kit = args.out / "kit"
    steps = [
        (kit / "bundles/image256", lambda: image_bundle(kit / "bundles/image256")),
        (kit / "records.ndjson.gz", lambda: records(kit / "records.ndjson.gz")),
        (kit / "bundles/cpu-only", lambda: cpu_only_bundle(kit / "bundles/cpu-only")),
    ]
    for i, (target, make) in enumerate(steps, 1):
        if target.exists():
            print(f"[{i}/{len(steps)}] {target.name} exists already")
            continue
        print(f"[{i}/{len(steps)}] making {target.name}", flush=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        make()
    for name in ("payments", "surface"):
        shutil.copytree(ROOT / "models" / name, kit / "bundles" / name, dirs_exist_ok=True)
    for name in ("payments", "image256"):
        half(kit / "bundles" / name / "model.onnx", kit / f"{name}.float16.onnx")
    without_arctan(kit / "bundles/payments/model.onnx", kit / "payments.cuda-only.onnx")
    binaries(kit)
    scripts(kit)
    pack(kit, args.out / "parts", args.preset)


def run(*command, **options):
    subprocess.run([str(part) for part in command], check=True, **options)


def trainer(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "models/trainer")}
    run(sys.executable, "-c", "from residuald_train.cli import main; main()", *arguments, env=environment)


def image_bundle(out):
    """Trains a bundle for RGB images of 256 x 256 pixels. A few steps suffice: only its speed is measured."""
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        surface = ROOT / "models/trainer/examples/surface.py"
        run(
            *(sys.executable, surface, "--train", work / "all", "--groups", work / "groups.csv"),
            *("--sample", work / "sample.ndjson.gz"),
        )
        (work / "train").mkdir()
        for path in sorted((work / "all").iterdir())[::8]:
            coloured(Image.open(path)).save(work / "train" / path.name)
        trainer("images", "--data", work / "train", "--name", "image256", "--size", 256, "--steps", 40, "--out", out)
        lines = []
        with gzip.open(work / "sample.ndjson.gz", "rt") as sample:
            for _, line in zip(range(IMAGES), sample, strict=False):
                record, buffer = json.loads(line), io.BytesIO()
                image = coloured(Image.open(io.BytesIO(base64.b64decode(record["image"]))))
                image.save(buffer, "JPEG", quality=92)
                lines.append(json.dumps(record | {"image": base64.b64encode(buffer.getvalue()).decode()}) + "\n")
        with gzip.open(out / "sample.ndjson.gz", "wt") as sample:
            sample.writelines(lines)


def coloured(image):
    """An image of any mode -> an RGB image of 256 x 256 pixels with a warm tint."""
    gray = np.asarray(image.convert("L").resize((256, 256), Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray(np.stack([gray, gray * 0.9, gray * 0.75], 2).astype(np.uint8))


def records(out):
    """Writes 100,000 records: the last normal payments of the simulated history, then the labelled sample."""
    with tempfile.TemporaryDirectory() as work:
        history, sample = Path(work) / "history.ndjson.gz", Path(work) / "sample.ndjson.gz"
        payments = ROOT / "models/trainer/examples/payments.py"
        run(sys.executable, payments, "--history", history, "--sample", sample)
        with gzip.open(history, "rb") as file:
            lines = file.readlines()
        with gzip.open(sample, "rb") as file:
            labelled = file.readlines()
        with gzip.open(out, "wb") as file:
            file.writelines(lines[-(RECORDS - len(labelled)) :] + labelled)


# ONNX Runtime has no CUDA kernel for any of these operators.
CPU_ONLY = """
<ir_version: 9, opset_import: ["": 20, "ai.onnx.ml": 3]>
cpu_only (float[batch, 1] x) => (float[batch] score, float[batch, 1] residual, float[batch, 1] reconstruction)
{
    class, likely = ai.onnx.ml.LinearClassifier <classlabels_ints = [0, 1], coefficients = [-1.0, 1.0],
        intercepts = [0.5, -0.5], multi_class = 0, post_transform = "NONE"> (x)
    score = ai.onnx.ml.LabelEncoder <keys_int64s = [0, 1], values_floats = [0.25, 1.0]> (class)
    residual = Atan (x)
    reconstruction = Atan (residual)
}
"""


def cpu_only_bundle(out):
    """Writes a bundle that works on the CPU but of which no GPU can run any node."""
    model = onnx.parser.parse_model(CPU_ONLY)
    onnx.checker.check_model(model)
    files = {
        "model.onnx": model.SerializeToString(deterministic=True),
        "calibration.json": as_json(
            {"count": 129, "quantiles": [0.25, 1.0], "tail": [i / 128 for i in range(129)], "residual_scale": [1.0]}
        ),
        "golden.ndjson": b"".join(
            as_json({"record": {"value": value}, "score": 1.0 if value > 0.5 else 0.25})
            for value in [i / 16 + 0.01 for i in range(-16, 32)]
        ),
    }
    manifest = {
        "format": 1,
        "name": "cpu-only",
        "version": "1",
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "input": {
            "kind": "tabular",
            "features": [{"name": "value", "path": "value", "type": "number", "missing": "reject"}],
        },
        "scoring": {"recipe": "a line between two classes"},
        "golden": {"relative_tolerance": 1e-6, "absolute_tolerance": 1e-6},
    }
    out.mkdir()
    for name, content in {**files, "manifest.json": as_json(manifest)}.items():
        (out / name).write_bytes(content)


def as_json(value):
    return json.dumps(value).encode() + b"\n"


def half(source, out):
    """Writes a copy of a graph whose convolutions and matrix products compute in float16, and all else in float32."""
    model = onnx.load(source)
    floats, halves = {i.name: i for i in model.graph.initializer}, {}
    cast, half_type, full_type = onnx.helper.make_node, onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    nodes = []
    for node in model.graph.node:
        if node.op_type not in HEAVY:
            nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            if name and name not in halves:
                halves[name] = f"{name}_half"
                if name in floats:
                    weights = onnx.numpy_helper.to_array(floats[name]).astype(np.float16)
                    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, halves[name]))
                else:
                    nodes.append(cast("Cast", [name], [halves[name]], to=half_type))
            node.input[i] = halves.get(name, "")
        whole, node.output[0] = node.output[0], f"{node.output[0]}_from_half"
        nodes += [node, cast("Cast", [node.output[0]], [whole], to=full_type)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, out)


# Coefficients of the odd powers 1 to 17 for arctan on [-1, 1], accurate to 2e-6 (Abramowitz and Stegun 1964, 4.4.49).
ARCTAN = (
    1,
    -0.3333314528,
    0.1999355085,
    -0.1420889944,
    0.1065626393,
    -0.0752896400,
    0.0429096138,
    -0.0161657367,
    0.0028662257,
)


def without_arctan(source, out):
    """Writes a copy of a graph in which a polynomial replaces Atan, so that it can be captured as a CUDA graph.

    Atan is the only operator of tabular models without a CUDA kernel. Its argument there lies between -1 and 1.
    """
    model = onnx.load(source)
    nodes = []
    for node in model.graph.node:
        nodes += horner(node) if node.op_type == "Atan" else [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, out)


def horner(node):
    """The nodes that evaluate the polynomial by Horner's method in place of an Atan node."""
    (x,), (out,) = node.input, node.output
    make = onnx.helper.make_node

    def constant(i, value):
        tensor = onnx.helper.make_tensor("", onnx.TensorProto.FLOAT, [], [value])
        return make("Constant", [], [f"{out}_c{i}"], value=tensor)

    nodes, value = [make("Mul", [x, x], [f"{out}_square"]), constant(8, ARCTAN[8])], f"{out}_c8"
    for i in reversed(range(8)):
        nodes += [
            make("Mul", [value, f"{out}_square"], [f"{out}_m{i}"]),
            constant(i, ARCTAN[i]),
            make("Add", [f"{out}_m{i}", f"{out}_c{i}"], [f"{out}_a{i}"]),
        ]
        value = f"{out}_a{i}"
    return [*nodes, make("Mul", [value, x], [out])]


def binaries(kit):
    for folder in ("bin", "lib", "extra"):
        (kit / folder).mkdir(exist_ok=True)
    for name in ("residuald", "examples/device"):
        target = kit / "bin" / Path(name).name
        shutil.copy2(ROOT / "target/release" / name, target)
        run("strip", "--strip-debug", target)
        for line in subprocess.check_output(["ldd", target], text=True).splitlines():
            library, _, path = line.strip().partition(" => ")
            if path and not library.startswith(EVERYWHERE):
                shutil.copy2(path.split(" (")[0], kit / "extra" / library)
    for path in (ROOT / ".onnxruntime-gpu").iterdir():
        if path.is_symlink() or path.suffix == "":
            continue
        name = "libonnxruntime.so" if path.name.startswith("libonnxruntime.so") else path.name
        shutil.copy2(path, kit / "lib" / name)


def scripts(kit):
    shutil.copytree(HERE, kit / "scripts", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.rs", "__pycache__"))
    # The package residuald is compiled; it runs on any Python from 3.11 on.
    for source in (ROOT / "models/trainer/residuald_train", Path(residuald.__file__).parent):
        shutil.copytree(
            source, kit / "trainer" / source.name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )


def pack(kit, parts, preset, part=PART):
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    print("packing", flush=True)
    tar = subprocess.Popen(["tar", "-C", str(kit), "-cf", "-", "."], stdout=subprocess.PIPE)
    packed = subprocess.Popen(["xz", "-T2", preset], stdin=tar.stdout, stdout=subprocess.PIPE)
    sums, total = [], 0
    while block := packed.stdout.read(part):
        name = f"kit.tar.xz.{len(sums):02}"
        (parts / name).write_bytes(block)
        sums.append(f"{hashlib.sha256(block).hexdigest()}  {name}\n")
        total += len(block)
    if tar.wait() or packed.wait():
        sys.exit(
            "gpu-kit: tar or xz failed (see above); check that xz-utils is installed and that the disk is not full"
        )
    (parts / "SHA256SUMS").write_text("".join(sums))
    print(f"{len(sums)} parts of at most {part // 2**20} MiB, {total / 2**20:.0f} MiB in all, in {parts}")


if __name__ == "__main__":
    main()
