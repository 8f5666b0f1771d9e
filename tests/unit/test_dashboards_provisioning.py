# SPDX-License-Identifier: Apache-2.0
"""Grafana finds the dashboards and their data source where compose puts them."""

from __future__ import annotations

import re
from pathlib import Path

from grafana import check

ROOT = Path(__file__).resolve().parents[2]
GRAFANA = ROOT / "grafana" / "provisioning"


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_the_data_source_is_the_one_the_dashboards_choose() -> None:
    """Its uid is the variable's value, it needs no plugin, and its step makes windows of two minutes."""
    source = text(GRAFANA / "datasources" / "kernob.yaml")
    assert "type: prometheus" in source
    assert "url: http://victoriametrics:8428" in source
    assert "timeInterval: 30s" in source
    (uid,) = re.findall(r"uid: (\S+)", source)
    (name,) = re.findall(r"- name: (\S+)", source)
    for board in check.load().values():
        chosen = board["templating"]["list"][0]
        assert chosen["type"] == "datasource"
        assert chosen["current"] == {"selected": True, "text": name, "value": uid}


def test_compose_mounts_what_grafana_is_told_to_read() -> None:
    """Provisioning, dashboards and the home dashboard lie where the settings say."""
    compose, settings = text(ROOT / "compose.yaml"), text(ROOT / "compose" / "grafana" / "grafana.ini")
    (folder,) = re.findall(r"path: (\S+)", text(GRAFANA / "dashboards" / "kernob.yaml"))
    assert f"./grafana/dashboards:{folder}:ro" in compose
    assert "./grafana/provisioning:/etc/grafana/provisioning:ro" in compose
    (home,) = re.findall(r"default_home_dashboard_path = (\S+)", settings)
    assert Path(home).parent == Path(folder)
    assert Path(home).stem == "kernob-bandwidth"
    assert "kernob-bandwidth" in check.load()


def test_what_the_panels_of_the_stack_read_is_switched_on() -> None:
    """VictoriaMetrics scrapes itself, vmalert pushes its own metrics, the Collector sends its own."""
    compose = text(ROOT / "compose.yaml")
    assert "-selfScrapeInterval=" in compose
    assert "-pushmetrics.url=" in compose
    collector = text(ROOT / "compose" / "collector" / "collector.yaml")
    assert "process.open_file_descriptors: {enabled: true}" in collector
    assert "host.name" in collector
