"""`residuald inpaint`: beside RePaint in NumPy, and with masks and regions that cannot be used."""

import base64
import gzip
import itertools
import json
import sys

import diffusers
import numpy as np
import pytest
import torch
from conftest import ROOT, SIDE, residuald
from PIL import Image
from restored import Model, levels, noise_of, pixels, save
from text_to_image import denoiser, older_tokenizer, stable_diffusion, write_folder, write_image_encoder


def inpaint(*arguments):
    done = residuald("inpaint", *arguments)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def masked(tmp_path):
    mask = np.zeros((SIDE, SIDE))
    mask[10:20, 8:24] = 255
    return save(tmp_path / "mask.png", mask)


def repaint(model, known, mask, steps, resamplings, noise):
    """Algorithm 1 of the paper, at the leading timesteps of DDIM. `noise()` returns the next standard normals."""
    count = len(model.alphas)
    timesteps = [i * (count // steps) for i in range(steps)][::-1]
    sample = noise()
    for i, t in enumerate(timesteps):
        at = model.alphas[t]
        before = model.alphas[timesteps[i + 1]] if i + 1 < steps else 1.0
        for left in range(resamplings if i + 1 < steps else 1, 0, -1):
            clean = model.clean(sample, t, SIDE).clip(-1, 1)
            predicted = (sample - np.sqrt(at) * clean) / np.sqrt(1 - at)
            variance = (1 - before) / (1 - at) * (1 - at / before)
            if i + 1 == steps:
                sample = clean
                break
            sample = np.sqrt(before) * clean + np.sqrt(1 - before - variance) * predicted + np.sqrt(variance) * noise()
            sample = np.where(mask, sample, np.sqrt(before) * known + np.sqrt(1 - before) * noise())
            if left > 1:
                kept = at / before
                sample = np.sqrt(kept) * sample + np.sqrt(1 - kept) * noise()
    return np.where(mask, sample, known)


@pytest.mark.parametrize("resamplings", [1, 3])
def test_beside_numpy(resamplings, bundle, digits, masked, tmp_path):
    arguments = ["--mask", masked, "--steps", 10, "--resamplings", resamplings, "--seed", 4]
    inpaint(bundle, digits / "0003.png", *arguments, "--out", tmp_path / "out.png")
    known, mask = levels(digits / "0003.png"), levels(masked) > 0
    draws = iter(noise_of(digits / "0003.png", 4, 100, (1, SIDE, SIDE)))
    want = repaint(Model(bundle), known, mask, 10, resamplings, lambda: next(draws))
    found = np.asarray(Image.open(tmp_path / "out.png"), float)
    assert np.abs(found - pixels(want)[0]).max() <= 1
    before = np.asarray(Image.open(digits / "0003.png"))
    assert np.array_equal(found[~mask[0]], before[~mask[0]])
    assert not np.array_equal(found[mask[0]], before[mask[0]])


def test_an_empty_mask_changes_nothing_and_a_full_one_all(bundle, digits, tmp_path):
    image = digits / "0001.png"
    for level, name in [(127, "empty"), (128, "full")]:
        mask = save(tmp_path / f"{name}-mask.png", np.full((SIDE, SIDE), float(level)))
        done = inpaint(bundle, image, "--mask", mask, "--steps", 4, "--out", tmp_path / f"{name}.png")
        same = np.array_equal(np.asarray(Image.open(image)), np.asarray(Image.open(tmp_path / f"{name}.png")))
        assert same == (name == "empty") == ("unchanged: 1" in done.stdout)


def test_the_regions_of_verdicts(bundle, digits, tmp_path):
    rng = np.random.default_rng(0)
    large = rng.uniform(0, 255, (90, 120))
    save(tmp_path / "in/a/large.png", large)
    save(tmp_path / "in/b.png", large[:40])
    save(tmp_path / "in/unknown.png", large)
    save(tmp_path / "in/beyond.png", large)
    region = {"x": 70, "y": 30, "width": 9, "height": 5, "share": 1.0, "area": 0.1}
    lines = [{"file": "a/large.png", "regions": [region, region | {"x": 2}]}, {"file": "b.png", "regions": []}]
    lines += [{"file": "beyond.png", "regions": [region | {"x": 115}]}]
    (tmp_path / "verdicts.ndjson").write_text("\n".join(map(json.dumps, lines)))
    arguments = [
        bundle,
        tmp_path / "in",
        "--regions",
        tmp_path / "verdicts.ndjson",
        "--steps",
        3,
        "--out",
        tmp_path / "out",
    ]
    done = inpaint(*arguments, "--rounds", 1, "--json")
    told = json.loads(done.stdout)
    assert (told["images"], told["unchanged"], told["refused"]) == (2, 1, 2)
    assert "unknown.png: refused: --regions has no verdict of it" in done.stderr
    assert "beyond.png: refused: a region of its verdict reaches beyond" in done.stderr
    changed = np.asarray(Image.open(tmp_path / "out/a/large.png")) != np.asarray(
        Image.open(tmp_path / "in/a/large.png")
    )
    inside = np.zeros_like(changed)
    inside[30:35, 70:79] = inside[30:35, 2:11] = True
    assert changed[inside].mean() > 0.5
    assert not changed[~inside].any()


def test_images_are_drawn_until_the_bundle_finds_them_normal(tmp_path):
    bundle = ROOT / "models/surface"
    (tmp_path / "in").mkdir()
    with gzip.open(bundle / "sample.ndjson.gz") as sample:
        for i, record in enumerate(map(json.loads, itertools.islice(sample, 60))):
            (tmp_path / f"in/{i}.png").write_bytes(base64.b64decode(record["image"]))

    def verdicts(folder, out):
        done = residuald("score", folder, "--bundle", bundle, "--out", tmp_path / out)
        assert done.returncode == 0, done.stderr
        return {line["file"]: line for line in map(json.loads, (tmp_path / out).read_text().splitlines())}

    before = verdicts(tmp_path / "in", "before.ndjson")
    flagged = [name for name, verdict in before.items() if verdict["severity"]]
    assert len(flagged) >= 5
    arguments = [bundle, tmp_path / "in", "--regions", tmp_path / "before.ndjson", "--steps", 8, "--resamplings", 2]
    left = {}
    for rounds in (1, 3):
        out = tmp_path / f"out{rounds}"
        done = inpaint(*arguments, "--rounds", rounds, "--out", out)
        after = verdicts(out, f"after{rounds}.ndjson")
        left[rounds] = [name for name in flagged if after[name]["severity"]]
        normal = len(flagged) - len(left[rounds])
        assert f"repaired: {normal} of {len(flagged)} images are below the bundle's threshold now" in done.stderr
    assert 0 < len(left[1]) < len(flagged)

    def same(name, *folders):
        first, second = (np.asarray(Image.open(tmp_path / folder / name)) for folder in folders)
        return np.array_equal(first, second)

    assert [name for name in flagged if not same(name, "out1", "out3")] == left[1]
    assert all(same(name, "in", "out3") == (name not in flagged) for name in before)


def test_what_cannot_be_done_is_one_line(bundle, digits, tmp_path):
    small = save(tmp_path / "small.png", np.full((5, 9), 255.0))
    image, out = digits / "0000.png", ["--out", tmp_path / "out"]

    def refused(code, *arguments):
        done = residuald("inpaint", *arguments)
        assert done.returncode == code, done.stderr
        return done.stderr

    assert "the mask has 9 x 5 pixels, but its image has 32 x 32" in refused(65, bundle, image, "--mask", small, *out)
    assert "--mask is for one image" in refused(64, bundle, digits, "--mask", small, *out)
    (tmp_path / "bad.png").write_bytes(b"nothing")
    assert "bad.png: the payload is neither" in refused(65, bundle, image, "--mask", tmp_path / "bad.png", *out)
    assert "--prompt has no effect" in refused(64, bundle, image, "--mask", small, "--prompt", "x", *out)
    assert "--rounds has no effect" in refused(64, bundle, image, "--mask", small, "--rounds", 2, *out)
    (tmp_path / "bad.ndjson").write_text('{"x": 1}\n')
    assert "line 1 is no verdict" in refused(65, bundle, image, "--regions", tmp_path / "bad.ndjson", *out)
    assert not list(tmp_path.glob("out/*"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """An image and a mask of 64 x 48 pixels."""
    folder = tmp_path_factory.mktemp("scene")
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    small.resize((64, 48), Image.Resampling.BICUBIC).save(folder / "image.png")
    mask = np.zeros((48, 64))
    mask[9:30, 13:41] = 255
    save(folder / "mask.png", mask)
    return folder


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("channels", [4, 9])
def test_stable_diffusion_beside_diffusers(channels, name, scene, tmp_path):
    tokenizer = older_tokenizer(tmp_path / "tokenizer")
    scheduler = getattr(diffusers, name)(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    parts = stable_diffusion(tokenizer, scheduler).components | {"unet": denoiser(channels=channels)}
    pipeline = diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    folder = write_folder(tmp_path / "pipeline", pipeline)
    write_image_encoder(folder, pipeline.vae)
    image, mask = Image.open(scene / "image.png"), Image.open(scene / "mask.png")
    arguments = ["--mask", scene / "mask.png", "--prompt", "a wall", "--steps", 5, "--seed", 6]
    inpaint(folder, scene / "image.png", *arguments, "--out", tmp_path / "out.png")
    module = sys.modules[type(pipeline).__module__]
    before, module.retrieve_latents = module.retrieve_latents, lambda output, **_: output.latent_dist.mode()
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.tensor(noise_of(scene / "image.png", 6, 1, (1, 4, 6, 8))[0], dtype=torch.float32)
    options = {"height": 48, "width": 64, "num_inference_steps": 5, "latents": noise, "strength": 1.0}
    try:
        with torch.no_grad():
            theirs = pipeline("a wall", image=image, mask_image=mask, **options).images[0]
    finally:
        module.retrieve_latents = before
    inside = np.asarray(mask) > 127
    found, want, known = (np.asarray(each, np.int16) for each in (Image.open(tmp_path / "out.png"), theirs, image))
    assert np.abs(found[inside] - want[inside]).max() <= 1
    assert np.array_equal(found[~inside], known[~inside])
