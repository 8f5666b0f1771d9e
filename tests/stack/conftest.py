# SPDX-License-Identifier: Apache-2.0
"""The stack, brought up once for all tests here and taken down with its volumes at the end.

These tests run only where they are asked for (`make test-stack`, `pytest tests/stack`), because they need a
Docker engine, root and several minutes. KERNOB_TEST_STACK_KEEP=1 leaves the stack running for a look.
KERNOB_TEST_STACK_OVERLAY=file.yaml adds a compose file that names other images, which are then not built.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .compose import EXTRA, Stack, StackError, progress, run, wait_for

PROJECT = "kernob-ci"
ROOMY = {
    "KERNOB_MAX_PROCESS_SERIES": "100000",
    "KERNOB_MAX_PROCESS_FLOW_SERIES": "100000",
    "KERNOB_MEMORY_VICTORIAMETRICS": "1536m",
    "KERNOB_CACHE_VICTORIAMETRICS": "512MiB",
}
"""Dead processes keep their series while the endpoint is away, and this machine may do other things: none
shall fold into ~other. With that many series the rules' queries find no memory in the default limits."""


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker."""
    config.addinivalue_line("markers", "slow_stack: the long form of a stack test; minutes")


@pytest.fixture(scope="session")
def alone() -> Iterator[None]:
    """No other run of these tests on this machine: they would take each other's projects down."""
    with Path(tempfile.gettempdir(), "kernob-stack-tests.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pytest.fail(f"another run of the stack's tests is under way ({lock.name})", pytrace=False)
        yield


@pytest.fixture(scope="session")
def engine(alone: None) -> str:
    """Version of the Docker engine; without one nothing here can be shown, and that is a failure."""
    del alone
    if os.geteuid():
        pytest.fail("the stack's tests need root", pytrace=False)
    try:
        return run("docker", "version", "--format", "{{.Server.Version}}").strip()
    except (StackError, FileNotFoundError) as error:
        pytest.fail(f"no Docker engine answers; run tests/stack/engine.sh start\n{error}", pytrace=False)


@pytest.fixture(scope="session")
def images(engine: str) -> float:
    """The images, built from packages; the seconds that took."""
    began = time.monotonic()
    if EXTRA:
        progress(f"engine {engine}; images as {EXTRA} names them")
        return 0.0
    progress(f"engine {engine}; make stack-images")
    run("make", "stack-images", limit_s=2400)
    took_s = time.monotonic() - began
    progress(f"images are there after {took_s:.0f} s")
    return took_s


@dataclass
class Birth:
    """When the stack was brought up, and how long things took from then on, in seconds."""

    unix_s: float
    healthy_s: float
    first_data_s: float


def bring_up(stack: Stack) -> Birth:
    """From nothing: an earlier run's remains are removed first."""
    stack.down(volumes=True)
    began_unix_s, began_s = time.time(), time.monotonic()
    healthy_s = stack.up()
    victoria = stack.victoria

    def has_data() -> bool:
        victoria.flush()
        return bool(victoria.query("count(kernob_probe_attached_ratio)"))

    wait_for(has_data, "the agent's first data in VictoriaMetrics", 60, 0.2)
    return Birth(began_unix_s, healthy_s, time.monotonic() - began_s)


def _tell(stack: Stack, failed: bool) -> None:
    if failed:
        progress(f"some test failed; the last lines of {stack.project}:\n{stack.last_words()}")


@pytest.fixture(scope="session")
def born(images: float, request: pytest.FixtureRequest) -> Iterator[tuple[Stack, Birth]]:
    """The overlay stack from its beginning to its end, and how long it took to come up."""
    running = Stack(PROJECT, ("tests/stack/fast.yaml",), dict(ROOMY))
    try:
        yield running, bring_up(running)
    finally:
        _tell(running, request.session.testsfailed > 0)
        if os.environ.get("KERNOB_TEST_STACK_KEEP") != "1":
            running.down(volumes=True)


@pytest.fixture(scope="session")
def stack(born: tuple[Stack, Birth]) -> Stack:
    """The overlay stack. Tests leave it running and healthy."""
    return born[0]


@pytest.fixture
def healthy(stack: Stack) -> Iterator[Stack]:
    """The stack, whatever the test before did to it; and again afterwards."""
    mend(stack)
    yield stack
    mend(stack)


def mend(stack: Stack) -> None:
    """Start what is missing or ill; it costs a second or two, asking a tenth."""
    health = stack.health()
    if sorted(health) != stack.services() or set(health.values()) != {"healthy"}:
        stack.up()
