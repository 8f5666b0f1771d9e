# SPDX-License-Identifier: Apache-2.0
"""Programs under measurement: Kernob's own, empty ones on the same hooks, and what a run of them took.

In: strategy kinds to leave out, map capacities. Out: sessions to attach, run times an operation.
Called by every benchmark that attaches programs.

The kernel's own account (BPF_ENABLE_STATS) reads a clock before and after each run, which it charges to
the program: some 55 ns. In every round an empty program (two instructions) is measured on the same hooks
first, and what it took is deducted from the others.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol

from benchmarks.table import median
from benchmarks.workload import Result
from kernob.config import load_settings
from kernob.kernel import attach, syscall
from kernob.kernel.attach import Hook, Link, Loader
from kernob.kernel.btf import Btf
from kernob.kernel.compiler import CompiledObject, ProgramCode
from kernob.kernel.programs import RunStats
from kernob.kernel.session import Session, check_permission
from kernob.pipeline import kernel_options
from kernob.probes import PROBES
from kernob.probes.probe import Probe

RETURN_0 = bytes.fromhex("b7000000000000009500000000000000")  # r0 = 0; exit
# a program on packets that returns 0 drops them all
RETURN_1 = bytes.fromhex("b7000000010000009500000000000000")
_STATS_RUN_TIME = 0
# samples with this much more runs an operation than the least saw other traffic, too
_FOREIGN = 1.02

EMPTY = "empty programs"
TYPED: frozenset[str] = frozenset()
UNTYPED = frozenset({"tp_btf"})


class Attached(Protocol):
    """What both kinds of session offer."""

    def run_stats(self) -> dict[tuple[str, str], RunStats]:
        """(probe, program) -> the kernel's account."""


def kernob(
    kinds_off: frozenset[str] = TYPED,
    capacities: Mapping[str, int] | None = None,
    stats: bool = True,
    probes: Sequence[Probe] = PROBES,
) -> Session:
    """Kernob's programs as the agent loads them with default settings, but for what is given."""
    chosen = kernel_options(load_settings({}))
    sources = [source for probe in probes for source in probe.sources]
    hooks = [hook for probe in probes for hook in probe.hooks]
    options = replace(
        chosen,
        capacities={**chosen.capacities, **(capacities or {})},
        kinds_off=kinds_off,
        bpf_stats=stats,
    )
    return Session(sources, hooks, options)


class Empty:
    """Programs that return at once, on the hooks that Kernob would take."""

    def __init__(
        self, kinds_off: frozenset[str] = TYPED, probes: Sequence[Probe] = PROBES, stats: bool = True
    ) -> None:
        self._kinds_off = kinds_off
        self._probes = probes
        self._stats = stats
        self._links: list[tuple[Hook, Link]] = []
        self._stats_fd = -1

    def __enter__(self) -> Empty:
        check_permission()
        hooks = [hook for probe in self._probes for hook in probe.hooks]
        every = {a for hook in hooks for c in hook.candidates for a in c.attachments}
        codes = {a.program: RETURN_1 if a.kind == "cgroup_skb" else RETURN_0 for a in every}
        compiled = CompiledObject({}, {name: ProgramCode(name, code, ()) for name, code in codes.items()})
        loader = Loader(compiled, {}, Btf.load())
        if self._stats:
            self._stats_fd = syscall.bpf(syscall.ENABLE_STATS, struct.pack("=I", _STATS_RUN_TIME))
        for hook in hooks:
            links, _report = attach.attach(hook, loader, self._kinds_off)
            self._links += [(hook, link) for link in links]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _hook, link in reversed(self._links):
            link.close()
        self._links.clear()
        if self._stats_fd >= 0:
            os.close(self._stats_fd)

    def run_stats(self) -> dict[tuple[str, str], RunStats]:
        """As Session.run_stats."""
        return {(hook.probe, link.program.name): link.program.stats() for hook, link in self._links}


@dataclass(frozen=True, slots=True)
class Sample:
    """One workload run: operations; per hook, runs and gross nanoseconds; per hook, the cost of counting."""

    operations: int
    hooks: Mapping[str, tuple[int, float]]
    counting_ns: Mapping[str, float]

    @property
    def runs_each(self) -> float:
        """Program runs an operation."""
        return sum(runs for runs, _ in self.hooks.values()) / self.operations

    def net_ns(self, hook: str) -> float:
        """Nanoseconds in one hook's programs, without the counting."""
        runs, gross_ns = self.hooks.get(hook, (0, 0.0))
        return gross_ns - runs * self.counting_ns.get(hook, 0.0)

    def run_ns(self, hook: str) -> float:
        """Net nanoseconds a run; nan for a hook that hardly ran."""
        runs = self.hooks.get(hook, (0, 0.0))[0]
        return self.net_ns(hook) / runs if runs > self.operations / 2 else float("nan")

    @property
    def each_us(self) -> float:
        """Net microseconds in BPF an operation."""
        return sum(map(self.net_ns, self.hooks)) / self.operations / 1e3


def _sample(session: Attached, work: Callable[[], Result], counting_ns: Mapping[str, float]) -> Sample:
    """Runs the workload once and reads what the programs took meanwhile."""
    if isinstance(session, Session):
        session.swapped("flows").drain()  # as a tick of the agent would have
    before = session.run_stats()
    result = work()
    hooks: dict[str, tuple[int, float]] = {}
    for key, after in session.run_stats().items():
        # tp_btf__recv_by_seq and raw_tp__recv stand on one hook
        name = key[1].partition("__")[2].partition("_")[0]
        runs, gross_ns = hooks.get(name, (0, 0.0))
        runs += after.runs - before[key].runs
        hooks[name] = (runs, gross_ns + after.run_time_ns - before[key].run_time_ns)
    return Sample(result.operations, hooks, counting_ns)


def _counting_ns(found: Sequence[Sample]) -> dict[str, float]:
    names = found[0].hooks
    return {
        name: median([each.hooks[name][1] / max(1, each.hooks[name][0]) for each in found]) for name in names
    }


def rounds(
    contenders: Mapping[str, Callable[[], AbstractContextManager[Attached]]],
    work: Callable[[], Result],
    count: int,
    repeats: int = 3,
    probes: Sequence[Probe] = PROBES,
) -> dict[str, list[Sample]]:
    """A B C A B C...: each round measures the empty programs, then every contender, `repeats` times.

    Returns samples by contender, and under EMPTY the empty programs' own, from which nothing is
    deducted. Samples in which other traffic of the machine ran through the hooks are left out.
    """
    found: dict[str, list[Sample]] = {EMPTY: [], **{name: [] for name in contenders}}
    for _ in range(count):
        with Empty(probes=probes) as session:
            idle = [_sample(session, work, {}) for _ in range(repeats)]
        found[EMPTY] += idle
        counting_ns = _counting_ns(idle)
        for name, contender in contenders.items():
            with contender() as attached:
                found[name] += [_sample(attached, work, counting_ns) for _ in range(repeats)]
    return {name: _undisturbed(each) for name, each in found.items()}


def _undisturbed(found: Sequence[Sample]) -> list[Sample]:
    least = min(each.runs_each for each in found)
    return [each for each in found if each.runs_each <= least * _FOREIGN]


def run_ns(found: Sequence[Sample], hook: str) -> list[float]:
    """Net nanoseconds a run on a hook, by sample."""
    return [value for each in found if not math.isnan(value := each.run_ns(hook))]


def runs_each(found: Sequence[Sample]) -> str:
    """Program runs an operation, for a table."""
    return f"{median([each.runs_each for each in found]):.1f}"
