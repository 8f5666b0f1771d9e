# SPDX-License-Identifier: Apache-2.0
"""How batches reach an endpoint that is down, slow, throttling or picky, and what is said about it.

The transport is scripted and time is told, so nothing here depends on how fast anything runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import pytest
from tenacity.wait import wait_fixed

from kernob.export import worker
from kernob.export.encode import MAX_POINTS
from kernob.export.transport import Result, Verdict
from kernob.export.worker import Exporter, Pacing
from kernob.state.points import MetricBatch
from tests.unit.receivers import WAIT_S
from tests.unit.scripted import (
    ACCEPTED,
    BAD,
    DOWN,
    OPTIONS,
    OWN,
    SECOND_NS,
    START_NS,
    THROTTLED,
    UNAUTHORIZED,
    WHERE,
    Bench,
    announcing,
    refuse_threads,
)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.finish()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == worker.__name__]


@pytest.fixture(autouse=True)
def info_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=worker.__name__)


def test_a_batch_is_sent_and_acknowledged_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Own telemetry goes first, then the series; the batch is acknowledged once; one line says it works."""
    bench.set(bench.add(1), 10)
    bench.tick(OWN)
    assert bench.finish()
    assert bench.transport.bodies[0] == OWN
    assert bench.transport.values()[1:] == [[0, 10]]
    (batch,) = bench.exporter.acknowledged()
    assert (batch.sequence, bench.exporter.acknowledged()) == (1, [])
    assert lines(caplog) == [f"exporting to {WHERE}"]
    assert (bench.told.failures, len(bench.told.durations_s)) == ([], 2)


def test_an_empty_batch_sends_nothing_and_is_acknowledged(bench: Bench) -> None:
    """When nothing changed no request is made."""
    bench.tick()
    bench.finish()
    assert bench.transport.bodies == []
    assert len(bench.exporter.acknowledged()) == 1


def test_without_a_thread_the_tick_goes_on(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said once; with the first tick that is granted a thread everything is sent."""
    granted = refuse_threads(monkeypatch, "kernob-export")
    bench.set(bench.add(1), 10)
    bench.tick()
    bench.tick()
    granted()
    assert bench.transport.bodies == []
    bench.tick()
    assert bench.finish()
    assert bench.transport.values() == [[0, 10]]
    assert lines(caplog)[0] == f"cannot export to {WHERE}: no thread can be started; totals are kept"
    assert len(lines(caplog)) == 2


def test_failures_are_retried_until_the_endpoint_answers(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Three failures and a success: four attempts of the same request, two lines, the batch acknowledged."""
    bench.set(bench.add(1), 10)
    bench.transport.answers.extend([DOWN, THROTTLED, DOWN])
    recovered = threading.Event()
    bench.transport.answers.append(announcing(recovered, ACCEPTED))
    bench.tick()
    assert recovered.wait(WAIT_S)
    bench.finish()
    assert bench.transport.values() == [[0, 10]] * 4
    assert bench.told.failures == ["connection", "503", "connection"]
    assert bench.slept_s == [0.0, 7.0, 0.0]
    assert lines(caplog) == [
        f"cannot export to {WHERE}: Connection refused; totals are kept",
        f"exporting to {WHERE} again after 7 s, 3 failed attempts, 0 replaced batches",
    ]
    assert len(bench.exporter.acknowledged()) == 1


def test_the_longer_of_backoff_and_retry_after_counts() -> None:
    """With a backoff of 10 s, Retry-After 7 s changes nothing; one of 30 s does."""
    bench = Bench(wait_fixed(10))
    later = Result(Verdict.RETRY, "429", "HTTP 429", retry_after_s=30.0)
    recovered = threading.Event()
    bench.transport.answers.extend([DOWN, THROTTLED, later, announcing(recovered, ACCEPTED)])
    bench.set(bench.add(1), 10)
    bench.tick()
    assert recovered.wait(WAIT_S)
    bench.finish()
    assert bench.slept_s == [10.0, 10.0, 30.0]


def test_the_backoff_grows_is_random_and_bounded() -> None:
    """The n-th wait is within 0.1 s and 2**(n-1) s, never above 15 s, and not always the same."""
    waits: list[float] = []
    bench = Bench(worker._BACKOFF)
    for _ in range(40):
        bench.transport.answers.append(DOWN)
    recovered = threading.Event()
    bench.transport.answers.append(announcing(recovered, ACCEPTED))
    bench.set(bench.add(1), 10)
    bench.tick()
    assert recovered.wait(WAIT_S)
    bench.finish()
    waits = bench.slept_s
    assert len(waits) == 40
    assert all(0.1 <= wait_s <= min(15.0, 2.0**attempt) for attempt, wait_s in enumerate(waits))
    assert len({round(wait_s, 6) for wait_s in waits[10:]}) > 1


def test_a_newer_batch_replaces_one_that_failed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """While the endpoint is down ticks go on; when it answers it gets the newest totals, once, with the 0."""
    slot = bench.add(1)
    bench.set(slot, 10)
    recovered = threading.Event()
    bench.transport.answers.extend([DOWN, DOWN, DOWN, announcing(recovered, ACCEPTED)])

    def tick_with(value: int) -> Callable[[], None]:
        def act() -> None:
            bench.set(slot, value)
            bench.tick()

        return act

    bench.while_asleep.extend([tick_with(20), tick_with(30), tick_with(40)])
    bench.tick()
    assert recovered.wait(WAIT_S)
    bench.finish()
    assert bench.transport.values() == [[0, 10], [0, 20], [0, 30], [0, 40]]
    assert bench.told.replacements == 3
    assert [batch.sequence for batch in bench.exporter.acknowledged()] == [4]
    assert lines(caplog)[-1].endswith("3 failed attempts, 3 replaced batches")


def test_only_one_batch_waits(bench: Bench) -> None:
    """Of a hundred batches submitted while one is under way, ninety-nine are replaced and one is sent."""
    under_way, go_on = threading.Event(), threading.Event()

    def held() -> Result:
        under_way.set()
        assert go_on.wait(WAIT_S)
        return ACCEPTED

    slot = bench.add(1)
    bench.transport.answers.append(held)
    bench.tick()
    assert under_way.wait(WAIT_S)
    for value in range(1, 101):
        bench.set(slot, value)
        bench.tick()
    go_on.set()
    bench.finish()
    assert bench.transport.values() == [[0, 0], [0, 100]]
    assert bench.told.replacements == 99


def test_a_failed_request_is_repeated_not_the_ones_before(bench: Bench) -> None:
    """Of a batch in three requests the second fails once: the first is not sent again."""
    for pid in range(MAX_POINTS + 1):
        bench.add(pid)
    recovered = threading.Event()
    bench.transport.answers.extend([ACCEPTED, DOWN, ACCEPTED, announcing(recovered, ACCEPTED)])
    bench.tick()
    assert recovered.wait(WAIT_S)
    bench.finish()
    assert [len(values) for values in bench.transport.values()] == [2500, 2500, 2500, 2]
    assert bench.transport.bodies[1] == bench.transport.bodies[2]


def test_a_refused_batch_is_dropped_not_acknowledged_and_comes_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """401 is not retried, but the next tick's batch has the same totals, so nothing is lost."""
    refused = threading.Event()
    bench.transport.answers.append(announcing(refused, UNAUTHORIZED))
    bench.set(bench.add(1), 10)
    bench.tick()
    assert refused.wait(WAIT_S)
    bench.tick()
    bench.finish()
    assert bench.transport.values() == [[0, 10], [0, 10]]
    assert [batch.sequence for batch in bench.exporter.acknowledged()] == [2]
    assert bench.told.failures == ["401"]
    assert lines(caplog) == [
        f"cannot export to {WHERE}: HTTP 401 who are you; totals are kept",
        f"exporting to {WHERE} again after 0 s, 1 failed attempts, 0 replaced batches",
    ]


def test_bad_data_is_counted_and_not_sent_again(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A request rejected by an endpoint that takes others is settled: its points are counted as rejected."""
    bench.transport.answers.extend([ACCEPTED, BAD])
    bench.set(bench.add(1), 10)
    bench.tick(OWN)
    bench.finish()
    assert bench.told.points == 2
    assert len(bench.exporter.acknowledged()) == 1
    assert lines(caplog) == [
        f"exporting to {WHERE}",
        f"{WHERE} rejected 2 of 2 points: HTTP 400 no",
    ]


def test_an_endpoint_that_rejects_everything_is_the_wrong_one(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Where each request of a batch is bad data the batch is not acknowledged."""
    bench.transport.answers.extend([BAD, BAD])
    bench.set(bench.add(1), 10)
    bench.tick(OWN)
    bench.finish()
    assert bench.exporter.acknowledged() == []
    assert lines(caplog) == [
        f"cannot export to {WHERE}: HTTP 400 no; totals are kept",
        f"the last totals did not reach {WHERE} within {WAIT_S:g} s",
    ]


def test_partial_success_is_counted_each_time_and_told_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Rejected points are counted, never retried, and told when it begins and when it ends."""
    partial = Result(Verdict.ACCEPTED, message="too old", rejected=1)
    slot = bench.add(1)
    for value, answer in ((1, partial), (2, partial), (3, ACCEPTED)):
        answered = threading.Event()
        bench.transport.answers.append(announcing(answered, answer))
        bench.set(slot, value)
        bench.tick()
        assert answered.wait(WAIT_S)
    bench.finish()
    assert bench.told.points == 2
    assert bench.told.failures == []
    assert lines(caplog) == [
        f"exporting to {WHERE}",
        f"{WHERE} rejected 1 of 2 points: too old",
        f"{WHERE} takes all points again",
    ]


def test_a_fault_of_ours_does_not_end_exporting(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is logged and counted, its batch dropped, and the next one sent."""
    failed = threading.Event()

    def fail() -> Result:
        failed.set()
        raise RuntimeError("bug")

    bench.transport.answers.append(fail)
    bench.set(bench.add(1), 10)
    bench.tick()
    assert failed.wait(WAIT_S)
    bench.tick()
    bench.finish()
    assert [batch.sequence for batch in bench.exporter.acknowledged()] == [2]
    assert bench.told.failures == ["RuntimeError"]
    assert lines(caplog)[0] == "exporting a batch failed unexpectedly"


def test_close_delivers_what_waits(bench: Bench) -> None:
    """The last batch is sent before `close` returns, with no more time than is left."""
    bench.set(bench.add(1), 10)
    bench.tick()
    assert bench.exporter.close(2.0)
    assert bench.transport.values() == [[0, 10]]
    assert bench.transport.timeouts_s[0] in (2.0, 10.0)
    bench.tick()
    assert bench.transport.closed.is_set()
    assert bench.transport.values() == [[0, 10]]


@pytest.mark.parametrize(("most", "sent"), [(0, 2), (3, 4), (9, 6)])
def test_close_goes_on_while_there_are_answers(
    bench: Bench, caplog: pytest.LogCaptureFixture, most: int, sent: int
) -> None:
    """Each comes after three quarters of the time that one may take; all six within the time in all."""
    for pid in range(3 * MAX_POINTS):
        bench.add(pid)

    def slow() -> Result:
        assert bench.exporter._closing.wait(WAIT_S)
        bench.now_s += 0.75 * WAIT_S
        return ACCEPTED

    bench.transport.answers.extend([slow] * 6)
    bench.tick()
    assert bench.exporter.close(WAIT_S, most * WAIT_S) == (sent == 6)
    assert len(bench.transport.bodies) == sent
    told = [line for line in lines(caplog) if "did not reach" in line]
    within_s = max(1, most) * WAIT_S
    assert told == ([] if sent == 6 else [f"the last totals did not reach {WHERE} within {within_s:g} s"])


def test_close_with_a_dead_endpoint_tries_once_more() -> None:
    """An exporter in backoff wakes up, tries the newest batch once, and gives up."""
    bench = Bench()
    exporter: Exporter[MetricBatch] = Exporter(
        OPTIONS, (), transport=bench.transport, pacing=Pacing(wait_fixed(3600))
    )
    failed = threading.Event()
    bench.transport.answers.append(announcing(failed, DOWN))
    bench.transport.answers.append(DOWN)
    slot = bench.add(1)
    exporter.submit(bench.store.batch(START_NS + SECOND_NS))
    assert failed.wait(WAIT_S)
    bench.set(slot, 5)
    exporter.submit(bench.store.batch(START_NS + 2 * SECOND_NS))
    assert not exporter.close(WAIT_S)
    assert bench.transport.values() == [[0, 0], [0, 5]]


def test_close_respects_that_the_server_asked_to_wait() -> None:
    """An exporter told to come back in an hour does not send on its way out."""
    bench = Bench()
    exporter: Exporter[MetricBatch] = Exporter(OPTIONS, (), transport=bench.transport, pacing=Pacing())
    failed = threading.Event()
    later = Result(Verdict.RETRY, "503", "HTTP 503", retry_after_s=3600.0)
    bench.transport.answers.append(announcing(failed, later))
    bench.add(1)
    exporter.submit(bench.store.batch(START_NS + SECOND_NS))
    assert failed.wait(WAIT_S)
    assert not exporter.close(WAIT_S)
    assert len(bench.transport.bodies) == 1


def test_close_gives_up_a_call_under_way(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A call that does not return is cancelled when time is up, and one line says what that means."""
    begun = threading.Event()

    def hang() -> Result:
        begun.set()
        assert bench.transport.closed.wait(WAIT_S)
        return Result(Verdict.RETRY, "cancelled", "CANCELLED")

    bench.transport.answers.append(hang)
    bench.add(1)
    bench.tick()
    assert begun.wait(WAIT_S)
    assert not bench.exporter.close(0.0)
    assert len(bench.transport.bodies) == 1
    assert lines(caplog) == [f"the last totals did not reach {WHERE} within 0 s"]


def test_close_without_any_batch_is_nothing() -> None:
    """An exporter that never got a batch has no thread and closes at once."""
    bench = Bench()
    assert bench.exporter.close(0.0)
