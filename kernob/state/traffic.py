# SPDX-License-Identifier: Apache-2.0
"""From flow growth to series: names, caps, ends. The meaning of the three byte metrics is here.

In: one tick's rows. Out: series in a SeriesStore, FlowRows for screens, payload for coverage. Called by
`agent`, in the tick thread. Cost follows change: a flow that did not grow costs a few array operations.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernob.model import Attributes, FlowRow, MetricSpec, PeerClass, ProcessKey, Role, Transport
from kernob.state.flows import PROCESS_BYTES, FlowTable, Growth, Indices
from kernob.state.names import peer_class
from kernob.state.processes import Process, ProcessTable, Resolver
from kernob.state.series import SeriesBlock, SeriesStore

OTHER = "~other"
"""Stands for everything a cap did not admit, one series a service."""

DIRECTIONS = ("transmit", "receive")
_QUIET_S, _CROWDED_QUIET_S = 300.0, 15.0
_CROWD = 10_000  # flows; a server with ever new clients would otherwise remember all of them
_NO_SLOT = -1


@dataclass(frozen=True, slots=True)
class Caps:
    """Series a metric may have besides its `~other` ones; 0 for process_flows switches it off."""

    process: int
    flow: int
    process_flow: int


@dataclass(frozen=True, slots=True)
class Destination:
    """A flow's other end, and our own address where we are the server."""

    role: Role
    transport: Transport
    address: str
    port: int
    peer: str
    peer_class: PeerClass
    family: int
    netns: int
    where: Attributes = ()


def decode_destination(key: bytes) -> Destination:
    """Reads a struct flow_key (bpf/types.h), bytes 10 to 52."""
    port = int.from_bytes(key[10:12], "little")
    family, role, transport = key[12], Role(key[13]), Transport(key[14])
    netns = int.from_bytes(key[16:20], "little")
    if role is Role.UNKNOWN:
        return Destination(role, transport, "", 0, "", PeerClass.UNKNOWN, family, netns)
    peer, local = _address(family, key[20:36]), _address(family, key[36:52])
    address = local if role is Role.SERVER else peer
    where: Attributes = (("server.address", address), ("server.port", port))
    return Destination(role, transport, address, port, peer, peer_class(peer), family, netns, where)


def _address(family: int, raw: bytes) -> str:
    if family == socket.AF_INET6:
        return socket.inet_ntop(socket.AF_INET6, raw)
    return socket.inet_ntop(socket.AF_INET, raw[:4])


# Equal pairs are one object each: what a series' name costs is then its outer tuple.


@functools.lru_cache(1024)
def _identity(pid: int, executable: str, service: str) -> tuple[Attributes, Attributes]:
    who = (("process.pid", pid), ("process.executable.name", executable))
    return who, (("kernob.service", service),)


@functools.lru_cache(16)
def _kind(direction: int, transport: Transport) -> Attributes:
    return (
        ("network.io.direction", DIRECTIONS[direction]),
        ("network.transport", transport.name.lower()),
    )


@functools.lru_cache(16)
def _side(role: Role, peer_class: PeerClass) -> Attributes:
    side: Attributes = (("kernob.peer.class", peer_class.value),)
    return side if role is Role.UNKNOWN else (*side, ("network.tcp.handshake.role", role.name.lower()))


class _Metric:
    """One metric's block with its cap, and the sums its series stand at."""

    def __init__(self, block: SeriesBlock, cap: int) -> None:
        self.block = block
        self.cap = cap
        self.folded = 0
        self._slots: dict[Attributes, int] = {}
        self._names: dict[int, Attributes] = {}
        self._users: dict[int, tuple[ProcessKey, ...]] = {}
        self._sums = np.zeros(1024, np.int64)
        self._others = 0

    def slot(self, attributes: Attributes, other: Attributes, start_unix_ns: int) -> int:
        """The series of these attributes; beyond the cap, that of `other`."""
        slot = self._slots.get(attributes)
        if slot is not None:
            return slot
        if len(self.block) - self._others >= self.cap:
            self.folded += 1
            slot = self._slots.get(other)
            if slot is not None:
                return slot
            attributes = other
            self._others += 1
        slot = self.block.admit(attributes, start_unix_ns)
        self._slots[attributes] = slot
        self._names[slot] = attributes
        while slot >= len(self._sums):
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
        self._sums[slot] = 0
        return slot

    def add(self, slots: Indices, growth: NDArray[np.int64]) -> None:
        """Adds bytes to series; a slot may stand there more than once."""
        np.add.at(self._sums, slots, growth)
        unique = np.unique(slots)
        self.block.set(unique, self._sums[unique])

    def is_own(self, slot: int) -> bool:
        """Whether a series names a process, which `~other` does not."""
        return self._names[slot][0][0] == "process.pid"

    def use(self, slot: int, process: ProcessKey) -> None:
        """Notes that a process counts into a series of its own (not `~other`)."""
        users = self._users.get(slot, ())
        if process not in users:
            self._users[slot] = (*users, process)

    def end(self, slots: set[int], process: ProcessKey) -> None:
        """Ends the series of a process, unless a later image of it (exec) goes on with them."""
        ending = []
        for slot in slots:
            users = self._users.get(slot, ())
            if process not in users:
                continue
            rest = tuple(user for user in users if user != process)
            if rest:
                self._users[slot] = rest
                continue
            del self._users[slot], self._slots[self._names.pop(slot)]
            ending.append(slot)
        self.block.end(np.array(ending, np.int64))


class TrafficState:
    """Everything known of bytes. `specs` are (process, flow, process x flow) in this order."""

    def __init__(
        self,
        store: SeriesStore,
        specs: tuple[MetricSpec, MetricSpec, MetricSpec],
        caps: Caps,
        resolve: Resolver,
    ) -> None:
        self.flows = FlowTable()
        self.processes = ProcessTable(resolve)
        limits = (caps.process, caps.flow, caps.process_flow)
        self._metrics = [_Metric(store.block(s), cap) for s, cap in zip(specs, limits, strict=True)]
        self._process_flows = caps.process_flow > 0
        self._destinations: dict[int, Destination] = {}
        self._owners: dict[int, Process] = {}
        # per flow: series slot of each metric and direction
        self._slots = np.full((1024, 3, 2), _NO_SLOT, np.int64)
        self._marks = np.zeros((1024, 2), np.int64)
        self._rates = np.zeros((1024, 2), np.float64)

    @property
    def folded(self) -> int:
        """How often a series was folded into `~other` for a cap (cumulative)."""
        return sum(metric.folded for metric in self._metrics)

    def update(
        self, rows: tuple[NDArray[Any], NDArray[Any], NDArray[Any]], since_unix_ns: int, now_s: float = 0.0
    ) -> Growth:
        """Folds one tick in: (closed keys, closed values, live sockets).

        New series start at `since_unix_ns`, just after the tick before; `now_s` is monotonic. Returns
        what grew.
        """
        growth = self.flows.update(*rows, now_s)
        self._make_room()
        for flow in self.flows.new:
            key = self.flows.key(flow)
            process = self.processes.of(key[:PROCESS_BYTES])
            process.flows.add(flow)
            self._owners[flow] = process
            self._destinations[flow] = decode_destination(key)
        for direction, grown in enumerate((growth.tx_bytes, growth.rx_bytes)):
            moved = grown > 0
            self._add(growth.flows[moved], direction, grown[moved], since_unix_ns)
        return growth

    def _make_room(self) -> None:
        room = len(self.flows.totals)
        if room > len(self._slots):
            extra = room - len(self._slots)
            self._slots = np.concatenate([self._slots, np.full((extra, 3, 2), _NO_SLOT, np.int64)])
            self._marks = np.concatenate([self._marks, np.zeros((extra, 2), np.int64)])
            self._rates = np.concatenate([self._rates, np.zeros((extra, 2), np.float64)])

    def _add(self, flows: Indices, direction: int, grown: NDArray[np.int64], start_unix_ns: int) -> None:
        if not len(flows):
            return
        for flow in flows[self._slots[flows, 0, direction] == _NO_SLOT].tolist():
            self._admit(flow, direction, start_unix_ns)
        for i, metric in enumerate(self._metrics):
            if i < 2 or self._process_flows:
                metric.add(self._slots[flows, i, direction], grown)

    def _admit(self, flow: int, direction: int, start_unix_ns: int) -> None:
        process, there = self._owners[flow], self._destinations[flow]
        who, service = _identity(process.key.pid, process.executable, process.service)
        where, side = there.where, _side(there.role, there.peer_class)
        kind = _kind(direction, there.transport)
        nobody: Attributes = (("process.executable.name", OTHER),)
        nowhere: Attributes = (("server.address", OTHER),)
        names = (
            (who + service + kind, nobody + service + kind),
            (service + where + side + kind, service + nowhere + kind),
            (who + service + where + kind, nobody + service + nowhere + kind),
        )
        for i, (attributes, other) in enumerate(names):
            if i < 2 or self._process_flows:
                metric = self._metrics[i]
                slot = metric.slot(attributes, other, start_unix_ns)
                self._slots[flow, i, direction] = slot
                if i != 1 and metric.is_own(slot):
                    metric.use(slot, process.key)
                    process.series.add((i, slot))

    def sweep(self, now_s: float, removed: Callable[[Process], None]) -> None:
        """Ends what is over: finished processes (told to `removed`) and flows quiet for minutes.

        A quiet flow loses nothing: its bytes are in its series, to which it adds again should it come back.
        """
        busy = set(np.flatnonzero(self.flows.sockets).tolist())
        for process in self.processes.finished(self.flows.tick, now_s, busy):
            mine = np.fromiter(process.flows, np.int64, len(process.flows))
            for i in (0, 2):
                slots = {slot for metric, slot in process.series if metric == i}
                self._metrics[i].end(slots, process.key)
            self._forget(mine)
            self.processes.forget(process)
            removed(process)
        stale = self.flows.quiet(_CROWDED_QUIET_S if len(self.flows) > _CROWD else _QUIET_S)
        for flow in stale.tolist():
            self._owners[flow].flows.discard(flow)
        self._forget(stale)

    def _forget(self, flows: Indices) -> None:
        self.flows.forget(flows)
        for flow in flows.tolist():
            del self._owners[flow], self._destinations[flow]
        self._slots[flows] = _NO_SLOT
        self._marks[flows] = 0
        self._rates[flows] = 0

    def roll(self, window_s: float) -> None:
        """Ends an aggregation window of this length: rates are what grew in it."""
        totals = self.flows.totals
        self._rates = (totals - self._marks) / max(window_s, 1e-3)
        self._marks = totals.copy()

    def rows(self) -> tuple[FlowRow, ...]:
        """All flows, for screens; rates of the last window."""
        found = []
        totals, rates = self.flows.totals, self._rates
        for flow, there in self._destinations.items():
            process = self._owners[flow]
            found.append(
                FlowRow(
                    pid=process.key.pid,
                    executable=process.executable,
                    service=process.service,
                    alive=process.alive,
                    role=there.role,
                    transport=there.transport,
                    address=there.address,
                    port=there.port,
                    peer=there.peer,
                    peer_class=there.peer_class,
                    tx_bytes=int(totals[flow, 0]),
                    rx_bytes=int(totals[flow, 1]),
                    tx_rate=float(rates[flow, 0]),
                    rx_rate=float(rates[flow, 1]),
                )
            )
        return tuple(found)

    def destination(self, flow: int) -> Destination:
        """The other end of a flow."""
        return self._destinations[flow]
