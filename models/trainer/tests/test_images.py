"""Tests of training on images: listing files, decoding pixels, the network, and a bundle trained in a few steps."""

import base64
import hashlib
import io
import json
import os
import signal

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from residuald_train import TrainerError
from residuald_train.bench import image_peers as peers
from residuald_train.bench.images import bench, train_test_images
from residuald_train.bundle.export import FORBIDDEN
from residuald_train.bundle.served import run_onnx, session
from residuald_train.cli import main
from residuald_train.images import data, kernel, pixels
from residuald_train.images.corruption import Corruption
from residuald_train.images.new_group import new_group, told
from residuald_train.images.pixels import Shape, Tiles
from residuald_train.images.scorer import Scorer, run_torch
from residuald_train.images.train import Options, fit
from residuald_train.images.unet import flops
from residuald_train.report import sheet

QUICK = ["--size", "48", "--steps", "8", "--batch", "2", "--threads", "1"]


def texture(rng, h=48, w=48):
    x = np.arange(w)
    wave = 120 + 50 * np.sin(x / 3 + rng.uniform(0, 6)) + 10 * rng.standard_normal((h, w))
    return Image.fromarray(wave.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in Anomalib's layout with 20 normal images and 4 with a black square."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for below in ("train/good", "test/good", "test/square", "ground_truth/square"):
        (root / below).mkdir(parents=True)
    for i in range(20):
        texture(rng).save(root / "train/good" / f"{i:02}.png")
    for i in range(4):
        texture(rng).save(root / "test/good" / f"{i}.png")
        mask = Image.new("L", (48, 48))
        mask.paste(255, (20, 20, 30, 30))
        image = texture(rng)
        image.paste(0, (20, 20, 30, 30))
        image.save(root / "test/square" / f"{i}.png")
        mask.save(root / "ground_truth/square" / f"{i}_mask.png")
    return root


@pytest.fixture(scope="module")
def small(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "small"
    assert main(["images", "--data", str(folder), "--out", str(out), *QUICK]) == 0
    return out


# --- data and pixels -----------------------------------------------------------------------


def test_anomalib_layout(folder):
    good, rest = data.read_folder(folder)
    assert len(good) == 20
    assert all(p.normal for p in good)
    assert sorted({p.label for p in rest}) == ["good", "square"]
    assert all((p.mask is not None) == (p.label == "square") for p in rest)


def test_a_folder_a_class_with_groups(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["image,tile"]
    for name in ("fine", "crack"):
        (tmp_path / name).mkdir()
        for i in range(4):
            texture(rng).save(tmp_path / name / f"{i}.jpg")
            lines.append(f"{name}/{i}.jpg,{i // 2 + (10 if name == 'crack' else 0)}")
    Image.new("L", (48, 48)).save(tmp_path / "crack" / "0.png")
    (tmp_path / "tiles.csv").write_text("\n".join(lines))
    good, rest = data.read_folder(tmp_path, "fine", tmp_path / "tiles.csv")
    assert [len(good), len(rest)] == [4, 4]
    assert [p.mask is not None for p in rest] == [True, False, False, False]
    a, b = data.split(good, 0.3, seed=0)
    assert not {p.group for p in a} & {p.group for p in b}
    one, other = data.develop_report_groups(good + rest)
    assert not one & other
    assert {p.group for p in good + rest} == one | other
    for part in ("all", "development", "report"):
        if part != "development":  # each half holds one normal group only
            train, test = train_test_images(good, rest, part, 0)
            assert not {p.group for p in train} & {p.group for p in test}


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_mode_becomes_gray_or_colour():
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    luma = np.asarray(rgb, np.int64) @ [19595, 38470, 7471] + 0x8000 >> 16
    assert (np.asarray(pixels.decode(encoded(rgb), 1)) == luma).all()
    alpha = rgb.copy()
    alpha.putalpha(3)
    assert (np.asarray(pixels.decode(encoded(alpha), 3)) == np.asarray(rgb)).all()
    wide = np.array([[0, 128, 129, 257, 40000, 65535]], np.uint16)
    assert np.asarray(pixels.decode(encoded(Image.fromarray(wide)), 1)).tolist() == [[0, 0, 1, 1, 156, 255]]
    for mode in ("1", "L", "LA", "P", "RGBA"):
        assert pixels.decode(encoded(rgb.convert(mode)), 3).mode == "RGB"
    assert pixels.decode(encoded(rgb.convert("CMYK"), "JPEG"), 1).mode == "L"
    exif = Image.Exif()
    exif[0x0112] = 6
    assert pixels.decode(encoded(rgb, "JPEG", exif=exif), 3).size == (9, 7)


def test_broken_images_are_said_to_be():
    with pytest.raises(TrainerError, match="cannot be read"):
        pixels.decode(b"no image", 1)
    two = [Image.new("L", (4, 4), v) for v in (0, 255)]
    with pytest.raises(TrainerError, match="animated"):
        pixels.decode(encoded(two[0], "WEBP", save_all=True, append_images=two[1:], duration=9), 1)


def test_the_largest_value_of_a_bit_depth_is_white():
    for bits in (10, 12, 14):
        white = (1 << bits) - 1
        image = encoded(Image.fromarray(np.array([[0, white // 2, white]], np.uint16)))
        assert np.asarray(pixels.decode(image, 1, bits)).tolist() == [[0, 127, 255]]
        with pytest.raises(TrainerError, match=f"has the sample {white}, but --bit-depth 9 allows at most 511"):
            pixels.decode(image, 1, 9)


def test_hidden_empty_and_broken_images_are_left_out_and_said(folder, tmp_path, capsys):
    for image in (folder / "train/good").iterdir():
        (tmp_path / image.name).write_bytes(image.read_bytes())
    (tmp_path / "._00.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / ".trash").mkdir()
    (tmp_path / ".trash/00.png").write_bytes(b"")
    (tmp_path / "empty.png").write_bytes(b"")
    options = ["images", "--data", str(tmp_path), "--out", str(tmp_path / "b"), "--dry-run"]
    assert main(options) == 0
    printed = capsys.readouterr()
    assert "images: 20 normal" in printed.out
    assert "1 of 21 images cannot be read and are left out" in printed.err
    assert "empty.png cannot be read" in printed.err
    assert "._00" not in printed.err
    for i in range(3):
        (tmp_path / f"broken{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(options) == 65
    assert "4 of 24 images cannot be read" in capsys.readouterr().err


def test_few_bits_in_sixteen_are_said(tmp_path, capsys):
    for i in range(3):
        Image.fromarray(np.full((40, 40), 4000 + i, np.uint16)).save(tmp_path / f"{i}.png")
    options = ["images", "--data", str(tmp_path), "--out", str(tmp_path / "b"), "--dry-run"]
    assert main(options) == 0
    assert "use only 12 bits" in capsys.readouterr().err
    assert main([*options, "--bit-depth", "12"]) == 0
    assert "use only" not in capsys.readouterr().err


def test_tiles_cover_the_image():
    assert pixels.starts(64, 64, 16) == [0]
    assert pixels.starts(65, 64, 16) == [0, 1]
    assert pixels.starts(200, 64, 16) == [0, 45, 91, 136]
    shape = Shape(32, 32, 1, Tiles(0.5, 8))
    tiles = pixels.rows(Image.new("L", (100, 40)), shape)  # 50x20, raised to 50x32
    assert tiles.shape == (2, 32, 32, 1)
    assert pixels.mask_rows(None, (100, 40), shape).shape == (2, 32, 32)


# --- the model -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [Shape(48, 48, 1), Shape(40, 56, 3)])
def test_scorer_shapes(shape):
    x = np.random.default_rng(0).integers(0, 256, (3, shape.height, shape.width, shape.channels), np.uint8)
    torch.manual_seed(0)
    scorer = Scorer(shape).eval()
    torch.nn.init.normal_(scorer.net.out.weight, std=0.1)
    score, heat, clean = run_torch(scorer, x)
    assert score.shape == (3,)
    assert heat.shape == x.shape[:3]
    assert heat.min() >= 0
    assert clean.shape == x.shape
    assert clean.dtype == np.uint8
    assert np.allclose(run_torch(scorer, x[1:2])[0], score[1], rtol=1e-5)


def test_an_untrained_network_restores_nothing():
    x = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 1), np.uint8)
    _, heat, clean = run_torch(Scorer(Shape(48, 48, 1)).eval(), x)
    assert (clean == x).all()
    assert (heat == 0).all()


def test_cost_is_within_a_gigaflop():
    scorer = Scorer(Shape(256, 256, 1)).eval()
    assert flops(scorer, torch.zeros(1, 256, 256, 1, dtype=torch.uint8)) <= 1e9


def test_corruption_is_local_and_of_its_seed():
    x = torch.randn(8, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    y = Corruption(48, 1)(x)
    assert torch.equal(y, Corruption(48, 1)(x))
    assert not torch.equal(y, Corruption(48, 2)(x))
    assert torch.isfinite(y).all()
    changed = ((y - x).abs() > 0.01).float().mean()
    assert 0.01 < changed < 0.7


def test_training_resumes_where_it_stopped(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), np.uint8)
    shape, options = Shape(32, 32, 1), Options(steps=4, batch=2, threads=1)
    file = tmp_path / "checkpoint"
    whole = fit(shape, x, options)
    fit(shape, x, options, file, stop=2)
    gone_on = fit(shape, x, options, file, resume=True)
    for a, b in zip(whole.parameters(), gone_on.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(TrainerError, match="another seed"):
        fit(shape, x, Options(steps=4, batch=2, threads=1, seed=1), file, resume=True)


def test_ctrl_c_ends_after_the_step_and_leaves_a_checkpoint(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), np.uint8)
    shape, options = Shape(32, 32, 1), Options(steps=4, batch=2, threads=1)
    file = tmp_path / "checkpoint"

    def press(scorer, *shown):
        if shown[-1] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    whole = fit(shape, x, options)
    with pytest.raises(KeyboardInterrupt, match=r"checkpoint holds what was trained so far; .*--resume continues"):
        fit(shape, x, options, file, sheet=press)
    gone_on = fit(shape, x, options, file, resume=True)
    assert len(gone_on.losses) == 4
    for a, b in zip(whole.parameters(), gone_on.parameters(), strict=True):
        assert torch.equal(a, b)


# --- the bundle ----------------------------------------------------------------------------


def test_small_bundle(small):
    manifest = json.loads((small / "manifest.json").read_text())
    assert manifest["input"] == {"kind": "image", "height": 48, "width": 48, "channels": 1, "resize": "bilinear"}
    assert "defects" not in manifest["training"]["options"]
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((small / name).read_bytes()).hexdigest() == digest
    model = (small / "model.onnx").read_bytes()
    assert not {node.op_type for node in onnx.load_from_string(model).graph.node} & FORBIDDEN
    run = session(model)
    assert [(i.name, i.type, i.shape[1:]) for i in run.get_inputs()] == [("x", "tensor(uint8)", [48, 48, 1])]
    kinds = [(o.name, o.type, o.shape[1:]) for o in run.get_outputs()]
    assert kinds == [
        ("score", "tensor(float)", []),
        ("residual", "tensor(float)", [48, 48]),
        ("reconstruction", "tensor(uint8)", [48, 48, 1]),
    ]
    tolerance = manifest["golden"]
    for line in (small / "golden.ndjson").read_text().splitlines():
        golden = json.loads(line)
        image = pixels.decode(base64.b64decode(golden["record"]["image"]), 1)
        score = run_onnx(run, pixels.rows(image, Shape(48, 48, 1)))[0].max()
        assert abs(score - golden["score"]) <= tolerance["absolute_tolerance"] + tolerance["relative_tolerance"] * abs(
            golden["score"]
        )
    calibration = json.loads((small / "calibration.json").read_text())
    assert calibration["count"] == len(calibration["tail"]) == manifest["training"]["held_out_rows"]
    assert calibration["tail"][-1] == calibration["quantiles"][-1]
    assert "residual_scale" not in calibration
    assert [p.name for p in small.parent.iterdir()] == ["small"]  # no checkpoint is left


def test_tiled_colour_bundle_with_samples(folder, tmp_path):
    out, sheets = tmp_path / "tiled", tmp_path / "sheets"
    options = ["--channels", "3", "--tiles", "1.5,8", "--samples", str(sheets)]
    assert main(["images", "--data", str(folder), "--out", str(out), *QUICK, *options]) == 0
    assert json.loads((out / "manifest.json").read_text())["input"]["tiles"] == {"scale": 1.5, "overlap": 8}
    assert Image.open(next(iter(sheets.iterdir()))).mode == "RGB"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "20"], "--size must be 32 to 512 pixels"),
        (["--size", "64", "--tiles", "1,64"], "an overlap smaller than a tile"),
        (["--device", "cuda"], "--device cuda: torch finds no GPU on this machine"),
        (["--normal", "fine"], "--normal fine: there is no folder"),
        (["--steps", "0"], "--steps must be a positive number"),
    ],
)
def test_faults_are_one_line(folder, tmp_path, capsys, options, message):
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["images", "--data", str(folder), "--out", str(tmp_path / "b"), *options]) == 65
    assert message in capsys.readouterr().err


def test_image_dry_run(folder, tmp_path, capsys):
    assert main(["images", "--data", str(folder), "--out", str(tmp_path / "b"), "--dry-run"]) == 0
    assert '"height": 256' in capsys.readouterr().out
    assert not (tmp_path / "b").exists()


# --- measuring -----------------------------------------------------------------------------


def test_peers_find_a_black_square():
    rng = np.random.default_rng(0)
    x = rng.integers(100, 140, (20, 48, 48, 1), np.uint8)
    y = x[:2].copy()
    y[1, 20:30, 20:30] = 0
    scorer = Scorer(Shape(48, 48, 1)).eval()
    pixels = peers.pixel_gaussian(x, y)
    for heat in (peers.pca(x, y, 0), peers.patch_knn(x, y, 0), peers.padim(scorer, x, y, 0), pixels):
        assert len(heat) == 2
        clean, broken = peers.top_mean(heat)
        assert broken > clean


def test_bench_prints_a_table(folder, tmp_path):
    good, rest = data.read_folder(folder)
    said = []
    options = Options(steps=4, batch=2, threads=1)
    one = [good, rest, Shape(48, 48, 1), lambda seed: options, 1]
    total = bench(*one, say=said.append, checkpoints=tmp_path / "networks")
    peers_too = {"PaDiM-like", "PaDiM-like, random features", "patch-kNN", "PCA", "Gaussian of each pixel"}
    assert set(total) == {"best", "blind", "kernel"} | peers_too
    assert set(total["blind"]) == {"image", "AP", "square", "pixel", "PRO"}
    assert "| blind |" in said[-1]
    (network,) = (tmp_path / "networks").iterdir()
    saved = torch.load(network)
    saved["average"]["net.out.bias"] += torch.rand(8)  # only this file has this network
    torch.save(saved, network)
    again = bench(*one, with_peers=False, say=said.append, checkpoints=tmp_path / "networks")
    assert again["kernel"] == total["kernel"]
    assert again["blind"]["pixel"] != total["blind"]["pixel"]


def test_bench_of_kernel_trains_nothing(folder):
    good, rest = data.read_folder(folder)
    total = bench(good, rest, Shape(48, 48, 1), lambda seed: kernel.Options(seed, threads=1), 1, say=lambda _: None)
    assert {"kernel", "PCA"} < set(total)
    assert "PaDiM-like" not in total  # needs a trained network


def test_groups_that_are_no_text_are_one_line(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_bytes(b"image,tile\nx.png,\xff\n")
    with pytest.raises(TrainerError, match=r"groups.csv is not CSV in UTF-8"):
        data.read_groups(path)
    path.write_text("image,place\n")
    with pytest.raises(TrainerError, match="needs the columns image and tile"):
        data.read_groups(path)


def test_a_group_at_another_scale_is_flagged_by_the_others():
    steps = np.arange(1, 101, dtype=np.float32)
    score = np.concatenate([steps, steps, 2 * steps])
    found = new_group(score, ["a"] * 100 + ["b"] * 100 + ["c"] * 100, rate=0.05)
    # Without c: rank 10 of 200 is 96, and c has 52 scores above. Without a or b: rank 10 is 182, and they have none.
    assert (found["groups"], found["most"], found["most_group"]) == (3, 0.52, "c")
    assert found["flagged"] == pytest.approx(0.52 / 3, abs=1e-6)
    assert found["expected"] == pytest.approx(10 / 201, abs=1e-6)
    assert "about 3 times the false alarms" in told(found)[1]
    assert new_group(steps, ["a"] * 100) is None


def test_sheet():
    x = np.zeros((2, 8, 8, 1), np.uint8)
    assert sheet.contact_sheet([x, sheet.heat_colours(np.ones((2, 8, 8)))]).size == (28, 28)
