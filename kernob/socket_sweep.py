# SPDX-License-Identifier: Apache-2.0
"""Keeps the number of open connections true: what `state.reconcile` decides, done.

In: the rows of the socks map at each tick. Out: stale entries taken out of the map, foreign connections in
their series. Called by `pipeline`, in the tick thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernob.kernel.maps import BpfMap
from kernob.kernel.proc_sockets import ProcSocket, ProcSockets
from kernob.kernel.procfs import ProcFs
from kernob.model import ProcessInfo, ProcessKey
from kernob.state.connections import ConnectionState, Names
from kernob.state.destinations import destination_of
from kernob.state.known import Known
from kernob.state.reconcile import REPAIRS, Reconciler, Stale
from kernob.state.series import SeriesStore

log = logging.getLogger(__name__)


class SocketSweep:
    """One for the life of the agent."""

    def __init__(
        self,
        proc: ProcFs,
        sockets: ProcSockets,
        known: Known,
        connections: ConnectionState,
        resolve: Callable[[ProcessKey], ProcessInfo | None],
        store: SeriesStore,
    ) -> None:
        self._proc = proc
        self._sockets = sockets
        self._known = known
        self._connections = connections
        self._resolve = resolve
        self._reconciler = Reconciler()
        self._repairs = store.block(REPAIRS)
        self._slot = self._repairs.admit((), time.time_ns())
        self._repaired = 0

    def tick(
        self, socks: BpfMap, addresses: NDArray[Any], rows: NDArray[Any], since_unix_ns: int, now_s: float
    ) -> None:
        """Looks at one reading of the map; about once a minute at /proc, too. Raises MapError."""
        self._reconciler.between(rows)
        if self._reconciler.due(now_s):
            started_s = time.thread_time()
            found, visible = self._sockets.active()
            for stale in self._reconciler.sweep(addresses, rows, found, visible, self._name):
                self._repair(socks, stale)
            self._reconciler.swept(now_s, time.thread_time() - started_s)
        self._connections.see_foreign(self._reconciler.foreign(), since_unix_ns)

    def _repair(self, socks: BpfMap, stale: Stale) -> None:
        """Takes an entry out of the map, if it still is what it was; its bytes stay counted."""
        now = socks.lookup(stale.address)
        if now is None or any(now[0][name] != stale.row[0][name] for name in ("opened_ns", "sport", "state")):
            return
        socks.delete(stale.address)
        if now[0]["key"]["tgid"]:
            (flow,) = self._known.find(now["key"]).tolist()
            self._known.flows.retire(flow, now[0])
        self._repaired += 1
        self._repairs.set(np.array([self._slot]), np.array([self._repaired]))
        log.debug("a connection of port %d was open no more", now[0]["sport"])

    def _name(self, sockets: Collection[ProcSocket]) -> dict[int, Names]:
        """Who holds these sockets, as the series that they count into."""
        listening = self._proc.listening_ports()
        holders = self._sockets.holders({socket.inode for socket in sockets})
        services: dict[int, str] = {}
        named: dict[int, Names] = {}
        for socket in sockets:
            pid = holders.get(socket.inode)
            if pid is None:
                continue
            if pid not in services:
                services[pid] = self._service(pid)
            if services[pid]:
                is_server = (socket.netns, socket.local_port) in listening
                there = destination_of(
                    is_server, socket.local, socket.local_port, socket.peer, socket.peer_port, socket.netns
                )
                named[socket.inode] = self._connections.active_names(services[pid], there)
        return named

    def _service(self, pid: int) -> str:
        """The service of a process: as it is known already, else as /proc shows it."""
        process = self._known.processes.by_pid(pid)
        if process is not None:
            return process.service
        start = self._proc.read_process(pid, 0)
        info = self._resolve(start.key) if start else None
        return info.service if info else ""
