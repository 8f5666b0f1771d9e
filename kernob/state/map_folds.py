# SPDX-License-Identifier: Apache-2.0
"""What an earlier life stored, under the folds of today's network file.

In: rows of the store, and what says to which network or pattern a destination is folded. Out: rows in which
what is folded is one, and which rows of the store they replace. Called by `features.map_memory`, once at the
start: whoever folds a network has its hundred nodes become one, and none of what was known becomes new.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kernob.model import DestinationRow, DestinationState, EdgeKey, EdgeRow, NodeKind, NodeRow
from kernob.state.network import within

FoldOf = Callable[[str, str, int], str]
"""The network or pattern that an address, a hostname ("" for none) and a port are folded to, "" for none."""

Rows = tuple[list[NodeRow], list[EdgeRow], list[DestinationRow]]
_KINDS = {"ip": NodeKind.ADDRESS.value, "dns": NodeKind.NAME.value}


@dataclass(slots=True)
class Replaced:
    """What is no more: ids of nodes, keys of edges, keys of destinations; and those that came instead."""

    nodes: list[str] = field(default_factory=list)
    edges: list[EdgeKey] = field(default_factory=list)
    destinations: list[EdgeKey] = field(default_factory=list)
    new_destinations: list[EdgeKey] = field(default_factory=list)


def refolded(rows: Rows, fold_of: FoldOf) -> tuple[Rows, Replaced]:
    """The rows as they would have been, had the folds been there; the same ones where nothing is folded."""
    nodes, edges, destinations = rows
    replaced = Replaced()
    known = {node.id: node for node in nodes}
    merged: dict[EdgeKey, EdgeRow] = {}
    for edge in edges:
        source, target = (_folded(end, edge.port, fold_of) for end in (edge.source, edge.target))
        row = dataclasses.replace(edge, source=source, target=target)
        if row.key != edge.key:
            replaced.edges.append(edge.key)
            for old, new in ((edge.source, source), (edge.target, target)):
                if old != new and old in known:
                    known[new] = _node(new, known[old], known.get(new))
        merged[row.key] = _sum(merged[row.key], row) if row.key in merged else row
    used = {end for row in merged.values() for end in (row.source, row.target)}
    replaced.nodes = [node.id for node in nodes if replaced.edges and node.id not in used]
    kept = [node for name, node in known.items() if name in used] if replaced.edges else nodes
    return (kept, list(merged.values()), _destinations(destinations, fold_of, replaced)), replaced


def _folded(name: str, port: int, fold_of: FoldOf) -> str:
    """The node that stands for a node now."""
    kind, _, rest = name.partition("/")
    if kind == "dns":
        fold = fold_of("", rest, port)
    elif kind == "ip":
        address, is_network, _ = rest.partition("/")
        fold = fold_of(address, "", port)
        if fold and is_network and not _is_part(rest, fold):
            return name
    else:
        return name
    return f"{kind}/{fold}" if fold else name


def _is_part(network: str, of: str) -> bool:
    """Whether a network that was folded to is part of one of today."""
    try:
        return within(ipaddress.ip_network(network), ipaddress.ip_network(of))
    except ValueError:
        return False


def _node(name: str, old: NodeRow, new: NodeRow | None) -> NodeRow:
    """A folded node, with one more of those it stands for."""
    kind, _, title = name.partition("/")
    first_ns = min(old.first_unix_ns, new.first_unix_ns if new else old.first_unix_ns)
    last_ns = max(old.last_unix_ns, new.last_unix_ns if new else 0)
    return NodeRow(name, _KINDS[kind], title, (new or old).node_class, (), first_ns, last_ns)


def _sum(one: EdgeRow, other: EdgeRow) -> EdgeRow:
    return dataclasses.replace(
        max(one, other, key=lambda row: row.last_unix_ns),
        tx_bytes=one.tx_bytes + other.tx_bytes,
        rx_bytes=one.rx_bytes + other.rx_bytes,
        connections=one.connections + other.connections,
        failures=one.failures + other.failures,
        first_unix_ns=min(one.first_unix_ns, other.first_unix_ns),
    )


def _destinations(
    rows: Iterable[DestinationRow], fold_of: FoldOf, replaced: Replaced
) -> list[DestinationRow]:
    """The baseline, in which what is folded is known since the first of it was."""
    groups: dict[EdgeKey, list[DestinationRow]] = {}
    for row in rows:
        target = _folded(row.target, row.port, fold_of)
        key = row.service, target, row.port
        if target != row.target:
            replaced.destinations.append((row.service, row.target, row.port))
            row = dataclasses.replace(row, target=target, address=target.partition("/")[2])  # noqa: PLW2901
            replaced.new_destinations.append(key)
        groups.setdefault(key, []).append(row)
    return [_joined(group) for group in groups.values()]


def _joined(rows: list[DestinationRow]) -> DestinationRow:
    """One of several: accepted where all are, else as the first that is not."""
    if len(rows) == 1:
        return rows[0]
    first = min(rows, key=lambda row: row.first_unix_ns)
    undecided = [row for row in rows if row.state is not DestinationState.ACCEPTED]
    told = min(undecided, key=lambda row: row.first_unix_ns, default=first)
    return dataclasses.replace(first, state=told.state)
