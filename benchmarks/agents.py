# SPDX-License-Identifier: Apache-2.0
"""A real `kernob run` as a child, what it uses, and endpoints that take its exports and forget them.

Called by agent_cost. Everything the agent writes goes to a directory of the benchmark's own.
"""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_EXPORT = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used so far. `peak_mib` is its largest resident set."""

    at_s: float
    cpu_s: float
    rss_mib: float
    peak_mib: float


class AgentProcess:
    """One agent, from start to SIGTERM."""

    def __init__(self, directory: Path, environment: Mapping[str, str], *arguments: str) -> None:
        """`directory` holds socket, state and log; `environment` is added to ours."""
        directory.mkdir(parents=True, exist_ok=True)
        self._log = directory / "log"
        settings = {
            "KERNOB_SOCKET": str(directory / "run" / "agent.sock"),
            "KERNOB_STATE_DIR": str(directory / "state"),
            "OTEL_METRICS_EXPORTER": "none",
            **environment,
        }
        self.started_s = time.monotonic()
        with self._log.open("w") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "kernob", "run", *arguments],
                env={**os.environ, **settings},
                stdout=log,
                stderr=log,
            )

    def wait_until(self, text: str, path: Path | None = None, timeout_s: float = 60) -> float:
        """Seconds from the start until `text` stands in the log, or in another file; else it is ended."""
        where = path or self._log
        while time.monotonic() - self.started_s < timeout_s:
            if where.exists() and text in where.read_text(errors="replace"):
                return time.monotonic() - self.started_s
            if self._child.poll() is not None:
                break
            time.sleep(0.005)
        self._child.kill()  # or it would go on for ever, and be measured by all that come after
        self._child.wait()
        raise RuntimeError(f"no {text!r} in {where.name}; the log says: {self._log.read_text()[-800:]}")

    def usage(self) -> Usage:
        """CPU by /proc/PID/stat (10 ms steps, without children), memory by /proc/PID/status."""
        root = Path("/proc") / str(self._child.pid)
        stat = (root / "stat").read_text().rpartition(")")[2].split()
        memory = dict(line.split(":", 1) for line in (root / "status").read_text().splitlines())
        rss, peak = (int(memory[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
        return Usage(time.monotonic(), (int(stat[11]) + int(stat[12])) * _TICK_S, rss, peak)

    def map_mib(self) -> float:
        """Memory of the BPF maps it holds, as the kernel accounts it."""
        total = 0
        for info in (Path("/proc") / str(self._child.pid) / "fdinfo").iterdir():
            facts = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
            if "map_type" in facts:
                total += int(facts["memlock"])
        return total / 2**20

    def stop(self) -> float:
        """Sends SIGTERM and waits; seconds until it was gone. Raises RuntimeError unless it ended with 0."""
        began_s = time.monotonic()
        self._child.send_signal(signal.SIGTERM)
        try:
            code = self._child.wait(15)
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = self._child.wait()
        if code:
            raise RuntimeError(f"kernob run ended with {code}: {self._log.read_text()[-800:]}")
        return time.monotonic() - began_s


class _Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:  # the base class dictates the name
        """Takes a request, answers with an empty ExportMetricsServiceResponse."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Says nothing."""


@contextmanager
def http_endpoint() -> Iterator[str]:
    """An OTLP/HTTP receiver on the loopback interface; yields its URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def grpc_endpoint() -> Iterator[str]:
    """An OTLP/gRPC receiver on the loopback interface; yields its URL."""
    import grpc

    def answer(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        return b""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
            """Knows one method, as bytes."""
            return grpc.unary_unary_rpc_method_handler(answer) if details.method == _EXPORT else None

    server = grpc.server(ThreadPoolExecutor(4), options=(("grpc.max_receive_message_length", 4 << 20),))
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(1).wait()
