# SPDX-License-Identifier: Apache-2.0
"""Hosts that are not as expected: a second stack, a taken port, no tracefs, an agent with few rights."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

import pytest

from .compose import Stack, StackError, progress, run
from .conftest import ROOMY, bring_up
from .load import Truth, assert_exact, container_workload, host_workload

MEGABYTE = 1_000_000


def check_bytes(stack: Stack, name: str) -> None:
    """What every variant must pass: short-lived processes, and a container by its name, to the byte."""
    since_s, truth = time.time(), Truth()
    truth.add(host_workload("many", 50, MEGABYTE))
    inside = Truth()
    inside.add(container_workload(name, "many", 5, MEGABYTE))
    assert_exact(stack.victoria, truth, since_s)
    assert_exact(stack.victoria, inside, since_s, name, by_process=False)


def test_two_projects_side_by_side(healthy: Stack) -> None:
    """A second stack at the default pace beside the first: both count everything."""
    second = Stack("kernob-ci-two", settings=dict(ROOMY))
    try:
        times = bring_up(second)
        progress(
            f"at the default pace: up to healthy {times.healthy_s:.1f} s, "
            f"to first data in VictoriaMetrics {times.first_data_s:.1f} s"
        )
        since_s, truth = time.time(), Truth()
        truth.add(host_workload("many", 50, MEGABYTE))
        for stack in (healthy, second):
            assert_exact(stack.victoria, truth, since_s)
    finally:
        second.down(volumes=True)


def test_a_taken_port_is_one_clear_line(images: float) -> None:
    """`up` fails, and its last line names the port."""
    del images
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        stack = Stack("kernob-ci-port", settings={"KERNOB_PORT_VICTORIAMETRICS": str(port)})
        try:
            with pytest.raises(StackError) as caught:
                stack.compose("up", "-d", "--wait", "victoriametrics")
        finally:
            stack.down(volumes=True)
    last = str(caught.value).strip().splitlines()[-1]
    assert str(port) in last
    assert "in use" in last or "already allocated" in last


def test_three_capabilities_count_as_exactly_as_privileged(images: float) -> None:
    """The least-privilege overlay passes the same test, restart included, with the rights it says it has."""
    del images
    stack = Stack("kernob-ci-least", ("compose/least-privilege.yaml", "tests/stack/fast.yaml"), dict(ROOMY))
    stack.down(volumes=True)
    try:
        stack.up()
        agent = stack.containers()["agent"]
        assert not agent["HostConfig"]["Privileged"]
        assert agent["HostConfig"]["ReadonlyRootfs"]
        status = Path(f"/proc/{agent['State']['Pid']}/status").read_text()
        held = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
        assert sum(map(int, f"{int(held, 16):b}")) <= 2, (
            held
        )  # loading and attaching is given up once it is done
        since_s, truth = time.time(), Truth()
        truth.add(host_workload("many", 500, MEGABYTE))
        stack.stop("agent")
        stack.start("agent")
        truth.add(host_workload("many", 500, MEGABYTE))
        assert_exact(stack.victoria, truth, since_s)
        check_bytes(stack, "kernob-ci-least-inside")
    finally:
        stack.down(volumes=True)


def test_a_host_without_tracefs(images: float) -> None:
    """The agent's container finds neither tracefs nor debugfs mounted, attaches all the same, or says so."""
    del images
    stack = Stack("kernob-ci-bare", ("tests/stack/no-tracefs.yaml", "tests/stack/fast.yaml"))
    stack.down(volumes=True)
    try:
        stack.up()
        check_bytes(stack, "kernob-ci-bare-inside")
        hooks = stack.compose("exec", "-T", "agent", "kernob", "doctor")
        assert "traffic" in hooks
    finally:
        stack.down(volumes=True)


def test_what_the_engine_and_the_host_offer_is_told(engine: str) -> None:
    """Which hosts these tests ran on: version of the engine, control groups, user namespaces."""
    info = run(
        "docker", "info", "--format", "cgroup v{{.CgroupVersion}} ({{.CgroupDriver}}), {{.SecurityOptions}}"
    )
    kernel = subprocess.run(["uname", "-r"], capture_output=True, text=True, check=True).stdout.strip()
    progress(f"engine {engine}, Linux {kernel}, {info.strip()}")
