"""`residuald rehearse`: what it reports of right settings, and that it finds settings and data that are broken."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest
from conftest import RESIDUALD, cluster, needs_kafka, records, residuald, write

KINDS = {"tail", "foreign", "relation", "unseen"}
SETTINGS = """
[kafka]
brokers = "nowhere.invalid:9092"
topics = ["shop"]
[kafka.client]
security.protocol = "SSL"
[model]
bundle = {bundle}
[threshold]
{threshold}
"""


@pytest.fixture
def rehearse(bundle, tmp_path):
    """`residuald rehearse` -> (its report, its completed process)."""

    def run(*arguments, threshold="false_alarm_rate = 0.01", model=bundle, count=1500):
        settings = tmp_path / "residuald.toml"
        settings.write_text(SETTINGS.format(bundle=json.dumps(str(model)), threshold=threshold))
        options = ["--config", settings, "--records", count, "--rate", 5000, "--steps", 12, "--json"]
        done = residuald("rehearse", *options, *arguments, timeout=500)
        return (json.loads(done.stdout) if done.stdout.strip() else None), done

    return run


def findings(report):
    return {finding["kind"] for finding in report["findings"]}


def states(report):
    return {(rule["alert"], rule["severity"]): rule["state"] for rule in report["rules"]}


def named(report):
    """The features that findings name."""
    return {finding["message"].split("`")[1] for finding in report["findings"] if finding["kind"] == "feature"}


def test_right_settings_pass_and_the_report_is_whole(rehearse, tmp_path):
    sample = write(tmp_path / "sample.ndjson", records(800, 77))
    page = tmp_path / "rehearsal.html"
    report, done = rehearse("--sample", sample, "--html", page, "--records-per-day", 100_000)
    assert done.returncode == 0, done.stderr + str(report and report["findings"])
    assert report["passed"] is report["complete"] is True
    assert report["findings"] == []
    sent = report["records"]
    assert sent["unanswered"] == sent["refused"] == 0
    assert sent["sent"] == sent["scored"] == sent["normal"] + sent["anomalies"] + 800
    # A fifth of the drawn records; a few anomalies did not change their record.
    assert 200 < sent["anomalies"] <= 400
    alerts = report["alerts"]
    assert alerts["budget"] == {"alerts_per_day": 1000.0, "records_per_day": 100_000.0}
    assert alerts["per_day"] == pytest.approx(alerts["rate"]["share"] * 100_000)
    assert alerts["per_day_low"] <= alerts["per_day"] <= alerts["per_day_high"]
    assert not alerts["missed"]
    assert {kind["kind"] for kind in report["kinds"]} == KINDS
    for kind in report["kinds"]:
        assert kind["recall"]["of"] == sum(strength["recall"]["of"] for strength in kind["strengths"]) > 0
        assert kind["recall"]["low"] <= kind["recall"]["share"] <= kind["recall"]["high"]
    tail = next(kind for kind in report["kinds"] if kind["kind"] == "tail")
    found = [strength["recall"]["share"] for strength in tail["strengths"]]
    assert found[-1] > 0.5
    assert found[-1] >= found[0]
    assert 0 < report["latency"]["p50_seconds"] <= report["latency"]["p99_seconds"]
    assert states(report)["ResidualdDeadLetters", "page"] == "silent"
    assert states(report)["ResidualdRecordsUnaccounted", "page"] == "silent"
    assert "ResidualdDown" in report["rules_not_evaluated"]
    text = page.read_text()
    assert "Nothing is wrong" in text
    assert "ResidualdScoreDrift" in text
    assert "<script" not in text
    _, again = rehearse("--html", page)
    assert again.returncode == 64
    assert "--force" in again.stderr


def test_a_threshold_ten_times_too_high_is_blind(rehearse):
    right, _ = rehearse()
    report, done = rehearse(threshold=f"score = {10 * right['threshold']}")
    assert done.returncode == 1
    assert findings(report) == {"blind"}
    assert report["recall"]["share"] < right["recall"]["share"] / 2


def test_a_field_of_another_meaning_is_found_and_named(rehearse, tmp_path):
    rows = records(600, 78)
    for row in rows:
        row["amount"], row["items"] = float(row["items"]), round(row["amount"])
    report, done = rehearse("--sample", write(tmp_path / "swapped.ndjson", rows))
    assert done.returncode == 1
    assert "sample_flagged" in findings(report)
    assert {"amount", "items"} <= named(report)


def test_cents_in_place_of_euros_are_found_and_named(rehearse, tmp_path):
    rows = records(600, 79)
    for row in rows:
        row["amount"] = round(100 * row["amount"])
    report, done = rehearse("--sample", write(tmp_path / "cents.ndjson", rows))
    assert done.returncode == 1
    assert "sample_flagged" in findings(report)
    assert "amount" in named(report)
    message = next(f["message"] for f in report["findings"] if f["kind"] == "feature" and "`amount`" in f["message"])
    times = float(message.split(" times as much")[0].split()[-1])
    assert 80 < times < 125
    # The stream of a day has a fifth of such records, twenty times the usual share.
    assert states(report)["ResidualdAnomalyRateAboveItsBudget", "page"] == "firing"
    assert states(report)["ResidualdScoreDrift", "ticket"] == "silent"


def test_a_field_that_is_gone_is_found(rehearse, tmp_path):
    rows = records(300, 80)
    for row in rows:
        row["sum"] = row.pop("amount")
    report, done = rehearse("--sample", write(tmp_path / "renamed.ndjson", rows))
    assert done.returncode == 1
    assert "sample_refused" in findings(report)
    assert states(report)["ResidualdDeadLetters", "ticket"] == "pending"
    assert "amount" in report["sample"]["reasons"]


def test_a_bundle_with_a_wrong_path_does_not_start(rehearse, bundle, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    manifest = json.loads((broken / "manifest.json").read_text())
    feature = next(f for f in manifest["input"]["features"] if f["name"] == "amount")
    feature["path"] = "items"
    (broken / "manifest.json").write_text(json.dumps(manifest))
    report, done = rehearse(model=broken)
    assert done.returncode == 65
    assert report is None
    assert "golden" in done.stderr


def test_a_missed_budget_ends_with_1(rehearse):
    report, done = rehearse("--budget", 1, "--records-per-day", 1_000_000)
    assert done.returncode == 1
    assert findings(report) == {"budget_missed"}
    assert report["alerts"]["missed"]


def test_a_topic_that_the_daemon_does_not_read_and_bad_numbers_are_refused(rehearse):
    for arguments, said in [
        (("--topic", "elsewhere"), "does not read"),
        (("--topic", "shop"), "scores_topic"),
        (("--records", "3"), "100"),
        (("--anomalies", "1"), "0.9"),
        (("--strengths", "0"), "above 0"),
        (("--sample", "absent.ndjson"), "absent.ndjson"),
    ]:
        _, done = rehearse(*arguments) if arguments[0] != "--records" else rehearse(count=3)
        assert done.returncode in (64, 65), arguments
        assert said in done.stderr


def test_ctrl_c_drains_and_the_report_says_how_far_it_came(bundle, tmp_path):
    settings = tmp_path / "residuald.toml"
    settings.write_text(SETTINGS.format(bundle=json.dumps(str(bundle)), threshold="false_alarm_rate = 0.01"))
    options = ["--records", "300", "--steps", "4", "--rate", "20", "--json"]
    command = [RESIDUALD, "rehearse", "--config", str(settings), *options]
    # Records are sent from a few seconds after the start on, for half a minute. A busy machine begins later.
    for seconds in (12, 30, 60, 120):
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
        time.sleep(seconds)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
        if running.returncode == 130 and out.strip() and json.loads(out)["records"]["sent"] > 0:
            break
        assert running.returncode in (0, 130), err
    assert running.returncode == 130
    assert "interrupted" in err
    report = json.loads(out)
    assert not report["complete"]
    assert report["records"]["unanswered"] == 0
    assert 0 < report["records"]["scored"] == report["records"]["sent"] < report["records"]["planned"]


@needs_kafka
def test_a_running_daemon_is_rehearsed_through_a_topic_of_a_real_kafka(bundle, tmp_path):
    with cluster(tmp_path / "kafka", ["shop", "anomalies", "scores", "dead-letters"]) as brokers:
        settings = tmp_path / "residuald.toml"
        threshold = 'false_alarm_rate = 0.01\n[output]\nscores_topic = "scores"\n[http]\nlisten = "127.0.0.1:0"'
        text = SETTINGS.format(bundle=json.dumps(str(bundle)), threshold=threshold)
        text = text.replace("nowhere.invalid:9092", brokers).replace('[kafka.client]\nsecurity.protocol = "SSL"\n', "")
        settings.write_text(text)
        daemon = subprocess.Popen([RESIDUALD, "run", "--config", str(settings)], stderr=subprocess.DEVNULL)
        try:
            options = ["--records", 200, "--rate", 200, "--steps", 4, "--json"]
            done = residuald("rehearse", "--config", settings, "--topic", "shop", *options, timeout=300)
        finally:
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(timeout=60) == 0
    report = json.loads(done.stdout)
    assert done.returncode == len(report["findings"]) == 0, done.stderr
    assert report["records"]["sent"] == report["records"]["scored"] == 400
    assert report["rules"] is None
