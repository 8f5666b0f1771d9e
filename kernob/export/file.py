# SPDX-License-Identifier: Apache-2.0
"""Writes the requests an endpoint would get into a file, one JSON value a line.

Enters: a batch and own telemetry, each tick, and events as they come. Leaves: lines as the OpenTelemetry
"Protocol File Exporter" and OTLP's JSON encoding specify them: MetricsData or LogsData, lowerCamelCase
names, enums as numbers, 64-bit integers as strings. Called by `outlet`, in the tick's own thread (for
debugging and tests): what was submitted is in the file when the call returns.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import stat
from typing import TYPE_CHECKING, Any

import msgspec
from google.protobuf import json_format
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogsData
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, MetricsData, NumberDataPoint

from kernob.errors import ConfigError
from kernob.export.encode import Batch, RequestEncoder
from kernob.export.logs import LogEncoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from kernob.model import Attributes, Event

_log = logging.getLogger(__name__)

_BEGINNINGS = (b'{"resourceMetrics":', b'{"resourceLogs":')
_BLOCK_BYTES = 1 << 16


class OtlpFileExporter:
    """Appends to one file. Raises ConfigError if it cannot be opened."""

    def __init__(self, path: Path, resource: Attributes, version: str = "") -> None:
        self._encoder = RequestEncoder(resource, version)
        self._log_encoder = LogEncoder(resource, version)
        self._path = path
        self._failing = False
        try:
            self._file = path.open("ab", buffering=0)
            self._end_line()
        except OSError as error:
            raise ConfigError(f"OTLP file {path}: {error.strerror or error}") from error

    def write(self, batch: Batch, own: bytes | None = None) -> bool:
        """Append the batch's lines, own telemetry first; say whether all of them are written.

        A tick whose lines do not fit (disk full) leaves none behind where the file can be cut back.
        """
        return self._append_all(self._lines(batch, own), "totals are kept")

    def write_events(self, events: Sequence[Event], observed_unix_ns: int) -> bool:
        """Append events; say whether all of them are written."""
        requests = self._log_encoder.requests(events, observed_unix_ns)
        return self._append_all((logs_to_json(r.body) for r in requests), f"{len(events)} events are lost")

    def _lines(self, batch: Batch, own: bytes | None) -> Iterator[bytes]:
        if own:
            yield to_json(own)
        for request in self._encoder.requests(batch):
            yield to_json(request.body)

    def _append_all(self, lines: Iterable[bytes], consequence: str) -> bool:
        whole_bytes = os.fstat(self._file.fileno()).st_size
        try:
            for line in lines:
                self._append(line)
        except OSError as error:
            self._cut_back(whole_bytes)
            if not self._failing:
                _log.warning("cannot write %s: %s; %s", self._path, error.strerror or error, consequence)
            self._failing = True
            return False
        if self._failing:
            _log.warning("writing %s again", self._path)
        self._failing = False
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, text: bytes) -> None:
        line = memoryview(text + b"\n")
        while line:
            line = line[self._file.write(line) :]

    def _end_line(self) -> None:
        """Take away the half line of an agent that was killed while it wrote; end one that is not ours."""
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            return
        begin, rest = _last_line(self._path)
        if not rest:
            return  # as it should be
        if any(rest.startswith(own) or own.startswith(rest) for own in _BEGINNINGS):
            self._file.truncate(begin)
            _log.info("%s ended with half a line, of an agent that was killed: removed", self._path)
        else:
            self._append(b"")

    def _cut_back(self, size_bytes: int) -> None:
        """Take back a tick that was written in part, so that each line stays a whole JSON value."""
        if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            with contextlib.suppress(OSError):  # then the half line stays; readers skip what does not parse
                self._file.truncate(size_bytes)


def _last_line(path: Path) -> tuple[int, bytes]:
    """Where the part behind the last newline begins, and how (enough of it to tell what it is)."""
    with path.open("rb") as file:
        begin = end = file.seek(0, os.SEEK_END)
        while begin:
            start = max(0, begin - _BLOCK_BYTES)
            file.seek(start)
            newline = file.read(begin - start).rfind(b"\n")
            begin = start + newline + 1 if newline >= 0 else start
            if newline >= 0:
                break
        file.seek(begin)
        return begin, file.read(min(end - begin, max(map(len, _BEGINNINGS))))


def to_json(body: bytes) -> bytes:
    """Return a serialized MetricsData (or ExportMetricsServiceRequest: the same) as one line of OTLP JSON.

    json_format takes 40 us for a point, so number points are taken out before and put back after it,
    with each distinct attribute converted once.
    """
    message = MetricsData.FromString(body)
    points = [_take_points(metric) for metric in _metrics(message)]
    document: dict[str, Any] = _to_dict(message)
    metrics = (
        metric
        for resource in document.get("resourceMetrics", ())
        for scope in resource.get("scopeMetrics", ())
        for metric in scope.get("metrics", ())
    )
    for metric, (kind, taken) in zip(metrics, points, strict=True):
        if taken:
            metric[kind]["dataPoints"] = taken
    return msgspec.json.encode(document)


def logs_to_json(body: bytes) -> bytes:
    """Return a serialized LogsData (or ExportLogsServiceRequest: the same) as one line of OTLP JSON."""
    return msgspec.json.encode(_to_dict(LogsData.FromString(body)))


def _to_dict(message: Any) -> dict[str, Any]:
    return json_format.MessageToDict(message, use_integers_for_enums=True)


def _metrics(message: MetricsData) -> Iterator[Metric]:
    for resource in message.resource_metrics:
        for scope in resource.scope_metrics:
            yield from scope.metrics


def _take_points(metric: Metric) -> tuple[str, list[dict[str, Any]]]:
    """Remove a metric's number points and return them as JSON objects; other kinds keep theirs."""
    kind = metric.WhichOneof("data") or ""
    if kind not in ("gauge", "sum"):
        return kind, []
    data = getattr(metric, kind)
    points = [_point(point) for point in data.data_points]
    data.ClearField("data_points")
    return kind, points


def _point(point: NumberDataPoint) -> dict[str, Any]:
    plain = point.WhichOneof("value") == "as_int" and point.start_time_unix_nano and point.attributes
    if not plain or point.flags or point.exemplars:
        return _to_dict(point)
    return {
        "attributes": [_attribute(attribute.SerializeToString()) for attribute in point.attributes],
        "startTimeUnixNano": str(point.start_time_unix_nano),
        "timeUnixNano": str(point.time_unix_nano),
        "asInt": str(point.as_int),
    }


@functools.lru_cache(maxsize=4096)
def _attribute(serialized: bytes) -> dict[str, Any]:
    return _to_dict(KeyValue.FromString(serialized))
