"""Tests of `--defects`: drawn by code, painted by a text-to-image pipeline, and mixed into training."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from residuald_train import TrainerError
from residuald_train.cli import main
from residuald_train.images import corruption, drawn
from residuald_train.images.corruption import Corruption
from residuald_train.images.defects import NAMES, CodeDefects, Defects, DrawnDefects, Pairs
from residuald_train.images.pixels import Shape
from residuald_train.images.train import Crops, Options, fit

SHAPE = Shape(48, 64, 1)
SMALL = Options(steps=4, batch=4, threads=1)
QUICK = ["--size", "48x64", "--steps", "3", "--batch", "2", "--threads", "1"]
PROMPTS = "a red square", "a blue square"


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 48, 64, 1), np.uint8)


@pytest.fixture(scope="module")
def textures(pipeline_files, tmp_path_factory):
    """A folder of a pipeline that draws 64x64 RGB images, in 4 steps."""
    folder, (files, _) = tmp_path_factory.mktemp("pipeline"), pipeline_files
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"steps": 4}))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for i in range(16):
        Image.fromarray(rng.integers(90, 160, (48, 64), np.uint8)).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture
def few(monkeypatch):
    """Makes fewer masks, which takes less time."""
    monkeypatch.setattr(corruption, "BANK", 64)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# --- drawn by code -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_defects_of_code_are_local_and_of_their_seed(name, few):
    x = torch.randn(8, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    first, again, other = (CodeDefects((name,), Corruption(64, seed))(x)[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    changed = ((first - x).abs() > 0.05).float().mean((1, 2, 3))
    assert changed.mean() < 0.4
    assert (changed > 0).sum() >= 6


def test_without_defects_training_takes_the_random_numbers_that_it_always_took(images):
    corrupt = Corruption(32, 1)
    x = Crops(images, 32, "cpu", corrupt.g)(3)
    means = [*x.mean((1, 2, 3)).tolist(), *corrupt(x).mean((1, 2, 3)).tolist()]
    assert means == pytest.approx([0.1761, -0.1111, -0.0865, 0.2293, -0.1111, -0.0865], abs=2e-4)
    assert int(torch.randint(10**9, (), generator=corrupt.g)) == 381296567


def test_training_with_defects_resumes_exactly_and_as_itself_only(images, few, tmp_path):
    file, options = tmp_path / "checkpoint", replace(SMALL, defects=Defects(NAMES))
    whole = fit(SHAPE, images, options)
    assert not same(whole, fit(SHAPE, images, SMALL))
    fit(SHAPE, images, options, file, stop=2)
    assert same(whole, fit(SHAPE, images, options, file, resume=True))
    for changed in (None, Defects(NAMES[:1])):
        with pytest.raises(TrainerError, match="another defects"):
            fit(SHAPE, images, replace(SMALL, defects=changed), file, resume=True)


# --- painted by a pipeline -----------------------------------------------------------------


def test_pairs_resume_exactly_and_change_nothing_outside_their_masks(textures, images, tmp_path):
    pipeline, file = drawn.read_pipeline(textures, SHAPE), tmp_path / "pairs"
    assert pipeline.side == 48
    options = replace(SMALL, defects=Defects(PROMPTS, pipeline=pipeline.sha256, pairs=3))
    whole = drawn.draw_pairs(pipeline, images, options, file)
    state = torch.load(file, weights_only=True)
    torch.save(state | {"done": 1, "square": state["square"][:1]}, file)
    resumed = drawn.draw_pairs(pipeline, images, options, file, resume=True)
    for name in ("row", "corner", "middle", "square"):
        assert (getattr(whole, name) == getattr(resumed, name)).all(), name
    x, y = whole.with_defect(images, np.arange(3))
    share = (x != y).mean((1, 2, 3))
    assert ((share > 0.005) & (share < 0.5)).all()
    with pytest.raises(TrainerError, match="another seed"):
        drawn.draw_pairs(pipeline, images, replace(options, seed=1), file, resume=True)
    many = replace(options, defects=replace(options.defects, pairs=10**6))
    with pytest.raises(TrainerError, match="--draw-pairs 1000000: at most 932067 of 48x48 pixels fit into 2 GiB"):
        drawn.draw_pairs(pipeline, images, many)


def test_crops_of_pairs_show_the_defect_and_differ_nowhere_else():
    images = np.full((2, 96, 128, 1), 100, np.uint8)
    images[:, ::2] = 120
    square = images[:1, :32, :32].copy()
    square[:, 2:8, 20:26] = 255
    pairs = Pairs(np.array([1]), np.array([[60, 4]]), np.array([[5, 23]]), square)
    crops = Crops(images, 48, "cpu", torch.Generator().manual_seed(0))
    x, y = DrawnDefects(pairs, crops)(torch.zeros(64, 1, 48, 48))
    changed = ((y - x).abs() > 0.5).float().mean((1, 2, 3))
    assert (changed > 0.25 * 36 / 48**2).all()
    assert (changed < 0.1).all()


def test_a_bundle_with_drawn_defects(data, textures, few, tmp_path, capsys):
    out, sheets = tmp_path / "bundle", tmp_path / "sheets"
    options = ["images", "--data", str(data), "--out", str(out), *QUICK]
    painted = ["--defects", *PROMPTS, "--draw-with", str(textures), "--draw-pairs", "2", "--samples", str(sheets)]
    assert main([*options, *painted]) == 0
    assert "defects: drew 2; " in capsys.readouterr().err
    recorded = json.loads((out / "manifest.json").read_text())["training"]["options"]["defects"]
    sha256 = drawn.read_pipeline(textures, SHAPE).sha256
    assert recorded == {"words": list(PROMPTS), "share": 0.25, "pipeline": sha256, "pairs": 2}
    assert Image.open(sheets / "defects.png").size == (2 * 64 + 12, 2 * 48 + 12)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "sheets"]  # no checkpoint is left


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--defects", "hole", "--recipe", "ddim"], "--defects is for --recipe blind or best"),
        (["--defects", "a hole"], "--defects must be scratch, hole, smear without --draw-with, not 'a hole'"),
        (["--defects", "hole", "--draw-pairs", "4"], "--draw-pairs has no effect without --draw-with"),
        (["--draw-with", "TEXTURES"], "--draw-with has no effect without --defects"),
        (["--defects", "a", "b", "--draw-with", "TEXTURES", "--draw-pairs", "1"], "--draw-pairs must be at least 2"),
        (["--defects", "a", "--draw-with", "DATA"], "is no text-to-image pipeline with its text encoder; it lacks"),
    ],
)
def test_what_does_not_fit_together_is_refused(data, textures, tmp_path, capsys, options, said):
    named = {"TEXTURES": str(textures), "DATA": str(data)}
    options = [named.get(each, each) for each in options]
    assert main(["images", "--data", str(data), "--out", str(tmp_path / "b"), *QUICK, *options]) == 65
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "change", "shape", "said"),
    [
        ("unet/config.json", {"in_channels": 100}, SHAPE, "takes more than latent images of 48 channels"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, SHAPE, "takes more than latent images"),
        ("unet/config.json", {"sample_size": None}, SHAPE, "unet/ or vae_decoder/config.json lacks"),
        ("vae_decoder/config.json", {"out_channels": 1}, Shape(48, 64, 3), "draws 1 channels, which does not fit"),
        (
            "unet/config.json",
            {"block_out_channels": [1] * 5},
            SHAPE,
            "multiples of 64 pixels, larger than --size 48x64",
        ),
    ],
)
def test_a_pipeline_that_does_not_fit_is_refused(textures, file, change, shape, said):
    path = textures / file
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(before) | change))
        with pytest.raises(TrainerError, match=said):
            drawn.read_pipeline(textures, shape)
    finally:
        path.write_text(before)
