# SPDX-License-Identifier: Apache-2.0
"""What the service map costs at 10,000 edges between 2,000 nodes: ticks, the store, `kernob map`.

Run as `python -m benchmarks.service_map [days]`. The rows are made up, in the form the kernel side has; all
else is the agent's own code, with its store on the disk. `days` (default 30) are simulated, a tick each ten
minutes in which every edge moves and one in a hundred is replaced by a new one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.table import median, progress, show
from kernob.errors import KernobError
from kernob.state.store import FILE_NAME, Store
from tests.unit.map_world import World
from tests.unit.records import flow_key

_SERVICES, _EACH, _ADDRESSES = 500, 20, 1500
_EDGES = _SERVICES * _EACH
_STEP_S = 600
_ROUNDS = 20
_COLUMNS = ("tick", "ticks", "CPU ms", "most", "wall ms", "most")
_FORMATS = ("tree", "json", "dot", "mermaid", "html")

Rows = list[tuple[bytes, int, int]]


def _address(number: int) -> str:
    return f"198.18.{number >> 8}.{number & 255}"


def _rows() -> Rows:
    """Flows of 500 services with 20 of 1,500 addresses each: 10,000 edges, 2,000 nodes."""
    return [
        (flow_key(1000 + service, _address((service * 3 + number * 37) % _ADDRESSES), 443), 100, 300)
        for number in range(_EACH)
        for service in range(_SERVICES)
    ]


class _Host(World):
    """A host whose map is kept in a store, and which times the map's part of each tick."""

    def __init__(self, directory: Path) -> None:
        self.kept = Store(directory, 1000)
        super().__init__(directory, kept=self.kept)
        self.services = {1000 + n: f"service-{n}" for n in range(_SERVICES)}
        self.map.open(None)  # type: ignore[arg-type]
        self.kept.start()
        tick = self.map.tick

        def timed(now: Any) -> None:
            began, cpu = time.perf_counter(), time.thread_time()
            tick(now)
            self.took_ms = (time.thread_time() - cpu) * 1000, (time.perf_counter() - began) * 1000

        self.map.tick = timed  # type: ignore[method-assign,assignment]
        self.took_ms = 0.0, 0.0

    def move(self, rows: Rows, seconds: int = 10) -> tuple[float, float]:
        """One tick; ms that the map took of it: of a processor, and in all."""
        self.tick(rows, [], seconds)
        self.store.acknowledge(self.store.batch(self.now_s * 10**9))
        self.kept.commit()
        return self.took_ms

    def settle(self) -> None:
        """Waits for the store."""
        while self.kept.staged:
            time.sleep(0.001)


def _size(directory: Path) -> float:
    return sum(path.stat().st_size for path in directory.glob(f"{FILE_NAME}*")) / 2**20


def _ticks(host: _Host, rows: Rows) -> list[list[str]]:
    first: list[tuple[float, float]] = []
    while len(host.edges()) < _EDGES:
        first.append(host.move(rows if not first else []))
    idle = [host.move([]) for _ in range(_ROUNDS)]
    part = [host.move(rows[:100]) for _ in range(_ROUNDS)]
    whole = [host.move(rows) for _ in range(_ROUNDS)]
    host.settle()
    return [
        [
            name,
            str(len(taken)),
            *(f"{f([each[at] for each in taken]):.1f}" for at in (0, 1) for f in (median, max)),
        ]
        for name, taken in (
            ("all 10,000 edges are new, until all are known", first),
            ("nothing moves", idle),
            ("100 edges move", part),
            ("every edge moves", whole),
        )
    ]


def _days(host: _Host, rows: Rows, days: int, directory: Path) -> list[list[str]]:
    sizes = [["after the first minutes", f"{_size(directory):.1f}"]]
    fresh = _ADDRESSES
    for step in range(days * 86_400 // _STEP_S):
        if step % 18 == 0:  # a hundredth of the edges is replaced eight times a day
            for number in range(step % 100, _EDGES, 100):
                rows[number] = flow_key(1000 + number % _SERVICES, _address(fresh), 443), 100, 300
            fresh += 1
        host.move(rows, _STEP_S)
        if step % 72 == 0:
            host.settle()
            progress(f"day {step * _STEP_S / 86_400:.1f}: {_size(directory):.1f} MiB")
    host.settle()
    sizes.append([f"after {days} days", f"{_size(directory):.1f}"])
    return sizes


def _commands(directory: Path) -> list[list[str]]:
    settings = {"KERNOB_STATE_DIR": str(directory), "KERNOB_SOCKET": str(directory / "none.sock")}
    rows = []
    for kind in _FORMATS:
        command = [sys.executable, "-m", "kernob", "map", "--since", "3650d", "--format", kind]

        def run(command: list[str] = command) -> bytes:
            environment = os.environ | settings
            return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout

        size = len(run())
        wall, cpu = zip(*(_timed(run) for _ in range(5)), strict=True)
        rows.append([kind, f"{size / 2**20:.2f}", f"{median(wall):.2f}", f"{median(cpu):.2f}"])
    return rows


def _timed(run: Callable[[], Any]) -> tuple[float, float]:
    before, began = os.times(), time.perf_counter()
    run()
    after = os.times()
    children = after.children_user - before.children_user + after.children_system - before.children_system
    return time.perf_counter() - began, children


def main() -> None:
    """Prints the tables."""
    days = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    rows = _rows()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        host = _Host(directory)
        ticks = _ticks(host, rows)
        show("The map's part of a tick: 10,000 edges, 2,000 nodes", _COLUMNS, ticks)
        progress("kernob map")
        commands = _commands(directory)
        show("kernob map, out of the store", ("format", "MiB", "wall s", "CPU s"), commands)
        show("The store", ("when", "MiB"), _days(host, rows, days, directory))
        host.kept.close(30)


if __name__ == "__main__":
    try:
        main()
    except KernobError as error:
        sys.exit(f"benchmarks: {error}")
