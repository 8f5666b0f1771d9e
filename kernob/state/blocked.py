# SPDX-License-Identifier: Apache-2.0
"""Threads that have been in one call for long: what that means, and how many there are of each sort.

In: what each such thread waits for. Out: `kernob.syscall.blocked`, a gauge. Called by `features.blocked`.
Most threads of a machine sit in a call, rightly: a pool waits for work, a server for a request. So each wait
is of a class, by what it is for:

stuck    what should return by itself takes long: a write, a file, a sync, a connect, a lock whose owner the
         kernel knows, anything that cannot be interrupted (state D)
waiting  for data of somebody else: a read of a socket or pipe; a write to one by a process with a terminal,
         which more often than not is a pager that somebody left open
idle     for whatever comes: epoll, poll, accept, timers, signals, a terminal, a futex (where the kernel
         cannot tell a lock from an idle worker)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

import numpy as np

from kernob.model import Attributes, MetricKind, MetricSpec
from kernob.state.capped import CappedCounters
from kernob.state.destinations import NOBODY
from kernob.state.series import SeriesStore
from kernob.syscall_table import words

STUCK, WAITING, IDLE = "stuck", "waiting", "idle"
CLASSES: Final = (STUCK, WAITING, IDLE)
"""The most worrying first."""

BLOCKED = MetricSpec(
    "kernob.syscall.blocked",
    "{thread}",
    MetricKind.GAUGE,
    "Threads that have been in one call for longer than KERNOB_BLOCKED_AFTER, by class (docs/syscalls.md).",
    (
        "process.executable.name",
        "kernob.service",
        "kernob.syscall",
        "kernob.blocked.on",
        "kernob.blocked.class",
    ),
)

_IDLE_CALLS: Final = frozenset(
    words(
        "epoll_wait epoll_pwait epoll_pwait2 poll ppoll select pselect6 accept accept4 nanosleep",
        "clock_nanosleep pause rt_sigtimedwait rt_sigsuspend wait4 waitid io_getevents io_pgetevents",
        "io_uring_enter futex_wait futex_waitv mq_timedreceive msgrcv semop semtimedop restart_syscall",
    )
)
_READS: Final = frozenset(
    words("read readv pread64 preadv preadv2 recvfrom recvmsg recvmmsg splice getdents64")
)
_FROM_PEERS: Final = frozenset(("socket", "pipe"))
_FROM_DISKS: Final = frozenset(("file", "device", "unknown"))
_FUTEX_OF_OWNERS: Final = frozenset((6, 11, 13))

Who = tuple[str, str, str, str, str]
"""Executable, service, call, on, class."""


def class_of(call: str, on: str, state: str, arguments: tuple[int, ...], interactive: bool = False) -> str:
    """The class of a wait; `state` as in /proc/PID/stat, `arguments` those of the call where they are known.

    >>> class_of("write", "pipe", "S", ()), class_of("read", "socket", "S", ())
    ('stuck', 'waiting')
    """
    if state == "D":
        return STUCK
    if call == "futex":
        return STUCK if len(arguments) > 1 and arguments[1] & 0x7F in _FUTEX_OF_OWNERS else IDLE
    if call in _IDLE_CALLS:
        return IDLE
    if call in _READS:
        return WAITING if on in _FROM_PEERS else STUCK if on in _FROM_DISKS else IDLE
    return WAITING if interactive and on in {*_FROM_PEERS, "terminal"} else STUCK


class BlockedState:
    """The gauge's series, of which only those exist that have threads."""

    def __init__(self, store: SeriesStore, cap: int) -> None:
        self._metric = CappedCounters(store.block(BLOCKED), cap)
        self._standing: dict[Who, tuple[int, int]] = {}

    @property
    def folded(self) -> int:
        """How often a series was folded into `~other` for the cap (cumulative)."""
        return self._metric.folded

    def see(self, found: Mapping[Who, int], since_unix_ns: int) -> None:
        """Takes how many threads there are now, of each sort; what has none any more ends."""
        for who in found.keys() - self._standing.keys():
            slot = self._metric.slot(*_names(who), since_unix_ns)
            self._metric.hold(slot)
            self._standing[who] = (slot, 0)
        change: Counter[int] = Counter()
        for who, (slot, before) in list(self._standing.items()):
            now = found.get(who, 0)
            change[slot] += now - before
            self._standing[who] = (slot, now)
        slots = np.fromiter(change, np.int64, len(change))
        self._metric.add(slots, np.fromiter(change.values(), np.int64, len(change)))
        for who, (slot, now) in list(self._standing.items()):
            if not now:
                del self._standing[who]
                self._metric.release(slot)


def _names(who: Who) -> tuple[Attributes, Attributes]:
    executable, service, call, on, kind = who
    rest = (
        ("kernob.service", service),
        ("kernob.syscall", call),
        ("kernob.blocked.on", on),
        ("kernob.blocked.class", kind),
    )
    return (("process.executable.name", executable), *rest), (*NOBODY, *rest)
