"""Tests of the distillation to few steps."""

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_text_to_image import SMALL, write_images

from residuald_train.cli import main
from residuald_train.images import distillation, generative, pipeline, text_to_image
from residuald_train.images.pixels import Shape

SHAPE = Shape(8, 8, 1)


@pytest.fixture(scope="module")
def teacher():
    """A denoiser of bright squares at any place of a dark image, and its options."""
    rng = np.random.default_rng(0)
    images = np.full((64, 8, 8, 1), 40, np.uint8)
    for image in images:
        y, x = rng.integers(0, 5, 2)
        image[y : y + 3, x : x + 3] = 220
    options = generative.Options(steps=120, batch=8, threads=1, ema=0.97)
    return generative.fit(SHAPE, images, options), options


def task():
    def call(network, sample, t, _rows, _guidance):
        return network(sample, t)

    return distillation.Task((1, 8, 8), generative.make_scheduler(), call)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_teacher_passes_the_timesteps_of_the_student(steps):
    cuts, alphas = distillation.student_cuts(task(), steps)
    scheduler, many = distillation.teacher_scheduler(generative.make_scheduler()), distillation.teacher_steps(steps)
    scheduler.set_timesteps(many)
    assert scheduler.timesteps[:: many // steps].tolist() == cuts.tolist()
    x, moved = torch.randn(2, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for a, after in itertools.pairwise(alphas):
        clean = distillation.ddim_target(x, moved, a, after)
        assert torch.allclose(distillation.ddim_step(x, clean, a, after), moved, atol=1e-4)


def test_a_student_is_nearer_to_many_steps_than_its_teacher_in_few(teacher, tmp_path):
    denoiser, options = teacher
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    _, scheduler, facts = generative.distill(SHAPE, denoiser, options, 1, tmp_path / "checkpoint", False)
    assert facts["student"] < 0.8 * facts["teacher"]
    assert (scheduler.config.timestep_spacing, scheduler.config.clip_sample) == ("trailing", False)
    assert all(torch.equal(before[name], value) for name, value in denoiser.state_dict().items())


def test_distillation_goes_on_where_it_was_interrupted(teacher, tmp_path, capsys):
    denoiser, options = teacher
    given = distillation.options(2, options)
    whole = distillation.fit(task(), denoiser, given, tmp_path / "whole")
    cut = tmp_path / "cut"
    distillation.fit(task(), denoiser, given, cut, stop=10)
    draws = tmp_path / "cut.draws"
    everything = draws.read_bytes()
    resumed = distillation.fit(task(), denoiser, given, cut, resume=True)
    assert resumed.losses == whole.losses
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name

    draws.write_bytes(everything[: len(everything) * 2 // 3])  # in the middle of a row
    cut.unlink()
    again = distillation.fit(task(), denoiser, given, cut, resume=True, stop=1)
    assert draws.read_bytes() == everything
    assert again.losses == whole.losses[:1]

    other = generative.Denoiser(SHAPE, options).eval()
    capsys.readouterr()
    started = distillation.fit(task(), other, given, cut, resume=True, stop=1)
    assert "belongs to another training; the distillation starts again" in capsys.readouterr().err
    assert started.steps == 1
    assert draws.read_bytes() != everything


def test_guidance_is_learned(tmp_path):
    rng = np.random.default_rng(0)
    images = np.repeat(np.array([20, 235], np.uint8), 8)[:, None, None, None] + np.zeros((16, 32, 32, 3), np.uint8)
    states = np.concatenate([np.repeat(rng.normal(size=(2, 4, 16)), 8, 0), np.zeros((1, 4, 16))]).astype(np.float32)
    options = replace(SMALL, steps=120, batch=4, ema=0.97)
    denoiser = text_to_image.fit(images, np.arange(16), states, options)
    _, _, facts = text_to_image.distill(denoiser, states, options, 1, tmp_path / "checkpoint", False)
    assert facts["student"] < 0.8 * facts["teacher"]


def test_a_trained_model_is_distilled_without_training_it_again(encoder, tmp_path, capsys):
    folder, kept = write_images(tmp_path / "data"), tmp_path / "kept"
    where = folder / "images", folder / "captions.csv", encoder, 3, SMALL
    states = np.zeros((17, 6, 16), np.float32)
    text_to_image.fit(np.zeros((16, 32, 32, 3), np.uint8), np.arange(16), states, SMALL, kept)
    before = torch.load(kept)["average"]
    text_to_image.train(*where, tmp_path / "few", kept, resume=True, steps=3)
    told = capsys.readouterr()
    assert "distilled: 3 steps of the student differ by" in told.out
    assert told.err.index("distill, 1 of 2: the teacher draws") < told.err.index("distill, 2 of 2: trains a student")
    after = torch.load(kept)
    assert after["step"] == SMALL.steps
    assert all(torch.equal(value, after["average"][name]) for name, value in before.items())
    index = json.loads((tmp_path / "few/model_index.json").read_text())
    assert (index["steps"], index["guidance"], index["scheduler"]) == (3, 1.0, ["diffusers", "DDIMScheduler"])


@pytest.mark.parametrize(
    ("verb", "arguments", "said"),
    [
        ("images", ["--generative", "--distill", "5"], "--distill must be 1 to 4, not 5"),
        ("images", ["--distill", "4"], "--distill has no effect without --generative"),
        ("images", ["--generative", "--recipe", "ddim", "--distill", "4"], "--distill is for --recipe blind"),
        ("text-to-image", ["--captions", "c", "--text-encoder", "e", "--distill", "0"], "must be 1 to 4, not 0"),
    ],
)
def test_what_cannot_be_distilled_is_refused(verb, arguments, said, tmp_path, capsys):
    assert main([verb, "--data", str(tmp_path), "--out", str(tmp_path / "out"), *arguments])
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_bundle_draws_in_as_many_steps_as_it_was_distilled_to(tmp_path):
    options = generative.Options(steps=4, batch=2, threads=1)
    settings = SimpleNamespace(generative=options, recipe="blind", shape=SHAPE, distill=2, resume=False)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    files, facts = pipeline.generative_files(settings, None, images, tmp_path / "checkpoint")
    assert json.loads(files["generative.json"])["steps"] == 2
    config = json.loads(files["scheduler_config.json"])
    assert (config["timestep_spacing"], config["prediction_type"]) == ("trailing", "v_prediction")
    assert facts["generative"]["distilled"].items() >= {"draw_steps": 2, "steps": 1}.items()
