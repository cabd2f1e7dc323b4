"""Tests of the screen, which is distilled from a bundle's scorer."""

import json
import shutil

import numpy as np
import pytest

from residuald_train.bundle import screen
from residuald_train.bundle.served import Served, run_onnx, session
from residuald_train.cli import main


@pytest.fixture(scope="module")
def screened(small, history, tmp_path_factory):
    """The small bundle with a screen that was trained for few steps."""
    out = tmp_path_factory.mktemp("screened") / "b"
    with pytest.MonkeyPatch.context() as quick:
        quick.setattr(screen, "ROWS", 30_000)
        quick.setattr(screen, "STEPS", 1500)
        assert main(["screen", str(small), "--data", str(history), "--out", str(out)]) == 0
    return out


def test_it_joins_the_bundle_and_leaves_the_rest_alone(small, screened, tmp_path):
    served, before = Served(screened), Served(small)
    assert served.files.keys() - before.files.keys() == {"screen.onnx", "screen.json"}
    assert all(served.files[name] == content for name, content in before.files.items())
    answers = json.loads(served.files["screen.json"])
    golden = run_onnx(session(served.files["screen.onnx"]), served.golden)[0]
    np.testing.assert_array_equal(np.float32(answers["golden"]), golden)
    assert len(answers["probes"]["score"]) == screen.PROBES
    shutil.copytree(small, tmp_path / "b")
    assert main(["screen", str(tmp_path / "b"), "--data", "nowhere.csv"]) == 65


def test_it_clears_most_normal_rows_and_few_that_the_scorer_flags(screened):
    served = Served(screened)
    rng = np.random.default_rng(1)
    run = session(served.files["screen.onnx"])
    answers = json.loads(served.files["screen.json"])
    found = screen.ScreenAnswers.__new__(screen.ScreenAnswers)
    found.normals, found.probes = (
        tuple(np.float32(answers[kind][key]) for key in ("screen", "score")) for kind in ("normals", "probes")
    )
    threshold = served.calibration.quantiles[-1]
    bound = found.bound(threshold, 0.01)
    assert found.cleared(bound) > 0.5
    from residuald_train.preprocessing import Preprocessing

    fresh = screen.perturbed_rows(Preprocessing(served.features, served.golden), served.golden, 20_000, rng)
    guess, score = screen.screen_and_score(served, run, fresh)
    flagged = (score > threshold) & (score <= 2 * threshold)
    assert flagged.sum() > 300
    assert (guess[flagged] <= bound).mean() < 0.03


def test_a_bound_is_the_daemons():
    # As in src/bundle/screen.rs.
    found = screen.ScreenAnswers.__new__(screen.ScreenAnswers)
    numbers = np.arange(1, 3000, dtype=np.float32)
    rated = np.log(numbers[:100])
    rated[99] -= 0.5
    found.normals, found.probes = (rated, numbers[:100]), (numbers / 1000, numbers)
    below = np.nextafter(np.float32(1.401), np.float32(0))
    assert found.bound(np.float32(1400), 1e-3) == below
    assert found.bound(np.float32(2000), 1e-3) is not None
    assert found.bound(np.float32(2001), 1e-3) is None
    assert found.cleared(np.log(50.5)) == 0.5
    found.probes = (np.full(2999, 1e9, np.float32), numbers)
    assert found.bound(np.float32(1400), 0.01) == pytest.approx(np.log(1400) - 0.5)
    assert found.bound(np.float32(1400), 0.19) == pytest.approx(np.log(1400))


def test_a_row_gets_the_same_answer_in_every_batch(screened):
    served = Served(screened)
    run = session(served.files["screen.onnx"])
    X = np.resize(served.golden, (256, served.golden.shape[1]))
    whole = run.run(None, {"x": X})[0]
    for size in (16, 64):
        parts = [run.run(None, {"x": X[i : i + size]})[0] for i in range(0, 256, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
