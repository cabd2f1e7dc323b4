"""One clear line for what cannot be drawn from, and whole files however it ends."""

import json
import shutil
import signal
import subprocess
import time

import diffusers
import numpy as np
import pytest
import torch
from conftest import RESIDUALD, ROOT, SIZE, network, small_disk, whole, write_folder
from PIL import Image

DATA, USAGE, INTERRUPTED = 65, 64, 130


@pytest.fixture
def copy(folder, tmp_path):
    target = tmp_path / "pipeline"
    shutil.copytree(folder, target)
    return target


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(done, code, *messages):
    assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for message in messages:
        assert message in lines[0], lines[0]


@pytest.mark.parametrize(
    "name", ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "unet/model.onnx"]
)
def test_a_missing_file(name, copy, generate, tmp_path):
    (copy / name).unlink()
    refused(generate(copy, "--out", tmp_path / "out"), DATA, name, "is missing")


@pytest.mark.parametrize("name", ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json"])
def test_what_is_not_json(name, copy, generate, tmp_path):
    (copy / name).write_text('{"a": ')
    refused(generate(copy, "--out", tmp_path / "out"), DATA, name, "is not JSON")


def test_a_folder_of_another_pipeline(copy, generate, tmp_path):
    parts = {
        "_class_name": "ORTStableDiffusion3Pipeline",
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None],
    }
    change(copy / "model_index.json", **parts)
    done = generate(copy, "--out", tmp_path / "out")
    refused(done, DATA, "is a StableDiffusion3Pipeline, which also needs text_encoder, tokenizer, vae:")


def test_a_bundle_that_only_scores(generate, tmp_path):
    refused(generate(ROOT / "tests/slow_model", "--out", tmp_path / "out"), USAGE, "cannot draw records")


def test_an_unknown_scheduler(copy, generate, tmp_path):
    change(copy / "scheduler/scheduler_config.json", _class_name="KDPM2DiscreteScheduler")
    index = json.loads((copy / "model_index.json").read_text())
    index["scheduler"][1] = "KDPM2DiscreteScheduler"
    (copy / "model_index.json").write_text(json.dumps(index))
    refused(
        generate(copy, "--out", tmp_path / "out"),
        DATA,
        "scheduler_config.json: the scheduler KDPM2DiscreteScheduler is unknown",
    )
    refused(
        generate(copy, "--out", tmp_path / "out", "--scheduler", "heun-discrete"),
        USAGE,
        "--scheduler heun-discrete: unknown: there are DDPM",
    )


def test_a_field_that_cannot_be_honoured(copy, generate, tmp_path):
    change(copy / "scheduler/scheduler_config.json", beta_schedule="mine", _use_default_values=[])
    refused(generate(copy, "--out", tmp_path / "out"), DATA, 'DDPMScheduler: `beta_schedule` is "mine"')


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"in_channels": 4, "out_channels": 4}, "`sample` of float32 [-1, 3, 16, 16]"),
        ({"sample_size": 32}, "must have float32 or float16 [N, 3, 32, 32]"),
        ({"out_channels": 6}, "`out_sample` of"),
        ({"out_channels": 5}, "`out_channels` is 5"),
        ({"sample_size": None}, "`sample_size` must be"),
        ({"sample_size": 10**9}, "`sample_size` must be"),
        ({"in_channels": 0}, "`in_channels` must be 1 to 4096"),
    ],
)
def test_wrong_shapes(fields, message, copy, generate, tmp_path):
    change(copy / "unet/config.json", **fields)
    refused(generate(copy, "--out", tmp_path / "out"), DATA, message)


def test_what_is_no_graph(copy, generate, tmp_path):
    (copy / "unet/model.onnx").write_bytes(b"\xff\xff")
    refused(generate(copy, "--out", tmp_path / "out"), DATA, "unet/model.onnx is not an ONNX model")


def test_a_graph_with_another_input(copy, generate, tmp_path):
    import onnx

    path = copy / "unet/model.onnx"
    model = onnx.load(path)
    more = onnx.helper.make_tensor_value_info("class_labels", onnx.TensorProto.INT64, ["N"])
    model.graph.input.append(more)
    onnx.save(model, path)
    refused(generate(copy, "--out", tmp_path / "out"), DATA, "also needs the input `class_labels`")


@pytest.mark.parametrize(
    ("location", "message"),
    [("../weights", "is not inside of its folder"), ("/etc/hostname", "is not inside"), ("absent", "cannot be read")],
)
def test_weights_outside_of_the_folder(location, message, unet, generate, tmp_path):
    import onnx

    pipeline = write_folder(tmp_path / "pipeline", unet, diffusers.DDPMScheduler(), external=True)
    path = pipeline / "unet/model.onnx"
    shutil.copy(pipeline / "unet/model.onnx_data", pipeline / "weights")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    refused(generate(pipeline, "--out", tmp_path / "out"), DATA, "model.onnx keeps weights in", message)


def test_weights_behind_a_link_out_of_the_folder(unet, generate, tmp_path):
    pipeline = write_folder(tmp_path / "pipeline", unet, diffusers.DDPMScheduler(), external=True)
    data = pipeline / "unet/model.onnx_data"
    shutil.move(data, tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    refused(generate(pipeline, "--out", tmp_path / "out"), DATA, "is not inside of its folder")


def test_nan_from_the_model(generate, tmp_path):
    unet = network()
    with torch.no_grad():
        unet.conv_out.bias[0] = float("nan")
    pipeline = write_folder(tmp_path / "pipeline", unet, diffusers.DDPMScheduler(num_train_timesteps=10))
    done = generate(pipeline, "--count", 2, "--out", tmp_path / "out")
    refused(done, DATA, "the model's output is NaN after step 0 (timestep 9) of image", "(images written: 0)")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", 0], "--count 0: it must be from 1 to 1000000"),
        (["--count", 10**9], "--count 1000000000: it must be from 1 to 1000000"),
        (["--steps", 0], "0 steps"),
        (["--steps", 21], "21 steps are more than num_train_timesteps, 20"),
        (["--eta", 0.5], "only DDIMScheduler has it"),
        (["--eta", 2, "--scheduler", "ddim"], "it must be from 0 to 1"),
        (["--provider", "tensorrt"], "images are drawn on cpu or cuda"),
    ],
)
def test_numbers(arguments, message, folder, generate, tmp_path):
    refused(generate(folder, "--out", tmp_path / "out", *arguments), USAGE, message)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (
            np.zeros((2, 3, 8, 8), np.float32),
            "has the shape [2, 3, 8, 8]: it must be [N, 3, 16, 16], or [6, N, 3, 16, 16]",
        ),
        (np.zeros((5, 2, 3, SIZE, SIZE), np.float32), "with the noise of each step"),
        (np.zeros((2, 3, SIZE, SIZE), np.float64), "it must hold float32"),
        (np.zeros((2, 3, SIZE, SIZE), np.float32, order="F"), "in C order"),
        (np.full((6, 2, 3, SIZE, SIZE), np.nan, np.float32), "has a NaN"),
    ],
)
def test_noise_files(noise, message, folder, generate, tmp_path):
    np.save(tmp_path / "noise.npy", noise)
    done = generate(folder, "--out", tmp_path / "out", "--noise", tmp_path / "noise.npy", "--steps", 5)
    refused(done, DATA, "noise.npy", message)


def test_a_noise_file_that_is_cut_off_and_too_small(folder, generate, tmp_path):
    path = tmp_path / "noise.npy"
    np.save(path, np.zeros((2, 3, SIZE, SIZE), np.float32))
    arguments = [folder, "--out", tmp_path / "out", "--noise", path, "--steps", 5]
    refused(generate(*arguments, "--count", 3), USAGE, "has noise for 2 samples")
    path.write_bytes(path.read_bytes()[:-1])
    refused(generate(*arguments), DATA, "is cut off")
    path.write_bytes(b"no")
    refused(generate(*arguments), DATA, "is not a .npy file")
    refused(generate(*arguments[:3], "--noise", "/dev/zero"), DATA, "is not a regular file")


def test_an_existing_file_is_kept(folder, generate, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "000001.png").write_text("mine")
    arguments = [folder, "--count", 2, "--out", out, "--steps", 2]
    refused(generate(*arguments), USAGE, "000001.png is there already", "--force")
    assert [file.name for file in out.iterdir()] == ["000001.png"]
    assert (out / "000001.png").read_text() == "mine"
    assert generate(*arguments, "--force").returncode == 0
    assert Image.open(out / "000001.png").size == (SIZE, SIZE)


def test_what_is_ignored_is_told(copy, generate, tmp_path):
    change(copy / "scheduler/scheduler_config.json", skip_prk_steps=True)
    done = generate(copy, "--out", tmp_path / "out", "--steps", 2)
    assert done.returncode == 0
    assert "DDPMScheduler has no skip_prk_steps: ignored" in done.stderr


def test_ctrl_c_leaves_whole_files(folder, tmp_path):
    out = tmp_path / "out"
    command = [RESIDUALD, "generate", folder, "--count", "100000", "--out", out, "--steps", "3"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (out.exists() and len(list(out.glob("*.png"))) > 3) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, told
    count = whole(out)
    assert f"interrupted: images written: {count} of 100000, each whole" in told
    assert count > 3


def test_a_full_disk_leaves_whole_files(folder, generate, tmp_path):
    with small_disk(tmp_path / "out") as out:
        done = generate(folder, "--count", 1000, "--out", out, "--steps", 2)
        refused(done, DATA, "No space left on device")
        count = whole(out)
        assert f"(images written: {count})" in done.stderr
        assert 0 < count < 1000
