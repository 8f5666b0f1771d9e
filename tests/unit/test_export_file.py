# SPDX-License-Identifier: Apache-2.0
"""What `--otlp-file` writes, and how the ways out of the agent go together."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from opentelemetry.proto.metrics.v1.metrics_pb2 import MetricsData

from kernob.errors import ConfigError
from kernob.export import file
from kernob.export.encode import RequestEncoder
from kernob.export.file import OtlpFileExporter, to_json
from kernob.export.outlet import Outlet
from kernob.export.telemetry import OwnTelemetry
from kernob.model import Attributes, MetricKind, MetricSpec, Snapshot
from kernob.state.points import MetricBatch
from kernob.state.series import SeriesStore
from tests.unit.receivers import WAIT_S, HttpReceiver, Options, points_in

BYTES = MetricSpec("process.network.io", "By", MetricKind.COUNTER, "bytes", ("process.pid", "service"))
FILL = MetricSpec("kernob.fill", "1", MetricKind.GAUGE, "fill", ("map",), integer=False)
RESOURCE: Attributes = (("service.name", "kernob"),)
START_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
SNAPSHOT = Snapshot(START_NS, START_NS, 10.0, "web-1", ())


def store_with(pids: int) -> SeriesStore:
    store = SeriesStore()
    block = store.block(BYTES)
    for pid in range(pids):
        slot = block.admit((("process.pid", pid), ("service", f'käse "{pid}"')), START_NS)
        block.set(np.array([slot]), np.array([2**62 + pid]))
    return store


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def points_of(document: Any) -> list[Any]:
    (metric,) = document["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
    return list(metric["sum"]["dataPoints"])


def test_a_line_is_otlp_json(tmp_path: Path) -> None:
    """Names in lowerCamelCase, 64-bit integers as strings, enums as numbers, text in UTF-8."""
    exporter = OtlpFileExporter(tmp_path / "out.jsonl", RESOURCE, "0.1")
    assert exporter.write(store_with(1).batch(START_NS + SECOND_NS))
    exporter.close()
    attributes = [
        {"key": "process.pid", "value": {"intValue": "0"}},
        {"key": "service", "value": {"stringValue": 'käse "0"'}},
    ]
    start = str(START_NS)
    zero = {"attributes": attributes, "startTimeUnixNano": start, "timeUnixNano": start, "asInt": "0"}
    value = {**zero, "timeUnixNano": str(START_NS + SECOND_NS), "asInt": str(2**62)}
    metric = {
        "name": "process.network.io",
        "description": "bytes",
        "unit": "By",
        "sum": {"dataPoints": [zero, value], "aggregationTemporality": 2, "isMonotonic": True},
    }
    assert lines_of(tmp_path / "out.jsonl") == [
        {
            "resourceMetrics": [
                {
                    "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "kernob"}}]},
                    "scopeMetrics": [{"scope": {"name": "kernob", "version": "0.1"}, "metrics": [metric]}],
                }
            ]
        }
    ]


def test_the_json_is_protobufs_own() -> None:
    """Gauges, values without a number, histograms: every line reads back as the request it was made from."""
    store = store_with(3)
    fill = store.block(FILL)
    slots = np.array([fill.admit((("map", name),), START_NS) for name in "abc"])
    fill.set(slots, np.array([0.5, float("nan"), float("inf")]))
    store.acknowledge(store.batch(START_NS))
    fill.end(slots[:1])
    own = OwnTelemetry(RESOURCE)
    own.observe(SNAPSHOT)
    own.exported(0.5, "timeout")
    bulk = RequestEncoder(RESOURCE).requests(store.batch(START_NS + SECOND_NS, everything=True))
    bodies = [own.collect() or b"", *(request.body for request in bulk)]
    assert len(bodies) == 2
    for body in bodies:
        message = MetricsData.FromString(body)
        read_back = json_format.Parse(to_json(body), MetricsData())
        assert read_back.SerializeToString(deterministic=True) == message.SerializeToString(
            deterministic=True
        )
        assert json.loads(to_json(body)) == json_format.MessageToDict(message, use_integers_for_enums=True)


def test_each_tick_is_appended_and_complete(tmp_path: Path) -> None:
    """Requests become lines, own telemetry first; a second exporter goes on where the first ended."""
    path = tmp_path / "out.jsonl"
    own = OwnTelemetry(RESOURCE).collect()
    for _ in range(2):
        exporter = OtlpFileExporter(path, RESOURCE)
        assert exporter.write(store_with(3000).batch(START_NS + SECOND_NS), own)
        assert len(lines_of(path)) % 4 == 0
        exporter.close()
    documents = lines_of(path)
    assert len(documents) == 8
    assert [len(points_of(documents[index])) for index in (1, 2, 3, 5, 6, 7)] == [2500, 2500, 1000] * 2


@pytest.mark.parametrize("left_bytes", [1, 10, 30, 70_000, 200_000])
def test_half_a_line_of_a_killed_agent_is_removed(tmp_path: Path, left_bytes: int) -> None:
    """However long it is, and whatever it stands behind; a whole line stays."""
    path = tmp_path / "out.jsonl"
    exporter = OtlpFileExporter(path, RESOURCE)
    assert exporter.write(store_with(2000).batch(START_NS + SECOND_NS))
    exporter.close()
    whole = path.read_bytes()
    assert len(whole) > left_bytes
    for before in (b"", whole):
        path.write_bytes(before + whole[:left_bytes])
        exporter = OtlpFileExporter(path, RESOURCE)
        assert path.read_bytes() == before
        assert exporter.write(store_with(1).batch(START_NS + SECOND_NS))
        exporter.close()
        assert len(lines_of(path)) == before.count(b"\n") + 1


def test_what_is_not_ours_is_kept_and_ended(tmp_path: Path) -> None:
    """A file that somebody else began: our first line is one of its own."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"# begun by hand")
    exporter = OtlpFileExporter(path, RESOURCE)
    assert exporter.write(store_with(1).batch(START_NS + SECOND_NS))
    exporter.close()
    first, second = path.read_bytes().splitlines()
    assert first == b"# begun by hand"
    assert points_of(json.loads(second))


def test_a_file_that_cannot_be_opened_is_told_at_once(tmp_path: Path) -> None:
    """A directory, a missing directory: one line with path and reason."""
    with pytest.raises(ConfigError, match=f"^OTLP file {tmp_path}: Is a directory$"):
        OtlpFileExporter(tmp_path, RESOURCE)
    missing = tmp_path / "missing" / "out.jsonl"
    with pytest.raises(ConfigError, match=f"^OTLP file {missing}: No such file or directory$"):
        OtlpFileExporter(missing, RESOURCE)


def test_a_full_disk_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """A batch that could not be written is not acknowledged; the second failure is not told again."""
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("no /dev/full here")
    caplog.set_level(logging.WARNING, logger=file.__name__)
    exporter = OtlpFileExporter(device, RESOURCE)
    store = store_with(1)
    assert [exporter.write(store.batch(START_NS + SECOND_NS)) for _ in range(2)] == [False, False]
    exporter.close()
    assert [record.getMessage() for record in caplog.records] == [
        "cannot write /dev/full: No space left on device; totals are kept"
    ]


def test_a_tick_written_in_part_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the second line fails the first is cut off again, so the file holds whole ticks only."""
    path = tmp_path / "out.jsonl"
    exporter = OtlpFileExporter(path, RESOURCE)
    assert exporter.write(store_with(1).batch(START_NS + SECOND_NS))
    before = path.read_bytes()
    written: list[bytes] = []

    def failing(body: bytes) -> bytes:
        if written:
            raise OSError(28, "No space left on device")
        written.append(body)
        return b"{}"

    with monkeypatch.context() as patch:
        patch.setattr(file, "to_json", failing)
        assert not exporter.write(store_with(3000).batch(START_NS + SECOND_NS))
    assert path.read_bytes() == before
    assert exporter.write(store_with(1).batch(START_NS + SECOND_NS))
    exporter.close()
    assert len(lines_of(path)) == 2


def test_without_any_way_out_everything_is_settled() -> None:
    """With no endpoint and no file series still end, so memory stays bounded."""
    outlet: Outlet[MetricBatch] = Outlet(Options("", "grpc", exporter="none"))
    store = store_with(2)
    store.block(BYTES).end(np.array([0, 1]))
    outlet.submit(store.batch(START_NS + SECOND_NS), SNAPSHOT)
    (batch,) = outlet.acknowledged()
    store.acknowledge(batch)
    outlet.close(0.0)
    assert len(store.block(BYTES)) == 0


def test_a_file_alone_acknowledges_what_it_wrote(tmp_path: Path) -> None:
    """Own telemetry and series are in the file when `submit` returns, and the batch is acknowledged."""
    path = tmp_path / "out.jsonl"
    outlet: Outlet[MetricBatch] = Outlet(Options("", "grpc", exporter="none"), (), path, "0.1")
    outlet.submit(store_with(1).batch(START_NS + SECOND_NS), SNAPSHOT)
    own, bulk = lines_of(path)
    assert [batch.sequence for batch in outlet.acknowledged()] == [1]
    outlet.close(0.0)
    assert own["resourceMetrics"][0]["resource"] == bulk["resourceMetrics"][0]["resource"]
    names = {metric["name"] for metric in own["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]}
    assert "process.memory.usage" in names
    assert len(points_of(bulk)) == 2


def test_the_hosts_root_may_be_mounted_elsewhere(tmp_path: Path) -> None:
    """Its machine id is the host's, and nothing else is asked."""
    identity = "0123456789abcdef" * 2
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "machine-id").write_text(identity + "\n")
    path = tmp_path / "out.jsonl"
    options = Options("", "grpc", exporter="none")
    outlet: Outlet[MetricBatch] = Outlet(options, (), path, "0.1", tmp_path / "proc", tmp_path)
    outlet.submit(store_with(1).batch(START_NS + SECOND_NS), SNAPSHOT)
    outlet.close(WAIT_S)
    resource = lines_of(path)[1]["resourceMetrics"][0]["resource"]["attributes"]
    found = {each["key"]: each["value"]["stringValue"] for each in resource}
    assert found["host.id"] == identity
    assert "os.version" not in found


def test_with_an_endpoint_only_that_acknowledges(tmp_path: Path) -> None:
    """File and endpoint get the same points; the batch is acknowledged when the endpoint has it."""
    path = tmp_path / "out.jsonl"
    with HttpReceiver() as receiver:
        outlet: Outlet[MetricBatch] = Outlet(receiver.options(), (("service.name", "edge"),), path)
        outlet.submit(store_with(1).batch(START_NS + SECOND_NS), SNAPSHOT)
        outlet.close(WAIT_S)
        assert [batch.sequence for batch in outlet.acknowledged()] == [1]
    _own, bulk = receiver.inbox.requests
    assert len(points_in(bulk.message)) == len(points_of(lines_of(path)[1])) == 2
    written = json_format.ParseDict(lines_of(path)[1], MetricsData())
    assert list(written.resource_metrics) == list(bulk.message.resource_metrics)


def test_a_malformed_endpoint_is_refused_before_anything_starts() -> None:
    """Composing the outlet already fails."""
    with pytest.raises(ConfigError, match=r"^OTLP endpoint 'nonsense': "):
        Outlet(Options("nonsense", "http/protobuf"))
