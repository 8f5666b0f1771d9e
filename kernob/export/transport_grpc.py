# SPDX-License-Identifier: Apache-2.0
"""OTLP over gRPC: one unary call a request, on grpc's own channel.

Enters: serialized requests from `worker`. Leaves: requests on the wire, a `Result` each. Retryable
codes, RetryInfo and RESOURCE_EXHAUSTED as OTLP 1.x, "OTLP/gRPC Response" and "OTLP/gRPC Throttling".
"""

from __future__ import annotations

import os
import re
from typing import Final
from urllib.parse import urlsplit

# gRPC's core prints its own lines on stderr at each failed connection. A failure is said once, by
# `worker`; who wants to see more sets the variable.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

from kernob.errors import ConfigError
from kernob.export.status import retry_delay_s
from kernob.export.transport import (
    MAX_RETRY_AFTER_S,
    OtlpOptions,
    Result,
    Signal,
    Verdict,
    one_line,
    read_pem,
    response_parser,
)

_METHODS: Final = {
    Signal.METRICS: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    Signal.LOGS: "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
_STATUS_DETAILS: Final = "grpc-status-details-bin"
_MAX_RECONNECT_BACKOFF_MS: Final = 5_000
"""gRPC's own backoff between connection attempts would hide for 2 min that an endpoint is back."""

_RETRYABLE: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
_BAD_DATA: Final = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED})


def _target(options: OtlpOptions) -> tuple[str, bool]:
    """Return gRPC's name of the endpoint, and whether in plain text. Raises ConfigError if malformed."""
    url = urlsplit(options.endpoint if "://" in options.endpoint else f"//{options.endpoint}")
    try:
        complete = bool(url.hostname) and url.port is not None
    except ValueError:
        complete = False
    if url.scheme not in ("", "http", "https") or not complete:
        raise ConfigError(
            f"OTLP endpoint {one_line(options.endpoint)!r}: for grpc http://host:port or https://host:port"
        )
    return url.netloc.rpartition("@")[2], url.scheme == "http" or (not url.scheme and options.insecure)


def _credentials(options: OtlpOptions) -> grpc.ChannelCredentials:
    """Return TLS credentials: the given authorities (default: grpc's) and the own certificate, if any."""
    files = (
        (options.certificate, "OTLP certificate"),
        (options.client_key, "OTLP client key"),
        (options.client_certificate, "OTLP client certificate"),
    )
    roots, key, chain = (None if path is None else read_pem(path, what) for path, what in files)
    return grpc.ssl_channel_credentials(roots, key, chain)


class GrpcTransport:
    """A channel to one endpoint. gRPC connects when the first request is sent, and again when it must."""

    def __init__(self, options: OtlpOptions, user_agent: str, signal: Signal = Signal.METRICS) -> None:
        target, self._plain = _target(options)
        channel_options = (
            ("grpc.primary_user_agent", user_agent),
            ("grpc.initial_reconnect_backoff_ms", 500),
            ("grpc.max_reconnect_backoff_ms", _MAX_RECONNECT_BACKOFF_MS),
        )
        compression = (
            grpc.Compression.Gzip if options.compression == "gzip" else grpc.Compression.NoCompression
        )
        if self._plain:
            self._channel = grpc.insecure_channel(target, channel_options, compression)
        else:
            credentials = _credentials(options)
            self._channel = grpc.secure_channel(target, credentials, channel_options, compression)
        self._metadata = tuple((name.lower(), value) for name, value in options.headers)
        self._export: grpc.UnaryUnaryMultiCallable[bytes, Result] = self._channel.unary_unary(
            _METHODS[signal],
            request_serializer=None,  # bytes already
            response_deserializer=response_parser(signal),
        )

    def send(self, body: bytes, timeout_s: float) -> Result:
        """Send one serialized request; blocks up to `timeout_s` seconds."""
        try:
            return self._export(body, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            return self._failure(error)
        except ValueError as error:  # what grpc raises on a channel that `close` has closed
            return Result(Verdict.RETRY, "closed", one_line(error))

    def close(self) -> None:
        """Drop the connection; a call under way ends with CANCELLED."""
        self._channel.close()

    def _failure(self, error: grpc.RpcError) -> Result:
        code, details = error.code(), error.details() or ""
        retry_after_s = _retry_after_s(error)
        name = code.name.lower()
        message = f"{code.name} {_plain_words(details)}".strip()
        if code is grpc.StatusCode.UNAVAILABLE and not self._plain and _is_handshake(details):
            name = "tls"
            message = f"TLS handshake failed, is it a plain-text port? ({_plain_words(details)})"
        if code in _RETRYABLE or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_after_s is not None):
            verdict = Verdict.RETRY
        else:
            verdict = Verdict.BAD_DATA if code in _BAD_DATA else Verdict.REFUSED
        return Result(verdict, name, one_line(message), retry_after_s)


def _is_handshake(details: str) -> bool:
    return bool(re.search(r"handshake|certificate|ssl|tls", details, re.IGNORECASE))


def _plain_words(details: str) -> str:
    """Return gRPC's details without what it puts before the reason when it could not connect."""
    return one_line(re.sub(r"^[A-Z_]+: ", "", details.rpartition("last error: ")[2]))


def _retry_after_s(error: grpc.RpcError) -> float | None:
    """Return the delay the server asked for (seconds); None if it asked for none."""
    for item in error.trailing_metadata() or ():
        if item.key == _STATUS_DETAILS and isinstance(item.value, bytes):
            delay_s = retry_delay_s(item.value)
            return None if delay_s is None else min(max(0.0, delay_s), MAX_RETRY_AFTER_S)
    return None
