# SPDX-License-Identifier: Apache-2.0
"""The exporter with a real endpoint on loopback that is away for a while: all that was counted arrives."""

from __future__ import annotations

import numpy as np
import pytest
from tenacity import wait_none

from kernob.export.encode import MAX_POINTS
from kernob.export.worker import Exporter, Pacing
from kernob.state.points import MetricBatch
from kernob.state.series import SeriesStore
from tests.unit.receivers import WAIT_S, GrpcReceiver, HttpAnswer, HttpReceiver, points_in
from tests.unit.scripted import SECOND_NS, SPEC, START_NS


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_totals_survive_an_outage_end_to_end(protocol: str) -> None:
    """Over a real connection: 503 and a restart of the series' values in between lose no byte."""
    store = SeriesStore()
    block = store.block(SPEC)
    slots = np.array([block.admit((("process.pid", pid),), START_NS) for pid in range(12_000)])
    with GrpcReceiver() if protocol == "grpc" else HttpReceiver() as receiver:
        exporter: Exporter[MetricBatch] = Exporter(
            receiver.options(compression="gzip"), (("service.name", "kernob"),), pacing=Pacing(wait_none())
        )
        if isinstance(receiver, HttpReceiver):
            receiver.answers.extend([HttpAnswer(503), HttpAnswer(429)])
        block.set(slots, np.arange(12_000))
        exporter.submit(store.batch(START_NS + SECOND_NS))
        receiver.inbox.wait_for(10)
        block.end(slots)
        assert exporter.close(WAIT_S)
        (batch,) = exporter.acknowledged()
        store.acknowledge(batch)
    last = {
        point.attributes[0].value.int_value: point.as_int
        for received in receiver.inbox.requests
        for _, point in points_in(received.message)
    }
    assert last == {pid: pid for pid in range(12_000)}
    assert len(block) == 0
    assert all(
        received.message.ByteSize() < 4 * 1024 * 1024 and len(points_in(received.message)) <= MAX_POINTS
        for received in receiver.inbox.requests
    )
