# SPDX-License-Identifier: Apache-2.0
"""What the capacity of the maps costs: a hash map's bucket array must fit into the caches.

Run as `python -m benchmarks.mapsize`. One table: time in BPF of a round trip and of a short connection for
several capacities of socks and flows, with entries allocated as they come and allocated ahead.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

from benchmarks import cases
from benchmarks.attached import EMPTY, kernob, rounds, run_ns
from benchmarks.table import progress, show, spread
from benchmarks.workload import Workloads
from kernob.errors import KernobError
from kernob.kernel.session import Session

_CAPACITIES = (16384, 32768, 65536, 131072)
_ROUNDS = 4
_CASES = (cases.ROUND_TRIP, cases.MANY_SOCKETS, cases.CONNECTION, cases.CONNECTIONS)


@contextmanager
def _sized(capacity: int, ahead: bool) -> Iterator[Session]:
    """Kernob with these capacities; `ahead`: entries are allocated when the map is made."""
    with (
        mock.patch("kernob.kernel.maps._memory_on_demand", return_value=not ahead),
        kernob(capacities={"socks": capacity, "flows": capacity, "procs": 16384}) as session,
    ):
        yield session


def main() -> None:
    """Prints the table."""
    kinds = [(capacity, False) for capacity in _CAPACITIES] + [
        (capacity, True) for capacity in _CAPACITIES[::2]
    ]
    memory = {}
    for kind in kinds:
        with _sized(*kind) as session:
            memory[kind] = session.memory_bytes() / 2**20
    columns: dict[tuple[int, bool], list[str]] = {kind: [] for kind in kinds}
    with Workloads() as workloads:
        for case in _CASES:
            progress(case.name)
            contenders = {str(kind): partial(_sized, *kind) for kind in kinds}
            found = rounds(contenders, case.on(workloads), _ROUNDS)
            del found[EMPTY]
            for kind in kinds:
                columns[kind].append(spread([each.each_us for each in found[str(kind)]], 2))
                if case is cases.CONNECTION:
                    columns[kind].append(spread(run_ns(found[str(kind)], "destroy")))
    show(
        "Capacity of socks and flows (each)",
        (
            "entries",
            "allocated",
            "MiB",
            "round trip",
            "10k sockets",
            "connection",
            "destroy, ns",
            "new dest.",
        ),
        [
            [str(kind[0]), "ahead" if kind[1] else "as they come", f"{memory[kind]:.1f}", *columns[kind]]
            for kind in kinds
        ],
        "us in BPF an operation, net of counting, median (middle half). 10k sockets: one byte sent and "
        "received on each in turn (their opening included). MiB: all of Kernob's maps, empty.",
    )


if __name__ == "__main__":
    try:
        main()
    except KernobError as error:
        sys.exit(f"benchmarks: {error}")
