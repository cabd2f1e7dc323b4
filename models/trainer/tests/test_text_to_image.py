"""Tests of the training on images with captions."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from residuald_train import TrainerError
from residuald_train.bundle.served import session
from residuald_train.cli import main
from residuald_train.images import text_to_image
from residuald_train.images.text_encoder import TextEncoder
from residuald_train.images.text_to_image import BLOCK, Options

SMALL = Options(steps=4, batch=2, size=32, drawn=64, widths=(16, 32), threads=1)


def write_images(folder, count=16):
    (folder / "images").mkdir(parents=True)
    lines = ["image,caption"]
    for i in range(count):
        colour = "red" if i % 2 else "blue"
        Image.new("RGB", (33, 40), colour).save(folder / f"images/{i}.png")
        lines.append(f"{i}.png,a {colour} square")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


def read(folder, size):
    captions = text_to_image.read_captions(folder / "captions.csv", folder / "images")
    return text_to_image.read_images(captions, 3, size)


def test_words_that_do_not_fit_are_left_out_and_padding_is_masked(encoder):
    read = TextEncoder(encoder)
    assert read.ids("a red square").tolist() == [1, 4, 5, 7, 2, 0]
    assert read.ids("a red red red red square").tolist() == [1, 4, 5, 5, 5, 2]
    states = read.states(["a red square", "", "a red square"])
    assert states.shape == (3, 6, 16)
    assert (states[0] == states[2]).all()
    assert states[0, 4].any()
    assert not states[0, 5].any()


def test_training_goes_on_where_it_was_interrupted(tmp_path):
    rng, checkpoint = np.random.default_rng(0), tmp_path / "checkpoint"
    images, states = rng.integers(0, 256, (5, 32, 32, 3), np.uint8), rng.normal(size=(6, 4, 16)).astype(np.float32)
    whole = text_to_image.fit(images, np.arange(5), states, SMALL)
    text_to_image.fit(images, np.arange(5), states, SMALL, checkpoint, stop=2)
    resumed = text_to_image.fit(images, np.arange(5), states, SMALL, checkpoint, resume=True)
    assert (resumed.steps, resumed.losses) == (4, whole.losses)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_the_graphs_take_any_size_and_put_pixels_back(encoder, denoiser, pipeline_files):
    read, (files, error) = TextEncoder(encoder), pipeline_files
    assert error < 1e-4
    image = torch.randn(2, 3, 40, 24)
    (latent,) = session(files["vae_encoder/model.onnx"]).run(None, {"sample": image.numpy()})
    assert latent.shape == (2, 3 * BLOCK**2, 40 // BLOCK, 24 // BLOCK)
    (found,) = session(files["vae_decoder/model.onnx"]).run(None, {"latent_sample": latent})
    assert (found == image.numpy()).all()
    states = torch.as_tensor(read.states(["a red square", "a"]))
    inputs = {"sample": latent, "timestep": np.array(300), "encoder_hidden_states": states.numpy()}
    (got,) = session(files["unet/model.onnx"]).run(None, inputs)
    with torch.no_grad():
        want = denoiser(torch.as_tensor(latent), 300, states, return_dict=False)[0].numpy()
    assert np.abs(got - want).max() < 1e-4


def test_the_verb_writes_a_pipeline_of_diffusers(encoder, tmp_path, capsys):
    folder, out = write_images(tmp_path / "data"), tmp_path / "out"
    arguments = ["text-to-image", "--data", str(folder / "images"), "--captions", str(folder / "captions.csv")]
    arguments += ["--text-encoder", str(encoder), "--size", "32", "--drawn", "64", "--out", str(out)]
    assert main([*arguments, "--steps", "2", "--batch", "2", "--threads", "1"]) == 0
    assert "16 with 16 captions" in capsys.readouterr().out
    index = json.loads((out / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    config = json.loads((out / "unet/config.json").read_text())
    assert (config["in_channels"], config["sample_size"]) == (48, 16)
    assert main(arguments) == 65
    assert "holds a pipeline already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["picture,caption", "0.png,a"], "needs the columns image and caption"),
        (["image,caption", "0.png,a", "no.png,a"], "line 3: there is no image"),
        (["image,caption", "0.png,"], "line 2: lacks the caption"),
        (["image,caption", ",a"], "line 2: lacks the image"),
        (["image,caption"], "name 0 images; training needs at least 16"),
    ],
)
def test_bad_captions_are_refused(tmp_path, lines, said):
    folder = write_images(tmp_path / "data")
    (folder / "captions.csv").write_text("\n".join(lines))
    with pytest.raises(TrainerError, match=said):
        read(folder, 32)


def test_a_small_image_is_refused(tmp_path):
    folder = write_images(tmp_path / "data")
    with pytest.raises(TrainerError, match=r"has 33x40 pixels, less than --size 48"):
        read(folder, 48)
