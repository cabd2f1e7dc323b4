"""Golden records: records with known scores. The daemon scores them at load to verify that it computes the same."""

import base64
import io
import json

import numpy as np
from PIL import Image
from residuald import set_field

# Number of unchanged records, and the most records with a missing value, an unseen category and an extreme number.
RECORDS, OPTIONAL, CATEGORIES, NUMBERS = 32, 32, 32, 24


def golden_records(features, records, rng):
    """Normal records (JSON, bytes) -> 32 to 120 golden records (str), unchanged or with one changed value.

    A changed value is missing, an unseen category or an extreme number. `rng` is a NumPy Generator.
    """
    pick = [records[i] for i in rng.choice(len(records), RECORDS, replace=len(records) < RECORDS)]
    out, turn = list(pick), 0

    def add_changed(path, value):
        nonlocal turn
        text = None if value is None else json.dumps(value, ensure_ascii=False)
        out.append(set_field(pick[turn % len(pick)], path, text))
        turn += 1

    for feature in [f for f in features if f.missing == "impute"][:OPTIONAL]:
        add_changed(feature.path, None)
    for feature in [f for f in features if f.type == "categorical"][:CATEGORIES]:
        add_changed(feature.path, "\u2205 never seen")
    for i, feature in enumerate([f for f in features if f.type == "number"][:NUMBERS]):
        add_changed(feature.path, (1e6, -1e6, 1e30, -3e38)[i % 4])
    return list(map(one_line, out))


def one_line(record):
    """A record's JSON (bytes) -> str without line breaks, which only stand between values."""
    return record.decode().replace("\r", " ").replace("\n", " ")


def golden_lines(lines, scores):
    """Records as JSON strings and their scores [n] -> the content of golden.ndjson.

    The strings stay exactly as they are, because a category may be a number written 1.50.
    """
    pairs = zip(lines, scores, strict=True)
    return "".join(f'{{"record": {line}, "score": {float(score)!r}}}\n' for line, score in pairs).encode()


def record_text(line):
    """A line of golden.ndjson -> the JSON text of its record, exactly as written."""
    start = line.index("{", line.index("{") + 1)
    return line[start : json.JSONDecoder().raw_decode(line, start)[1]]


def golden_images(shape, x, rng):
    """Normal rows x uint8 [n, H, W, C] -> 16 golden images as PNG.

    Six have the model's size. The others are larger, smaller, gray, RGB, tinted, palette, RGBA, 16-bit, flat and noisy.
    """
    mode = "L" if shape.channels == 1 else "RGB"
    pick = [
        Image.fromarray(x[i].squeeze() if shape.channels == 1 else x[i], mode)
        for i in rng.choice(len(x), 12, replace=len(x) < 12)
    ]
    w, h = pick[0].size
    out = pick[:6]
    out.append(pick[6].resize((w * 3 // 2 + 5, h * 2 + 3), Image.BICUBIC))
    out.append(pick[7].resize((w * 2 // 3, h * 4 // 5), Image.BICUBIC))
    out += [pick[8].convert("L"), pick[8].convert("RGB")]
    tinted = Image.merge("RGB", [pick[9].convert("L").point(lambda v, k=k: v * k // 4) for k in (4, 3, 2)])
    out += [tinted, tinted.quantize(64), Image.merge("RGBA", [*tinted.split(), pick[10].convert("L")])]
    deep = np.asarray(pick[10].convert("L")).astype(np.uint16) * 257
    out.append(Image.fromarray(np.minimum(deep, 65535 - 256) + rng.integers(0, 257, deep.shape).astype(np.uint16)))
    out.append(Image.new(mode, (w, h), 128 if mode == "L" else (128, 90, 30)))
    out.append(Image.fromarray(rng.integers(0, 256, (h, w), np.uint8)))
    return [png(image) for image in out]


def png(image):
    """Pillow image -> the bytes of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def image_record(content):
    """The bytes of an image -> a record that the daemon can read, as a dict for JSON."""
    return {"image": base64.b64encode(content).decode()}
