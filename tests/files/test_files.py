"""Files with the habits of other programs: `residuald-train` and `residuald score` read each of them alike.

Each test writes a file, trains on it and scores the same records. All of them must be scored, and about as many be
flagged as asked for. Files differ in how they write numbers, times, missing values and names.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest

ROOT = Path(__file__).resolve().parents[2]
RESIDUALD = os.environ.get("RESIDUALD", str(ROOT / "target/debug/residuald"))
ROWS = 1200


def train(verb, *arguments):
    """Runs a verb of the trainer -> its completed process, with stdout and stderr as text."""
    command = [sys.executable, "-m", "residuald_train.cli", verb, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rows():
    """Seeded rows of (amount, humidity, place in the file)."""
    random.seed(0)
    return [(round(random.lognormvariate(3, 1), 2), round(random.gauss(50, 3), 1), i) for i in range(ROWS)]


def csv(name, header, line, separator=","):
    """A writer of a CSV file: `line` turns (amount, humidity, i) into its cells."""

    def write(folder):
        lines = [header, *(separator.join(map(str, line(*row))) for row in rows())]
        (folder / name).write_text("\n".join(lines) + "\n")
        return folder / name

    return write


def ndjson(record):
    """A writer of NDJSON: `record` turns (amount, humidity, i) into a dict."""

    def write(folder):
        path = folder / "a.ndjson"
        path.write_text("".join(json.dumps(record(*row)) + "\n" for row in rows()))
        return path

    return write


def parquet(folder):
    """Columns that the model does not read: bytes and a date beyond every calendar."""
    amounts, humidities, numbers = zip(*rows(), strict=True)
    table = pa.table(
        {
            "amount": amounts,
            "humidity": humidities,
            "thumbnail": pa.array([bytes([255, i % 256]) for i in numbers], pa.binary()),
            "expires": pa.array([2**30 for _ in numbers], pa.date32()),
        }
    )
    pa.parquet.write_table(table, folder / "a.pq", compression="brotli")
    return folder / "a.pq"


def utf16(folder):
    path = csv("a.csv", "amount,humidity", lambda a, h, i: (a, h))(folder)
    path.write_text(path.read_text(), encoding="utf-16")
    return path


def array(folder):
    path = folder / "a.json"
    path.write_text(json.dumps([{"amount": a, "humidity": h} for a, h, _ in rows()], indent=1))
    return path


def clock(i):
    return f"2026-01-{1 + i // 60 % 28:02} {i % 24:02}:{i % 60:02}:20"


def part_files(folder):
    """A folder as Spark writes it, with an empty part and what is not data."""
    parts = folder / "history"
    for number in range(3):
        path = parts / f"shop=s{number + 1}" / f"part-{number:05}.parquet"
        path.parent.mkdir(parents=True)
        amounts, humidities, _ = zip(*rows()[number * 400 : (number + 1) * 400], strict=True)
        pa.parquet.write_table(pa.table({"amount": amounts, "humidity": humidities}), path)
    (parts / "_SUCCESS").touch()
    (parts / ".part-00000.crc").write_bytes(b"crc")
    (parts / "README.txt").write_text("text")
    return parts


def pattern(folder):
    for number in range(3):
        lines = [f"{a},{h}" for a, h, _ in rows()[number * 400 : (number + 1) * 400]]
        (folder / f"part-{number}.csv").write_text("\n".join(["amount,humidity", *lines]) + "\n")
    (folder / "other.csv").write_text("nothing\nlike it\n")
    return folder / "part-*.csv"


def arrow(name, **options):
    """A writer of Arrow IPC: Feather, or a stream if the name ends in .arrows."""

    def write(folder):
        amounts, humidities, numbers = zip(*rows(), strict=True)
        kinds = pa.array([["a", "b"][i % 2] for i in numbers]).dictionary_encode()
        table = pa.table({"amount": amounts, "humidity": humidities, "kind": kinds})
        if name.endswith(".arrows"):
            with pa.ipc.new_stream(folder / name, table.schema) as stream:
                stream.write_table(table, max_chunksize=100)
        else:
            pa.feather.write_feather(table, folder / name, chunksize=100, **options)
        return folder / name

    return write


def no_extension(folder):
    path = csv("a.csv", "amount;humidity", lambda a, h, i: (a, h), ";")(folder)
    return path.rename(folder / "000000_0")


# What the file is like: how it is written, the features that it must have, and what the trainer must say.
FILES = {
    "leading zeros": (
        csv("a.csv", "amount,humidity,zip", lambda a, h, i: (a, h, ["02139", "10001", "94107"][i % 3])),
        {"amount": "number", "humidity": "number", "zip": "categorical"},
        "",
    ),
    "N/A": (
        csv("a.csv", "amount,humidity", lambda a, h, i: ("N/A" if i % 20 == 0 else a, h)),
        {"amount": "number", "humidity": "number"},
        "",
    ),
    "a dash for missing": (
        csv("a.csv", "amount,humidity", lambda a, h, i: ("-" if i % 20 == 0 else a, h)),
        {"amount": "number", "humidity": "number"},
        "are `-`: taken as missing",
    ),
    "no digit before the point, and a plus": (
        csv("a.csv", "amount,humidity", lambda a, h, i: (f"+{a}", f"{h / 100:.3f}"[1:])),
        {"amount": "number", "humidity": "number"},
        "",
    ),
    "quoted numbers": (
        csv("a.csv", "amount,humidity", lambda a, h, i: (f'"{a}"', f'"{h}"')),
        {"amount": "number", "humidity": "number"},
        "",
    ),
    "thousands": (
        csv("a.csv", "amount,humidity", lambda a, h, i: (f'"{a * 100:,.2f}"', h)),
        {"amount": "number", "humidity": "number"},
        "numbers as text",
    ),
    "money": (
        csv("a.csv", "amount,humidity", lambda a, h, i: (f"${a}", f"{h} %")),
        {"amount": "number", "humidity": "number"},
        "money in $",
    ),
    "semicolons and decimal commas": (
        csv("a.csv", "amount;humidity", lambda a, h, i: (str(a).replace(".", ","), str(h).replace(".", ",")), ";"),
        {"amount": "number", "humidity": "number"},
        "separated by ';'",
    ),
    "tabs": (
        csv("a.tsv", "amount\thumidity", lambda a, h, i: (a, h), "\t"),
        {"amount": "number", "humidity": "number"},
        "",
    ),
    "UTF-16": (utf16, {"amount": "number", "humidity": "number"}, "UTF-16"),
    "a JSON array": (array, {"amount": "number", "humidity": "number"}, ""),
    "pandas' index": (
        csv("a.csv", ",amount,humidity", lambda a, h, i: (i, a, h)),
        {"amount": "number", "humidity": "number"},
        "`unnamed_1` only grows",
    ),
    "a column twice": (
        csv("a.csv", "amount,amount,humidity", lambda a, h, i: (a, round(a / 3, 3), h)),
        {"amount": "number", "amount_2": "number", "humidity": "number"},
        "is a second `amount`",
    ),
    "keys with dots": (
        ndjson(lambda a, h, i: {"id.orig_p": a, "id": {"resp_p": h}}),
        {"id_orig_p": "number", "id_resp_p": "number"},
        "",
    ),
    "numbers as text": (
        ndjson(lambda a, h, i: {"amount": str(a), "qty": str(i % 7), "humidity": h}),
        {"amount": "number", "qty": "number", "humidity": "number"},
        "`qty` holds numbers as text",
    ),
    "Suricata's times": (
        ndjson(lambda a, h, i: {"timestamp": clock(i).replace(" ", "T") + ".000000+0000", "amount": a}),
        {"timestamp_hour_of_day": "timestamp", "timestamp_day_of_week": "timestamp", "amount": "number"},
        "",
    ),
    "times without an offset": (
        csv("a.csv", "ts,amount", lambda a, h, i: (clock(i), a)),
        {"ts_hour_of_day": "timestamp", "ts_day_of_week": "timestamp", "amount": "number"},
        "read as UTC",
    ),
    "seconds since 1970": (
        csv("a.csv", "ts,amount,humidity", lambda a, h, i: (1_767_225_620 + 613 * i, a, h)),
        {"ts_hour_of_day": "timestamp", "ts_day_of_week": "timestamp", "amount": "number", "humidity": "number"},
        "seconds since 1970",
    ),
    "floats for categories": (
        csv("a.csv", "amount,zip", lambda a, h, i: (a, ["91750.0", "10001.0", "N/A"][i % 3])),
        {"amount": "number", "zip": "number"},
        "",
    ),
    "a folder of part files": (
        part_files,
        {"amount": "number", "humidity": "number", "shop": "categorical"},
        "3 files or folders are not data",
    ),
    "a pattern": (pattern, {"amount": "number", "humidity": "number"}, ""),
    "Arrow": (
        arrow("a.arrow", compression="zstd"),
        {"amount": "number", "humidity": "number", "kind": "categorical"},
        "",
    ),
    "Feather": (arrow("a.feather"), {"amount": "number", "humidity": "number", "kind": "categorical"}, ""),
    "an Arrow stream": (arrow("a.arrows"), {"amount": "number", "humidity": "number", "kind": "categorical"}, ""),
    "no extension": (no_extension, {"amount": "number", "humidity": "number"}, "read as csv"),
    "columns that nobody reads": (parquet, {"amount": "number", "humidity": "number"}, "written as base64"),
}


@pytest.mark.parametrize("kind", FILES)
def test_trainer_and_score_read_a_file_alike(kind, tmp_path):
    write, features, said = FILES[kind]
    data, bundle = write(tmp_path), tmp_path / "bundle"
    trained = train("tabular", "--data", data, "--recipe", "kernel", "--coreset", 100, "--out", bundle)
    assert trained.returncode == 0, trained.stderr
    assert said in trained.stdout + trained.stderr
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert {f["name"]: f["type"] for f in manifest["input"]["features"]} == features
    report = score(data, bundle)
    assert (report["records"], report["scored"], report["dead_letters"]) == (ROWS, ROWS, 0)
    assert 0.02 * ROWS < report["anomalies"] < 0.09 * ROWS


def score(data, bundle):
    """The JSON report of `residuald score` at a false-alarm rate of 5 %."""
    command = [RESIDUALD, "score", data, "--bundle", bundle, "--false-alarm-rate", "0.05", "--top", "0", "--json"]
    scored = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert scored.returncode == 0, scored.stderr
    return json.loads(scored.stdout)


def test_a_category_is_found_however_its_number_is_written(tmp_path):
    """The vocabulary of a schema says 91750.0, as pandas writes a column of integers with gaps."""
    data = csv("a.csv", "amount,zip", lambda a, h, i: (a, ["91750.0", "10001", "95076.00"][i % 3]))(tmp_path)
    features = [
        {"name": "amount", "path": "amount", "type": "number"},
        {"name": "zip", "path": "zip", "type": "categorical", "vocabulary": ["91750.0", "95076", "10001.0"]},
    ]
    (tmp_path / "schema.json").write_text(json.dumps({"kind": "tabular", "features": features}))
    arguments = ["--data", data, "--schema", tmp_path / "schema.json", "--recipe", "kernel", "--coreset", 100]
    trained = train("tabular", *arguments, "--out", tmp_path / "bundle")
    assert trained.returncode == 0, trained.stderr
    report = score(data, tmp_path / "bundle")
    assert report["scored"] == ROWS
    assert 0.02 * ROWS < report["anomalies"] < 0.09 * ROWS


def test_the_next_week_is_not_an_anomaly(tmp_path):
    """A column that only grows is no feature: later records are flagged as often as those of training."""
    line = lambda start: lambda a, h, i: (start + 613 * i, i, a, h)  # noqa: E731
    data = csv("a.csv", "ts,row,amount,humidity", line(1_767_225_620))(tmp_path)
    assert train("tabular", "--data", data, "--recipe", "kernel", "--out", tmp_path / "bundle").returncode == 0
    later = csv("later.csv", "ts,row,amount,humidity", line(1_768_225_620))(tmp_path)
    assert 0.025 * ROWS < score(later, tmp_path / "bundle")["anomalies"] < 0.1 * ROWS


def test_standard_input_is_read_by_trainer_and_score(tmp_path):
    data = csv("a.csv", "amount,humidity", lambda a, h, i: (a, h))(tmp_path)
    command = [sys.executable, "-m", "residuald_train.cli", "tabular", "--data", "-", "--recipe", "kernel"]
    command += ["--coreset", "100", "--out", str(tmp_path / "bundle")]
    with data.open() as stdin:
        trained = subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=False)
    assert trained.returncode == 0, trained.stderr
    assert "its content is read as csv" in trained.stderr
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["training"]["data"] == [{"file": "-", "rows": ROWS}]
    command = [RESIDUALD, "score", "-", "--format", "csv", "--bundle", tmp_path / "bundle", "--json"]
    with data.open() as stdin:
        scored = subprocess.run(list(map(str, command)), stdin=stdin, capture_output=True, text=True, check=False)
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["scored"] == ROWS


def test_missing_values_of_a_schema_hold_for_every_column(tmp_path):
    """`schema --missing` writes them, training and scoring read them, and so does a profile with the bundle."""
    line = lambda a, h, i: (-1 if i % 20 == 0 else a, "keine Angabe" if i % 10 == 1 else h)  # noqa: E731
    data = csv("a.csv", "amount,humidity", line)(tmp_path)
    schema, bundle = tmp_path / "schema.json", tmp_path / "bundle"
    drafted = train("schema", "--data", data, "--missing", "keine Angabe,-1", "--out", schema)
    assert drafted.returncode == 0, drafted.stderr
    written = json.loads(schema.read_text())
    assert written["missing_values"] == ["keine Angabe", -1]
    found = {f["name"]: (f["type"], f["missing"], f.get("missing_values")) for f in written["features"]}
    assert found == {"amount": ("number", "impute", None), "humidity": ("number", "impute", None)}
    options = ["--recipe", "kernel", "--coreset", 100, "--out", bundle]
    trained = train("tabular", "--data", data, "--schema", schema, *options)
    assert trained.returncode == 0, trained.stderr
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["format"] == 2
    assert manifest["training"]["ranges"]["amount"][0] > 0
    assert score(data, bundle)["scored"] == ROWS
    profiled = subprocess.run(
        [RESIDUALD, "profile", data, "--bundle", bundle, "--json"], capture_output=True, text=True, check=False
    )
    assert profiled.returncode == 0, profiled.stderr
    report = json.loads(profiled.stdout)
    assert report["fitting"] == ROWS
    assert {c["feature"]: c["missing"] for c in report["columns"]} == {"amount": ROWS // 20, "humidity": ROWS // 10}
    assert [c["beyond"]["records"] for c in report["columns"]] < [ROWS * 0.01] * 2
