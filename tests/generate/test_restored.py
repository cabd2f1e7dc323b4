"""`output.restored_topic`: every record as it came, with what it lacked filled in, by both deliveries."""

import hashlib
import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections import defaultdict
from contextlib import contextmanager

import pytest
from conftest import RESIDUALD, ROOT, cluster, needs_kafka, read, records, residuald, write

TOPICS = ["shop", "anomalies", "dead-letters", "restored"]
SETTINGS = """
[kafka]
brokers = "{brokers}"
topics = ["shop"]
delivery = "{delivery}"
[kafka.consumer]
auto.offset.reset = "earliest"
group.instance.id = "one"
[model]
bundle = {bundle}
[output]
restored_topic = "restored"
restored_draws = 8
restored_steps = 10
restored_seed = 3
[http]
listen = "127.0.0.1:{port}"
"""
GENERATIVE = [
    "scheduler_config.json",
    "denoiser.onnx",
    "encode.onnx",
    "decode.onnx",
    "reference.npy",
    "generative.json",
]


def settings(folder, bundle, brokers="nowhere.invalid:9092", delivery="at-least-once"):
    """Writes a settings file -> its path, and the port of /metrics."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = folder / f"{delivery}.toml"
    values = {"brokers": brokers, "delivery": delivery, "bundle": json.dumps(str(bundle)), "port": port}
    path.write_text(SETTINGS.format(**values))
    return path, port


def only_scores(bundle, folder):
    """A copy of the bundle without its generative part."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in GENERATIVE:
        (folder / name).unlink()
        del manifest["files"][name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def reads_imputed(bundle, folder):
    """A copy of the bundle that reads a feature where a restored record tells what was filled in."""
    shutil.copytree(bundle, folder)
    golden = read(folder / "golden.ndjson")
    for example in golden:
        if "delivery_days" in example["record"]:
            example["record"]["imputed"] = {"days": example["record"].pop("delivery_days")}
    write(folder / "golden.ndjson", golden)
    manifest = json.loads((folder / "manifest.json").read_text())
    next(f for f in manifest["input"]["features"] if f["name"] == "delivery_days")["path"] = "imputed.days"
    manifest["files"]["golden.ndjson"] = hashlib.sha256((folder / "golden.ndjson").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@contextmanager
def daemon(path, log):
    """A daemon that is killed at the end, unless it has ended."""
    with log.open("a") as errors:
        running = subprocess.Popen([RESIDUALD, "run", "--config", str(path)], stderr=errors)
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def stop(running):
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=60) == 0


def send(brokers, lines):
    """Sends (key, value) with the header `own`."""
    text = "".join(f"{key}|{value}\n" for key, value in lines)
    command = ["kcat", "-b", brokers, "-P", "-t", "shop", "-K", "|", "-H", "own=1"]
    subprocess.run(command, input=text, text=True, check=True)


def topic(brokers, name):
    """What is committed in a topic -> a list of messages with a dict of headers."""
    command = ["kcat", "-b", brokers, "-C", "-t", name, "-o", "beginning", "-e", "-q", "-J"]
    command += ["-X", "isolation.level=read_committed"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    for message in messages:
        named = message.get("headers") or []
        message["headers"] = dict(zip(named[::2], named[1::2], strict=True))
    return messages


def places(messages, prefix="residuald."):
    """The messages by the place that their headers name."""
    found = defaultdict(list)
    for message in messages:
        headers = message["headers"]
        found[int(headers[prefix + "partition"]), int(headers[prefix + "offset"])].append(message)
    return found


def until(what, holds, seconds=120):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited too long for {what}"
        time.sleep(0.3)


def metrics(port):
    """The samples of /metrics by their names with labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line and line[0] != "#"}


def stream(count):
    """Records of which a third is whole, a third lacks something, a tenth is refused for another reason."""
    lines = []
    for i, row in enumerate(records(count, 21)):
        row["delivery_days"] = 2
        if i % 3 == 0:
            del row["tax"]
        elif i % 3 == 1:
            row["entry"].pop("kind")
            row["delivery_days"] = None
        if i % 10 == 9:
            row["amount"] = "much"
        # White space that a rewritten record would lose.
        lines.append((f"card-{i % 7}", json.dumps(row, separators=(" , ", " : "))))
    return lines


def imputed(bundle, folder, message):
    """What `residuald impute` makes of one record with the seed of its restored message."""
    source = folder / "one.ndjson"
    source.write_text(message["payload"] + "\n")
    options = ["--draws", 8, "--steps", 10, "--seed", message["headers"]["residuald.seed"]]
    done = residuald("impute", source, "--bundle", bundle, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


@needs_kafka
@pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])
def test_every_record_is_restored_once_although_daemons_are_killed(bundle, tmp_path, delivery):
    lines = stream(600)
    with cluster(tmp_path / "kafka", TOPICS) as brokers:
        path, port = settings(tmp_path, bundle, brokers, delivery)
        send(brokers, lines[:400])
        for least in (60, 200):
            with daemon(path, tmp_path / "log") as running:
                until("records before the crash", lambda least=least: len(topic(brokers, "restored")) >= least)
                running.kill()
        with daemon(path, tmp_path / "log") as running:
            send(brokers, lines[400:])
            came = {(m["partition"], m["offset"]): m for m in topic(brokers, "shop")}
            assert len(came) == 600
            readable = {place: m for place, m in came.items() if '"much"' not in m["payload"]}
            until("all records", lambda: set(places(topic(brokers, "restored"))) >= set(readable))
            # A record that would be there twice may come later.
            until("all outcomes", lambda: metrics(port)["residuald_records_in_flight"] == 0)
            counts = metrics(port)
            stop(running)
        restored, dead = topic(brokers, "restored"), topic(brokers, "dead-letters")

    by_place = places(restored)
    assert set(by_place) == set(readable)
    again = [len(copies) for copies in by_place.values() if len(copies) > 1]
    if delivery == "exactly-once":
        assert again == []
        assert len(restored) == 540
    # A record that comes again has the same bytes.
    assert all(len({copy["payload"] for copy in copies}) == 1 for copies in by_place.values())
    order = defaultdict(list)
    for message in restored:
        order[message["key"]].append(int(message["headers"]["residuald.offset"]))
    if delivery == "exactly-once":
        assert all(offsets == sorted(offsets) for offsets in order.values())

    complete = [place for place, m in readable.items() if '"tax"' in m["payload"] and '"kind"' in m["payload"]]
    lacking = sorted(set(readable) - set(complete))
    assert len(complete) > 150
    assert len(lacking) > 300
    for place, message in readable.items():
        copy = by_place[place][0]
        assert copy["key"] == message["key"]
        assert copy["ts"] == message["ts"]
        assert copy["headers"]["own"] == "1"
        assert copy["headers"]["residuald.topic"] == "shop"
        assert copy["headers"]["residuald.id"].startswith(f"shop-{place[0]}-{place[1]}@")
    for place in complete:
        assert by_place[place][0]["payload"] == readable[place]["payload"]
        assert "residuald.seed" not in by_place[place][0]["headers"]
    for place in lacking:
        record = json.loads(by_place[place][0]["payload"])
        lacked = [name for name in ("tax", "entry_kind") if name in record["imputed"]]
        assert len(lacked) == 1
        assert record["imputed"][lacked[0]]["value"] in (record.get("tax"), record["entry"].get("kind"))
    for place in lacking[:2] + lacking[-2:]:
        copy = by_place[place][0]
        alone = imputed(bundle, tmp_path, {"payload": readable[place]["payload"], "headers": copy["headers"]})
        assert copy["payload"] == alone
    # What lacks a required feature is a dead letter as well; a record that is wrong is nothing else.
    letters = set(places(dead, "__connect.errors."))
    assert letters == (set(came) - set(readable)) | set(lacking)

    assert counts["residuald_records_unaccounted"] == 0
    assert counts['residuald_restored_records_total{outcome="failed"}'] == 0
    assert counts['residuald_restored_records_total{outcome="filled"}'] > 0
    assert counts['residuald_restored_records_total{outcome="unchanged"}'] > 0
    assert counts['residuald_restored_values_total{feature="tax",outcome="filled"}'] > 0
    assert counts["residuald_restoration_seconds_sum"] > 0


@needs_kafka
def test_a_stop_amid_records_that_take_long_drains(bundle, tmp_path):
    # All of them would take minutes. Only as many are in flight as fit into a drain.
    (row,) = records(1, 22)
    del row["tax"]
    with cluster(tmp_path / "kafka", TOPICS) as brokers:
        path, port = settings(tmp_path, bundle, brokers, "exactly-once")
        path.write_text(path.read_text().replace("restored_draws = 8", "restored_draws = 200"))
        send(brokers, [(f"card-{i}", json.dumps(row)) for i in range(20_000)])
        with daemon(path, tmp_path / "log") as running:
            until("the first records", lambda: topic(brokers, "restored"))
            assert metrics(port)["residuald_records_in_flight"] > 0
            stop(running)
        assert 0 < len(topic(brokers, "restored")) < 20_000
    assert "drained" in (tmp_path / "log").read_text()


@needs_kafka
def test_a_field_of_the_same_name_is_replaced_and_told(bundle, tmp_path):
    row = stream(3)[0]
    own = json.loads(row[1]) | {"imputed": "mine"}
    with cluster(tmp_path / "kafka", TOPICS) as brokers:
        path, port = settings(tmp_path, bundle, brokers)
        send(brokers, [("k", json.dumps(own))])
        with daemon(path, tmp_path / "log") as running:
            until("the record", lambda: topic(brokers, "restored"))
            until("its count", lambda: metrics(port)['residuald_omitted_parts_total{part="imputed"}'] == 1)
            stop(running)
        (message,) = topic(brokers, "restored")
    assert json.loads(message["payload"])["imputed"]["tax"]["value"] >= 0
    assert message["headers"]["residuald.omitted"].startswith("imputed: ")


@needs_kafka
def test_a_bundle_that_only_scores_does_not_take_over(bundle, tmp_path):
    current = tmp_path / "current"
    shutil.copytree(bundle, current)
    only_scores(bundle, tmp_path / "other")
    with cluster(tmp_path / "kafka", TOPICS) as brokers:
        path, port = settings(tmp_path, current, brokers)
        with daemon(path, tmp_path / "log") as running:
            send(brokers, stream(3))
            until("the first records", lambda: len(topic(brokers, "restored")) == 3)
            shutil.rmtree(current)
            shutil.copytree(tmp_path / "other", current)
            running.send_signal(signal.SIGHUP)
            failed = 'residuald_model_reloads_total{status="failed"}'
            until("the refused reload", lambda: metrics(port)[failed] == 1)
            send(brokers, stream(3))
            until("records after the reload", lambda: len(topic(brokers, "restored")) == 6)
            shutil.rmtree(current)
            shutil.copytree(bundle, current)
            running.send_signal(signal.SIGHUP)
            until("the reload", lambda: metrics(port)['residuald_model_reloads_total{status="ok"}'] == 1)
            send(brokers, stream(3))
            until("records of the new model", lambda: len(topic(brokers, "restored")) == 9)
            stop(running)
    log = (tmp_path / "log").read_text()
    assert "the reload failed" in log
    assert "has no generative part" in log


def test_settings_that_cannot_work_are_refused(bundle, tmp_path):
    path, _ = settings(tmp_path, bundle)
    check = ["check", "--config", path]
    done = residuald(*check)
    assert done.returncode == 0, done.stderr
    assert "ms to fill in a record" in done.stdout
    claimed = reads_imputed(bundle, tmp_path / "claimed")
    for sets, said in [
        ([f"model.bundle={only_scores(bundle, tmp_path / 'scores')}"], "--generative"),
        ([f"model.bundle={ROOT / 'tests/images/gray'}", "threshold.quantile=0.9"], "has no denoiser"),
        ([f"model.bundle={claimed}"], "imputed.days"),
        (["output.restored_topic=anomalies"], "another topic of [output]"),
        (["output.restored_topic=shop"], "kafka.topics and in [output]"),
        (["output.restored_steps=9999"], "output.restored_steps"),
        (["output.restored_draws=0"], "output.restored_draws"),
    ]:
        flags = [flag for setting in sets for flag in ("--set", setting)]
        for command in (check, ["run", "--config", path]):
            done = residuald(*command, *flags, timeout=60)
            assert done.returncode in (65, 78), (sets, done.returncode, done.stderr)
            assert said in done.stderr, (sets, done.stderr)


@needs_kafka
def test_a_missing_topic_is_named(bundle, tmp_path):
    with cluster(tmp_path / "kafka", TOPICS[:3]) as brokers:
        path, _ = settings(tmp_path, bundle, brokers)
        done = residuald("check", "--config", path, "--connect")
    assert done.returncode != 0
    assert "restored" in done.stderr
