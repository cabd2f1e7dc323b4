"""Images from text: one clear line for what cannot be used, and whole files however it ends."""

import os
import shutil
import signal
import subprocess
import time

import diffusers
import numpy as np
import onnx
import pytest
from conftest import RESIDUALD, residuald
from PIL import Image
from test_bad_input import DATA, INTERRUPTED, USAGE, refused
from test_generate import succeeded
from test_text_to_image import TRAINED, scenery
from text_to_image import older_tokenizer, stable_diffusion, write_folder, write_image_encoder

INTERNAL = 70
PROMPT = ["--prompt", "a wall"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    pipeline = stable_diffusion(older_tokenizer(folder / "tokenizer"), diffusers.DDIMScheduler(**TRAINED))
    write_folder(folder / "pipeline", pipeline)
    write_image_encoder(folder / "pipeline", pipeline.vae)
    return folder / "pipeline"


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "pipeline")


def spoil(path):
    """Has a graph return NaN."""
    model = onnx.load(path)
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["plain" if name == output else name for name in node.output]
        node.input[:] = ["plain" if name == output else name for name in node.input]
    nan = onnx.numpy_helper.from_array(np.array(np.nan, np.float32), "nan")
    model.graph.initializer.append(nan)
    model.graph.node.append(onnx.helper.make_node("Add", ["plain", "nan"], [output]))
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("component", "said"),
    [
        ("text_encoder", "text_encoder/model.onnx returned NaN: it is unusable"),
        ("unet", "the model's output is NaN after step"),
        ("vae_decoder", "vae_decoder returned NaN for image 0"),
        ("vae_encoder", "vae_encoder returned NaN: its float16 weights may overflow"),
    ],
)
def test_nan_of_each_component(component, said, copy, generate, tmp_path):
    spoil(copy / component / "model.onnx")
    scenery(tmp_path / "image.png", 64, 64)
    out = tmp_path / "out"
    arguments = [
        *PROMPT,
        "--image",
        tmp_path / "image.png",
        "--steps",
        4,
        "--out",
        out,
        "--sheet",
        tmp_path / "sheet.png",
    ]
    refused(generate(copy, *arguments), DATA, said)
    assert list(out.iterdir()) == []
    assert not (tmp_path / "sheet.png").exists()
    done = residuald("translate", copy, tmp_path / "image.png", *PROMPT, "--steps", 4, "--out", tmp_path / "new.png")
    assert done.returncode == DATA
    assert "NaN" in done.stderr
    assert not (tmp_path / "new.png").exists()


def test_long_texts(whole, generate, tmp_path):
    long = "brick " * 17_000
    done = generate(whole, "--prompt", long, "--negative", long, "--steps", 1, "--out", tmp_path / "out", timeout=60)
    succeeded(done)
    lines = done.stderr.splitlines()
    assert [line.split(" is longer")[0] for line in lines] == ["--negative", "--prompt"]
    assert all("the last 16925 were cut: brick brick" in line and len(line) < 400 for line in lines)
    assert Image.open(tmp_path / "out/000000.png").text["prompt"] == long


@pytest.mark.parametrize(("size", "code"), [("100003x100003", USAGE), ("8192x8192", INTERNAL)])
def test_sizes_beyond_the_limit_and_the_memory(size, code, whole, tmp_path):
    command = ["prlimit", "--as=8000000000", RESIDUALD, "generate", whole, *PROMPT, "--steps", "1", "--size", size]
    command = list(map(str, [*command, "--out", tmp_path / "out"]))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = {USAGE: "a multiple of 8 from 8 to 8192", INTERNAL: "There is too little memory: smaller images"}
    refused(done, code, said[code])


def only_whole_files(folder):
    for file in folder.rglob("*.*"):
        assert file.suffix in {".png", ".npy"}
        np.load(file) if file.suffix == ".npy" else Image.open(file).load()


@pytest.mark.parametrize("full", ["out", "trace", "sheet"])
def test_a_full_disk(full, whole, generate, tmp_path):
    """A file system of 64 KiB for one of the three that are written."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount a small file system")
    try:
        places = {name: tmp_path / name for name in ("out", "trace")} | {"sheet": tmp_path / "sheet.png"}
        places[full] = small / ("sheet.png" if full == "sheet" else full)
        arguments = [word for name, place in places.items() for word in (f"--{name}", place)]
        done = generate(whole, *PROMPT, "--count", 12, "--steps", 2, "--size", "128x128", *arguments)
        refused(done, DATA, "No space left on device", str(small))
        only_whole_files(small)
        only_whole_files(tmp_path / "out" if full != "out" else small)
        assert not places["sheet"].exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("more", [[], ["--low-memory"]])
def test_ctrl_c(more, whole, tmp_path):
    out, trace = tmp_path / "out", tmp_path / "trace"
    command = [RESIDUALD, "generate", whole, *PROMPT, "--count", 100000, "--steps", 2, "--size", "256x256", *more]
    command += ["--out", out, "--trace", trace, "--sheet", tmp_path / "sheet.png"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not list(out.glob("*.png")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, told
    count = len(list(out.glob("*.png")))
    assert f"interrupted: images written: {count} of 100000, each whole" in told
    only_whole_files(tmp_path)
    assert not (tmp_path / "sheet.png").exists()
