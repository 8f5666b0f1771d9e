# SPDX-License-Identifier: Apache-2.0
"""The service map as it stands: nodes and edges with their totals, and which of them changed.

In: links (`derive.topology`) and what grew on them, once a tick. Out: rows for the store and for screens; the
series are `state.map_series`'s. Called by `features.map`, in the tick thread. An edge has an index; totals
are arrays by that index, so that a tick costs what changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernob.model import EdgeKey, EdgeRow, Link, MapNode, NodeKind, NodeRow, PeerClass

Indices = NDArray[np.int64]

_TOUCH_NS = 60 * 10**9
"""That an open connection idles on is written so often."""

TX, RX, CONNECTIONS, FAILURES = range(4)
_PORTS_SHOWN = 3
HOSTS_OF_EDGE = 64


class _Node:
    """A node, the ports it serves, and how many of its edges leave the loopback."""

    __slots__ = ("edges", "first_ns", "last_ns", "node", "outside", "ports")

    def __init__(self, node: MapNode, now_ns: int) -> None:
        self.node = node
        self.ports: set[int] = set()
        self.first_ns = self.last_ns = now_ns
        self.edges: set[int] = set()
        self.outside = 0

    @property
    def shown_class(self) -> str:
        if self.node.node_class is not None:
            return self.node.node_class.value
        return "self" if self.outside else PeerClass.LOCALHOST.value

    @property
    def title(self) -> str:
        if not self.ports or self.node.kind is not NodeKind.SERVICE:
            return self.node.title
        ports = sorted(self.ports)
        more = ",…" if len(ports) > _PORTS_SHOWN else ""
        return f"{self.node.title}:{','.join(map(str, ports[:_PORTS_SHOWN]))}{more}"


class MapState:
    """See the module.

    `version` grows with every change of what there is and how it is called. `most` bounds the edges; beyond
    it, and beyond a tenth of it for one source, new ones fold: `folded` says how often.
    """

    def __init__(self, most: int, fold: Callable[[Link], Link]) -> None:
        self._most = most
        self._fold = fold
        self._index: dict[EdgeKey, int] = {}
        self._links: dict[int, Link] = {}
        self._free: list[int] = []
        self._leaving: list[int] = []
        self._nodes: dict[str, _Node] = {}
        self._by_source: dict[str, int] = {}
        self._by_dial: dict[tuple[str, str, int], int] = {}
        self.totals = np.zeros((1024, 4), np.int64)
        self.first_ns = np.zeros(1024, np.int64)
        self.last_ns = np.zeros(1024, np.int64)
        self._written_ns = np.zeros(1024, np.int64)
        self._hosts: dict[int, dict[str, None]] = {}  # of edges to what is folded, the latest last
        self._dirty: set[int] = set()
        self._dirty_nodes: set[str] = set()
        self._gone: list[EdgeKey] = []
        self._gone_nodes: list[str] = []
        self.folded = 0
        self.version = 0

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: EdgeKey) -> bool:
        return key in self._index

    def edge(self, link: Link, now_ns: int) -> int:
        """The index of a link's edge, made where it is new and there is room."""
        found = self._index.get(link.key)
        if found is None and self._is_full(link):
            self.folded += 1
            link = self._fold(link)
            found = self._index.get(link.key)
        if found is None:
            found = self._add(link, now_ns)
        elif link.serves and link.serves not in self._nodes[link.target.id].ports:
            self._serve(link)
        if link.target.fold:
            hosts = self._hosts.setdefault(found, {})
            hosts.pop(link.host, None)
            hosts[link.host] = None
            while len(hosts) > HOSTS_OF_EDGE:
                del hosts[next(iter(hosts))]
        return found

    def hosts(self, edge: int) -> tuple[str, ...]:
        """Hostnames or addresses that an edge leads to: one, or the latest ones of what is folded.

        Of an edge that an earlier life knew, "" stands for those that are not known any more.
        """
        link = self._links[edge]
        return tuple(self._hosts.get(edge, ())) or (link.host or link.address,)

    def link(self, edge: int) -> Link:
        """What an edge connects."""
        return self._links[edge]

    def dialled(self, source: str, address: str, port: int) -> Link | None:
        """The edge that a source's connections to this address and port belonged to, ever."""
        found = self._by_dial.get((source, address, port))
        return None if found is None else self._links[found]

    def add(self, edges: Indices, grown: NDArray[np.int64], now_ns: int) -> None:
        """Adds to edges (TX, RX, CONNECTIONS, FAILURES a row); an edge may stand there more than once."""
        np.add.at(self.totals, edges, grown)
        self._see(edges, now_ns)
        self._dirty.update(np.unique(edges).tolist())

    def touch(self, edges: Indices, now_ns: int) -> None:
        """Says that connections of these edges are open."""
        self._see(edges, now_ns)
        stale = edges[now_ns - self._written_ns[edges] >= _TOUCH_NS]
        self._dirty.update(np.unique(stale).tolist())

    def _see(self, edges: Indices, now_ns: int) -> None:
        # a clock that is wrong for a while (in 1970) does not make out of date what was seen before
        self.last_ns[edges] = np.maximum(self.last_ns[edges], now_ns)

    def active(self, since_ns: int) -> Indices:
        """Edges seen since then."""
        known = np.fromiter(self._index.values(), np.int64, len(self._index))
        return known[self.last_ns[known] >= since_ns]

    def move(self, old: int, new: int) -> None:
        """Says that what was taken for the edge `old` was `new` all the time."""
        self.totals[new] += self.totals[old]
        self.first_ns[new] = min(self.first_ns[new], self.first_ns[old])
        self.last_ns[new] = max(self.last_ns[new], self.last_ns[old])
        self._dirty.add(new)
        self.remove(old)

    def remove(self, edge: int) -> None:
        """Forgets an edge, and nodes that it leaves alone."""
        self.version += 1
        link = self._links.pop(edge)
        del self._index[link.key]
        self._gone.append(link.key)
        self._dirty.discard(edge)
        self._by_source[link.source.id] -= 1
        if not self._by_source[link.source.id]:
            del self._by_source[link.source.id]
        if self._by_dial.get((link.source.id, link.address, link.port)) == edge:
            del self._by_dial[link.source.id, link.address, link.port]
        for end in {link.source.id, link.target.id}:
            node = self._nodes[end]
            node.edges.discard(edge)
            node.outside -= link.edge_class is not PeerClass.LOCALHOST
            if not node.edges:
                del self._nodes[end]
                self._dirty_nodes.discard(end)
                self._gone_nodes.append(end)
        self.totals[edge] = 0
        self._hosts.pop(edge, None)
        self._leaving.append(edge)

    def let_go(self) -> list[int]:
        """Edges that were removed since the last call; from now on their indices may be others'."""
        gone, self._leaving = self._leaving, []
        self._free += gone
        return gone

    def expire(self, before_ns: int) -> None:
        """Forgets edges that nothing was seen of since then."""
        known = np.fromiter(self._index.values(), np.int64, len(self._index))
        for edge in known[self.last_ns[known] < before_ns].tolist():
            self.remove(edge)

    def changes(self) -> tuple[list[NodeRow], list[EdgeRow], list[str], list[EdgeKey]]:
        """What the store has to be told since the last call: nodes, edges; nodes, edges that are gone."""
        for edge in self._dirty:
            link, last_ns = self._links[edge], int(self.last_ns[edge])
            for end in (link.source.id, link.target.id):
                if last_ns - self._nodes[end].last_ns >= _TOUCH_NS:
                    self._nodes[end].last_ns = last_ns
                    self._dirty_nodes.add(end)
        edges = self._rows(self._dirty)
        self._written_ns[list(self._dirty)] = self.last_ns[list(self._dirty)]
        nodes = [self._node_row(self._nodes[each]) for each in self._dirty_nodes]
        gone = [key for key in self._gone if key not in self._index]
        gone_nodes = [each for each in self._gone_nodes if each not in self._nodes]
        self._dirty, self._dirty_nodes, self._gone, self._gone_nodes = set(), set(), [], []
        return nodes, edges, gone_nodes, gone

    def stage_all(self, gone_nodes: Iterable[str] = (), gone: Iterable[EdgeKey] = ()) -> None:
        """Has everything count as changed, and these as gone: what the store has is not this."""
        self._dirty = set(self._index.values())
        self._dirty_nodes = set(self._nodes)
        self._gone_nodes += gone_nodes
        self._gone += gone

    def rows(self, edges: Iterable[int] | None = None) -> tuple[list[NodeRow], list[EdgeRow]]:
        """These edges, or all, and their nodes."""
        wanted = list(self._index.values()) if edges is None else list(edges)
        names = {end for edge in wanted for end in (self._links[edge].source.id, self._links[edge].target.id)}
        return [self._node_row(self._nodes[name]) for name in names], self._rows(wanted)

    def is_called(self, name: str, port: int) -> bool:
        """Whether an edge from anybody with a name leads to this port of a node."""
        node = self._nodes.get(name)
        links = (self._links[edge] for edge in node.edges) if node else ()
        return any(
            link.target.id == name
            and port in (link.serves, link.port)
            and link.source.kind is not NodeKind.CLIENTS
            for link in links
        )

    def label(self, name: str) -> tuple[str, str, str, str]:
        """Id, kind, title and class of a node, as shown."""
        node = self._nodes[name]
        return name, node.node.kind.value, node.title, node.shown_class

    def first_seen_ns(self, name: str) -> int | None:
        """When a node was seen first; None for one that never was."""
        node = self._nodes.get(name)
        return None if node is None else node.first_ns

    def restore(self, nodes: Iterable[NodeRow], edges: Iterable[EdgeRow]) -> None:
        """Takes what an earlier life stored, the newest where there is not room for all."""
        known = {row.id: row for row in nodes}
        for row in sorted(edges, key=lambda row: -row.last_unix_ns)[: self._most]:
            ends = [known.get(name) for name in (row.source, row.target)]
            if ends[0] is None or ends[1] is None:
                continue
            source, target = (_map_node(end) for end in ends if end is not None)
            single = target.kind is NodeKind.NAME and not target.fold
            host = target.title if single else row.address
            link = Link(source, target, row.port, PeerClass(row.edge_class), row.address, 0, host)
            edge = self._add(link, row.first_unix_ns)
            self.totals[edge] = (row.tx_bytes, row.rx_bytes, row.connections, row.failures)
            self.last_ns[edge] = self._written_ns[edge] = row.last_unix_ns
            if target.fold:
                self._hosts[edge] = {"": None}
        for name, node in self._nodes.items():
            node.first_ns, node.last_ns = known[name].first_unix_ns, known[name].last_unix_ns
            node.ports.update(known[name].ports)
        self._dirty, self._dirty_nodes = set(), set()

    def _is_full(self, link: Link) -> bool:
        mine = self._by_source.get(link.source.id, 0)
        if mine >= max(100, self._most // 10):
            return True
        if len(self._index) < self._most:
            return False
        known = np.fromiter(self._index.values(), np.int64, len(self._index))
        oldest = int(known[np.argmin(self.last_ns[known])])
        if self.last_ns[oldest] > self.last_ns[known].max() - 3600 * 10**9:
            return True
        self.remove(oldest)
        return False

    def _add(self, link: Link, now_ns: int) -> int:
        edge = self._free.pop() if self._free else len(self._links) + len(self._leaving)
        if edge >= len(self.totals):
            for name in ("totals", "first_ns", "last_ns", "_written_ns"):
                array: NDArray[Any] = getattr(self, name)
                setattr(self, name, np.concatenate([array, np.zeros_like(array)]))
        self.version += 1
        self._index[link.key], self._links[edge] = edge, link
        self._by_source[link.source.id] = self._by_source.get(link.source.id, 0) + 1
        if link.address:
            self._by_dial[link.source.id, link.address, link.port] = edge
        for end in (link.source, link.target):
            node = self._nodes.get(end.id)
            if node is None:
                node = self._nodes[end.id] = _Node(end, now_ns)
                self._dirty_nodes.add(end.id)
            if edge not in node.edges and link.edge_class is not PeerClass.LOCALHOST:
                node.outside += 1
                if node.outside == 1:
                    self._dirty_nodes.add(end.id)
            node.edges.add(edge)
        self._serve(link)
        self.totals[edge] = 0
        self.first_ns[edge] = self.last_ns[edge] = now_ns
        self._written_ns[edge] = 0
        self._dirty.add(edge)
        return edge

    def _serve(self, link: Link) -> None:
        if link.serves:
            self.version += 1
            self._nodes[link.target.id].ports.add(link.serves)
            self._dirty_nodes.add(link.target.id)

    def _rows(self, edges: Iterable[int]) -> list[EdgeRow]:
        wanted = list(edges)
        totals = self.totals[wanted].tolist()
        times = zip(self.first_ns[wanted].tolist(), self.last_ns[wanted].tolist(), strict=True)
        return [
            EdgeRow(*link.key, link.edge_class.value, link.address, *total, *time)  # type: ignore[call-arg]
            for link, total, time in zip(map(self._links.__getitem__, wanted), totals, times, strict=True)
        ]

    def _node_row(self, node: _Node) -> NodeRow:
        last_ns = max([node.last_ns, *self.last_ns[list(node.edges)].tolist()])
        ports = tuple(sorted(node.ports))
        return NodeRow(
            node.node.id, node.node.kind.value, node.title, node.shown_class, ports, node.first_ns, last_ns
        )


def _map_node(row: NodeRow) -> MapNode:
    """The node a stored row is of; a service's title there has its ports behind it."""
    kind = NodeKind(row.kind)
    if kind is NodeKind.SERVICE:
        return MapNode(row.id, kind, row.id.partition("/")[2], None)
    return MapNode(row.id, kind, row.title, PeerClass(row.node_class))
