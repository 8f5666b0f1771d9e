# SPDX-License-Identifier: Apache-2.0
"""When the latest event of each kind happened, as a metric.

In: service, address and kind of events. Out: series of kernob.event.last_time. Called by `state.events` and
`state.life_events`.
"""

from __future__ import annotations

import numpy as np

from kernob.model import Attributes, MetricKind, MetricSpec
from kernob.state.destinations import OTHER
from kernob.state.series import SeriesStore

EVENT_LAST_TIME = MetricSpec(
    "kernob.event.last_time",
    "s",
    MetricKind.GAUGE,
    "When the latest event of a kind happened, as Unix time, to the microsecond.",
    ("kernob.service", "server.address", "kernob.event.kind"),
    integer=False,
)
_LAST_TIMES = 2_000
"""Series of kernob.event.last_time besides the `~other` ones."""

_LAST_TIME_KEPT_NS = 24 * 3600 * 10**9


class LastTimes:
    """Series of kernob.event.last_time: capped, ended after a day without an event."""

    def __init__(self, store: SeriesStore) -> None:
        self._block = store.block(EVENT_LAST_TIME)
        self._slots: dict[Attributes, int] = {}
        self._times: dict[Attributes, int] = {}
        self._changed: set[Attributes] = set()
        self._others = 0
        self.folded = 0

    def note(self, service: str, address: str, kind: str, time_unix_ns: int) -> None:
        """Takes an event's time; told by `flush`. `address` is "" for what has no destination."""
        there: Attributes = (("server.address", address),) if address else ()
        attributes: Attributes = (("kernob.service", service), *there, ("kernob.event.kind", kind))
        if attributes not in self._times and len(self._times) - self._others >= _LAST_TIMES:
            self.folded += 1
            # of ever new services there would be ever new ones of these, too
            of = service if self._others < _LAST_TIMES else OTHER
            attributes = (("kernob.service", of), ("server.address", OTHER), ("kernob.event.kind", kind))
            self._others += attributes not in self._times
        if time_unix_ns > self._times.get(attributes, 0):
            self._times[attributes] = time_unix_ns
            self._changed.add(attributes)

    def flush(self, now_unix_ns: int) -> None:
        """Writes changed times into their series, and ends those of which nothing was heard for a day."""
        if self._changed:
            for attributes in self._changed:
                if attributes not in self._slots:
                    self._slots[attributes] = self._block.admit(attributes, now_unix_ns)
            slots = np.array([self._slots[each] for each in self._changed], np.int64)
            seconds = np.array([self._times[each] / 1e9 for each in self._changed])
            self._block.set(slots, seconds)
            self._changed.clear()
        old = [a for a, at in self._times.items() if now_unix_ns - at > _LAST_TIME_KEPT_NS]
        for attributes in old:
            del self._times[attributes]
            self._others -= attributes[1][1] == OTHER
            self._block.end(np.array([self._slots.pop(attributes)], np.int64))
