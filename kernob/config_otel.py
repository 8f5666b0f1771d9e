# SPDX-License-Identifier: Apache-2.0
"""The OTEL_* variables and what they come to for metrics and logs.

Values already parsed by `config` enter, by variable; a frozen OtlpSettings for each signal and the resource
attributes leave. Semantics: OpenTelemetry specification, "OpenTelemetry Protocol Exporter", "Environment
Variable Specification" and "Resource SDK": variables of a signal come before the general ones, an empty
one counts as unset. Where the specification lets an exporter ignore a malformed value, Kernob refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
_DEFAULT_BASE = {GRPC: "http://localhost:4317", HTTP_PROTOBUF: "http://localhost:4318/"}
_PREFIX = "OTEL_EXPORTER_OTLP_"
METRICS, LOGS = "METRICS", "LOGS"
_FIELDS = {METRICS: "otlp", LOGS: "otlp_logs"}
_METRICS_PREFIX = f"{_PREFIX}{METRICS}_"
# gRPC over HTTP2, "Custom-Metadata": names in lower case, grpc- reserved, -bin for binary values.
_GRPC_HEADER = re.compile(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)")
_MILLISECONDS = "a number of milliseconds"


@dataclass(frozen=True, slots=True)
class OtlpSettings:
    """Where metrics, or logs, go and how.

    `endpoint` is the whole URL of the signal (for grpc scheme://host:port); `insecure` says that the
    connection is plain text; `headers` have lower-case names; `export_interval_s` None exports metrics
    after each tick (logs go as they come).
    """

    exporter: str = "otlp"
    endpoint: str = _DEFAULT_BASE[HTTP_PROTOBUF] + "v1/metrics"
    protocol: str = HTTP_PROTOBUF
    headers: tuple[tuple[str, str], ...] = ()
    insecure: bool = True
    certificate: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    compression: str = "none"
    timeout_s: float = 10.0
    export_interval_s: float | None = None


LOGS_DEFAULT = OtlpSettings(endpoint=_DEFAULT_BASE[HTTP_PROTOBUF] + "v1/logs")


def _exporter_settings() -> tuple[Setting, ...]:
    timeout = Number(1, 600_000, _MILLISECONDS, scale=1e-3)
    of_each_signal = (
        ("ENDPOINT", "endpoint", Endpoint(), "where metrics and logs are sent", False),
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
        Setting(prefix + name, f"{owner}.{field}", kind, help_, secret)
        for name, field, kind, help_, secret in of_each_signal
        for prefix, owner in (
            (_PREFIX, _FIELDS[METRICS]),
            *((f"{_PREFIX}{signal}_", _FIELDS[signal]) for signal in (METRICS, LOGS)),
        )
    )


OTEL_SETTINGS: tuple[Setting, ...] = (
    Setting("OTEL_SDK_DISABLED", "otlp.exporter", Flag(lenient=False), "true: nothing is sent"),
    Setting("OTEL_METRICS_EXPORTER", "otlp.exporter", Word(("otlp", "none")), "none: no metrics are sent"),
    Setting("OTEL_LOGS_EXPORTER", "otlp_logs.exporter", Word(("otlp", "none")), "none: no events are sent"),
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


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the variables come to. `sources` maps fields ("otlp.endpoint") to the variable that won."""

    metrics: OtlpSettings
    logs: OtlpSettings
    resource_attributes: tuple[tuple[str, str], ...]
    sources: dict[str, str]


def resolve(values: Mapping[str, Any], complain: Callable[[str, str], ConfigError]) -> Resolved:
    """Return the settings of both signals, the resource attributes, and where each field came from.

    `values` maps variables to parsed values; `complain(variable, expected)` makes the error for one whose
    value does not fit the others.
    """
    sources: dict[str, str] = {}
    metrics, logs = (_signal(signal, values, complain, sources) for signal in (METRICS, LOGS))
    fields = {setting.variable: setting.field for setting in OTEL_SETTINGS}
    for variable in ("OTEL_METRIC_EXPORT_INTERVAL", "OTEL_RESOURCE_ATTRIBUTES"):
        if variable in values:
            sources[fields[variable]] = variable
    metrics = replace(metrics, export_interval_s=values.get("OTEL_METRIC_EXPORT_INTERVAL"))
    return Resolved(metrics, logs, _resource(values, sources), sources)


def _signal(
    signal: str,
    values: Mapping[str, Any],
    complain: Callable[[str, str], ConfigError],
    sources: dict[str, str],
) -> OtlpSettings:
    """Return one signal's settings; adds to `sources`."""
    chosen: dict[str, _Chosen] = {}
    disabled = values.get("OTEL_SDK_DISABLED", False)
    exporter = f"OTEL_{signal}_EXPORTER"
    if signal == LOGS:
        if disabled or values.get(exporter) == "none":  # then what is meant for metrics need not fit logs
            sources[f"{_FIELDS[LOGS]}.exporter"] = "OTEL_SDK_DISABLED" if disabled else exporter
            return replace(LOGS_DEFAULT, exporter="none")
        complain = _for_logs(complain)

    def pick(option: str, default: Any = None) -> Any:
        for variable in (f"{_PREFIX}{signal}_{option}", _PREFIX + option):
            if variable in values:
                chosen[option] = _Chosen(values[variable], variable)
                return values[variable]
        return default

    protocol = pick("PROTOCOL", HTTP_PROTOBUF)
    path = f"v1/{signal.lower()}"
    given, plain = pick("ENDPOINT"), pick("INSECURE", default=False)
    endpoint, insecure = _endpoint(protocol, path, given, plain, chosen, complain)
    certificate, key = pick("CLIENT_CERTIFICATE"), pick("CLIENT_KEY")
    if (certificate is None) != (key is None):
        lone = chosen["CLIENT_KEY" if certificate is None else "CLIENT_CERTIFICATE"].variable
        raise complain(lone, "set together with the client's other half (certificate and key)")
    headers = pick("HEADERS", ())
    if protocol == GRPC and not all(_GRPC_HEADER.fullmatch(name) for name, _ in headers):
        raise complain(chosen["HEADERS"].variable, "names of a-z, 0-9, _, . and - with protocol grpc")
    settings = OtlpSettings(
        exporter="none" if disabled else values.get(exporter, "otlp"),
        endpoint=endpoint,
        protocol=protocol,
        headers=headers,
        insecure=insecure,
        certificate=pick("CERTIFICATE"),
        client_certificate=certificate,
        client_key=key,
        compression=pick("COMPRESSION", "none"),
        timeout_s=pick("TIMEOUT", 10.0),
    )
    names = {s.variable: s.field.rpartition(".")[2] for s in OTEL_SETTINGS}
    owner = _FIELDS[signal]
    sources.update({f"{owner}.{names[choice.variable]}": choice.variable for choice in chosen.values()})
    if disabled or exporter in values:
        sources[f"{owner}.exporter"] = "OTEL_SDK_DISABLED" if disabled else exporter
    return settings


def _for_logs(complain: Callable[[str, str], ConfigError]) -> Callable[[str, str], ConfigError]:
    """Have complaints say that it is the events that cannot be sent so, and how to go without."""
    return lambda variable, expected: complain(
        variable, f"{expected} (for logs; OTEL_LOGS_EXPORTER=none sends none)"
    )


def _resource(values: Mapping[str, Any], sources: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """OTEL_SERVICE_NAME comes before service.name in OTEL_RESOURCE_ATTRIBUTES, and both before our own."""
    attributes = {"service.name": DEFAULT_SERVICE_NAME, **dict(values.get("OTEL_RESOURCE_ATTRIBUTES", ()))}
    if "OTEL_SERVICE_NAME" in values:
        attributes["service.name"] = values["OTEL_SERVICE_NAME"]
        sources.setdefault("resource_attributes", "OTEL_SERVICE_NAME")
    return tuple(attributes.items())


def _endpoint(
    protocol: str,
    path_of_signal: str,
    parts: SplitResult | None,
    insecure: bool,
    chosen: Mapping[str, _Chosen],
    complain: Callable[[str, str], ConfigError],
) -> tuple[str, bool]:
    """Return the URL of a signal and whether it is plain text.

    A general HTTP endpoint is a base to which v1/metrics or v1/logs is added; one of a signal is taken as
    it is. For gRPC the scheme decides on TLS, and without one INSECURE does.
    """
    if parts is None:
        return _DEFAULT_BASE[protocol] + (path_of_signal if protocol == HTTP_PROTOBUF else ""), True
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
        path = path.rstrip("/") + "/" + path_of_signal
    return urlunsplit(parts._replace(path=path)), parts.scheme == "http"
