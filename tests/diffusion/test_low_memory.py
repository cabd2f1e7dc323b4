"""`residuald generate --low-memory`: the memory of the largest component alone, and the same images."""

import subprocess
import sys

import diffusers
import pytest
from conftest import RESIDUALD
from test_generate import pngs
from test_text_to_image import PROMPT, TRAINED
from text_to_image import denoiser, older_tokenizer, stable_diffusion, vae, write_folder

SIZE = 256
# Runs a denoiser once, at a latent image of the given side.
ALONE = """
import sys
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options)
side = int(sys.argv[2])
latent, hidden = np.zeros((1, 4, side, side), np.float32), np.zeros((1, 77, 32), np.float32)
session.run(None, {"sample": latent, "timestep": np.array(1, np.float32), "encoder_hidden_states": hidden})
"""
# Runs a command, and prints its peak memory in KiB. This process is small, because Linux includes the memory of the
# process that starts a command.
MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A pipeline of 160 MB: 97 MB of it are the denoiser, 55 MB the VAE's decoder."""
    folder = tmp_path_factory.mktemp("large")
    pipeline = stable_diffusion(older_tokenizer(folder / "tokenizer"), diffusers.DDIMScheduler(**TRAINED))
    parts = {"unet": denoiser(blocks=(160, 320)), "vae": vae((8, 8, 8, 400))}
    pipeline = diffusers.StableDiffusionPipeline(**pipeline.components | parts, requires_safety_checker=False)
    return write_folder(folder / "pipeline", pipeline, external=True)


def peak(*command):
    """The most memory that a command took, in KiB."""
    command = [sys.executable, "-c", MEASURED, *map(str, command)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_memory(large, tmp_path):
    command = [RESIDUALD, "generate", large, "--prompt", PROMPT, "--steps", 2, "--size", f"{SIZE}x{SIZE}", "--out"]
    alone = peak(sys.executable, "-c", ALONE, large / "unet/model.onnx", SIZE // 8)
    low = peak(*command, tmp_path / "low", "--low-memory")
    usual = peak(*command, tmp_path / "usual")
    assert low <= 1.3 * alone < usual
    assert pngs(tmp_path / "low") == pngs(tmp_path / "usual")
