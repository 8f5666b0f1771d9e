# SPDX-License-Identifier: Apache-2.0
"""Sends batches to an OTLP endpoint from a thread of its own, so that nothing there can hold up a tick.

Enters: a batch and Kernob's own telemetry, after each tick. Leaves: OTLP requests, and the list of
batches the endpoint has acknowledged, which the tick thread collects for `state.series`. Called by the
agent.

One batch is under way, at most one waits; a newer one takes the place of the waiting one, and of one
whose sending failed. That loses nothing, because a newer batch contains what unacknowledged older ones
contained. So memory is bounded however long an outage lasts. A batch is encoded request by request
while it is sent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

from tenacity import RetryCallState, Retrying, retry_if_result, stop_when_event_set, wait_random_exponential
from tenacity.wait import wait_base

from kernob.export.encode import Batch, Request, RequestEncoder
from kernob.export.transport import OtlpOptions, Result, Transport, Verdict, make_transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kernob.model import Attributes

_log = logging.getLogger(__name__)

_BACKOFF: Final = wait_random_exponential(multiplier=1, min=0.1, max=15)
"""Seconds between attempts: random up to 1, 2, 4, 8, 15; no longer, because a batch waits anyway."""

_ABANDON_S: Final = 0.2
"""How long `close` waits for a call that was cancelled when time was up."""

AnyBatch = TypeVar("AnyBatch", bound=Batch)


class Observer(Protocol):
    """Is told how exporting goes, from the worker's thread (`replaced` also from the tick's)."""

    def exported(self, duration_s: float, error_type: str) -> None:
        """One request was answered, or failed (`error_type` not empty), within `duration_s` seconds."""

    def replaced(self) -> None:
        """A newer batch took the place of one that was not acknowledged."""

    def rejected(self, points: int) -> None:
        """The endpoint did not take this many points, and never will."""


@dataclass(frozen=True, slots=True)
class Pacing:
    """How the worker passes time: `sleep` takes seconds (None: wakes at `close`), `clock` is monotonic."""

    backoff: wait_base = _BACKOFF
    sleep: Callable[[float], object] | None = None
    clock: Callable[[], float] = time.monotonic


class _Patience(wait_base):
    """Waits as long as the backoff says, and at least as long as the server asks for (seconds)."""

    def __init__(self, backoff: wait_base) -> None:
        self._backoff = backoff

    def __call__(self, retry_state: RetryCallState) -> float:
        delay_s = float(self._backoff(retry_state))
        result = retry_state.outcome.result() if retry_state.outcome else None
        asked_s = result.retry_after_s if isinstance(result, Result) else None
        return delay_s if asked_s is None else max(delay_s, asked_s)


@dataclass(slots=True)
class _Shipment(Generic[AnyBatch]):
    """A batch under way: what is left to send, and how it went so far."""

    batch: AnyBatch
    requests: Iterator[Request]
    pending: Request | None = None
    accepted: int = 0
    failed: int = 0
    rejected: int = 0
    remark: str = ""


@dataclass(slots=True)
class _Outage:
    """What the line that ends an outage says about it."""

    since_s: float
    attempts: int = 0
    replaced_before: int = field(default=0)


class Exporter(Generic[AnyBatch]):
    """The worker and its one waiting slot.

    Raises ConfigError at once for an endpoint or a TLS file that cannot work. The thread starts with
    the first batch. `transport` and `pacing` are for tests.
    """

    def __init__(
        self,
        options: OtlpOptions,
        resource: Attributes,
        version: str = "",
        observer: Observer | None = None,
        *,
        transport: Transport | None = None,
        pacing: Pacing | None = None,
    ) -> None:
        pacing = pacing or Pacing()
        self._encoder = RequestEncoder(resource, version)
        self._transport = transport or make_transport(options, version)
        self._where = f"{without_credentials(options.endpoint)} ({options.protocol})"
        self._timeout_s = options.timeout_s
        self._observer = observer
        self._clock = pacing.clock
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        sleep = pacing.sleep or self._closing.wait

        def pause(delay_s: float) -> None:
            sleep(delay_s)

        self._retrying = Retrying(
            retry=retry_if_result(lambda result: result.verdict is Verdict.RETRY),
            wait=_Patience(pacing.backoff),
            stop=stop_when_event_set(self._closing),
            sleep=pause,
            retry_error_callback=lambda _state: None,
        )
        self._changed = threading.Condition()
        self._waiting: tuple[AnyBatch, bytes | None] | None = None
        self._shipment: _Shipment[AnyBatch] | None = None
        self._delivered: deque[AnyBatch] = deque()
        self._thread: threading.Thread | None = None
        self._deadline_s = self._latest_s = float("inf")
        self._patience_s = 0.0
        self._not_before_s = float("-inf")
        self._replaced = 0
        self._reached = False
        self._outage: _Outage | None = None
        self._rejecting = False
        self._remark = ""

    def submit(self, batch: AnyBatch, own: bytes | None = None) -> None:
        """Hand over a batch and a serialized request of own telemetry; returns at once.

        A batch that waits already is replaced, and counted. After `close` nothing is taken.
        """
        with self._changed:
            if self._closing.is_set():
                return
            if self._waiting is not None:
                self._count_replaced()
            self._waiting = (batch, own)
            if self._thread is None:
                self._thread = started(self._run, "kernob-export")
                if self._thread is None:
                    self._failing(NO_THREAD)
            self._changed.notify()

    def acknowledged(self) -> list[AnyBatch]:
        """Return the batches the endpoint took since the last call, oldest first."""
        return [self._delivered.popleft() for _ in range(len(self._delivered))]

    def close(self, timeout_s: float, most_s: float = 0.0) -> bool:
        """Try once more to deliver what is left, for about `timeout_s` seconds; say whether all is.

        Each answer gives it that time anew, up to `most_s` in all. A call under way is cancelled when time is
        up. Waiting that a server asked for is respected.
        """
        begun_s = self._clock()
        with self._changed:
            self._patience_s, self._latest_s = timeout_s, begun_s + max(timeout_s, most_s)
            self._deadline_s = begun_s + timeout_s
            self._closing.set()
            self._changed.notify()
        seen_s = begun_s
        while self._thread is not None and self._thread.is_alive() and self._deadline_s > seen_s:
            seen_s = self._deadline_s
            self._thread.join(max(0.0, seen_s - self._clock()))
        self._abandoned.set()
        self._transport.close()
        if self._thread is not None:
            self._thread.join(_ABANDON_S)
        delivered = self._waiting is None and self._shipment is None and self._outage is None
        if not delivered:
            took_s = round(self._deadline_s - begun_s, 1)
            _log.warning("the last totals did not reach %s within %g s", self._where, took_s)
        return delivered

    def _run(self) -> None:
        """Body of the thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closing.is_set())
                if self._waiting is None:
                    return
            try:
                self._retrying(self._attempt)
            except Exception as error:
                # A fault of ours must not end exporting for good: it is told, counted, and the batch dropped.
                _log.exception("exporting a batch failed unexpectedly")
                self._shipment = None
                if self._observer:
                    self._observer.exported(0.0, type(error).__name__)

    def _attempt(self) -> Result:
        """Send the newest batch, from where it was left; returns the first failure that ends the attempt."""
        with self._changed:
            if self._waiting is not None:
                if self._shipment is not None:
                    self._count_replaced()
                batch, own = self._waiting
                self._waiting = None
                self._shipment = _Shipment(batch, self._requests(batch, own))
            shipment = self._shipment
        if shipment is None:
            return Result(Verdict.ACCEPTED)
        while True:
            request = shipment.pending or next(shipment.requests, None)
            if request is None:
                return self._finish(shipment)
            result = self._send(request)
            if result.verdict is Verdict.RETRY:
                shipment.pending = request
                self._failing(result)
                return result
            if result.verdict is Verdict.REFUSED:
                self._shipment = None
                self._failing(result)
                return result
            shipment.pending = None
            self._note(shipment, request, result)

    def _requests(self, batch: AnyBatch, own: bytes | None) -> Iterator[Request]:
        if own:
            yield Request(own, 0)
        yield from self._encoder.requests(batch)

    def _send(self, request: Request) -> Result:
        timeout_s = self._timeout_s
        if self._closing.is_set():
            now_s = self._clock()
            timeout_s = min(timeout_s, self._deadline_s - now_s)
            if timeout_s <= 0 or now_s < self._not_before_s:
                return Result(Verdict.RETRY, "closing", "the agent ends")
        begun_s = self._clock()
        result = self._transport.send(request.body, timeout_s)
        ended_s = self._clock()
        if result.retry_after_s is not None:
            self._not_before_s = ended_s + result.retry_after_s
        if self._closing.is_set() and result.verdict in (Verdict.ACCEPTED, Verdict.BAD_DATA):
            self._deadline_s = min(ended_s + self._patience_s, self._latest_s)
        if self._observer:
            self._observer.exported(ended_s - begun_s, result.error_type)
        return result

    def _note(self, shipment: _Shipment[AnyBatch], request: Request, result: Result) -> None:
        """Add one answered request to the account of its batch."""
        rejected = result.rejected
        if result.verdict is Verdict.BAD_DATA:
            shipment.failed += 1
            rejected = request.points
        else:
            shipment.accepted += 1
        shipment.rejected += rejected
        shipment.remark = result.message or shipment.remark
        if rejected and self._observer:
            self._observer.rejected(rejected)

    def _finish(self, shipment: _Shipment[AnyBatch]) -> Result:
        """Settle a batch of which each request was answered.

        What an endpoint that works rejects is not sent again. But where it rejected each request, it is
        rather the wrong endpoint (a TLS port answers plain HTTP with 400): the batch is not acknowledged,
        and all it contained comes again with the next.
        """
        self._shipment = None
        if shipment.failed and not shipment.accepted:
            result = Result(Verdict.BAD_DATA, "rejected", shipment.remark)
            self._failing(result)
            return result
        self._delivered.append(shipment.batch)
        if shipment.accepted:
            self._working(shipment)
        return Result(Verdict.ACCEPTED)

    def _working(self, shipment: _Shipment[AnyBatch]) -> None:
        """Say once that exporting works (again), that points are rejected, or what the endpoint remarks."""
        outage, self._outage = self._outage, None
        if outage is not None:
            _log.warning(
                "exporting to %s again after %.0f s, %d failed attempts, %d replaced batches",
                self._where,
                self._clock() - outage.since_s,
                outage.attempts,
                self._replaced - outage.replaced_before,
            )
        elif not self._reached:
            _log.info("exporting to %s", self._where)
        self._reached = True
        if shipment.rejected and not self._rejecting:
            _log.warning(
                "%s rejected %d of %d points: %s",
                self._where,
                shipment.rejected,
                len(shipment.batch),
                shipment.remark or "no reason given",
            )
        elif not shipment.rejected and self._rejecting:
            _log.warning("%s takes all points again", self._where)
        elif shipment.remark and not shipment.rejected and shipment.remark != self._remark:
            _log.warning("%s remarks: %s", self._where, shipment.remark)
        self._rejecting = bool(shipment.rejected)
        self._remark = shipment.remark

    def _failing(self, result: Result) -> None:
        """Say once that exporting does not work, and why. What `close` cut off is told by `close`."""
        if self._abandoned.is_set():
            return
        if self._outage is None:
            self._outage = _Outage(self._clock(), replaced_before=self._replaced)
            _log.warning("cannot export to %s: %s; totals are kept", self._where, result.message)
        self._outage.attempts += 1

    def _count_replaced(self) -> None:
        self._replaced += 1
        if self._observer:
            self._observer.replaced()


NO_THREAD: Final = Result(Verdict.RETRY, "thread", "no thread can be started")


def started(run: Callable[[], None], name: str) -> threading.Thread | None:
    """A thread that runs; None where the system grants none (the limit of a container's or unit's tasks).

    Whoever asked tries again later: it is the tick that asks, and it must go on.
    """
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread


def without_credentials(endpoint: str) -> str:
    """Return an endpoint as it may stand in a log: without user, password, query and fragment."""
    url = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
    return url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment="").geturl().lstrip("/")
