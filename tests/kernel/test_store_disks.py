# SPDX-License-Identifier: Apache-2.0
"""state.store on a disk that is full, and on one that became read-only: real file systems, mounted here."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernob.model import Event, EventQuery, Severity
from kernob.state import history
from kernob.state.map_history import read_map
from kernob.state.store import FILE_NAME, Store, Stored
from tests.unit.test_map_store import Life

ALL = EventQuery(limit=1_000_000)


def read(directory: Path, query: EventQuery) -> list[Stored]:
    return [stored for page in history.read(directory, query) for stored in page]


def event(number: int) -> Event:
    return Event(number * 10**9, "kernob.tcp.reset", Severity.WARN, "orders.py", f"{number}: " + "x" * 500)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "kernob-test", str(place)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("missing feature: mount")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def write(store: Store, *numbers: int) -> None:
    store.submit((number, event(number)) for number in numbers)
    store.commit()


def test_a_full_disk_is_said_once_and_nothing_stored_is_lost(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It reads on, says one line, keeps what waits, and writes all of it once there is room."""
    ballast = disk / "ballast"
    store = Store(disk, 100_000)
    store.start()
    write(store, *range(1, 101))
    until(lambda: not store.pending())
    ballast.write_bytes(b"")
    with ballast.open("r+b", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    for first in range(101, 1101, 100):
        write(store, *range(first, first + 100))
        time.sleep(0.02)
    until(lambda: store.problem != "")
    stored = [number for number, _ in read(disk, ALL)]
    assert stored[:100] == list(range(1, 101))
    assert len(stored) + len(store.pending()) == 1100
    assert len(caplog.records) == 1
    assert "full" in caplog.text
    ballast.unlink()
    for _ in range(3):
        store.commit()
        time.sleep(0.05)
    until(lambda: not store.pending() and not store.problem)  # said a moment after the events are away
    assert [number for number, _ in read(disk, ALL)] == list(range(1, 1101))
    assert [record.getMessage() for record in caplog.records][1:] == [f"writing {disk / FILE_NAME} again"]
    assert (store.lost, store.problem) == (0, "")
    store.close(10)


def test_a_disk_that_is_read_only_is_still_read(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was stored can be read; the agent's store says once why it stores nothing."""
    store = Store(disk, 100_000)
    store.start()
    write(store, 1, 2, 3)
    store.close(10)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert [number for number, _ in read(disk, ALL)] == [1, 2, 3]
    later = Store(disk, 100_000)
    later.start()
    write(later, 4)
    until(lambda: later.problem != "")
    for _ in range(3):
        later.commit()
    later.close(10)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "Read-only file system" in lines[0]
    assert lines[1] == f"1 events did not get into {disk / FILE_NAME}"


def test_the_service_map_waits_for_room(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While the disk is full the map stays in memory, one line is said; then all of it is written."""
    life = Life(disk)
    life.tick(5)
    life.written()
    ballast = disk / "ballast"
    ballast.write_bytes(b"")
    with ballast.open("r+b", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    write(life.store, *range(1, 1001))  # the file must grow for these
    until(lambda: life.store.problem != "")
    for _ in range(20):
        life.tick(1)
        time.sleep(0.005)
    assert {edge.tx_bytes for edge in read_map(disk)[1]} == {5}
    ballast.unlink()
    until(lambda: (life.store.commit(), not life.store.problem)[1])  # type: ignore[func-returns-value]
    life.tick(1)
    life.written()
    assert {edge.tx_bytes for edge in read_map(disk)[1]} == {26}
    assert len(caplog.records) == 2
    life.store.close(10)


def test_the_service_map_of_a_read_only_disk(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was stored is known again; what happens now stays in memory; one line says why."""
    life = Life(disk)
    life.tick(5)
    life.written()
    life.store.close(10)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    later = Life(disk)
    assert len(later.state) == len(later.baseline) == 50
    for _ in range(50):
        later.tick(1)
        time.sleep(0.002)
    until(lambda: later.store.problem != "")
    assert {edge.tx_bytes for edge in later.state.rows()[1]} == {55}
    assert {edge.tx_bytes for edge in read_map(disk)[1]} == {5}
    assert later.store.staged <= 1
    later.store.close(10)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "Read-only file system" in lines[0]
