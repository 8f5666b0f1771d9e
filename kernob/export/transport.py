# SPDX-License-Identifier: Apache-2.0
"""What the export worker knows of a transport: it takes a request and says how it went.

Enters: OTLP settings. Leaves: a `Transport` for the protocol they name. Called by `worker`.
`transport_grpc` and `transport_http` are imported only when asked for, because each brings 10 MB.
Semantics: OpenTelemetry Protocol 1.x, "OTLP/gRPC" and "OTLP/HTTP": responses, failures, throttling.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from kernob.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_RETRY_AFTER_S: Final = 600.0
"""A server that asks for more patience than this (seconds) is asked again after this."""

MAX_MESSAGE_CHARS: Final = 200


class Signal(enum.Enum):
    """What is sent; each has its own service, request and response."""

    METRICS = "metrics"
    LOGS = "logs"


class OtlpOptions(Protocol):
    """The part of the settings a transport needs; `config.OtlpSettings` is one."""

    @property
    def endpoint(self) -> str:
        """URL of the signal; for grpc scheme://host:port, or host:port."""

    @property
    def protocol(self) -> str:
        """Say "grpc" or "http/protobuf"."""

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Headers of every request."""

    @property
    def insecure(self) -> bool:
        """Say whether the connection is plain text; counts where the endpoint has no scheme."""

    @property
    def certificate(self) -> Path | None:
        """Authorities to trust (PEM) instead of the machine's."""

    @property
    def client_certificate(self) -> Path | None:
        """Own certificate chain (PEM)."""

    @property
    def client_key(self) -> Path | None:
        """Own private key (PEM)."""

    @property
    def compression(self) -> str:
        """Say "gzip" or "none"."""

    @property
    def timeout_s(self) -> float:
        """Longest time one request may take, in seconds."""


class Verdict(enum.Enum):
    """What a response means for the data that was sent."""

    ACCEPTED = "accepted"
    RETRY = "retry"
    """It may be sent again, after a while."""
    BAD_DATA = "bad data"
    """The endpoint works, but will never take this request: not sent again."""
    REFUSED = "refused"
    """The endpoint takes nothing as it is configured now: credentials, path, protocol."""


@dataclass(frozen=True, slots=True)
class Result:
    """How one request went.

    `error_type` is a word of low cardinality (semantic conventions: error.type), "" when accepted;
    `message` one line for a person. `retry_after_s` is what the server asked for (seconds; None: not).
    `rejected` counts points or records the server did not take of an accepted request (partial success).
    """

    verdict: Verdict
    error_type: str = ""
    message: str = ""
    retry_after_s: float | None = None
    rejected: int = 0


class Transport(Protocol):
    """One way to an endpoint. `send` is called by one thread; `close` by any."""

    def send(self, body: bytes, timeout_s: float) -> Result:
        """Send one serialized request of the signal; blocks up to about `timeout_s` seconds."""

    def close(self) -> None:
        """Drop the connection."""


def one_line(text: object) -> str:
    """Return a foreign text as one printable line of bounded length."""
    line = " ".join(str(text).split())
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    return line if len(line) <= MAX_MESSAGE_CHARS else line[: MAX_MESSAGE_CHARS - 3] + "..."


def response_parser(signal: Signal) -> Callable[[bytes], Result]:
    """Return what makes the result of a request taken, at least in part, out of its serialized response.

    It raises DecodeError for other bytes.
    """
    if signal is Signal.LOGS:
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

        def logs(body: bytes) -> Result:
            partial = ExportLogsServiceResponse.FromString(body).partial_success
            return _accepted(partial.error_message, partial.rejected_log_records)

        return logs
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

    def metrics(body: bytes) -> Result:
        partial = ExportMetricsServiceResponse.FromString(body).partial_success
        return _accepted(partial.error_message, partial.rejected_data_points)

    return metrics


def _accepted(message: str, rejected: int) -> Result:
    return Result(Verdict.ACCEPTED, message=one_line(message), rejected=rejected)


def read_pem(path: Path, what: str) -> bytes:
    """Return a TLS file's bytes. Raises ConfigError if it cannot be read or is not PEM."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{what} {path}: {error.strerror or error}") from error
    if b"-----BEGIN " not in content:
        raise ConfigError(f"{what} {path}: not a PEM file")
    return content


def make_transport(options: OtlpOptions, version: str, signal: Signal = Signal.METRICS) -> Transport:
    """Return the transport of a signal for the protocol the settings name; nothing is sent yet.

    Raises ConfigError for an endpoint or a TLS file that cannot work.
    """
    user_agent = f"kernob/{version}" if version else "kernob"
    if options.protocol == "grpc":
        from kernob.export.transport_grpc import GrpcTransport

        return GrpcTransport(options, user_agent, signal)
    if options.protocol == "http/protobuf":
        from kernob.export.transport_http import HttpTransport

        return HttpTransport(options, user_agent, signal=signal)
    raise ConfigError(f"OTLP protocol {options.protocol!r}: one of grpc, http/protobuf")
