# SPDX-License-Identifier: Apache-2.0
"""The workloads of hotpath, mapsize and shapes: what each is called, and how long one sample of it is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.workload import CPU, Result, Workloads

MANY_DESTINATIONS = 4096
"""More than the connections of a sample: each goes to an address that no flow is known for."""
# each run of tcp_connect gets addresses of its own (see its SALT)
_salt = itertools.count(0, MANY_DESTINATIONS)


@dataclass(frozen=True, slots=True)
class Case:
    """One workload: `name` for tables, how to run one sample."""

    name: str
    run: Callable[[Workloads], Result]

    def on(self, workloads: Workloads) -> Callable[[], Result]:
        """What runs one sample."""
        return partial(self.run, workloads)


def pinned(program: str, count: int) -> Callable[[Workloads], Result]:
    """A workload whose arguments are a count and one or two CPUs."""
    return lambda workloads: workloads.run(program, count, CPU, CPU)


def connections(count: int, destinations: int) -> Callable[[Workloads], Result]:
    """Short connections, in turn to so many addresses."""
    return lambda workloads: workloads.run("tcp_connect", count, destinations, next(_salt), CPU, CPU)


ROUND_TRIP = Case("TCP, 1-byte round trip", pinned("tcp_rr", 20000))
SHARED = Case("the same, sockets inherited by fork", pinned("tcp_shared", 20000))
UDP = Case("UDP, 1-byte round trip", pinned("udp_rr", 20000))
UNIX = Case("UNIX socket, 1-byte round trip", pinned("unix_rr", 20000))
CONNECTION = Case("short connection", connections(3000, 1))
CONNECTIONS = Case("short connection, new destination", connections(3000, MANY_DESTINATIONS))
MANY_SOCKETS = Case(
    "1 byte one way, 10,000 sockets in turn", lambda workloads: workloads.run("tcp_many", 100000, 5000, CPU)
)
BULK = Case("TCP, 64 KiB send", pinned("tcp_bulk", 10000))
GETPPID = Case("getppid", pinned("getppid", 500000))
PIPE = Case("1-byte pipe write + read", pinned("pipe", 200000))
