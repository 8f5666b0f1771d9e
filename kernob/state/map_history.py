# SPDX-License-Identifier: Apache-2.0
"""The service map in the store: its tables, and how rows get in and out. docs/store.md describes them.

In: rows that changed, in the store's thread. Out: all of them again at the agent's start, and for commands
where no agent runs. Totals are written as they stand, so that writing twice changes nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kernob.errors import StoreError
from kernob.model import DestinationRow, DestinationState, EdgeKey, EdgeRow, NodeRow
from kernob.model.service_map import as_dict
from kernob.state.destination_choice import choose
from kernob.state.history import opened
from kernob.state.store import BUSY_MS, FILE_NAME, refuse_foreign

_NODE: Final = "INSERT OR REPLACE INTO map_nodes VALUES (?, ?, ?, ?, ?, ?, ?)"
_EDGE: Final = "INSERT OR REPLACE INTO map_edges VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_DESTINATION: Final = "INSERT OR REPLACE INTO map_destinations VALUES (?, ?, ?, ?, ?, ?)"

Stored = tuple[list[NodeRow], list[EdgeRow], list[DestinationRow]]


def write_map(
    connection: sqlite3.Connection,
    nodes: Iterable[NodeRow],
    edges: Iterable[EdgeRow],
    gone_nodes: Iterable[str] = (),
    gone: Iterable[EdgeKey] = (),
) -> None:
    """Brings nodes and edges up to date, within the transaction that is open."""
    connection.executemany("DELETE FROM map_edges WHERE source = ? AND target = ? AND port = ?", gone)
    connection.executemany("DELETE FROM map_nodes WHERE id = ?", ((name,) for name in gone_nodes))
    connection.executemany(
        _NODE,
        (
            (n.id, n.kind, n.title, n.node_class, json.dumps(n.ports), n.first_unix_ns, n.last_unix_ns)
            for n in nodes
        ),
    )
    connection.executemany(
        _EDGE,
        (
            (
                e.source, e.target, e.port, e.edge_class, e.address, e.tx_bytes, e.rx_bytes,
                e.connections, e.failures, e.first_unix_ns, e.last_unix_ns,
            )
            for e in edges
        ),
    )  # fmt: skip


def write_destinations(
    connection: sqlite3.Connection,
    rows: Iterable[DestinationRow],
    gone: Sequence[tuple[str, str, int]] = (),
) -> None:
    """Brings the baseline up to date, within the transaction that is open."""
    connection.executemany("DELETE FROM map_destinations WHERE service = ? AND target = ? AND port = ?", gone)
    connection.executemany(
        _DESTINATION,
        ((d.service, d.target, d.port, d.address, d.state.value, d.first_unix_ns) for d in rows),
    )


def read_map(directory: Path) -> Stored:
    """Nodes, edges, destinations. Raises StoreError; a file from before there was a map has none."""
    with opened(directory) as connection:
        (known,) = connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'map_edges'"
        ).fetchone()
        if not known:
            return [], [], []
        nodes = [
            NodeRow(*row[:4], tuple(json.loads(row[4])), *row[5:])  # type: ignore[call-arg]
            for row in connection.execute(
                "SELECT id, kind, title, class, ports, first_unix_ns, last_unix_ns FROM map_nodes"
            )
        ]
        edges = [EdgeRow(*row) for row in connection.execute("SELECT * FROM map_edges")]
        destinations = [
            DestinationRow(*row[:4], DestinationState(row[4]), row[5])  # type: ignore[call-arg]
            for row in connection.execute(
                "SELECT service, target, port, address, state, first_unix_ns FROM map_destinations"
            )
        ]
    return nodes, edges, destinations


def map_document(directory: Path, since_unix_ns: int) -> Mapping[str, Any]:
    """What the agent's report `map` says, out of the file. Raises StoreError."""
    nodes, edges, _ = read_map(directory)
    edges = [edge for edge in edges if edge.last_unix_ns >= since_unix_ns]
    used = {name for edge in edges for name in (edge.source, edge.target)}
    return {
        "host": "",
        "nodes": [as_dict(node) for node in nodes if node.id in used],
        "edges": [as_dict(edge) for edge in edges],
    }


def destinations_document(directory: Path, words: Mapping[str, str]) -> Mapping[str, Any]:
    """What the agent's report `destinations` says and does, in the file. Raises StoreError, ValueError."""
    rows = choose(read_map(directory)[2], words)
    if words.get("do", "list") == "list":
        shown = [as_dict(row) | {"state": row.state.value} for row in rows]
        return {"host": "", "destinations": shown}
    path = directory / FILE_NAME
    refuse_foreign(path)
    changed = [row for row in rows if row.state is not DestinationState.ACCEPTED]
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_MS / 1000)) as connection, connection:
            if words["do"] == "accept":
                accepted = [dataclasses.replace(row, state=DestinationState.ACCEPTED) for row in changed]
                write_destinations(connection, accepted)
            else:
                changed = rows
                write_destinations(connection, (), [(r.service, r.target, r.port) for r in rows])
    except sqlite3.Error as error:
        raise StoreError(f"cannot change {path}: {error}") from error
    return {"changed": len(changed), "matched": len(rows)}
