# SPDX-License-Identifier: Apache-2.0
"""OTLP requests out of a batch of encoded points.

Enters: a batch (`state.points.MetricBatch`, known here only by its shape) and the resource. Leaves:
serialized ExportMetricsServiceRequests, small enough for receivers that refuse more than 4 MiB.
Called by the export worker and the file exporter.

Messages around the points are OpenTelemetry's own classes; only the framing of nested messages is
written here, so that points are copied, not parsed and serialized again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    ExponentialHistogram,
    Gauge,
    Metric,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from kernob.model import Attributes, AttributeValue, MetricKind, MetricSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from google.protobuf.descriptor import Descriptor

MAX_POINTS: Final = 2500
"""Points in one request, about 0.5 MB: with 5,000 the peak is 4 MiB higher, 1,000 cost a third more CPU."""

MAX_BYTES: Final = 3_500_000
"""Bytes in one request; gRPC receivers refuse more than 4 MiB (4,194,304 bytes) unless told otherwise."""

SCOPE_NAME: Final = "kernob"


class PointSource(Protocol):
    """The points of one metric in a batch."""

    @property
    def spec(self) -> MetricSpec:
        """Name, unit and kind of the metric."""

    def __len__(self) -> int:
        """Count the points."""

    def take(self, first: int, max_points: int, max_bytes: int) -> tuple[bytes, int]:
        """Encode points from `first` on: elements of data_points, framed, and the next point's index."""


class Batch(Protocol):
    """What one export sends; immutable."""

    @property
    def time_unix_ns(self) -> int:
        """When the batch was made."""

    @property
    def metrics(self) -> Sequence[PointSource]:
        """The points, by metric."""

    def __len__(self) -> int:
        """Count the points of all metrics."""


@dataclass(frozen=True, slots=True)
class Request:
    """One serialized ExportMetricsServiceRequest and the number of points in it (0: not counted)."""

    body: bytes
    points: int


def any_value(value: AttributeValue) -> AnyValue:
    """Return an attribute's value as OTLP has it."""
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    return AnyValue(string_value=value)


def resource_message(attributes: Attributes) -> Resource:
    """Return the resource as OTLP has it."""
    return Resource(attributes=[KeyValue(key=key, value=any_value(value)) for key, value in attributes])


def framing(message: Descriptor, field: str, length: int) -> bytes:
    """Return tag and length in front of `length` bytes of a nested message (protobuf wire type 2)."""
    frame = bytearray()
    for number in (message.fields_by_name[field].number << 3 | 2, length):
        rest = number
        while rest > 0x7F:
            frame.append(rest & 0x7F | 0x80)
            rest >>= 7
        frame.append(rest)
    return bytes(frame)


class RequestEncoder:
    """Cuts batches into requests that all carry one resource and one scope."""

    def __init__(self, resource: Attributes, version: str = "", schema_url: str = "") -> None:
        self._resource = ResourceMetrics(
            resource=resource_message(resource), schema_url=schema_url
        ).SerializeToString()
        scope = InstrumentationScope(name=SCOPE_NAME, version=version)
        self._scope = ScopeMetrics(scope=scope).SerializeToString()

    def requests(
        self, batch: Batch, max_points: int = MAX_POINTS, max_bytes: int = MAX_BYTES
    ) -> Iterator[Request]:
        """Yield the requests of a batch one by one; each is made when it is asked for.

        A request has at most `max_points` points and at most `max_bytes` bytes, unless a single point
        is larger.
        """
        parts: list[bytes] = []
        room, points = max_bytes - self._overhead(), 0
        for source in batch.metrics:
            first = 0
            while first < len(source):
                head = _metric_head(source.spec)
                if points and (points >= max_points or room <= 0):
                    yield Request(self._envelope(parts), points)
                    parts, room, points = [], max_bytes - self._overhead(), 0
                    continue
                framed, following = source.take(first, max_points - points, room - len(head) - _FRAMES)
                if points and len(framed) + len(head) + _FRAMES > room:
                    room = 0  # not even one point fits: it opens the next request
                    continue
                metric = _metric_parts(source.spec, head, framed)
                parts += metric
                room -= sum(map(len, metric))
                points += following - first
                first = following
        if points:
            yield Request(self._envelope(parts), points)

    def _overhead(self) -> int:
        return len(self._resource) + len(self._scope) + _FRAMES

    def _envelope(self, metrics: list[bytes]) -> bytes:
        """Wrap encoded metrics in scope and resource (MetricsData and the request: the same on the wire)."""
        scope_bytes = len(self._scope) + sum(map(len, metrics))
        scope_frame = framing(ResourceMetrics.DESCRIPTOR, "scope_metrics", scope_bytes)
        resource_bytes = len(self._resource) + len(scope_frame) + scope_bytes
        resource_frame = framing(MetricsData.DESCRIPTOR, "resource_metrics", resource_bytes)
        return b"".join((resource_frame, self._resource, scope_frame, self._scope, *metrics))


_FRAMES: Final = 24
"""Upper bound of the bytes that framing three nested messages takes."""


def _metric_head(spec: MetricSpec) -> bytes:
    """Return the fields of a metric that stand before its data."""
    return Metric(name=spec.name, description=spec.description, unit=spec.unit).SerializeToString()


def _metric_parts(spec: MetricSpec, head: bytes, framed_points: bytes) -> list[bytes]:
    """Return one metric, framed as an element of ScopeMetrics.metrics, in pieces to be joined."""
    if spec.kind is MetricKind.GAUGE:
        field, data = "gauge", Gauge().SerializeToString()
    elif spec.kind is MetricKind.HISTOGRAM:
        field = "exponential_histogram"
        histogram = ExponentialHistogram(aggregation_temporality=AGGREGATION_TEMPORALITY_CUMULATIVE)
        data = histogram.SerializeToString()
    else:
        total = Sum(
            aggregation_temporality=AGGREGATION_TEMPORALITY_CUMULATIVE,
            is_monotonic=spec.kind is MetricKind.COUNTER,
        )
        field, data = "sum", total.SerializeToString()
    data_frame = framing(Metric.DESCRIPTOR, field, len(data) + len(framed_points))
    length = len(head) + len(data_frame) + len(data) + len(framed_points)
    metric_frame = framing(ScopeMetrics.DESCRIPTOR, "metrics", length)
    return [metric_frame, head, data_frame, data, framed_points]
