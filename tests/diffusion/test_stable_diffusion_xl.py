"""Pipelines of Stable Diffusion XL beside diffusers' own with the same noise."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager

import diffusers
import numpy as np
import pytest
import torch
from conftest import residuald
from PIL import Image
from restored import noise_of
from test_bad_input import DATA, change, refused
from test_generate import IMAGES, succeeded
from test_inpaint import scene  # noqa: F401
from test_text_to_image import EXAMPLE, NEGATIVE, PROMPT, TRAINED, compare, drawn_by_diffusers, latents, scenery
from text_to_image import denoiser, older_tokenizer, stable_diffusion_xl, write_folder, write_image_encoder

EULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
# As the VAE of Playground 2.5.
STATISTICS = {"latents_mean": [-1.6, 1.1, 0.1, -0.2], "latents_std": [8.4, 5.2, 3.1, 6.5]}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """The second pads with `!`."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return older_tokenizer(folder / "1"), older_tokenizer(folder / "2", "!")


@pytest.fixture(scope="module")
def pipeline(tokenizers):
    return stable_diffusion_xl(tokenizers, diffusers.EulerDiscreteScheduler(**EULER), scaling_factor=0.13025)


@pytest.fixture(scope="module")
def xl_folder(tmp_path_factory, pipeline):
    folder = write_folder(tmp_path_factory.mktemp("pipelines") / "xl", pipeline)
    write_image_encoder(folder, pipeline.vae)
    return folder


@pytest.fixture
def xl_copy(xl_folder, tmp_path):
    return shutil.copytree(xl_folder, tmp_path / "pipeline")


def test_token_ids(tokenizers, xl_folder):
    """Two paddings."""
    prompts = ["", PROMPT, "brick " * 100]
    for number, tokenizer in enumerate(tokenizers):
        command = [EXAMPLE, xl_folder, str(number)]
        lines = "\n".join(map(json.dumps, prompts))
        done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
        ours = [json.loads(line) for line in done.stdout.splitlines()]
        assert ours == tokenizer(prompts, padding="max_length", truncation=True, max_length=77)["input_ids"]
        assert ours[0][-1] == [49407, 0][number]


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, []),
        ({"negative_prompt": NEGATIVE}, ["--negative", NEGATIVE]),
        ({"negative_prompt": ""}, ["--negative", ""]),
        ({"guidance_scale": 0.0}, ["--guidance", 0]),
        ({"height": 48, "width": 80, "guidance_scale": 3.0}, ["--size", "80x48", "--guidance", 3]),
    ],
)
def test_text_to_image(options, arguments, pipeline, xl_folder, generate, tmp_path):
    drawn = latents(4, options.get("height", 64) // 8, options.get("width", 64) // 8)
    theirs = drawn_by_diffusers(pipeline, 4, drawn, prompt=PROMPT, **options)
    done = compare(xl_folder, drawn, theirs, generate, tmp_path, "--prompt", PROMPT, *arguments)
    assert done.stderr == ""
    said = Image.open(tmp_path / "out/000000.png").text
    assert said.get("negative") == options.get("negative_prompt")
    assert said["guidance"] == f"{options.get('guidance_scale', 5.0):g}"


def test_what_the_model_is_told_matters(pipeline):
    """Parity with a model that pays no attention to its inputs would prove nothing."""
    drawn = latents(2)

    def last(**options):
        return drawn_by_diffusers(pipeline, 2, drawn, **{"prompt": PROMPT, "guidance_scale": 0.0} | options)[0][-1]

    usual = last()
    for options in [{"prompt": "a cat"}, {"prompt_2": "a cat"}, {"original_size": (512, 64)}]:
        assert np.abs(last(**options) - usual).max() > 1e-3, options


def test_turbo(tokenizers, xl_copy, generate, tmp_path):
    """As SDXL-Turbo is run: one step without guidance."""
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**EULER, timestep_spacing="trailing")
    pipeline = stable_diffusion_xl(tokenizers, scheduler, scaling_factor=0.13025)
    scheduler.save_pretrained(xl_copy / "scheduler")
    change(xl_copy / "model_index.json", scheduler=["diffusers", type(scheduler).__name__])
    for steps in (1, 4):
        drawn = latents(steps)
        theirs = drawn_by_diffusers(pipeline, steps, drawn, prompt=PROMPT, guidance_scale=0.0)
        arguments = ["--prompt", PROMPT, "--guidance", 0, "--force"]
        compare(xl_copy, drawn, theirs, generate, tmp_path / str(steps), *arguments)


def test_an_empty_prompt_in_place_of_zeros_and_statistics(tokenizers, generate, tmp_path):
    """`force_zeros_for_empty_prompt` is false, and the VAE has the mean and deviation of its channels."""
    pipeline = stable_diffusion_xl(tokenizers, diffusers.DDIMScheduler(**TRAINED), **STATISTICS)
    pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    folder = write_folder(tmp_path / "pipeline", pipeline, external=True)
    drawn = latents(3)
    theirs = drawn_by_diffusers(pipeline, 3, drawn, prompt=PROMPT)
    compare(folder, drawn, theirs, generate, tmp_path, "--prompt", PROMPT)
    write_image_encoder(folder, pipeline.vae)
    image_to_image(pipeline, folder, generate, tmp_path / "image")


def image_to_image(pipeline, folder, generate, tmp_path):
    """Beside diffusers' pipeline that takes the mean of the VAE's distribution, as ours does."""
    tmp_path.mkdir()
    image = scenery(tmp_path / "image.png")
    theirs = diffusers.StableDiffusionXLImg2ImgPipeline(**pipeline.components, add_watermarker=False)
    theirs.register_to_config(force_zeros_for_empty_prompt=pipeline.config.force_zeros_for_empty_prompt)
    theirs.set_progress_bar_config(disable=True)
    drawn = latents(0, height=6, width=10)[0]
    with the_mean_and_noise(theirs, drawn):
        options = {"image": [image] * IMAGES, "num_inference_steps": 8, "negative_prompt": [NEGATIVE] * IMAGES}
        images = theirs(prompt=[PROMPT] * IMAGES, **options).images
    np.save(tmp_path / "noise.npy", drawn)
    change(folder / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline")
    arguments = ["--image", tmp_path / "image.png", "--noise", tmp_path / "noise.npy", "--steps", 8]
    arguments += ["--prompt", PROMPT, "--negative", NEGATIVE, "--out", tmp_path / "out"]
    succeeded(generate(folder, *arguments))
    assert Image.open(tmp_path / "out/000000.png").text["strength"] == "0.3"
    for number, expected in enumerate(images):
        alike(tmp_path / f"out/{number:06}.png", expected)


def test_image_to_image(pipeline, xl_copy, generate, tmp_path):
    image_to_image(pipeline, xl_copy, generate, tmp_path / "image")


@contextmanager
def the_mean_and_noise(pipeline, noise):
    """Diffusers takes the mean of the VAE's distribution, and `noise` for what it draws."""
    module = sys.modules[type(pipeline).__module__]
    before = module.retrieve_latents, module.randn_tensor
    noise = torch.as_tensor(noise, dtype=torch.float32)
    module.retrieve_latents = lambda output, **_: output.latent_dist.mode()
    module.randn_tensor = lambda *_, **__: noise
    try:
        with torch.no_grad():
            yield
    finally:
        module.retrieve_latents, module.randn_tensor = before


def alike(path, expected, where=slice(None)):
    found, want = (np.asarray(each, np.int16)[where] for each in (Image.open(path), expected))
    assert np.abs(found - want).max() <= 1


def test_translate(pipeline, xl_folder, tmp_path):
    image = scenery(tmp_path / "image.png", 64, 48)
    theirs = diffusers.StableDiffusionXLImg2ImgPipeline(**pipeline.components, add_watermarker=False)
    theirs.set_progress_bar_config(disable=True)
    with the_mean_and_noise(theirs, noise_of(tmp_path / "image.png", 6, 1, (1, 4, 6, 8))[0]):
        want = theirs("a wall", image=image, strength=0.6, num_inference_steps=5).images[0]
    arguments = ["--prompt", "a wall", "--strength", 0.6, "--steps", 5, "--seed", 6]
    done = residuald("translate", xl_folder, tmp_path / "image.png", *arguments, "--out", tmp_path / "out.png")
    succeeded(done)
    alike(tmp_path / "out.png", want)


@pytest.mark.parametrize("channels", [4, 9])
def test_inpaint(channels, pipeline, scene, tmp_path):  # noqa: F811
    parts = pipeline.components | {"unet": denoiser(channels=channels, xl=True)}
    theirs = diffusers.StableDiffusionXLInpaintPipeline(**parts, add_watermarker=False)
    theirs.set_progress_bar_config(disable=True)
    folder = write_folder(tmp_path / "pipeline", theirs)
    write_image_encoder(folder, theirs.vae)
    image, mask = Image.open(scene / "image.png"), Image.open(scene / "mask.png")
    noise = noise_of(scene / "image.png", 6, 1, (1, 4, 6, 8))[0]
    options = {"height": 48, "width": 64, "num_inference_steps": 5, "strength": 1.0}
    with the_mean_and_noise(theirs, noise):
        want = theirs("a wall", image=image, mask_image=mask, **options).images[0]
    arguments = ["--mask", scene / "mask.png", "--prompt", "a wall", "--steps", 5, "--seed", 6]
    done = residuald("inpaint", folder, scene / "image.png", *arguments, "--out", tmp_path / "out.png")
    succeeded(done)
    assert Image.open(tmp_path / "out.png").text["guidance"] == "7.5"
    alike(tmp_path / "out.png", want, np.asarray(mask) > 127)


def test_what_is_cut_is_said_once(xl_folder, generate, tmp_path):
    done = generate(xl_folder, "--prompt", "brick " * 100, "--steps", 1, "--out", tmp_path / "out")
    succeeded(done)
    assert done.stderr.count("--prompt is longer than 77 tokens") == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"requires_aesthetics_score": True}, "with `requires_aesthetics_score`, a refiner"),
        ({"text_encoder": [None, None]}, "names no text_encoder"),
        ({"force_zeros_for_empty_prompt": "yes"}, "`force_zeros_for_empty_prompt` must be true or false"),
        ({"controlnet": ["diffusers", "ControlNetModel"]}, "also needs controlnet"),
        ({"_class_name": "StableDiffusionPipeline"}, "which also needs text_encoder_2, tokenizer_2"),
    ],
)
def test_pipelines_that_are_not_supported(fields, said, xl_copy, generate, tmp_path):
    change(xl_copy / "model_index.json", **fields)
    refused(generate(xl_copy, "--prompt", "x", "--out", tmp_path / "out"), DATA, said)


@pytest.mark.parametrize("name", ["tokenizer_2/tokenizer_config.json", "text_encoder_2/model.onnx"])
def test_a_missing_component(name, xl_copy, generate, tmp_path):
    (xl_copy / name).unlink()
    refused(generate(xl_copy, "--prompt", "x", "--out", tmp_path / "out"), DATA, name, "is missing")


@pytest.mark.parametrize(
    ("file", "fields", "said"),
    [
        ("text_encoder_2", {"num_hidden_layers": 9}, "text_encoder_2/model.onnx: has no output `hidden_states.8`"),
        ("text_encoder_2", {"projection_dim": 99}, "returned output `text_embeds` with shape [1, 40]"),
        ("text_encoder_2", {"hidden_size": 99}, "returned output `hidden_states.2` with shape [1, 77, 48]"),
        ("text_encoder_2", {"vocab_size": 1000}, "text_encoder_2/config.json has `vocab_size` 1000"),
        ("text_encoder_2", {"max_position_embeddings": 50}, "the tokenizers give 77 and 50 tokens"),
        ("vae_decoder", STATISTICS | {"latents_mean": [0.0]}, "`latents_mean` must be 4 numbers"),
        ("vae_decoder", STATISTICS | {"latents_std": [1, 1, 0, 1]}, "`latents_std` must be 4 numbers"),
    ],
)
def test_a_component_of_another_model(file, fields, said, xl_copy, generate, tmp_path):
    change(xl_copy / file / "config.json", **fields)
    refused(generate(xl_copy, "--prompt", "x", "--steps", 1, "--out", tmp_path / "out"), DATA, said)
