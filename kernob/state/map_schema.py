# SPDX-License-Identifier: Apache-2.0
"""The tables of the service map, as a step of `state.store`'s MIGRATIONS. Never change it once released."""

from __future__ import annotations

from typing import Final

SCHEMA: Final = """
    CREATE TABLE map_nodes (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        title TEXT NOT NULL,
        class TEXT NOT NULL,
        ports TEXT NOT NULL,
        first_unix_ns INTEGER NOT NULL,
        last_unix_ns INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE map_edges (
        source TEXT NOT NULL,
        target TEXT NOT NULL,
        port INTEGER NOT NULL,
        class TEXT NOT NULL,
        address TEXT NOT NULL,
        tx_bytes INTEGER NOT NULL,
        rx_bytes INTEGER NOT NULL,
        connections INTEGER NOT NULL,
        failures INTEGER NOT NULL,
        first_unix_ns INTEGER NOT NULL,
        last_unix_ns INTEGER NOT NULL,
        PRIMARY KEY (source, target, port)
    ) WITHOUT ROWID;
    CREATE TABLE map_destinations (
        service TEXT NOT NULL,
        target TEXT NOT NULL,
        port INTEGER NOT NULL,
        address TEXT NOT NULL,
        state TEXT NOT NULL,
        first_unix_ns INTEGER NOT NULL,
        PRIMARY KEY (service, target, port)
    ) WITHOUT ROWID;
    """
