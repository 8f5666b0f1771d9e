# SPDX-License-Identifier: Apache-2.0
"""Sends events to an OTLP endpoint from a thread of its own, each once, in order, however long it takes.

Enters: events, as they come. Leaves: OTLP log requests. Called by `outlet`. Unlike a batch of metrics, an
event is in no later one: so events queue up, bounded. Where an outage outlasts the queue, the oldest go and
are counted; so are those that the endpoint refuses for good.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Protocol

from tenacity import RetryCallState

from kernob.export.logs import MAX_RECORDS, LogEncoder
from kernob.export.transport import OtlpOptions, Result, Signal, Transport, Verdict, make_transport
from kernob.export.worker import NO_THREAD, Pacing, started, without_credentials

if TYPE_CHECKING:
    from kernob.model import Attributes, Event

_log = logging.getLogger(__name__)

QUEUE_MOST: Final = 10_000
REFUSED_PAUSE_S: Final = 60.0
"""An endpoint that takes no logs at all (no such path, no permission) is asked again after this."""


class LogObserver(Protocol):
    """Is told how exporting goes, from the worker's thread."""

    def exported_logs(self, duration_s: float, error_type: str) -> None:
        """One request was answered, or failed (`error_type` not empty), within `duration_s` seconds."""


class LogExporter:
    """The queue and its worker; raises ConfigError at once for an endpoint that cannot work.

    `submit` and `lost` are for the tick thread. The thread starts with the first event. `transport` and
    `pacing` are for tests.
    """

    def __init__(
        self,
        options: OtlpOptions,
        resource: Attributes,
        version: str = "",
        observer: LogObserver | None = None,
        *,
        transport: Transport | None = None,
        pacing: Pacing | None = None,
    ) -> None:
        pacing = pacing or Pacing()
        self._encoder = LogEncoder(resource, version)
        self._transport = transport or make_transport(options, version, Signal.LOGS)
        self._where = f"{without_credentials(options.endpoint)} ({options.protocol})"
        self._timeout_s = options.timeout_s
        self._observer = observer
        self._clock = pacing.clock
        self._backoff = pacing.backoff
        self._closing = threading.Event()
        self._sleep: Callable[[float], object] = pacing.sleep or self._closing.wait
        self._queue: deque[Event] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._deadline_s = float("inf")
        self._under_way = 0
        self._outage_s: float | None = None
        self._reached = False
        self._failures = 0
        self.lost = 0

    def submit(self, events: Iterable[Event]) -> None:
        """Queue events; returns at once. Where too many wait, the oldest go and are counted in `lost`."""
        with self._changed:
            self._queue.extend(events)
            while len(self._queue) > QUEUE_MOST:
                del self._queue[self._under_way]  # the oldest that is not being sent just now
                self.lost += 1
            if not self._queue:
                return
            if self._thread is None:
                self._thread = started(self._run, "kernob-logs")
                if self._thread is None:
                    self._failing(NO_THREAD)
            self._changed.notify()

    def close(self, timeout_s: float) -> bool:
        """Send what is left, within about `timeout_s` seconds; say whether all of it is away."""
        with self._changed:
            self._deadline_s = self._clock() + timeout_s
            self._closing.set()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)
        self._transport.close()
        with self._changed:
            left = len(self._queue)
        if left:
            _log.warning("%d events did not reach %s within %g s", left, self._where, timeout_s)
        return not left

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing.is_set())
                if not self._queue:
                    return
                part = [self._queue[i] for i in range(min(MAX_RECORDS, len(self._queue)))]
                self._under_way = len(part)
            try:
                result = self._send(part)
            except Exception as error:
                # A fault of ours must not end exporting for good: it is told, counted, these events dropped.
                _log.exception("exporting events failed unexpectedly")
                result = Result(Verdict.BAD_DATA, type(error).__name__, str(error))
            if self._settle(part, result):
                continue
            if self._closing.is_set():
                return
            self._sleep(self._pause_s(result))

    def _send(self, events: list[Event]) -> Result:
        timeout_s = self._timeout_s
        if self._closing.is_set():
            timeout_s = min(timeout_s, self._deadline_s - self._clock())
            if timeout_s <= 0:
                return Result(Verdict.RETRY, "closing", "the agent ends")
        (request,) = self._encoder.requests(events, time.time_ns())
        begun_s = self._clock()
        result = self._transport.send(request.body, timeout_s)
        if self._observer:
            self._observer.exported_logs(self._clock() - begun_s, result.error_type)
        return result

    def _settle(self, events: list[Event], result: Result) -> bool:
        """Take away what is settled, for good or ill; say whether to go on at once."""
        if result.verdict in (Verdict.RETRY, Verdict.REFUSED):
            with self._changed:
                self._under_way = 0
            self._failing(result)
            return False
        with self._changed:
            for _ in range(self._under_way):
                self._queue.popleft()
            self._under_way = 0
            self.lost += len(events) if result.verdict is Verdict.BAD_DATA else result.rejected
        if result.verdict is Verdict.BAD_DATA or result.rejected:
            count = result.rejected or len(events)
            _log.warning("%s rejected %d events: %s", self._where, count, result.message or "no reason given")
        if result.verdict is Verdict.ACCEPTED:
            self._working()
        return True

    def _pause_s(self, result: Result) -> float:
        if result.verdict is Verdict.REFUSED:
            return REFUSED_PAUSE_S
        state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]  # the backoff reads its number
        state.attempt_number = self._failures
        return max(float(self._backoff(state)), result.retry_after_s or 0.0)

    def _working(self) -> None:
        if self._outage_s is not None:
            _log.warning(
                "exporting events to %s again after %.0f s", self._where, self._clock() - self._outage_s
            )
        elif not self._reached:
            _log.info("exporting events to %s", self._where)
        self._reached = True
        self._outage_s = None
        self._failures = 0

    def _failing(self, result: Result) -> None:
        """Say once that exporting does not work, and why."""
        self._failures += 1
        if self._outage_s is None and not self._closing.is_set():
            self._outage_s = self._clock()
            _log.warning(
                "cannot export events to %s: %s; %d of them can wait", self._where, result.message, QUEUE_MOST
            )
