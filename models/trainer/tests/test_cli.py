"""Tests of the command line: help, dry run, and one-line errors."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from residuald_train import cli


@pytest.mark.parametrize("verb", ["schema", "tabular"])
def test_help_has_an_example(verb, capsys):
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    assert f"example:\n  residuald-train {verb} --data" in capsys.readouterr().out


def test_schema_to_standard_output(history, capsys):
    assert cli.main(["schema", "--data", str(history), "--label", "label", "--drop", "id"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["kind"] == "tabular"
    assert schema["label"] == {"path": "label", "normal": 0}


def test_dry_run_prints_and_stops(history, tmp_path, capsys):
    out = tmp_path / "bundle"
    assert cli.main(["tabular", "--data", str(history), "--label", "label", "--out", str(out), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert '"steps": 1000' in text
    assert '"merchant.category"' in text
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "fraud"], "the label column `fraud` is not in the data"),
        (["--label", "label", "--normal", "genuine"], "no row has `label` = 'genuine'; it holds 0"),
        (["--normal", "0"], "--normal is given without --label"),
        (["--drop", "colour"], "no column `colour`"),
        (["--held-out", "1.5"], "--held-out must be"),
        (["--contamination", "0.3"], "--contamination must be a share from 0 to 0.2"),
        (["--schema", "absent.json"], "cannot read schema absent.json"),
    ],
)
def test_wrong_options(history, tmp_path, capsys, arguments, message):
    assert cli.main(["tabular", "--data", str(history), "--out", str(tmp_path / "b"), *arguments]) == 65
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", b"a,b\n1,2\n1,2\n", "no column can be learned from"),
        ("d.csv", b"a,b\n", "has no rows"),
        ("d.csv", b"a\n1\n2\n", "needs at least 32"),
        ("d.csv", b"a.b\n1\n2\n", "needs at least 32"),
        ("d.csv", b"a,a\n1,2\n3,4\n", "needs at least 32"),
        ("d.parquet", b"PAR1", "cannot read"),
        ("d.npz", b"PK", "cannot read"),
        ("d.ndjson.gz", b"not gzip", "cannot read"),
        ("d.xls", b"", "unsupported file format"),
    ],
)
def test_bad_data(tmp_path, capsys, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert cli.main(["tabular", "--data", str(tmp_path / name), "--out", str(tmp_path / "b")]) == 65
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_absent_file(tmp_path, capsys):
    assert cli.main(["schema", "--data", str(tmp_path / "absent.csv")]) == 65
    assert "cannot read" in capsys.readouterr().err


def test_npz_labels_are_taken_by_custom(tmp_path, capsys):
    X = np.random.default_rng(0).normal(size=(100, 3))
    np.savez(tmp_path / "d.npz", X=X, y=np.arange(100) % 10 == 0)
    assert cli.main(["tabular", "--data", str(tmp_path / "d.npz"), "--out", str(tmp_path / "b"), "--steps", "20"]) == 0
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["training"]["rows"] + manifest["training"]["held_out_rows"] == 90
    assert [f["name"] for f in manifest["input"]["features"]] == ["x0", "x1", "x2"]


def test_interruption_leaves_nothing(history, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("residuald_train.tabular.train.descend", stop)
    assert cli.main(["tabular", "--recipe", "blind", "--data", str(history), "--out", str(tmp_path / "b")]) == 130
    assert list(tmp_path.iterdir()) == []


# {file name: content}. Each file makes a different reader fail.
DAMAGED = {
    "short-row.csv": b"a,b\n1,2\n3\n",
    "late-short-row.csv": b"a,b\n" + b"1,2\n" * 500_000 + b"3\n",
    "long-row.csv": b"a,b\n1,2\n" + b"x," * 5000 + b"\n",
    "quote.csv": b'a,b\n"1,2\n3,4\n',
    "binary.csv": bytes(range(256)) * 100,
    "empty.csv": b"",
    "no-gzip.csv.gz": b"a,b\n1,2\n",
    "cut.csv.gz": gzip.compress(b"a,b\n" + b"1,2\n" * 5000)[:-20],
    "broken.csv.gz": gzip.compress(b"a,b\n" + b"1,2\n" * 5000)[:20] + b"\xff" * 50,
    "broken.ndjson.gz": gzip.compress(b'{"a": 1}\n' * 5000)[:20] + b"\xff" * 50,
    "deep.ndjson": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "cut.parquet": b"PAR1" + b"\0" * 100 + b"PAR1",
    "no-zip.npz": b"PK\x03\x04 and no more",
    "absent.csv": None,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_process_with_damaged_data_ends_with_65_and_one_line(name, tmp_path):
    """Runs in a separate process, as users run it."""
    if DAMAGED[name] is not None:
        (tmp_path / name).write_bytes(DAMAGED[name])
    command = [sys.executable, "-m", "residuald_train.cli"]
    told = subprocess.run(
        [*command, "tabular", "--data", tmp_path / name, "--out", tmp_path / "bundle"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    # A progress bar may precede the last line.
    last = told.stderr.rstrip().rsplit("\n", 1)[-1].rsplit("\r", 1)[-1]
    assert (told.returncode, last.startswith("residuald-train: "), "Traceback" in told.stderr) == (65, True, False), (
        told.stderr
    )
    assert name in last
    assert len(last) < 600
