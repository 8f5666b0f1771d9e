# SPDX-License-Identifier: Apache-2.0
"""Threads that have been in one system call for long: a gauge each tick, and on request who, and on what.

Every tick reads the kernel side's map of threads; /proc is asked once for each wait, when it is seen first.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernob.kernel.procfs import measure_clocks
from kernob.kernel.session import Session
from kernob.kernel.waits import Surroundings, Wait, Waits
from kernob.probes import syscalls
from kernob.state.blocked import CLASSES, BlockedState, class_of
from kernob.state.processes import UNKNOWN_NAME, ProcessTable
from kernob.state.syscalls import SyscallState

_LOOKS_A_TICK = 1000
_MOST_ROWS = 500
_PROCESS = slice(16, 26)  # of struct thread_val: the process

Identity = tuple[int, int]
"""Thread and when it entered its call (monotonic ns)."""


class Blocked:
    """See the module; `after_s` is the threshold."""

    def __init__(
        self, after_s: float, waits: Waits, state: BlockedState, calls: SyscallState, processes: ProcessTable
    ) -> None:
        self._after_ns = int(after_s * 1e9)
        self._waits = waits
        self.state = state
        self._calls = calls
        self._processes = processes
        self._seen: dict[Identity, Wait] = {}
        self.threads = 0

    def tick(self, session: Session, since_unix_ns: int) -> None:
        """Brings the gauge up to date. Raises MapError."""
        tids, values, self.threads = syscalls.blocked(session, time.monotonic_ns() - self._after_ns)
        seen: dict[Identity, Wait] = {}
        found: Counter[tuple[str, str, str, str, str]] = Counter()
        looks = 0
        for tid, value in zip(tids.tolist(), values, strict=True):
            identity = (tid, int(value["entered_ns"]))
            wait = self._seen.get(identity)
            if wait is None:
                if looks == _LOOKS_A_TICK:  # the rest when the next tick comes
                    continue
                looks += 1
                wait = self._look(tid, value)
            if wait is None:
                continue
            seen[identity] = wait
            executable, service = self._who(value)
            kind = _class(wait)
            found[executable, service, wait.call, wait.on, kind] += 1
        self._seen = seen
        self.state.see(found, since_unix_ns)

    def _look(self, tid: int, value: np.void) -> Wait | None:
        number = int(value["key"]["number"])
        return self._waits.look(int(value["key"]["tgid"]), tid, number, self._calls.name(number))

    def _who(self, value: np.void) -> tuple[str, str]:
        process = self._processes.find(value.tobytes()[_PROCESS])
        return (process.executable, process.service) if process else (UNKNOWN_NAME, UNKNOWN_NAME)

    def report(self, session: Session, pid: int, service: str, after_s: float | None) -> Mapping[str, Any]:
        """Who is blocked at this moment, the most worrying first. Raises MapError."""
        after_ns = self._after_ns if after_s is None else int(after_s * 1e9)
        now_ns = time.monotonic_ns()
        tids, values, _count = syscalls.blocked(session, now_ns - after_ns)
        offset_ns = measure_clocks().unix_minus_monotonic_ns
        rows: list[tuple[Wait, dict[str, Any]]] = []
        for tid, value in zip(tids.tolist(), values, strict=True):
            executable, of = self._who(value)
            if (pid and int(value["key"]["tgid"]) != pid) or (service and of != service):
                continue
            wait = self._look(tid, value)
            if wait is not None:
                rows.append((wait, _row(wait, value, executable, of, now_ns, offset_ns)))
        rows.sort(key=lambda row: (CLASSES.index(row[1]["class"]), -row[1]["for_s"]))
        around = Surroundings()
        for wait, row in rows[:_MOST_ROWS]:
            row["what"] = self._waits.explain(wait, around)
        return {
            "time_unix_ns": now_ns + offset_ns,
            "after_s": after_ns / 1e9,
            "rows": [row for _wait, row in rows[:_MOST_ROWS]],
            "left_out": dict(Counter(row["class"] for _wait, row in rows[_MOST_ROWS:])),
        }


def _row(
    wait: Wait, value: NDArray[Any] | np.void, executable: str, service: str, now_ns: int, offset_ns: int
) -> dict[str, Any]:
    entered_ns = int(value["entered_ns"])
    return {
        "pid": wait.pid,
        "tid": wait.tid,
        "thread": wait.thread,
        "executable": executable,
        "service": service,
        "syscall": wait.call,
        "since_unix_ns": entered_ns + offset_ns,
        "for_s": (now_ns - entered_ns) / 1e9,
        "on": wait.on,
        "what": "",
        "state": wait.state,
        "class": _class(wait),
    }


def _class(wait: Wait) -> str:
    return class_of(wait.call, wait.on, wait.state, wait.arguments, wait.interactive)
