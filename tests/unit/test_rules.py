# SPDX-License-Identifier: Apache-2.0
"""The alert and recording rules: complete, in step with the code, and their own unit tests pass."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kernob.export.telemetry import OWN_METRICS
from kernob.probes import lifecycle, syscalls, tcp, traffic
from kernob.state import baseline, map_series, score_series
from kernob.state.blocked import BLOCKED
from kernob.ui.doctor import REMEDIES
from scripts.metrics_doc import prometheus_name

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "victoriametrics"
RULE_FILES = sorted((PLACE / "rules").glob("*.yaml"))
TEST_FILES = sorted((PLACE / "tests").glob("*.yaml"))


def rules(kind: str) -> dict[str, str]:
    """Text of every rule of a kind (alert, record) by its name."""
    found: dict[str, str] = {}
    for file in RULE_FILES:
        for block in re.split(r"^ +- (?=(?:alert|record|name): )", file.read_text(), flags=re.MULTILINE):
            name = re.match(rf"{kind}: (\S+)\n", block)
            if name:
                assert name[1] not in found, f"{name[1]} stands twice"
                found[name[1]] = block
    return found


def outcomes() -> dict[str, set[bool]]:
    """By alert: True if some test expects it to fire, False if some test expects that it does not."""
    found: dict[str, set[bool]] = {}
    pattern = r"alertname: (\S+)\n +exp_alerts:( \[\])?\n"
    for file in TEST_FILES:
        for name, nothing in re.findall(pattern, file.read_text()):
            found.setdefault(name, set()).add(not nothing)
    return found


def test_there_are_rules() -> None:
    """The checks below have something to look at."""
    assert len(rules("alert")) >= 10
    assert len(rules("record")) >= 3


@pytest.mark.parametrize("name", rules("alert"))
def test_every_alert_is_fired_by_one_test_and_not_fired_by_another(name: str) -> None:
    """An alert without a test that fires it, or without a near miss or an end, is not known to work."""
    assert outcomes().get(name) == {True, False}


def test_no_test_is_of_an_alert_that_is_gone() -> None:
    """vmalert-tool takes exp_alerts: [] of an alert that does not exist for granted."""
    assert set(outcomes()) == set(rules("alert"))


@pytest.mark.parametrize("name", rules("record"))
def test_every_recorded_series_is_tested(name: str) -> None:
    """Its value stands in some expression test."""
    assert any(re.search(rf"labels: '{name}{{", file.read_text()) for file in TEST_FILES)


@pytest.mark.parametrize("name", rules("alert"))
def test_every_alert_says_what_who_since_when_and_where_to_look(name: str) -> None:
    """Severity, summary, description with a time, a dashboard that exists, a section of the runbook."""
    text = rules("alert")[name]
    assert re.search(r"severity: (critical|warning|info)\n", text)
    assert re.search(r"\n +summary: ", text)
    description = text.partition("description:")[2].partition("dashboard:")[0]
    assert '.Format "2006-01-02 15:04:05 MST"' in description or name == "KernobAgentDown"
    assert re.search(r"silent\n.*since|[Ss]ince|as of|hours\n +before", description)
    dashboard = re.search(r"\{\{ \$externalURL }}/d/([a-z-]+)\?", text)
    assert dashboard
    boards = [file.read_text() for file in (ROOT / "grafana" / "dashboards").glob("*.json")]
    assert any(re.search(rf'"uid": ?"{dashboard[1]}"', board) for board in boards)
    assert f"runbook: victoriametrics/README.md#{name.lower()}\n" in text
    assert f"\n### {name}\n" in (PLACE / "README.md").read_text()


@pytest.mark.parametrize("file", RULE_FILES, ids=lambda file: file.name)
def test_windows_hold_two_resends(file: Path) -> None:
    """Series that did not change come once a minute: no window is below two minutes (STACK: counters)."""
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    windows = re.findall(r"\[(\d+)([smhd])\]", file.read_text())
    assert windows
    assert all(int(count) * seconds[unit] >= 120 for count, unit in windows)


@pytest.mark.parametrize("file", RULE_FILES, ids=lambda file: file.name)
def test_metrics_of_ours_exist_under_that_name(file: Path) -> None:
    """A metric that was renamed in the code would silence its alert without a word."""
    specs = (
        *OWN_METRICS,
        *traffic.SPECS,
        *tcp.SPECS,
        *lifecycle.SPECS,
        *score_series.SPECS,
        *map_series.SPECS,
        *baseline.SPECS,
        *lifecycle.SPECS,
        *syscalls.SPECS,
        BLOCKED,
    )
    known = {prometheus_name(spec) for spec in specs}
    labels = {key.replace(".", "_") for spec in specs for key in spec.attributes}
    known |= {f"{name}_count" for name in known if "duration" in name}
    used = set(re.findall(r"\b(kernob_[a-z_]+)[{\[)]", file.read_text()))
    used |= set(re.findall(r"\b(process_network_io[a-z_]*)", file.read_text()))
    assert used - known - labels == set()


def test_every_cause_of_a_loss_is_in_the_runbook() -> None:
    """With what is missing and what to do, as in `kernob doctor`: whoever is woken finds the cause."""
    sources = "".join(file.read_text() for file in (ROOT / "kernob").rglob("*.py"))
    causes = set(
        re.findall(
            r'"(\w+)": (?:int\((?:counts|session\.losses\(\))\[|sum\(s\.recursion|self\.\S+folded)', sources
        )
    )
    causes |= set(re.findall(r'losses\["(\w+)"\] = ', sources)) | {"names_full", "names_undecoded", "decode"}
    assert {"map_full", "ring_full", "event_store", "recursion", "series_cap"} <= causes
    table = (PLACE / "README.md").read_text().partition("\n### KernobLosses\n")[2].partition("\n### ")[0]
    assert causes - set(re.findall(r"`(\w+)`", table)) == set()
    assert causes == set(REMEDIES)


def test_devices_and_loopback_are_those_of_the_dashboards() -> None:
    """An alert's share and the panel it links to are of the same devices."""
    query = (ROOT / "grafana" / "query.py").read_text()
    text = (PLACE / "rules" / "interface.yaml").read_text()
    virtual = re.search(r'VIRTUAL_DEVICES = \(\s*"([^"]+)"', query)
    loopback = re.search(r'LOOPBACK = "([^"]+)"', query)
    assert virtual
    assert loopback
    assert set(re.findall(r'device!~"([^"]+)"', text)) == {virtual[1]}
    assert set(re.findall(r'server_address=~"([^"]+)"', text)) == {loopback[1]}


@pytest.mark.parametrize("file", TEST_FILES, ids=lambda file: file.name)
def test_rules_do_what_their_tests_say(file: Path) -> None:
    """VictoriaMetrics' own tool evaluates the rules on made-up series (also: tests/stack/test_alerts.py)."""
    tool = shutil.which("vmalert-tool")
    if tool is None:
        pytest.skip("missing feature: vmalert-tool (Debian: victoria-metrics)")
    done = subprocess.run(
        [
            tool,
            "unittest",
            f"--files={file}",
            "--external.url=http://grafana.example",
            "--disableAlertgroupLabel=true",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout
