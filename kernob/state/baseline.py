# SPDX-License-Identifier: Apache-2.0
"""The baseline: which destinations each service was ever seen to talk to, and what is new.

In: edges as they are seen. Out: events and kernob.destination.first_seen for what is new, rows for the store.
Called by `features.map`, in the tick thread. A destination is a node of the map and a port: a hostname whose
addresses change stays the same one. In the first hours of a service everything is new, and marked as learned.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from typing import Final

from kernob.model import (
    Attributes,
    DestinationRow,
    DestinationState,
    Event,
    Link,
    MetricKind,
    MetricSpec,
    NameSource,
    NodeKind,
    Severity,
)
from kernob.state.map_series import Gauges
from kernob.state.series import SeriesStore

_log = logging.getLogger(__name__)

DESTINATION_NEW: Final = "kernob.destination.new"
FIRST_SEEN = MetricSpec(
    "kernob.destination.first_seen",
    "s",
    MetricKind.GAUGE,
    "When a service first talked to a destination, as Unix time; for a week after that.",
    ("kernob.service", "server.address", "server.port", "kernob.destination.state", "kernob.name.source"),
    integer=False,
)
SPECS: Final = (FIRST_SEEN,)

_TOLD_NS: Final = 7 * 86400 * 10**9
_SERIES_MOST: Final = 2_000
_MINUTE_NS: Final = 60 * 10**9

Key = tuple[str, str, int]
"""Service, target node's id, port."""


@dataclasses.dataclass(slots=True)
class _Crowd:
    """New destinations of one service beyond the cap since the last summary."""

    count: int
    first_unix_ns: int
    learning: bool


class Baseline:
    """See the module. `per_minute` bounds a service's single events, `most` its destinations."""

    def __init__(self, store: SeriesStore, learning_s: float, per_minute: int, most: int = 20_000) -> None:
        self._learning_ns = int(learning_s * 1e9)
        self._per_minute = per_minute
        self._most = most
        self._rows: dict[Key, DestinationRow] = {}
        self._gauges = Gauges(store.block(FIRST_SEEN))
        self._minutes: dict[str, tuple[int, int]] = {}
        self._crowds: dict[str, _Crowd] = {}
        self._changed: set[Key] = set()
        self._gone: set[Key] = set()
        self._told: set[Key] = set()
        self._sources: dict[Key, NameSource] = {}  # since our start, and only of what is told
        self._is_full = False
        self.suppressed = 0
        self.folded = 0  # destinations that there was no room for

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def is_changed(self) -> bool:
        """Whether anything was learned, accepted or forgotten since `changes`."""
        return bool(self._changed or self._gone)

    def restore(self, rows: Iterable[DestinationRow]) -> None:
        """Takes what an earlier life stored."""
        self._rows = {(row.service, row.target, row.port): row for row in rows}
        self._told = set(self._rows)

    def see(
        self, link: Link, service_since_ns: int, now_ns: int, source: NameSource = NameSource.IP
    ) -> list[Event]:
        """Takes note of an edge; returns an event where its destination is new.

        `source`: how the hostname became known, where the target is one.
        """
        service = link.source.title
        key = (service, link.target.id, link.port)
        if key not in self._rows or key in self._told:
            named = link.target.kind is NodeKind.NAME
            self._sources.setdefault(key, source if named else NameSource.IP)
        if key in self._rows:
            return []
        if len(self._rows) >= self._most:
            self.folded += 1
            return []
        learning = now_ns - service_since_ns < self._learning_ns
        state = DestinationState.LEARNED if learning else DestinationState.NEW
        row = DestinationRow(*key, self._shown(link), state, now_ns)
        self._rows[key] = row
        self._changed.add(key)
        self._told.add(key)
        self._gone.discard(key)
        return [self._event(row, link, learning)] if self._admit(service, learning, now_ns) else []

    def move(self, was: Link, link: Link) -> None:
        """Takes note that a destination was another one all the time: nobody ever talked to the former."""
        key, new = ((each.source.title, each.target.id, each.port) for each in (was, link))
        row = self._rows.get(key)
        if row is None or key == new:
            return
        self.forget([key])
        known = self._rows.get(new)
        if link.target.kind is NodeKind.OTHERS:  # no destination: see `see`'s caller
            return
        if known is None or row.first_unix_ns < known.first_unix_ns:
            moved = DestinationRow(*new, self._shown(link), row.state, row.first_unix_ns)
            self._rows[new] = dataclasses.replace(moved, state=known.state) if known else moved
            self._changed.add(new)
            self._told.add(new)
            self._gone.discard(new)

    def trim(self, is_on_map: Callable[[Key], bool]) -> None:
        """Makes room where little is left: the oldest that nobody accepted and that left the map go."""
        if len(self._rows) <= 0.9 * self._most:
            self._is_full = False
            return
        idle = [
            key
            for key, row in self._rows.items()
            if row.state is not DestinationState.ACCEPTED and not is_on_map(key)
        ]
        idle.sort(key=lambda key: self._rows[key].first_unix_ns)
        self.forget(idle[: len(self._rows) - int(0.8 * self._most)])
        if len(self._rows) >= self._most and not self._is_full:
            self._is_full = True
            _log.warning(
                "%d destinations are known, as many as there is room for: new ones are not told until some "
                "are forgotten (kernob destinations forget)",
                len(self._rows),
            )

    def summaries(self, now_ns: int) -> list[Event]:
        """One event for each service that had some beyond the cap."""
        events = []
        for service, crowd in self._crowds.items():
            body = (
                f"{service} talked to {crowd.count} more new destinations: only {self._per_minute} a minute "
                "are told one by one (a port scan, a crawler?)"
            )
            details: Attributes = (("kernob.learning", crowd.learning),)
            severity = Severity.INFO if crowd.learning else Severity.WARN
            event = Event(now_ns, DESTINATION_NEW, severity, service, body, role="client", details=details)
            events.append(
                dataclasses.replace(
                    event, count=crowd.count, first_unix_ns=crowd.first_unix_ns, suppressed=crowd.count
                )
            )
        self._crowds.clear()
        return events

    def export(self, now_unix_ns: int) -> None:
        """Brings kernob.destination.first_seen up to date: the newest, of the last week."""
        since_ns = now_unix_ns - _TOLD_NS
        self._told = {key for key in self._told if key in self._rows}
        recent = [self._rows[key] for key in self._told if self._rows[key].first_unix_ns >= since_ns]
        self._told = {(row.service, row.target, row.port) for row in recent}
        self._sources = {key: source for key, source in self._sources.items() if key in self._told}
        recent.sort(key=lambda row: -row.first_unix_ns)
        wanted: dict[Attributes, float] = {}
        for row in recent[:_SERIES_MOST]:
            attributes: Attributes = (
                ("kernob.service", row.service),
                ("server.address", row.address),
                ("server.port", row.port),
                ("kernob.destination.state", row.state.value),
            )
            source = self._sources.get((row.service, row.target, row.port))
            if source is not None:
                attributes = (*attributes, ("kernob.name.source", source.value))
            wanted.setdefault(attributes, row.first_unix_ns / 1e9)
        self._gauges.show_values(wanted, now_unix_ns)
        minute = now_unix_ns // _MINUTE_NS
        self._minutes = {s: seen for s, seen in self._minutes.items() if seen[0] == minute}

    def rows(self) -> list[DestinationRow]:
        """Everything that is known, the newest last."""
        return sorted(self._rows.values(), key=lambda row: row.first_unix_ns)

    def accept(self, keys: Iterable[Key]) -> int:
        """Says that these are as they should be; returns how many were not said to be so before."""
        count = 0
        for key in keys:
            row = self._rows.get(key)
            if row is not None and row.state is not DestinationState.ACCEPTED:
                self._rows[key] = dataclasses.replace(row, state=DestinationState.ACCEPTED)
                self._changed.add(key)
                count += 1
        return count

    def forget(self, keys: Iterable[Key]) -> int:
        """Takes these out: seen again, they are new. Returns how many there were."""
        count = 0
        for key in keys:
            if self._rows.pop(key, None) is not None:
                self._changed.discard(key)
                self._gone.add(key)
                count += 1
        return count

    def changes(self) -> tuple[list[DestinationRow], list[Key]]:
        """What the store has to be told since the last call: rows, and keys that are gone."""
        rows = [self._rows[key] for key in self._changed]
        gone = list(self._gone)
        self._changed, self._gone = set(), set()
        return rows, gone

    def stage_all(self) -> None:
        """Has everything count as changed."""
        self._changed = set(self._rows)

    def stage(self, changed: Iterable[Key], gone: Iterable[Key]) -> None:
        """Has these count as changed, and those as gone."""
        self._changed.update(changed)
        self._gone.update(gone)

    def _admit(self, service: str, learning: bool, now_ns: int) -> bool:
        minute = now_ns // _MINUTE_NS
        at, count = self._minutes.get(service, (minute, 0))
        at, count = (minute, 0) if minute != at else (at, count)
        self._minutes[service] = (at, count + 1)
        if count < self._per_minute:
            return True
        self.suppressed += 1
        crowd = self._crowds.setdefault(service, _Crowd(0, now_ns, learning))
        crowd.count += 1
        return False

    @staticmethod
    def _shown(link: Link) -> str:
        single = link.target.title if link.target.kind is NodeKind.NAME else link.address
        return link.target.fold or single

    @staticmethod
    def _event(row: DestinationRow, link: Link, learning: bool) -> Event:
        what = row.address or row.target
        where = f"{what} port {row.port}" if row.port else what
        if link.target.kind.value == "service":
            where += f" ({link.target.title})"
        elif link.target.fold:
            where += f" ({link.host or link.address})"
        body = f"{row.service} talks to {where} for the first time"
        if learning:
            body += ", while this service's destinations are being learned"
        return Event(
            row.first_unix_ns,
            DESTINATION_NEW,
            Severity.INFO if learning else Severity.WARN,
            row.service,
            body,
            role="client",
            address=row.address,
            port=row.port,
            peer=link.address,
            peer_port=row.port,
            details=(("kernob.learning", learning),),
        )
