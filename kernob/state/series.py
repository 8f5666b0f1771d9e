# SPDX-License-Identifier: Apache-2.0
"""Cumulative series of many processes and flows: one block a metric, and the batches made of them.

Enters: what metrics there are, once; acknowledgements of batches. Leaves: `MetricBatch` (see
`state.points`), read by the exporters of `kernob.export`. Called by the tick thread only.
"""

from __future__ import annotations

from kernob.model import MetricSpec
from kernob.state.blocks import Sequence, SeriesBlock
from kernob.state.histograms import HistogramBlock
from kernob.state.points import HistogramPoints, MetricBatch


class SeriesStore:
    """All series of the agent, a block for each metric.

    `resend_interval_s` (seconds): a series that does not change is sent again this long after it
    was last acknowledged, so that backends do not take it for dead. `confirm_s` (seconds): a counter's 0
    point and its last value are sent again this long after they were first acknowledged; 0 for a
    receiver that never forgets what it acknowledged.
    """

    def __init__(self, resend_interval_s: float = 60.0, confirm_s: float = 0.0) -> None:
        self._resend_ns = int(resend_interval_s * 1e9)
        self._confirm_ns = int(confirm_s * 1e9)
        self._sequence = Sequence()
        self._numbers: dict[str, SeriesBlock] = {}
        self._histograms: dict[str, HistogramBlock] = {}

    def block(self, spec: MetricSpec) -> SeriesBlock:
        """Return a metric's block, created at the first call; ValueError if the name means two things."""
        block = self._numbers.get(spec.name)
        if block is None:
            block = self._numbers[spec.name] = SeriesBlock(spec, self._sequence, self._confirm_ns)
        if block.spec != spec:
            raise ValueError(f"{spec.name}: specified twice, differently")
        return block

    def histogram(self, spec: MetricSpec) -> HistogramBlock:
        """Return a histogram's block, likewise."""
        block = self._histograms.get(spec.name)
        if block is None:
            block = self._histograms[spec.name] = HistogramBlock(spec, self._sequence)
        if block.spec != spec:
            raise ValueError(f"{spec.name}: specified twice, differently")
        return block

    def batch(self, now_unix_ns: int, everything: bool = False) -> MetricBatch:
        """Return what has to be sent now, which contains all that not yet acknowledged batches contained."""
        self._sequence.made += 1
        when = (now_unix_ns, self._resend_ns, everything)
        points = (
            *(block.points(*when) for block in self._numbers.values()),
            *(block.points(*when) for block in self._histograms.values()),
        )
        metrics = tuple(each for each in points if each is not None)
        return MetricBatch(self._sequence.made, now_unix_ns, metrics)

    def acknowledge(self, batch: MetricBatch) -> None:
        """Say that the backend has all of `batch`.

        Call it only when every reader is done with this batch and with all earlier ones: slots of
        forgotten series are used again after it. A batch older than the newest acknowledged one
        says nothing new and is ignored.
        """
        if batch.sequence <= self._sequence.acknowledged:
            return
        self._sequence.acknowledged = batch.sequence
        for points in batch.metrics:
            if isinstance(points, HistogramPoints):
                self._histograms[points.spec.name].acknowledged(points)
            else:
                self._numbers[points.spec.name].acknowledged(points)
        for block in (*self._numbers.values(), *self._histograms.values()):
            block.wake()
