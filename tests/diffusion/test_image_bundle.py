"""A bundle for images that carries a denoiser: trained on the digits of scikit-learn, drawn from, and damaged."""

import hashlib
import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from conftest import SIDE, residuald, train, write_digits
from PIL import Image
from test_generate import TOLERANCE, drawn_by_diffusers, on_one_core, pngs, succeeded, traced


class Called(torch.nn.Module):
    """The denoiser, called as the pipelines of diffusers call theirs."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, sample, timestep):
        predicted = self.denoiser(sample, timestep.expand(len(sample)))
        return diffusers.models.unets.unet_2d.UNet2DOutput(sample=predicted)


@pytest.mark.parametrize("name", [None, "DDPMScheduler", "DPMSolverMultistepScheduler"])
def test_a_whole_draw_beside_diffusers(name, trained, generate, tmp_path):
    bundle, denoiser = trained
    config = json.loads((bundle / "scheduler_config.json").read_text())
    scheduler = getattr(diffusers, name or config["_class_name"]).from_config(config)
    steps = 12
    drawn = np.random.default_rng(0).standard_normal((1 + steps, 3, 1, SIDE, SIDE)).astype(np.float32)
    np.save(tmp_path / "noise.npy", drawn)
    arguments = ["--noise", tmp_path / "noise.npy", "--out", tmp_path / "out", "--trace", tmp_path / "trace"]
    arguments += ["--scheduler", name] if name else []
    succeeded(generate(bundle, *arguments, "--steps", steps))
    theirs = drawn_by_diffusers(Called(denoiser), scheduler, steps, drawn)
    assert np.abs(traced(tmp_path / "trace") - theirs).max() <= TOLERANCE * max(1.0, np.abs(theirs).max())
    pixels = np.asarray(Image.open(tmp_path / "out/000002.png"), np.int16)
    assert np.abs(pixels - ((theirs[-1, 2, 0] / 2 + 0.5).clip(0, 1) * 255)).max() <= 1


def test_the_same_bytes_in_any_batch_and_on_any_cores(bundle, generate, tmp_path):
    drawn = {}
    for batch, cores in [(1, 1), (7, 2), (1, 2), (7, 1)]:
        out = tmp_path / f"{batch}-{cores}"
        arguments = [bundle, "--count", 9, "--out", out, "--steps", 4, "--seed", 3, "--batch", batch]
        succeeded(on_one_core(arguments) if cores == 1 else generate(*arguments))
        drawn[batch, cores] = pngs(out)
    first = drawn.pop((1, 1))
    assert len(set(first.values())) == 9
    assert all(other == first for other in drawn.values())


def test_the_drawn_images_are_digits_rather_than_noise(bundle, digits, generate, tmp_path):
    told = json.loads(succeeded(generate(bundle, "--count", 24, "--out", tmp_path / "out", "--json")))
    assert (told["pipeline"], told["steps"], told["scheduler"]) == ("digits", 50, "DDIMScheduler")
    drawn, real = (
        np.stack([np.asarray(Image.open(file), float).ravel() for file in sorted(folder.glob("*.png"))])
        for folder in (tmp_path / "out", digits)
    )
    # The mean of noise is gray everywhere: its correlation with that of digits would be about 0.
    assert np.corrcoef(drawn.mean(0), real.mean(0))[0, 1] > 0.7


def test_detection_is_the_same_without_the_denoiser(bundle, digits, tmp_path):
    plain = train(digits, tmp_path / "digits", "--steps", 20)
    names = ["model.onnx", "calibration.json", "golden.ndjson"]
    assert [(plain / name).read_bytes() for name in names] == [(bundle / name).read_bytes() for name in names]
    refused = residuald("generate", plain, "--out", tmp_path / "out")
    assert refused.returncode == 64
    assert "cannot draw images: train it with `residuald-train images --generative`" in refused.stderr


def test_the_denoiser_of_the_recipe_ddim(generate, tmp_path):
    few = write_digits(tmp_path / "few", 20)
    bundle = train(few, tmp_path / "ddim", "--recipe", "ddim", "--steps", 2, "--generative")
    succeeded(generate(bundle, "--out", tmp_path / "out", "--steps", 3))
    assert Image.open(tmp_path / "out/000000.png").size == (SIDE, SIDE)
    assert "ok: draws images: 4 golden points reproduced" in residuald("check", "--bundle", bundle).stdout


def test_options_of_tables_are_refused_by_name(bundle, generate, tmp_path):
    for option in (["--where", "a=1"], ["--anomalies", "0.1"], ["--key", "id"], ["--report", tmp_path / "r.html"]):
        refused = generate(bundle, "--out", tmp_path / "out", *option)
        assert refused.returncode == 64
        assert f"{option[0]} has no effect, because {bundle} is a bundle for images" in refused.stderr
        assert not (tmp_path / "out").exists()


def test_verbs_for_tables_say_so(bundle, tmp_path):
    (tmp_path / "rows.ndjson").write_text('{"a": 1}\n')
    (tmp_path / "settings.toml").write_text(
        f'kafka.topics = ["a"]\nmodel.bundle = "{bundle}"\nthreshold.false_alarm_rate = 0.01\n'
    )
    for command in (
        ["impute", tmp_path / "rows.ndjson", "--bundle", bundle, "--out", tmp_path / "out.ndjson"],
        ["rehearse", "--config", tmp_path / "settings.toml"],
    ):
        refused = residuald(*command)
        assert refused.returncode == 64, refused.stderr
        assert "the bundle digits reads images" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


@pytest.fixture
def damaged(bundle, tmp_path):
    """A copy of the bundle to damage."""
    return shutil.copytree(bundle, tmp_path / "damaged")


def list_files(folder, **changes):
    """Lists other contents in the manifest: {name with _ for .: bytes, or None to leave the file out}."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, content in changes.items():
        name = name[::-1].replace("_", ".", 1)[::-1]
        if content is None:
            del manifest["files"][name]
        else:
            (folder / name).write_bytes(content)
            manifest["files"][name] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(manifest))


def refusal(folder):
    """What both the check and the drawing say of a bundle."""
    said = [residuald("check", "--bundle", folder), residuald("generate", folder, "--out", folder / "out")]
    assert [done.returncode for done in said] == [65, 65], said
    return said[0].stderr + said[1].stderr


def test_an_altered_part_is_refused(damaged):
    with open(damaged / "denoiser.onnx", "ab") as file:
        file.write(b"\0")
    assert refusal(damaged).count("denoiser.onnx: was altered after export") == 2


@pytest.mark.parametrize("name", ["denoiser_onnx", "scheduler_config_json", "generative_json"])
def test_a_missing_part_is_refused(name, damaged):
    list_files(damaged, **{name: None})
    said = refusal(damaged)
    wanted = name[::-1].replace("_", ".", 1)[::-1]
    assert said.count(f"requires {wanted}: a bundle must contain all files of its generative part or none") == 2


def test_a_part_of_tables_is_refused(damaged):
    list_files(damaged, reference_npy=b"\x93NUMPY")
    assert "reference.npy: is for bundles that read tables" in refusal(damaged)


def test_wrong_golden_points_are_refused(damaged):
    about = json.loads((damaged / "generative.json").read_text())
    about["golden"][0]["noisy"].pop()
    list_files(damaged, generative_json=json.dumps(about).encode())
    assert "generative.json: golden point 1 must have 1024 values" in refusal(damaged)


def test_a_denoiser_with_other_answers_is_refused(damaged):
    about = json.loads((damaged / "generative.json").read_text())
    about["golden"][1]["out_sample"][5] += 0.1
    list_files(damaged, generative_json=json.dumps(about).encode())
    assert refusal(damaged).count("denoiser.onnx: golden point 2 gives") == 2
    assert not list(damaged.glob("out/*.png"))


def test_another_graph_is_refused(damaged):
    list_files(damaged, denoiser_onnx=(damaged / "model.onnx").read_bytes())
    assert refusal(damaged).count("denoiser.onnx: has no input `sample`") == 2


def test_a_scheduler_that_is_none_is_refused(damaged):
    list_files(damaged, scheduler_config_json=b'{"_class_name": "KDPM2DiscreteScheduler"}')
    said = refusal(damaged)
    assert said.count("scheduler_config.json: ") == 2
    assert said.count("KDPM2DiscreteScheduler") == 2
