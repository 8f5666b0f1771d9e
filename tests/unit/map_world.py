# SPDX-License-Identifier: Apache-2.0
"""A host for tests and benchmarks of the map: features.map with flows, listeners and a clock of one's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from kernob.config import Settings
from kernob.features.feature import Tick
from kernob.features.map import Map
from kernob.features.places import PlaceWatch
from kernob.kernel.listening import ListeningSocket, Namespaces
from kernob.model import Event, Fate, Outcome, ProcessInfo, ProcessKey
from kernob.probes import tcp
from kernob.probes.traffic import TrafficRows
from kernob.state.connections import ConnectionState, TcpCaps
from kernob.state.known import Known
from kernob.state.series import SeriesStore
from kernob.state.store import Store
from tests.unit.records import closed, fates, flow_key, live

NETNS = 4026531840
S = 10**9
BEGIN_NS = 1_800_000_000 * S
TICK_S = 60
HOUR = 3600 // TICK_S
OURS = frozenset({"127.0.0.1", "10.0.0.5"})


class Proc:
    """Who listens, in the place of /proc."""

    def __init__(self) -> None:
        self.sockets: dict[int, tuple[ListeningSocket, int]] = {}
        self.commands: dict[int, tuple[str, ...]] = {}
        self.host = NETNS

    def listen(self, pid: int, address: str, port: int) -> None:
        inode = len(self.sockets) + 1000 * port + pid
        self.sockets = {i: s for i, s in self.sockets.items() if s[0].port != port}
        self.sockets[inode] = ListeningSocket(NETNS, address, port, inode), pid

    def close(self, port: int) -> None:
        self.sockets = {i: s for i, s in self.sockets.items() if s[0].port != port}

    def read(self) -> Namespaces:
        sockets = tuple(socket for socket, _ in self.sockets.values())
        return Namespaces(sockets, {NETNS: OURS}, frozenset({"10.0.0.5"}), self.host)

    def holders(self, inodes: Collection[int]) -> dict[int, int]:
        return {inode: self.sockets[inode][1] for inode in inodes}

    def command_line(self, pid: int) -> tuple[str, ...]:
        return self.commands.get(pid, ())

    def map(self, _name: str) -> Proc:
        """The kernel side's listeners, as the map that tells whether anything changed."""
        return SimpleNamespace(read=lambda: (np.array(sorted(self.sockets)), np.zeros(1)))  # type: ignore[return-value]


class World:
    """One host; processes are named by `services`."""

    def __init__(self, directory: Path, kept: Store | None = None, **settings: Any) -> None:
        self.proc = Proc()
        self.services: dict[int, str] = {}
        self.store = SeriesStore()
        self.known = Known(self._resolve)
        self.connections = ConnectionState(self.store, tcp.SPECS, TcpCaps(1000, 100_000, 100), self.known)
        self.known.keep(self.connections)
        places = PlaceWatch(self.proc, self.proc, lambda pid: self.services[pid])  # type: ignore[arg-type]
        chosen = dataclasses.replace(
            Settings(), state_dir=directory, resource_attributes=(("host.name", "vm"),), **settings
        )
        self.map = Map(chosen, self.store, self.known, self.connections, places, kept)
        self.now_s = 0
        self.ahead_s = 0  # of the wall clock
        self.events: list[Event] = []

    def _resolve(self, key: ProcessKey) -> ProcessInfo:
        return ProcessInfo(key, self.services[key.pid], "", service=self.services[key.pid], netns=NETNS)

    def tick(self, flows: list[tuple[bytes, int, int]], facts: list[Any], seconds: int = TICK_S) -> None:
        """One tick: bytes of closed connections, and what became of connections."""
        self.now_s += seconds
        keys, values = closed(*flows)
        sockets = live()
        growth = self.known.flows.update(keys, values, sockets, self.now_s)
        self.known.learn()
        now_ns = BEGIN_NS + (self.now_s + self.ahead_s) * S
        since_ns = now_ns - seconds * S
        nothing = np.zeros(0, np.dtype([("flow", keys.dtype), ("kind", "u1")]))
        self.connections.update(fates(*facts), (nothing, np.zeros(0)), sockets, since_ns)
        rows = TrafficRows(keys, values, sockets, sockets, sockets)
        self.map.tick(Tick(self.proc, rows, growth, self.now_s, now_ns, since_ns, None))  # type: ignore[arg-type]
        self.events += self.map.events()
        self.known.sweep(self.now_s, lambda _process: None)
        self.known.processes.mark_ended(
            [p.key for p in self.known.processes.alive() if p.key.pid not in self.services]
        )

    def edges(self) -> set[tuple[str, str, int]]:
        rows = self.map.reports()["map"]({})["edges"]
        return {(row["source"], row["target"], row["port"]) for row in rows}


def connection(key: bytes, outcome: Outcome = Outcome.OK) -> tuple[bytes, int, int, int, int, int]:
    return key, Fate.CONNECTION, outcome, 0, 0, 1


def both_ends(
    client: int, server: int, port: int, address: str = "127.0.0.1"
) -> list[tuple[bytes, int, int]]:
    """A connection within the host: the client's flow and the server's."""
    return [
        (flow_key(client, address, port), 100, 300),
        (flow_key(server, address, port, role=2, local=address), 300, 100),
    ]
