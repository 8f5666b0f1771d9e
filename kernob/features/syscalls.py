# SPDX-License-Identifier: Apache-2.0
"""Where the time went: durations of system calls into their series, and what clients ask of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kernob.config import Settings
from kernob.features.blocked import Blocked
from kernob.features.feature import Feature, Report, Tick
from kernob.kernel.waits import Waits
from kernob.model import ProbeState
from kernob.probes import syscalls
from kernob.probes.traffic import Loss
from kernob.state.blocked import BlockedState
from kernob.state.buckets import UPPER_S
from kernob.state.lifecycle import Program
from kernob.state.processes import ProcessTable
from kernob.state.series import SeriesStore
from kernob.state.syscalls import CallHistogram, SyscallState, nobody
from kernob.state.text import sanitize
from kernob.syscall_table import names

if TYPE_CHECKING:
    from kernob.kernel.session import Session

_AFTER_TICK_NS = 2_000_000
_MOST_ROWS = 20_000
_LONGEST_S = 1e6


class Syscalls(Feature):
    """Durations of system calls by process, and which threads are in one for long."""

    def __init__(
        self,
        settings: Settings,
        store: SeriesStore,
        processes: ProcessTable,
        program_of: Callable[[int], Program | None] = nobody,
    ) -> None:
        """`program_of` knows programs by their number, also where the process is gone."""
        self._names = settings.syscalls
        self._state = SyscallState(
            store,
            (syscalls.DURATION, syscalls.PROCESS_TIME),
            (settings.max_histogram_series, settings.max_process_series),
            processes,
            names(),
            program_of,
        )
        self._blocked = Blocked(
            settings.blocked_after_s,
            Waits(settings.proc_root, sanitize),
            BlockedState(store, settings.max_histogram_series),
            self._state,
            processes,
        )
        self._session: Session | None = None
        self._since_unix_ns = self._started_unix_ns = 0
        self._usage: dict[str, int] = {}

    @property
    def folded(self) -> int:
        """How often a series was folded into `~other` for a cap (cumulative)."""
        return self._state.folded + self._blocked.state.folded

    def open(self, session: Session) -> None:
        """Begins, where there is anything to measure."""
        attached = {
            r.hook for r in session.reports if r.probe == "syscalls" and r.state is ProbeState.ATTACHED
        }
        if "calls" in attached:
            self._session = session
        self._started_unix_ns = time.time_ns()

    def tick(self, tick: Tick) -> None:
        """Reads what was counted since the tick before. Raises MapError."""
        if self._session is not None:
            self._read(self._session, tick.since_unix_ns)
            self._blocked.tick(self._session, tick.since_unix_ns)
            self._usage["threads"] = self._blocked.threads
        self._since_unix_ns = tick.now_unix_ns + _AFTER_TICK_NS

    def _read(self, session: Session, since_unix_ns: int) -> None:
        rows = syscalls.read(session)
        self._state.update(rows.keys, rows.values, rows.others, since_unix_ns, time.monotonic())
        self._usage["syscalls"] = len(rows.keys)

    def usage(self) -> dict[str, int]:
        """Entries of its two maps."""
        return self._usage

    def losses(self, counts: NDArray[Any]) -> dict[str, int]:
        """Calls that no map had room for, out of the losses array."""
        if self._session is None:
            return {}
        return {
            "syscalls_full": int(counts[Loss.SYSCALLS_FULL]),
            "threads_full": int(counts[Loss.THREADS_FULL]),
        }

    def reports(self) -> dict[str, Report]:
        """What `kernob syscalls` and `kernob blocked` ask."""
        return {"syscalls": self._report, "blocked": self._report_blocked}

    def _report_blocked(self, words: Mapping[str, str]) -> Mapping[str, Any]:
        """Threads that are in a call now; words: pid, service, after_s (default: KERNOB_BLOCKED_AFTER).

        Raises ValueError.
        """
        session = self._required()
        after_s = _seconds_of(words.get("after_s", ""))
        return {
            "watched": list(self._names),
            **self._blocked.report(session, _pid_of(words), words.get("service", ""), after_s),
        }

    def _report(self, words: Mapping[str, str]) -> Mapping[str, Any]:
        """Histograms by process and call, up to this moment; words: pid, service (exact, "" for all).

        Raises ValueError.
        """
        session = self._required()
        pid, service = _pid_of(words), words.get("service", "")
        self._read(session, self._since_unix_ns)
        found = [
            call
            for call in self._state.calls()
            if (not pid or call.pid == pid) and (not service or call.service == service)
        ]
        found.sort(key=lambda call: -call.sum_ns)
        return {
            "time_unix_ns": time.time_ns(),
            "started_unix_ns": self._started_unix_ns,
            "watched": list(self._names),
            "bounds_s": UPPER_S.tolist(),
            "rows": [self._row(call) for call in found[:_MOST_ROWS]],
            "left_out": max(0, len(found) - _MOST_ROWS),
        }

    def _required(self) -> Session:
        if self._session is None:
            why = (
                "switched off by KERNOB_SYSCALLS=none"
                if not self._names
                else "no hook for them (kernob doctor)"
            )
            raise ValueError(f"no system calls are measured: {why}")
        return self._session

    def _row(self, call: CallHistogram) -> dict[str, Any]:
        filled = np.flatnonzero(call.buckets).tolist()
        return {
            "pid": call.pid,
            "executable": call.executable,
            "service": call.service,
            "alive": call.alive,
            "syscall": self._state.name(call.number),
            "time_s": call.sum_ns / 1e9,
            "buckets": {str(bucket): int(call.buckets[bucket]) for bucket in filled},
        }


def _pid_of(words: Mapping[str, str]) -> int:
    text = words.get("pid", "")
    if text and not (text.isascii() and text.isdecimal() and len(text) <= 10):
        raise ValueError(f"pid is {text[:20]!r}: must be a number")
    return int(text or 0)


def _seconds_of(text: str) -> float | None:
    try:
        seconds = float(text) if text else None
    except ValueError:
        seconds = -1.0
    if seconds is not None and not 0 <= seconds <= _LONGEST_S:
        raise ValueError(f"after_s is {text[:20]!r}: must be seconds from 0 to {_LONGEST_S:.0f}")
    return seconds
