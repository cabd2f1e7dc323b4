"""Writes the bundles in this folder, which score an image by its distance from middle gray.

    .venv/bin/python tests/images/make.py

`gray` resizes an image to 32 x 32. `tiles` halves it and cuts it into RGB tiles of 16 x 16 that overlap by 4. The
residual of a pixel is |level - 128| / 16, averaged over its channels. The score is the largest residual.

`pairs` is a pipeline that translates gray images into RGB images. For an image with a white pixel it returns NaN.
"""

import base64
import hashlib
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime

HERE = Path(__file__).resolve().parent
TOLERANCE = 1e-6
INPUTS = {
    "gray": {"height": 32, "width": 32, "channels": 1, "resize": "bilinear"},
    "tiles": {
        "height": 16,
        "width": 16,
        "channels": 3,
        "resize": "bilinear",
        "tiles": {"scale": 0.5, "overlap": 4},
    },
}

GRAPH = """
<ir_version: 9, opset_import: ["": 20]>
middle (uint8[batch, {h}, {w}, {c}] x) => (
    float[batch] score, float[batch, {h}, {w}] residual, uint8[batch, {h}, {w}, {c}] reconstruction
)
<float middle = {{128}}, float unit = {{16}}, int64[1] channels = {{3}}, int64[2] sides = {{1, 2}}>
{{
    levels = Cast <to = 1> (x)
    from_middle = Sub (levels, middle)
    distance = Abs (from_middle)
    sixteenths = Div (distance, unit)
    residual = ReduceMean <keepdims = 0> (sixteenths, channels)
    score = ReduceMax <keepdims = 0> (residual, sides)
    shape = Shape (x)
    reconstruction = ConstantOfShape <value = uint8[1] {{128}}> (shape)
}}
"""


# (noisy image - source) * (1 - m) / (1 - m), where m is the largest value of the source.
PAIRS = """
<ir_version: 9, opset_import: ["": 20]>
pairs (float[n, 4, 16, 16] sample, int64[n] timestep) => (float[n, 3, 16, 16] out_sample)
<
    int64[1] zero = {0}, int64[1] three = {3}, int64[1] four = {4}, int64[1] channels = {1}, int64[3] all = {1, 2, 3},
    float one = {1}
>
{
    noisy = Slice (sample, zero, three, channels)
    source = Slice (sample, three, four, channels)
    largest = ReduceMax <keepdims = 1> (source, all)
    left = Sub (one, largest)
    sound = Div (left, left)
    difference = Sub (noisy, source)
    out_sample = Mul (difference, sound)
}
"""


def main():
    for name, shape in INPUTS.items():
        write(name, shape)
    write_pairs()


def write_pairs():
    model = onnx.parser.parse_model(PAIRS)
    onnx.checker.check_model(model, full_check=True)
    index = {
        "_class_name": "DDIMPipeline",
        "conditioning": "concat",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "steps": 3,
        "unet": ["diffusers", "UNet2DModel"],
    }
    files = {
        "model_index.json": as_json(index, indent=1),
        "scheduler/scheduler_config.json": as_json({"_class_name": "DDIMScheduler"}),
        "unet/config.json": as_json({"in_channels": 4, "out_channels": 3, "sample_size": 16}),
        "unet/model.onnx": model.SerializeToString(deterministic=True),
    }
    for file, content in files.items():
        path = HERE / "pairs" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write(name, shape):
    h, w, c = shape["height"], shape["width"], shape["channels"]
    model = onnx.parser.parse_model(GRAPH.format(h=h, w=w, c=c))
    onnx.checker.check_model(model, full_check=True)
    graph = model.SerializeToString(deterministic=True)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    golden = []
    for spread in range(0, 128, 16):
        # For `tiles`, an image of one colour and twice a tile's size: halving it changes no pixel value.
        row = random.integers(128 - spread, 129 + spread, (h, w, c), dtype=np.uint8)
        score = float(session.run(["score"], {"x": row[None]})[0][0])
        flat = np.full((2 * h, 2 * w, c), 128, np.uint8) if "tiles" in shape else row
        if "tiles" in shape:
            flat[:] = row[0, 0]
            score = float(np.abs(row[0, 0].astype(np.float32) - 128).mean() / 16)
        encoded = base64.b64encode(png(flat)).decode()
        golden.append(as_json({"record": {"image": encoded}, "score": score}))
    normal = [i / 64 for i in range(129)]
    files = {
        "model.onnx": graph,
        "calibration.json": as_json({"count": len(normal), "quantiles": [normal[0], normal[-1]], "tail": normal}),
        "golden.ndjson": b"".join(golden),
    }
    manifest = {
        "format": 1,
        "name": name,
        "version": "1",
        "files": {file: hashlib.sha256(content).hexdigest() for file, content in files.items()},
        "input": {"kind": "image", **shape},
        "scoring": {"recipe": "middle gray"},
        "golden": {"relative_tolerance": TOLERANCE, "absolute_tolerance": TOLERANCE},
        "training": {},
    }
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    (folder / "manifest.json").write_bytes(as_json(manifest, indent=1))


def png(pixels):
    """Encodes uint8 pixels [h, w, 1 or 3] as a PNG."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    h, w, c = pixels.shape
    header = struct.pack(">IIBBBBB", w, h, 8, 0 if c == 1 else 2, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    end = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + end


def as_json(value, **options):
    return json.dumps(value, **options).encode() + b"\n"


if __name__ == "__main__":
    main()
