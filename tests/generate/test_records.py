"""Records that are drawn from a bundle for tables: what they hold, and that the same seed gives the same bits."""

import csv
import gzip
import json
import re
import signal
import subprocess
import time
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
from conftest import RESIDUALD, read, records, residuald


def test_drawn_records_look_like_the_data_and_fit_the_schema(bundle, generate):
    out, done = generate("--count", 2000, "--json")
    assert done.returncode == 0, done.stderr
    drawn, real = read(out), records(2000, 9)
    assert len(drawn) == 2000
    shares = Counter(row["entry"]["kind"] for row in drawn)
    assert abs(shares["online"] / 2000 - 0.1) < 0.05
    assert abs(np.log(np.median([r["amount"] for r in drawn]) / np.median([r["amount"] for r in real]))) < 0.3
    # The relation holds, and so does what is missing for a reason.
    error = [abs(r["tax"] - 0.2 * r["amount"]) / (1 + r["amount"]) for r in drawn]
    assert np.median(error) < 0.02
    agrees = [(r["delivery_days"] is not None) == (r["entry"]["kind"] == "online") for r in drawn]
    assert np.mean(agrees) > 0.95
    # Decimals, integers and bounds are those of the data.
    assert all(round(r["amount"], 2) == r["amount"] for r in drawn)
    assert all(isinstance(r["items"], int) and 1 <= r["items"] <= 15 for r in drawn)
    assert all("2026-03-02" <= r["time"][:10] <= "2026-03-08" for r in drawn)
    scored = json.loads(residuald("score", out, "--bundle", bundle, "--json").stdout)
    assert (scored["scored"], scored["dead_letters"]) == (2000, 0)
    assert json.loads(done.stdout)["privacy"]["records"] == 2000


def test_a_sample_has_the_same_bits_in_any_count_and_after_an_interruption(generate, tmp_path):
    out, done = generate("--count", 700)
    assert done.returncode == 0, done.stderr
    whole = out.read_bytes()
    few, done = generate("--count", 3, name="few.ndjson")
    assert done.returncode == 0
    assert whole.startswith(few.read_bytes())
    other, _ = generate("--count", 3, "--seed", 1, name="other.ndjson")
    assert other.read_bytes() != few.read_bytes()
    # What an interrupted run leaves: whole lines and the beginning of one.
    (tmp_path / "part.ndjson.part").write_bytes(whole[: len(whole) // 3])
    resumed, done = generate("--count", 700, "--resume", name="part.ndjson")
    assert done.returncode == 0, done.stderr
    assert resumed.read_bytes() == whole
    (tmp_path / "foreign.ndjson.part").write_bytes(b'{"amount":1}\n')
    _, done = generate("--count", 700, "--resume", name="foreign.ndjson")
    assert done.returncode == 64
    assert "other options" in done.stderr


def test_ctrl_c_leaves_whole_lines_and_resume_goes_on(bundle, tmp_path):
    out = tmp_path / "drawn.ndjson"
    command = [RESIDUALD, "generate", str(bundle), "--count", "200000", "--out", str(out), "--steps", "60"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    part = tmp_path / "drawn.ndjson.part"
    for _ in range(600):
        if part.exists() and part.stat().st_size > 0:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "--resume" in said
    assert not out.exists()
    lines = part.read_bytes().split(b"\n")
    assert lines[-1] == b""
    assert all(json.loads(line) for line in lines[:-1])


def test_every_format_holds_the_same_records(generate):
    plain, _ = generate("--count", 50, "--key", "card.id")
    expected = read(plain)
    zipped, _ = generate("--count", 50, "--key", "card.id", name="drawn.ndjson.gz")
    assert gzip.decompress(zipped.read_bytes()) == plain.read_bytes()
    table, done = generate("--count", 50, "--key", "card.id", name="drawn.parquet")
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(table).to_pylist()
    for row, record in zip(rows, expected, strict=True):
        assert row["entry.kind"] == record["entry"]["kind"]
        assert row["card.id"] == record["card"]["id"]
        assert (row["amount"], row["items"], row["delivery_days"]) == tuple(
            record[name] for name in ("amount", "items", "delivery_days")
        )
        assert row["time"] == record["time"]
    sheet, _ = generate("--count", 50, "--key", "card.id", name="drawn.csv")
    with sheet.open() as lines:
        for row, record in zip(csv.DictReader(lines), expected, strict=True):
            assert float(row["amount"]) == record["amount"]
            assert row["entry.repeat"] == json.dumps(record["entry"]["repeat"])


def test_a_page_compares_them_with_real_records(generate, tmp_path):
    page = tmp_path / "page.html"
    _, done = generate("--count", 1000, "--report", page)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    for name in ["amount", "entry_kind", "entry_repeat", "delivery_days"]:
        assert f"<h3>{name}</h3>" in text
    shapes, trends, told_apart = (
        float(re.search(rf"{name}</th><td class=\"number\">([0-9.]+) %", text)[1])
        for name in ("shapes", "pair trends", "told apart")
    )
    assert shapes > 93
    assert trends > 88
    assert 45 < told_apart < 70
    assert "<script" not in text
    _, done = generate("--count", 5, "--report", page, name="again.ndjson")
    assert (done.returncode, "--force" in done.stderr) == (64, True)


def test_given_features_are_held_and_the_others_follow(generate):
    out, done = generate(
        "--count", 300, "--where", "entry_kind=online", "--where", "amount=99.5", "--where", "time_hour_of_day=9.5"
    )
    assert done.returncode == 0, done.stderr
    drawn = read(out)
    assert {row["entry"]["kind"] for row in drawn} == {"online"}
    assert {row["amount"] for row in drawn} == {99.5}
    assert {row["time"][11:16] for row in drawn} == {"09:30"}
    assert abs(np.median([row["tax"] for row in drawn]) - 19.9) < 2
    assert np.mean([row["delivery_days"] is not None for row in drawn]) > 0.8
    missing, done = generate("--count", 20, "--where", "delivery_days=null", name="missing.ndjson")
    assert done.returncode == 0, done.stderr
    assert all(row["delivery_days"] is None for row in read(missing))


def test_anomalies_are_labelled_and_found(bundle, generate):
    out, done = generate("--count", 4000, "--anomalies", 0.05, "--key", "card", "--json")
    assert done.returncode == 0, done.stderr
    drawn = read(out)
    kinds = Counter(row["scenario"] for row in drawn)
    assert set(kinds) == {"normal", "tail", "foreign", "relation", "unseen", "ramp"}
    assert 120 < sum(row["label"] for row in drawn) < 280
    assert all((row["scenario"] == "normal") == (row["label"] == 0) for row in drawn)
    assert json.loads(done.stdout)["anomalies"]["tail"] == kinds["tail"]
    scored = residuald("score", out, "--bundle", bundle, "--label", "label", "--json")
    assert json.loads(scored.stdout)["labelled"]["auroc"] > 0.75
    # A ramp is on one key.
    ramps = [row["card"] for row in drawn if row["scenario"] == "ramp"]
    assert len(set(ramps)) <= len(ramps) / 15 + 1
    plain, _ = generate("--count", 4000, "--key", "card", name="plain.ndjson")
    untouched = [
        row
        for row, other in zip(drawn, read(plain), strict=True)
        if row["label"] == 0 and row["amount"] == other["amount"]
    ]
    assert len(untouched) == kinds["normal"]


def test_what_cannot_be_is_one_clear_line(bundle, generate, tmp_path):
    for arguments, code, said in [
        (["--count", 0], 64, "--count 0"),
        (["--count", 2_000_000_000], 64, "--count 2000000000"),
        (["--where", "amuont=1"], 64, "did you mean `amount`?"),
        (["--where", "entry_kind=cheque"], 64, "contactless"),
        (["--where", "amount=1e9"], 64, "the model knows values"),
        (["--anomalies", "2"], 64, "from 0 to 1"),
        (["--anomalies", "0.1", "--kinds", "ramp"], 64, "--key"),
        (["--key", "amount"], 64, "`amount`"),
        (["--scheduler", "heun"], 64, "DDIMScheduler"),
        (["--scheduler", "pndm"], 64, "it can be read as DDPMScheduler, DDIMScheduler"),
        (["--steps", "0"], 64, "step"),
        (["--eta", "1"], 64, "--eta has no effect"),
    ]:
        _, done = generate(*arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert said in done.stderr, (arguments, done.stderr)
        assert not list(tmp_path.glob("drawn*")), arguments
    _, done = generate(name="drawn.xlsx")
    assert (done.returncode, ".parquet" in done.stderr) == (64, True)
    out, _ = generate()
    _, done = generate()
    assert (done.returncode, "--force" in done.stderr) == (64, True)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [RESIDUALD, "generate", bundle, "--count", "5"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, "No space left" in done.stderr) == (65, True)
    assert out.exists()
