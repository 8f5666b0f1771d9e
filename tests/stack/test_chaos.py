# SPDX-License-Identifier: Apache-2.0
"""Services die and come back under load: afterwards not one byte is missing, and none is there twice.

Counters are cumulative and the agent keeps what was not acknowledged, so whatever dies between it and the
disk of VictoriaMetrics may lose samples but no bytes. The load goes on all the time: one process with an
open connection, and bursts of short-lived ones, whose bytes are in no later sample.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .compose import Stack, progress, wait_for
from .conftest import ROOMY
from .load import Truth, assert_exact, host_workload, steady

BURST = ("many", 20, 250_000)
QUEUE_DISK = "/var/lib/kernob-collector"
ROOM_BYTES = 1_500_000
"""What is left free when somebody fills the disk of tests/stack/small-queue.yaml."""
TAKEN_OUT_BYTES = 2_500_000
"""More than the queue takes out while nothing can be delivered: three batches (collector.yaml), of which the
third ends above 1 MB and the two before it after one second each."""
AGENT_MEMORY_MB = 224
"""More than it has with many series (145 were seen), far from what keeping every sample would take."""


def agent_memory_mb(stack: Stack) -> tuple[float, float]:
    """The agent's resident memory now and at its highest."""
    pid = stack.containers()["agent"]["State"]["Pid"]
    status = Path(f"/proc/{pid}/status").read_text()
    now, most = (int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) for name in ("VmRSS", "VmHWM"))  # type: ignore[index]
    return now / 1024, most / 1024


def burst(truth: Truth, seconds: float = 0.0) -> None:
    """Twenty processes that send and exit, again and again for so long."""
    until_s = time.monotonic() + seconds
    while True:
        truth.add(host_workload(*BURST))
        if time.monotonic() >= until_s:
            return
        time.sleep(1)


def away(stack: Stack, service: str, signal: str, seconds: float, truth: Truth) -> None:
    """A service ends by a signal, is away for so long under load, and comes back."""
    burst(truth)
    if signal == "SIGTERM":
        stack.stop(service)
    else:
        stack.kill(service, signal)
    burst(truth, seconds)
    stack.up(service)
    burst(truth)


@pytest.fixture
def loaded(healthy: Stack) -> Iterator[tuple[Stack, Truth, float]]:
    """The stack under load; at the end everything must add up and the agent must not have grown fat."""
    since_s, truth = time.time(), Truth()
    with steady(10_000, 0.05) as sender:
        yield healthy, truth, since_s
        truth.add(sender.stop())
    took_s = assert_exact(healthy.victoria, truth, since_s, limit_s=150)
    now_mb, most_mb = agent_memory_mb(healthy)
    total = sum(truth.by_direction().values())
    progress(
        f"{total} bytes, difference 0 after {took_s:.0f} s; agent {now_mb:.0f} MB, at most {most_mb:.0f}"
    )
    assert most_mb < AGENT_MEMORY_MB


def test_each_service_is_killed_and_comes_back(loaded: tuple[Stack, Truth, float]) -> None:
    """SIGKILL and an orderly end of each service but the agent, which has tests of its own."""
    stack, truth, _ = loaded
    for service in ("collector", "victoriametrics", "vmalert"):
        for signal in ("SIGKILL", "SIGTERM"):
            away(stack, service, signal, 3, truth)


def test_the_collector_is_killed_again_and_again(loaded: tuple[Stack, Truth, float]) -> None:
    """Five times kill -9, without a pause: what it acknowledged is on its disk."""
    stack, truth, _ = loaded
    for _ in range(5):
        away(stack, "collector", "SIGKILL", 0, truth)


@pytest.mark.parametrize("seconds", [30, pytest.param(120, marks=pytest.mark.slow_stack)])
def test_victoriametrics_is_away(loaded: tuple[Stack, Truth, float], seconds: float) -> None:
    """The Collector keeps what came meanwhile, the agent goes on as if nothing was."""
    stack, truth, since_s = loaded
    away(stack, "victoriametrics", "SIGTERM", seconds, truth)
    for what in ("", "events "):
        # that it can again is of an earlier test, whose end the agent had not noticed
        assert not [line for line in changes_of_state(stack, since_s, what) if "cannot" in line]


def changes_of_state(stack: Stack, since_s: float, what: str = "") -> list[str]:
    """What the agent logged of its endpoint since then: of its metrics, or `what`="events "."""
    since = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since_s))
    pattern = re.compile(rf"cannot export {what}to |exporting {what}to \S+ \(.*\) again after ")
    return [line for line in stack.logs("agent").splitlines() if line > since and pattern.search(line)]


def assert_told_once(stack: Stack, since_s: float, what: str) -> None:
    """One line that it cannot export, then, once it has tried again, one that it can: each as often."""
    lines: list[str] = []

    def is_even() -> bool:
        lines[:] = changes_of_state(stack, since_s, what)
        return len(lines) % 2 == 0

    wait_for(is_even, "the agent to export again")
    told = ["cannot export" in line for line in lines]
    assert told == [True, False] * (len(lines) // 2), lines


@pytest.mark.parametrize("seconds", [20, pytest.param(120, marks=pytest.mark.slow_stack)])
def test_the_collector_is_away(loaded: tuple[Stack, Truth, float], seconds: float) -> None:
    """The agent keeps totals, says once that it cannot export and once that it can again."""
    stack, truth, since_s = loaded
    away(stack, "collector", "SIGKILL", seconds, truth)
    # more than two where a Collector that is back is still too busy to answer in time
    wait_for(lambda: len(changes_of_state(stack, since_s)) >= 2, "two lines in the agent's log", 60)
    assert_told_once(stack, since_s, "")
    assert_told_once(stack, since_s, "events ")


def test_the_agent_is_restarted_between_bursts(healthy: Stack) -> None:
    """Stopped in order or killed: what moved while it ran, and had time to leave, is counted once."""
    since_s, truth = time.time(), Truth()
    for _ in range(3):
        truth.add(host_workload(*BURST))
        healthy.stop("agent")  # at once: the last reading is flushed on the way out
        healthy.start("agent")
    for _ in range(2):
        truth.add(host_workload(*BURST))
        assert_exact(healthy.victoria, truth, since_s)
        healthy.kill("agent")
        healthy.up("agent")
    truth.add(host_workload(*BURST))
    assert_exact(healthy.victoria, truth, since_s)


def test_down_and_up_again_goes_on(healthy: Stack) -> None:
    """`down` leaves the volumes: history is kept, and the increase over both lives is the truth."""
    since_s, truth = time.time(), Truth()
    truth.add(host_workload(*BURST))
    healthy.down()  # at once
    assert healthy.containers() == {}
    healthy.up()
    truth.add(host_workload(*BURST))
    assert_exact(healthy.victoria, truth, since_s)


def inside(stack: Stack, service: str, path: str) -> Path:
    """A file of a running container, as this machine reaches it."""
    return Path(f"/proc/{stack.containers()[service]['State']['Pid']}/root{path}")


def free_bytes(directory: Path) -> int:
    """What an ordinary user may still write there."""
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize


def burst_until(truth: Truth, condition: Callable[[], bool], limit_s: float = 240) -> None:
    """Bursts until it holds."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, "the queue did not grow"
        burst(truth)


def test_the_queue_s_disk_is_full(images: float) -> None:
    """Somebody fills the disk: the Collector refuses what it cannot keep, the agent keeps it: 0 bytes lost.

    A queue without a free byte cannot note what it takes out, and drops some of it (docs/stack/collector.md).
    So the disk is full only while nothing is taken out: from when the Collector holds all that it takes in
    advance until before VictoriaMetrics is back.
    """
    del images
    stack = Stack(
        "kernob-ci-full",
        ("tests/stack/fast.yaml", "tests/stack/small-queue.yaml"),
        {**ROOMY, "KERNOB_HOSTMETRICS_INTERVAL": "1s"},
    )
    stack.down(volumes=True)
    try:
        stack.up()
        since_s, truth = time.time(), Truth()
        with steady(10_000, 0.05) as sender:
            burst(truth)
            stack.stop("victoriametrics")
            directory = inside(stack, "collector", QUEUE_DISK)  # the events' file is on it too
            begin_bytes = free_bytes(directory)
            burst_until(truth, lambda: begin_bytes - free_bytes(directory) > TAKEN_OUT_BYTES)
            ballast = directory / "ballast"
            ballast.write_bytes(bytes(max(0, free_bytes(directory) - ROOM_BYTES)))
            burst_until(truth, lambda: "cannot export" in "".join(changes_of_state(stack, since_s)))
            burst(truth, 10)
            ballast.unlink()
            stack.start("victoriametrics")
            wait_for(
                lambda: "again after" in "".join(changes_of_state(stack, since_s)),
                "the agent to export again",
            )
            burst(truth)
            truth.add(sender.stop())
        assert_exact(stack.victoria, truth, since_s, limit_s=150)
        refused = stack.logs("collector")
        assert re.search(r"no space left|queue is full", refused), refused[-2000:]
        assert_told_once(stack, since_s, "")
    except (AssertionError, TimeoutError):
        progress(stack.last_words())
        raise
    finally:
        stack.down(volumes=True)
