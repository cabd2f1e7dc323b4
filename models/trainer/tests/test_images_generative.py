"""Tests of the denoiser that a bundle for images draws with."""

import json

import numpy as np
import pytest
import torch

from residuald_train import TrainerError
from residuald_train.bundle.served import session
from residuald_train.cli import main
from residuald_train.images import generative
from residuald_train.images.generative import Options
from residuald_train.images.pixels import Shape

SHAPE = Shape(38, 50, 3)  # no multiples of 2 ** levels


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 38, 50, 3), np.uint8)


def test_training_goes_on_where_it_was_interrupted(images, tmp_path):
    options, checkpoint = Options(steps=4, batch=2, threads=1), tmp_path / "checkpoint"
    whole = generative.fit(SHAPE, images, options)
    generative.fit(SHAPE, images, options, checkpoint, stop=2)
    resumed = generative.fit(SHAPE, images, options, checkpoint, resume=True)
    assert (resumed.steps, resumed.losses) == (4, whole.losses)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_any_size_is_drawn_at_its_own_size(images):
    denoiser = generative.fit(SHAPE, images, Options(steps=1, batch=2, threads=1))
    files, error = generative.files(denoiser, SHAPE, generative.make_scheduler())
    assert error < 1e-4
    about = json.loads(files["generative.json"])
    run = session(files["denoiser.onnx"])
    for point in about["golden"]:
        noisy = np.array(point["noisy"], np.float32).reshape(1, 3, 38, 50)
        got = run.run(None, {"sample": noisy, "timestep": np.array([point["timestep"]])})[0]
        assert np.abs(got.ravel() - point["out_sample"]).max() < 1e-4
    timesteps = [point["timestep"] for point in about["golden"]]
    assert (timesteps[0], timesteps[-1]) == (999, 0)
    assert sum(len(point["noisy"]) for point in about["golden"]) <= generative.GOLDEN_VALUES


def test_a_padded_size_of_ddim_is_refused_before_training():
    generative.check_size("blind", SHAPE)
    generative.check_size("ddim", Shape(64, 96, 1))
    with pytest.raises(TrainerError, match="multiples of 32, not 38x50"):
        generative.check_size("ddim", SHAPE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--generative-steps", "9"], "--generative-steps has no effect without --generative"),
        (["--generative", "--generative-minutes", "9", "--recipe", "ddim"], "ddim has one denoiser, so use --minutes"),
        (["--generative", "--generative-minutes", "0"], "--generative-minutes must be a positive number"),
    ],
)
def test_options_without_effect_are_refused(arguments, said, tmp_path, capsys):
    code = main(["images", "--data", str(tmp_path), "--out", str(tmp_path / "out"), *arguments])
    assert code
    assert said in capsys.readouterr().err
