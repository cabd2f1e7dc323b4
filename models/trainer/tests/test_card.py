"""Tests of the model card, and of the p-values and thresholds that it shares with the daemon."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import residuald
from residuald import set_field

from residuald_train.bundle.calibrate import Calibration, RateTooFineError, calibrate
from residuald_train.bundle.served import Served
from residuald_train.cli import main
from residuald_train.report.card import ScoredRecords, checks, detection, figures, readable
from residuald_train.tabular.features import Feature
from residuald_train.tabular.train import loss_curve

MODELS = Path(__file__).parents[2]
VOID = {"meta", "br", "path", "use"}


def calibration(count):
    score = np.random.default_rng(0).permutation(count).astype(np.float32) + 1
    return Calibration(calibrate(score, np.ones((count, 2), np.float32)))


def test_p_values_and_thresholds_are_the_daemons():
    exact = calibration(1999)
    np.testing.assert_allclose(exact.p_value([0, 1, 1990, 1999, 5000]), [1, 1, 11 / 2000, 2 / 2000, 1 / 2000])
    assert exact.threshold(0.01) == 1980  # the 20th largest: 19 of 1,999 lie above it, and 20 / 2,000 is the rate
    assert exact.threshold(0.5) == 1000
    with pytest.raises(RateTooFineError, match="needs 9999 calibration records, there are 1999"):
        exact.threshold(1e-4)


def test_below_the_tail_quantiles_are_interpolated():
    long = calibration(50_000)
    assert long.threshold(0.2) == 40_001  # the 10,000th largest is in the tail
    assert abs(long.threshold(0.5) - 25_000.5) < 1
    assert abs(long.p_value(25_000) - 0.5) < 1e-3
    assert long.p_value(49_001) == 1001 / 50_001


class Page(HTMLParser):
    """Parses a page: checks that tags are closed in order and that nothing is loaded, and collects ids and words."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.used, self.words = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.look(tag, attributes)

    def handle_startendtag(self, tag, attributes):
        self.look(tag, attributes)

    def look(self, tag, attributes):
        assert tag not in ("script", "link", "img", "iframe", "object")
        for name, value in attributes:
            assert name != "src"
            assert name != "href" or value.startswith("#")
            self.ids += [value] if name == "id" else []
            self.used += re.findall(r"url\(#([^)]*)\)", value or "") + ([value[1:]] if name == "href" else [])

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read_page(path):
    text = path.read_text()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert set(page.used) <= set(page.ids)
    assert "http" not in text
    assert "@import" not in text
    assert "url(" not in text.replace("url(#", "")
    return text, " ".join(" ".join(page.words).split())


def report(*arguments):
    return main(["report", *map(str, arguments)])


def test_card_with_labelled_data(small, history, tmp_path):
    lines = history.read_text().splitlines()
    broken = [json.loads(line) | {"amount": 9e5, "label": 1} for line in lines[:40]]
    data, out = tmp_path / "march.ndjson", tmp_path / "card.html"
    data.write_text("\n".join([*lines[40:], *map(json.dumps, broken)]))
    assert report(small, "--data", data, "--label", "label", "--out", out) == 0
    text, words = read_page(out)
    assert hashlib.sha256((small / "manifest.json").read_bytes()).hexdigest() in words
    assert "40 of 40" in words  # found at one of the rates
    assert "Record 56" in words
    assert "not supported: it needs 999 calibration records, there are 120" in words
    assert "Not recorded" not in words
    assert text.count("<svg") == 3
    assert "was trained or calibrated" not in words


def test_card_of_training_data_says_so(small, history, tmp_path):
    out = tmp_path / "card.html"
    assert report(small, "--data", history, "--out", out) == 0  # the label is the manifest's
    words = read_page(out)[1]
    assert "trained or calibrated on history.ndjson" in words
    assert "Labelled normal 600" in words


def test_card_without_data_and_without_torch(tmp_path):
    out = tmp_path / "card.html"
    code = (
        "import sys; from residuald_train.cli import main\n"
        f"assert main(['report', {str(MODELS / 'payments')!r}, '--out', {str(out)!r}]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
    text, words = read_page(out)
    assert "Not measured" in words
    assert text.count("<svg") == 3


def test_bundle_of_an_older_trainer_has_no_curve(small, tmp_path):
    folder = tmp_path / "b"
    shutil.copytree(small, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["training"]["curves"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert report(folder, "--out", tmp_path / "card.html") == 0
    assert "Not recorded: an older version of the trainer made the bundle." in read_page(tmp_path / "card.html")[1]


def test_text_of_a_bundle_is_not_markup(small, tmp_path):
    folder = tmp_path / "b"
    shutil.copytree(small, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["name"] = "<script>alert(1)</script>"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert report(folder, "--out", tmp_path / "card.html") == 0
    assert "<script>" not in (tmp_path / "card.html").read_text()


def test_a_bundle_that_tells_little(small, tmp_path):
    folder = tmp_path / "b"
    shutil.copytree(small, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["training"], manifest["scoring"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert report(folder, "--out", tmp_path / "card.html") == 0
    assert read_page(tmp_path / "card.html")[1].count("not recorded") >= 6


def test_what_has_no_card(small, tmp_path, capsys):
    out = tmp_path / "card.html"
    altered = tmp_path / "altered"
    shutil.copytree(small, altered)
    (altered / "golden.ndjson").write_text("")
    for arguments, message in [
        ([MODELS / "surface"], "of kind image"),
        ([tmp_path / "absent"], "is not a bundle"),
        ([altered], "was changed after export"),
        ([small, "--label", "label"], "require --data"),
        ([small, "--data", small / "golden.ndjson"], "is not in the data"),
    ]:
        assert report(*arguments, "--out", out) == 65
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


class Scores:
    def __init__(self, normal, anomalous):
        self.normal_scores, self.anomaly_scores = normal, anomalous
        self.score = np.concatenate([normal, anomalous])
        self.anomalous = np.arange(len(self.score)) >= len(normal)


def drawn(seed, times=1):
    """A calibration and scores of the same distribution, the scores multiplied by `times`."""
    rng = np.random.default_rng(seed)
    made = Calibration(calibrate(rng.lognormal(size=4999).astype(np.float32), np.ones((4999, 1), np.float32)))
    return made, Scores(times * rng.lognormal(size=20_000).astype(np.float32), np.full(50, 1e4, np.float32))


def test_checks_hold_as_often_as_they_say():
    unusual = 0
    for seed in range(40):
        rows = checks(*drawn(seed))
        assert [row["rate"] for row in rows] == [0.1, 0.01, 0.001]
        assert all(row["low"] <= row["share"] <= row["high"] for row in rows)
        unusual += sum(row["verdict"] != "as usual" for row in rows)
    assert 1 <= unusual <= 12  # 5 % of 120
    assert checks(*drawn(0, times=2))[0]["verdict"] == "more than usual"


def test_detection_counts():
    found = detection(*drawn(0))
    assert found["auroc"] == found["ap"] == 1
    assert [(row["flagged"], row["n"]) for row in found["rows"]] == [(50, 50)] * 3


def test_judged_counts_what_the_schema_refuses(small, history):
    records = history.read_bytes().splitlines()
    table = residuald.Table([set_field(record, "amount", "null") for record in records[:3]] + records[3:])
    scored = ScoredRecords(Served(small), table)
    assert (scored.read, len(scored.score)) == (600, 597)
    assert scored.refused == {"field `amount` is absent or null, but feature `amount` requires it": 3}


def test_values_in_the_users_terms():
    assert readable(Feature("k", "k", "categorical", vocabulary=("x", "y")), -1.0, 1.0) == (
        "(not seen in training)",
        "y",
    )
    assert readable(Feature("f", "f", "bool"), 1.0, 0.126) == ("true", "13 % true")
    assert readable(Feature("h", "t", "timestamp", part="hour_of_day"), 13.25, 23.9999) == ("13:15", "00:00")
    assert readable(Feature("d", "t", "timestamp", part="day_of_week"), 0.0, 6.0) == ("Monday", "Sunday")
    assert readable(Feature("a", "a", "number"), 111434.8, 0.00012345) == ("111,400", "0.0001234")
    assert [figures(v) for v in (0, 1, -2.5, 1e30, 0.01)] == ["0", "1", "-2.5", "1.000e+30", "0.01"]


def test_curve_is_short_and_keeps_the_mean():
    short = loss_curve(list(range(1, 1002)))
    assert short["steps"] == 6
    assert len(short["loss"]) == 167
    assert short["loss"][0] == 3.5


def test_manifest_keeps_the_curve(small):
    curves = json.loads((small / "manifest.json").read_text())["training"]["curves"]
    assert [c["denoiser"] for c in curves] == ["blind"]
    assert len(curves[0]["loss"]) == 150
