"""The states from noise to sample, and noise from a file."""

import csv

import numpy as np
import pytest
from conftest import read

STEPS = ["--steps", 8]


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_trace_leads_from_noise_to_the_drawn_records(generate, tmp_path):
    states = tmp_path / "states"
    out, done = generate("--count", 300, "--trace", states, *STEPS, name="drawn.csv")
    assert done.returncode == 0, done.stderr
    assert "the states of 300 samples are in" in done.stderr
    names = sorted(path.name for path in states.iterdir())
    assert names == [*sorted(f"{state:04d}.{kind}" for state in range(9) for kind in ("csv", "npy")), "index.html"]
    # Times that are no features are drawn apart from the noise, so they are the same in all states.
    assert table(states / "0008.csv") == table(out)
    assert table(states / "0000.csv") != table(out)
    noise = np.load(states / "0000.npy")
    assert noise.dtype == np.float32
    assert noise.shape[0] == 300
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    page = (states / "index.html").read_text()
    assert "amount" in page
    assert "after step 8: the sample" in page
    assert page.count('class="pair"') == 5 * 3


def test_a_trace_is_not_overwritten(generate, tmp_path):
    states = tmp_path / "states"
    generate("--count", 5, "--trace", states, *STEPS)
    _, done = generate("--count", 5, "--trace", states, *STEPS, name="other.ndjson")
    assert done.returncode == 64
    assert "is there already" in done.stderr
    _, done = generate("--count", 5, "--trace", states, "--force", *STEPS, name="other.ndjson")
    assert done.returncode == 0, done.stderr


def test_held_features_are_held_in_each_state(generate, tmp_path):
    states = tmp_path / "states"
    _, done = generate("--count", 20, "--where", "entry.kind=online", "--trace", states, *STEPS)
    assert done.returncode == 0, done.stderr
    for state in range(9):
        assert {row["entry.kind"] for row in table(states / f"{state:04d}.csv")} == {"online"}


@pytest.mark.parametrize("scheduler", ["dpm-solver-multistep", "ddpm"])
def test_noise_from_a_file_is_that_of_the_seed(scheduler, generate, tmp_path):
    options = ["--scheduler", scheduler, *STEPS]
    out, done = generate("--count", 60, "--trace", tmp_path / "states", *options)
    assert done.returncode == 0, done.stderr
    np.save(tmp_path / "noise.npy", np.load(tmp_path / "states/0000.npy")[:40])
    again, done = generate("--noise", tmp_path / "noise.npy", *options, name="again.ndjson")
    assert done.returncode == 0, done.stderr
    assert read(again) == read(out)[:40]
    other, _ = generate("--noise", tmp_path / "noise.npy", "--seed", 9, *options, name="other.ndjson")
    # The steps of DDPM add noise of the seed.
    amounts = [[row["amount"] for row in read(path)] for path in (again, other)]
    assert (amounts[0] == amounts[1]) == (scheduler != "ddpm")


def test_the_noise_of_each_step_may_come_from_the_file(generate, tmp_path):
    _, done = generate("--count", 1, "--trace", tmp_path / "states", *STEPS)
    assert done.returncode == 0, done.stderr
    dimensions = np.load(tmp_path / "states/0000.npy").shape[1]
    noise = np.random.default_rng(0).normal(size=(9, 30, dimensions)).astype(np.float32)
    np.save(tmp_path / "noise.npy", noise)
    options = ["--noise", tmp_path / "noise.npy", "--scheduler", "ddpm", *STEPS]
    drawn = [generate(*options, "--seed", seed, name=f"{seed}.ndjson")[0] for seed in (0, 1)]
    amounts = [[row["amount"] for row in read(path)] for path in drawn]
    assert len(amounts[0]) == 30
    assert amounts[0] == amounts[1]


def test_unusable_noise_is_refused(generate, tmp_path):
    noise = tmp_path / "noise.npy"
    for array, problem in [
        (np.zeros((4, 3), np.float32), "has the shape [4, 3]: it must be [N, "),
        (np.zeros((2, 2, 2, 2), np.float32), "has the shape [2, 2, 2, 2]"),
    ]:
        np.save(noise, array)
        _, done = generate("--noise", noise)
        assert done.returncode == 65
        assert problem in done.stderr
    _, done = generate("--noise", tmp_path / "absent.npy")
    assert done.returncode == 65
    assert "absent.npy" in done.stderr
