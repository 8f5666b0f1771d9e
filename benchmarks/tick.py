# SPDX-License-Identifier: Apache-2.0
"""What one tick costs the agent at 100,000 flows: folding, series, the batch to export, rows for a screen.

Run as `python -m benchmarks.tick`. The rows are made up, in the form the kernel side has; no map is read
(benchmarks.shapes tells what that costs).
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.attached import kernob
from benchmarks.table import show
from kernob.config import load_settings
from kernob.errors import KernobError
from kernob.kernel.session import settle_memory
from kernob.model import ProcessInfo, ProcessKey
from kernob.probes import traffic
from kernob.state.series import SeriesStore
from kernob.state.traffic import Caps, TrafficState

_FLOWS = 100_000
_PROCESSES = 1000


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _rows() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """No closed bytes, and one live socket for each flow: 100 destinations of each process."""
    with kernob(stats=False) as session:
        socket_type = session.map("socks").spec.value
        inner = session.swapped("flows").inner.spec
    live = np.zeros(_FLOWS, socket_type)
    number = np.arange(_FLOWS)
    live["key"]["tgid"] = 1000 + number % _PROCESSES
    live["key"]["port"] = 443
    live["key"]["family"] = 2
    live["key"]["role"] = 1
    live["key"]["proto"] = 6
    live["key"]["peer"][:, 0] = 10
    live["key"]["peer"][:, 1] = number >> 16
    live["key"]["peer"][:, 2] = (number >> 8) & 0xFF
    live["key"]["peer"][:, 3] = number & 0xFF
    live["tx"] = live["rx"] = 100
    return np.zeros(0, inner.key), np.zeros(0, inner.value), live


def _resolve(key: ProcessKey) -> ProcessInfo:
    name = f"process{key.pid % 50}"
    return ProcessInfo(key=key, executable=name, comm=name, cgroup=(), netns=1, service=name)


def main() -> None:
    """Prints the table."""
    closed_keys, closed_values, live = _rows()
    settings = load_settings({})
    caps = Caps(settings.max_process_series, settings.max_flow_series, settings.max_process_flow_series)
    store = SeriesStore(settings.resend_interval_s)
    settle_memory()
    before_mib = _rss_mib()
    state = TrafficState(store, traffic.SPECS, caps, _resolve)  # type: ignore[arg-type,unused-ignore]
    rows: list[list[str]] = []

    def measure(name: str, closed: tuple[NDArray[Any], NDArray[Any]], sockets: NDArray[Any]) -> None:
        """Adds the row of one load: its steps' times in ms."""

        def rest() -> None:
            state.roll(10.0)
            state.known.sweep(time.monotonic(), lambda _process: None)

        steps: tuple[Callable[[], Any], ...] = (
            lambda: state.update((*closed, sockets), time.time_ns() - 10**10),
            rest,
            lambda: store.batch(time.time_ns()),
            state.rows,
        )
        spent = []
        for step in steps:
            started = time.process_time()
            result = step()
            spent.append(f"{(time.process_time() - started) * 1e3:.0f}")
            if step is steps[2]:
                store.acknowledge(result)
        rows.append([name, *spent, f"{_rss_mib() - before_mib:.0f}"])

    nothing = (closed_keys, closed_values)
    measure("100k flows appear", nothing, live)
    measure("nothing changes", nothing, live)
    live["tx"][:1000] += 100
    measure("1,000 of 100k grow", nothing, live)
    live["rx"] += 100
    measure("all grow", nothing, live)
    values = np.zeros(len(live), closed_values.dtype)
    values["tx"], values["rx"] = live["tx"], live["rx"]
    values["rx"] = live["rx"]
    measure("all close", (np.ascontiguousarray(live["key"]), values), live[:0])
    measure("nothing is left open", nothing, live[:0])
    show(
        "CPU of one tick at 100,000 flows, ms",
        ("tick", "fold + series", "window + sweep", "batch to export", "rows for a screen", "RSS added, MiB"),
        rows,
        f"{_PROCESSES} processes; default caps. One run each. Rows are made only while a screen watches.",
    )


if __name__ == "__main__":
    try:
        main()
    except KernobError as error:
        sys.exit(f"benchmarks: {error}")
