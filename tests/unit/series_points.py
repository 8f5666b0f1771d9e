# SPDX-License-Identifier: Apache-2.0
"""Metrics to make series of, and what a batch of them says, decoded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from opentelemetry.proto.metrics.v1.metrics_pb2 import DataPointFlags, NumberDataPoint, Sum

from kernob.model import MetricKind, MetricSpec
from kernob.state.points import MetricBatch

BYTES = MetricSpec("process.network.io", "By", MetricKind.COUNTER, "bytes", ("process.pid", "direction"))
FILL = MetricSpec("kernob.fill", "1", MetricKind.GAUGE, "a ratio", ("map",), integer=False)
ACTIVE = MetricSpec("kernob.active", "{connection}", MetricKind.UPDOWN, "connections", ("service",))

START_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
GONE = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK


def slots(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, dtype=np.int64)


def values(*numbers: float) -> NDArray[np.generic]:
    return np.array(numbers)


def points_of(batch: MetricBatch, name: str, max_points: int = 5000) -> list[NumberDataPoint]:
    """Decode one metric's points of a batch, taken in pieces of `max_points`."""
    decoded: list[NumberDataPoint] = []
    for metric in batch.metrics:
        first = 0
        while metric.spec.name == name and first < len(metric):
            framed, first = metric.take(first, max_points, 1 << 20)
            decoded.extend(Sum.FromString(framed).data_points)
    return decoded
