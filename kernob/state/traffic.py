# SPDX-License-Identifier: Apache-2.0
"""From flow growth to series: names, caps, ends. The meaning of the three byte metrics is here.

In: one tick's rows. Out: series in a SeriesStore, FlowRows for screens, payload for coverage. Called by
`agent`, in the tick thread. Cost follows change: a flow that did not grow costs a few array operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernob.model import NO_FACTS, FlowRow, MetricSpec, TcpFacts
from kernob.state.capped import CappedCounters
from kernob.state.destinations import (
    DIRECTIONS,
    NOBODY,
    NOWHERE,
    OTHER,
    Destination,
    decode_destination,
    direction_and_transport,
    identity,
    side_of,
)
from kernob.state.flows import FlowTable, Growth, Indices
from kernob.state.known import Known
from kernob.state.processes import ProcessTable, Resolver
from kernob.state.series import SeriesStore

__all__ = ["DIRECTIONS", "OTHER", "Caps", "Destination", "TrafficState", "decode_destination"]

Facts = Callable[[int], tuple[TcpFacts, TcpFacts]]
_NO_SLOT = -1


@dataclass(frozen=True, slots=True)
class Caps:
    """Series a metric may have besides its `~other` ones; 0 for process_flows switches it off."""

    process: int
    flow: int
    process_flow: int


class TrafficState:
    """Everything known of bytes. `specs` are (process, flow, process x flow) in this order."""

    def __init__(
        self,
        store: SeriesStore,
        specs: tuple[MetricSpec, MetricSpec, MetricSpec],
        caps: Caps,
        resolve: Resolver,
    ) -> None:
        self.known = Known(resolve)
        self.known.keep(self)
        limits = (caps.process, caps.flow, caps.process_flow)
        self._metrics = [CappedCounters(store.block(s), cap) for s, cap in zip(specs, limits, strict=True)]
        self._process_flows = caps.process_flow > 0
        # per flow: series slot of each metric and direction
        self._slots = np.full((1024, 3, 2), _NO_SLOT, np.int64)
        self._marks = np.zeros((1024, 2), np.int64)
        self._rates = np.zeros((1024, 2), np.float64)

    @property
    def flows(self) -> FlowTable:
        """All known flows."""
        return self.known.flows

    @property
    def processes(self) -> ProcessTable:
        """All known processes."""
        return self.known.processes

    @property
    def folded(self) -> int:
        """How often a series was folded into `~other` for a cap (cumulative)."""
        return sum(metric.folded for metric in self._metrics)

    def update(
        self, rows: tuple[NDArray[Any], NDArray[Any], NDArray[Any]], since_unix_ns: int, now_s: float = 0.0
    ) -> Growth:
        """Folds one tick in: (closed keys, closed values, live sockets).

        New series start at `since_unix_ns`, just after the tick before; `now_s` is monotonic. Returns
        what grew.
        """
        growth = self.flows.update(*rows, now_s)
        self.known.learn()
        for direction, grown in enumerate((growth.tx_bytes, growth.rx_bytes)):
            moved = grown > 0
            self._add(growth.flows[moved], direction, grown[moved], since_unix_ns)
        for metric in self._metrics:
            metric.sweep(now_s)
        return growth

    def make_room(self, flows: int) -> None:
        """Is ready for indices below `flows` (called by `Known`)."""
        extra = flows - len(self._slots)
        if extra > 0:
            self._slots = np.concatenate([self._slots, np.full((extra, 3, 2), _NO_SLOT, np.int64)])
            self._marks = np.concatenate([self._marks, np.zeros((extra, 2), np.int64)])
            self._rates = np.concatenate([self._rates, np.zeros((extra, 2), np.float64)])

    def _add(self, flows: Indices, direction: int, grown: NDArray[np.int64], start_unix_ns: int) -> None:
        if not len(flows):
            return
        for flow in flows[self._slots[flows, 0, direction] == _NO_SLOT].tolist():
            self._admit(flow, direction, start_unix_ns)
        for i, metric in enumerate(self._metrics):
            if i < 2 or self._process_flows:
                metric.add(self._slots[flows, i, direction], grown)

    def _admit(self, flow: int, direction: int, start_unix_ns: int) -> None:
        process, there = self.known.owner(flow), self.known.destination(flow)
        who, service = identity(process.key.pid, process.executable, process.service)
        where, side = there.where, side_of(there.role, there.peer_class)
        kind = direction_and_transport(direction, there.transport)
        names = (
            (who + service + kind, NOBODY + service + kind),
            (service + where + side + kind, service + NOWHERE + kind),
            (who + service + where + kind, NOBODY + service + NOWHERE + kind),
        )
        for i, (attributes, other) in enumerate(names):
            if i < 2 or self._process_flows:
                metric = self._metrics[i]
                slot = metric.slot(attributes, other, start_unix_ns)
                self._slots[flow, i, direction] = slot
                if i != 1 and metric.is_own(slot):
                    metric.use(slot, process.key)
                    process.series.add((metric, slot))
                else:
                    metric.hold(slot)

    def forget(self, flows: Indices) -> None:
        """Drops what is kept for each of these flows (called by `Known`)."""
        for i, metric in enumerate(self._metrics):
            slots = self._slots[flows, i].ravel().tolist()
            metric.rest(filter(metric.is_held, slots), self.flows.now_s)
        self._slots[flows] = _NO_SLOT
        self._marks[flows] = 0
        self._rates[flows] = 0

    def roll(self, window_s: float) -> None:
        """Ends an aggregation window of this length: rates are what grew in it."""
        totals = self.flows.totals[:, :2]
        self._rates = (totals - self._marks) / max(window_s, 1e-3)
        self._marks = totals.copy()

    def rows(self, facts: Facts = lambda _flow: (NO_FACTS, NO_FACTS)) -> tuple[FlowRow, ...]:
        """Flows on which anything moved or happened, for screens; rates of the last window.

        `facts` has what happened to a flow's connections: ever, and in the window.
        """
        found = []
        totals, rates = self.flows.totals, self._rates
        for flow, process, there in self.known.each():
            ever, window = facts(flow)
            if not totals[flow].any() and ever == NO_FACTS:
                continue
            found.append(
                FlowRow(
                    pid=process.key.pid,
                    executable=process.executable,
                    service=process.service,
                    alive=process.alive,
                    role=there.role,
                    transport=there.transport,
                    address=there.host,
                    port=there.port,
                    peer=there.peer,
                    peer_class=there.peer_class,
                    tx_bytes=int(totals[flow, 0]),
                    rx_bytes=int(totals[flow, 1]),
                    tx_rate=float(rates[flow, 0]),
                    rx_rate=float(rates[flow, 1]),
                    tcp=ever,
                    tcp_window=window,
                )
            )
        return tuple(found)

    def destination(self, flow: int) -> Destination:
        """The other end of a flow."""
        return self.known.destination(flow)
