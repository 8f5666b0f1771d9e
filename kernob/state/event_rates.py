# SPDX-License-Identifier: Apache-2.0
"""How many events a service may have, and what is said of the others.

In: events by service, kind and time. Out: whether each is told by itself; once a tick one summary for each
service and kind. Called by `state.events` and `state.life_events`.
"""

from __future__ import annotations

import dataclasses

from kernob.model import Event, Severity
from kernob.state.sentences import summary

_SECOND_NS = 10**9
_WORST = (Severity.INFO, Severity.WARN, Severity.ERROR)
_KEPT_S = 60
_LATE_SPANS = 10
"""Events come out of order by less than that; further back the clock was set, and a span of then is none."""


@dataclasses.dataclass(slots=True)
class _Crowd:
    """Events of one service and kind that were beyond the cap since the last summary."""

    count: int
    first_unix_ns: int
    last_unix_ns: int
    severity: Severity


class EventRates:
    """`per_second` events of a service in `span_s` seconds of event time; `suppressed` counts the others."""

    def __init__(self, per_second: int, span_s: int = 1) -> None:
        self._most = per_second
        self._span_ns = span_s * _SECOND_NS
        self._rate = f"{per_second} a second" if span_s == 1 else f"{per_second} in {span_s} s"
        self._rates: dict[str, tuple[int, int]] = {}
        self._crowds: dict[tuple[str, str], _Crowd] = {}
        self.suppressed = 0

    def admit(self, service: str, kind: str, severity: Severity, time_unix_ns: int) -> bool:
        """Whether an event is told by itself; if not, the next summary tells it."""
        span = time_unix_ns // self._span_ns
        at, count = self._rates.get(service, (span, 0))
        if span > at or span < at - _LATE_SPANS:
            at, count = span, 0
        self._rates[service] = (at, count + 1)
        if count < self._most:
            return True
        self.suppress(service, kind, severity, time_unix_ns)
        return False

    def suppress(
        self, service: str, kind: str, severity: Severity, time_unix_ns: int, count: int = 1
    ) -> None:
        """Has the next summary tell so many events that are not told by themselves."""
        self.suppressed += count
        crowd = self._crowds.get((service, kind))
        if crowd is None:
            crowd = self._crowds[service, kind] = _Crowd(0, time_unix_ns, time_unix_ns, severity)
        crowd.count += count
        crowd.last_unix_ns = max(crowd.last_unix_ns, time_unix_ns)
        crowd.severity = max(crowd.severity, severity, key=_WORST.index)

    def summaries(self) -> list[Event]:
        """One event for each service and kind that had some beyond the cap; for the end of a tick."""
        told = []
        for (service, kind), crowd in self._crowds.items():
            event = Event(
                crowd.last_unix_ns,
                kind,
                crowd.severity,
                service,
                body="",
                count=crowd.count,
                first_unix_ns=crowd.first_unix_ns,
                suppressed=crowd.count,
            )
            told.append(dataclasses.replace(event, body=summary(event, self._rate)))
        self._crowds.clear()
        return told

    def forget(self, now_unix_ns: int) -> None:
        """Drops what is too old to matter; for the end of a tick."""
        oldest = (now_unix_ns - _KEPT_S * _SECOND_NS) // self._span_ns
        self._rates = {service: rate for service, rate in self._rates.items() if rate[0] >= oldest}
