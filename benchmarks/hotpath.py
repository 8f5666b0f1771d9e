# SPDX-License-Identifier: Apache-2.0
"""What Kernob costs the processes it watches.

Run as `python -m benchmarks.hotpath`. Two tables: time in Kernob's programs by the kernel's own account,
per hook and per operation; then wall and CPU time of the same work with and without them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from benchmarks import cases
from benchmarks.attached import EMPTY, UNTYPED, Sample, kernob, rounds, run_ns, runs_each
from benchmarks.cases import Case
from benchmarks.table import median, progress, show, spread
from benchmarks.workload import Result, Workloads
from kernob.errors import KernobError

_HOOKS = ("send", "recv", "space", "set", "destroy")
_ROUNDS = 5
_PAIRS = 9

_IN_BPF = (cases.ROUND_TRIP, cases.SHARED, cases.UDP, cases.UNIX, cases.CONNECTION, cases.CONNECTIONS)
_TIMED = (cases.ROUND_TRIP, cases.CONNECTION, cases.BULK, cases.UDP, cases.UNIX, cases.GETPPID, cases.PIPE)


def _row(case: str, who: str, found: Sequence[Sample]) -> list[str]:
    each_ns = []
    for hook in _HOOKS:
        values = run_ns(found, hook)
        each_ns.append(spread(values) if values else "-")
    return [case, who, *each_ns, runs_each(found), spread([each.each_us for each in found], 2)]


def in_bpf(workloads: Workloads) -> None:
    """Prints the time in programs."""
    contenders: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
        "Kernob, tp_btf": kernob,
        "Kernob, raw_tp": lambda: kernob(kinds_off=UNTYPED),
    }
    rows = []
    for case in _IN_BPF:
        progress(case.name)
        for who, found in rounds(contenders, case.on(workloads), _ROUNDS).items():
            rows.append(_row(case.name, f"{who} (gross)" if who == EMPTY else who, found))
    show(
        "In BPF",
        ("work", "programs", "send", "recv", "space_adjust", "set_state", "destroy", "runs each", "us each"),
        rows,
        "Kernel's own run time; for Kernob without the cost of counting, which is what the empty programs "
        "took on the same hooks in the same round. By hook: ns a run. Median (middle half). 'each': a round "
        "trip or connection, both ends on this host. A receive is one run of recv and one of space_adjust "
        "where received TCP is followed by copied_seq.",
    )


def _timed_round(workloads: Workloads, chosen: Sequence[Case], attached: bool) -> list[Result]:
    with kernob(stats=False) if attached else contextlib.nullcontext():
        return [case.run(workloads) for case in chosen]


def _compared(arms: Sequence[Sequence[Result]], figure: str) -> list[str]:
    """Median without an agent, the difference of two such runs, and the difference an agent makes."""
    none, watched, again = ([float(getattr(result, figure)) for result in arm] for arm in arms)
    noise = [second - first for first, second in zip(none, again, strict=True)]
    cost = [with_ - (a + b) / 2 for a, with_, b in zip(none, watched, again, strict=True)]
    return [f"{median(none):.0f}", spread(noise), spread(cost)]


def timed(workloads: Workloads) -> None:
    """Prints wall and CPU time with and without the programs."""
    none, again, watched = [], [], []
    for i in range(_PAIRS):
        progress(f"pair {i + 1} of {_PAIRS}")
        none.append(_timed_round(workloads, _TIMED, attached=False))
        watched.append(_timed_round(workloads, _TIMED, attached=True))
        again.append(_timed_round(workloads, _TIMED, attached=False))
    rows = []
    for i, case in enumerate(_TIMED):
        arms = [[results[i] for results in arm] for arm in (none, watched, again)]
        rows.append([case.name, *_compared(arms, "wall_each_ns"), *_compared(arms, "cpu_each_ns")])
    show(
        "Wall and CPU time, ns an operation",
        ("work", "wall, none", "none - none", "Kernob - none", "CPU, none", "none - none", "Kernob - none"),
        rows,
        f"{_PAIRS} rounds of: none, Kernob, none. Medians of the differences within a round (middle half); "
        "what 'none - none' shows is noise. CPU: user and system time of all processes of the workload.",
    )


def main() -> None:
    """Runs both."""
    with Workloads() as workloads:
        in_bpf(workloads)
        timed(workloads)


if __name__ == "__main__":
    try:
        main()
    except KernobError as error:
        sys.exit(f"benchmarks: {error}")
