# SPDX-License-Identifier: Apache-2.0
"""Processes that share sockets, pass them on, come and go, or take over each other's id: each its own bytes.

One agent watches all scenarios (tests/kernel/workloads/scenarios.py) from before the first to after the
last.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Outcome, differences, flow_differences, run_workload, running_agent
from otlp import PROCESS_IO, Totals
from scenarios import SCENARIOS

pytestmark = pytest.mark.lane

Run = tuple[dict[str, Outcome], Totals]


@pytest.fixture(scope="module")
def run(agents: Path) -> Run:
    """Outcomes by scenario, and what the agent counted."""
    with running_agent(agents / "scenarios") as agent:
        outcomes = {outcome.name: outcome for outcome in run_workload("scenarios")}
        totals = agent.stop()
    return outcomes, totals


@pytest.mark.parametrize("name", [*SCENARIOS])
def test_each_process_is_charged_its_own_calls(run: Run, name: str) -> None:
    """Every process of the scenario has exactly the bytes its own calls moved, at both ends."""
    outcomes, totals = run
    assert differences(totals, outcomes[name].demand().processes) == []


def test_all_scenarios_add_up_by_service(run: Run) -> None:
    """kernob.flow.io of all scenarios together is exact by role, destination, direction and transport."""
    outcomes, totals = run
    everyone = [process for outcome in outcomes.values() for process in outcome.processes]
    assert flow_differences(totals, everyone) == []


@pytest.mark.parametrize("name", ["exec_then_connect", "reused_pid"])
def test_bytes_carry_the_name_of_the_program_that_moved_them(run: Run, name: str) -> None:
    """One process id, two programs: each executable has its own bytes."""
    outcomes, totals = run
    outcome = outcomes[name].demand()
    (pid,) = (process["pid"] for process in outcome.processes if not process["executable"])
    assert totals.images(pid) == outcome.raw["notes"]["images"]


def test_a_socket_kept_over_an_exec_stays_with_the_program_before_at_worst(run: Run) -> None:
    """A socket used before and after an exec: no byte lost; to each program its own, or all to the first."""
    outcomes, totals = run
    outcome = outcomes["exec_with_the_socket"].demand()
    (pid,) = (process["pid"] for process in outcome.processes if not process["executable"])
    images = outcome.raw["notes"]["images"]
    assert totals.images(pid) in (images, {next(iter(images)): 300})


def test_hostile_names_are_made_printable(run: Run) -> None:
    """No attribute holds a control character or what is not UTF-8, yet each process has a name."""
    outcomes, totals = run
    pids = {p["pid"] for p in outcomes["odd_names"].demand().processes if not p["executable"]}
    names = {}
    for attributes, _ in totals.series(PROCESS_IO):
        if attributes.get("process.pid") in pids:
            names[attributes["process.pid"]] = attributes["process.executable.name"]
            for value in (attributes["process.executable.name"], attributes["kernob.service"]):
                assert value
                assert value.isprintable()
    assert len(set(names.values())) == len(pids) == 4
