# SPDX-License-Identifier: Apache-2.0
"""Probe `lifecycle`: every fork, exec and exit of processes.

Hooks: see bpf/lifecycle.bpf.c. In: the turns maps (swapped, counts since the last reading), lives, crashes
and images, and the life_events ring. Out: LifeRows once a tick, LifeRecords as they come. Called by
`features.lifecycle`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernob.kernel.attach import Hook, RawTracepoint, TypedTracepoint, all_of, first_of
from kernob.kernel.session import Session
from kernob.model import MetricKind, MetricSpec, ProcessInfo, ProcessKey
from kernob.probes import process
from kernob.probes.probe import Probe
from kernob.probes.process import ARGS_BYTES

_PROGRAM = ("process.executable.name", "kernob.service")

STARTS = MetricSpec(
    "kernob.process.starts",
    "{process}",
    MetricKind.COUNTER,
    "Programs started: each exec, and each fork that did not call exec within a second or until its end.",
    _PROGRAM,
)
EXITS = MetricSpec(
    "kernob.process.exits",
    "{process}",
    MetricKind.COUNTER,
    "Processes that ended: by themselves, with an exit code, or killed by a signal.",
    (*_PROGRAM, "process.exit.code", "kernob.exit.signal"),
)
OOM_KILLS = MetricSpec(
    "kernob.process.oom_kills",
    "{process}",
    MetricKind.COUNTER,
    "Those of kernob.process.exits that the kernel killed because memory ran out.",
    _PROGRAM,
)
CRASH_LOOP = MetricSpec(
    "kernob.process.crash_loop",
    "{restart}",
    MetricKind.GAUGE,
    "Restarts within the window of what crashes again and again; 0 once it is calm, absent if it never was.",
    _PROGRAM,
)
SPECS = (STARTS, EXITS, OOM_KILLS, CRASH_LOOP)


def _either(name: str) -> Hook:
    target = f"sched_process_{name}"
    return first_of(
        "lifecycle",
        name,
        all_of(TypedTracepoint(target, f"tp_btf__life_{name}")),
        all_of(RawTracepoint(target, f"raw_tp__life_{name}")),
        essential=False,
    )


PROBE = Probe(
    name="lifecycle",
    sources=("lifecycle.bpf.c",),
    hooks=(_either("fork"), _either("exec"), _either("exit")),
    blind_spots=(
        "kernel threads",
        "command lines are cut at 192 bytes",
        "more than 100 new programs a second and CPU, over a while, are counted without their names",
    ),
)

__all__ = ["ARGS_BYTES", "PROBE", "SPECS"]

_FORKED_ENDS = 2
"""enum forked of bpf/types.h."""
CAPACITIES = {"images": 8_192, "turns": 16_384, "crashes": 4_096, "broods": 4_096}
"""Entries of the maps that no setting is needed for."""


class Turn(enum.IntEnum):
    """enum turn of bpf/types.h, in its order."""

    EXEC = 0
    FORK = 1
    EXIT = 2


class Total(enum.IntEnum):
    """Indices of the turn_totals array: enum turn_total of bpf/types.h."""

    FORKS = 0
    EXECS = 1
    EXITS = 2


class Option(enum.IntEnum):
    """Those of enum option of bpf/types.h that are this probe's."""

    FORK_EVENTS = 1
    EXEC_EVENTS = 2
    EXIT_EVENTS = 3


@dataclass(frozen=True, slots=True)
class LifeRows:
    """One tick's reading.

    `turns`: struct turn_key, `counts`: u64 beside it, since the last reading. `tgids` and `lives` (struct
    life): who lives now. `crash_keys`, `crashes`: struct crash_key and crash_val, cumulative. `totals` by
    Total.
    """

    turns: NDArray[Any]
    counts: NDArray[Any]
    tgids: NDArray[Any]
    lives: NDArray[Any]
    crash_keys: NDArray[Any]
    crashes: NDArray[Any]
    totals: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LifeRecord:
    """One struct life_event: names raw, times on CLOCK_MONOTONIC (ns), `code` as in struct turn_key."""

    time_ns: int
    start_ns: int
    image: int
    key: ProcessKey
    parent: int
    parent_comm: bytes
    turn: Turn
    code: int
    forked: bool
    comm: bytes
    executable: bytes
    command_line: bytes


def read(session: Session) -> LifeRows:
    """Swaps and drains the turns, reads the rest. Raises MapError."""
    lives = session.map("lives").read()
    crashes = session.map("crashes").read()
    turns = session.swapped("turns").drain()
    _keys, totals = session.map("turn_totals").read()
    return LifeRows(*turns, *lives, *crashes, tuple(totals.tolist()))


def image(session: Session, number: int) -> tuple[ProcessInfo, bytes] | None:
    """A program with raw names, and its raw command line as of its first sight; None for one not kept."""
    row = session.map("images").lookup(number.to_bytes(8, "little"))
    return None if row is None else process.decode(ProcessKey(0, 0, 0), row[0])


def forget_images(session: Session, keep: Iterable[int]) -> None:
    """Makes room in the images map: all but these go, and come back when they are seen again."""
    kept = set(keep)
    images = session.map("images")
    keys, _values = images.read()
    for number in keys.tolist():
        if number not in kept:
            images.delete(number)


def seed(session: Session, pid: int, number: int) -> None:
    """Makes a process that is older than the programs known, by the number of its program."""
    life = np.zeros(1, session.map("lives").spec.value)
    life["image"] = number
    session.map("lives").update(pid, life.tobytes(), only_new=True)


def settle(session: Session, pid: int, start_ns: int) -> bool:
    """Says that a living process was counted as started without exec; False where its end came first.

    In that case the kernel has counted it, or will: it marks the life as ending before it looks here.
    """
    settled = session.map("settled")
    settled.update(pid, start_ns)
    life = session.map("lives").lookup(pid)
    if life is not None and life["forked"][0] != _FORKED_ENDS:
        return True
    return not settled.delete(pid)


def set_scripted(session: Session, heads: Iterable[bytes]) -> None:
    """Names the executables whose arguments tell what they run, by their first four bytes."""
    for head in heads:
        session.map("scripted").update(head.ljust(4, b"\0")[:4], 1)


def ask_for(session: Session, options: Iterable[Option]) -> None:
    """Has more than failures told one by one. For use before anything is attached."""
    for option in options:
        session.map("options").update(option, 1)


def records(session: Session, raw: Sequence[bytes]) -> list[LifeRecord]:
    """Records of the ring, decoded; those of another size are left out."""
    kind = session.map("life_events").spec.value
    rows = np.frombuffer(b"".join(r for r in raw if len(r) == kind.itemsize), kind)
    return [_record(row) for row in rows]


def _record(row: np.void) -> LifeRecord:
    return LifeRecord(
        int(row["time_ns"]),
        int(row["start_ns"]),
        int(row["image"]),
        ProcessKey(int(row["tgid"]), int(row["start"]), 0),
        int(row["parent"]),
        process.text(row["parent_comm"]),
        Turn(int(row["kind"])),
        int(row["code"]),
        bool(row["forked"]),
        process.text(row["comm"]),
        process.text(row["exe"]),
        bytes(row["args"].tobytes())[: int(row["args_len"])],
    )
