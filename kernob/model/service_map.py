# SPDX-License-Identifier: Apache-2.0
"""The service map's nouns: nodes, edges, and what is remembered of destinations."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from kernob.model.flows import PeerClass


class NodeKind(enum.Enum):
    """What a node stands for."""

    SERVICE = "service"
    NAME = "name"
    ADDRESS = "address"
    CLIENTS = "clients"
    OTHERS = "others"


EdgeKey = tuple[str, str, int]
"""Source node's id, target node's id, port as the initiator dialled it."""


@dataclass(frozen=True, slots=True)
class MapNode:
    """Somebody who talks; `id` is stable across restarts.

    `node_class` is None for a service of this host, which is "self", or "localhost" where it never talks to
    anything beyond the loopback: its edges say so.
    """

    id: str
    kind: NodeKind
    title: str
    node_class: PeerClass | None

    @property
    def fold(self) -> str:
        """The network or the pattern of hostnames that it stands for, "" where it is a single one."""
        if self.kind is NodeKind.ADDRESS:  # of the loopback's nodes the title is more than what is in the id
            return self.title if "/" in self.title and self.id == f"ip/{self.title}" else ""
        return self.title if self.kind is NodeKind.NAME and {"*", "?"} & set(self.title) else ""


@dataclass(frozen=True, slots=True)
class Link:
    """An edge as a flow tells it.

    `address` is what was dialled, "" from outside; `host` its hostname where one is known, else the same;
    `serves` the port that the target listens on, 0 where nobody of this host does.
    """

    source: MapNode
    target: MapNode
    port: int
    edge_class: PeerClass
    address: str = ""
    serves: int = 0
    host: str = ""

    @property
    def key(self) -> EdgeKey:
        """What makes the edge the one it is."""
        return self.source.id, self.target.id, self.port

    @property
    def server(self) -> str:
        """What an operator calls the destination: a network, a hostname, an address."""
        return self.target.fold or self.host or self.address


def as_dict(row: NodeRow | EdgeRow | DestinationRow) -> dict[str, Any]:
    """Fields by name; dataclasses.asdict copies what is in them, which takes ten times as long."""
    return {name: getattr(row, name) for name in row.__slots__}


def edge_id(key: EdgeKey) -> str:
    """An edge's id as metrics and dashboards have it: source|target|port."""
    return f"{key[0]}|{key[1]}|{key[2]}"


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node as it is kept and shown. `ports` are those it serves; times are Unix time in ns."""

    id: str
    kind: str
    title: str
    node_class: str
    ports: tuple[int, ...]
    first_unix_ns: int
    last_unix_ns: int


@dataclass(frozen=True, slots=True)
class EdgeRow:
    """An edge as it is kept and shown. Sent is from source to target; totals are over its whole life."""

    source: str
    target: str
    port: int
    edge_class: str
    address: str
    tx_bytes: int
    rx_bytes: int
    connections: int
    failures: int
    first_unix_ns: int
    last_unix_ns: int

    @property
    def key(self) -> EdgeKey:
        """What makes the edge the one it is."""
        return self.source, self.target, self.port


class DestinationState(enum.Enum):
    """How a destination came into a service's baseline."""

    LEARNED = "learned"
    NEW = "new"
    ACCEPTED = "accepted"


@dataclass(frozen=True, slots=True)
class DestinationRow:
    """A destination that a service was seen to talk to.

    `target` is the map's node, `address` its hostname, address or network.
    """

    service: str
    target: str
    port: int
    address: str
    state: DestinationState
    first_unix_ns: int
