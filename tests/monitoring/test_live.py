"""Tests metrics, alerts and dashboards with a real daemon, Prometheus and Alertmanager."""

import math
import re
import subprocess

import pytest
from deployed import ALERTS, DASHBOARDS, panels
from stack import get

BUDGET = "ResidualdAnomalyRateAboveItsBudget"
VARIABLES = {"$__rate_interval": "5s", "$__range": "1m", "$job": ".+", "$instance": ".+", "$topic": ".+"}
EVERY = pytest.mark.parametrize("name", DASHBOARDS)


def filled(expression):
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression


def test_promtool_accepts_the_daemons_metrics(stack, promtool):
    served = get(f"http://{stack.daemon}/metrics")
    done = subprocess.run([promtool, "check", "metrics"], input=served, text=True, capture_output=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_every_rule_can_be_evaluated(stack):
    rules = [rule for group in stack.ask("rules")["groups"] for rule in group["rules"]]
    assert len([rule for rule in rules if rule["type"] == "alerting"]) == len(ALERTS)
    assert [rule["lastError"] for rule in rules if rule["health"] != "ok"] == []


def test_a_quiet_hour_is_quiet(stack):
    assert stack.quiet == []


def test_an_outbreak_pages_and_says_by_how_much(stack):
    assert {alert["labels"]["alertname"] for alert in stack.alarms} == {BUDGET}
    page = next(alert for alert in stack.alarms if alert["labels"]["severity"] == "page")
    assert page["annotations"]["summary"] == "residuald payments: far more anomalies than usual"
    times = float(re.match(r"[\d.]+", page["annotations"]["description"])[0])
    assert 5 <= times < 200


@EVERY
def test_every_panel_has_data(stack, name):
    shown = [(panel["title"], target["expr"]) for panel in panels(DASHBOARDS[name]) for target in panel["targets"]]
    assert [one for one in shown if all(math.isnan(value) for value in stack.query(filled(one[1])))] == []


@EVERY
def test_its_example_can_be_drawn(stack, name, request):
    if folder := request.config.getoption("--render"):
        from render import render

        render(stack, DASHBOARDS[name], filled, f"{folder}/{name}.png")


@EVERY
def test_every_variable_has_values(stack, name):
    for variable in DASHBOARDS[name]["templating"]["list"]:
        if variable["type"] == "query":
            series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]).groups()
            assert stack.ask(f"label/{label}/values", **{"match[]": filled(series)}), variable["name"]
