# SPDX-License-Identifier: Apache-2.0
"""From the kernel's ring buffer to Events: the thread that reads, and the tick thread that names.

In: a Session with programs that write events. Out: Events, when the agent asks for them, and what was lost.
Part of `pipeline`, which calls it from the tick thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kernob.kernel import ringbuf
from kernob.kernel.ringbuf import RingBuffer, RingReader
from kernob.model import Attempt, Event, HookReport, ProbeState
from kernob.probes import tcp
from kernob.probes.traffic import Loss
from kernob.state.events import EventState

if TYPE_CHECKING:
    from kernob.kernel.session import Session

HOOK = "tcp.events"
"""The hook under which `doctor` says whether events can be had."""


class EventFeed:
    """Where this kernel has no ring buffers, there are no events, and `report` says why."""

    def __init__(self, state: EventState, wake: Callable[[], None]) -> None:
        """`wake` is called from a thread when events wait for `take`."""
        self._state = state
        self._wake = wake
        self._ring: RingBuffer | None = None
        self._reader: RingReader | None = None
        self._unread = 0

    def open(self, session: Session) -> None:
        """Maps the session's ring; `start` begins to read it. Raises MapError."""
        try:
            ring = session.map("events")
        except KeyError:
            return
        self._ring = RingBuffer(ring.fd, ring.max_entries)
        self._reader = RingReader(self._ring, self._wake)

    def start(self) -> None:
        """Begins to read, in a thread that has no more capabilities than the caller's."""
        if self._reader:
            self._reader.start()

    def stop(self) -> None:
        """Ends the reading thread; what is in the ring then is what the last `take` gets."""
        if self._reader:
            self._reader.stop()

    def close(self) -> None:
        """Lets go of the ring; safe to call twice."""
        self.stop()
        self._reader = None
        if self._ring:
            self._ring.close()
            self._ring = None

    def take(self, session: Session) -> list[Event]:
        """What happened since the last call, as far as the rate cap admits it."""
        found: list[Event] = []
        for batch in self._reader.take() if self._reader else ():
            rows = tcp.events(session, batch.raw)
            self._unread += len(batch.raw) - len(rows)
            found += self._state.update(rows, batch.unix_offset_ns)
        return found

    def summaries(self, now_unix_ns: int) -> list[Event]:
        """Once a tick: what was beyond the rate cap; brings the series of last times up to date."""
        self._state.export(now_unix_ns)
        return self._state.summaries()

    def losses(self, session: Session) -> dict[str, int]:
        """Cumulative counts by cause."""
        return {
            "ring_full": int(session.losses()[Loss.EVENTS_FULL]),
            "decode": self._unread + self._state.undecoded,
        }

    @property
    def suppressed(self) -> int:
        """Events beyond the rate cap, which a summary tells (cumulative)."""
        return self._state.suppressed

    @property
    def folded(self) -> int:
        """How often a series was folded into `~other` for a cap (cumulative)."""
        return self._state.folded


def report() -> HookReport:
    """Whether this kernel can hand over events at all."""
    reason = ringbuf.missing()
    state = ProbeState.FAILED if reason else ProbeState.ATTACHED
    probe, _, hook = HOOK.partition(".")
    attempt = Attempt("ringbuf", attached=not reason, reason=reason)
    return HookReport(probe, hook, state, "" if reason else "ringbuf", (attempt,))
