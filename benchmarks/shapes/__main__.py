# SPDX-License-Identifier: Apache-2.0
"""Two tables: time in BPF for each shape, and what reading its maps costs user space a tick.

The chosen shape keeps bytes with the socket, for the first process that used it, and folds them into a
flow when the socket closes. Its rows here count received bytes by calls, like the alternatives', so that
only the shape differs; the last row is what the agent runs on this kernel.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import cases
from benchmarks.attached import EMPTY, kernob, rounds, run_ns
from benchmarks.table import median, progress, show, spread
from benchmarks.workload import Workloads
from kernob.config import load_settings
from kernob.errors import KernobError
from kernob.kernel.attach import Hook, TypedTracepoint, all_of, first_of
from kernob.kernel.session import Session
from kernob.pipeline import kernel_options

_ROUNDS = 4
_READS = 3
_FLOWS = 100_000
_CAPACITY = 131072
_CASES = (cases.ROUND_TRIP, cases.SHARED, cases.CONNECTION, cases.CONNECTIONS)


@dataclass(frozen=True, slots=True)
class Shape:
    """`map_name`: what is read each tick beside the flows, if anything."""

    name: str
    open: Callable[[], Session]
    map_name: str = ""


def _hook(target: str, program: str) -> Hook:
    return first_of("shape", target, all_of(TypedTracepoint(target, program)))


def _session(source: str, prefix: str, *more: Hook) -> Session:
    hooks = (
        *more,
        _hook("sock_recv_length", f"{prefix}__recv"),
        _hook("sock_send_length", f"{prefix}__send"),
    )
    sources = ["traffic.bpf.c", *([str(Path(__file__).with_name(source))] if source else [])]
    capacities = {"socks": _CAPACITY, "flows": _CAPACITY, "procs": 16384}
    options = replace(kernel_options(load_settings({})), capacities=capacities, bpf_stats=True)
    return Session(sources, hooks, options)


def _state(prefix: str) -> Hook:
    return _hook("inet_sock_set_state", f"{prefix}__state")


def _chosen() -> Session:
    return _session(
        "",
        "tp_btf",
        _hook("tcp_destroy_sock", "tp_btf__destroy"),
        _hook("inet_sock_set_state", "tp_btf__set_state"),
    )


def _as_run() -> Session:
    return kernob(capacities={"socks": _CAPACITY, "flows": _CAPACITY, "procs": 16384})


_SHAPES = (
    Shape("per process (no destination)", lambda: _session("per_pid.bpf.c", "pid"), "by_pid"),
    Shape("per socket and process", lambda: _session("sock_pid.bpf.c", "use", _state("use")), "uses"),
    Shape("per flow at each event", lambda: _session("flow_each.bpf.c", "flow", _state("flow"))),
    Shape("per socket, folded at close (chosen)", _chosen, "socks"),
    Shape("chosen, as the agent runs it here", _as_run, "socks"),
)


@contextmanager
def _attached(shape: Shape) -> Iterator[Session]:
    with shape.open() as session:
        session.require_essential()
        yield session


def in_bpf(workloads: Workloads) -> None:
    """Prints time in programs."""
    rows: dict[str, list[str]] = {shape.name: [] for shape in _SHAPES}
    contenders: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        shape.name: partial(_attached, shape) for shape in _SHAPES
    }
    for case in _CASES:
        progress(case.name)
        found = rounds(contenders, case.on(workloads), _ROUNDS)
        del found[EMPTY]
        for name, samples in found.items():
            if case in (cases.ROUND_TRIP, cases.SHARED):
                receive = [
                    sum(each.net_ns(hook) for hook in ("recv", "space")) / each.hooks["recv"][0]
                    for each in samples
                ]
                rows[name] += [f"{median(run_ns(samples, 'send')):.0f} / {median(receive):.0f}"]
            rows[name].append(spread([each.each_us for each in samples], 2))
    show(
        "Time in BPF by shape",
        (
            "bytes are kept",
            "send / receive, ns",
            "round trip, us",
            "inherited: send / receive, ns",
            "round trip, us",
            "connection, us",
            "to a new destination, us",
        ),
        [[name, *cells] for name, cells in rows.items()],
        "Net of counting; median (middle half).",
    )


def _read(session: Session, shape: Shape) -> tuple[float, int, int]:
    """One tick's reading: milliseconds of CPU, rows of the shape's own map, rows of flows."""
    started = time.thread_time()
    own = len(session.map(shape.map_name).read()[0]) if shape.map_name else 0
    flows = len(session.swapped("flows").drain()[0])
    return (time.thread_time() - started) * 1e3, own, flows


def _closed(workloads: Workloads, session: Session, shape: Shape) -> list[str]:
    """100k flows of connections that came and went within the tick."""
    times, own, flows = [], 0, 0
    for _ in range(_READS):
        cases.connections(_FLOWS // 2, _FLOWS)(workloads)
        spent, own, flows = _read(session, shape)
        times.append(spent)
    return [spread(times, 1), f"{own} + {flows}"]


def _idle(workloads: Workloads, session: Session, shape: Shape) -> list[str]:
    """100k live sockets, of which none moved a byte since the last tick."""
    with workloads.holding(_FLOWS // 2, 0):
        _read(session, shape)
        read = [_read(session, shape) for _ in range(_READS)]
        memory = session.memory_bytes() / 2**20
    return [spread([each[0] for each in read], 1), f"{read[-1][1]} + {read[-1][2]}", f"{memory:.1f}"]


def per_tick(workloads: Workloads, shapes: Sequence[Shape]) -> None:
    """Prints what user space pays."""
    rows = []
    for shape in shapes:
        progress(f"reading: {shape.name}")
        with _attached(shape) as session:
            rows.append([shape.name, *_closed(workloads, session, shape), *_idle(workloads, session, shape)])
    show(
        "Reading the maps once",
        (
            "bytes are kept",
            "100k flows, closed: ms",
            "rows (own + flows)",
            "100k idle sockets: ms",
            "rows (own + flows)",
            "MiB of maps then",
        ),
        rows,
        "CPU time of the reading thread, median (middle half). 50,000 connections, both ends on this host.",
    )


def main() -> None:
    """Prints both tables."""
    with Workloads() as workloads:
        in_bpf(workloads)
        per_tick(workloads, _SHAPES)


if __name__ == "__main__":
    try:
        main()
    except KernobError as error:
        sys.exit(f"benchmarks: {error}")
