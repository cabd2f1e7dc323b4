"""Pipelines with random weights, made by diffusers and exported by PyTorch in optimum's layout; a bundle for images."""

import json
import os
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from residuald_train.bundle.half import round_weights
from residuald_train.images.generative import Denoiser, Options
from residuald_train.images.pixels import Shape

ROOT = Path(__file__).resolve().parents[2]
RESIDUALD = os.environ.get("RESIDUALD", str(ROOT / "target/debug/residuald"))
SIZE = 16
SIDE = 32  # of the bundle's images
STEPS = 150  # of its training, half a minute


class Plain(torch.nn.Module):
    """A denoiser that returns a tensor."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, sample, timestep):
        return self.network(sample, timestep).sample


def network(channels=3, out_channels=None, seed=0):
    torch.manual_seed(seed)
    return diffusers.UNet2DModel(
        sample_size=SIZE,
        in_channels=channels,
        out_channels=out_channels or channels,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


def export(unet, path, timestep, external, half=False):
    """Writes the network as ONNX, with weights in a file of their own if `external`."""
    channels = unet.config.in_channels
    sample = torch.zeros(2, channels, SIZE, SIZE)
    axes = {"sample": {0: "N"}, "out_sample": {0: "N"}} | ({"timestep": {0: "N"}} if timestep.ndim else {})
    module = Plain(unet)
    if half:
        module, sample = module.half(), sample.half()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (sample, timestep),
            path,
            input_names=["sample", "timestep"],
            output_names=["out_sample"],
            dynamic_axes=axes,
            opset_version=20,
            dynamo=False,
        )
    if external:
        import onnx

        model = onnx.load(path)
        path.unlink()
        options = {"save_as_external_data": True, "location": "model.onnx_data", "size_threshold": 0}
        onnx.save_model(model, path, **options)


def write_folder(folder, unet, scheduler, pipeline="DDPMPipeline", timestep=None, external=False, half=False):
    """A pipeline's folder. `timestep` is an example of what the graph takes: a vector of int64 unless given."""
    timestep = torch.zeros(2, dtype=torch.int64) if timestep is None else timestep
    (folder / "unet").mkdir(parents=True)
    index = {
        "_class_name": pipeline,
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", type(scheduler).__name__],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    scheduler.save_pretrained(folder / "scheduler")
    unet.save_config(folder / "unet")
    export(unet, folder / "unet/model.onnx", timestep, external, half)
    return folder


@pytest.fixture(scope="session")
def unet():
    return network()


@pytest.fixture(scope="session")
def folder(tmp_path_factory, unet):
    """A DDPMPipeline of 20 timesteps."""
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2")
    return write_folder(tmp_path_factory.mktemp("pipelines") / "ddpm", unet, scheduler)


@pytest.fixture(scope="session")
def generate():
    """`residuald generate` with these arguments -> its completed process."""

    def run(*arguments, **options):
        command = [RESIDUALD, "generate", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)

    return run


def residuald(*arguments):
    return subprocess.run([RESIDUALD, *map(str, arguments)], capture_output=True, text=True, check=False)


def whole(out):
    """The images that are there, each opened in full. Nothing else may be there."""
    files = sorted(out.iterdir())
    for file in files:
        assert file.suffix == ".png", files
        Image.open(file).load()
    return len(files)


@contextmanager
def small_disk(out):
    """A file system of 64 KiB, which some images fill."""
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(out)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount a small file system")
    try:
        yield out
    finally:
        subprocess.run(["umount", str(out)], check=True)


def train(data, out, *arguments):
    command = [sys.executable, "-m", "residuald_train.cli", "images", "--data", data, "--out", out, "--size", SIDE]
    command += ["--channels", 1, "--threads", 1, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Real images: 400 handwritten digits as PNG."""
    return write_digits(tmp_path_factory.mktemp("digits"), 400)


def write_digits(folder, count):
    folder.mkdir(exist_ok=True)
    for i, digit in enumerate(load_digits().images[:count]):
        image = Image.fromarray((digit * 255 / 16).round().astype(np.uint8))
        image.resize((SIDE, SIDE), Image.BILINEAR).save(folder / f"{i:04}.png")
    return folder


@pytest.fixture(scope="session")
def trained(digits, tmp_path_factory):
    """A bundle of the recipe blind with a denoiser, and the denoiser in PyTorch, from the trainer's checkpoint."""
    folder = tmp_path_factory.mktemp("bundles")
    arguments = ["--steps", 20, "--generative", "--generative-steps", STEPS, "--checkpoint", folder / "checkpoint"]
    bundle = train(digits, folder / "digits", *arguments)
    denoiser = Denoiser(Shape(SIDE, SIDE, 1), Options())
    denoiser.load_state_dict(torch.load(folder / "checkpoint.generative", weights_only=True)["average"])
    round_weights(denoiser)  # as the bundle stores them
    return bundle, denoiser.eval()


@pytest.fixture(scope="session")
def bundle(trained):
    return trained[0]
