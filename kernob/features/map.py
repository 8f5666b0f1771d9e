# SPDX-License-Identifier: Apache-2.0
"""The service map: who talks to whom, out of each tick's flows (MAP.md, docs/map.md).

Every flow is given to an edge when it is seen first; after that a tick only adds what grew. Where later
knowledge says that an edge was something else all the time (an address that turns out to be a container's
published port), it is moved. Of a rush of new edges a tick takes so many as its time allows; what the others
move meanwhile is owed to them. So is what moves while it is in doubt who answers: docker-proxy itself, or the
container behind it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from kernob.config import Settings
from kernob.derive.scores import worst
from kernob.derive.topology import Dial, Reached, folded, incoming, outgoing, reached, service_node
from kernob.derive.translation import translations
from kernob.features.feature import Feature, Report, Tick
from kernob.features.map_memory import MapMemory
from kernob.features.map_reports import MapReports
from kernob.features.places import PlaceWatch
from kernob.model import Event, Link, Name, NodeKind, PeerClass, Role, Transport
from kernob.state.baseline import Baseline, Key
from kernob.state.connections import ConnectionState
from kernob.state.destinations import Destination
from kernob.state.flows import Indices
from kernob.state.known import Known
from kernob.state.map_folds import FoldOf
from kernob.state.map_series import MapSeries
from kernob.state.processes import Process
from kernob.state.series import SeriesStore
from kernob.state.service_map import MapState
from kernob.state.store import Store

if TYPE_CHECKING:
    from kernob.kernel.session import Session

log = logging.getLogger(__name__)

_NEW, _IGNORED, _WAITING = -1, -2, -3
_WAIT_TICKS: Final = 3
_DOUBT_TICKS: Final = 2
"""So long a new edge waits for what docker-proxy is seen to accept; less than what a server waits for."""
_DAY_NS: Final = 86400 * 10**9
_EXPORT_S: Final = 60.0
_SCORE_TURNS: Final = 6

ScoreOf = Callable[[str, str, int], Mapping[str, float]]
"""Scores by dimension of a service's connections to (address or hostname, port)."""


class Map(Feature):
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        series: SeriesStore,
        known: Known,
        connections: ConnectionState,
        places: PlaceWatch,
        store: Store | None = None,
        score_of: ScoreOf | None = None,
    ) -> None:
        """Nothing is read before `open`."""
        known.keep(self)
        self._known = known
        self._connections = connections
        self._places = places
        self._own_only = settings.map_own_namespace
        self._host = settings.host_name
        self._active_ns = int(settings.map_active_s * 1e9)
        self._kept_ns = settings.map_days * _DAY_NS
        self._state = MapState(settings.max_map_edges, folded)
        self._series = MapSeries(series, self._host)
        self._baseline = Baseline(
            series, settings.learning_period_s, settings.max_new_destinations, 2 * settings.max_map_edges
        )
        self._memory = MapMemory(settings.state_dir, store, self._state, self._baseline)
        self._reports = MapReports(self._host, self._state, self._baseline, self._score, self._look_again)
        self._score_of = score_of
        self._client_names: Mapping[str, Name] = {}
        self._fold_of: FoldOf = lambda _address, _host, _port: ""
        self._edge_of = np.full(1024, _NEW, np.int64)
        self._is_mirrored = np.zeros(1024, np.bool_)
        self._untried = np.zeros(1024, np.bool_)
        self._marks = np.zeros((1024, 2), np.int64)
        self._owed = np.zeros((1024, 4), np.int64)
        self._late: set[int] = set()
        self._doubted: dict[int, int] = {}  # flow: since which tick
        self._latest: Tick | None = None
        self._local: set[int] = set()
        self._waiting: list[tuple[int, int]] = []
        self._events: list[Event] = []
        self._exported_s = 0.0
        self._ticks = 0

    def open(self, session: Session) -> None:
        """Takes what an earlier life stored."""
        self._memory.restore(self._fold_of)

    def name_clients(self, names: Mapping[str, Name]) -> None:
        """Takes the names that the network file gives to addresses: such clients are nodes of their own."""
        self._client_names = names

    def fold_by(self, fold_of: FoldOf) -> None:
        """Takes what says to which network or pattern a destination (address, hostname, port) is folded."""
        self._fold_of = fold_of

    def make_room(self, flows: int) -> None:
        """Is ready for indices below `flows` (called by `Known`)."""
        extra = flows - len(self._edge_of)
        if extra > 0:
            self._edge_of = np.concatenate([self._edge_of, np.full(extra, _NEW, np.int64)])
            for name in ("_is_mirrored", "_untried", "_marks", "_owed"):
                array: NDArray[Any] = getattr(self, name)
                more = np.zeros((extra, *array.shape[1:]), array.dtype)
                setattr(self, name, np.concatenate([array, more]))

    def forget(self, flows: Indices) -> None:
        """Drops what is kept for each of these flows (called by `Known`); late ones get their edge."""
        owed = self._late | self._doubted.keys()
        late = owed.intersection(flows.tolist()) if owed else ()
        if late and self._latest is not None:
            for flow in late:
                self._doubted[flow] = self._ticks - _DOUBT_TICKS
                self._assign_client(flow, self._latest)
            self._pay(np.array(sorted(late), np.int64), self._latest)
            self._late.difference_update(late)
        self._edge_of[flows] = _NEW
        self._untried[flows] = self._is_mirrored[flows] = False
        self._marks[flows] = self._owed[flows] = 0
        self._local.difference_update(flows.tolist())

    def tick(self, tick: Tick) -> None:
        """Gives new flows to edges, adds what grew, brings series and store up to date. Raises MapError."""
        self._ticks += 1
        self._latest = tick
        self._places.look(tick.session.map("listeners"), tick.now_s)
        flows, grown = self._grown(tick)
        new = flows[self._edge_of[flows] == _NEW].tolist()
        changed = self._places.changed
        for flow in new:
            changed |= self._assign_server(flow, tick)
        if changed:
            for flow in sorted(self._local):
                self._reassign(flow, tick)
        self._late.clear()
        for flow in new:
            if self._edge_of[flow] != _NEW:
                continue
            if self._series.has_room:
                self._assign_client(flow, tick)
            else:
                self._late.add(flow)
        self._settle_waiting(tick)
        self._translate(tick)
        self._add(flows, grown, tick)

    def _grown(self, tick: Tick) -> tuple[Indices, NDArray[np.int64]]:
        """Flows on which anything moved or happened, or that are open and new; what of it (as MapState)."""
        outcomes = self._connections.outcomes
        facts = outcomes - self._marks
        happened = np.flatnonzero(facts.any(axis=1))
        live = np.unique(self._known.flows.live)
        unknown = live[self._edge_of[live] == _NEW]
        owed = self._late | self._doubted.keys()
        late = np.fromiter(owed, np.int64, len(owed))
        moved = np.union1d(np.union1d(tick.growth.flows, happened), late)
        flows = np.union1d(moved, unknown).astype(np.int64)
        grown = np.zeros((len(flows), 4), np.int64)
        at = np.searchsorted(flows, tick.growth.flows)
        grown[at, 0], grown[at, 1] = tick.growth.tx_bytes, tick.growth.rx_bytes
        grown[:, 2:] = facts[flows]
        self._marks[flows] = outcomes[flows]
        grown += self._owed[flows]
        self._owed[flows] = 0
        return flows, grown

    def _assign_server(self, flow: int, tick: Tick) -> bool:
        """Gives a flow its edge where it is of a server; True where it says who answers somewhere."""
        there, owner = self._known.destination(flow), self._known.owner(flow)
        elsewhere = self._own_only and there.netns != self._places.host_netns
        if elsewhere or there.transport is not Transport.TCP or there.role is Role.UNKNOWN:
            self._edge_of[flow] = _IGNORED
            return False
        if there.role is not Role.SERVER:
            return False
        if self._places.places.is_here(there.netns, there.peer):
            self._edge_of[flow] = _WAITING  # the client's flow tells the edge
            self._waiting.append((flow, self._ticks))
        else:
            self._receive(flow, owner, there, tick)
        return self._places.accept(there.netns, there.address, there.port, there.peer, owner.service)

    def _receive(self, flow: int, owner: Process, there: Destination, tick: Tick) -> None:
        """Gives a flow the edge of whoever is outside."""
        name = self._client_names.get(there.peer)
        named = (self._fold_of(there.peer, name.host, there.port) or name.host) if name else ""
        link = incoming(self._host, owner.service, there.port, there.peer_class, named)
        edge = self._edge(link, tick)
        self._edge_of[flow], self._is_mirrored[flow] = edge, True
        self._series.see_peer(edge, there.peer)

    def _assign_client(self, flow: int, tick: Tick) -> None:
        link, to, here = self._link(flow)
        if to is not None and not to.sure and link.key not in self._state and self._is_too_early(flow):
            return
        self._doubted.pop(flow, None)
        edge = self._edge(link, tick)
        self._edge_of[flow] = edge
        actual = self._state.link(edge)
        if here or to is not None:
            self._local.add(flow)
        elif actual.target.kind is not NodeKind.OTHERS and not actual.target.fold:
            self._series.see_peer(edge, link.address)
        self._untried[flow] = to is None
        self._learn(flow, edge, tick)

    def _learn(self, flow: int, edge: int, tick: Tick) -> None:
        """Takes note of whom a client reaches: somebody new is an event."""
        link, name_source = self._state.link(edge), self._known.destination(flow).name_source
        since_ns = self._state.first_seen_ns(link.source.id) or tick.now_unix_ns
        if link.target.kind is not NodeKind.OTHERS:
            self._events += self._baseline.see(link, since_ns, tick.now_unix_ns, name_source)

    def _is_too_early(self, flow: int) -> bool:
        """Whether what docker-proxy accepts may yet say that it answers this client itself."""
        return self._ticks - self._doubted.setdefault(flow, self._ticks) < _DOUBT_TICKS

    def _link(self, flow: int) -> tuple[Link, Reached | None, bool]:
        """A client's edge, who answers it on this host, and whether it stays on this host."""
        there, service = self._known.destination(flow), self._known.owner(flow).service
        dial = Dial(there.netns, there.peer, there.port, there.name)
        places = self._places.places
        to, here = reached(places, dial, self._places.relayed), places.is_here(dial.netns, dial.address)
        # who answered here before is meant by who is refused now; an address without a name keeps its name
        if to is None and (here or not there.name):
            before = self._state.dialled(service_node(self._host, service).id, dial.address, dial.port)
            if before is not None and before.target.kind is (NodeKind.SERVICE if here else NodeKind.NAME):
                return before, None, here
        fold = self._fold_of(there.peer, there.name, there.port)
        return outgoing(self._host, service, dial, there.peer_class, to, here=here, fold=fold), to, here

    def _edge(self, link: Link, tick: Tick) -> int:
        edge = self._state.edge(link, tick.since_unix_ns)
        self._let_go()  # of one that made room
        self._series.begin(self._state, edge, tick.since_unix_ns)
        return edge

    def _let_go(self) -> None:
        """Ends the series of edges that are forgotten; their flows get a new edge when they grow again."""
        gone = self._state.let_go()
        if gone:
            for edge in gone:
                self._series.drop(edge)
            self._edge_of[np.isin(self._edge_of, gone)] = _NEW

    def _reassign(self, flow: int, tick: Tick) -> None:
        """Looks again whose a client's flow is, after something began or ceased to listen."""
        old = int(self._edge_of[flow])
        if old < 0:
            return
        link, to, _ = self._link(flow)
        before = self._state.link(old)
        if link.key == before.key:
            return
        self._untried[flow] = to is None
        if to is None:
            return
        single = before.target.kind in (NodeKind.ADDRESS, NodeKind.NAME) and len(self._state.hosts(old)) == 1
        new = self._edge(link, tick)
        if self._edge_of[flow] == old and single:
            self._move(old, new, tick)
        self._edge_of[flow] = new
        self._learn(flow, new, tick)

    def _move(self, old: int, new: int, tick: Tick) -> None:
        """An edge was another one all the time."""
        self._series.withdraw(old, tick.now_unix_ns)
        self._baseline.move(self._state.link(old), self._state.link(new))
        self._state.move(old, new)
        self._edge_of[self._edge_of == old] = new
        self._let_go()

    def _settle_waiting(self, tick: Tick) -> None:
        """What a server says of a local client counts only where no client's flow tells it.

        That is so where the client's address was translated on the way to one of ours.
        """
        if self._late:  # the client's flow may be among them
            return
        late = [flow for flow, since in self._waiting if self._ticks - since >= _WAIT_TICKS]
        self._waiting = [each for each in self._waiting if self._ticks - each[1] < _WAIT_TICKS]
        for flow in late:
            if self._edge_of[flow] != _WAITING:
                continue
            there, owner = self._known.destination(flow), self._known.owner(flow)
            target = service_node(self._host, owner.service).id
            self._edge_of[flow] = _IGNORED
            if not self._state.is_called(target, there.port) and there.peer_class is not PeerClass.LOCALHOST:
                self._receive(flow, owner, there, tick)

    def _translate(self, tick: Tick) -> None:
        """Learns from open connections where dials that nobody here seemed to answer really ended."""
        rows, flows = tick.rows.live, self._known.flows.live
        wanted = self._untried[flows] & (rows["sport"] != 0)
        if not wanted.any():
            return
        for client, server in translations(rows, wanted):
            flow, other = int(flows[client]), int(flows[server])
            there, answering = self._known.destination(flow), self._known.destination(other)
            if self._own_only and answering.netns != self._places.host_netns:
                continue  # that of another host
            to = Reached(self._known.owner(other).service, answering.netns, answering.port)
            self._places.translate(Dial(there.netns, there.peer, there.port), to)
            self._local.add(flow)
            self._reassign(flow, tick)
        self._untried[flows[wanted]] = False

    def _add(self, flows: Indices, grown: NDArray[np.int64], tick: Tick) -> None:
        """Adds what grew to edges, and brings series and store up to date."""
        now_ns = tick.now_unix_ns
        self._owed[flows] += grown
        edges = self._pay(flows, tick)
        live = self._edge_of[np.unique(self._known.flows.live)]
        self._state.touch(np.unique(live[live >= 0]), now_ns)
        self._series.update(
            self._state, self._state.active(now_ns - self._active_ns), np.unique(edges), now_ns
        )
        self._series.show(self._state, self._places.announced, now_ns)
        if self._score_of is not None:
            self._series.show_scores(self._score, self._to_score(edges), now_ns)
        self._events += self._baseline.summaries(now_ns)
        is_due = tick.now_s - self._exported_s >= _EXPORT_S
        if is_due:
            self._exported_s = tick.now_s
            self._baseline.trim(lambda key: (f"{self._host}/{key[0]}", *key[1:]) in self._state)
            self._state.expire(now_ns - self._kept_ns)
            self._let_go()
        if is_due or self._baseline.is_changed:
            self._baseline.export(now_ns)
        self._memory.stage()

    def _pay(self, flows: Indices, tick: Tick) -> Indices:
        """Adds what is owed to flows to their edges, which are returned; those without one yet wait."""
        edges, owed = self._edge_of[flows], self._owed[flows]
        mirrored = self._is_mirrored[flows]
        owed[mirrored, :2] = owed[mirrored, 1::-1]
        self._owed[flows[edges != _NEW]] = 0
        told = edges >= 0
        for edge in set(edges[told].tolist()):
            self._series.begin(self._state, edge, tick.since_unix_ns)
        self._state.add(edges[told], owed[told], tick.now_unix_ns)
        return edges[told]

    def _to_score(self, grown: Indices) -> set[int]:
        """Edges whose scores are looked at in this tick: those that grew, and a sixth of the others.

        Scores change without traffic, too: windows move on.
        """
        at = self._ticks % _SCORE_TURNS
        return set(grown.tolist()) | set(self._series.active[at::_SCORE_TURNS].tolist())

    def _score(self, edge: int) -> Mapping[str, float]:
        """Scores of an edge that begins here, where there are enough samples; of several hosts the worst."""
        link = self._state.link(edge)
        if self._score_of is None or link.source.kind is not NodeKind.SERVICE or not link.address:
            return {}
        each = [self._score_of(link.source.title, host, link.port) for host in self._state.hosts(edge)]
        return each[0] if len(each) == 1 else worst(each)

    def _look_again(self, forgotten: set[Key]) -> None:
        """Has flows to these destinations looked at again when they grow next."""
        for flow in np.flatnonzero(self._edge_of >= 0).tolist():
            link = self._state.link(int(self._edge_of[flow]))
            if (link.source.title, link.target.id, link.port) in forgotten:
                self._edge_of[flow] = _NEW

    def events(self) -> list[Event]:
        """New destinations since the last call."""
        events, self._events = self._events, []
        return events

    @property
    def folded(self) -> int:
        """How often an edge or a destination was folded for the cap (cumulative)."""
        return self._state.folded + self._baseline.folded

    def reports(self) -> dict[str, Report]:
        """What `kernob map` and `kernob destinations` ask."""
        return self._reports.all()
