# SPDX-License-Identifier: Apache-2.0
"""Starts and exits of processes as series, by service and executable.

In: a tick's turns (struct turn_key of bpf/types.h with their counts) and who names a program by its number.
Out: series of kernob.process.starts, .exits and .oom_kills, and totals for a screen. Called by
`features.lifecycle`, in the tick thread. Cost follows change: what had no turn costs nothing.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernob.model import Attributes, MetricSpec
from kernob.state.capped import CappedCounters
from kernob.state.destinations import NOBODY, OTHER
from kernob.state.endings import ending_of
from kernob.state.series import SeriesStore

EXEC, FORK, EXIT = range(3)
_PROGRAMS_MOST = 6_000


@dataclass(frozen=True, slots=True)
class Program:
    """What a number of the kernel side stands for; `name`: what it is called outside units, containers."""

    executable: str
    service: str
    name: str

    @property
    def attributes(self) -> Attributes:
        """As they stand on series."""
        return (("process.executable.name", self.executable), ("kernob.service", self.service))

    @property
    def other(self) -> Attributes:
        """Of the series that its service folds into."""
        return (*NOBODY, ("kernob.service", self.service))


NOBODYS = Program(OTHER, OTHER, OTHER)
"""Stands for programs that the kernel side had no room to name."""


class Programs:
    """Names programs by their numbers, each once. `find` looks one up that is new; None: nobody knows it."""

    def __init__(self, find: Callable[[int], Program | None]) -> None:
        self._find = find
        self._known: dict[int, Program] = {}

    def __len__(self) -> int:
        return len(self._known)

    def of(self, number: int) -> Program:
        """The program; `NOBODYS` for one whose name was not kept."""
        program = self._known.get(number)
        if program is None:
            program = (self._find(number) if number else None) or NOBODYS
            self._known[number] = program
        return program

    def add(self, number: int, program: Program) -> None:
        """Makes one known."""
        self._known[number] = program

    def crowded(self) -> bool:
        """Whether it is time to forget those that have not been seen for long."""
        return len(self._known) > _PROGRAMS_MOST

    def keep(self, numbers: Iterable[int]) -> None:
        """Forgets all others."""
        kept = set(numbers)
        self._known = {number: program for number, program in self._known.items() if number in kept}


@dataclass(frozen=True, slots=True)
class ProgramTurns:
    """What one program did since the agent started; `codes`: how often it ended with which code."""

    program: Program
    starts: int
    exits: int
    codes: Mapping[int, int]


class LifecycleState:
    """See the module. `specs` are STARTS, EXITS, OOM_KILLS of the probe, `cap` the series each may have."""

    def __init__(
        self,
        store: SeriesStore,
        specs: tuple[MetricSpec, MetricSpec, MetricSpec],
        cap: int,
        programs: Programs,
    ) -> None:
        self._programs = programs
        self._starts, self._exits, self._ooms = (CappedCounters(store.block(s), cap) for s in specs)
        self._counts: OrderedDict[Program, Counter[tuple[int, int]]] = OrderedDict()

    @property
    def folded(self) -> int:
        """How often a series was folded into `~other` for the cap (cumulative)."""
        return self._starts.folded + self._exits.folded + self._ooms.folded

    def update(self, turns: NDArray[Any], counts: NDArray[Any], since_unix_ns: int, now_s: float) -> None:
        """Adds a tick's turns; new series start at `since_unix_ns`. `now_s` is monotonic."""
        growth: dict[CappedCounters, dict[int, int]] = {}

        def add(metric: CappedCounters, what: Attributes, program: Program, count: int) -> None:
            slot = metric.slot((*program.attributes, *what), (*program.other, *what), since_unix_ns)
            mine = growth.setdefault(metric, {})
            mine[slot] = mine.get(slot, 0) + count

        for (number, kind, code), count in zip(turns.tolist(), counts.tolist(), strict=True):
            program = self._programs.of(number)
            self._note(program, kind, code, count)
            if kind != EXIT:
                add(self._starts, (), program, count)
                continue
            add(self._exits, _how(code), program, count)
            if ending_of(code).out_of_memory:
                add(self._ooms, (), program, count)
        for metric, by_slot in growth.items():
            metric.add(np.array(list(by_slot), np.int64), np.array(list(by_slot.values()), np.int64))
            metric.rest(by_slot, now_s)
        for metric in (self._starts, self._exits, self._ooms):
            metric.sweep(now_s)

    def _note(self, program: Program, kind: int, code: int, count: int) -> None:
        """For screens; where there are too many programs, the one that did nothing for longest goes."""
        self._counts.setdefault(program, Counter())[kind, code] += count
        self._counts.move_to_end(program)
        if len(self._counts) > _PROGRAMS_MOST:
            self._counts.popitem(last=False)

    def starts(self, settled: Iterable[int], since_unix_ns: int, now_s: float) -> None:
        """Counts processes as started that have lived a second without exec, by their programs' numbers."""
        numbers = Counter(settled)
        if numbers:
            turns = np.array(
                [(n, FORK, 0) for n in numbers], [("image", "u8"), ("kind", "u4"), ("code", "u4")]
            )
            self.update(turns, np.array(list(numbers.values())), since_unix_ns, now_s)

    def programs(self) -> list[ProgramTurns]:
        """What each program did, busiest first."""
        found = []
        for program, counts in self._counts.items():
            starts = sum(n for (kind, _), n in counts.items() if kind != EXIT)
            codes = {code: n for (kind, code), n in counts.items() if kind == EXIT}
            found.append(ProgramTurns(program, starts, sum(codes.values()), codes))
        return sorted(found, key=lambda each: -(each.starts + each.exits))


def _how(code: int) -> Attributes:
    """The attributes that say how a process ended: an exit code, or the signal that killed it."""
    ending = ending_of(code)
    if ending.signal:
        return (("kernob.exit.signal", ending.signal),)
    return (("process.exit.code", ending.code),)
