"""Tests of the training on images with captions."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from residuald_train import TrainerError
from residuald_train.bundle.served import session
from residuald_train.cli import main
from residuald_train.images import text_to_image
from residuald_train.images.text_encoder import TextEncoder, only_ids
from residuald_train.images.text_to_image import BLOCK, Options

SMALL = Options(steps=4, batch=2, size=32, drawn=64, widths=(16, 32), threads=1)
WORDS = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4, "red": 5, "blue": 6, "square": 7}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A text encoder whose states are a table of random embeddings, and 0 for padding."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = Tokenizer(models.WordLevel(WORDS, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    for part in ("tokenizer", "text_encoder"):
        (folder / part).mkdir()
    tokenizer.save(str(folder / "tokenizer/tokenizer.json"))
    about = {"model_max_length": 6, "pad_token": "[PAD]"}
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(about))
    config = {"hidden_size": 16, "max_position_embeddings": 6, "vocab_size": len(WORDS)}
    (folder / "text_encoder/config.json").write_text(json.dumps(config))
    table = np.random.default_rng(0).normal(size=(len(WORDS), 16)).astype(np.float32)
    of_ids = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"]) for name in INPUTS]
    states = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["n", "t", 16])
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["found"]),
        helper.make_node("Add", ["attention_mask", "token_type_ids"], ["weight"]),
        helper.make_node("Cast", ["weight"], ["as_float"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["as_float", "last"], ["wide"]),
        helper.make_node("Mul", ["found", "wide"], ["last_hidden_state"]),
    ]
    weights = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([2]), "last")]
    graph = helper.make_graph(nodes, "encoder", of_ids, [states], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(only_ids(model, 0), folder / "text_encoder/model.onnx")
    return folder


INPUTS = "input_ids", "attention_mask", "token_type_ids"


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


def test_the_graphs_take_any_size_and_put_pixels_back(encoder):
    read = TextEncoder(encoder)
    denoiser = text_to_image.make_denoiser(SMALL, 3, 16).eval()
    text_to_image.round_weights(denoiser)
    files, error = text_to_image.files(denoiser, read, SMALL)
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
