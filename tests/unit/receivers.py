# SPDX-License-Identifier: Apache-2.0
"""OTLP receivers on loopback that answer as they are told and remember what they got.

Used by tests/unit/test_export_*.py: a real gRPC server and a real HTTP server, each of which takes its
answers from a list and falls back to success.
"""

from __future__ import annotations

import gzip
import http.server
import ssl
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import NumberDataPoint

WAIT_S = 20.0


@dataclass(frozen=True)
class Options:
    """Settings of an exporter, as config.OtlpSettings has them."""

    endpoint: str
    protocol: str
    headers: tuple[tuple[str, str], ...] = ()
    insecure: bool = False
    certificate: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    compression: str = "none"
    timeout_s: float = 10.0
    exporter: str = "otlp"


def partial_success(rejected: int, message: str) -> ExportMetricsServiceResponse:
    """Return an answer that takes all but `rejected` points."""
    partial = ExportMetricsPartialSuccess(rejected_data_points=rejected, error_message=message)
    return ExportMetricsServiceResponse(partial_success=partial)


def points_in(request: ExportMetricsServiceRequest) -> list[tuple[str, NumberDataPoint]]:
    """Return all number points of a request with their metric's name."""
    return [
        (metric.name, point)
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in (metric.sum.data_points or metric.gauge.data_points)
    ]


def records_in(requests: list[ReceivedLogs]) -> list[LogRecord]:
    """Return all log records of some requests."""
    return [
        record
        for request in requests
        for resource in request.message.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


@dataclass
class Received:
    """One request as a receiver saw it."""

    message: ExportMetricsServiceRequest
    headers: dict[str, str]
    body_bytes: int = 0


@dataclass
class ReceivedLogs:
    """One request of log records as a receiver saw it."""

    message: ExportLogsServiceRequest
    headers: dict[str, str]


class _Inbox:
    """Requests in the order they came; lets a test wait for the n-th instead of for time to pass."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.logs: list[ReceivedLogs] = []
        self.changed = threading.Condition()

    def put_logs(self, received: ReceivedLogs) -> None:
        with self.changed:
            self.logs.append(received)
            self.changed.notify_all()

    def wait_for_logs(self, count: int) -> list[LogRecord]:
        """The records received so far, once there are so many (more than once where sent again)."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(records_in(self.logs)) >= count, WAIT_S), "too few came"
            return records_in(self.logs)

    def put(self, received: Received) -> None:
        with self.changed:
            self.requests.append(received)
            self.changed.notify_all()

    def wait_for(self, count: int) -> list[Received]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.requests) >= count, WAIT_S), "too few requests came"
            return list(self.requests)


@dataclass
class GrpcAnswer:
    """What a gRPC receiver does with one request: an error status, or `response` when `code` is None."""

    code: grpc.StatusCode | None = None
    details: str = ""
    retry_delay: Duration | None = None
    response: ExportMetricsServiceResponse = field(default_factory=ExportMetricsServiceResponse)
    until: threading.Event | None = None


class GrpcReceiver:
    """A gRPC server with the one method of OTLP's MetricsService, and that of its LogsService."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.inbox = _Inbox()
        self.answers: deque[GrpcAnswer] = deque()
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
        handler = grpc.unary_unary_rpc_method_handler(
            self._export,
            request_deserializer=ExportMetricsServiceRequest.FromString,
            response_serializer=ExportMetricsServiceResponse.SerializeToString,
        )
        service = "opentelemetry.proto.collector.metrics.v1.MetricsService"
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"Export": handler}),)
        )
        logs = grpc.unary_unary_rpc_method_handler(
            self._export_logs,
            request_deserializer=ExportLogsServiceRequest.FromString,
            response_serializer=ExportLogsServiceResponse.SerializeToString,
        )
        service = "opentelemetry.proto.collector.logs.v1.LogsService"
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"Export": logs}),)
        )
        if credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("localhost:0", credentials)

    def __enter__(self) -> GrpcReceiver:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for answer in self.answers:
            if answer.until:
                answer.until.set()
        self._server.stop(0).wait()

    def options(self, **changes: Any) -> Options:
        return Options(**{"endpoint": f"http://127.0.0.1:{self.port}", "protocol": "grpc", **changes})

    def _export_logs(
        self, request: ExportLogsServiceRequest, context: grpc.ServicerContext
    ) -> ExportLogsServiceResponse:
        headers = {key: str(value) for key, value in context.invocation_metadata()}
        self.inbox.put_logs(ReceivedLogs(request, headers))
        self._answer(context)
        return ExportLogsServiceResponse()

    def _export(
        self, request: ExportMetricsServiceRequest, context: grpc.ServicerContext
    ) -> ExportMetricsServiceResponse:
        headers = {key: str(value) for key, value in context.invocation_metadata()}
        self.inbox.put(Received(request, headers))
        return self._answer(context).response

    def _answer(self, context: grpc.ServicerContext) -> GrpcAnswer:
        answer = self.answers.popleft() if self.answers else GrpcAnswer()
        if answer.until is not None:
            answer.until.wait(WAIT_S)
        if answer.code is not None and answer.retry_delay is not None:
            detail = AnyMessage()
            detail.Pack(RetryInfo(retry_delay=answer.retry_delay))
            status = Status(code=answer.code.value[0], message=answer.details, details=[detail])
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        if answer.code is not None:
            context.abort(answer.code, answer.details)
        return answer


@dataclass
class HttpAnswer:
    """What an HTTP receiver answers one request with; `act` runs before, in the server's thread."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    act: Callable[[], object] | None = None


class HttpReceiver:
    """An HTTP/1.1 server that takes POSTs of OTLP protobuf and counts connections."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.inbox = _Inbox()
        self.answers: deque[HttpAnswer] = deque()
        self.connections = 0
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                receiver.connections += 1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                plain = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                headers = {name.lower(): value for name, value in self.headers.items()}
                headers[":path"] = self.path
                if self.path.endswith("/logs"):
                    logs = ExportLogsServiceRequest.FromString(plain)
                    receiver.inbox.put_logs(ReceivedLogs(logs, headers))
                else:
                    message = ExportMetricsServiceRequest.FromString(plain)
                    receiver.inbox.put(Received(message, headers, len(body)))
                answer = receiver.answers.popleft() if receiver.answers else HttpAnswer()
                if answer.act:
                    answer.act()
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/x-protobuf", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
                """Say nothing."""

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that leaves early is part of some tests."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.scheme = "https" if context else "http"
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> HttpReceiver:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def options(self, **changes: Any) -> Options:
        endpoint = f"{self.scheme}://localhost:{self.port}/v1/metrics"
        return Options(**{"endpoint": endpoint, "protocol": "http/protobuf", **changes})


@dataclass(frozen=True)
class Pki:
    """A certificate authority, and a certificate for localhost and one for a client that it signed."""

    authority: Path
    server: tuple[Path, Path]
    client: tuple[Path, Path]


def make_pki(directory: Path) -> Pki:
    """Make keys and certificates with the openssl command; they last a day."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1")
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")  # asked for from Python 3.13 on
    authority = ("-subj", "/CN=test authority", *usage, "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", "-x509", *curve, *authority)
    for name, extension in (
        ("server", "subjectAltName=DNS:localhost"),
        ("client", "subjectAltName=DNS:agent"),
    ):
        openssl(
            "req", "-x509", *curve, "-subj", f"/CN={name}", "-addext", extension,
            "-addext", "basicConstraints=critical,CA:FALSE", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-keyout", f"{name}.key", "-out", f"{name}.pem",
        )  # fmt: skip
    own = {name: (directory / f"{name}.pem", directory / f"{name}.key") for name in ("server", "client")}
    return Pki(directory / "ca.pem", own["server"], own["client"])
