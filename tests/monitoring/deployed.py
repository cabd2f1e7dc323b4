"""The shipped rules, runbook and dashboards, and the metrics that the daemon exports."""

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES_FILE = ROOT / "deploy/prometheus/residuald.rules.yaml"
RULES_TEST = ROOT / "deploy/prometheus/residuald.rules.test.yaml"
RUNBOOK = ROOT / "deploy/runbook.md"
RULES = [rule for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "grafana").glob("*.json"))}


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def exported():
    """The names of all metrics in src/metrics.rs."""
    code = (ROOT / "src/metrics.rs").read_text()
    made = re.findall(r'\b(?:(?:counters?|gauge|number|histogram)\(\s*r,|opts\()\s*"([a-z0-9_]+)"', code)
    return {f"residuald_{name}" for name in made}


def unknown(expression):
    """The residuald metrics in an expression that neither the daemon exports nor a rule records."""
    used = re.findall(r"\bresiduald_[a-z0-9_:]+", expression)
    served = exported() | {rule["record"] for rule in RULES if "record" in rule}
    return {name for name in used if name not in served and re.sub("_(bucket|sum|count)$", "", name) not in served}
