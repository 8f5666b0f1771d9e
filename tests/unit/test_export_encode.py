# SPDX-License-Identifier: Apache-2.0
"""What requests hold, how they are cut, who they say is speaking, and what Kernob says of itself."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE, Metric

from kernob.export.encode import MAX_BYTES, Request, RequestEncoder, resource_message
from kernob.export.resource import build_resource, machine_id, os_version
from kernob.export.telemetry import OWN_METRICS, OwnTelemetry
from kernob.model import (
    Attempt,
    Attributes,
    Coverage,
    HookReport,
    MapUsage,
    MetricKind,
    MetricSpec,
    ProbeState,
    ProgramRuns,
    Snapshot,
)
from kernob.state.series import SeriesStore
from tests.unit.receivers import points_in

BYTES = MetricSpec("process.network.io", "By", MetricKind.COUNTER, "Bytes of a process", ("process.pid",))
FLOWS = MetricSpec("kernob.flow.io", "By", MetricKind.COUNTER, "Bytes of a flow", ("server.address",))
ACTIVE = MetricSpec("kernob.active", "{connection}", MetricKind.UPDOWN, "Open connections", ("service",))
FILL = MetricSpec("kernob.fill", "1", MetricKind.GAUGE, "How full", ("map",), integer=False)
RESOURCE: Attributes = (("service.name", "kernob"), ("host.cpus", 2), ("up", True), ("ratio", 0.5))
START_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000


def decode(requests: list[Request]) -> list[ExportMetricsServiceRequest]:
    return [ExportMetricsServiceRequest.FromString(request.body) for request in requests]


def metrics_of(request: ExportMetricsServiceRequest) -> dict[str, Metric]:
    (resource,) = request.resource_metrics
    (scope,) = resource.scope_metrics
    return {metric.name: metric for metric in scope.metrics}


def test_a_request_says_who_what_and_how() -> None:
    """Resource, scope, name, unit, description, temporality and monotonicity stand where OTLP has them."""
    store = SeriesStore()
    for spec, attribute in ((BYTES, "process.pid"), (ACTIVE, "service"), (FILL, "map")):
        store.block(spec).admit(((attribute, "x"),), START_NS)
    (request,) = decode(list(RequestEncoder(RESOURCE, "0.1").requests(store.batch(START_NS + SECOND_NS))))
    (resource,) = request.resource_metrics
    said = {kv.key: kv.value for kv in resource.resource.attributes}
    assert said["service.name"].string_value == "kernob"
    assert (said["host.cpus"].int_value, said["up"].bool_value, said["ratio"].double_value) == (2, True, 0.5)
    (scope,) = resource.scope_metrics
    assert (scope.scope.name, scope.scope.version) == ("kernob", "0.1")
    metrics = metrics_of(request)
    counter = metrics[BYTES.name]
    assert (counter.unit, counter.description) == ("By", "Bytes of a process")
    assert counter.sum.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
    assert counter.sum.is_monotonic
    assert not metrics[ACTIVE.name].sum.is_monotonic
    assert metrics[ACTIVE.name].sum.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
    assert metrics[FILL.name].WhichOneof("data") == "gauge"


def test_metrics_share_a_request_and_points_split_at_the_limit() -> None:
    """2,000 + 2,000 points of two metrics make a request of 2,500 and one of 1,500."""
    store = SeriesStore()
    for spec, attribute in ((BYTES, "process.pid"), (FLOWS, "server.address")):
        for number in range(1000):
            store.block(spec).admit(((attribute, number),), START_NS)
    requests = list(RequestEncoder(RESOURCE).requests(store.batch(START_NS + SECOND_NS)))
    assert [request.points for request in requests] == [2500, 1500]
    first, second = decode(requests)
    assert [len(metric.sum.data_points) for metric in metrics_of(first).values()] == [2000, 500]
    assert list(metrics_of(second)) == [FLOWS.name]


def test_long_attributes_split_earlier() -> None:
    """2,000 points of 4 KB each, more than 8 MB, are cut so that no request passes the limit."""
    store = SeriesStore()
    for number in range(1000):
        store.block(FLOWS).admit((("server.address", f"{number}" + "x" * 4096),), START_NS)
    requests = list(RequestEncoder(RESOURCE).requests(store.batch(START_NS + SECOND_NS)))
    assert max(len(request.body) for request in requests) <= MAX_BYTES
    assert [request.points for request in requests] == [842, 842, 316]
    assert sum(len(points_in(message)) for message in decode(requests)) == 2000


def test_an_empty_batch_makes_no_request() -> None:
    """Nothing to say is nothing to send."""
    assert list(RequestEncoder(RESOURCE).requests(SeriesStore().batch(START_NS))) == []


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 12), min_size=3, max_size=3),
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=12),
    max_points=st.integers(1, 20),
    max_bytes=st.integers(1, 3000),
)
def test_however_it_is_cut_each_point_is_there_once(
    counts: list[int], lengths: list[int], max_points: int, max_bytes: int
) -> None:
    """For any limits: every point arrives once, limits hold, only a lone point passes the byte limit."""
    store = SeriesStore()
    expected = []
    for spec, count in zip((BYTES, FLOWS, FILL), counts, strict=True):
        for number in range(count):
            text = f"{number}:" + "x" * lengths[number % len(lengths)]
            slot = store.block(spec).admit(((spec.attributes[0], text),), START_NS)
            store.block(spec).set(np.array([slot]), np.array([number + 1]))
            expected += [(spec.name, text)] * (1 if spec is FILL else 2)
    batch = store.batch(START_NS + SECOND_NS)
    requests = list(RequestEncoder(RESOURCE).requests(batch, max_points, max_bytes))
    found = []
    for request, message in zip(requests, decode(requests), strict=True):
        points = points_in(message)
        assert request.points == len(points) <= max_points
        assert len(request.body) <= max_bytes or len(points) == 1
        found += [(name, point.attributes[0].value.string_value) for name, point in points]
    assert sorted(found) == sorted(expected)


def host(root: Path, machine: str = "0123456789abcdef0123456789abcdef\n", version: str = "12") -> Path:
    """Make a file system with what the resource reads of a host."""
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "machine-id").write_text(machine)
    (root / "etc" / "os-release").write_text(f'NAME="Debian"\nVERSION_ID="{version}"\nVERSION="12 (b)"\n')
    return root


def test_the_resource_says_which_host_it_is(tmp_path: Path) -> None:
    """Service, host and operating system, with an instance id that depends only on the machine id."""
    attributes = dict(build_resource((), "0.1.0", [host(tmp_path / "host")], "web-1"))
    assert attributes == {
        "service.name": "kernob",
        "service.version": "0.1.0",
        "service.instance.id": str(
            uuid.uuid5(uuid.UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320"), "0123456789abcdef0123456789abcdef")
        ),
        "host.name": "web-1",
        "host.id": "0123456789abcdef0123456789abcdef",
        "os.type": "linux",
        "os.version": "12",
    }
    renamed = dict(build_resource((), "0.2.0", [tmp_path / "host"], "web-2"))
    assert renamed["service.instance.id"] == attributes["service.instance.id"]


def test_the_hosts_files_come_before_the_containers(tmp_path: Path) -> None:
    """The first root with a usable file wins, file by file."""
    first, second = host(tmp_path / "a"), host(tmp_path / "b", "f" * 32, "13")
    assert (machine_id([first, second]), os_version([second, first])) == ("0123456789abcdef" * 2, "13")
    (first / "etc" / "machine-id").write_text("")
    assert machine_id([first, second]) == "f" * 32


def test_a_hosts_name_may_be_any_bytes() -> None:
    """sethostname(2) takes bytes that are no Unicode; the agent starts, with a mark in their place."""
    attributes = build_resource((), "1", [], "caf\udce9-\u00e9")
    assert dict(attributes)["host.name"] == "caf?-\u00e9"
    assert resource_message(attributes).SerializeToString()


@pytest.mark.parametrize("content", ["uninitialized\n", "", "0123", "G" * 32])
def test_a_host_without_machine_id_is_known_by_its_name(tmp_path: Path, content: str) -> None:
    """No host.id then, and an instance id that is the same at each start."""
    roots = [host(tmp_path / "host", content)]
    one, two = (dict(build_resource((), "1", roots, name)) for name in ("web-1", "web-2"))
    assert "host.id" not in one
    assert one["service.instance.id"] == dict(build_resource((), "2", roots, "web-1"))["service.instance.id"]
    assert one["service.instance.id"] != two["service.instance.id"]


def test_what_the_user_sets_wins(tmp_path: Path) -> None:
    """Configured attributes replace found ones and add to them; an empty one removes."""
    configured = (("service.name", "edge"), ("deployment.environment.name", "prod"), ("os.version", ""))
    attributes = dict(build_resource(configured, "1", [host(tmp_path / "host")], "web-1"))
    assert attributes["service.name"] == "edge"
    assert attributes["deployment.environment.name"] == "prod"
    assert "os.version" not in attributes


SNAPSHOT = Snapshot(
    time_unix_ns=START_NS,
    started_unix_ns=START_NS,
    window_s=10.0,
    host="web-1",
    flows=(),
    hooks=(
        HookReport("traffic", "send", ProbeState.ATTACHED, "raw_tp", (Attempt("raw_tp", True),)),
        HookReport(
            "traffic",
            "splice",
            ProbeState.FAILED,
            "",
            (Attempt("fentry", False, "tcp_x: no such function in BTF"),
             Attempt("kprobe", False, "tcp_x: kprobe: Permission denied\n")),
        ),
        HookReport("dns", "answers", ProbeState.OFF, "", ()),
    ),
    maps=(MapUsage("flows", 10, 131072, 1 << 20),),
    losses={"map_full": 0, "series_cap": 7},
    coverage=(Coverage("eth0", "transmit", 0.97), Coverage("eth0", "receive", None)),
    runs=(ProgramRuns("traffic", 1000, 0.25),),
)  # fmt: skip


def own_metrics(telemetry: OwnTelemetry) -> dict[str, Metric]:
    body = telemetry.collect()
    assert body is not None
    return metrics_of(ExportMetricsServiceRequest.FromString(body))


def numbers(metric: Metric) -> dict[tuple[str, ...], float]:
    """Return a metric's values by the values of its attributes, sorted by key."""
    return {
        tuple(kv.value.string_value for kv in sorted(point.attributes, key=lambda kv: kv.key)): (
            point.as_int if point.HasField("as_int") else point.as_double
        )
        for point in metric.sum.data_points or metric.gauge.data_points
    }


def test_own_health_is_what_the_snapshot_says(tmp_path: Path) -> None:
    """Hooks with their strategy or reason, maps, losses, coverage, run times, and the agent's own memory."""
    (tmp_path / "statm").write_text("9000 300 200 1 0 400 0\n")
    telemetry = OwnTelemetry(RESOURCE, "1", tmp_path)
    telemetry.observe(SNAPSHOT)
    metrics = own_metrics(telemetry)
    attached = metrics["kernob.probe.attached"].gauge.data_points
    assert [{kv.key: kv.value.string_value for kv in point.attributes} for point in attached] == [
        {"kernob.probe": "traffic", "kernob.hook": "send", "kernob.strategy": "raw_tp"},
        {"kernob.probe": "traffic", "kernob.hook": "splice", "kernob.strategy": "",
         "error.type": "Permission denied"},
        {"kernob.probe": "dns", "kernob.hook": "answers", "kernob.strategy": ""},
    ]  # fmt: skip
    assert [point.as_int for point in attached] == [1, 0, 0]
    assert numbers(metrics["kernob.bpf.map.entries"]) == {("flows",): 10}
    assert numbers(metrics["kernob.bpf.map.capacity"]) == {("flows",): 131072}
    assert numbers(metrics["kernob.lost"]) == {("map_full",): 0, ("series_cap",): 7}
    assert numbers(metrics["kernob.coverage"]) == {("eth0", "transmit"): 0.97}
    assert numbers(metrics["kernob.probe.runs"]) == {("traffic",): 1000}
    assert numbers(metrics["kernob.probe.run_time"]) == {("traffic",): 0.25}
    assert numbers(metrics["process.memory.usage"]) == {(): 300 * os.sysconf("SC_PAGE_SIZE")}
    assert set(numbers(metrics["process.cpu.time"])) == {("user",), ("system",)}
    assert numbers(metrics["kernob.export.replaced"]) == {(): 0}


def test_exporting_is_observed() -> None:
    """Durations by outcome, failures by reason, replaced batches and rejected points are counted."""
    telemetry = OwnTelemetry(RESOURCE)
    telemetry.exported(0.02, "")
    telemetry.exported(7.0, "timeout")
    telemetry.exported(0.2, "timeout")
    telemetry.replaced()
    telemetry.rejected(12)
    metrics = own_metrics(telemetry)
    durations = {
        len(point.attributes): point for point in metrics["kernob.export.duration"].histogram.data_points
    }
    assert (durations[0].count, durations[0].sum, durations[1].count) == (1, 0.02, 2)
    assert numbers(metrics["kernob.export.failures"]) == {("timeout",): 2}
    assert numbers(metrics["kernob.export.replaced"]) == {(): 1}
    assert numbers(metrics["kernob.export.rejected"]) == {(): 12}


def test_own_metrics_are_what_the_list_says(tmp_path: Path) -> None:
    """Every metric exported is in OWN_METRICS and the other way round, with unit, kind and attributes."""
    (tmp_path / "statm").write_text("1 1 1 1 0 1 0\n")
    telemetry = OwnTelemetry(RESOURCE, "1", tmp_path)
    telemetry.observe(SNAPSHOT)
    telemetry.exported(0.1, "timeout")
    telemetry.exported_logs(0.1, "404")
    metrics = own_metrics(telemetry)
    assert set(metrics) == {spec.name for spec in OWN_METRICS}
    for spec in OWN_METRICS:
        metric = metrics[spec.name]
        data = getattr(metric, str(metric.WhichOneof("data")))
        kind = {"gauge": MetricKind.GAUGE, "histogram": MetricKind.HISTOGRAM}.get(
            str(metric.WhichOneof("data")),
            MetricKind.COUNTER if metric.sum.is_monotonic else MetricKind.UPDOWN,
        )
        assert (metric.unit, kind) == (spec.unit, spec.kind)
        assert {kv.key for point in data.data_points for kv in point.attributes} == set(spec.attributes)


def test_own_telemetry_has_the_same_resource() -> None:
    """Nothing is added to or taken from the resource of the bulk series."""
    body = OwnTelemetry(RESOURCE).collect()
    assert body is not None
    own = ExportMetricsServiceRequest.FromString(body).resource_metrics[0].resource
    store = SeriesStore()
    store.block(BYTES).admit((("process.pid", 1),), START_NS)
    (bulk,) = decode(list(RequestEncoder(RESOURCE).requests(store.batch(START_NS))))
    assert own == bulk.resource_metrics[0].resource
