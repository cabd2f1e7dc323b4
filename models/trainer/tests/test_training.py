"""The comfort of training: stopping and continuing, a limit of time, and progress on a terminal and in a log file."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from residuald_train import TrainerError, console
from residuald_train.cli import main
from residuald_train.tabular.train import Options, fit
from residuald_train.training import save_state

SAVE_EACH_STEP = """import sys
from residuald_train.cli import main
from residuald_train.tabular import train
train.SAVE_EVERY = -1.0
sys.exit(main())"""


def command(history, out, *options, program=("-m", "residuald_train.cli")):
    recipe = ["--recipe", "best", "--coreset", "50", "--width", "32", "--label", "label"]
    return [sys.executable, *program, "tabular", "--data", history, *recipe, "--out", out, *options]


def graph(folder):
    return (folder / "model.onnx").read_bytes()


def test_ctrl_c_leaves_a_checkpoint_and_resume_ends_as_if_nothing_had_happened(history, tmp_path):
    steps = ["--steps", "400"]
    whole = subprocess.run(command(history, tmp_path / "whole", *steps), capture_output=True, text=True, check=True)
    assert "checkpoint" not in whole.stderr
    saving = command(history, tmp_path / "b", *steps, program=("-c", SAVE_EACH_STEP))
    stopped = subprocess.Popen(saving, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    checkpoint = tmp_path / "b.checkpoint"
    while not checkpoint.exists() and stopped.poll() is None:  # the first step is done
        time.sleep(0.01)
    stopped.send_signal(signal.SIGINT)
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, said.decode()
    assert re.search(r"stopped; .*b\.checkpoint holds what was trained so far; .*--resume continues", said.decode())
    assert not (tmp_path / "b").exists()
    went_on = subprocess.run(command(history, tmp_path / "b", *steps, "--resume"), capture_output=True, check=True)
    assert b"no checkpoint" not in went_on.stderr
    assert graph(tmp_path / "b") == graph(tmp_path / "whole")
    assert not checkpoint.exists()


class StopError(Exception):
    pass


@pytest.mark.parametrize("at", [1, 60, 101])
def test_resume_gives_the_same_weights_wherever_it_stopped(at, small_rows, tmp_path, monkeypatch):
    """`at`: the save after which the process is killed. There is one after each of 100 steps, and one at the end."""
    from residuald_train.tabular import train

    features, X = small_rows
    options = Options("best", steps=100, width=16, coreset=50)
    whole = fit(features, X, options, quiet=True)
    saved = []

    def save_and_die(path, state):
        save_state(path, state)
        saved.append(1)
        if len(saved) == at:
            raise StopError

    monkeypatch.setattr(train, "save_state", save_and_die)
    monkeypatch.setattr(train, "SAVE_EVERY", -1.0)
    with pytest.raises(StopError):
        fit(features, X, options, quiet=True, checkpoint=tmp_path / "checkpoint")
    monkeypatch.undo()
    gone_on = fit(features, X, options, quiet=True, checkpoint=tmp_path / "checkpoint", resume=True)
    for (name, a), (_, b) in zip(whole.state_dict().items(), gone_on.state_dict().items(), strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes(), name
    assert whole.curves == gone_on.curves


@pytest.fixture
def small_rows():
    from residuald_train.tabular.features import Feature

    X = np.random.default_rng(0).standard_normal((300, 3)).astype(np.float32)
    return [Feature(name, name, "number") for name in "abc"], X


def test_a_checkpoint_of_another_run_or_no_checkpoint_is_refused(small_rows, tmp_path):
    features, X = small_rows
    path = tmp_path / "checkpoint"
    fit(features, X, Options("blind", steps=2, width=8), quiet=True, checkpoint=path)
    for options, rows, named in [
        (Options("blind", steps=2, width=8, seed=1), X, "another seed"),
        (Options("blind", steps=3, width=8), X, "another steps"),
        (Options("blind", steps=2, width=8), X + 1, "another data"),
    ]:
        with pytest.raises(TrainerError, match=named):
            fit(features, rows, options, quiet=True, checkpoint=path, resume=True)
    path.write_bytes(b"something else")
    with pytest.raises(TrainerError, match="is not a checkpoint"):
        fit(features, X, Options("blind", steps=2, width=8), quiet=True, checkpoint=path, resume=True)


def test_resume_without_a_checkpoint_says_so(history, tmp_path, capsys):
    options = ["--recipe", "blind", "--steps", "3", "--width", "16", "--label", "label", "--resume"]
    assert main(["tabular", "--data", str(history), *options, "--out", str(tmp_path / "b")]) == 0
    assert "b.checkpoint; training starts from the beginning" in capsys.readouterr().err


def test_minutes_end_the_training_and_its_schedule(history, tmp_path):
    options = ["--recipe", "best", "--steps", "1000000", "--minutes", "0.02", "--width", "16", "--label", "label"]
    assert main(["tabular", "--data", str(history), *options, "--out", str(tmp_path / "b")]) == 0
    training = json.loads((tmp_path / "b" / "manifest.json").read_text())["training"]
    assert training["options"]["minutes"] == 0.02
    assert len(training["curves"]) == 1
    assert all(0 < curve["steps"] * len(curve["loss"]) < 900_000 for curve in training["curves"])


def test_a_gpu_that_is_not_there_is_said(history, tmp_path, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    options = ["--device", "cuda", "--out", str(tmp_path / "b")]
    assert main(["tabular", "--data", str(history), *options]) == 65
    assert "torch finds no GPU on this machine; use --device cpu" in capsys.readouterr().err


def test_a_log_file_gets_few_lines_and_no_bar(history, tmp_path):
    done = subprocess.run(command(history, tmp_path / "b", "--steps", "50"), capture_output=True, text=True, check=True)
    assert "\r" not in done.stderr
    assert not set(console.BLOCKS) & set(done.stderr)
    assert len(done.stderr.splitlines()) < 15


def test_lines_replace_a_bar_that_takes_long(monkeypatch, capsys):
    monkeypatch.setattr(console, "LINE_EVERY", 0.05)
    steps = console.bar(total=40, desc="train", unit=" steps")
    for _ in range(40):
        time.sleep(0.01)
        steps.set_postfix_str("loss 0.5", refresh=False)
        steps.update()
    steps.close()
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 10
    assert all(re.fullmatch(r"train: \d+ of 40 steps, loss 0\.5, 00:00", line) for line in lines), lines
    assert lines[-1].startswith("train: 40 of 40")


def test_a_terminal_gets_a_bar_and_a_curve(history, tmp_path):
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        command(history, tmp_path / "b", "--steps", "50"), stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        said += part
    os.close(ours)
    assert running.wait(60) == 0
    assert b"\r" in said
    assert re.search(rf"train hybrid: loss \d\.\d+ [{console.BLOCKS}]+ \d\.\d+", said.decode())


def test_sparkline_shows_how_a_loss_falls():
    assert console.sparkline([8, 4, 2, 1]) == "█▄▂▁"
    assert console.sparkline([]) == ""
    assert console.sparkline([0.0, 0.0]) == "▁▁"
    line = console.sparkline([1 / (1 + i) for i in range(1000)])
    assert len(line) == 40
    assert list(line) == sorted(line, reverse=True)
