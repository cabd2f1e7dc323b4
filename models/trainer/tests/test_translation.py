"""Tests of the training on pairs of images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from residuald_train.bundle.served import session
from residuald_train.cli import main
from residuald_train.images import translation
from residuald_train.images.translation import Options

SMALL = Options(steps=4, batch=2, crop=32, widths=(16, 32), threads=1)


def random_pairs(count=3, size=(37, 45)):
    rng = np.random.default_rng(0)
    return [
        (rng.integers(0, 256, (*size, 1), np.uint8), rng.integers(0, 256, (*size, 3), np.uint8)) for _ in range(count)
    ]


def write_pairs(folder, count=9, size=40):
    """Targets are gradients, sources are their negatives."""
    ramp = np.linspace(0, 255, size).astype(np.uint8)
    for i in range(count):
        target = np.roll(np.tile(ramp, (size, 1)), 4 * i, 1)
        for kind, image in (("source", 255 - target), ("target", target)):
            path = folder / kind / "below" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder


def test_training_goes_on_where_it_was_interrupted(tmp_path):
    pairs, checkpoint = random_pairs(), tmp_path / "checkpoint"
    whole = translation.fit(pairs, SMALL)
    translation.fit(pairs, SMALL, checkpoint, stop=2)
    resumed = translation.fit(pairs, SMALL, checkpoint, resume=True)
    assert (resumed.steps, resumed.losses) == (4, whole.losses)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_the_graph_takes_any_size_and_batch():
    denoiser = translation.fit(random_pairs(), SMALL)
    files, error = translation.files(denoiser, 3, 1, SMALL)
    assert error < 1e-4
    run = session(files["unet/model.onnx"])
    for n, h, w in ((1, 32, 32), (1, 3, 5), (3, 5, 70), (65, 9, 8)):
        sample, t = torch.randn(n, 4, h, w), torch.full((n,), 400)
        (got,) = run.run(None, {"sample": sample.numpy(), "timestep": t.numpy()})
        with torch.no_grad():
            want = denoiser(sample, t).numpy()
        assert got.shape == (n, 3, h, w)
        assert np.abs(got - want).max() < 1e-4, (n, h, w)


def test_a_simple_translation_is_learned(tmp_path, capsys):
    data, out = write_pairs(tmp_path / "pairs"), tmp_path / "out"
    arguments = ["translate", "--pairs", str(data), "--channels", "1", "--crop", "32", "--out", str(out)]
    assert main([*arguments, "--steps", "120", "--batch", "8", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    found, same = (
        float(part.split(" dB")[0].split()[-1])
        for part in said.split("held-out pairs:")[1].split(";")[0].split("(source")
    )
    assert found > same + 6, said
    index = json.loads((out / "model_index.json").read_text())
    assert (index["_class_name"], index["conditioning"]) == ("DDIMPipeline", "concat")
    config = json.loads((out / "unet/config.json").read_text())
    assert (config["in_channels"], config["out_channels"]) == (2, 1)
    assert main(arguments) == 65
    assert "holds a pipeline already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: (folder / "target/below/3.png").unlink(), "target lacks 1 images that"),
        (lambda folder: Image.new("L", (41, 40)).save(folder / "target/below/3.png"), "align them first"),
        (lambda folder: (folder / "target/below/3.png").write_bytes(b"no"), "cannot be read"),
        (lambda folder: [p.unlink() for p in folder.rglob("[2-8].png")], "has 2 pairs; training needs at least 8"),
        (lambda folder: [p.unlink() for p in folder.rglob("*.png")], "contains no images"),
    ],
)
def test_bad_pairs_are_refused(tmp_path, capsys, break_it, said):
    data = write_pairs(tmp_path / "pairs")
    break_it(data)
    assert (
        main(["translate", "--pairs", str(data), "--channels", "1", "--crop", "32", "--out", str(tmp_path / "out")])
        == 65
    )
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
