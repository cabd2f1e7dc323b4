"""`residuald translate`: SDEdit with a bundle and models of pairs, beside NumPy and diffusers."""

import json
import sys

import diffusers
import numpy as np
import onnxruntime
import pytest
import torch
from conftest import SIDE, SIZE, export, network, residuald
from PIL import Image
from restored import Model, levels, noise_of, pixels, save, tiled
from text_to_image import older_tokenizer, stable_diffusion, write_folder, write_image_encoder


def translate(*arguments):
    done = residuald("translate", *arguments)
    assert done.returncode == 0, done.stderr
    return done


def test_sdedit_beside_diffusers(bundle, digits, tmp_path):
    """An image of a tile's size and one of several tiles."""
    small = Image.open(digits / "0002.png")
    small.save(tmp_path / "small.png")
    save(tmp_path / "large.png", np.tile(np.asarray(small, float), (2, 3))[:40, :70])
    scheduler = diffusers.DDIMScheduler.from_config(json.loads((bundle / "scheduler_config.json").read_text()))
    scheduler.set_timesteps(12)
    model = Model(bundle)
    for name in ("small.png", "large.png"):
        arguments = ["--strength", 0.5, "--steps", 12, "--seed", 9, "--out", tmp_path / f"out-{name}"]
        translate(bundle, tmp_path / name, *arguments)
        clean = torch.tensor(levels(tmp_path / name))
        noise = torch.tensor(noise_of(tmp_path / name, 9, 1, clean.shape)[0])
        timesteps = scheduler.timesteps[6:]
        sample = scheduler.add_noise(clean, noise, timesteps[:1])
        for t in timesteps:
            output = tiled(sample.numpy(), SIDE, lambda tile, t=t: model.velocity(tile, int(t)))
            sample = scheduler.step(torch.tensor(output), t, sample).prev_sample
        found = np.asarray(Image.open(tmp_path / f"out-{name}"), float)
        assert np.abs(found - pixels(sample.numpy())[0]).max() <= 1


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    """A random model that takes a gray source and makes RGB images."""
    folder = tmp_path_factory.mktemp("paired")
    unet = network(channels=4, out_channels=3, seed=3)
    (folder / "unet").mkdir()
    parts = {"scheduler": ["diffusers", "DDIMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    index = {"_class_name": "DDIMPipeline", **parts, "conditioning": "concat", "steps": 5}
    (folder / "model_index.json").write_text(json.dumps(index))
    diffusers.DDIMScheduler(num_train_timesteps=100).save_pretrained(folder / "scheduler")
    unet.save_config(folder / "unet")
    export(unet, folder / "unet/model.onnx", torch.zeros(2, dtype=torch.int64), False)
    return folder


def test_a_model_of_pairs_beside_diffusers(paired, tmp_path):
    rng = np.random.default_rng(0)
    session = onnxruntime.InferenceSession(paired / "unet/model.onnx")
    scheduler = diffusers.DDIMScheduler.from_pretrained(paired / "scheduler")
    scheduler.set_timesteps(5)
    for size in [(SIZE, SIZE), (21, 40)]:
        source = save(tmp_path / "source.png", rng.uniform(0, 255, size))
        translate(paired, source, "--seed", 2, "--force", "--out", tmp_path / "out.png")
        sample = noise_of(source, 2, 1, (3, *size))[0]
        for t in scheduler.timesteps:

            def run(tile, t=t):
                feed = {"sample": tile[None].astype(np.float32), "timestep": np.array([int(t)])}
                found = session.run(None, feed)[0][0].astype(float)
                # The blending of the tests returns as many channels as it gets.
                return np.concatenate([found, np.zeros_like(tile[3:])])

            output = tiled(np.concatenate([sample, levels(source)]), SIZE, run)[:3]
            sample = scheduler.step(torch.tensor(output), t, torch.tensor(sample)).prev_sample.numpy()
        found = np.asarray(Image.open(tmp_path / "out.png"), float).transpose(2, 0, 1)
        assert np.abs(found - pixels(sample)).max() <= 1


def test_what_cannot_be_done_is_one_line(bundle, paired, digits, tmp_path):
    image, out = digits / "0000.png", ["--out", tmp_path / "out"]

    def refused(code, *arguments):
        done = residuald(*arguments)
        assert done.returncode == code, done.stderr
        return done.stderr

    assert "--strength has no effect" in refused(64, "translate", paired, image, "--strength", 0.5, *out)
    assert "--strength 2: it must be from 0 to 1" in refused(64, "translate", bundle, image, "--strength", 2, *out)
    assert "use `residuald translate`" in refused(64, "generate", paired, *out)
    mask = save(tmp_path / "mask.png", np.full((SIDE, SIDE), 255.0))
    assert "was trained on pairs" in refused(64, "inpaint", paired, image, "--mask", mask, *out)
    assert "was trained on pairs" in refused(64, "denoise", image, "--bundle", paired, *out)
    index = json.loads((paired / "model_index.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text(json.dumps(index | {"conditioning": "film"}))
    (other / "unet").symlink_to(paired / "unet")
    assert '"film": only "concat" is known' in refused(65, "translate", other, image, *out)


def test_the_same_image_alone_and_in_a_folder(bundle, digits, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("0000.png", "0001.png"):
        (tmp_path / "in" / name).write_bytes((digits / name).read_bytes())
    translate(bundle, tmp_path / "in", "--steps", 6, "--out", tmp_path / "both")
    translate(bundle, digits / "0001.png", "--steps", 6, "--out", tmp_path / "alone")
    # Nor does its name matter.
    (tmp_path / "other.png").write_bytes((digits / "0001.png").read_bytes())
    translate(bundle, tmp_path / "other.png", "--steps", 6, "--out", tmp_path / "other-out.png")
    both = [(tmp_path / "both" / name).read_bytes() for name in ("0000.png", "0001.png")]
    assert (tmp_path / "alone/0001.png").read_bytes() == both[1] != both[0]
    assert (tmp_path / "other-out.png").read_bytes() == both[1]


def test_stable_diffusion_beside_diffusers(tmp_path):
    scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pipeline = stable_diffusion(older_tokenizer(tmp_path / "tokenizer"), scheduler)
    folder = write_folder(tmp_path / "pipeline", pipeline)
    write_image_encoder(folder, pipeline.vae)
    theirs = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    small = Image.fromarray(np.random.default_rng(3).integers(0, 255, (6, 8, 3), dtype=np.uint8))
    image = small.resize((64, 48), Image.Resampling.BICUBIC)
    image.save(tmp_path / "image.png")
    arguments = ["--prompt", "a wall", "--strength", 0.6, "--steps", 5, "--seed", 6]
    translate(folder, tmp_path / "image.png", *arguments, "--out", tmp_path / "out.png")
    noise = torch.tensor(noise_of(tmp_path / "image.png", 6, 1, (1, 4, 6, 8))[0], dtype=torch.float32)
    module = sys.modules[type(theirs).__module__]
    before = module.retrieve_latents, module.randn_tensor
    module.retrieve_latents = lambda output, **_: output.latent_dist.mode()
    module.randn_tensor = lambda *_, **__: noise
    try:
        with torch.no_grad():
            want = theirs("a wall", image=image, strength=0.6, num_inference_steps=5).images[0]
    finally:
        module.retrieve_latents, module.randn_tensor = before
    found = np.asarray(Image.open(tmp_path / "out.png"), np.int16)
    assert np.abs(found - np.asarray(want, np.int16)).max() <= 1
    # 61 x 45 pixels are no multiples of 8: the size stays.
    image.crop((0, 0, 61, 45)).save(tmp_path / "odd.png")
    translate(folder, tmp_path / "odd.png", *arguments, "--out", tmp_path / "odd-out.png")
    assert Image.open(tmp_path / "odd-out.png").size == (61, 45)
