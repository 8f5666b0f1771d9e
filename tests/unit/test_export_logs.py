# SPDX-License-Identifier: Apache-2.0
"""Events as OTLP log records: what they say, and that each arrives once or is counted, over real servers."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from tenacity import wait_fixed

from kernob.export import logs_worker
from kernob.export.logs import LogEncoder, log_record
from kernob.export.logs_worker import LogExporter
from kernob.export.outlet import Outlet
from kernob.export.transport import Result, Verdict
from kernob.export.worker import Pacing
from kernob.model import Event, Severity
from tests.unit.receivers import GrpcAnswer, GrpcReceiver, HttpAnswer, HttpReceiver, Options, records_in
from tests.unit.scripted import refuse_threads
from tests.unit.tcp_events import event

RESOURCE = (("service.name", "kernob"), ("host.name", "web-01"))
SOON = Pacing(backoff=wait_fixed(0.01))


def attributes(record: LogRecord) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value") or "") for a in record.attributes}


def decoded(event: Event) -> LogRecord:
    return LogRecord.FromString(log_record(event, 7))


def test_a_record_says_all_that_is_known() -> None:
    """Name, kernel's time, observed time, severity, sentence, and each attribute in its own type."""
    record = decoded(event(1.000000123, count=1))
    assert (record.event_name, record.time_unix_nano, record.observed_time_unix_nano) == (
        "kernob.tcp.reset", 1_000_000_123, 7,
    )  # fmt: skip
    assert (record.severity_number, record.severity_text) == (13, "WARN")
    assert record.body.string_value.startswith("orders.py (PID 4711) lost its connection")
    assert attributes(record) == {
        "event.name": "kernob.tcp.reset",
        "kernob.service": "orders.py",
        "process.pid": 4711,
        "process.executable.name": "python3",
        "network.transport": "tcp",
        "server.address": "10.0.0.7",
        "server.port": 5672,
        "network.tcp.handshake.role": "client",
        "network.peer.address": "10.0.0.7",
        "network.peer.port": 5672,
        "network.local.port": 40000,
        "network.io.direction": "receive",
        "kernob.reset.idle": True,
        "kernob.connection.transmitted": 10,
        "kernob.connection.received": 20,
        "kernob.connection.age": 2.5,
        "kernob.connection.silence": 1.0,
    }


def test_what_does_not_apply_is_absent() -> None:
    """A summary names no process, an unknown age is no number; reasons stand where there are some."""
    summary = attributes(decoded(event(3, suppressed=9, count=9, first_unix_ns=2_500_000_000)))
    assert summary == {
        "event.name": "kernob.tcp.reset",
        "kernob.service": "orders.py",
        "kernob.event.suppressed": 9,
        "kernob.event.first_time": 2.5,
    }
    drop = event(
        kind="kernob.tcp.drop", severity=Severity.ERROR, reason="unanswered", closed_by="peer", direction="",
        age_s=-1.0, gap_s=-1.0, pid=0,
    )  # fmt: skip
    said = attributes(decoded(drop))
    assert (said["error.type"], said["kernob.closed_by"]) == ("unanswered", "peer")
    assert said.keys().isdisjoint(
        {"network.io.direction", "kernob.reset.idle", "kernob.connection.age", "process.pid"}
    )
    assert decoded(drop).severity_number == 17
    again = attributes(decoded(event(kind="kernob.tcp.retransmit", count=12, first_unix_ns=10**9)))
    assert (again["kernob.event.count"], again["kernob.event.first_time"]) == (12, 1.0)


def test_requests_carry_resource_and_scope_and_are_cut() -> None:
    """1,203 events make three requests with every record once, in order."""
    events = [event(i, local_port=i) for i in range(1203)]
    requests = list(LogEncoder(RESOURCE, "9.9").requests(events, 1))
    assert [request.points for request in requests] == [500, 500, 203]
    with HttpReceiver() as receiver:
        exporter = LogExporter(_http(receiver), RESOURCE, "9.9")
        exporter.submit(events)
        records = receiver.inbox.wait_for_logs(1203)
        assert exporter.close(10)
    assert [record.time_unix_nano for record in records] == [e.time_unix_ns for e in events]
    (resource,) = receiver.inbox.logs[0].message.resource_logs
    assert {a.key: a.value.string_value for a in resource.resource.attributes} == dict(RESOURCE)
    assert (resource.scope_logs[0].scope.name, resource.scope_logs[0].scope.version) == ("kernob", "9.9")


def _http(receiver: HttpReceiver, **changes: Any) -> Options:
    return receiver.options(endpoint=f"http://localhost:{receiver.port}/v1/logs", **changes)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_over_http(compression: str) -> None:
    """To /v1/logs, as protobuf."""
    with HttpReceiver() as receiver:
        exporter = LogExporter(_http(receiver, compression=compression), RESOURCE)
        exporter.submit([event(1)])
        receiver.inbox.wait_for_logs(1)
        assert exporter.close(10)
    headers = receiver.inbox.logs[0].headers
    assert (headers[":path"], headers["content-type"]) == ("/v1/logs", "application/x-protobuf")


def test_over_grpc() -> None:
    """By LogsService/Export."""
    with GrpcReceiver() as receiver:
        exporter = LogExporter(receiver.options(), RESOURCE)
        exporter.submit([event(1), event(2)])
        assert len(receiver.inbox.wait_for_logs(2)) == 2
        assert exporter.close(10)


def test_an_endpoint_that_comes_back_gets_everything_once(caplog: pytest.LogCaptureFixture) -> None:
    """Three refusals that pass by: one line when it fails, one when it works; no event lost or doubled."""
    with GrpcReceiver() as receiver:
        receiver.answers.extend([GrpcAnswer(grpc.StatusCode.UNAVAILABLE, "not yet")] * 3)
        exporter = LogExporter(receiver.options(), RESOURCE, pacing=SOON)
        exporter.submit([event(i) for i in range(5)])
        receiver.inbox.wait_for_logs(20)
        exporter.submit([event(9)])
        receiver.inbox.wait_for_logs(21)
        assert exporter.close(10)
    accepted = [r.time_unix_nano // 10**9 for r in records_in(receiver.inbox.logs[3:])]
    assert accepted == [0, 1, 2, 3, 4, 9]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("cannot export events to http://127.0.0.1:")
    assert "again after" in lines[1]
    assert exporter.lost == 0


def test_what_is_refused_for_good_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Bad data and partial success: counted as lost, said, and the next events go on."""
    partial = ExportLogsServiceResponse(
        partial_success=ExportLogsPartialSuccess(rejected_log_records=2, error_message="too old")
    )
    with HttpReceiver() as receiver:
        receiver.answers.append(HttpAnswer(400))
        exporter = LogExporter(_http(receiver), RESOURCE, pacing=SOON)
        exporter.submit([event(1), event(2), event(3)])
        receiver.inbox.wait_for_logs(3)
        receiver.answers.append(HttpAnswer(body=partial.SerializeToString()))
        exporter.submit([event(4), event(5), event(6), event(7)])
        receiver.inbox.wait_for_logs(7)
        assert exporter.close(10)
    assert exporter.lost == 5
    assert "rejected 3 events: HTTP 400" in caplog.text
    assert "rejected 2 events: too old" in caplog.text


class Scripted:
    """A transport that blocks until released, then answers from a list, then accepts; until it is closed."""

    def __init__(self, *results: Result) -> None:
        self.results = deque(results)
        self.sent: list[bytes] = []
        self.called = threading.Event()
        self.released = threading.Event()
        self.closed = False

    def send(self, body: bytes, timeout_s: float) -> Result:
        self.called.set()
        assert self.released.wait(20)
        if self.closed:
            return Result(Verdict.RETRY, "cancelled", "CANCELLED")
        self.sent.append(body)
        return self.results.popleft() if self.results else Result(Verdict.ACCEPTED)

    def close(self) -> None:
        self.closed = True
        self.released.set()


OPTIONS = Options("http://localhost:1/v1/logs", "http/protobuf")


def exporter_with(transport: Scripted, **changes: Any) -> LogExporter:
    return LogExporter(OPTIONS, RESOURCE, transport=transport, **{"pacing": SOON, **changes})


def test_submitting_never_waits_and_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a request hangs, the newest events stay, the oldest are counted; none is sent twice."""
    monkeypatch.setattr(logs_worker, "QUEUE_MOST", 10)
    transport = Scripted()
    exporter = exporter_with(transport)
    exporter.submit([event(1), event(2), event(3)])
    assert transport.called.wait(20)
    exporter.submit([event(i) for i in range(4, 15)])  # 4 too many; 1, 2 and 3 are under way
    assert exporter.lost == 4
    transport.released.set()
    assert exporter.close(10)
    seconds = [
        record.time_unix_nano // 10**9
        for body in transport.sent
        for resource in _request(body).resource_logs
        for record in resource.scope_logs[0].log_records
    ]
    assert seconds == [1, 2, 3, *range(8, 15)]


def _request(body: bytes) -> Any:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    return ExportLogsServiceRequest.FromString(body)


def test_an_endpoint_that_takes_no_logs_is_asked_seldom() -> None:
    """404: once a minute is enough, and the events wait."""
    pauses: list[float] = []
    done = threading.Event()

    def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 2:
            done.set()

    transport = Scripted(Result(Verdict.REFUSED, "404", "HTTP 404"), Result(Verdict.RETRY, "429", "", 33.0))
    transport.released.set()
    exporter = exporter_with(transport, pacing=Pacing(backoff=wait_fixed(0.01), sleep=sleep))
    exporter.submit([event(1)])
    assert done.wait(20)
    assert exporter.close(10)
    assert pauses == [60.0, 33.0]
    assert exporter.lost == 0


def test_without_a_thread_events_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tick that hands them over goes on; the first that is granted a thread sends all of them."""
    granted = refuse_threads(monkeypatch, "kernob-logs")
    transport = Scripted()
    transport.released.set()
    exporter = exporter_with(transport)
    exporter.submit([event(1)])
    granted()
    exporter.submit([event(2)])
    assert exporter.close(10)
    assert (len(transport.sent), exporter.lost) == (1, 0)


def test_closing_gives_up_in_time(caplog: pytest.LogCaptureFixture) -> None:
    """An endpoint that does not answer does not hold the end up; what is left is said."""
    transport = Scripted()
    exporter = exporter_with(transport)
    exporter.submit([event(1), event(2)])
    assert transport.called.wait(20)
    assert not exporter.close(0.05)
    assert "2 events did not reach" in caplog.text


def test_the_file_gets_events_as_otlp_json(tmp_path: Path) -> None:
    """LogsData lines, besides what the endpoint gets; without an endpoint they are not lost."""
    path = tmp_path / "otlp.jsonl"
    none = Options("http://localhost:1", "http/protobuf", exporter="none")
    outlet: Outlet[Any] = Outlet(none, (), path, "1", logs=none)
    outlet.submit_events([event(1), event(2)])
    assert outlet.lost_events == 0
    outlet.close(1)
    (line,) = path.read_text().splitlines()
    (resource,) = json.loads(line)["resourceLogs"]
    records = resource["scopeLogs"][0]["logRecords"]
    assert [record["timeUnixNano"] for record in records] == ["1000000000", "2000000000"]
    assert records[0]["severityNumber"] == 13
    assert records[0]["eventName"] == "kernob.tcp.reset"
    assert {"key": "process.pid", "value": {"intValue": "4711"}} in records[0]["attributes"]


def test_a_file_without_room_counts_what_it_did_not_take(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk: said once, counted."""
    none = Options("http://localhost:1", "http/protobuf", exporter="none")
    outlet: Outlet[Any] = Outlet(none, (), Path("/dev/full"), "1")
    for _ in range(2):
        outlet.submit_events([event(1), event(2)])
    assert outlet.lost_events == 4
    outlet.close(1)
    assert len(caplog.records) == 1


def test_events_go_out_while_metrics_do_not(tmp_path: Path) -> None:
    """Each signal has its own switch."""
    with HttpReceiver() as receiver:
        metrics = Options("http://localhost:1", "http/protobuf", exporter="none")
        outlet: Outlet[Any] = Outlet(metrics, (), None, "1", logs=_http(receiver))
        outlet.submit_events([event(1)])
        receiver.inbox.wait_for_logs(1)
        outlet.close(5)


def test_a_fault_of_ours_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception costs the events that caused it, is said and counted."""

    class Broken(Scripted):
        def send(self, body: bytes, timeout_s: float) -> Result:
            if not self.sent:
                self.sent.append(b"")
                raise RuntimeError("boom")
            return super().send(body, timeout_s)

    transport = Broken()
    transport.released.set()
    exporter = exporter_with(transport)
    exporter.submit([event(1)])
    _until(lambda: exporter.lost == 1)
    exporter.submit([event(2)])
    assert exporter.close(10)
    assert len(transport.sent) == 2
    assert "failed unexpectedly" in caplog.text


def _until(condition: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(2000):
        if condition():
            return
        waiting.wait(0.005)
    pytest.fail("waited in vain")
