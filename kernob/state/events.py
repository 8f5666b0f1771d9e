# SPDX-License-Identifier: Apache-2.0
"""From the kernel's records of single events to Events: named, timed, bounded in number.

In: arrays of struct tcp_event (bpf/types.h) and the wall clock's offset measured when they were read. Out:
Events, one at most for each record; once a tick a summary of what was beyond the rate cap; the series of
kernob.event.last_time. Called by `pipeline`, in the tick thread, which owns the names.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernob.model import (
    Attributes,
    ClosedBy,
    Drop,
    Event,
    Fate,
    MetricKind,
    MetricSpec,
    Outcome,
    Severity,
    Timeout,
)
from kernob.state.destinations import DIRECTIONS, OTHER, Destination
from kernob.state.known import Known
from kernob.state.processes import Process
from kernob.state.sentences import (
    CONNECT_FAILED,
    CONNECTION,
    DROP,
    RESET,
    RETRANSMIT,
    STALL,
    TIMEOUT,
    body,
    summary,
)
from kernob.state.series import SeriesStore

EVENT_LAST_TIME = MetricSpec(
    "kernob.event.last_time",
    "s",
    MetricKind.GAUGE,
    "When the latest event of a kind happened, as Unix time, to the microsecond.",
    ("kernob.service", "server.address", "kernob.event.kind"),
    integer=False,
)
SPECS = (EVENT_LAST_TIME,)

_LAST_TIMES = 2_000
"""Series of kernob.event.last_time besides the `~other` ones."""

_LAST_TIME_KEPT_NS = 24 * 3600 * 10**9
_PROCESS_BYTES = 10  # a struct flow_key begins with tgid, start, exec
_SECOND_NS = 10**9

_KINDS = {
    Fate.CONNECTION: CONNECT_FAILED,
    Fate.RETRANSMIT: RETRANSMIT,
    Fate.RESET: RESET,
    Fate.DROP: DROP,
    Fate.STALL: STALL,
    Fate.TIMEOUT: TIMEOUT,
}
_SEVERITIES = {
    CONNECTION: Severity.INFO,
    CONNECT_FAILED: Severity.WARN,
    RETRANSMIT: Severity.INFO,
    RESET: Severity.WARN,
    DROP: Severity.ERROR,
    STALL: Severity.WARN,
    TIMEOUT: Severity.WARN,
}
_RESET_SENT = 0
_WORST = (Severity.INFO, Severity.WARN, Severity.ERROR)


@dataclasses.dataclass(slots=True)
class _Crowd:
    """Events of one service and kind that were beyond the cap since the last summary."""

    count: int
    first_unix_ns: int
    last_unix_ns: int
    severity: Severity


class EventState:
    """See the module. `suppressed` and `undecoded` count what was not told by itself (cumulative)."""

    def __init__(self, known: Known, store: SeriesStore, per_second: int) -> None:
        """`per_second` is the number of events a service may have in one second of event time."""
        self._known = known
        self._per_second = per_second
        self._rates: dict[str, tuple[int, int]] = {}
        self._crowds: dict[tuple[str, str], _Crowd] = {}
        self._last_times = _LastTimes(store)
        self.suppressed = 0
        self.undecoded = 0

    @property
    def folded(self) -> int:
        """How often a series was folded into `~other` for the cap (cumulative)."""
        return self._last_times.folded

    def update(self, rows: NDArray[Any], unix_offset_ns: int) -> list[Event]:
        """Names and times one batch; returns the events the cap admits, in the order of the records.

        `rows` is an array of struct tcp_event; its times plus `unix_offset_ns` are Unix time.
        """
        told = []
        for raw in _records(rows):
            try:
                meaning = _meaning(raw["kind"], raw["reason"], raw["side"])
            except ValueError:  # a kind or reason this version does not know: not ours to guess
                self.undecoded += 1
                continue
            key: bytes = raw["flow"]
            process = self._known.processes.of(key[:_PROCESS_BYTES])
            there = self._known.there(process, key)
            time_ns = raw["time_ns"] + unix_offset_ns
            self._last_times.note(process.service, there.host, meaning.kind, time_ns)
            if self._admit(process.service, meaning, time_ns):
                event = _event(raw, unix_offset_ns, meaning, process, there)
                text = body(event, raw["error"], closing=bool(raw["side"]))
                told.append(dataclasses.replace(event, body=text))
        return told

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
            told.append(dataclasses.replace(event, body=summary(event, self._per_second)))
        self._crowds.clear()
        return told

    def export(self, now_unix_ns: int) -> None:
        """Brings the series up to date; for the end of a tick."""
        self._last_times.flush(now_unix_ns)
        oldest = now_unix_ns // _SECOND_NS - 60
        self._rates = {s: rate for s, rate in self._rates.items() if rate[0] >= oldest}

    def _admit(self, service: str, meaning: _Meaning, time_unix_ns: int) -> bool:
        second = time_unix_ns // _SECOND_NS
        at, count = self._rates.get(service, (second, 0))
        if second > at:
            at, count = second, 0
        self._rates[service] = (at, count + 1)
        if count < self._per_second:
            return True
        self.suppressed += 1
        crowd = self._crowds.get((service, meaning.kind))
        if crowd is None:
            crowd = _Crowd(0, time_unix_ns, time_unix_ns, meaning.severity)
            self._crowds[service, meaning.kind] = crowd
        crowd.count += 1
        crowd.last_unix_ns = max(crowd.last_unix_ns, time_unix_ns)
        crowd.severity = max(crowd.severity, meaning.severity, key=_WORST.index)
        return False


@dataclasses.dataclass(frozen=True, slots=True)
class _Meaning:
    """What the codes of a record say."""

    kind: str
    severity: Severity
    reason: str = ""
    closed_by: str = ""
    direction: str = ""


@functools.lru_cache(256)
def _meaning(kind: int, reason: int, side: int) -> _Meaning:
    """Reads a record's codes. Raises ValueError for one that is not known."""
    fate = Fate(kind)
    name = _KINDS[fate]
    severity = _SEVERITIES[name]
    if fate is Fate.CONNECTION:
        outcome = Outcome(reason)
        if outcome is Outcome.OK:
            return _Meaning(CONNECTION, Severity.INFO)
        calm = outcome is Outcome.CANCELLED
        return _Meaning(name, Severity.INFO if calm else severity, outcome.name.lower())
    if fate is Fate.RESET:
        sent = side == _RESET_SENT
        return _Meaning(name, Severity.INFO if sent else severity, direction=DIRECTIONS[0 if sent else 1])
    if fate is Fate.TIMEOUT:
        return _Meaning(name, severity, Timeout(reason).name.lower())
    if fate is Fate.DROP:
        return _Meaning(name, severity, Drop(reason).name.lower(), ClosedBy(side).name.lower())
    return _Meaning(name, severity)


def _event(
    raw: dict[str, Any], offset_ns: int, meaning: _Meaning, process: Process, there: Destination
) -> Event:
    """Puts one event together; its body is missing."""
    return Event(
        time_unix_ns=raw["time_ns"] + offset_ns,
        kind=meaning.kind,
        severity=meaning.severity,
        service=process.service,
        body="",
        executable=process.executable,
        pid=process.key.pid,
        start_ticks=process.key.start_ticks,
        role=there.role.name.lower(),
        address=there.host,
        port=there.port,
        peer=there.peer,
        peer_port=raw["dport"],
        local_port=raw["sport"],
        reason=meaning.reason,
        closed_by=meaning.closed_by,
        direction=meaning.direction,
        idle=bool(raw["idle"]),
        count=raw["count"] or 1,
        tx_bytes=raw["tx"],
        rx_bytes=raw["rx"],
        age_s=raw["age_ns"] / 1e9 if raw["age_ns"] else -1.0,
        gap_s=raw["gap_ns"] / 1e9 if raw["gap_ns"] else -1.0,
        first_unix_ns=raw["first_ns"] + offset_ns if raw["first_ns"] else 0,
    )


_FIELDS = (
    "time_ns", "sport", "dport", "kind", "reason", "side", "idle", "count", "error", "tx", "rx",
    "age_ns", "gap_ns", "first_ns",
)  # fmt: skip


def _records(rows: NDArray[Any]) -> Iterator[dict[str, Any]]:
    """Each row as plain numbers, with the bytes of its flow_key."""
    flows = np.ascontiguousarray(rows["flow"])
    keys = flows.view(f"V{flows.dtype.itemsize}").tolist() if len(rows) else []
    columns = [rows[name].tolist() for name in _FIELDS]
    for key, *values in zip(keys, *columns, strict=True):
        yield dict(zip(_FIELDS, values, strict=True), flow=key)


class _LastTimes:
    """Series of kernob.event.last_time: capped, ended after a day without an event."""

    def __init__(self, store: SeriesStore) -> None:
        self._block = store.block(EVENT_LAST_TIME)
        self._slots: dict[Attributes, int] = {}
        self._times: dict[Attributes, int] = {}
        self._changed: set[Attributes] = set()
        self._others = 0
        self.folded = 0

    def note(self, service: str, address: str, kind: str, time_unix_ns: int) -> None:
        """Takes an event's time; told by `flush`."""
        names = (("kernob.service", service), ("server.address", address), ("kernob.event.kind", kind))
        attributes: Attributes = names
        if attributes not in self._times and len(self._times) - self._others >= _LAST_TIMES:
            self.folded += 1
            attributes = (names[0], ("server.address", OTHER), names[2])
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
