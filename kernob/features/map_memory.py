# SPDX-License-Identifier: Apache-2.0
"""The service map across restarts: what is read at the start, what is staged for the store each tick.

Only what changed is written. At most one change waits in the store at a time: while the disk is full or
slow, what changes meanwhile stays with the map and goes with the next. After any trouble all of it is
written again, since it is not known what got lost.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from kernob.errors import StoreError
from kernob.state.baseline import Baseline
from kernob.state.map_folds import FoldOf, Replaced, refolded
from kernob.state.map_history import read_map, write_destinations, write_map
from kernob.state.service_map import MapState
from kernob.state.store import Store

log = logging.getLogger(__name__)


class MapMemory:
    """One for the life of the agent; `store` is None where nothing is kept."""

    def __init__(self, directory: Path, store: Store | None, state: MapState, baseline: Baseline) -> None:
        self._directory = directory
        self._store = store
        self._state = state
        self._baseline = baseline
        self._waits = False
        self._troubled = False
        self._openings = 0

    def restore(self, fold_of: FoldOf | None = None) -> None:
        """Takes what an earlier life stored; nothing where there is none, or it cannot be read.

        `fold_of` says what of it is folded, which it may not have been then.
        """
        if self._store is None:
            return
        try:
            stored = read_map(self._directory)
        except StoreError as error:
            log.debug("the service map begins anew: %s", error)
            return
        (nodes, edges, destinations), replaced = (
            refolded(stored, fold_of) if fold_of else (stored, Replaced())
        )
        self._state.restore(nodes, edges)
        self._baseline.restore(destinations)
        if replaced.edges:
            self._state.stage_all(replaced.nodes, replaced.edges)
        self._baseline.stage(replaced.new_destinations, replaced.destinations)

    def stage(self) -> None:
        """Hands over what changed, unless the change before still waits."""
        store = self._store
        if store is None or self._waits:
            return
        if store.problem:
            self._troubled = True
            return
        if self._troubled or store.openings != self._openings:
            if self._troubled or self._openings:
                self._state.stage_all()
                self._baseline.stage_all()
            self._troubled, self._openings = False, store.openings
        changes = self._state.changes()
        rows, gone = self._baseline.changes()
        if not any((*changes, rows, gone)):
            return
        self._waits = True
        nodes, edges, gone_nodes, gone_edges = changes

        def write(connection: sqlite3.Connection) -> None:
            write_map(connection, nodes, edges, gone_nodes, gone_edges)
            write_destinations(connection, rows, gone)
            self._waits = False

        store.stage(write)
