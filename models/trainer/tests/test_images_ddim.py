"""Tests of the ddim recipe, and of the export of any denoiser that is called like a diffusers model."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from residuald_train.bundle.export import to_onnx
from residuald_train.bundle.served import run_onnx, session
from residuald_train.images import ddim, generative
from residuald_train.images.export import make_bundle
from residuald_train.images.pixels import Shape
from residuald_train.images.scorer import run_torch

diffusers = pytest.importorskip("diffusers")
SHAPE = Shape(32, 32, 3)


@pytest.fixture(scope="module")
def stock():
    """A model of diffusers that the trainer did not make."""
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def test_a_stock_denoiser_is_exported(stock, images):
    scorer = ddim.Scorer(SHAPE, stock, diffusers.DDPMScheduler(), calls=2).eval()
    model = to_onnx(scorer, (torch.zeros(2, 32, 32, 3, dtype=torch.uint8),))
    want, got = run_torch(scorer, images), run_onnx(session(model), images)
    assert np.allclose(want[0], got[0], rtol=1e-4)
    assert np.abs(want[2].astype(int) - got[2]).max() <= 1
    assert np.allclose(run_onnx(session(model), images, 1)[0], got[0], rtol=1e-5)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
def test_steps_are_those_of_the_scheduler(stock, predicts):
    scheduler = diffusers.DDIMScheduler(prediction_type=predicts, steps_offset=0)
    scorer = ddim.Scorer(SHAPE, stock, scheduler, noise_level=0.4, calls=2)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    times = [*scorer.timesteps, -1]
    want = scheduler.add_noise(x, scorer.noise, torch.tensor([times[0]]))
    with torch.no_grad():
        for t, after in pairwise(times):
            out = stock(want, torch.tensor([t]), return_dict=False)[0]
            scheduler.num_inference_steps = scheduler.config.num_train_timesteps // (t - after)
            if t - scheduler.config.num_train_timesteps // scheduler.num_inference_steps != after and after >= 0:
                pytest.skip("the scheduler cannot take this step")
            want = scheduler.step(out, t, want).prev_sample
        got = scorer.restore(x)
    assert torch.allclose(want, got, atol=1e-4)


def test_the_bare_denoiser_has_the_names_of_diffusers(stock):
    scorer = ddim.Scorer(SHAPE, stock, ddim.make_scheduler())
    files, _ = generative.files(generative.Plain(scorer.denoiser), SHAPE, scorer.scheduler)
    run = session(files["denoiser.onnx"])
    assert [i.name for i in run.get_inputs()] == ["sample", "timestep"]
    assert [o.name for o in run.get_outputs()] == ["out_sample"]
    assert diffusers.DDIMScheduler.from_config(json.loads(files["scheduler_config.json"])).config.beta_end == 0.02
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    got = run.run(None, {"sample": x, "timestep": np.array([7, 900])})[0]
    with torch.no_grad():
        want = stock(torch.as_tensor(x), torch.tensor([7, 900])).sample.numpy()
    assert np.allclose(got, want, atol=1e-4)


def test_a_ddim_bundle(images):
    options = ddim.Options(steps=2, batch=2, widths=(16, 16), calls=2, threads=1)
    scorer = ddim.fit(SHAPE, images, options)
    facts = {"name": "d", "version": "1", "training": {"seed": 0}}
    files, _, score = make_bundle(scorer, images, np.arange(3), facts, {"scheduler_config.json": b"{}"})
    manifest = json.loads(files["manifest.json"])
    assert manifest["scoring"]["recipe"] == "ddim"
    assert manifest["scoring"]["timesteps"] == [250, 125]
    assert set(manifest["files"]) == set(files) - {"manifest.json"}
    assert score.shape == (3,)
