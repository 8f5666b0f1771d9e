# SPDX-License-Identifier: Apache-2.0
"""The flows and processes that are known now: what bytes and facts about connections have in common.

In: keys that the kernel side counted under, ends of processes. Out: an index for each flow, with its
owner and its destination, until both have fallen silent. Held by `state.traffic`, shared with
`state.connections`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kernob.model import Name, PeerClass, ProcessKey, Role
from kernob.state.destinations import Destination, decode_destination
from kernob.state.flows import PROCESS_BYTES, FlowTable, Indices
from kernob.state.processes import Process, ProcessTable, Resolver

if TYPE_CHECKING:
    from kernob.state.capped import Capped

_QUIET_S, _CROWDED_QUIET_S = 300.0, 15.0
_CROWD = 10_000  # flows; a server with ever new clients would otherwise remember all of them


Namer = Callable[[ProcessKey, Destination], "Name | None"]
"""The hostname of what a process talks to, None where none is known."""


Classifier = Callable[[str, str, int], PeerClass]
"""The class of a peer's address, by its hostname ("" where none is known) and the server's port, too."""


class PerFlow(Protocol):
    """Keeps something for each flow, by its index."""

    def make_room(self, flows: int) -> None:
        """Be ready for indices below `flows`."""

    def forget(self, flows: Indices) -> None:
        """Drop what is kept for these: their indices may be used again."""


class Known:
    """Flows by index, their owners and destinations."""

    def __init__(self, resolve: Resolver) -> None:
        self.flows = FlowTable()
        self.processes = ProcessTable(resolve)
        self._owners: dict[int, Process] = {}
        self._destinations: dict[int, Destination] = {}
        self._keepers: list[PerFlow] = []
        self._namer: Namer = lambda _process, _there: None
        self._classify: Classifier | None = None

    def classify_by(self, classify: Classifier) -> None:
        """From now on ask `classify` for the class of each new flow's peer, instead of the default rules."""
        self._classify = classify

    def name_by(self, namer: Namer) -> None:
        """From now on ask `namer` for the hostname of each new flow."""
        self._namer = namer

    def keep(self, keeper: PerFlow) -> None:
        """Have `keeper` told what is forgotten."""
        self._keepers.append(keeper)

    def find(self, keys: NDArray[Any]) -> Indices:
        """Indices of these flows (struct flow_key); new ones are learned. They count as heard of now."""
        found = self.flows.find(keys)
        self.learn()
        return found

    def learn(self) -> None:
        """Find out who and whom, for flows that the table has but nobody has looked at."""
        for keeper in self._keepers:
            keeper.make_room(len(self.flows.totals))
        for flow in self.flows.new:
            key = self.flows.key(flow)
            process = self.processes.of(key[:PROCESS_BYTES])
            process.flows.add(flow)
            self._owners[flow] = process
            self._destinations[flow] = self._look(process, key)
        self.flows.new = []

    def _look(self, process: Process, key: bytes) -> Destination:
        there = decode_destination(key)
        if there.role is Role.CLIENT:
            there = there.named(self._namer(process.key, there))
        if self._classify and there.role is not Role.UNKNOWN:
            peer_class = self._classify(there.peer, there.name, there.port)
            there = dataclasses.replace(there, peer_class=peer_class)
        return there

    def there(self, process: Process, key: bytes) -> Destination:
        """The other end of a struct flow_key, under the name that its series have or would have."""
        flow = self.flows.index(key)
        return self._destinations[flow] if flow in self._destinations else self._look(process, key)

    def owner(self, flow: int) -> Process:
        """The process that a flow is charged to."""
        return self._owners[flow]

    def destination(self, flow: int) -> Destination:
        """The other end of a flow."""
        return self._destinations[flow]

    def each(self) -> list[tuple[int, Process, Destination]]:
        """All flows."""
        return [(flow, self._owners[flow], there) for flow, there in self._destinations.items()]

    def sweep(self, now_s: float, removed: Callable[[Process], None]) -> None:
        """Ends what is over: finished processes (told to `removed`) and flows quiet for minutes.

        A quiet flow loses nothing: what it counted is in its series, to which it adds again should it
        come back.
        """
        busy = set(np.flatnonzero(self.flows.sockets).tolist())
        for process in self.processes.finished(self.flows.tick, now_s, busy):
            mine = np.fromiter(process.flows, np.int64, len(process.flows))
            ending: dict[Capped[Any], set[int]] = {}
            for metric, slot in process.series:
                ending.setdefault(metric, set()).add(slot)
            for metric, slots in ending.items():
                metric.end(slots, process.key)
            self._forget(mine)
            self.processes.forget(process)
            removed(process)
        stale = self.flows.quiet(_CROWDED_QUIET_S if len(self.flows) > _CROWD else _QUIET_S)
        for flow in stale.tolist():
            self._owners[flow].flows.discard(flow)
        self._forget(stale)

    def _forget(self, flows: Indices) -> None:
        for keeper in self._keepers:
            keeper.forget(flows)
        self.flows.forget(flows)
        for flow in flows.tolist():
            del self._owners[flow], self._destinations[flow]
