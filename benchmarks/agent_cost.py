# SPDX-License-Identifier: Apache-2.0
"""What the agent itself uses: memory, CPU, map memory, the time until there is data.

Run as `python -m benchmarks.agent_cost`. Agents run side by side, one for each way of exporting, and see
the same load. CPU does not contain the time in BPF (see hotpath), which is the watched processes' own.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.agents import AgentProcess, Usage, grpc_endpoint, http_endpoint
from benchmarks.table import progress, show, spread
from benchmarks.workload import Workloads
from kernob.errors import KernobError

_SETTLE_S = 25
_WINDOW_S = 60
_STARTS = 7


@dataclass(frozen=True, slots=True)
class _Load:
    """`connections` with both ends on this host; `period_ms` 0: idle."""

    name: str
    connections: int
    period_ms: int


_LOADS = (
    _Load("nothing", 0, 0),
    _Load("1,000 active flows", 500, 1000),
    _Load("10,000 active flows", 5000, 1000),
    _Load("10,000 idle connections", 10000, 0),
)


def _exports(stack: ExitStack) -> dict[str, dict[str, str]]:
    grpc, http = stack.enter_context(grpc_endpoint()), stack.enter_context(http_endpoint())
    common = {"OTEL_METRICS_EXPORTER": "otlp"}
    return {
        "no export": {},
        "OTLP/gRPC": common | {"OTEL_EXPORTER_OTLP_ENDPOINT": grpc, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        "OTLP/HTTP": common
        | {"OTEL_EXPORTER_OTLP_ENDPOINT": http, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
    }


def _row(load: str, export: str, before: Usage, after: Usage, map_mib: float) -> list[str]:
    per_minute_s = (after.cpu_s - before.cpu_s) / (after.at_s - before.at_s) * 60
    return [
        load,
        export,
        f"{after.rss_mib:.1f}",
        f"{after.peak_mib:.1f}",
        f"{per_minute_s:.2f}",
        f"{per_minute_s / 0.6:.2f}",
        f"{map_mib:.1f}",
    ]


def footprint(workloads: Workloads) -> None:
    """Prints memory and CPU under each load."""
    rows = []
    for load in _LOADS:
        progress(load.name)
        with ExitStack() as stack:
            agents: dict[str, AgentProcess] = {}
            for export, environment in _exports(stack).items():
                directory = workloads.directory / f"{load.connections}-{load.period_ms}-{len(agents)}"
                agents[export] = AgentProcess(directory, environment)
                stack.callback(agents[export].stop)
            for agent in agents.values():
                agent.wait_until("ready:")
            if load.connections:
                stack.enter_context(workloads.holding(load.connections, load.period_ms))
            time.sleep(_SETTLE_S)
            before = {export: agent.usage() for export, agent in agents.items()}
            time.sleep(_WINDOW_S)
            for export, agent in agents.items():
                rows.append(_row(load.name, export, before[export], agent.usage(), agent.map_mib()))
    show(
        "The agent, 10 s interval",
        ("load", "export", "RSS, MiB", "peak, MiB", "CPU, s/min", "% of a core", "maps, MiB"),
        rows,
        f"CPU over {_WINDOW_S} s, {_SETTLE_S} s after the load began. Active: each connection carries 100 "
        "bytes a second; it is two flows, as both ends are here. Idle connections are two sockets each.",
    )


def starts(workloads: Workloads) -> None:
    """Prints how long it takes until the agent is ready, and until its first data."""
    times: dict[str, list[list[float]]] = {"cold (compiles)": [], "warm (cached programs)": []}
    with workloads.holding(10, 50):
        for i in range(_STARTS):
            progress(f"start {i + 1} of {_STARTS}")
            for name, found in times.items():
                found.append(_start(workloads.directory / f"start-{i}", name))
    show(
        "Start and end",
        ("start", "ready, s", "first data, s", "own CPU till then, s", "SIGTERM to gone, s"),
        [
            [name, *(spread(list(column), 2) for column in zip(*found, strict=True))]
            for name, found in times.items()
        ],
        "From the start of the process; first data: bytes of a process in the OTLP file, at an interval of "
        "0.2 s. Files of the program itself are in the page cache in both cases.",
    )


def _start(directory: Path, name: str) -> list[float]:
    output = directory / f"{name.split(maxsplit=1)[0]}.jsonl"
    environment = {"KERNOB_CACHE_DIR": str(directory / "cache"), "KERNOB_SCRAPE_INTERVAL": "0.2"}
    agent = AgentProcess(directory, environment, "--otlp-file", str(output))
    ready_s = agent.wait_until("ready:")
    data_s = agent.wait_until("process.network.io", output)
    cpu_s = agent.usage().cpu_s
    return [ready_s, data_s, cpu_s, agent.stop()]


def main() -> None:
    """Prints both tables."""
    with Workloads() as workloads:
        starts(workloads)
        footprint(workloads)


if __name__ == "__main__":
    try:
        main()
    except KernobError as error:
        sys.exit(f"benchmarks: {error}")
