"""Tests the alert rules: each alert has a runbook section and a table row, fires in a test and uses known metrics."""

import re
import subprocess

import pytest
import yaml
from deployed import ALERTS, ROOT, RULES, RULES_FILE, RULES_TEST, RUNBOOK, unknown

NAMES = {alert["alert"] for alert in ALERTS}


@pytest.mark.parametrize(("verb", "file"), [("check", RULES_FILE), ("test", RULES_TEST)])
def test_promtool_accepts_the_rules(promtool, verb, file):
    done = subprocess.run([promtool, verb, "rules", file], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: f"{alert['alert']}-{alert['labels']['severity']}")
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert):
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["annotations"]["runbook_url"] == f"deploy/runbook.md#{alert['alert'].lower()}"
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}


def test_the_runbook_and_the_table_have_every_alert_and_no_other():
    assert set(re.findall(r"^## (.+)$", RUNBOOK.read_text(), re.M)) == NAMES
    assert set(re.findall(r"^\| `(Residuald\w+)` \|", (ROOT / "docs/src/monitoring.md").read_text(), re.M)) == NAMES


def test_the_unit_tests_evaluate_the_groups_in_the_files_order():
    """Otherwise promtool picks an order at each run, and an alert may read a recorded series of one step before."""
    groups = yaml.safe_load(RULES_FILE.read_text())["groups"]
    assert yaml.safe_load(RULES_TEST.read_text())["group_eval_order"] == [group["name"] for group in groups]


def test_every_alert_fires_in_a_unit_test():
    assert set(re.findall(r"alertname(?:=\"|: )(Residuald\w+)", RULES_TEST.read_text())) == NAMES


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_the_metrics_of_a_rule_exist(rule):
    assert unknown(rule["expr"]) == set()


def test_the_runbook_names_only_metrics_that_exist():
    assert unknown(RUNBOOK.read_text()) == set()
