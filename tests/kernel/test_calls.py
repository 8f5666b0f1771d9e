# SPDX-License-Identifier: Apache-2.0
"""Every call that moves bytes, each in a process of its own: difference 0 bytes.

One agent watches all cases (tests/kernel/workloads/cases.py) from before the first to after the last.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cases import CASES
from harness import Outcome, differences, flow_differences, run_workload, running_agent
from otlp import Totals

pytestmark = pytest.mark.lane

BLIND_SPOT = "zerocopy_receive"
"""TCP_ZEROCOPY_RECEIVE is seen only where received TCP is counted by copied_seq."""


@pytest.fixture(scope="module")
def run(agents: Path) -> tuple[dict[str, Outcome], Totals]:
    """Outcomes by case, and what the agent counted."""
    with running_agent(agents / "calls") as agent:
        outcomes = {outcome.name: outcome for outcome in run_workload("cases")}
        totals = agent.stop()
    return outcomes, totals


@pytest.mark.parametrize("name", [name for name in CASES if name != BLIND_SPOT])
def test_each_call_is_charged_exactly_what_it_returned(
    run: tuple[dict[str, Outcome], Totals], name: str
) -> None:
    """By process and by process x destination, the agent's figures are the call's own results."""
    outcomes, totals = run
    outcome = outcomes[name].demand()
    assert differences(totals, outcome.processes) == []


def test_mapped_pages_are_counted_or_are_exactly_what_is_missing(
    run: tuple[dict[str, Outcome], Totals],
) -> None:
    """Bytes received by TCP_ZEROCOPY_RECEIVE are all there, or just those that this call moved are not."""
    outcomes, totals = run
    (process,) = outcomes[BLIND_SPOT].demand().processes
    received = totals.process_io()[process["pid"]]["receive", "tcp"]
    whole = sum(c["bytes"] for c in process["counts"] if c["direction"] == "receive")
    assert received in (whole, whole - process["notes"]["mapped"] - process["notes"]["copied"])


def test_services_add_up_to_their_processes(run: tuple[dict[str, Outcome], Totals]) -> None:
    """kernob.flow.io of all cases together is exact by role, destination, direction and transport."""
    outcomes, totals = run
    everyone = [process for outcome in outcomes.values() for process in outcome.processes]
    blind = {c["port"] for c in outcomes[BLIND_SPOT].processes[0]["counts"]}
    wrong = flow_differences(totals, everyone)
    assert [difference for difference in wrong if not any(str(port) in difference for port in blind)] == []
