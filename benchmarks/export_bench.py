# SPDX-License-Identifier: Apache-2.0
"""What exporting 100,000 series costs: CPU, peak memory, bytes. And what the agent's imports weigh.

    .venv/bin/python benchmarks/export_bench.py [--series N] [--runs N]

Each figure is the median of some runs, each in a process of its own, against a receiver in another
process on loopback. CPU is process_time: all threads, encoding, compressing and sending included.
Peak is the largest resident set since the measured step began (VmHWM, reset before it). Series have
the five attributes of process.network.io; two of them share a PID. Aims: 1 s of CPU and 64 MiB for the
first export, next to nothing when nothing changed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Everything else is imported where it is used: what is measured must not carry what only measures.
if TYPE_CHECKING:
    from collections.abc import Callable

    from kernob.state.points import MetricBatch

SCENARIOS = ("first", "all changed", "1 % changed", "none changed")
WAYS = ("grpc", "grpc gzip", "http/protobuf", "http/protobuf gzip")
IMPORTS = (
    "logging",
    "numpy",
    "kernob.state.series",
    "kernob.export.worker",
    "kernob.export.telemetry",
    "kernob.export.transport_grpc",
    "kernob.export.transport_http",
)
START_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
ACKNOWLEDGE_POLL_S = 0.005


def memory_kib(field: str) -> int:
    """Return a figure of proc_pid_status(5), in KiB: VmRSS (resident now) or VmHWM (its peak)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise LookupError(field)


def reset_peak() -> None:
    """Let VmHWM start over from what is resident now (proc(5): clear_refs, 5)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def receive(protocol: str) -> None:
    """Take requests until standard input ends; the port goes to standard output."""
    if protocol == "grpc":
        from concurrent import futures

        import grpc

        handler: Any = grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"")
        service = "opentelemetry.proto.collector.metrics.v1.MetricsService"
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        print(port, flush=True)
        sys.stdin.read()
        server.stop(0).wait()
        return

    import http.server

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        print(web.server_address[1], flush=True)
        web.serve_forever()


class Counting:
    """A transport that counts requests and bytes (before compression) on their way."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.requests = 0
        self.body_bytes = 0

    def send(self, body: bytes, timeout_s: float) -> Any:
        """Pass a request on."""
        self.requests += 1
        self.body_bytes += len(body)
        return self._inner.send(body, timeout_s)

    def close(self) -> None:
        """Close the transport behind."""
        self._inner.close()


class Rig:
    """Series in their store, and an exporter that sends them: what a scenario's steps work on."""

    def __init__(self, way: str, port: int, series: int) -> None:
        import numpy as np

        from kernob.config_otel import OtlpSettings
        from kernob.export.resource import build_resource
        from kernob.export.telemetry import OwnTelemetry
        from kernob.export.transport import make_transport
        from kernob.export.worker import Exporter
        from kernob.model import MetricKind, MetricSpec
        from kernob.state.series import SeriesStore

        keys = ("process.pid", "process.executable.name", "kernob.service")
        spec = MetricSpec(
            "process.network.io", "By", MetricKind.COUNTER, "Bytes a process sent or received",
            (*keys, "network.io.direction", "network.transport"),
        )  # fmt: skip
        protocol, _, compression = way.partition(" ")
        path = "" if protocol == "grpc" else "/v1/metrics"
        options = OtlpSettings(
            endpoint=f"http://127.0.0.1:{port}{path}", protocol=protocol, compression=compression or "none"
        )
        resource = build_resource((), "bench")
        self._own = OwnTelemetry(resource)
        self.transport = Counting(make_transport(options, "bench"))
        self.exporter: Exporter[MetricBatch] = Exporter(
            options, resource, observer=self._own, transport=self.transport
        )
        self._store = SeriesStore()
        self._block = self._store.block(spec)
        self._slots = np.zeros(series, dtype=np.int64)
        self._now_ns = START_NS

    def admit(self) -> None:
        """Make all series known to the store."""
        for index in range(len(self._slots)):
            process = index // 2
            attributes = (
                ("process.pid", 1000 + process),
                ("process.executable.name", f"worker-{process % 50}"),
                ("kernob.service", f"shop-{process % 50}.service"),
                ("network.io.direction", "transmit" if index % 2 else "receive"),
                ("network.transport", "tcp"),
            )
            self._slots[index] = self._block.admit(attributes, START_NS)

    def change(self, count: int, value: int) -> None:
        """Set the first `count` series to values made from `value`: the same ones for the same value."""
        import numpy as np

        self._block.set(self._slots[:count], np.arange(count) * 1000 + value)

    def export(self) -> None:
        """Send what is due a second later, and wait until all of it is acknowledged."""
        from kernob.model import Snapshot

        self._now_ns += SECOND_NS
        self._own.observe(Snapshot(self._now_ns, START_NS, 1.0, "bench", ()))
        self.exporter.submit(self._store.batch(self._now_ns), self._own.collect())
        while not (done := self.exporter.acknowledged()):
            time.sleep(ACKNOWLEDGE_POLL_S)
        self._store.acknowledge(done[0])


def measure(scenario: str, way: str, port: int, series: int) -> dict[str, float]:
    """Run one scenario in this process and return its figures."""
    rig = Rig(way, port, series)

    def change(count: int, value: int) -> Callable[[], None]:
        return lambda: rig.change(count, value)

    steps = {
        "first": (rig.admit, change(series, 1), rig.export),
        "all changed": (change(series, 2), rig.export),
        "1 % changed": (change(series // 100, 2), rig.export),
        "none changed": (change(series, 1), rig.export),
    }
    if scenario != "first":
        for step in steps["first"]:
            step()
    before_kib = memory_kib("VmRSS")
    rig.transport.requests = rig.transport.body_bytes = 0
    reset_peak()
    begun_s = time.process_time()
    for step in steps[scenario]:
        step()
    cpu_s = time.process_time() - begun_s
    figures = {
        "cpu_s": cpu_s,
        "before_mib": before_kib / 1024,
        "peak_mib": memory_kib("VmHWM") / 1024,
        "requests": rig.transport.requests,
        "body_mb": rig.transport.body_bytes / 1e6,
    }
    rig.exporter.close(1.0)
    return figures


def weigh_imports(modules: tuple[str, ...]) -> list[float]:
    """Import modules one after another; return what is resident before and after each, in MiB."""
    import importlib

    resident = [memory_kib("VmRSS") / 1024]
    for module in modules:
        importlib.import_module(module)
        resident.append(memory_kib("VmRSS") / 1024)
    return resident


def in_process(*arguments: str) -> Any:
    """Run this file once more and return what it prints as JSON."""
    import subprocess

    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def table(rows: list[tuple[str, ...]]) -> None:
    """Print rows, the first one as heading; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) if not n else cell.rjust(width)
                 for n, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        print("  ".join(cells))
    print()


def print_exports(series: int, runs: int) -> None:
    """Print the table of scenarios."""
    import statistics
    import subprocess

    rows: list[tuple[str, ...]] = [
        ("way, scenario", "CPU s", "RSS before MiB", "peak MiB", "requests", "MB", "B/series")
    ]
    for way in WAYS:
        receiver = subprocess.Popen(
            [sys.executable, __file__, "--receive", way.split(" ", maxsplit=1)[0]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert receiver.stdout is not None
        port = receiver.stdout.readline().strip()
        for scenario in SCENARIOS:
            measured = [in_process("--measure", scenario, way, port, str(series)) for _ in range(runs)]
            figure = {key: statistics.median(run[key] for run in measured) for key in measured[0]}
            rows.append(
                (
                    f"{way}: {scenario}",
                    f"{figure['cpu_s']:.3f}",
                    f"{figure['before_mib']:.1f}",
                    f"{figure['peak_mib']:.1f}",
                    f"{figure['requests']:.0f}",
                    f"{figure['body_mb']:.2f}",
                    f"{figure['body_mb'] * 1e6 / series:.0f}",
                )
            )
        receiver.terminate()
        receiver.communicate()
    print(f"{series} series, median of {runs}; the first export sends a 0 and a value for each\n")
    table(rows)


def print_imports() -> None:
    """Print what is resident after each import an agent that exports needs."""
    resident = in_process("--imports")
    rows: list[tuple[str, ...]] = [("import", "RSS MiB", "added MiB"), ("(python)", f"{resident[0]:.1f}", "")]
    for name, before, after in zip(IMPORTS, resident, resident[1:], strict=False):
        rows.append((name, f"{after:.1f}", f"{after - before:.1f}"))
    table(rows)


def main() -> None:
    """Without internal arguments measure everything and print; with them do one part of it."""
    match sys.argv[1:]:
        case ["--measure", scenario, way, port, series]:
            print(json.dumps(measure(scenario, way, int(port), int(series))))
            return
        case ["--receive", protocol]:
            receive(protocol)
            return
        case ["--imports"]:
            print(json.dumps(weigh_imports(IMPORTS)))
            return
    import argparse

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--series", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    chosen = parser.parse_args()
    print_imports()
    print_exports(chosen.series, chosen.runs)


if __name__ == "__main__":
    main()
