# SPDX-License-Identifier: Apache-2.0
"""The OTEL_* variables and what they come to for the metrics signal.

Values already parsed by `config` enter, by variable; a frozen OtlpSettings and the resource attributes
leave. Semantics: OpenTelemetry specification, "OpenTelemetry Protocol Exporter", "Environment Variable
Specification" and "Resource SDK": variables of the metrics signal come before the general ones, an empty
one counts as unset. Where the specification lets an exporter ignore a malformed value, Kernob refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlunsplit

from kernob.config_values import (
    Endpoint,
    Flag,
    Headers,
    Name,
    Number,
    PathName,
    ResourceAttributes,
    Setting,
    Word,
)
from kernob.errors import ConfigError

GRPC = "grpc"
HTTP_PROTOBUF = "http/protobuf"
DEFAULT_SERVICE_NAME = "kernob"
_DEFAULT_ENDPOINT = {GRPC: "http://localhost:4317", HTTP_PROTOBUF: "http://localhost:4318/v1/metrics"}
_METRICS_PATH = "v1/metrics"
_PREFIX = "OTEL_EXPORTER_OTLP_"
_METRICS_PREFIX = "OTEL_EXPORTER_OTLP_METRICS_"
# gRPC over HTTP2, "Custom-Metadata": names in lower case, grpc- reserved, -bin for binary values.
_GRPC_HEADER = re.compile(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)")
_MILLISECONDS = "a number of milliseconds"


@dataclass(frozen=True, slots=True)
class OtlpSettings:
    """Where metrics go and how.

    `endpoint` is the whole URL of the metrics signal (for grpc scheme://host:port); `insecure` says that
    the connection is plain text; `headers` have lower-case names; `export_interval_s` None exports after
    each tick.
    """

    exporter: str = "otlp"
    endpoint: str = _DEFAULT_ENDPOINT[HTTP_PROTOBUF]
    protocol: str = HTTP_PROTOBUF
    headers: tuple[tuple[str, str], ...] = ()
    insecure: bool = True
    certificate: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    compression: str = "none"
    timeout_s: float = 10.0
    export_interval_s: float | None = None


def _exporter_settings() -> tuple[Setting, ...]:
    timeout = Number(1, 600_000, _MILLISECONDS, scale=1e-3)
    of_each_signal = (
        ("ENDPOINT", "endpoint", Endpoint(), "where metrics are sent", False),
        ("PROTOCOL", "protocol", Word((GRPC, HTTP_PROTOBUF)), "how they are sent", False),
        ("HEADERS", "headers", Headers(), "headers of each request", True),
        ("INSECURE", "insecure", Flag(lenient=False), "plain text for a gRPC endpoint without scheme", False),
        ("CERTIFICATE", "certificate", PathName("pem"), "authorities trusted for the endpoint", False),
        ("CLIENT_CERTIFICATE", "client_certificate", PathName("pem"), "own certificate (mTLS)", False),
        ("CLIENT_KEY", "client_key", PathName("pem"), "its private key (mTLS)", True),
        ("COMPRESSION", "compression", Word(("gzip", "none")), "compression of each request", False),
        ("TIMEOUT", "timeout_s", timeout, "how long one request may take, in milliseconds", False),
    )
    return tuple(
        Setting(prefix + name, f"otlp.{field}", kind, help_, secret)
        for name, field, kind, help_, secret in of_each_signal
        for prefix in (_PREFIX, _METRICS_PREFIX)
    )


OTEL_SETTINGS: tuple[Setting, ...] = (
    Setting("OTEL_SDK_DISABLED", "otlp.exporter", Flag(lenient=False), "true: nothing is sent"),
    Setting("OTEL_METRICS_EXPORTER", "otlp.exporter", Word(("otlp", "none")), "none: nothing is sent"),
    *_exporter_settings(),
    Setting(
        "OTEL_METRIC_EXPORT_INTERVAL",
        "otlp.export_interval_s",
        Number(100, 3_600_000, _MILLISECONDS, scale=1e-3),
        "time between exports, in milliseconds; unset: after each scrape",
    ),
    Setting(
        _METRICS_PREFIX + "TEMPORALITY_PREFERENCE",
        "otlp.temporality",
        Word(("cumulative",)),
        "Kernob's counters are cumulative; nothing else can be asked for",
    ),
    Setting("OTEL_RESOURCE_ATTRIBUTES", "resource_attributes", ResourceAttributes(), "added to the resource"),
    Setting("OTEL_SERVICE_NAME", "resource_attributes", Name(), "service.name of the resource"),
)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The value in force of one exporter option, and the variable it came from ("" for a default)."""

    value: Any
    variable: str


def resolve(
    values: Mapping[str, Any], complain: Callable[[str, str], ConfigError]
) -> tuple[OtlpSettings, tuple[tuple[str, str], ...], dict[str, str]]:
    """Return the exporter's settings, the resource attributes, and which variable each field came from.

    `values` maps variables to parsed values; `complain(variable, expected)` makes the error for one whose
    value does not fit the others.
    """
    chosen: dict[str, _Chosen] = {}

    def pick(option: str, default: Any = None) -> Any:
        for variable in (_METRICS_PREFIX + option, _PREFIX + option):
            if variable in values:
                chosen[option] = _Chosen(values[variable], variable)
                return values[variable]
        return default

    protocol = pick("PROTOCOL", HTTP_PROTOBUF)
    endpoint, insecure = _endpoint(
        protocol, pick("ENDPOINT"), pick("INSECURE", default=False), chosen, complain
    )
    certificate, key = pick("CLIENT_CERTIFICATE"), pick("CLIENT_KEY")
    if (certificate is None) != (key is None):
        lone = chosen["CLIENT_KEY" if certificate is None else "CLIENT_CERTIFICATE"].variable
        raise complain(lone, "set together with the client's other half (certificate and key)")
    headers = pick("HEADERS", ())
    if protocol == GRPC and not all(_GRPC_HEADER.fullmatch(name) for name, _ in headers):
        raise complain(chosen["HEADERS"].variable, "names of a-z, 0-9, _, . and - with protocol grpc")
    disabled = values.get("OTEL_SDK_DISABLED", False)
    settings = OtlpSettings(
        exporter="none" if disabled else values.get("OTEL_METRICS_EXPORTER", "otlp"),
        endpoint=endpoint,
        protocol=protocol,
        headers=headers,
        insecure=insecure,
        certificate=pick("CERTIFICATE"),
        client_certificate=certificate,
        client_key=key,
        compression=pick("COMPRESSION", "none"),
        timeout_s=pick("TIMEOUT", 10.0),
        export_interval_s=values.get("OTEL_METRIC_EXPORT_INTERVAL"),
    )
    fields = {setting.variable: setting.field for setting in OTEL_SETTINGS}
    sources = {fields[choice.variable]: choice.variable for choice in chosen.values()}
    for variable in ("OTEL_METRICS_EXPORTER", "OTEL_METRIC_EXPORT_INTERVAL", "OTEL_RESOURCE_ATTRIBUTES"):
        if variable in values:
            sources[fields[variable]] = variable
    if disabled:
        sources["otlp.exporter"] = "OTEL_SDK_DISABLED"
    return settings, _resource(values, sources), sources


def _resource(values: Mapping[str, Any], sources: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """OTEL_SERVICE_NAME comes before service.name in OTEL_RESOURCE_ATTRIBUTES, and both before our own."""
    attributes = {"service.name": DEFAULT_SERVICE_NAME, **dict(values.get("OTEL_RESOURCE_ATTRIBUTES", ()))}
    if "OTEL_SERVICE_NAME" in values:
        attributes["service.name"] = values["OTEL_SERVICE_NAME"]
        sources.setdefault("resource_attributes", "OTEL_SERVICE_NAME")
    return tuple(attributes.items())


def _endpoint(
    protocol: str,
    parts: SplitResult | None,
    insecure: bool,
    chosen: Mapping[str, _Chosen],
    complain: Callable[[str, str], ConfigError],
) -> tuple[str, bool]:
    """Return the URL of the metrics signal and whether it is plain text.

    A general HTTP endpoint is a base to which v1/metrics is added; one of the metrics signal is taken as
    it is. For gRPC the scheme decides on TLS, and without one INSECURE does.
    """
    if parts is None:
        return _DEFAULT_ENDPOINT[protocol], True
    variable = chosen["ENDPOINT"].variable
    if protocol == GRPC:
        if parts.path not in ("", "/") or parts.query or parts.username is not None:
            raise complain(
                variable, "scheme://host:port without a path or user, because the protocol is grpc"
            )
        scheme = parts.scheme or ("http" if insecure else "https")
        port = parts.port or {"http": 80, "https": 443}[scheme]
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{scheme}://{host}:{port}", scheme == "http"
    if not parts.scheme:
        raise complain(variable, "a URL with http:// or https://, because the protocol is http/protobuf")
    path = parts.path or "/"
    if variable == _PREFIX + "ENDPOINT":
        path = path.rstrip("/") + "/" + _METRICS_PATH
    return urlunsplit(parts._replace(path=path)), parts.scheme == "http"
