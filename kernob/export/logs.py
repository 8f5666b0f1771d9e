# SPDX-License-Identifier: Apache-2.0
"""Events as OTLP log records.

Enters: Events and the resource. Leaves: serialized ExportLogsServiceRequests. Called by `logs_worker` and
`outlet`. Attribute names: OpenTelemetry semantic conventions where they have one, docs/events.md lists all.

A record is the concatenation of its encoded parts (see `state.points`): attributes that come again and
again, such as a service's name, are encoded once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs, SeverityNumber

from kernob.export.encode import SCOPE_NAME, Request, any_value, framing, resource_message
from kernob.model import Attributes, AttributeValue, Event, Severity

MAX_RECORDS: Final = 500
"""Records in one request, about 0.4 MB."""

_SEVERITIES: Final = {
    Severity.INFO: SeverityNumber.SEVERITY_NUMBER_INFO,
    Severity.WARN: SeverityNumber.SEVERITY_NUMBER_WARN,
    Severity.ERROR: SeverityNumber.SEVERITY_NUMBER_ERROR,
}
_TCP = "kernob.tcp."
_RETRANSMIT, _RESET = "kernob.tcp.retransmit", "kernob.tcp.reset"
_HAS_EVENT_NAME: Final = "event_name" in LogRecord.DESCRIPTOR.fields_by_name


class LogEncoder:
    """Makes requests that all carry one resource and one scope."""

    def __init__(self, resource: Attributes, version: str = "") -> None:
        self._resource = ResourceLogs(resource=resource_message(resource)).SerializeToString()
        scope = InstrumentationScope(name=SCOPE_NAME, version=version)
        self._scope = ScopeLogs(scope=scope).SerializeToString()

    def requests(self, events: Sequence[Event], observed_unix_ns: int) -> Iterator[Request]:
        """Yield the events as requests of at most MAX_RECORDS records, oldest first."""
        for first in range(0, len(events), MAX_RECORDS):
            part = events[first : first + MAX_RECORDS]
            scope = [self._scope]
            for event in part:
                record = log_record(event, observed_unix_ns)
                scope += (_frame(len(record)), record)
            scope_bytes = sum(map(len, scope))
            scope_frame = framing(ResourceLogs.DESCRIPTOR, "scope_logs", scope_bytes)
            resource_bytes = len(self._resource) + len(scope_frame) + scope_bytes
            frame = framing(ExportLogsServiceRequest.DESCRIPTOR, "resource_logs", resource_bytes)
            yield Request(b"".join((frame, self._resource, scope_frame, *scope)), len(part))


@functools.lru_cache(maxsize=1024)
def _frame(length: int) -> bytes:
    """Return tag and length of one element of ScopeLogs.log_records."""
    return framing(ScopeLogs.DESCRIPTOR, "log_records", length)


def log_record(event: Event, observed_unix_ns: int) -> bytes:
    """Return one event as a serialized LogRecord."""
    record = LogRecord(
        time_unix_nano=event.time_unix_ns,
        observed_time_unix_nano=observed_unix_ns,
        severity_number=_SEVERITIES[event.severity],
        severity_text=event.severity.name,
        body=AnyValue(string_value=event.body),
    )
    if _HAS_EVENT_NAME:
        record.event_name = event.kind
    parts = [record.SerializeToString()]
    parts += [_attribute(key, value) for key, value in _attributes(event)]
    return b"".join(parts)


@functools.lru_cache(maxsize=4096, typed=True)
def _attribute(key: str, value: AttributeValue) -> bytes:
    """Return a serialized LogRecord that has this one attribute and nothing else."""
    return LogRecord(attributes=[KeyValue(key=key, value=any_value(value))]).SerializeToString()


def _attributes(event: Event) -> Iterator[tuple[str, AttributeValue]]:
    """Yield what is known of the event; nothing that does not apply to it."""
    yield "event.name", event.kind
    yield "kernob.service", event.service
    if event.suppressed:
        yield "kernob.event.suppressed", event.suppressed
        yield "kernob.event.first_time", event.first_unix_ns / 1e9
        return
    if event.pid:
        yield "process.pid", event.pid
        yield "process.executable.name", event.executable
    if event.kind.startswith(_TCP):
        yield from _destination(event)
        yield from _connection(event)
    if event.reason:
        yield "error.type", event.reason
    if event.direction:
        yield "network.io.direction", event.direction
    if event.closed_by:
        yield "kernob.closed_by", event.closed_by
    if event.first_unix_ns:
        yield "kernob.event.first_time", event.first_unix_ns / 1e9
    yield from event.details


def _connection(event: Event) -> Iterator[tuple[str, AttributeValue]]:
    if event.kind == _RESET:
        yield "kernob.reset.idle", event.idle
    yield "kernob.connection.transmitted", event.tx_bytes
    yield "kernob.connection.received", event.rx_bytes
    if event.age_s >= 0:
        yield "kernob.connection.age", event.age_s
    if event.gap_s >= 0:
        yield "kernob.connection.silence", event.gap_s
    if event.kind == _RETRANSMIT:
        yield "kernob.event.count", event.count


def _destination(event: Event) -> Iterator[tuple[str, AttributeValue]]:
    yield "network.transport", "tcp"
    if event.address:
        yield "server.address", event.address
        yield "server.port", event.port
    if event.role != "unknown":
        yield "network.tcp.handshake.role", event.role
    if event.peer:
        yield "network.peer.address", event.peer
    if event.peer_port:
        yield "network.peer.port", event.peer_port
    if event.local_port:
        yield "network.local.port", event.local_port
