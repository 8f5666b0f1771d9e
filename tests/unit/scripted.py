# SPDX-License-Identifier: Apache-2.0
"""An export worker on a bench: its transport follows a script, its clock moves only when it sleeps."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from tenacity import wait_none
from tenacity.wait import wait_base

from kernob.export.transport import Result, Verdict
from kernob.export.worker import Exporter, Pacing
from kernob.model import MetricKind, MetricSpec
from kernob.state.points import MetricBatch
from kernob.state.series import SeriesStore
from tests.unit.receivers import WAIT_S, Options, points_in

SPEC = MetricSpec("process.network.io", "By", MetricKind.COUNTER, "bytes", ("process.pid",))
OWN = ExportMetricsServiceRequest().SerializeToString() or b"\x0a\x00"
START_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
OPTIONS = Options("http://user:secret@collector:4318/v1/metrics?key=secret", "http/protobuf")
WHERE = "http://collector:4318/v1/metrics (http/protobuf)"

ACCEPTED = Result(Verdict.ACCEPTED)
DOWN = Result(Verdict.RETRY, "connection", "Connection refused")
THROTTLED = Result(Verdict.RETRY, "503", "HTTP 503 busy", retry_after_s=7.0)
UNAUTHORIZED = Result(Verdict.REFUSED, "401", "HTTP 401 who are you")
BAD = Result(Verdict.BAD_DATA, "400", "HTTP 400 no")


def announcing(event: threading.Event, result: Result) -> Callable[[], Result]:
    """Return an answer that sets an event when it is given."""

    def answer() -> Result:
        event.set()
        return result

    return answer


@dataclass
class ScriptedTransport:
    """Answers from a list, then accepts; an answer may be a function that is called for it."""

    answers: deque[Result | Callable[[], Result]] = field(default_factory=deque)
    bodies: list[bytes] = field(default_factory=list)
    timeouts_s: list[float] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)

    def send(self, body: bytes, timeout_s: float) -> Result:
        self.bodies.append(body)
        self.timeouts_s.append(timeout_s)
        answer = self.answers.popleft() if self.answers else ACCEPTED
        return answer if isinstance(answer, Result) else answer()

    def close(self) -> None:
        self.closed.set()

    def values(self) -> list[list[int]]:
        """Return the values in each request that was sent."""
        requests = (ExportMetricsServiceRequest.FromString(body) for body in self.bodies)
        return [[point.as_int for _, point in points_in(request)] for request in requests]


@dataclass
class Told:
    """What the observer was told."""

    failures: list[str] = field(default_factory=list)
    durations_s: list[float] = field(default_factory=list)
    replacements: int = 0
    points: int = 0

    def exported(self, duration_s: float, error_type: str) -> None:
        self.durations_s.append(duration_s)
        if error_type:
            self.failures.append(error_type)

    def replaced(self) -> None:
        self.replacements += 1

    def rejected(self, points: int) -> None:
        self.points += points


class Bench:
    """A store, an exporter with a scripted transport, and a clock that only `sleep` moves."""

    def __init__(self, backoff: wait_base | None = None) -> None:
        self.store = SeriesStore()
        self.block = self.store.block(SPEC)
        self.transport = ScriptedTransport()
        self.told = Told()
        self.now_s = 1000.0
        self.slept_s: list[float] = []
        self.while_asleep: deque[Callable[[], None]] = deque()
        self.ticks = 0
        pacing = Pacing(backoff or wait_none(), self.sleep, lambda: self.now_s)
        self.exporter: Exporter[MetricBatch] = Exporter(
            OPTIONS, (("service.name", "kernob"),), "1", self.told, transport=self.transport, pacing=pacing
        )

    def sleep(self, delay_s: float) -> None:
        self.slept_s.append(delay_s)
        self.now_s += delay_s
        if self.while_asleep:
            self.while_asleep.popleft()()

    def add(self, pid: int) -> int:
        return self.block.admit((("process.pid", pid),), START_NS)

    def set(self, slot: int, value: int) -> None:
        self.block.set(np.array([slot]), np.array([value]))

    def tick(self, own: bytes | None = None) -> None:
        """Do what the agent does: settle what arrived, make a batch, hand it over."""
        for batch in self.exporter.acknowledged():
            self.store.acknowledge(batch)
        self.ticks += 1
        self.exporter.submit(self.store.batch(START_NS + self.ticks * SECOND_NS), own)

    def finish(self) -> bool:
        """Let the worker end; what it did is then settled."""
        return self.exporter.close(WAIT_S)


def refuse_threads(monkeypatch: pytest.MonkeyPatch, name: str) -> Callable[[], None]:
    """Makes starting threads of this name fail as the system does at its limit; returns what ends that."""
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    return monkeypatch.undo
