"""What the tests of denoise, inpaint and translate share: the denoiser in ONNX Runtime, and its tiles in NumPy."""

import hashlib
import json

import numpy as np
import onnxruntime
import residuald
from PIL import Image


class Model:
    """A bundle's denoiser with its schedule, in float64 but for the network. Images are [C, H, W] from -1 to 1."""

    def __init__(self, bundle, graph="denoiser.onnx"):
        self.session = onnxruntime.InferenceSession(bundle / graph)
        config = json.loads((bundle / "scheduler_config.json").read_text())
        assert config["beta_schedule"] == "linear"
        betas = np.linspace(config["beta_start"], config["beta_end"], config["num_train_timesteps"])
        self.alphas = np.cumprod(1 - betas)
        self.sigmas = np.sqrt((1 - self.alphas) / self.alphas)

    def velocity(self, image, timestep):
        feed = {"sample": image[None].astype(np.float32), "timestep": np.array([timestep])}
        return self.session.run(None, feed)[0][0].astype(float)

    def clean(self, image, timestep, side):
        alpha = self.alphas[timestep]
        velocity = tiled(image, side, lambda tile: self.velocity(tile, timestep))
        return np.sqrt(alpha) * image - np.sqrt(1 - alpha) * velocity


def starts(length, side):
    last, stride = length - side, side - side // 4
    gaps = -(-last // stride) if last > 0 else 0
    return [0] if not gaps else [(2 * i * last + gaps) // (2 * gaps) for i in range(gaps + 1)]


def tiled(image, side, run):
    """Hann-weighted mean of what `run` returns for overlapping tiles; small images are continued by reflection."""
    _, height, width = image.shape
    if (height, width) == (side, side):
        return run(image)
    grown = np.pad(image, ((0, 0), (0, max(side - height, 0)), (0, max(side - width, 0))), "reflect")
    total, weights = np.zeros_like(grown), np.zeros_like(grown)
    hann = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    window = hann[:, None] * hann
    for top in starts(height, side):
        for left in starts(width, side):
            place = np.s_[:, top : top + side, left : left + side]
            total[place] += window * run(grown[place])
            weights[place] += window
    return (total / weights)[:, :height, :width]


def levels(path):
    """A gray image as [1, H, W] from -1 to 1."""
    return np.asarray(Image.open(path), float)[None] / 127.5 - 1


def pixels(image):
    return (image.clip(-1, 1) + 1) * 127.5


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.clip(0, 255).round().astype(np.uint8)).save(path)
    return path


def noise_of(path, seed, draws, shape):
    """The noise of an image, [draws, *shape]: the stream that the first 8 bytes of its file's SHA-256 number."""
    number = int.from_bytes(hashlib.sha256(path.read_bytes()).digest()[:8], "big")
    return residuald.normals(seed, [number], draws, int(np.prod(shape))).reshape(draws, *shape).astype(float)
