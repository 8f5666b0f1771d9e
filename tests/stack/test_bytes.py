# SPDX-License-Identifier: Apache-2.0
"""Bytes that processes moved are in VictoriaMetrics to the byte: by process, by service, by destination.

Each test counts from its own beginning on by increase(), so earlier ones do not matter.
"""

from __future__ import annotations

import time

import pytest

from .compose import Stack
from .load import (
    FLOW_IO,
    PROCESS_IO,
    SERVICE,
    Truth,
    assert_exact,
    container_server,
    container_workload,
    host_workload,
    steady,
)

MEGABYTE = 1_000_000


def test_a_thousand_processes_and_a_restart_of_the_agent_in_the_middle(healthy: Stack) -> None:
    """1,000 processes send 1 MB each and exit, the agent restarts after the first half: nothing lost."""
    since_s, truth = time.time(), Truth()
    truth.add(host_workload("many", 500, MEGABYTE))
    healthy.stop("agent")
    healthy.start("agent")
    truth.add(host_workload("many", 500, MEGABYTE))
    assert_exact(healthy.victoria, truth, since_s)
    assert truth.by_direction()["transmit",] == truth.by_direction()["receive",] == 1000 * MEGABYTE


@pytest.mark.parametrize(
    "pauses_s", [(1, 12, 62), pytest.param((5, 61, 17, 58, 33, 61), marks=pytest.mark.slow_stack)]
)
def test_bytes_that_come_rarely_are_all_there(healthy: Stack, pauses_s: tuple[float, ...]) -> None:
    """One process that is silent for up to a minute between sends, so that its series is sent irregularly."""
    since_s, truth = time.time(), Truth()
    with steady(MEGABYTE, 0) as sender:
        for pause_s in pauses_s:
            sender.send()
            time.sleep(pause_s)
        truth.add(sender.stop())
    assert_exact(healthy.victoria, truth, since_s)


def test_the_sum_over_a_panel_s_steps_is_the_truth(healthy: Stack) -> None:
    """increase() of one step, summed over all steps of a panel: 0 bytes lost or doubled at their borders."""
    since_s, truth = time.time(), Truth()
    for _ in range(3):
        truth.add(host_workload("many", 30, MEGABYTE))
        time.sleep(3)
    assert_exact(healthy.victoria, truth, since_s)
    chosen = f'{FLOW_IO}{{kernob_service="{SERVICE}"}}'
    for step_s in (5, 20):
        first_s = int(since_s) // step_s * step_s + step_s
        steps = (int(time.time()) - first_s) // step_s + 2
        last_s = first_s + (steps - 1) * step_s
        # what ends in the future, or within -search.latencyOffset, is a copy of the step before
        time.sleep(max(0.0, last_s + 2 - time.time()))
        rows = healthy.victoria.query_range(f"sum(increase({chosen}[{step_s}s]))", first_s, last_s, step_s)
        (whole,) = healthy.victoria.query(f"sum(increase({chosen}[{steps * step_s}s]))", last_s)
        # the first step began before this test; what an earlier one moved then is in both
        assert whole.exact >= sum(truth.bytes.values())
        assert sum(value for _, values in rows for _, value in values) == whole.exact


def test_an_agent_killed_loses_only_what_it_had_not_yet_sent(healthy: Stack) -> None:
    """kill -9: what had been exported stays, what moves after the new start is counted, nothing twice."""
    since_s, truth = time.time(), Truth()
    truth.add(host_workload("many", 100, MEGABYTE))
    assert_exact(healthy.victoria, truth, since_s)
    healthy.kill("agent")
    healthy.up("agent")
    truth.add(host_workload("many", 100, MEGABYTE))
    assert_exact(healthy.victoria, truth, since_s)


def test_containers_are_counted_under_their_names_and_destinations(healthy: Stack) -> None:
    """A container that sends to another one: both ends exact, by container and by address and port."""
    since_s, name = time.time(), "kernob-ci-server"
    server_truth, client_truth = Truth(), Truth()
    with container_server(name) as server:
        for number in range(3):
            client = f"kernob-ci-client-{number}"
            client_truth.add(container_workload(client, "once", server.address, server.port, 3 * MEGABYTE))
        server_truth.add(server.finish())
    assert server_truth.by_direction()["receive",] == 9 * MEGABYTE
    assert_exact(healthy.victoria, server_truth, since_s, name, by_process=False)
    where = "server_address,server_port,network_io_direction"
    for service, direction, size in [
        (name, "receive", 9 * MEGABYTE),
        *((f"kernob-ci-client-{number}", "transmit", 3 * MEGABYTE) for number in range(3)),
    ]:
        found = healthy.victoria.grown(FLOW_IO, where, since_s, f'kernob_service="{service}"')
        assert found == {(server.address, str(server.port), direction): size}


def test_a_container_on_the_host_s_network_talks_to_a_process_of_the_host(healthy: Stack) -> None:
    """Its bytes stand under its own name, the process's under the process."""
    since_s, name, truth = time.time(), "kernob-ci-hostnet", Truth()
    truth.add(container_workload(name, "many", 20, MEGABYTE, network="host"))
    assert_exact(healthy.victoria, truth, since_s, name, by_process=False)


def test_what_the_caps_fold_is_in_the_sums(images: float) -> None:
    """1,000 processes where only 300 may have series of their own: the rest is `~other` of their service."""
    del images
    caps = {"KERNOB_MAX_PROCESS_SERIES": "300", "KERNOB_MAX_PROCESS_FLOW_SERIES": "200"}
    stack = Stack("kernob-ci-cap", ("tests/stack/fast.yaml",), caps)
    stack.down(volumes=True)
    try:
        stack.up()
        since_s, truth = time.time(), Truth()
        for _ in range(2):  # the second time there are fewer places, or none
            truth.add(host_workload("many", 500, MEGABYTE))
        assert_exact(stack.victoria, truth, since_s, by_process=False)
        # who has ended keeps its place for half a minute (state/processes.py): each is given so often at most
        places = 300 * (1 + int(time.time() - since_s) // 30)
        by = "process_executable_name,process_pid,network_io_direction"
        found = stack.victoria.grown(PROCESS_IO, by, since_s, f'kernob_service="{SERVICE}"')
        assert 0 < len([pid for _, pid, _ in found if pid]) <= places
        assert found["~other", "", "transmit"] >= (1000 - places) * MEGABYTE
        assert found["~other", "", "transmit"] > 0
    finally:
        stack.down(volumes=True)
