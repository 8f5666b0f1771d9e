# SPDX-License-Identifier: Apache-2.0
"""features.map_memory on real files: nothing but the last tick is ever lost."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kernob.derive.topology import Dial, folded, outgoing
from kernob.features.map_memory import MapMemory
from kernob.model import PeerClass
from kernob.state.baseline import Baseline
from kernob.state.map_history import read_map
from kernob.state.series import SeriesStore
from kernob.state.service_map import MapState
from kernob.state.store import FILE_NAME, MIGRATIONS, Store

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_800_000_000 * 10**9
KILLS = 200

_LIVES = """
    import os, random, signal, sqlite3, sys, time
    from pathlib import Path
    from tests.unit.test_map_store import Life, read_map

    directory = Path(sys.argv[1])
    random.seed(7)
    told = 0
    for kill in range(int(sys.argv[2])):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            life = Life(directory)
            while True:
                life.tick(1)
                life.written()
                os.write(writer, b"x")
        os.close(writer)
        os.read(reader, 1)  # it has written once
        time.sleep(random.random() * 0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        told += 1
        while rest := os.read(reader, 65536):
            told += len(rest)
        os.close(reader)
        nodes, edges, destinations = read_map(directory)
        totals = {edge.tx_bytes for edge in edges}
        assert (len(edges), len(nodes), len(destinations)) == (50, 51, 50), kill
        assert len(totals) == 1, (kill, totals)
        assert told <= totals.pop() <= told + 1 + kill, kill
    print("done")
"""


class Life:
    """One life of the agent's map: fifty edges that grow by the same each tick."""

    def __init__(self, directory: Path) -> None:
        self.state = MapState(1000, folded)
        self.baseline = Baseline(SeriesStore(), 86_400, 1000)
        self.store = Store(directory, 1000)
        self.memory = MapMemory(directory, self.store, self.state, self.baseline)
        self.memory.restore()
        self.store.start()

    def tick(self, count: int) -> None:
        for number in range(50):
            dial = Dial(1, f"192.0.2.{number}", 443)
            link = outgoing("vm", "app", dial, PeerClass.EXTERNAL, None, here=False)
            edge = self.state.edge(link, NOW)
            self.state.add(np.array([edge]), np.array([[count, 0, 0, 0]]), NOW)
            self.baseline.see(link, NOW, NOW)
        self.memory.stage()
        self.store.commit()

    def written(self) -> None:
        """Wait until what was staged is in the file."""
        until(lambda: not self.store.staged)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def totals(directory: Path) -> set[int]:
    return {edge.tx_bytes for edge in read_map(directory)[1]}


def test_kills_lose_nothing_that_was_written(tmp_path: Path) -> None:
    """SIGKILL amid a write: each edge has the same tick's total, none falls."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_LIVES), str(tmp_path), str(KILLS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "done\n", done.stderr
    assert not list(tmp_path.glob("*.damaged*"))


def test_a_damaged_file_is_written_anew_out_of_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line; the running agent knows the whole map, and stores all of it in the new file."""
    life = Life(tmp_path)
    life.tick(5)
    life.written()
    path = tmp_path / FILE_NAME
    path.unlink()
    life.tick(2)
    life.written()
    life.tick(1)
    life.written()
    assert totals(tmp_path) == {8}
    assert len(read_map(tmp_path)[2]) == 50
    life.store.close(10)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"{path} was taken away: a new one begins"
    ]


def test_a_damaged_file_at_the_start_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is moved aside with one line, and the map begins empty."""
    (tmp_path / FILE_NAME).write_bytes(b"no database" * 1000)
    life = Life(tmp_path)
    life.tick(1)
    until(lambda: not life.store.staged and life.store.openings == 1)
    assert totals(tmp_path) == {1}
    assert len(list(tmp_path.glob("*.damaged*"))) == 1
    life.store.close(10)
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_a_newer_versions_file_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line; nothing piles up while the agent runs without a store."""
    path = tmp_path / FILE_NAME
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        connection.execute("CREATE TABLE later (x)")
    before = path.read_bytes()
    life = Life(tmp_path)
    for _ in range(30):
        life.tick(1)
        time.sleep(0.002)
    until(lambda: life.store.problem != "")
    for _ in range(300):
        life.tick(1)
    assert life.store.staged <= 1
    life.store.close(10)
    assert path.read_bytes() == before
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert "newer kernob" in lines[0]


def test_a_quiet_tick_writes_nothing(tmp_path: Path) -> None:
    """Where nothing changed there is no transaction."""
    life = Life(tmp_path)
    life.tick(1)
    life.written()
    life.memory.stage()
    assert life.store.staged == 0
    life.store.close(10)
