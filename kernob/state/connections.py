# SPDX-License-Identifier: Apache-2.0
"""From facts about connections to series: outcomes, resets, drops, durations, how many are open.

In: one tick's counts by flow and kind (struct fate_key, duration_key of bpf/types.h) and the live sockets.
Out: series in a SeriesStore, and for screens what happened on each flow. Called by `pipeline`, in the tick
thread. Cost follows change: what is sorted out one by one are the kinds of facts that a flow had since the
tick before, not connections.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernob.model import (
    Attributes,
    AttributeValue,
    ClosedBy,
    Drop,
    Fate,
    MetricSpec,
    Outcome,
    PeerClass,
    Role,
    TcpFacts,
    Timeout,
)
from kernob.state.capped import Capped, CappedCounters, CappedHistograms
from kernob.state.destinations import DIRECTIONS, NOBODY, NOWHERE, Destination, identity, side_of
from kernob.state.flows import Indices
from kernob.state.histograms import HistogramBlock
from kernob.state.known import Known
from kernob.state.series import SeriesStore

ESTABLISHED, CLOSE_WAIT = 1, 8
"""include/net/tcp_states.h; TERMS: connections in these are active."""

Names = tuple[Attributes, Attributes]
"""Attributes of a series, and those of the one it folds into beyond the cap."""

_BY_FATE: Final = {
    Fate.CONNECTION: "connections",
    Fate.RETRANSMIT: "retransmits",
    Fate.RESET: "resets",
    Fate.DROP: "drops",
    Fate.STALL: "stalls",
    Fate.TIMEOUT: "timeouts",
}
_CODE: Final = ("kind", "reason", "side", "idle")
_BY_DURATION: Final = ("connect.duration", "response.duration", "rtt")
_FACTS: Final = ("connections", "failed", "retransmits", "resets", "drops")
_CONNECTIONS, _FAILED, _RETRANSMITS, _RESETS, _DROPS = range(len(_FACTS))
_FACT_OF: Final = {
    Fate.CONNECTION: _CONNECTIONS,
    Fate.RETRANSMIT: _RETRANSMITS,
    Fate.RESET: _RESETS,
    Fate.DROP: _DROPS,
}


@dataclass(frozen=True, slots=True)
class TcpCaps:
    """Series each metric may have besides its `~other` ones."""

    process: int
    flow: int
    histogram: int


class ConnectionState:
    """Everything known of what happens to connections. `specs` are those of kernob.tcp.* that are counted."""

    def __init__(self, store: SeriesStore, specs: Iterable[MetricSpec], caps: TcpCaps, known: Known) -> None:
        named = {spec.name: spec for spec in specs}
        self._known = known
        known.keep(self)
        self._by_fate: dict[int, list[CappedCounters]] = {}
        for fate, name in _BY_FATE.items():
            pair = (("kernob.tcp.", caps.flow), ("kernob.process.tcp.", caps.process))
            self._by_fate[fate] = [
                CappedCounters(store.block(named[prefix + name]), cap)
                for prefix, cap in pair
                if prefix + name in named
            ]
        self._durations: list[CappedHistograms] = [
            Capped[HistogramBlock](store.histogram(named["kernob.tcp." + name]), caps.histogram)
            for name in _BY_DURATION
        ]
        self._active = CappedCounters(store.block(named["kernob.tcp.connections.active"]), caps.flow)
        self._fate_slots: dict[int, dict[int, list[int]]] = {}
        self._duration_slots: dict[int, dict[int, int]] = {}
        self._active_slots: dict[int, int] = {}
        self._counted = np.zeros(1024, np.int64)
        self._facts = np.zeros((1024, len(_FACTS)), np.int64)
        self._marks = np.zeros((1024, len(_FACTS)), np.int64)
        self._window = np.zeros((1024, len(_FACTS)), np.int64)
        self._foreign: dict[Names, tuple[int, int]] = {}

    @property
    def outcomes(self) -> NDArray[np.int64]:
        """Connections and how many of them failed, by flow, since it is known; not to be changed."""
        return self._facts[:, (_CONNECTIONS, _FAILED)]

    @property
    def folded(self) -> int:
        """How often a series was folded into `~other` for a cap (cumulative)."""
        folded = sum(metric.folded for metric in self._counters()) + self._active.folded
        return folded + sum(metric.folded for metric in self._durations)

    def update(
        self,
        fates: tuple[NDArray[Any], NDArray[Any]],
        durations: tuple[NDArray[Any], NDArray[Any]],
        live: NDArray[Any],
        since_unix_ns: int,
    ) -> None:
        """Folds one tick in: (fate keys, counts), (duration keys, values), and the live owned sockets.

        `live` must be what the flow table was updated with in the same tick. New series start at
        `since_unix_ns`.
        """
        self._count(*fates, since_unix_ns)
        self._measure(*durations, since_unix_ns)
        self._see_active(live, since_unix_ns)
        for metric in self._counters():
            metric.sweep(self._known.flows.now_s)
        for measured in self._durations:
            measured.sweep(self._known.flows.now_s)

    def _counters(self) -> Iterator[CappedCounters]:
        return (metric for metrics in self._by_fate.values() for metric in metrics)

    def make_room(self, flows: int) -> None:
        """Is ready for indices below `flows` (called by `Known`)."""
        extra = flows - len(self._counted)
        if extra > 0:
            for name in ("_counted", "_facts", "_marks", "_window"):
                array: NDArray[Any] = getattr(self, name)
                more = np.zeros((extra, *array.shape[1:]), array.dtype)
                setattr(self, name, np.concatenate([array, more]))

    def _count(self, keys: NDArray[Any], counts: NDArray[Any], start_unix_ns: int) -> None:
        owned = keys["flow"]["tgid"] != 0
        flows = self._known.find(keys["flow"][owned])
        found: dict[CappedCounters, tuple[list[int], list[int]]] = {}
        rows = zip(flows.tolist(), _codes(keys[owned]), counts[owned].tolist(), strict=True)
        for flow, code, count in rows:
            by_code = self._fate_slots.setdefault(flow, {})
            metrics = self._by_fate.get(code & 0xFF, [])
            if code not in by_code:
                by_code[code] = self._admit(flow, code, start_unix_ns)
            for metric, slot in zip(metrics, by_code[code], strict=True):
                slots, grown = found.setdefault(metric, ([], []))
                slots.append(slot)
                grown.append(count)
            self._note(flow, code, count)
        for code, count in zip(_codes(keys[~owned]), counts[~owned].tolist(), strict=True):
            self._count_nobodys(code, count, start_unix_ns, found)
        for metric, (slots, grown) in found.items():
            metric.add(np.array(slots, np.int64), np.array(grown, np.int64))

    def _count_nobodys(
        self,
        code: int,
        count: int,
        start_unix_ns: int,
        found: dict[CappedCounters, tuple[list[int], list[int]]],
    ) -> None:
        """What no process has to do with, such as the RST for a port that nobody listens on."""
        for metric in self._by_fate.get(code & 0xFF, [])[:1]:
            attributes = _what(code, metric.block.spec)
            slots, grown = found.setdefault(metric, ([], []))
            slots.append(metric.slot(attributes, attributes, start_unix_ns))
            grown.append(count)

    def _note(self, flow: int, code: int, count: int) -> None:
        kind, reason = code & 0xFF, code >> 8 & 0xFF
        if kind in _FACT_OF:
            self._facts[flow, _FACT_OF[Fate(kind)]] += count
        if kind == Fate.CONNECTION and reason != Outcome.OK:
            self._facts[flow, _FAILED] += count

    def _admit(self, flow: int, code: int, start_unix_ns: int) -> list[int]:
        """Slots of a kind of fact of a flow: one for each metric that counts it."""
        process, there = self._known.owner(flow), self._known.destination(flow)
        who, service = identity(process.key.pid, process.executable, process.service)
        admitted = []
        for metric in self._by_fate.get(code & 0xFF, []):
            spec = metric.block.spec
            kind = _what(code, spec)
            if "process.pid" in spec.attributes:
                side = _side(there.role, there.peer_class, spec)
                names = (who + service + side + kind, NOBODY + service + side + kind)
            else:
                names = _flow_names(service, there, spec, kind)
            slot = metric.slot(*names, start_unix_ns)
            if metric.is_own(slot):
                metric.use(slot, process.key)
                process.series.add((metric, slot))
            else:
                metric.hold(slot)
            admitted.append(slot)
        return admitted

    def _measure(self, keys: NDArray[Any], values: NDArray[Any], start_unix_ns: int) -> None:
        flows = self._known.find(keys["flow"])
        kinds = keys["kind"]
        for kind, metric in enumerate(self._durations):
            rows = np.flatnonzero(kinds == kind)
            if not len(rows):
                continue
            slots = np.fromiter(
                (self._duration_slot(flow, kind, start_unix_ns) for flow in flows[rows].tolist()),
                np.int64,
                len(rows),
            )
            metric.block.add(slots, values["sum_ns"][rows], values["buckets"][rows])

    def _duration_slot(self, flow: int, kind: int, start_unix_ns: int) -> int:
        by_kind = self._duration_slots.setdefault(flow, {})
        if kind not in by_kind:
            process, there = self._known.owner(flow), self._known.destination(flow)
            metric = self._durations[kind]
            service = identity(process.key.pid, process.executable, process.service)[1]
            names = _flow_names(service, there, metric.block.spec)
            by_kind[kind] = metric.slot(*names, start_unix_ns)
            metric.hold(by_kind[kind])
        return by_kind[kind]

    def _see_active(self, live: NDArray[Any], start_unix_ns: int) -> None:
        flows = self._known.flows.live
        active = (live["state"] == ESTABLISHED) | (live["state"] == CLOSE_WAIT)
        counted = np.bincount(flows[active], minlength=len(self._counted))
        changed = np.flatnonzero(counted != self._counted)
        if len(changed):
            slots = [self._active_slot(flow, start_unix_ns) for flow in changed.tolist()]
            self._active.add(np.array(slots, np.int64), counted[changed] - self._counted[changed])
            self._counted = counted

    def _active_slot(self, flow: int, start_unix_ns: int) -> int:
        if flow not in self._active_slots:
            process, there = self._known.owner(flow), self._known.destination(flow)
            names = self.active_names(process.service, there)
            slot = self._active.slot(*names, start_unix_ns)
            self._active_slots[flow] = slot
            self._active.hold(slot)
        return self._active_slots[flow]

    def active_names(self, service: str, there: Destination) -> Names:
        """Attributes of kernob.tcp.connections.active, and of the series they fold into."""
        return _flow_names((("kernob.service", service),), there, self._active.block.spec)

    def see_foreign(self, found: Mapping[Names, int], start_unix_ns: int) -> None:
        """Takes how many active connections there are whose owner only /proc tells, by `active_names`."""
        for names in found.keys() - self._foreign.keys():
            slot = self._active.slot(*names, start_unix_ns)
            self._active.hold(slot)
            self._foreign[names] = (slot, 0)
        for names, (slot, before) in list(self._foreign.items()):
            now = found.get(names, 0)
            self._active.add(np.array([slot]), np.array([now - before]))
            self._foreign[names] = (slot, now)
            if not now:
                del self._foreign[names]
                self._active.release(slot)

    def forget(self, flows: Indices) -> None:
        """Drops what is kept for each of these flows (called by `Known`)."""
        now_s = self._known.flows.now_s
        for flow in flows.tolist():
            for code, slots in self._fate_slots.pop(flow, {}).items():
                for metric, slot in zip(self._by_fate.get(code & 0xFF, ()), slots, strict=True):
                    if metric.is_held(slot):
                        metric.rest((slot,), now_s)
            for kind, slot in self._duration_slots.pop(flow, {}).items():
                self._durations[kind].rest((slot,), now_s)
            active = self._active_slots.pop(flow, None)
            if active is not None:
                self._active.add(np.array([active]), -self._counted[[flow]])
                self._active.release(active)
        for array in (self._counted, self._facts, self._marks, self._window):
            array[flows] = 0

    def roll(self) -> None:
        """Ends an aggregation window: what happened in it is what screens show."""
        self._window = self._facts - self._marks
        self._marks = self._facts.copy()

    def facts(self, flow: int) -> tuple[TcpFacts, TcpFacts]:
        """What happened on a flow since it is known, and in the last window."""
        return TcpFacts(*self._facts[flow].tolist()), TcpFacts(*self._window[flow].tolist())


def _codes(keys: NDArray[Any]) -> list[int]:
    """Kind, reason, side and idle of each struct fate_key as one number, the kind lowest."""
    parts = (keys[name].astype(np.int64) << shift for name, shift in zip(_CODE, (0, 8, 16, 24), strict=True))
    codes: list[int] = sum(parts, np.zeros(len(keys), np.int64)).tolist()
    return codes


@functools.lru_cache(256)
def _what(code: int, spec: MetricSpec) -> Attributes:
    """What exactly happened, in those attributes that the metric has."""
    kind, reason, side, idle = (code >> shift & 0xFF for shift in (0, 8, 16, 24))
    said: list[tuple[str, AttributeValue]] = []
    if kind == Fate.CONNECTION and reason != Outcome.OK:
        said.append(("error.type", _name(Outcome, reason)))
    elif kind == Fate.RESET:
        said += [("network.io.direction", DIRECTIONS[side & 1]), ("kernob.reset.idle", bool(idle))]
    elif kind == Fate.DROP:
        said += [("error.type", _name(Drop, reason)), ("kernob.closed_by", _name(ClosedBy, side))]
    elif kind == Fate.TIMEOUT:
        said.append(("error.type", _name(Timeout, reason)))
    return tuple(pair for pair in said if pair[0] in spec.attributes)


def _name(values: type[enum.IntEnum], number: int) -> str:
    """The name that stands for a number of the kernel side; one that is not known is "other"."""
    return values(number).name.lower() if number in values._value2member_map_ else "other"


@functools.lru_cache(256)
def _side(role: Role, peer_class: PeerClass, spec: MetricSpec) -> Attributes:
    return tuple(pair for pair in side_of(role, peer_class) if pair[0] in spec.attributes)


def _flow_names(service: Attributes, there: Destination, spec: MetricSpec, kind: Attributes = ()) -> Names:
    """Attributes of a series of a service and destination; beyond the cap it keeps all but the address."""
    side = _side(there.role, there.peer_class, spec)
    return service + there.where + side + kind, service + NOWHERE + side + kind
