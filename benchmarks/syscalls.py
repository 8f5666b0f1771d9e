# SPDX-License-Identifier: Apache-2.0
"""What measuring system calls costs those who make them.

Run as `python -m benchmarks.syscalls`, with `--many` also for 40 watched calls. First the time in the
programs by the kernel's account, net of empty ones on the same hooks; then processor time a call without and
with them, for each way of attaching, beside empty programs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.attached import Empty
from benchmarks.table import median, progress, show, spread
from benchmarks.workload import CPU, Result, Workloads
from kernob.config import load_settings
from kernob.errors import KernobError
from kernob.kernel.programs import RunStats
from kernob.kernel.session import Session
from kernob.pipeline import kernel_options
from kernob.probes import PROBES, syscalls
from kernob.syscall_table import NEVER_RETURN, numbers

_ROUNDS = 9
_CALLS = 300_000
_MANY = 40

NONE, AGAIN = "nothing", "nothing, again"
WAYS = {
    "tracepoint": frozenset[str](),
    "tp_btf": frozenset({"tracepoint"}),
    "raw_tp": frozenset({"tracepoint", "tp_btf"}),
}
_CASES = {"getppid (not watched)": ("getppid", 1), "1-byte pipe write + read (both watched)": ("pipe", 2)}


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to have the machine while a workload runs."""

    name: str
    attached: Callable[[], contextlib.AbstractContextManager[object]]


def measuring(names: Sequence[str], off: frozenset[str], stats: bool = False) -> Session:
    """The programs of the probe, nothing else of Kernob."""
    chosen = kernel_options(load_settings({}))
    options = replace(chosen, kinds_off=off, bpf_stats=stats)
    sources = [source for probe in PROBES for source in probe.sources]
    return Session(
        sources, syscalls.watching(names).hooks, options, lambda session: syscalls.choose(session, names)
    )


def empty(names: Sequence[str], off: frozenset[str], stats: bool = False) -> Empty:
    """Programs that return at once, on the same hooks."""
    return Empty(off, (syscalls.watching(names),), stats)


def _arms(names: Sequence[str]) -> list[Arm]:
    arms = [Arm(NONE, contextlib.nullcontext)]
    for way, off in WAYS.items():
        arms.append(Arm(f"empty, {way}", partial(empty, names, off)))
        arms.append(Arm(f"Kernob, {way}", partial(measuring, names, off)))
    return [*arms, Arm(AGAIN, contextlib.nullcontext)]


def timed(workloads: Workloads, names: Sequence[str]) -> None:
    """Prints processor time a call, by way: medians of the differences to no programs in the same round."""
    arms = _arms(names)
    found: dict[tuple[str, str], list[float]] = {}
    for i in range(_ROUNDS):
        progress(f"{len(names)} calls watched: round {i + 1} of {_ROUNDS}")
        for arm in arms:
            with arm.attached():
                for case, (program, calls) in _CASES.items():
                    result: Result = workloads.run(program, _CALLS, CPU)
                    found.setdefault((arm.name, case), []).append(result.cpu_each_ns / calls)
    rows = []
    for arm in arms:
        cells = [arm.name]
        for case in _CASES:
            base, each = found[NONE, case], found[arm.name, case]
            cost = [b - a for a, b in zip(base, each, strict=True)]
            least = min(each) - min(base)
            cells += [f"{median(each):.0f}", "-" if arm.name == NONE else f"{spread(cost)}; {least:.0f}"]
        rows.append(cells)
    columns = [word for case in _CASES for word in (case, "difference")]
    show(
        f"{len(names)} calls watched: ns of processor time a call",
        ("programs", *columns),
        rows,
        f"{_ROUNDS} rounds of all arms, {_CALLS} operations each, one CPU. Differences to the first arm of "
        f"the same round: median (middle half); then of the least of all rounds. The last arm's is noise.",
    )


def in_bpf(workloads: Workloads, names: Sequence[str]) -> None:
    """Prints the kernel's own account of time in the programs, net of empty ones on the same hooks."""
    rows = []
    for way, off in WAYS.items():
        bare, own = [], []
        for i in range(_ROUNDS):
            progress(f"in BPF, {way}: round {i + 1} of {_ROUNDS}")
            with empty(names, off, stats=True) as idle:
                workloads.run("pipe", _CALLS, CPU)
                bare.append(_each(idle.run_stats().values()))
            with measuring(names, off, stats=True) as session:
                workloads.run("pipe", _CALLS, CPU)
                own.append(_each(session.run_stats().values()))
        net = [2 * (b - a) for a, b in zip(bare, own, strict=True)]
        rows.append([way, spread(bare), spread(own), spread(net), f"{2 * (min(own) - min(bare)):.0f}"])
    show(
        "In BPF, 1-byte pipe write + read",
        ("attached by", "empty, ns a run (gross)", "Kernob, ns a run (gross)", "net ns a call", "of least"),
        rows,
        "A call is two runs. The kernel's own run time includes about 55 ns of counting, which the empty "
        "programs show, too. Median (middle half); the last column is of the least of all rounds.",
    )


def _each(stats: Collection[RunStats]) -> float:
    return sum(each.run_time_ns for each in stats) / max(1, sum(each.runs for each in stats))


def main() -> None:
    """Runs all."""
    many = [name for name in numbers() if name not in {*NEVER_RETURN, "getppid"}][:_MANY]
    with Workloads() as workloads:
        in_bpf(workloads, syscalls.DEFAULT)
        timed(workloads, syscalls.DEFAULT)
        if "--many" in sys.argv:
            timed(workloads, many)


if __name__ == "__main__":
    try:
        main()
    except KernobError as error:
        sys.exit(f"benchmarks: {error}")
