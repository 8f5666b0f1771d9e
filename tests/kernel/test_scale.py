# SPDX-License-Identifier: Apache-2.0
"""Very many processes, connections and calls; and what happens when a map or a cap is too small for them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from harness import Outcome, differences, flow_differences, run_workload, running_agent, scaled
from otlp import FLOW_IO, OTHER, PROCESS_FLOW_IO, PROCESS_IO, Totals

CONNECTIONS = 20


def _children(outcome: Outcome) -> dict[int, Counter[tuple[str, str]]]:
    """The swarm's children: bytes by pid, then (direction, transport)."""
    found: dict[int, Counter[tuple[str, str]]] = {}
    for pid, sent, received in outcome.raw["children"]:
        found.setdefault(pid, Counter()).update({("transmit", "tcp"): sent, ("receive", "tcp"): received})
    return found


def _service_sum(totals: Totals, metric: str, services: set[str]) -> Counter[str]:
    """Bytes of these services by direction, over everything they have, `~other` included."""
    found: Counter[str] = Counter()
    for attributes, value in totals.series(metric):
        if attributes["kernob.service"] in services:
            found[attributes["network.io.direction"]] += value
    return found


def _whole(outcome: Outcome) -> Counter[str]:
    """All bytes of a swarm by direction: every child's and the server's."""
    whole: Counter[str] = Counter()
    for _, sent, received in outcome.raw["children"]:
        whole.update(transmit=sent, receive=received)
    for row in outcome.processes[0]["counts"]:
        whole[row["direction"]] += row["bytes"]
    return whole


@pytest.mark.lane
def test_thousands_of_short_processes_lose_no_byte(agents: Path) -> None:
    """5,000 processes of 20 connections each, most gone within 50 ms: every one exact, and so the server."""
    room = {"max_process_series": 100_000, "max_process_flow_series": 500_000, "max_flow_series": 100_000}
    processes = scaled(5_000, 60)
    with running_agent(agents / "swarm", **room) as agent:
        outcome = run_workload("swarm", processes, CONNECTIONS)[0].demand()
        totals = agent.stop()
    expected = _children(outcome)
    assert sum(len(row) for row in outcome.raw["children"]) == 3 * processes
    found = totals.process_io()
    wrong = {pid: (expected[pid], found.get(pid)) for pid in expected if expected[pid] != found.get(pid)}
    assert wrong == {}
    assert differences(totals, outcome.processes) == []
    pids = {*expected, outcome.processes[0]["pid"]}
    services = totals.services(pids)
    for metric in (PROCESS_IO, FLOW_IO, PROCESS_FLOW_IO):
        assert _service_sum(totals, metric, services) == _whole(outcome), metric


@pytest.mark.lane
def test_a_million_one_byte_sends_are_a_million_bytes(agents: Path) -> None:
    """1,000,000 sends of one byte: the sender's count, ss, the receiver and the agent agree."""
    count = scaled(1_000_000, 20_000)
    with running_agent(agents / "million") as agent:
        outcome = run_workload("million", count)[0].demand()
        totals = agent.stop()
    receiver, sender = outcome.processes
    assert sender["notes"]["bytes_acked"] == count
    assert sender["notes"]["ss_acked"] in (count, None)
    assert sum(row["bytes"] for row in sender["counts"]) == count + 1
    assert sum(row["bytes"] for row in receiver["counts"]) == count + 1
    assert differences(totals, outcome.processes) == []
    assert flow_differences(totals, outcome.processes) == []


def test_a_full_map_of_sockets_costs_no_byte(agents: Path) -> None:
    """With room for 16 sockets, 200 open at once are counted exactly all the same, and the shortage shows."""
    with running_agent(agents / "sockets", max_sockets=16) as agent:
        outcome = run_workload("cases", "many_at_once")[0].demand()
        totals = agent.stop()
    assert differences(totals, outcome.processes) == []
    assert flow_differences(totals, outcome.processes) == []


def _lost(totals: Totals) -> dict[Any, int]:
    """kernob.lost by cause."""
    return {attributes["kernob.cause"]: value for attributes, value in totals.series("kernob.lost")}


def test_a_full_map_of_flows_loses_openly(agents: Path) -> None:
    """With room for 16 flows, what found none is missing, never invented, and kernob.lost says so."""
    with running_agent(agents / "flows", max_flows=16, scrape_interval=5) as agent:
        outcome = run_workload("swarm", 100, 5)[0].demand()
        totals = agent.stop()
    found = totals.process_io()
    for pid, expected in _children(outcome).items():
        for key, value in found.get(pid, Counter()).items():
            assert value <= expected[key]
    services = totals.services({*_children(outcome)})
    missing = _whole(outcome) - _service_sum(totals, PROCESS_IO, services)
    assert missing
    assert _lost(totals)["map_full"] > 0


def test_caps_fold_into_other_and_the_sum_stays_exact(agents: Path) -> None:
    """Beyond the cap, bytes stand in their service's `~other`: none is missing, the folding is counted."""
    caps = {"max_process_series": 40, "max_process_flow_series": 30}
    with running_agent(agents / "caps", **caps) as agent:
        outcome = run_workload("swarm", 200, 5)[0].demand()
        totals = agent.stop()
    services = {"swarm.py"}  # where many others talk, none of its processes may have a series
    for metric in (PROCESS_IO, FLOW_IO, PROCESS_FLOW_IO):
        assert _service_sum(totals, metric, services) == _whole(outcome), metric
    for metric in (PROCESS_IO, PROCESS_FLOW_IO):
        assert any(OTHER in attributes.values() for attributes, _ in totals.series(metric))
    assert _lost(totals)["series_cap"] > 0
