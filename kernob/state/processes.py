# SPDX-License-Identifier: Apache-2.0
"""Known processes: identity -> name and service, and when each has ended for good.

In: ProcessInfo from a resolver the agent injects (kernel capture first, /proc second), exit marks once
a tick. Out: Process records; the identities whose last byte has been read. Called by `state.traffic`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kernob.model import ProcessInfo, ProcessKey

if TYPE_CHECKING:
    from kernob.state.capped import Capped

Resolver = Callable[[ProcessKey], ProcessInfo | None]
"""Names a process; None when neither the kernel's capture nor /proc knows it any more."""

UNKNOWN_NAME = "?"
_LINGER_S, _LINGER_MOST = 30.0, 4096
_RAW_KEY = struct.Struct("<IIH")  # how a struct flow_key begins


@dataclass(slots=True)
class Process:
    """One program image with network traffic.

    `flows` are those remembered now, `series` the slots that are its own.
    """

    key: ProcessKey
    executable: str
    service: str
    netns: int
    alive: bool = True
    quiet_since_tick: int = -1
    quiet_since_s: float = 0.0
    flows: set[int] = field(default_factory=set)
    series: set[tuple[Capped[Any], int]] = field(default_factory=set)


class ProcessTable:
    """Identities by the 10 bytes that begin their flow keys."""

    def __init__(self, resolve: Resolver) -> None:
        self._resolve = resolve
        self._processes: dict[bytes, Process] = {}
        self._newest: dict[tuple[int, int], bytes] = {}

    def __len__(self) -> int:
        return len(self._processes)

    def of(self, raw: bytes) -> Process:
        """The process of a flow key's first 10 bytes; resolved when it is seen for the first time."""
        process = self._processes.get(raw)
        if process is None:
            process = self._first_sight(raw)
        return process

    def find(self, raw: bytes) -> Process | None:
        """The same, but None for one that nobody can name any more: it is not taken in."""
        process = self._processes.get(raw)
        if process is None:
            info = self._resolve(ProcessKey(*_RAW_KEY.unpack(raw)))
            process = self._take_in(raw, info) if info else None
        return process

    def by_raw(self, raw: bytes) -> Process | None:
        """The process of these 10 bytes if it is known."""
        return self._processes.get(raw)

    def _first_sight(self, raw: bytes) -> Process:
        return self._take_in(raw, self._resolve(ProcessKey(*_RAW_KEY.unpack(raw))))

    def _take_in(self, raw: bytes, info: ProcessInfo | None) -> Process:
        key = ProcessKey(*_RAW_KEY.unpack(raw))
        executable = (info.executable or info.comm) if info else UNKNOWN_NAME
        process = Process(key, executable, info.service if info else UNKNOWN_NAME, info.netns if info else 0)
        self._processes[raw] = process
        older = self._newest.get((key.pid, key.start_ticks))
        if older in self._processes and older != raw:
            self._processes[older].alive = False  # exec replaced it
        self._newest[key.pid, key.start_ticks] = raw
        return process

    def by_pid(self, pid: int) -> Process | None:
        """The process that lives under this PID, if it is known."""
        found = [p for p in self._processes.values() if p.key.pid == pid and p.alive]
        return found[-1] if found else None

    def mark_ended(self, keys: Iterable[ProcessKey]) -> None:
        """Notes processes that the kernel has seen ending."""
        for key in keys:
            process = self._processes.get(raw_key(key))
            if process:
                process.alive = False

    def alive(self) -> list[Process]:
        """Processes not known to have ended."""
        return [p for p in self._processes.values() if p.alive]

    def finished(self, tick: int, now_s: float, busy: Collection[int]) -> list[Process]:
        """Ended processes whose bytes are all read: no live socket in two consecutive ticks.

        `busy` holds the flows that have live sockets now. The second tick is for a socket that closed
        between the two reads of the first. A few stay a little longer, so that a person can see them.
        """
        done = []
        linger_s = _LINGER_S if len(self._processes) < _LINGER_MOST else 0.0
        for process in self._processes.values():
            if process.alive or not process.flows.isdisjoint(busy):
                process.quiet_since_tick = -1
            elif process.quiet_since_tick < 0:
                process.quiet_since_tick, process.quiet_since_s = tick, now_s
            elif tick > process.quiet_since_tick and now_s - process.quiet_since_s >= linger_s:
                done.append(process)
        return done

    def forget(self, process: Process) -> None:
        """Drops one."""
        raw = raw_key(process.key)
        self._processes.pop(raw, None)
        if self._newest.get((process.key.pid, process.key.start_ticks)) == raw:
            del self._newest[process.key.pid, process.key.start_ticks]


def raw_key(key: ProcessKey) -> bytes:
    """The first 10 bytes of a struct flow_key of this process."""
    return (
        key.pid.to_bytes(4, "little")
        + key.start_ticks.to_bytes(4, "little")
        + key.exec_id.to_bytes(2, "little")
    )
