"""`residuald generate` of whole pipelines, beside diffusers with the same noise: 1e-4 of the images' values."""

import json
import os
import pty
import shutil
import subprocess

import diffusers
import numpy as np
import pytest
import torch
from conftest import RESIDUALD, SIZE, network, write_folder
from PIL import Image
from reference import noise_from
from test_bad_input import USAGE, refused

torch.set_num_threads(1)
diffusers.logging.set_verbosity_error()

TOLERANCE = 1e-4
IMAGES = 3
SCHEDULERS = {
    "DDPMScheduler": {},
    "DDIMScheduler": {},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "UniPCMultistepScheduler": {"solver_order": 3},
    "LCMScheduler": {"original_inference_steps": 50},
}


def noise(steps, images=IMAGES, seed=0):
    return np.random.default_rng(seed).standard_normal((1 + steps, images, 3, SIZE, SIZE)).astype(np.float32)


def drawn_by_diffusers(unet, scheduler, steps, drawn):
    """The states of diffusers' own arithmetic, [1 + steps, N, C, H, W]."""
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(drawn[0]) * float(scheduler.init_noise_sigma)
    states = [x.numpy()]
    at = 1
    with torch.no_grad(), noise_from(lambda: drawn[at]):
        for t in scheduler.timesteps:
            output = unet(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(output, t, x).prev_sample
            at += 1
            states.append(x.numpy())
    return np.stack(states)


def traced(folder, images=IMAGES):
    """The states that --trace wrote, [1 + steps, N, C, H, W]."""
    per_image = [
        np.stack([np.load(file) for file in sorted((folder / f"{image:06}").glob("*.npy"))]) for image in range(images)
    ]
    return np.stack(per_image, axis=1)


def succeeded(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_whole_pipeline_of_diffusers(folder, unet, generate, tmp_path):
    """Not its loop again: DDPMPipeline itself, whose noise is that of the file."""
    steps = 20
    drawn = noise(steps)
    np.save(tmp_path / "noise.npy", drawn)
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler.from_pretrained(folder / "scheduler"))
    pipeline.set_progress_bar_config(disable=True)
    left = iter(drawn)
    module = diffusers.pipelines.ddpm.pipeline_ddpm
    before, module.randn_tensor = module.randn_tensor, lambda *_, **__: torch.from_numpy(next(left))
    try:
        with noise_from(lambda: next(left)):
            theirs = pipeline(batch_size=IMAGES, num_inference_steps=steps, output_type="np").images
    finally:
        module.randn_tensor = before
    arguments = ["--noise", tmp_path / "noise.npy", "--out", tmp_path / "out", "--trace", tmp_path / "trace"]
    succeeded(generate(folder, *arguments))
    last = traced(tmp_path / "trace")[-1]
    ours = (last / 2 + 0.5).clip(0, 1).transpose(0, 2, 3, 1)
    assert np.abs(ours - theirs).max() <= TOLERANCE
    for image, expected in enumerate(pipeline.numpy_to_pil(theirs)):
        pixels = np.asarray(Image.open(tmp_path / f"out/{image:06}.png"), np.int16)
        assert np.abs(pixels - np.asarray(expected, np.int16)).max() <= 1


@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_scheduler(name, unet, generate, tmp_path, folder):
    # The graph takes whole timesteps. Those of linspace, Euler's default, are not.
    options = {"timestep_spacing": "leading"} if name.startswith("Euler") else {}
    scheduler = getattr(diffusers, name)(**SCHEDULERS[name], **options)
    pipeline = tmp_path / "pipeline"
    shutil.copytree(folder, pipeline)
    index = json.loads((pipeline / "model_index.json").read_text())
    index["scheduler"][1] = name
    (pipeline / "model_index.json").write_text(json.dumps(index))
    scheduler.save_pretrained(pipeline / "scheduler")
    steps = 7
    drawn = noise(steps)
    np.save(tmp_path / "noise.npy", drawn)
    arguments = ["--noise", tmp_path / "noise.npy", "--out", tmp_path / "out", "--trace", tmp_path / "trace"]
    told = succeeded(generate(pipeline, *arguments, "--steps", steps, "--json"))
    assert json.loads(told)["scheduler"] == name
    theirs = drawn_by_diffusers(unet, scheduler, steps, drawn)
    for ours, expected in zip(traced(tmp_path / "trace"), theirs, strict=True):
        assert np.abs(ours - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize(
    ("timestep", "external"),
    [
        (torch.tensor(0), False),
        (torch.tensor(0.0), True),
        (torch.zeros(2), False),
        (torch.zeros(2, dtype=torch.int32), False),
    ],
)
def test_timesteps_and_external_data(timestep, external, unet, generate, tmp_path):
    scheduler = diffusers.EulerDiscreteScheduler(
        timestep_spacing="linspace" if timestep.is_floating_point() else "leading"
    )
    pipeline = write_folder(tmp_path / "pipeline", unet, scheduler, timestep=timestep, external=external)
    assert (pipeline / "unet/model.onnx_data").exists() == external
    drawn = noise(4)
    np.save(tmp_path / "noise.npy", drawn[0])
    arguments = ["--noise", tmp_path / "noise.npy", "--out", tmp_path / "out", "--trace", tmp_path / "trace"]
    succeeded(generate(pipeline, *arguments, "--steps", 4, cwd=tmp_path))
    theirs = drawn_by_diffusers(unet, scheduler, 4, drawn)
    difference = np.abs(traced(tmp_path / "trace") - theirs).max(axis=(1, 2, 3, 4))
    assert (difference <= TOLERANCE * np.abs(theirs).max(axis=(1, 2, 3, 4)).clip(1)).all()


def test_half_precision(generate, tmp_path):
    half = network()
    scheduler = diffusers.DDIMScheduler()
    pipeline = write_folder(tmp_path / "pipeline", half, scheduler, "DDIMPipeline", torch.zeros(2), half=True)
    drawn = noise(4)
    np.save(tmp_path / "noise.npy", drawn[0])
    arguments = ["--noise", tmp_path / "noise.npy", "--out", tmp_path / "out", "--trace", tmp_path / "trace"]
    succeeded(generate(pipeline, *arguments, "--steps", 4))
    # Ten bits of mantissa: the network's outputs differ by some thousandths.
    theirs = drawn_by_diffusers(network(), scheduler, 4, drawn)
    assert np.abs(traced(tmp_path / "trace") - theirs).max() < 0.05


def test_learned_variance_and_gray(generate, tmp_path):
    unet = network(channels=1, out_channels=2)
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", num_train_timesteps=30)
    pipeline = write_folder(tmp_path / "pipeline", unet, scheduler)
    drawn = noise(6)[:, :, :1].copy()
    np.save(tmp_path / "noise.npy", drawn)
    arguments = ["--noise", tmp_path / "noise.npy", "--out", tmp_path / "out", "--trace", tmp_path / "trace"]
    succeeded(generate(pipeline, *arguments, "--steps", 6))
    theirs = drawn_by_diffusers(unet, scheduler, 6, drawn)
    assert np.abs(traced(tmp_path / "trace") - theirs).max() <= TOLERANCE
    assert Image.open(tmp_path / "out/000002.png").mode == "L"


def pngs(folder):
    return {file.name: file.read_bytes() for file in folder.glob("*.png")}


def test_the_same_bits_in_any_batch_count_and_on_any_cores(folder, generate, tmp_path):
    drawn = {}
    for batch, cores in [(1, "0"), (7, "0-1"), (64, "0-1")]:
        out = tmp_path / f"{batch}"
        arguments = [folder, "--count", 9, "--out", out, "--steps", 5, "--seed", 3, "--batch", batch]
        binary = generate(*arguments, env=None) if cores == "0-1" else on_one_core(arguments)
        succeeded(binary)
        drawn[batch] = pngs(out)
    assert drawn[1] == drawn[7] == drawn[64]
    assert len(drawn[1]) == 9
    succeeded(generate(folder, "--count", 4, "--out", tmp_path / "four", "--steps", 5, "--seed", 3))
    four = pngs(tmp_path / "four")
    assert four == {name: drawn[1][name] for name in four}
    assert len(four) == 4
    succeeded(generate(folder, "--out", tmp_path / "other", "--steps", 5, "--seed", 4))
    assert pngs(tmp_path / "other")["000000.png"] != four["000000.png"]


def on_one_core(arguments):
    command = ["taskset", "-c", "0", RESIDUALD, "generate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def frames(path):
    """The frames of an animation, and how long each is shown, in milliseconds."""
    with Image.open(path) as animation:
        assert animation.info["loop"] == 0
        shown = []
        for number in range(animation.n_frames):
            animation.seek(number)
            shown.append((np.asarray(animation.convert("RGB")), animation.info["duration"]))
    return [pixels for pixels, _ in shown], [duration for _, duration in shown]


def test_an_animation_from_noise_to_image(folder, generate, tmp_path):
    arguments = ["--count", 2, "--steps", 20, "--out", tmp_path / "out", "--trace", tmp_path / "trace"]
    succeeded(generate(folder, *arguments))
    for image in ("000000", "000001"):
        shown, durations = frames(tmp_path / f"trace/{image}/animation.png")
        assert durations == [200] * 15 + [2000]
        states = [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 16, 17, 18, 20]
        for pixels, state in zip(shown, states, strict=True):
            assert np.array_equal(pixels, Image.open(tmp_path / f"trace/{image}/{state:04}.png"))
        assert np.array_equal(shown[-1], Image.open(tmp_path / f"out/{image}.png"))


def test_a_contact_sheet(folder, generate, tmp_path):
    sheet = tmp_path / "sheet.png"
    arguments = ["--steps", 1, "--sheet", sheet, "--out"]
    told = succeeded(generate(folder, *arguments, tmp_path / "three", "--count", 3))
    assert f"sheet: 3 of them in {sheet}" in told
    pixels = np.asarray(Image.open(sheet))
    assert pixels.shape == (2 * SIZE + 4, 2 * SIZE + 4, 3)
    for image, (x, y) in enumerate([(0, 0), (SIZE + 4, 0), (0, SIZE + 4)]):
        assert np.array_equal(pixels[y : y + SIZE, x : x + SIZE], Image.open(tmp_path / f"three/{image:06}.png"))
    assert (pixels[SIZE + 4 :, SIZE:] == 255).all()
    assert Image.open(sheet).text.items() >= {"images": "3", "scheduler": "DDPMScheduler"}.items()
    refused(generate(folder, *arguments, tmp_path / "other"), USAGE, f"{sheet} exists", "--force")
    none = ["--sheet", tmp_path / "none/sheet.png", "--out", tmp_path / "other"]
    refused(generate(folder, *none), USAGE, "none/sheet.png: there is no such folder")
    told = succeeded(generate(folder, *arguments, tmp_path / "many", "--count", 130, "--force", "--json"))
    assert json.loads(told)["on_sheet"] == 100
    assert Image.open(sheet).size == (10 * (SIZE + 4) - 4, 10 * (SIZE + 4) - 4)


def test_a_terminal_shows_each_step(folder, tmp_path):
    shown = on_a_terminal("generate", folder, "--out", tmp_path / "one", "--steps", 5)
    assert "2/5 steps" in shown
    assert "images," not in shown
    shown = on_a_terminal("generate", folder, "--out", tmp_path / "two", "--steps", 5, "--count", 2)
    assert "/10 steps" in shown
    assert "1/2 images," in shown
    arguments = ["--steps", 4, "--strength", 0.5, "--out", tmp_path / "translated.png"]
    assert "1/2 steps" in on_a_terminal("translate", folder, tmp_path / "one/000000.png", *arguments)
    Image.new("L", (SIZE, SIZE), 255).save(tmp_path / "mask.png")
    arguments = ["--mask", tmp_path / "mask.png", "--steps", 2, "--out", tmp_path / "painted.png"]
    assert "3/6 steps" in on_a_terminal("inpaint", folder, tmp_path / "one/000000.png", *arguments)


def on_a_terminal(*arguments):
    """What residuald writes to its terminal."""
    ours, theirs = pty.openpty()
    command = [RESIDUALD, *map(str, arguments)]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.DEVNULL, env=environment) as process:
        os.close(theirs)
        shown = b""
        try:
            while more := os.read(ours, 4096):
                shown += more
        except OSError:  # the end of a terminal
            os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode()
