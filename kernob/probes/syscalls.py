# SPDX-License-Identifier: Apache-2.0
"""Probe `syscalls`: how long system calls take, and which threads are in one now.

Hooks: see bpf/syscalls.bpf.c. In: the syscalls map (swapped, counts since the last reading), others_calls
and threads. Out: SyscallRows once a tick, threads that have been in a call for long. Called by
`features.syscalls`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernob.kernel.attach import (
    Attachment,
    Candidate,
    Hook,
    PerfTracepoint,
    RawTracepoint,
    TypedTracepoint,
    all_of,
    first_of,
)
from kernob.kernel.session import Session
from kernob.model import MetricKind, MetricSpec
from kernob.probes.probe import Probe
from kernob.syscall_table import expand, numbers

DURATION = MetricSpec(
    "kernob.syscall.duration",
    "s",
    MetricKind.HISTOGRAM,
    "How long system calls took, from entry to return.",
    ("process.executable.name", "kernob.service", "kernob.syscall"),
)
PROCESS_TIME = MetricSpec(
    "kernob.process.syscall.time",
    "s",
    MetricKind.COUNTER,
    "Time that a process's threads spent in system calls which have returned.",
    ("process.pid", "process.executable.name", "kernob.service", "kernob.syscall"),
    integer=False,
)
SPECS = (DURATION, PROCESS_TIME)

DEFAULT = ("read", "write", *expand("epoll_wait"), "futex")

FEW = 16
"""Up to so many calls each has tracepoints of its own; beyond, those of all calls are cheaper
(benchmarks/README.md)."""

THREAD_MAPS = ("thread_slots", "threads")
"""Both have struct thread_val: nearly all threads in the first one, where they are found faster."""

# What the tracepoints of some calls are called, where that is not the call's own name.
_EVENTS = {
    "stat": "newstat",
    "fstat": "newfstat",
    "lstat": "newlstat",
    "uname": "newuname",
    "sendfile": "sendfile64",
    "umount2": "umount",
}


def _single(names: Collection[str]) -> Candidate:
    attachments: list[Attachment] = []
    for name in names:
        event = _EVENTS.get(name, name)
        attachments.append(PerfTracepoint(f"syscalls/sys_exit_{event}", "tp__call_exit"))
        attachments.append(PerfTracepoint(f"syscalls/sys_enter_{event}", "tp__call_enter"))
    return all_of(*attachments, called=f"tracepoint:syscalls/sys_enter_x + sys_exit_x of {len(names)} calls")


def _hooks(names: Collection[str]) -> tuple[Hook, ...]:
    single = _single(names)
    every = (
        all_of(
            TypedTracepoint("sys_exit", "tp_btf__any_exit"), TypedTracepoint("sys_enter", "tp_btf__any_enter")
        ),
        all_of(
            RawTracepoint("sys_exit", "raw_tp__any_exit"), RawTracepoint("sys_enter", "raw_tp__any_enter")
        ),
    )
    candidates = (single, *every) if len(names) <= FEW else (*every, single)
    ends = all_of(
        RawTracepoint("sched_process_exit", "raw_tp__thread_exit"),
        RawTracepoint("sched_process_exec", "raw_tp__thread_exec"),
    )
    # ends first: whatever is noted from then on is also taken away
    return (
        first_of("syscalls", "ends", ends, essential=False),
        first_of("syscalls", "calls", *candidates, essential=False),
    )


PROBE = Probe(
    name="syscalls",
    sources=("syscalls.bpf.c",),
    hooks=_hooks(DEFAULT),
    blind_spots=(
        "system calls that began before the agent; those of 32-bit programs (compat); what io_uring does",
        "a wait that a stop signal interrupts ends there: its rest is restart_syscall, which is not watched",
        "with KERNOB_LIFECYCLE off, a process that lived for less than a second, or did nothing after that, "
        "and ended before it was looked at: its calls stand under its name, its service stays unknown",
    ),
)


def watching(names: Collection[str]) -> Probe:
    """The probe for these calls."""
    return replace(PROBE, hooks=_hooks(names))


def choose(session: Session, names: Collection[str]) -> None:
    """Tells the kernel side which calls are watched. For use before anything is attached."""
    wanted, known = session.map("wanted_calls"), numbers()
    for name in names:
        wanted.update(known[name], 1)


@dataclass(frozen=True, slots=True)
class SyscallRows:
    """One reading. `keys`: struct syscall_key, `values`: struct syscall_val beside it, each call once.

    `others`: number of a call -> struct duration_val of those that had no room in the map, cumulative.
    """

    keys: NDArray[Any]
    values: NDArray[Any]
    others: NDArray[Any]


def read(session: Session) -> SyscallRows:
    """Swaps and drains. Raises MapError."""
    keys, values = session.swapped("syscalls").drain()
    _numbers, others = session.map("others_calls").read()
    return SyscallRows(keys, values, others)


def blocked(session: Session, since_ns: int) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Threads that have been in a call since before `since_ns` (monotonic): (thread ids, struct thread_val).

    The third is how many threads the map has. Raises MapError.
    """
    values = np.concatenate([session.map(name).read()[1] for name in THREAD_MAPS])
    entered = values["entered_ns"]
    found = values[(entered != 0) & (entered <= np.uint64(max(0, since_ns))) & (values["tid"] != 0)]
    return found["tid"], found, int(np.count_nonzero(values["tid"]))
