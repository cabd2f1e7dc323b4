"""Tests that the dashboards can be provisioned in any Grafana and that every panel has a description and a unit."""

import itertools

import pytest
from deployed import DASHBOARDS, RUNBOOK, panels, unknown

PANELS = [pytest.param(p, id=f"{name}: {p['title']}") for name, d in DASHBOARDS.items() for p in panels(d)]
EVERY = pytest.mark.parametrize("name", DASHBOARDS)


@EVERY
def test_it_can_be_provisioned_anywhere(name):
    dashboard = DASHBOARDS[name]
    assert dashboard["uid"] == f"residuald-{name}"
    assert dashboard["tags"] == ["residuald"]
    assert not dashboard["editable"]
    assert not dashboard.keys() & {"__inputs", "__requires", "id", "version", "iteration"}
    assert dashboard["templating"]["list"][0]["type"] == "datasource"


@EVERY
def test_no_two_panels_are_in_one_place(name):
    ids = [panel["id"] for panel in DASHBOARDS[name]["panels"]]
    assert len(ids) == len(set(ids))
    for one, other in itertools.combinations([panel["gridPos"] for panel in DASHBOARDS[name]["panels"]], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"], (one, other)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_explains_itself(panel):
    assert panel["description"].endswith(".")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    unit = panel["options"]["yAxis"]["unit"] if panel["type"] == "heatmap" else panel["fieldConfig"]["defaults"]["unit"]
    assert unit
    sections = [line.removeprefix("## ").lower() for line in RUNBOOK.read_text().splitlines() if line.startswith("## ")]
    for link in panel.get("links", []):
        assert link["url"].removeprefix("${runbook}#") in sections
    for target in panel["targets"]:
        assert unknown(target["expr"]) == set()
