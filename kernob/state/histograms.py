# SPDX-License-Identifier: Apache-2.0
"""The series of one metric whose values are histograms.

Enters: what was observed since the tick before, counted by bucket (`state.buckets`). Leaves:
`HistogramPoints`, cumulative, through the batches of `state.series`. Called by the tick thread only.
The life of a series is that of every other (`state.blocks`). 1.9 kB a series: its counts, and those the
backend acknowledged, which tell the buckets that are new to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from opentelemetry.proto.metrics.v1.metrics_pb2 import ExponentialHistogramDataPoint

from kernob.model import Attributes, MetricKind, MetricSpec
from kernob.state.blocks import NEW, Block, Sequence, Slots
from kernob.state.buckets import BUCKETS, LOWER_S
from kernob.state.points import AttributeTable, HistogramPoints

_LOWER_NS = np.floor(LOWER_S * 1e9).astype(np.int64)


class HistogramBlock(Block):
    """All series of a histogram metric. Bucket counts are cumulative from each series' start."""

    def __init__(self, spec: MetricSpec, sequence: Sequence | None = None) -> None:
        if spec.kind is not MetricKind.HISTOGRAM or spec.unit != "s":
            raise ValueError(f"{spec.name}: a {spec.kind.value} in {spec.unit} is no histogram of seconds")
        super().__init__(spec, AttributeTable(ExponentialHistogramDataPoint), sequence)
        self._per_slot += ["_rows", "_sums_ns", "_known_rows", "_known_sums_ns"]
        self._rows = np.zeros((0, BUCKETS), dtype=np.int64)
        self._sums_ns = np.zeros(0, dtype=np.int64)
        self._known_rows = np.zeros((0, BUCKETS), dtype=np.int64)
        self._known_sums_ns = np.zeros(0, dtype=np.int64)

    def admit(self, attributes: Attributes, start_unix_ns: int) -> int:
        """Add a series without observations that counts from `start_unix_ns`; returns its slot.

        Raises ValueError for an attribute that the metric's spec does not list.
        """
        slot = super().admit(attributes, start_unix_ns)
        for name in ("_rows", "_sums_ns", "_known_rows", "_known_sums_ns"):
            getattr(self, name)[slot] = 0
        return slot

    def add(self, slots: Slots, sums_ns: NDArray[Any], rows: NDArray[Any]) -> None:
        """Add observations: their sums in nanoseconds and counts per bucket (shape (n, BUCKETS)).

        A slot may stand there more than once. Raises ValueError for a slot that is not in use.
        """
        self._require(slots)
        np.add.at(self._rows, slots, rows.astype(np.int64, copy=False))
        np.add.at(self._sums_ns, slots, sums_ns.astype(np.int64, copy=False))
        touched = np.unique(slots)
        counts = self._rows[touched].sum(axis=1)
        self._changed(touched[counts != self._bits[touched]])
        self._bits[touched] = counts

    def points(self, now_unix_ns: int, resend_ns: int, everything: bool) -> HistogramPoints | None:
        """Return what a batch made now has to say of this metric; None for nothing (for the store)."""
        slots = self._due(now_unix_ns, resend_ns, everything)
        if not len(slots):
            return None
        new = slots[(self._flags[slots] & NEW) != 0]
        rows, known = self._rows[slots], self._known_rows[slots]
        first_seen = (rows > 0) & (known == 0)
        # where the first value of a bucket is 1, there is nothing between it and 0
        stepping = (first_seen & (rows > 1)).any(axis=1)
        steps = slots[stepping]
        step_rows = known[stepping] + first_seen[stepping]
        step_sums_ns = self._known_sums_ns[steps] + (first_seen[stepping] * _LOWER_NS).sum(axis=1)
        after = np.maximum(self._sent[steps], self._starts[steps])
        return HistogramPoints(
            self.spec, now_unix_ns, len(new), len(steps), np.concatenate((new, steps, slots)),
            np.concatenate((step_rows, rows)), np.concatenate((step_sums_ns, self._sums_ns[slots])),
            after + 1_000_000, self._starts, self._attribute_bytes, self._ids, self._table.entries,
        )  # fmt: skip

    def acknowledged(self, points: HistogramPoints) -> None:
        """Take note that the backend has these points."""
        slots = points.slots[points.starts + points.steps :].astype(np.int64)
        rows = points.rows[points.values]
        self._known_rows[slots] = rows
        self._known_sums_ns[slots] = points.sums_ns[points.values]
        self._zeros_acknowledged(slots, points.time_unix_ns)
        self._values_acknowledged(slots, rows.sum(axis=1) == self._bits[slots], points.time_unix_ns)
