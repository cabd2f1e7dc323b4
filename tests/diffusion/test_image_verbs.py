"""`denoise`, `inpaint` and `translate` alike: Ctrl-C, a full disk, a model of NaN, the memory that a folder takes."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import diffusers
import numpy as np
import onnx
import pytest
from conftest import RESIDUALD, network, residuald, small_disk, whole, write_folder
from restored import save

VERBS = ["denoise", "inpaint", "translate"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A pipeline for gray images with random weights."""
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=1000)
    return write_folder(tmp_path_factory.mktemp("gray") / "pipeline", network(1), scheduler, "DDIMPipeline")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """1,500 tiny images, and verdicts with a region of each."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    verdicts = []
    for i in range(1500):
        save(folder / f"all/{i:04}.png", rng.uniform(0, 255, (8, 8)))
        verdicts.append({"file": f"{i:04}.png", "regions": [{"x": 1, "y": 1, "width": 4, "height": 4}]})
    (folder / "verdicts.ndjson").write_text("\n".join(map(json.dumps, verdicts)))
    return folder


def command(verb, model, images, out, steps=1, of="all"):
    arguments = {
        "denoise": [images / of, "--bundle", model, "--sigma", 25],
        "inpaint": [model, images / of, "--regions", images / "verdicts.ndjson", "--resamplings", 1],
        "translate": [model, images / of, "--strength", 1],
    }
    return [verb, *arguments[verb], "--steps", steps, "--out", out]


@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_leaves_whole_files(verb, model, images, tmp_path):
    out = tmp_path / "out"
    arguments = command(verb, model, images, out, steps=40)
    process = subprocess.Popen([RESIDUALD, *map(str, arguments)], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while len(list(out.glob("*.png"))) < 3 and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    count = whole(out)
    assert f"interrupted: images written: {count} of 1500, each whole" in told
    assert 3 <= count < 1500


@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_leaves_whole_files(verb, model, images, tmp_path):
    with small_disk(tmp_path / "out") as out:
        done = residuald(*command(verb, model, images, out))
        assert done.returncode == 65
        (line,) = done.stderr.splitlines()
        assert "No space left on device" in line
        count = whole(out)
        assert f"(images written: {count})" in line
        assert 0 < count < 1500


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_of_nan_writes_nothing(verb, model, images, tmp_path):
    broken = shutil.copytree(model, tmp_path / "broken")
    graph = onnx.load(broken / "unet/model.onnx")
    (output,) = graph.graph.output
    for node in graph.graph.node:
        node.output[:] = ["before" if name == output.name else name for name in node.output]
    graph.graph.initializer.append(onnx.helper.make_tensor("nan", onnx.TensorProto.FLOAT, [], [float("nan")]))
    graph.graph.node.append(onnx.helper.make_node("Mul", ["before", "nan"], [output.name]))
    onnx.save(graph, broken / "unet/model.onnx")
    (tmp_path / "one").mkdir()
    shutil.copy(images / "all/0000.png", tmp_path / "one")
    shutil.copy(images / "verdicts.ndjson", tmp_path)
    done = residuald(*command(verb, broken, tmp_path, tmp_path / "out", of="one"))
    assert done.returncode == 65
    image, error = done.stderr.splitlines()
    assert image == "0000.png: refused: the model returned NaN: it cannot be used for this image"
    assert error.startswith("error: none of the 1 images could be used")
    assert not list((tmp_path / "out").iterdir())


def test_a_distilled_model_is_refused_where_all_noise_levels_are_needed(model, images, tmp_path):
    distilled = shutil.copytree(model, tmp_path / "distilled")
    index = json.loads((distilled / "model_index.json").read_text()) | {"steps": 2, "distilled": True}
    (distilled / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "one").mkdir()
    shutil.copy(images / "all/0000.png", tmp_path / "one")
    shutil.copy(images / "verdicts.ndjson", tmp_path)
    for verb, code in {"denoise": 64, "inpaint": 64, "translate": 0}.items():
        done = residuald(*command(verb, distilled, tmp_path, tmp_path / verb, of="one"))
        assert done.returncode == code, done.stderr
        assert ("knows only the noise levels of its few steps" in done.stderr) == (code == 64)


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_takes_no_more_memory_the_more_images_it_has(verb, model, images, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    arguments = [RESIDUALD, *map(str, command(verb, model, images, out))]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    peaks = []  # the number of images, and the peak in KiB
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        peaks += [(len(os.listdir(out)), int(peak)) for peak in re.findall(r"VmHWM:\s*(\d+) kB", status)]
        time.sleep(0.02)
    assert process.returncode == 0
    assert whole(out) == 1500
    after_300 = next(peak for count, peak in peaks if count >= 300)
    count, after_most = peaks[-1]
    assert count > 1400
    # Less than 4 KiB for each of the images more.
    assert after_most - after_300 < 4 * 1100, peaks
