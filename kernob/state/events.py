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
    ClosedBy,
    Drop,
    Event,
    Fate,
    Outcome,
    Severity,
    Timeout,
)
from kernob.state.destinations import DIRECTIONS, Destination
from kernob.state.event_rates import EventRates
from kernob.state.known import Known
from kernob.state.last_times import LastTimes
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
)
from kernob.state.series import SeriesStore

_PROCESS_BYTES = 10  # a struct flow_key begins with tgid, start, exec

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


class EventState:
    """See the module. `undecoded` counts records whose meaning is not known (cumulative)."""

    def __init__(self, known: Known, store: SeriesStore, per_second: int) -> None:
        """`per_second` is the number of events a service may have in one second of event time."""
        self._known = known
        self._rates = EventRates(per_second)
        self._last_times = LastTimes(store)
        self.undecoded = 0

    @property
    def suppressed(self) -> int:
        """Events beyond the rate cap (cumulative)."""
        return self._rates.suppressed

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
            if self._rates.admit(process.service, meaning.kind, meaning.severity, time_ns):
                event = _event(raw, unix_offset_ns, meaning, process, there)
                text = body(event, raw["error"], closing=bool(raw["side"]))
                told.append(dataclasses.replace(event, body=text))
        return told

    def summaries(self) -> list[Event]:
        """One event for each service and kind that had some beyond the cap; for the end of a tick."""
        return self._rates.summaries()

    def export(self, now_unix_ns: int) -> None:
        """Brings the series up to date; for the end of a tick."""
        self._last_times.flush(now_unix_ns)
        self._rates.forget(now_unix_ns)


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
