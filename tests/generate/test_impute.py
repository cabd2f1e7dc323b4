"""Missing values that are filled in, and noise that is removed."""

import json

import numpy as np
from conftest import read, records, residuald, write


def test_missing_values_get_a_value_and_an_interval_that_holds_the_truth(bundle, tmp_path):
    rng, truth = np.random.default_rng(3), records(600, 5)
    holed = [json.loads(json.dumps(row)) for row in truth]
    hidden = rng.random(600) < 0.3
    for row, hide in zip(holed, hidden, strict=True):
        if hide:
            del row["tax"]
    source = write(tmp_path / "holed.ndjson", holed)
    out = tmp_path / "filled.ndjson"
    done = residuald("impute", source, "--bundle", bundle, "--draws", 40, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    filled = read(out)
    error = [abs(row["tax"] - real["tax"]) for row, real, hide in zip(filled, truth, hidden, strict=True) if hide]
    spread = np.median([abs(row["tax"] - np.median([r["tax"] for r in truth])) for row in truth])
    assert np.median(error) < 0.3 * spread
    inside = [
        row["imputed"]["tax"]["low"] <= real["tax"] <= row["imputed"]["tax"]["high"]
        for row, real, hide in zip(filled, truth, hidden, strict=True)
        if hide
    ]
    assert np.mean(inside) > 0.7
    summary = json.loads(done.stdout)
    assert summary["features"]["tax"]["filled"] == hidden.sum()
    # Delivery days are missing for a reason, and stay so.
    chip = [row for row in filled if row["entry"]["kind"] == "chip"]
    assert all(row.get("delivery_days") is None for row in chip)
    assert summary["features"]["delivery_days"]["left_missing"] > 400


def test_records_without_holes_are_passed_on_as_they_are(bundle, tmp_path):
    whole = [row for row in records(200, 6) if row["entry"]["kind"] == "online"]
    source = write(tmp_path / "whole.ndjson", whole)
    done = residuald("impute", source, "--bundle", bundle)
    assert done.returncode == 0, done.stderr
    assert done.stdout == source.read_text()


def test_a_field_of_the_same_name_is_not_replaced_in_silence(bundle, tmp_path):
    row = records(1, 6)[0] | {"imputed": "mine"}
    del row["tax"]
    source = write(tmp_path / "own.ndjson", [row])
    done = residuald("impute", source, "--bundle", bundle)
    assert json.loads(done.stdout)["imputed"]["tax"]["value"] >= 0
    assert "1 records had a field of the same name" in done.stderr


def test_what_cannot_be_read_is_counted(bundle, tmp_path):
    source = tmp_path / "mixed.ndjson"
    source.write_text('{"amount": "much"}\n' + json.dumps(records(1, 7)[0]) + "\n")
    done = residuald("impute", source, "--bundle", bundle)
    assert done.returncode == 0
    assert "1 could not be read" in done.stderr
    source.write_text('{"amount": "much"}\n')
    done = residuald("impute", source, "--bundle", bundle, "--out", tmp_path / "none.ndjson")
    assert done.returncode == 65
    assert not list(tmp_path.glob("none*"))


def test_noise_is_found_and_removed(bundle, tmp_path):
    rng, truth = np.random.default_rng(4), records(1500, 8)
    noisy = [row | {"tax": round(float(row["tax"] * np.exp(rng.normal(0, 0.5))), 2)} for row in truth]
    source = write(tmp_path / "noisy.ndjson", noisy)
    out = tmp_path / "clean.ndjson"
    done = residuald("denoise", source, "--bundle", bundle, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sigma"] > 0.05
    stated = residuald("denoise", source, "--bundle", bundle, "--sigma", 0.4, "--out", out, "--force")
    assert stated.returncode == 0, stated.stderr

    def error(rows):
        return np.median([abs(np.log((1 + a["tax"]) / (1 + b["tax"]))) for a, b in zip(rows, truth, strict=True)])

    cleaned = read(out)
    assert error(cleaned) < 0.8 * error(noisy)
    assert cleaned[0]["denoised"]["tax"] == noisy[0]["tax"]
    clean = write(tmp_path / "already.ndjson", truth)
    done = residuald("denoise", clean, "--bundle", bundle)
    assert "no noise was found" in done.stderr
    assert done.stdout == clean.read_text()
