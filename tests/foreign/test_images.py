"""Models of images from elsewhere, served by the daemon.

Anomalib's export is stood in for by a module with the inputs and outputs that `anomalib export` writes: `input` float
[N, 3, H, W] in 0..1 -> `pred_score` [N, 1], `pred_label` [N, 1], `anomaly_map` [N, 1, H, W], `pred_mask` [N, 1, H, W].
It works like its PaDiM, with fixed filters instead of downloaded weights.
"""

import json

import numpy as np
import pytest
import torch
from conftest import residuald
from PIL import Image
from test_tables import export
from torch import nn

import residuald_train

SIDE = 48


def picture(rng, broken=False):
    """A smooth texture, uint8 [SIDE, SIDE, 3]; broken ones have a bright square."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    phase = rng.uniform(0, 6, 3)
    image = 128 + 60 * np.sin(6 * x[..., None] + 4 * y[..., None] + phase) + rng.normal(0, 3, (SIDE, SIDE, 3))
    if broken:
        image[10:20, 25:35] = 255
    return image.clip(0, 255).astype(np.uint8)


def write(folder, count, seed, broken=False):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    images = [picture(rng, broken) for _ in range(count)]
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    return np.stack(images)


def as_input(images):
    return torch.as_tensor(images.astype(np.float32) / 255).permute(0, 3, 1, 2)


class LikeAnomalib(nn.Module):
    def __init__(self):
        super().__init__()
        self.near = nn.Conv2d(3, 3, 9, padding=4, padding_mode="reflect", groups=3, bias=False)
        nn.init.constant_(self.near.weight, 1 / 81)

    def forward(self, image):
        heat = (image - self.near(image)).abs().mean(1, keepdim=True)[:, :, ::2, ::2]
        heat = nn.functional.interpolate(heat, scale_factor=2, mode="bilinear")
        score = heat.flatten(1).amax(1, keepdim=True)
        return score, score > 0.3, heat, heat > 0.3


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(3, 3, 5, padding=2)

    def forward(self, sample, timestep):
        return self.net(sample) * (timestep.to(sample.dtype) / 1000)


def judged(bundle, folder, tmp_path):
    """`residuald score` of a folder -> {file name: verdict}."""
    out = tmp_path / "verdicts.ndjson"
    done = residuald("score", folder, "--bundle", bundle, "--false-alarm-rate", "0.05", "--out", out, "--top", 0)
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = [json.loads(line) for line in out.read_text().splitlines()]
    return {verdict["file"]: verdict for verdict in verdicts}


def scores(verdicts):
    return np.array([verdicts[name]["anomaly_score"] for name in sorted(verdicts)])


def test_an_export_like_anomalibs_gives_its_scores_and_regions(tmp_path, check):
    model, names = LikeAnomalib().eval(), ["pred_score", "pred_label", "anomaly_map", "pred_mask"]
    export(model, (torch.zeros(2, 3, SIDE, SIDE),), ["input"], names, tmp_path / "model.onnx")
    write(tmp_path / "normal", 80, 0)
    images = write(tmp_path / "broken", 5, 1, broken=True)
    residuald_train.wrap(tmp_path / "model.onnx", tmp_path / "normal", tmp_path / "bundle")
    check(tmp_path / "bundle")
    verdicts = judged(tmp_path / "bundle", tmp_path / "broken", tmp_path)
    with torch.no_grad():
        want = model(as_input(images))[0].ravel().numpy()
    np.testing.assert_allclose(scores(verdicts), want, rtol=1e-5)
    for verdict in verdicts.values():
        assert verdict["severity"] is not None
        region = verdict["regions"][0]
        assert 5 <= region["y"] <= 20
        assert 20 <= region["x"] <= 35


def test_an_autoencoder_of_images_is_scored_by_its_error(tmp_path, check):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).eval()
    export(model, (torch.zeros(2, 3, SIDE, SIDE),), ["image"], ["restored"], tmp_path / "model.onnx")
    images = write(tmp_path / "normal", 40, 0)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    bundle = tmp_path / "bundle"
    residuald_train.wrap(tmp_path / "model.onnx", tmp_path / "normal", bundle, pixel_mean=mean, pixel_std=std)
    check(bundle)
    x = (as_input(images) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        want = (model(x) - x).double().square().mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(scores(judged(bundle, tmp_path / "normal", tmp_path)), want, rtol=1e-5)


def test_a_denoiser_of_images_is_scored_by_the_error_of_its_noise(tmp_path, check):
    from diffusers import DDPMScheduler

    torch.manual_seed(0)
    model, scheduler = Denoiser().eval(), DDPMScheduler(prediction_type="v_prediction")
    example = torch.zeros(2, 3, SIDE, SIDE), torch.tensor([1])
    export(model, example, ["sample", "timestep"], ["out_sample"], tmp_path / "model.onnx")
    scheduler.save_pretrained(tmp_path)
    images = write(tmp_path / "normal", 40, 0)
    config = tmp_path / "scheduler_config.json"
    bundle = tmp_path / "bundle"
    residuald_train.wrap(tmp_path / "model.onnx", tmp_path / "normal", bundle, scheduler=config, timesteps=(40, 200))
    check(bundle)
    noise = np.random.default_rng(0).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
    x, errors = as_input(images) * 2 - 1, []
    for t, n in zip((40, 200), torch.as_tensor(noise), strict=True):
        a = scheduler.alphas_cumprod[t]
        sample = a.sqrt() * x + (1 - a).sqrt() * n
        with torch.no_grad():
            v = model(sample, torch.tensor([t]))
        errors.append((a.sqrt() * v + (1 - a).sqrt() * sample - n).double().square().mean((1, 2, 3)))
    want = torch.stack(errors).mean(0).numpy()
    np.testing.assert_allclose(scores(judged(bundle, tmp_path / "normal", tmp_path)), want, rtol=1e-5)


def test_sides_that_the_model_leaves_open_are_asked_for(tmp_path, check):
    shapes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    model = nn.Conv2d(3, 1, 3, padding=1).eval()
    torch.onnx.export(
        model,
        (torch.zeros(2, 3, SIDE, SIDE),),
        tmp_path / "model.onnx",
        input_names=["image"],
        output_names=["anomaly_map"],
        dynamic_shapes=(shapes,),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    write(tmp_path / "normal", 20, 0)
    with pytest.raises(residuald_train.TrainerError, match="dynamic sides; pass the size"):
        residuald_train.wrap(tmp_path / "model.onnx", tmp_path / "normal", tmp_path / "bundle")
    residuald_train.wrap(tmp_path / "model.onnx", tmp_path / "normal", tmp_path / "bundle", size=(SIDE, SIDE))
    check(tmp_path / "bundle")
