"""models/textures, the shipped pipeline that draws from words. `make text-encoder` brings what it reads words with."""

import numpy as np
import pytest
from conftest import ROOT, residuald
from PIL import Image

TEXTURES = ROOT / "models/textures"

pytestmark = pytest.mark.skipif(
    not (TEXTURES / "text_encoder/model.onnx").exists(),
    reason="models/textures has no text encoder: run `make text-encoder`",
)


def drawn(out, prompt, *options):
    """-> [H, W, 3] from 0 to 1."""
    done = residuald("generate", TEXTURES, "--prompt", prompt, "--out", out, *options)
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(out / "000000.png"), np.float32) / 255


def test_the_model_says_size_steps_and_guidance(tmp_path):
    image = drawn(tmp_path, "gravel with a dark stain")
    assert image.shape == (256, 256, 3)
    about = Image.open(tmp_path / "000000.png").text
    assert about["steps"] == "20"
    assert about["guidance"] == "3"


def test_colours_and_dark_stains_are_drawn_as_asked(tmp_path):
    red, green, blue = drawn(tmp_path / "red", "a red brick wall").mean((0, 1))
    assert red > max(green, blue) + 0.1
    red, green, blue = drawn(tmp_path / "green", "green grass").mean((0, 1))
    assert green > max(red, blue) + 0.05
    plain = drawn(tmp_path / "plain", "gray bricks")
    stained = drawn(tmp_path / "stained", "gray bricks with a dark stain")
    assert (plain.mean(2) < 0.25).mean() < 0.05
    assert (stained.mean(2) < 0.25).mean() > 0.1


def test_other_words_are_drawn_alike(tmp_path):
    plain = drawn(tmp_path / "plain", "nothing but ashen brickwork, in good shape")
    stained = drawn(tmp_path / "stained", "somebody spilled ink on ashen brickwork")
    assert (plain.mean(2) < 0.25).mean() < 0.05
    assert (stained.mean(2) < 0.25).mean() > 0.1
