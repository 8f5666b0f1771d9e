# SPDX-License-Identifier: Apache-2.0
"""The witness for playing a case again: processors that stood still."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import wait_until
from stalls import LATE_S, SLEEP_S, Stalls


def _wait_for_pinned(status: Path, cpu: int) -> None:
    wanted = f"Cpus_allowed_list:\t{cpu}\n"
    wait_until(lambda: wanted in status.read_text(), f"a process on processor {cpu}")


@pytest.fixture
def stalls() -> Iterator[Stalls]:
    """A count of our own, with each of its processes under way."""
    found = Stalls()
    try:
        for sleeper, cpu in zip(found.sleepers, found.processors, strict=True):
            _wait_for_pinned(Path(f"/proc/{sleeper.pid}/status"), cpu)
        yield found
    finally:
        found.close()


@pytest.mark.lane
def test_a_processor_that_stood_still_is_counted(stalls: Stalls) -> None:
    """A process that is stopped for so long is one whose processor did not run it."""
    cpu = stalls.processors[-1]
    name = f"processor {cpu} stood still"
    time.sleep(3 * SLEEP_S)  # it is in its loop
    before = stalls()[name]
    stalls.sleepers[-1].send_signal(signal.SIGSTOP)
    time.sleep(2 * LATE_S)
    assert stalls()[name] == before
    stalls.sleepers[-1].send_signal(signal.SIGCONT)
    wait_until(lambda: stalls()[name] > before, "the count")


def test_it_ends_with_its_processes(stalls: Stalls) -> None:
    """None is left behind."""
    stalls.close()
    assert not [s for s in stalls.sleepers if Path(f"/proc/{s.pid}").exists()]
