"""Tests of pipelines of diffusers that are made of bundles."""

import json

import diffusers
import numpy as np
import pytest
import torch

from residuald_train import TrainerError
from residuald_train.bundle.export import write
from residuald_train.bundle.served import session, sha256s
from residuald_train.cli import main
from residuald_train.images import export_diffusers, generative
from residuald_train.images.pixels import Shape

SHAPE = Shape(16, 24, 3)


@pytest.fixture(scope="module")
def files():
    """{name: bytes} of a bundle with an untrained denoiser. It has no scorer, which the export does not read."""
    torch.manual_seed(0)
    denoiser = generative.Denoiser(SHAPE, generative.Options()).eval()
    found, _ = generative.files(denoiser, SHAPE, generative.make_scheduler())
    return found


@pytest.fixture
def bundle(files, tmp_path):
    return save(tmp_path / "bundle", files, SHAPE.manifest())


def save(folder, files, model_input):
    manifest = json.dumps({"input": model_input, "files": sha256s(files)}).encode()
    write(folder, files | {"manifest.json": manifest})
    return folder


class Denoiser(torch.nn.Module):
    """An exported denoiser as diffusers calls it."""

    def __init__(self, folder):
        super().__init__()
        config = json.loads((folder / "unet/config.json").read_text())
        self.config = diffusers.configuration_utils.FrozenDict(config)
        self.run = session((folder / "unet/model.onnx").read_bytes())
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, sample, timestep):
        t = np.full(len(sample), int(timestep))
        (out,) = self.run.run(["out_sample"], {"sample": sample.numpy(), "timestep": t})
        return diffusers.models.unets.unet_2d.UNet2DOutput(torch.as_tensor(out))


def test_diffusers_draws_with_the_exported_pipeline(bundle, tmp_path, capsys):
    out = tmp_path / "pipeline"
    assert main(["export-diffusers", str(bundle), "--out", str(out)]) == 0
    assert "draws with 50 steps" in capsys.readouterr().out
    index = json.loads((out / "model_index.json").read_text())
    assert index["_class_name"] == "DDIMPipeline"
    scheduler = diffusers.DDIMScheduler.from_pretrained(out, subfolder="scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    pipeline = diffusers.DDIMPipeline(Denoiser(out), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(3)
    drawn = pipeline(batch_size=2, num_inference_steps=5, generator=noise, output_type="np").images
    assert drawn.shape == (2, 16, 24, 3)
    assert np.allclose(drawn, by_hand(bundle, scheduler), atol=1e-5)


def by_hand(bundle, scheduler):
    """The same draw with the bundle's graph, by the formulas of DDIM (Song et al. 2021) and of v."""
    run, a = session((bundle / "denoiser.onnx").read_bytes()), scheduler.alphas_cumprod.double()
    x = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(3)).double()
    for t in (800, 600, 400, 200, 0):
        inputs = {"sample": x.float().numpy(), "timestep": np.full(2, t)}
        v = torch.as_tensor(run.run(["out_sample"], inputs)[0]).double()
        clean = (a[t].sqrt() * x - (1 - a[t]).sqrt() * v).clamp(-1, 1)
        noise = a[t].sqrt() * v + (1 - a[t]).sqrt() * x
        before = a[t - 200] if t else torch.ones(())
        x = before.sqrt() * clean + (1 - before).sqrt() * noise
    return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def test_tiles_and_other_numbers_of_steps_are_said(files, tmp_path, capsys):
    about = json.dumps(json.loads(files["generative.json"]) | {"steps": 20}).encode()
    tiles = SHAPE.manifest() | {"tiles": {"scale": 1.0, "overlap": 2}}
    bundle = save(tmp_path / "bundle", files | {"generative.json": about}, tiles)
    assert main(["export-diffusers", str(bundle), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "draws with 20 steps, but a DDIMPipeline has 50" in said
    assert "the pipeline draws one tile" in said


def test_what_cannot_draw_images_is_refused(files, bundle, tmp_path):
    def refused(folder, said):
        with pytest.raises(TrainerError, match=said):
            export_diffusers.export(folder, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refused(save(tmp_path / "a", files, {"kind": "tabular"}), "is a bundle of kind tabular")
    refused(save(tmp_path / "b", {"model.onnx": b""}, SHAPE.manifest()), "has no denoiser.onnx, .*--generative")
    refused(tmp_path, "is not a bundle")
    (bundle / "denoiser.onnx").write_bytes(b"another")
    refused(bundle, "was changed after export")
    broken = json.dumps(json.loads(files["scheduler_config.json"]) | {"_class_name": "DDPMScheduler"}).encode()
    refused(
        save(tmp_path / "c", files | {"scheduler_config.json": broken}, SHAPE.manifest()), "draws with DDPMScheduler"
    )


def test_a_bundle_is_not_replaced_by_a_pipeline(bundle, capsys):
    assert main(["export-diffusers", str(bundle), "--out", str(bundle), "--force"]) == 65
    assert "exists and is not a pipeline" in capsys.readouterr().err
