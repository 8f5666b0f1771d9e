# SPDX-License-Identifier: Apache-2.0
"""The service map as metrics: nodes and edges while they are active, their traffic, what joins hosts.

In: `MapState` and which of its edges are active. Out: series in a SeriesStore. Called by `features.map`,
once a tick. What is active is exported; what was not seen for a while ends, and begins anew when it returns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import numpy as np

from kernob.model import Attributes, MetricKind, MetricSpec, edge_id
from kernob.state.blocks import SeriesBlock
from kernob.state.series import SeriesStore
from kernob.state.service_map import CONNECTIONS, FAILURES, RX, TX, Indices, MapState

NODE = MetricSpec(
    "kernob.map.node",
    "{node}",
    MetricKind.GAUGE,
    "A node of the service map; 1 while it was seen in the last minutes.",
    ("id", "title", "subtitle", "kernob.node.class"),
)
EDGE = MetricSpec(
    "kernob.map.edge",
    "{edge}",
    MetricKind.GAUGE,
    "An edge of the service map, from who connects to who answers; 1 while it was seen in the last minutes, "
    "0 for two minutes where it turned out to be another one.",
    ("id", "source", "target", "kernob.peer.class", "kernob.service", "server.address", "server.port"),
)
EDGE_IO = MetricSpec(
    "kernob.map.edge.io",
    "By",
    MetricKind.COUNTER,
    "Bytes on an edge: transmit is from source to target.",
    ("id", "network.io.direction"),
)
EDGE_CONNECTIONS = MetricSpec(
    "kernob.map.edge.connections",
    "{connection}",
    MetricKind.COUNTER,
    "Connections on an edge, failed attempts included.",
    ("id",),
)
EDGE_FAILURES = MetricSpec(
    "kernob.map.edge.failures",
    "{connection}",
    MetricKind.COUNTER,
    "Attempts to connect on an edge that failed.",
    ("id",),
)
EDGE_SCORE = MetricSpec(
    "kernob.map.edge.score",
    "1",
    MetricKind.GAUGE,
    "Health of an edge, 0 to 1, as kernob.dependency.score.",
    ("id", "kernob.score.dimension"),
    integer=False,
)
NODE_SCORE = MetricSpec(
    "kernob.map.node.score",
    "1",
    MetricKind.GAUGE,
    "Health of a node: the worst of the edges that lead to it.",
    ("id", "kernob.score.dimension"),
    integer=False,
)
EDGE_ADDRESS = MetricSpec(
    "kernob.map.edge.address",
    "{address}",
    MetricKind.GAUGE,
    "An address at the other host's end of an edge; 1. Joins the maps of several hosts.",
    ("id", "network.peer.address", "server.port"),
)
LISTENER = MetricSpec(
    "kernob.listener",
    "{listener}",
    MetricKind.GAUGE,
    "An address and port by which other hosts reach a service of this one; 1.",
    ("kernob.service", "network.local.address", "server.port"),
)
SPECS: Final = (
    NODE, EDGE, EDGE_IO, EDGE_CONNECTIONS, EDGE_FAILURES, EDGE_SCORE, NODE_SCORE, EDGE_ADDRESS, LISTENER,
)  # fmt: skip

_COUNTERS: Final = ((EDGE_IO, TX), (EDGE_IO, RX), (EDGE_CONNECTIONS, CONNECTIONS), (EDGE_FAILURES, FAILURES))
_LISTENERS_MOST: Final = 2_000
_ADDRESSES_MOST: Final = 5_000
_ADDRESSES_OF_EDGE: Final = 64
_BEGUN_MOST: Final = 400
"""Edges whose series begin in one tick: some 0.1 ms each."""
UNTOLD: Final = "~other"
"""Stands for the addresses of an edge beyond the cap."""
_WITHDRAWN_NS: Final = 120 * 10**9
"""So long the backend is told that an edge never was: its rules look twice a minute, and a send may fail."""

Scores = Callable[[int], Mapping[str, float]]
"""Scores of an edge by dimension; nothing where there are too few samples."""


class Gauges:
    """A set of gauges of value 1 that come and go."""

    def __init__(self, block: SeriesBlock) -> None:
        self._block = block
        self._slots: dict[Attributes, int] = {}

    def show(self, wanted: Iterable[Attributes], now_unix_ns: int) -> None:
        """Has exactly these stand."""
        self.show_values(dict.fromkeys(wanted, 1), now_unix_ns)

    def show_values(self, wanted: Mapping[Attributes, float], now_unix_ns: int) -> None:
        """Has exactly these stand, with these values."""
        gone = self._slots.keys() - wanted.keys()
        if gone:
            self._block.end(np.array([self._slots.pop(each) for each in gone], np.int64))
        for each in wanted.keys() - self._slots.keys():
            self._slots[each] = self._block.admit(each, now_unix_ns)
        if wanted:
            slots = np.array([self._slots[each] for each in wanted], np.int64)
            self._block.set(slots, np.array(list(wanted.values())))


class _ScoreGauges:
    """Scores by dimension of things that have an id."""

    def __init__(self, block: SeriesBlock) -> None:
        self._block = block
        self._slots: dict[str, dict[str, int]] = {}

    def set(self, name: str, scores: Mapping[str, float], now_unix_ns: int) -> None:
        """Has exactly these scores of one thing stand."""
        slots = self._slots.setdefault(name, {})
        gone = [slots.pop(dimension) for dimension in slots.keys() - scores.keys()]
        if gone:
            self._block.end(np.array(gone, np.int64))
        for dimension in scores.keys() - slots.keys():
            attributes = (("id", name), ("kernob.score.dimension", dimension))
            slots[dimension] = self._block.admit(attributes, now_unix_ns)
        if scores:
            self._block.set(np.array([slots[d] for d in scores], np.int64), np.array(list(scores.values())))
        else:
            del self._slots[name]


class MapSeries:
    """See the module."""

    def __init__(self, store: SeriesStore, host: str) -> None:
        self._host = host
        self._counters = [(store.block(spec), column) for spec, column in _COUNTERS]
        self._edges = store.block(EDGE)
        self._nodes = Gauges(store.block(NODE))
        self._addresses = Gauges(store.block(EDGE_ADDRESS))
        self._listeners = Gauges(store.block(LISTENER))
        self._edge_scores = _ScoreGauges(store.block(EDGE_SCORE))
        self._node_scores = _ScoreGauges(store.block(NODE_SCORE))
        self._active: dict[int, int] = {}
        self._slots = np.zeros((1024, len(_COUNTERS)), np.int64)
        self._bases = np.zeros((1024, 4), np.int64)
        self._peers: dict[int, set[str]] = {}
        self._withdrawn: dict[str, tuple[int, int]] = {}  # slot, Unix time in ns when it ends
        self._stood: Indices = np.zeros(0, np.int64)
        self._named: dict[int, tuple[str, str, str, int]] = {}  # id, source, target, port
        self._scored: dict[int, Mapping[str, float]] = {}
        self._scored_into: dict[str, set[int]] = {}
        self._rescored: set[str] = set()
        self._begun = 0
        self._is_behind = False
        self._is_changed = True
        self._nodes_at = self._joins_at = -1
        self._announced: tuple[tuple[str, str, int], ...] = ()

    def update(self, state: MapState, active: Indices, changed: Indices, now_unix_ns: int) -> None:
        """Has exactly the `active` edges stand, and brings the counters of the `changed` ones up to date.

        Edges that grew have begun already (`begin`); an edge that is active without having grown since the
        agent's start counts from what it has. Of many such edges some begin in each tick.
        """
        if self._is_behind or not np.array_equal(active, self._stood):
            self._stood = active
            wanted = set(active.tolist())
            for edge in self._active.keys() - wanted:
                self.drop(edge)
            fresh = wanted - self._active.keys()
            room = max(0, _BEGUN_MOST - self._begun)
            for edge in itertools.islice(fresh, room):
                self.begin(state, edge, now_unix_ns)
            self._is_behind = len(fresh) > room
        self._begun = 0
        for name in [name for name, (_, end_ns) in self._withdrawn.items() if end_ns <= now_unix_ns]:
            self._edges.end(np.array([self._withdrawn.pop(name)[0]]))
        known = changed[np.fromiter((edge in self._active for edge in changed.tolist()), bool, len(changed))]
        if len(known):
            sums = state.totals[known] - self._bases[known]
            for at, (block, column) in enumerate(self._counters):
                block.set(self._slots[known, at], sums[:, column])

    def begin(self, state: MapState, edge: int, since_unix_ns: int) -> None:
        """Begins an edge's series; they count from its totals as they are now."""
        while edge >= len(self._slots):
            self._slots = np.concatenate([self._slots, np.zeros_like(self._slots)])
            self._bases = np.concatenate([self._bases, np.zeros_like(self._bases)])
        if edge in self._active:
            return
        self._begun += 1
        self._is_changed = True
        link = state.link(edge)
        name = (("id", edge_id(link.key)),)
        where: Attributes = (("server.port", link.port),) if link.port else ()
        service = (("kernob.service", link.source.title),) if link.source.kind.value == "service" else ()
        if link.address:
            where = (("server.address", link.server), *where)
        ends: Attributes = (
            *name,
            ("source", link.source.id),
            ("target", link.target.id),
            ("kernob.peer.class", link.edge_class.value),
        )
        before = self._withdrawn.pop(name[0][1], None)
        if before is not None:
            self._edges.end(np.array([before[0]]))
        slot = self._edges.admit((*ends, *service, *where), since_unix_ns)
        self._edges.set(np.array([slot]), np.array([1]))
        self._active[edge] = slot
        self._named[edge] = name[0][1], *link.key
        self._bases[edge] = state.totals[edge]
        directions: tuple[Attributes, ...] = (
            (("network.io.direction", "transmit"),),
            (("network.io.direction", "receive"),),
            (),
            (),
        )
        for at, ((block, _), more) in enumerate(zip(self._counters, directions, strict=True)):
            self._slots[edge, at] = block.admit((*name, *more), since_unix_ns)

    def withdraw(self, edge: int, now_unix_ns: int) -> None:
        """Ends an edge's series, and tells the backend that it was another one all the time."""
        slot = self._active.get(edge)
        if slot is None:
            return
        name = self._named[edge][0]
        self.drop(edge, is_edge_told=True)
        self._edges.set(np.array([slot]), np.array([0]))
        self._withdrawn[name] = slot, now_unix_ns + _WITHDRAWN_NS

    def drop(self, edge: int, *, is_edge_told: bool = False) -> None:
        """Ends an edge's series; that of the edge itself not where somebody else will."""
        slot = self._active.pop(edge, None)
        if slot is None:
            return
        self._is_changed = True
        if not is_edge_told:
            self._edges.end(np.array([slot]))
        for at, (block, _) in enumerate(self._counters):
            block.end(self._slots[edge, [at]])
        self._peers.pop(edge, None)
        name, _, target, _ = self._named.pop(edge)
        if self._scored.pop(edge, None):
            self._edge_scores.set(name, {}, 0)
            self._scored_into[target].discard(edge)
            self._rescored.add(target)

    @property
    def has_room(self) -> bool:
        """Whether more edges may begin in this tick without making it long."""
        return self._begun < _BEGUN_MOST

    @property
    def active(self) -> Indices:
        """Edges that stood after the last update."""
        return self._stood

    def is_active(self, edge: int) -> bool:
        """Whether an edge's series stand."""
        return edge in self._active

    def show(self, state: MapState, announced: tuple[tuple[str, str, int], ...], now_unix_ns: int) -> None:
        """Has nodes of the active edges stand, and what joins hosts: peers' addresses, our listeners."""
        if not self._is_changed and state.version == self._nodes_at and announced == self._announced:
            return
        self._is_changed, self._nodes_at, self._announced = False, state.version, announced
        self._show_nodes(state, now_unix_ns)
        self._show_joins(now_unix_ns)

    def _show_nodes(self, state: MapState, now_unix_ns: int) -> None:
        ends = self._named.values()
        names = {source for _, source, _, _ in ends} | {target for _, _, target, _ in ends}
        shown: list[Attributes] = []
        for name in names:
            row_id, kind, title, node_class = state.label(name)
            subtitle = self._host if kind == "service" else node_class
            shown.append(
                (("id", row_id), ("title", title), ("subtitle", subtitle), ("kernob.node.class", node_class))
            )
        self._nodes.show(shown, now_unix_ns)

    def see_peer(self, edge: int, address: str) -> None:
        """Takes note of an address at the other end of an edge."""
        peers = self._peers.setdefault(edge, set())
        if address not in peers:
            self._is_changed = True
            peers.add(address if len(peers) < _ADDRESSES_OF_EDGE else UNTOLD)

    def _show_joins(self, now_unix_ns: int) -> None:
        addresses: list[Attributes] = []
        for edge, peers in self._peers.items():
            if edge not in self._named:
                continue
            name, _, _, port = self._named[edge]
            if len(addresses) + len(peers) > _ADDRESSES_MOST:
                peers = {UNTOLD}  # noqa: PLW2901  what does not fit is not told in part
            addresses += [
                (("id", name), ("network.peer.address", peer), ("server.port", port)) for peer in peers
            ]
        self._addresses.show(addresses, now_unix_ns)
        self._listeners.show(
            [
                (("kernob.service", service), ("network.local.address", address), ("server.port", port))
                for service, address, port in self._announced[:_LISTENERS_MOST]
            ],
            now_unix_ns,
        )

    def show_scores(self, scores: Scores, edges: Iterable[int], now_unix_ns: int) -> None:
        """Brings the health of these edges up to date, and that of the nodes they lead to: the worst."""
        for edge in edges:
            if edge not in self._active:
                continue
            new = scores(edge)
            if new != self._scored.get(edge, {}):
                name, _, target, _ = self._named[edge]
                self._scored[edge] = new
                self._edge_scores.set(name, new, now_unix_ns)
                self._scored_into.setdefault(target, set()).add(edge)
                self._rescored.add(target)
        for target in self._rescored:
            worst: dict[str, float] = {}
            for edge in self._scored_into.get(target, ()):
                for dimension, score in self._scored.get(edge, {}).items():
                    worst[dimension] = min(score, worst.get(dimension, score))
            self._node_scores.set(target, worst, now_unix_ns)
        self._rescored.clear()
