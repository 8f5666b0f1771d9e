# SPDX-License-Identifier: Apache-2.0
"""Events that the kernel had and ran no program for: its own counters of tracepoints less a program's.

A kernel that we test on runs no program at all while some threads of its first process are current, and does
not count that as a miss: what a softirq does in the middle of one of them (a FIN, a timer, the end of a
socket) is nobody's. perf's counters of the same tracepoints go on counting. Used by replay.py.
"""

from __future__ import annotations

import os
import struct
from collections import Counter

from kernob.errors import KernelError
from kernob.kernel import compiler, syscall, tracefs
from kernob.kernel.attach import Link, Loader, RawTracepoint
from kernob.kernel.maps import BpfMap

TRACEPOINTS = (
    "sock/inet_sock_set_state",
    "tcp/tcp_destroy_sock",
    "tcp/tcp_retransmit_skb",
    "tcp/tcp_retransmit_synack",
    "tcp/tcp_send_reset",
)
_COUNT = """
BPF_TABLE("array", u32, u64, runs, 8);

static inline __attribute__((always_inline)) int count(u32 number)
{
    u64 *run = runs.lookup(&number);

    if (run)
        __sync_fetch_and_add(run, 1);
    return 0;
}
"""
_PERF_TYPE_TRACEPOINT, _ATTR_BYTES = 2, 112
_ATTEMPTS = 100


def _counter(event_id: int, cpu: int) -> int:
    """A perf event that only counts (struct perf_event_attr: type, size, config)."""
    attr = struct.pack("=IIQ", _PERF_TYPE_TRACEPOINT, _ATTR_BYTES, event_id)
    return syscall.perf_event_open(attr.ljust(_ATTR_BYTES, b"\0"), cpu)


class Unrun:
    """Counts for the whole machine from now until `close`. Raises KernelError or OSError without perf."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self._counters: list[list[int]] = []
        self._maps: dict[str, BpfMap] = {}
        try:
            self._open()
        except (KernelError, OSError):
            self.close()
            raise

    def _open(self) -> None:
        ids = [tracefs.event_id(tracepoint) for tracepoint in TRACEPOINTS]
        tracefs.release()  # what is counted needs it no more
        functions = [f"event{number}" for number in range(len(TRACEPOINTS))]
        text = _COUNT + "".join(
            f"int {name}(u64 *ctx)\n{{\n    return count({number});\n}}\n"
            for number, name in enumerate(functions)
        )
        compiled = compiler.compile_text(text, tuple(functions), {}, None, compiler.SOURCES / "include")
        self._maps = {name: BpfMap(spec) for name, spec in compiled.maps.items()}
        loader = Loader(compiled, self._maps, None)
        for name, tracepoint, event_id in zip(functions, TRACEPOINTS, ids, strict=True):
            link = RawTracepoint(tracepoint.split("/")[1], name).attach(loader)
            assert link  # it raises where there is none
            self.links.append(link)
            self._counters.append([_counter(event_id, cpu) for cpu in sorted(os.sched_getaffinity(0))])
        self._first = [seen - run for seen, run in zip(self._seen(), self._runs(), strict=True)]

    def _seen(self) -> list[int]:
        return [sum(int.from_bytes(os.read(fd, 8), "little") for fd in of_one) for of_one in self._counters]

    def _runs(self) -> list[int]:
        _keys, values = self._maps["runs"].read()
        return [int(value) for value in values[: len(TRACEPOINTS)]]

    def __call__(self) -> Counter[str]:
        """By tracepoint, how many events no program was run for so far."""
        for _ in range(_ATTEMPTS):  # nothing may happen between the readings of the two
            seen, runs = self._seen(), self._runs()
            if seen == self._seen():
                break
        lacking = [s - r - f for s, r, f in zip(seen, runs, self._first, strict=True)]
        return Counter({name: count for name, count in zip(TRACEPOINTS, lacking, strict=True) if count > 0})

    def close(self) -> None:
        """Takes the programs and counters away."""
        for link in self.links:
            link.close()
        for fd in [fd for of_one in self._counters for fd in of_one]:
            os.close(fd)
        for each in self._maps.values():
            each.close()
        self.links, self._counters, self._maps = [], [], {}

    def __enter__(self) -> Unrun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
