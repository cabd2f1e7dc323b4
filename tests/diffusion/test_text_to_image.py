"""`residuald generate --prompt` beside diffusers' own pipelines with the same noise.

RESIDUALD_DIFFUSION_SEED draws other prompts.
"""

import json
import os
import random
import shutil
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from reference import noise_from
from test_bad_input import DATA, USAGE, change, refused
from test_generate import IMAGES, TOLERANCE, frames, succeeded, traced
from text_to_image import (
    LATENT,
    latent_consistency,
    older_tokenizer,
    stable_diffusion,
    write_folder,
    write_image_encoder,
)
from transformers import CLIPTokenizer

from residuald_train.bundle.half import round_weights

SEED = int(os.environ.get("RESIDUALD_DIFFUSION_SEED", random.randrange(2**31)))
EXAMPLE = os.environ.get("RESIDUALD_PROMPT_TOKENS", str(ROOT / "target/debug/examples/prompt_tokens"))
PROMPT = "a red brick wall, 8K, très détaillé 🧱"
NEGATIVE = "blurry"
# UNets of Stable Diffusion were trained with this.
TRAINED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
TRAINED |= {"steps_offset": 1, "set_alpha_to_one": False}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return older_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def pipeline(tokenizer):
    return stable_diffusion(tokenizer, diffusers.DDIMScheduler(**TRAINED))


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory, pipeline):
    return write_folder(tmp_path_factory.mktemp("pipelines") / "stable-diffusion", pipeline)


@pytest.fixture
def text_copy(text_folder, tmp_path):
    return shutil.copytree(text_folder, tmp_path / "pipeline")


def prompts(rng, count=1000):
    """Words, marks, digits, emoji, CJK, special tokens and spaces of every kind; some empty, some of 200 words."""
    words = ["a", "photo", "of", "the", "RED", "brick-wall", "it's", "they'll", "we've", "I'm", "don't", "35mm", "4k,"]
    words += ["f/1.8", "naïve", "Straße", "İstanbul", "ﬁne", "x²", "½", "ＡＢＣ"]
    words += [
        "🧱",
        "👩‍👩‍👧",
        "🇩🇪",
        "煉瓦の壁",
        "벽돌",
        "кирпич",
        "जाल",
        "e\u0301",
        "\u1e9b\u0323",
        "\u00a0",
        "\u3000",
        "\t",
        "\n",
    ]
    words += [
        "<|endoftext|>",
        "<|startoftext|>",
        "<|EndOfText|>",
        "!",
        "!!",
        "?!",
        "(((art:1.2)))",
        "_",
        "\u200b",
        "\x85",
        "\ufeff",
    ]
    made = ["", " ", "!", "word " * 200, "x" * 5000, "🧱" * 100]
    while len(made) < count:
        length = 200 if rng.random() < 0.02 else rng.randrange(0, 30)
        drawn = (rng.choice(words) if rng.random() < 0.6 else letters(rng) for _ in range(length))
        made.append(rng.choice([" ", " ", "  ", ""]).join(drawn))
    return made


def letters(rng):
    """A few characters of any script, all but surrogates."""
    ranges = [
        (0x20, 0x7F),
        (0xA0, 0x250),
        (0x370, 0x600),
        (0x900, 0xA00),
        (0x3040, 0x3100),
        (0x4E00, 0x9FFF),
        (0x1F300, 0x1FAFF),
    ]
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 9)))


@pytest.mark.parametrize("padding", ["<|endoftext|>", "!"])
@pytest.mark.parametrize("whole", [False, True])
def test_token_ids(padding, whole, text_copy):
    """Those of transformers, from vocab.json with merges.txt as from tokenizer.json."""
    folder = text_copy / "tokenizer"
    shutil.rmtree(folder)
    tokenizer = older_tokenizer(folder, padding)
    if whole:
        shutil.rmtree(folder)
        tokenizer.save_pretrained(folder)
        assert (folder / "tokenizer.json").exists()
    drawn = prompts(random.Random(SEED))
    lines = "\n".join(map(json.dumps, drawn))
    done = subprocess.run([EXAMPLE, text_copy], input=lines, capture_output=True, text=True, check=True)
    ours = [json.loads(line) for line in done.stdout.splitlines()]
    theirs = CLIPTokenizer.from_pretrained(folder)
    theirs = theirs(drawn, padding="max_length", truncation=True, max_length=theirs.model_max_length)["input_ids"]
    assert len(ours) == len(drawn) == 1000
    for prompt, found, expected in zip(drawn, ours, theirs, strict=True):
        assert found == expected, f"seed {SEED}: {prompt!r}"


def latents(steps, height=LATENT, width=LATENT, seed=0):
    shape = (1 + steps, IMAGES, 4, height, width)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def drawn_by_diffusers(pipeline, steps, drawn, **options):
    """The latents after each step and the images of diffusers' own pipeline."""
    states, at = [], 0

    def keep(_pipeline, step, _timestep, values):
        nonlocal at
        at = step + 1
        states.append(values["latents"].numpy().copy())
        return {}

    with torch.no_grad(), noise_from(lambda: drawn[1 + at]):
        images = pipeline(
            num_inference_steps=steps,
            num_images_per_prompt=IMAGES,
            latents=torch.from_numpy(drawn[0]),
            callback_on_step_end=keep,
            **options,
        ).images
    return np.stack(states), images


def compare(folder, drawn, theirs, generate, tmp_path, *arguments, steps=None):
    """The latents of each step to 1e-4, and the images to one level of 255."""
    steps = steps or len(drawn) - 1
    tmp_path.mkdir(exist_ok=True)
    np.save(tmp_path / "noise.npy", drawn)
    arguments = ["--noise", tmp_path / "noise.npy", "--steps", steps, *arguments]
    done = generate(folder, *arguments, "--out", tmp_path / "out", "--trace", tmp_path / "trace")
    succeeded(done)
    states, images = theirs
    ours = traced(tmp_path / "trace")[1:]
    for found, expected in zip(ours, states, strict=True):
        assert np.abs(found - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max())
    for image, expected in enumerate(images):
        pixels = np.asarray(Image.open(tmp_path / f"out/{image:06}.png"), np.int16)
        assert np.abs(pixels - np.asarray(expected, np.int16)).max() <= 1
    return done


def test_stable_diffusion(pipeline, text_folder, generate, tmp_path):
    drawn = latents(6)
    theirs = drawn_by_diffusers(pipeline, 6, drawn, prompt=PROMPT, negative_prompt=NEGATIVE)
    other = drawn_by_diffusers(pipeline, 6, drawn, prompt="a cat")
    # A pipeline that pays no attention to its text would prove nothing.
    assert np.abs(theirs[0][-1] - other[0][-1]).max() > 100 * TOLERANCE
    arguments = ["--prompt", PROMPT, "--negative", NEGATIVE]
    done = compare(text_folder, drawn, theirs, generate, tmp_path, *arguments)
    assert done.stderr == ""
    shown, _ = frames(tmp_path / "trace/000002/animation.png")
    assert len(shown) == 7
    assert np.array_equal(shown[-1], Image.open(tmp_path / "out/000002.png"))
    assert not np.array_equal(shown[-1], shown[0])
    said = Image.open(tmp_path / "out/000002.png").text
    assert said["prompt"] == PROMPT
    expected = {"negative": NEGATIVE, "scheduler": "DDIMScheduler", "steps": "6", "guidance": "7.5"}
    expected |= {"size": "64x64", "image": "2", "seed": "0"}
    assert said.items() >= expected.items()
    assert said["Software"].startswith("residuald ")


@pytest.mark.parametrize(
    "name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"]
)
def test_other_schedulers_and_sizes(name, tokenizer, text_folder, generate, tmp_path):
    scheduler = getattr(diffusers, name).from_pretrained(text_folder / "scheduler")
    drawn = latents(5, height=6, width=10)
    options = {"prompt": PROMPT, "height": 48, "width": 80, "guidance_scale": 4.0}
    theirs = drawn_by_diffusers(stable_diffusion(tokenizer, scheduler), 5, drawn, **options)
    named = {"EulerDiscreteScheduler": "euler-discrete", "DPMSolverMultistepScheduler": "dpm-solver-multistep"}
    arguments = ["--prompt", PROMPT, "--guidance", 4, "--size", "80x48"]
    arguments += ["--scheduler", named.get(name, "euler-ancestral-discrete")]
    compare(text_folder, drawn, theirs, generate, tmp_path, *arguments)


def test_pndm(tokenizer, text_copy, generate, tmp_path):
    """As Stable Diffusion 1 names it. It takes one timestep twice, so the noise file has one more entry."""
    options = {name: value for name, value in TRAINED.items() if name != "clip_sample"}
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=True, **options)
    scheduler.save_pretrained(text_copy / "scheduler")
    change(text_copy / "model_index.json", scheduler=["diffusers", "PNDMScheduler"])
    drawn = latents(6)
    theirs = drawn_by_diffusers(stable_diffusion(tokenizer, scheduler), 5, drawn, prompt=PROMPT)
    assert len(theirs[0]) == 6
    done = compare(text_copy, drawn, theirs, generate, tmp_path, "--prompt", PROMPT, steps=5)
    assert done.stderr == "PNDMScheduler makes 6 steps of 5, as in diffusers\n"


@pytest.mark.parametrize("guidance", [0, 1])
def test_without_guidance(guidance, pipeline, text_folder, generate, tmp_path):
    """As Turbo models are run: one to four steps, guided by nothing."""
    drawn = latents(2)
    theirs = drawn_by_diffusers(pipeline, 2, drawn, prompt=PROMPT, guidance_scale=float(guidance))
    arguments = ["--prompt", PROMPT, "--guidance", guidance, "--negative", NEGATIVE]
    done = compare(text_folder, drawn, theirs, generate, tmp_path, *arguments)
    assert done.stderr == f"--negative has no effect: there is no classifier-free guidance with --guidance {guidance}\n"


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 3.0}])
def test_latent_consistency(options, tokenizer, generate, tmp_path):
    pipeline = latent_consistency(tokenizer, diffusers.LCMScheduler(**TRAINED))
    folder = write_folder(tmp_path / "pipeline", pipeline, external=True)
    assert (folder / "text_encoder/model.onnx_data").exists()
    drawn = latents(4)
    theirs = drawn_by_diffusers(pipeline, 4, drawn, prompt=PROMPT, **options)
    arguments = ["--guidance", 3] if options else []
    compare(folder, drawn, theirs, generate, tmp_path, "--prompt", PROMPT, *arguments)


def test_latent_consistency_without_image(tokenizer, generate, tmp_path):
    pipeline = latent_consistency(tokenizer, diffusers.LCMScheduler(**TRAINED))
    folder = write_folder(tmp_path / "pipeline", pipeline)
    scenery(tmp_path / "image.png")
    done = generate(folder, "--prompt", "x", "--image", tmp_path / "image.png", "--out", tmp_path / "out")
    refused(done, USAGE, "--image has no effect", "LatentConsistencyModelPipeline")


def test_half_precision(tokenizer, generate, tmp_path):
    pipeline = stable_diffusion(tokenizer, diffusers.DDIMScheduler(**TRAINED))
    folder = write_folder(tmp_path / "pipeline", pipeline, half=True)
    drawn = latents(3)
    theirs = drawn_by_diffusers(pipeline, 3, drawn, prompt=PROMPT, guidance_scale=2.0)
    np.save(tmp_path / "noise.npy", drawn)
    arguments = ["--noise", tmp_path / "noise.npy", "--out", tmp_path / "out", "--trace", tmp_path / "trace"]
    succeeded(generate(folder, *arguments, "--steps", 3, "--prompt", PROMPT, "--guidance", 2))
    # Ten bits of mantissa.
    assert np.abs(traced(tmp_path / "trace")[1:] - theirs[0]).max() < 0.05


def test_the_same_bits_in_any_batch_and_count(text_folder, generate, tmp_path):
    drawn = []
    for count, batch in [(3, 1), (5, 4)]:
        out = tmp_path / f"{count}"
        arguments = ["--prompt", PROMPT, "--steps", 2, "--seed", 7, "--count", count, "--batch", batch, "--out", out]
        succeeded(generate(text_folder, *arguments))
        drawn.append([(out / f"{image:06}.png").read_bytes() for image in range(3)])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 3


def test_one_part_in_memory_at_a_time(text_folder, generate, tmp_path):
    """`--low-memory`, with so many large images and states that they take two turns."""
    arguments = ["--prompt", PROMPT, "--steps", 1, "--size", "256x256", "--count", 9]
    drawn = []
    for name, more in [("low", ["--low-memory"]), ("usual", [])]:
        out, trace = tmp_path / name, tmp_path / f"{name}-trace"
        succeeded(generate(text_folder, *arguments, *more, "--out", out, "--trace", trace))
        files = [*out.rglob("*.png"), *trace.rglob("*.*")]
        drawn.append({str(file).replace(name, ""): file.read_bytes() for file in files})
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 9 + 9 * 3


def test_a_contact_sheet_of_large_images(text_folder, generate, tmp_path):
    arguments = ["--prompt", PROMPT, "--steps", 1, "--size", "320x160", "--count", 2]
    succeeded(generate(text_folder, *arguments, "--out", tmp_path / "out", "--sheet", tmp_path / "sheet.png"))
    assert Image.open(tmp_path / "sheet.png").size == (2 * 256 + 4, 128)


@pytest.mark.parametrize(
    ("prompt", "said"), [("brick " * 20_000, "the last 19925 were cut: brick brick"), ("🧱" * 25_000, "were cut")]
)
def test_a_long_prompt(prompt, said, text_folder, generate, tmp_path):
    done = generate(text_folder, "--prompt", prompt, "--steps", 1, "--out", tmp_path / "out", timeout=60)
    succeeded(done)
    assert said in done.stderr
    assert len(done.stderr) < 1500


def test_an_empty_prompt(text_folder, generate, tmp_path):
    done = generate(text_folder, "--prompt", "", "--steps", 1, "--out", tmp_path / "out")
    succeeded(done)
    assert done.stderr == ""


@pytest.mark.parametrize("size", ["0x64", "1x64", "100003x64", "60x64", "64", "64x", "-8x8", "8200x8"])
def test_a_wrong_size(size, text_folder, generate, tmp_path):
    done = generate(text_folder, "--prompt", "x", f"--size={size}", "--out", tmp_path / "out")
    refused(done, USAGE, f"--size {size}: it must be WIDTHxHEIGHT", "a multiple of 8 from 8 to 8192")


def test_text_and_pipelines_that_do_not_fit(folder, text_folder, generate, tmp_path):
    out = ["--out", tmp_path / "out"]
    refused(generate(folder, *out, "--prompt", "x"), USAGE, "--prompt has no effect", "no text encoder")
    refused(generate(folder, *out, "--low-memory"), USAGE, "--low-memory has no effect", "no text encoder")
    refused(generate(text_folder, *out), USAGE, "draws from text: give --prompt")
    refused(generate(ROOT / "models/payments", "--prompt", "x"), USAGE, "--prompt has no effect")
    refused(generate(text_folder, *out, "--prompt", "x", "--guidance", "nan"), USAGE, "--guidance NaN")


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer/tokenizer_config.json",
        "text_encoder/config.json",
        "text_encoder/model.onnx",
        "vae_decoder/config.json",
        "vae_decoder/model.onnx",
        "unet/model.onnx",
    ],
)
def test_a_missing_component(name, text_copy, generate, tmp_path):
    (text_copy / name).unlink()
    refused(generate(text_copy, "--prompt", "x", "--out", tmp_path / "out"), DATA, name, "is missing")


def test_a_missing_file_points_to_the_readme(text_copy, generate, tmp_path):
    readme = text_copy / "README.md"
    readme.write_text("the tokenizer is left out")
    (text_copy / "tokenizer/tokenizer_config.json").unlink()
    refused(generate(text_copy, "--prompt", "x", "--out", tmp_path / "out"), DATA, f"see {readme}")


def test_a_tokenizer_without_files(text_copy, generate, tmp_path):
    (text_copy / "tokenizer/tokenizer.json").unlink()
    done = generate(text_copy, "--prompt", "x", "--out", tmp_path / "out")
    refused(done, DATA, "tokenizer has no tokenizer.json, and no vocab.json with merges.txt")


@pytest.mark.parametrize(
    ("file", "fields", "said"),
    [
        ("text_encoder", {"vocab_size": 1000}, "the tokenizer is another model's"),
        ("text_encoder", {"hidden_size": 64}, "returned output `last_hidden_state` with shape [1, 77, 32]"),
        ("vae_decoder", {"latent_channels": 8}, "has `in_channels` 4, and vae_decoder has `latent_channels` 8"),
        ("vae_decoder", {"scaling_factor": 0}, "`scaling_factor` must be a number above 0"),
        ("vae_decoder", {"block_out_channels": []}, "`block_out_channels` must be a list of 1 to 8"),
        ("vae_decoder", {"block_out_channels": [8, 8]}, "returned output `sample` with shape"),
        ("unet", {"time_cond_proj_dim": 16}, "has no input `timestep_cond`"),
    ],
)
def test_a_component_of_another_model(file, fields, said, text_copy, generate, tmp_path):
    change(text_copy / file / "config.json", **fields)
    refused(generate(text_copy, "--prompt", "x", "--steps", 1, "--out", tmp_path / "out"), DATA, said)


def test_broken_tokenizers(text_copy, generate, tmp_path):
    path = text_copy / "tokenizer/tokenizer.json"
    path.write_text("{}")
    refused(
        generate(text_copy, "--prompt", "x", "--out", tmp_path / "out"), DATA, "is not a tokenizer that can be read"
    )


def test_a_safety_checker_is_not_run(text_copy, generate, tmp_path):
    change(text_copy / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    done = generate(text_copy, "--prompt", "x", "--steps", 1, "--out", tmp_path / "out")
    succeeded(done)
    assert done.stderr == "the pipeline's safety_checker is not run\n"


def scenery(path, width=80, height=48):
    """An image that is not flat."""
    pixels = np.random.default_rng(5).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    image.save(path)
    return image


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_image_to_image(name, older, pipeline, text_copy, generate, tmp_path):
    """Beside diffusers' pipeline that takes the mean of the VAE's distribution, as ours does."""
    write_image_encoder(text_copy, pipeline.vae, older)
    image = scenery(tmp_path / "image.png")
    change(text_copy / "model_index.json", scheduler=["diffusers", name])
    scheduler = getattr(diffusers, name).from_pretrained(text_copy / "scheduler")
    theirs = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components | {"scheduler": scheduler})
    theirs.set_progress_bar_config(disable=True)
    drawn = latents(5, height=6, width=10)
    states, images = img2img_of_diffusers(theirs, image, drawn)
    np.save(tmp_path / "noise.npy", drawn[0])
    arguments = ["--image", tmp_path / "image.png", "--strength", 0.6, "--noise", tmp_path / "noise.npy"]
    arguments += ["--steps", 5, "--prompt", PROMPT, "--out", tmp_path / "out", "--trace", tmp_path / "trace"]
    succeeded(generate(text_copy, *arguments))
    ours = traced(tmp_path / "trace")
    # Three of five steps, after the noisy image.
    assert len(ours) == 4
    for found, expected in zip(ours[1:], states, strict=True):
        assert np.abs(found - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max())
    for number, expected in enumerate(images):
        pixels = np.asarray(Image.open(tmp_path / f"out/{number:06}.png"), np.int16)
        assert np.abs(pixels - np.asarray(expected, np.int16)).max() <= 1


def img2img_of_diffusers(pipeline, image, drawn):
    """The latents after each step, and the images, with a strength of 0.6."""
    module = sys.modules[type(pipeline).__module__]
    before = module.retrieve_latents, module.randn_tensor
    module.retrieve_latents = lambda output, **_: output.latent_dist.mode()
    module.randn_tensor = lambda *_, **__: torch.from_numpy(drawn[0])
    states = []

    def keep(_pipeline, _step, _timestep, values):
        states.append(values["latents"].numpy().copy())
        return {}

    try:
        with torch.no_grad():
            images = pipeline(
                prompt=[PROMPT] * IMAGES,
                image=[image] * IMAGES,
                strength=0.6,
                num_inference_steps=5,
                callback_on_step_end=keep,
            ).images
    finally:
        module.retrieve_latents, module.randn_tensor = before
    return np.stack(states), images


def test_what_is_no_image_to_start_with(pipeline, text_folder, text_copy, generate, tmp_path):
    scenery(tmp_path / "image.png")
    scenery(tmp_path / "odd.png", 81, 48)
    (tmp_path / "text.png").write_text("no image")
    arguments = ["--prompt", "x", "--out", tmp_path / "out", "--image"]
    image = tmp_path / "image.png"
    refused(generate(text_folder, *arguments, image), DATA, "vae_encoder/model.onnx is missing")
    write_image_encoder(text_copy, pipeline.vae)
    refused(generate(text_copy, *arguments, tmp_path / "odd.png"), USAGE, "81x48 pixels", "multiples of 8")
    refused(generate(text_copy, *arguments, tmp_path / "text.png"), DATA, "text.png")
    refused(generate(text_copy, *arguments, tmp_path / "none.png"), DATA, "none.png: No such file")
    refused(generate(text_copy, *arguments, "/dev/zero"), DATA, "is not a regular file")
    refused(generate(text_copy, *arguments, image, "--strength", 1.5), USAGE, "--strength 1.5: it must be from 0 to 1")
    without = ["--prompt", "x", "--out", tmp_path / "out", "--strength", 0.5]
    refused(generate(text_copy, *without), USAGE, "--strength has no effect without --image")
    refused(generate(text_copy, *arguments, image, "--strength", 0.01), USAGE, "of 50 steps leaves no step")


def test_a_distilled_pipeline_beside_diffusers(pipeline, text_folder, generate, tmp_path):
    """residuald-train writes the scheduler, the steps and the guidance that the student was trained for."""
    (tmp_path / "data").mkdir()
    colours = ["red", "blue"] * 8
    for i, colour in enumerate(colours):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"data/{i}.png")
    lines = [f"{i}.png,a {colour} square" for i, colour in enumerate(colours)]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *lines]))
    folder, kept = tmp_path / "distilled", tmp_path / "kept"
    arguments = ["--data", tmp_path / "data", "--captions", tmp_path / "captions.csv", "--text-encoder", text_folder]
    arguments += ["--size", 32, "--drawn", 32, "--steps", 4, "--batch", 2, "--threads", 1, "--checkpoint", kept]
    command = [
        sys.executable,
        "-m",
        "residuald_train.cli",
        "text-to-image",
        *arguments,
        "--distill",
        3,
        "--out",
        folder,
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    unet = diffusers.UNet2DConditionModel.from_config(json.loads((folder / "unet/config.json").read_text()))
    unet.load_state_dict(torch.load(f"{kept}.distill-3", weights_only=True)["average"])
    round_weights(unet)
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    theirs = diffusers.StableDiffusionPipeline(**pipeline.components | {"unet": unet.eval(), "scheduler": scheduler})
    noise = np.random.default_rng(0).standard_normal((1, 48, 8, 8)).astype(np.float32)
    options = {"num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "latent"}
    latent = theirs("a red square", latents=torch.from_numpy(noise), **options).images
    assert scheduler.timesteps.tolist() == [999, 666, 332]
    expected = (torch.nn.functional.pixel_shuffle(latent, 4)[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1).numpy() * 255

    np.save(tmp_path / "noise.npy", noise)
    drawn = ["--prompt", "a red square", "--noise", tmp_path / "noise.npy", "--out", tmp_path / "out"]
    assert succeeded(generate(folder, *drawn)) is not None
    image = Image.open(tmp_path / "out/000000.png")
    assert (image.text["steps"], image.text["guidance"], image.text["scheduler"]) == ("3", "1", "DDIMScheduler")
    assert np.abs(np.asarray(image, np.float32) - expected).max() <= 1
    other = generate(folder, *drawn[:2], "--steps", "4", "--out", tmp_path / "other")
    assert other.returncode == 0
    assert "the model was distilled: it knows only the steps that it draws by default" in other.stderr
