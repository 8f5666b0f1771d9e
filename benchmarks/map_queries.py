# SPDX-License-Identifier: Apache-2.0
"""How long the service map's dashboard takes at 10,000 edges between 2,000 nodes.

    .venv/bin/python -m benchmarks.map_queries VICTORIA_METRICS [--hours 3] [--edges 10000]

VICTORIA_METRICS is the program (Debian: victoria-metrics); it may cache as much as the stack lets it. It is
fed with what the rules and an agent would have left in those hours: edges and nodes each 30 s, counters each
minute, a tenth of them moving, one in fifty failing. Then each query of the board runs, one after the other,
and all at the same time, as Grafana sends them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import requests

from benchmarks.fleet import of_itself
from benchmarks.table import median, progress, show
from compose.project import free_ports
from compose.victoria import Victoria
from grafana import check

OPTIONS = (
    "-memory.allowedBytes=256MiB",
    "-search.latencyOffset=1s",
    "-retentionPeriod=90d",
    "-loggerLevel=ERROR",
)
NODES, SERVICES, ROUNDS = 2_000, 500, 5
_RULE_S, _AGENT_S = 30, 60


def _series(edges: int, begin_s: int, end_s: int) -> Iterator[tuple[dict[str, str], list[int], list[int]]]:
    """Labels, values and Unix times in ms of everything that stands in the range."""
    ruled = [at * 1000 for at in range(begin_s, end_s, _RULE_S)]
    told = [at * 1000 for at in range(begin_s, end_s, _AGENT_S)]
    ones, still = [1] * len(ruled), [0] * len(told)
    names = [f"vm/service-{n}" if n < SERVICES else f"ip/198.18.{n >> 8}.{n & 255}" for n in range(NODES)]
    for name in names:
        yield {"__name__": "kernob:map:node", "id": name, "title": name, "subtitle": "vm"}, ones, ruled
    for number in range(edges):
        source = names[number % SERVICES]
        target = names[SERVICES + (number % SERVICES * 3 + number // SERVICES * 37) % (NODES - SERVICES)]
        of = {"host_name": "vm", "id": f"{source}|{target}|443"}
        ends = {"source": source, "target": target, "server_port": "443", "kernob_peer_class": "external"}
        more = {"metrics_id": of["id"], "kernob_service": source[3:], "server_address": target[3:]}
        yield {"__name__": "kernob:map:edge", **of, **ends, **more}, ones, ruled
        moving = [at * 7 * (number + 1) for at in range(len(told))] if number % 10 == 0 else still
        for metric, direction in (("io_bytes", "transmit"), ("io_bytes", "receive"), ("connections", "")):
            way = {"network_io_direction": direction} if direction else {}
            yield {"__name__": f"kernob_map_edge_{metric}_total", **of, **way}, moving, told
        failing = moving if number % 50 == 0 else still
        yield {"__name__": "kernob_map_edge_failures_total", **of}, failing, told


def _feed(url: str, edges: int, begin_s: int, end_s: int) -> None:
    def lines() -> Iterator[bytes]:
        for metric, values, timestamps in _series(edges, begin_s, end_s):
            yield json.dumps({"metric": metric, "values": values, "timestamps": timestamps}).encode() + b"\n"

    requests.post(f"{url}/api/v1/import", data=lines(), timeout=600).raise_for_status()
    requests.get(f"{url}/internal/force_flush", timeout=60).raise_for_status()


def _queries(shown: check.Range) -> dict[str, str]:
    """The board's queries by panel and letter."""
    boards = {"kernob-map": check.load()["kernob-map"]}
    words = {"host": ".*", "class": ".*"}
    return {
        f"{panel['title']} {target['refId']}": check.interpolate(target["expr"], words, shown)
        for panel, target in check.targets(boards["kernob-map"])
    }


def _ask(url: str, query: str, at_s: float) -> tuple[float, int]:
    """How long it took, and how many rows it found. Raises RuntimeError with what the server said."""
    began_s = time.perf_counter()
    found = check.getter(url)("/api/v1/query", {"query": query, "time": at_s, "nocache": 1})
    return time.perf_counter() - began_s, len(found["result"])


def _rows(url: str, shown: check.Range) -> list[list[str]]:
    """Each query: how many rows it finds, and its wall times; then all of them together."""
    rows, queries = [], _queries(shown)
    for name, query in queries.items():
        taken = [_ask(url, query, shown.end_s) for _ in range(ROUNDS)]
        times = [each for each, _ in taken]
        rows.append([name, str(taken[0][1]), f"{median(times):.2f}", f"{max(times):.2f}"])
        progress(" ".join(rows[-1]))
    with ThreadPoolExecutor(len(queries)) as pool:
        began_s = time.perf_counter()
        list(pool.map(lambda query: _ask(url, query, shown.end_s), queries.values()))
    return [*rows, ["all at the same time", "", f"{time.perf_counter() - began_s:.2f}", ""]]


def run(program: str, hours: float, edges: int) -> None:
    """Brings it up, feeds it, asks it, prints what it took."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    end_s = int(time.time())
    with tempfile.TemporaryDirectory() as data:
        server = subprocess.Popen(
            [program, f"-storageDataPath={data}", f"-httpListenAddr=127.0.0.1:{port}", *OPTIONS]
        )
        try:
            while not Victoria(url).healthy():
                time.sleep(0.2)
            _feed(url, edges, end_s - int(hours * 3600), end_s)
            progress("fed")
            cpu_s = of_itself(url)["process_cpu_seconds_total"]
            rows = _rows(url, check.Range(end_s - hours * 3600, end_s))
            now = of_itself(url)
        finally:
            server.terminate()
            server.wait()
    show(f"The map's board: {edges} edges, {hours:g} h", ("query", "rows", "wall s", "most"), rows)
    cpu_s = (now["process_cpu_seconds_total"] - cpu_s) / (ROUNDS + 1)
    print(f"CPU {cpu_s:.1f} s for each time all are asked")
    print(f"resident {now['process_resident_memory_bytes'] / 2**20:.0f} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program")
    parser.add_argument("--hours", type=float, default=3)
    parser.add_argument("--edges", type=int, default=10_000)
    options = parser.parse_args()
    run(options.program, options.hours, options.edges)
