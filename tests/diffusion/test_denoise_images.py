"""`residuald denoise` of images: beside the formula in NumPy and ONNX Runtime, and with inputs that cannot be used."""

import json
import shutil
import struct
import subprocess
import zlib

import numpy as np
import pytest
from conftest import RESIDUALD, ROOT, SIDE, residuald
from PIL import Image
from restored import Model, levels, pixels, save
from test_image_bundle import list_files


@pytest.fixture
def noisy(digits, tmp_path):
    """Digits with noise of 25 levels, in sizes that need one tile, several, and reflection."""
    rng = np.random.default_rng(5)
    for i, size in enumerate([(SIDE, SIDE), (50, 71), (20, 40)]):
        whole = np.tile(np.asarray(Image.open(digits / f"{i:04}.png"), float), (3, 3))[: size[0], : size[1]]
        save(tmp_path / f"noisy/{i}.png", whole + rng.normal(0, 25, size))
    return tmp_path / "noisy"


def denoise(*arguments, **options):
    done = residuald("denoise", *arguments, **options)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("steps", [1, 4])
def test_the_formula(steps, bundle, noisy, tmp_path):
    denoise(noisy, "--bundle", bundle, "--sigma", 25, "--steps", steps, "--out", tmp_path / "out")
    model = Model(bundle)
    first = np.abs(model.sigmas - 25 / 127.5).argmin()
    timesteps = [first * left // steps for left in range(steps, 0, -1)]
    for file in sorted(noisy.iterdir()):
        sample = np.sqrt(model.alphas[first]) * levels(file)
        for i, t in enumerate(timesteps):
            clean = model.clean(sample, t, SIDE)
            if i + 1 < steps:
                noise = (sample - np.sqrt(model.alphas[t]) * clean) / np.sqrt(1 - model.alphas[t])
                at = model.alphas[timesteps[i + 1]]
                sample = np.sqrt(at) * clean + np.sqrt(1 - at) * noise
        found = np.asarray(Image.open(tmp_path / "out" / file.name), float)
        # Half a level is the rounding to 8 bits.
        assert np.abs(found - pixels(clean)[0]).max() <= 0.5 + 127.5 * 1e-4


def test_less_noise_is_left_and_its_level_is_in_the_metadata(bundle, digits, noisy, tmp_path):
    denoise(noisy / "0.png", "--bundle", bundle, "--out", tmp_path / "one.png")
    clean, before, after = (
        np.asarray(Image.open(p), float) for p in (digits / "0000.png", noisy / "0.png", tmp_path / "one.png")
    )
    assert np.square(after - clean).mean() < 0.5 * np.square(before - clean).mean()
    assert abs(float(Image.open(tmp_path / "one.png").text["sigma"]) - 25) < 6


def test_an_image_without_noise_is_returned_as_it_is(bundle, tmp_path):
    ramp = np.add.outer(np.arange(60), np.arange(70)).astype(float)
    save(tmp_path / "in/ramp.png", ramp)
    save(tmp_path / "in/flat.png", np.full((40, 40), 7.0))
    done = denoise(tmp_path / "in", "--bundle", bundle, "--out", tmp_path / "out")
    assert "unchanged: 2 of them" in done.stdout
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/ramp.png")), ramp)


def test_a_folder_is_resumed_and_bad_images_are_named(bundle, noisy, tmp_path):
    (noisy / "deep").mkdir()
    (noisy / "deep/bad.png").write_bytes(b"no image")
    bomb = b"\x89PNG\r\n\x1a\n"
    for kind, data in [
        (b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
    ]:
        bomb += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    (noisy / "bomb.png").write_bytes(bomb)
    Image.new("RGB", (1, 1), (200, 10, 10)).save(noisy / "deep/tiny.png")
    Image.fromarray(np.full((3, 500), 40_000, np.uint16)).save(noisy / "wide.png")
    arguments = [noisy, "--bundle", bundle, "--sigma", 20, "--out", tmp_path / "out", "--json"]
    first = denoise(*arguments)
    told = json.loads(first.stdout)
    assert (told["images"], told["refused"], told["to_gray"], told["to_8_bits"]) == (5, 2, 1, 1)
    assert "deep/bad.png: refused: " in first.stderr
    assert "bomb.png: refused: the image has 10000000000 pixels" in first.stderr
    assert Image.open(tmp_path / "out/deep/tiny.png").size == (1, 1)
    assert Image.open(tmp_path / "out/wide.png").size == (500, 3)
    again = json.loads(denoise(*arguments).stdout)
    assert (again["images"], again["skipped"]) == (0, 5)
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.suffix != ".png"]


def test_the_same_bytes_on_any_cores_and_alone(bundle, noisy, tmp_path):
    denoise(noisy, "--bundle", bundle, "--out", tmp_path / "two")
    command = ["taskset", "-c", "0", RESIDUALD, "denoise", noisy, "--bundle", bundle, "--out", tmp_path / "one"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    denoise(noisy / "1.png", "--bundle", bundle, "--out", tmp_path / "alone")
    for name in ("0.png", "1.png", "2.png"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert (tmp_path / "alone/1.png").read_bytes() == (tmp_path / "two/1.png").read_bytes()


@pytest.mark.parametrize("photograph", ["camera", "moon", "brick"])
@pytest.mark.parametrize("sigma", [10, 25, 50])
def test_the_noise_of_photographs_is_estimated(photograph, sigma, bundle, tmp_path):
    from skimage import data

    # Away from black and white, so that rounding to 0..255 does not cut the noise off.
    image = 100 + 0.2 * getattr(data, photograph)()[:256, :256]
    noisy = save(tmp_path / "noisy.png", image + np.random.default_rng(sigma).normal(0, sigma, image.shape))
    denoise(noisy, "--bundle", bundle, "--out", tmp_path / "out.png")
    found = float(Image.open(tmp_path / "out.png").text["sigma"])
    assert abs(found / sigma - 1) < 0.1


def refused(*arguments, code=64, **options):
    done = residuald("denoise", *arguments, **options)
    assert done.returncode == code, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_what_cannot_be_done_is_one_line(bundle, noisy, tmp_path):
    out = ["--out", tmp_path / "out"]
    assert "--sigma -1: it must be above 0" in refused(noisy, "--bundle", bundle, "--sigma", -1, *out)
    assert "images need a place: --out DIR" in refused(noisy, "--bundle", bundle)
    assert "--format has no effect" in refused(noisy, "--bundle", bundle, "--format", "csv", *out)
    assert "is inside of" in refused(noisy, "--bundle", bundle, "--out", noisy / "out")
    (tmp_path / "empty").mkdir()
    assert "no images found" in refused(tmp_path / "empty", "--bundle", bundle, *out, code=65)
    assert "no such file or folder" in refused(tmp_path / "absent.png", "--bundle", bundle, *out, code=65)
    Image.new("L", (9, 9)).save(noisy / "0.bmp")
    assert "0.bmp and 0.png would both become 0.png" in refused(noisy, "--bundle", bundle, *out)
    tables = ROOT / "models/payments"
    assert "--steps has no effect" in refused("a.csv", "--bundle", tables, "--steps", 2, *out)


def test_a_model_of_nan_is_refused_by_image(bundle, noisy, tmp_path):
    import onnx

    model = onnx.load(bundle / "denoiser.onnx")
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if output == name else output for output in node.output]
    nan = onnx.helper.make_tensor("nan", onnx.TensorProto.FLOAT, [], [float("nan")])
    model.graph.initializer.append(nan)
    model.graph.node.append(onnx.helper.make_node("Mul", ["before", "nan"], [name]))
    broken = shutil.copytree(bundle, tmp_path / "broken")
    list_files(broken, denoiser_onnx=model.SerializeToString())
    # The golden points catch it before any image.
    assert "golden point 1 gives NaN" in refused(
        noisy, "--bundle", broken, "--sigma", 9, "--out", tmp_path / "out", code=65
    )
