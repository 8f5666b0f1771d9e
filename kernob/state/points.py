# SPDX-License-Identifier: Apache-2.0
"""How a series' point looks on the wire, and the batches that are made of such points.

Enters: slots and values from `state.series`, attributes once per series. Leaves: serialized OTLP
NumberDataPoints and ExponentialHistogramDataPoints, which `kernob.export` puts into requests. A batch is
made by the tick thread and may be read by any other.

A series is one data point that is sent again and again. All its fields but time and value
never change, so they are encoded once: each distinct attribute becomes the bytes of a
point that has only this attribute, and a point is the concatenation of its attributes and
of a tail with start, time and value. That a message may be written as the concatenation of its
parts, in any order, is a documented property of protobuf's encoding. Attributes repeat a lot (a
service, a direction, a port), so a series holds numbers of a table of attributes, 4 bytes each.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from google.protobuf.wrappers_pb2 import BytesValue
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    DataPointFlags,
    ExponentialHistogramDataPoint,
    NumberDataPoint,
)

from kernob.model import AttributeValue, MetricKind, MetricSpec
from kernob.state.buckets import BUCKETS, FIRST_INDEX, LOWEST_S, SCALE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

PointMessage = type[NumberDataPoint] | type[ExponentialHistogramDataPoint]

_AFTER_START_NS: Final = 1_000_000
"""A value is stamped at least this long after its series' 0 point (VictoriaMetrics keeps milliseconds)."""

_HEAD_LIMIT_BYTES: Final = 6
"""Upper bound of a point's own framing: one byte of tag, at most five of length."""


@functools.lru_cache(maxsize=4096)
def _head(length: int) -> bytes:
    """Return tag and length of one `length`-byte element of data_points (field 1, as BytesValue's)."""
    return BytesValue(value=bytes(length)).SerializeToString()[:-length]


def encode_attribute(key: str, value: AttributeValue, message: PointMessage = NumberDataPoint) -> bytes:
    """Return a serialized data point that has this one attribute and nothing else."""
    if isinstance(value, bool):
        any_value = AnyValue(bool_value=value)
    elif isinstance(value, int):
        any_value = AnyValue(int_value=value)
    elif isinstance(value, float):
        any_value = AnyValue(double_value=value)
    else:
        any_value = AnyValue(string_value=value)
    return message(attributes=[KeyValue(key=key, value=any_value)]).SerializeToString()


def _tail_dtype(spec: MetricSpec) -> np.dtype[np.void]:
    """Packed layout of the fixed64 fields at a point's end: each a tag byte and eight bytes."""
    names = ["time_unix_nano", "as_int" if spec.integer else "as_double"]
    if spec.kind is not MetricKind.GAUGE:
        names.insert(0, "start_time_unix_nano")
    fields = [(part, kind) for name in names for part, kind in ((f"{name}.tag", "u1"), (name, "<i8"))]
    return np.dtype(fields)


def _tail_tags(dtype: np.dtype[np.void]) -> dict[str, int]:
    """Tag of each field of a tail: the field's number and wire type 1 (64-bit)."""
    numbers = NumberDataPoint.DESCRIPTOR.fields_by_name
    return {name: numbers[name].number << 3 | 1 for name in dtype.names or () if "." not in name}


class AttributeTable:
    """Append-only list of attributes, encoded as those of a `message`; number 0 is the absent attribute.

    A reader that holds `entries` may go on reading the numbers it knows: entries are never
    overwritten, and growing or rebuilding makes a new array.
    """

    def __init__(self, message: PointMessage, entries: Iterable[bytes] = (b"",)) -> None:
        self.message = message
        known = list(entries)
        self.entries: NDArray[np.object_] = np.empty(max(64, 2 * len(known)), dtype=object)
        self.entries[: len(known)] = known
        self._size = len(known)
        self.intern = functools.lru_cache(maxsize=4096, typed=True)(self._append)

    def _append(self, key: str, value: AttributeValue) -> tuple[int, int]:
        """Add an attribute: its number and encoded length. What fell out of the cache is stored anew."""
        if self._size == len(self.entries):
            grown = np.empty(2 * self._size, dtype=object)
            grown[: self._size] = self.entries
            self.entries = grown
        encoded = encode_attribute(key, value, self.message)
        self.entries[self._size] = encoded
        self._size += 1
        return self._size - 1, len(encoded)

    def __len__(self) -> int:
        return self._size


@dataclass(frozen=True, slots=True)
class MetricPoints:
    """The points of one metric in one batch; immutable, readable from any thread.

    `slots` and `bits` (the value's 64 bits) have one element a point; the first `zeros` points are
    the 0 points of new counters. `gone` marks points without a value (a gauge that ended).
    """

    spec: MetricSpec
    time_unix_ns: int
    zeros: int
    slots: NDArray[np.int32]
    bits: NDArray[np.int64]
    gone: NDArray[np.bool_] | None
    _starts: NDArray[np.int64]
    _attribute_bytes: NDArray[np.int32]
    _ids: NDArray[np.uint32]
    _entries: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.slots)

    def take(self, first: int, max_points: int, max_bytes: int) -> tuple[bytes, int]:
        """Encode points from `first` on: elements of data_points, framed, and the next point's index.

        Takes at most `max_points` points and `max_bytes` bytes, but always one point.
        """
        dtype = _tail_dtype(self.spec)
        slots = self.slots[first : first + max_points]
        lengths = self._attribute_bytes[slots] + dtype.itemsize
        fitting = int(np.searchsorted(np.cumsum(lengths + _HEAD_LIMIT_BYTES), max_bytes, side="right"))
        stop = first + max(1, min(len(slots), fitting))
        slots, lengths = slots[: stop - first], lengths[: stop - first]
        tails = np.empty(len(slots), dtype=dtype)
        for name, tag in _tail_tags(dtype).items():
            tails[f"{name}.tag"] = tag
        starts = self._starts[slots]
        times = np.maximum(starts + _AFTER_START_NS, self.time_unix_ns)
        zeros = max(0, min(self.zeros - first, len(slots)))
        times[:zeros] = starts[:zeros]
        tails["time_unix_nano"] = times
        if self.spec.kind is not MetricKind.GAUGE:
            tails["start_time_unix_nano"] = starts
        tails["as_int" if self.spec.integer else "as_double"] = self.bits[first:stop]
        parts = np.empty((len(slots), self._ids.shape[1] + 2), dtype=object)
        parts[:, 0] = [_head(length) for length in lengths.tolist()]
        parts[:, 1:-1] = self._entries[self._ids[slots]]
        parts[:, -1] = tails.view(f"V{dtype.itemsize}").tolist()
        if self.gone is not None:
            for index in np.flatnonzero(self.gone[first:stop]).tolist():
                self._end_point(parts[index], slots[index], int(times[index]))
        return b"".join(parts.ravel().tolist()), stop

    def _end_point(self, part: NDArray[np.object_], slot: np.int32, time_unix_ns: int) -> None:
        """Replace head and tail of one point by those of a no-recorded-value point."""
        point = NumberDataPoint(
            time_unix_nano=time_unix_ns, flags=DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
        )
        if self.spec.kind is not MetricKind.GAUGE:
            point.start_time_unix_nano = int(self._starts[slot])
        tail = point.SerializeToString()
        part[0] = _head(int(self._attribute_bytes[slot]) + len(tail))
        part[-1] = tail


_HISTOGRAM_TAIL: Final = (
    ("start_time_unix_nano", "<i8"),
    ("time_unix_nano", "<i8"),
    ("count", "<i8"),
    ("sum", "<f8"),
    ("zero_count", "<i8"),
    ("zero_threshold", "<f8"),
)


def _histogram_dtype() -> np.dtype[np.void]:
    """Packed layout of a histogram point's fixed64 fields; the scale, a varint, stands behind them."""
    fields = [
        (part, kind) for name, of in _HISTOGRAM_TAIL for part, kind in ((f"{name}.tag", "u1"), (name, of))
    ]
    return np.dtype(fields)


_SCALE_FIELD: Final = ExponentialHistogramDataPoint(scale=SCALE).SerializeToString()


@dataclass(frozen=True, slots=True)
class HistogramPoints:
    """The points of one histogram metric in one batch; immutable, readable from any thread.

    First come `starts` empty points, each stamped with its series' start, then `steps` points that say what
    the backend has plus one observation in each bucket that is new to it, then the values. VictoriaMetrics
    makes a counter of each bucket that is not empty, and takes the first value of a counter for one that
    was there before: without the steps, increase() of a new bucket would be 0.

    `slots` has one element a point, `rows` (counts per bucket) and `sums_ns` one for each step and value,
    `step_times_ns` one for each step.
    """

    spec: MetricSpec
    time_unix_ns: int
    starts: int
    steps: int
    slots: NDArray[np.int32]
    rows: NDArray[np.int64]
    sums_ns: NDArray[np.int64]
    step_times_ns: NDArray[np.int64]
    _starts: NDArray[np.int64]
    _attribute_bytes: NDArray[np.int32]
    _ids: NDArray[np.uint32]
    _entries: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def values(self) -> slice:
        """Which elements of `rows` and `sums_ns` are the values."""
        return slice(self.steps, None)

    def take(self, first: int, max_points: int, max_bytes: int) -> tuple[bytes, int]:
        """Encode points from `first` on: elements of data_points, framed, and the next point's index.

        Takes at most `max_points` points and `max_bytes` bytes, but always one point.
        """
        stop = min(len(self.slots), first + max_points)
        slots = self.slots[first:stop]
        tails = self._tails(first, stop)
        lengths = self._attribute_bytes[slots] + np.fromiter(map(len, tails), np.int64, len(tails))
        fitting = int(np.searchsorted(np.cumsum(lengths + _HEAD_LIMIT_BYTES), max_bytes, side="right"))
        count = max(1, min(len(slots), fitting))
        parts = np.empty((count, self._ids.shape[1] + 2), dtype=object)
        parts[:, 0] = [_head(length) for length in lengths[:count].tolist()]
        parts[:, 1:-1] = self._entries[self._ids[slots[:count]]]
        parts[:, -1] = tails[:count]
        return b"".join(parts.ravel().tolist()), first + count

    def _tails(self, first: int, stop: int) -> list[bytes]:
        """Everything of the points `first` to `stop` but their attributes."""
        rows = np.zeros((stop - first, BUCKETS), np.int64)
        sums_ns = np.zeros(stop - first, np.int64)
        filled = slice(max(0, self.starts - first), None)
        source = slice(max(0, first - self.starts), max(0, stop - self.starts))
        rows[filled], sums_ns[filled] = self.rows[source], self.sums_ns[source]
        starts = self._starts[self.slots[first:stop]]
        fixed = np.empty(len(rows), dtype=_histogram_dtype())
        numbers = ExponentialHistogramDataPoint.DESCRIPTOR.fields_by_name
        for name, _ in _HISTOGRAM_TAIL:
            fixed[f"{name}.tag"] = numbers[name].number << 3 | 1
        fixed["start_time_unix_nano"] = starts
        fixed["time_unix_nano"] = self._times(starts, first)
        fixed["count"] = rows.sum(axis=1)
        fixed["sum"] = sums_ns / 1e9
        fixed["zero_count"] = rows[:, 0]
        fixed["zero_threshold"] = LOWEST_S
        heads = fixed.view(f"V{fixed.dtype.itemsize}").tolist()
        spans = zip(heads, rows[:, 1:], strict=True)
        return [head + _SCALE_FIELD + _positive(row) for head, row in spans]

    def _times(self, starts: NDArray[np.int64], first: int) -> NDArray[np.int64]:
        """Stamps of as many points from `first` on: at the start, in between, and now, never two alike."""
        times = np.maximum(starts + 2 * _AFTER_START_NS, self.time_unix_ns)
        steps = slice(max(0, self.starts - first), max(0, self.starts + self.steps - first))
        offset = max(0, first - self.starts)
        between = self.step_times_ns[offset : offset + len(starts[steps])]
        times[steps] = np.clip(between, starts[steps] + _AFTER_START_NS, times[steps] - _AFTER_START_NS)
        times[: max(0, self.starts - first)] = starts[: max(0, self.starts - first)]
        return times


def _positive(counts: NDArray[np.int64]) -> bytes:
    """Encode the buckets above zero, from the first to the last that is not empty."""
    filled = np.flatnonzero(counts)
    if not len(filled):
        return b""
    first, last = int(filled[0]), int(filled[-1])
    buckets = ExponentialHistogramDataPoint.Buckets(
        offset=FIRST_INDEX + first, bucket_counts=counts[first : last + 1].tolist()
    )
    return ExponentialHistogramDataPoint(positive=buckets).SerializeToString()


@dataclass(frozen=True, slots=True)
class MetricBatch:
    """What one export sends: all series that are new, changed, ended or due again; immutable."""

    sequence: int
    time_unix_ns: int
    metrics: tuple[MetricPoints | HistogramPoints, ...]

    def __len__(self) -> int:
        """Count the points."""
        return sum(len(points) for points in self.metrics)
