# SPDX-License-Identifier: Apache-2.0
"""Cumulative bytes per flow, out of two partial views of the kernel: closed bytes and live sockets.

In: one tick's rows (arrays of struct flow_key, flow_val and sock_val). Out: which flows grew and by
how much. Called by `state.traffic`. A flow's total is what closed sockets left behind plus what its
live sockets hold. A socket that closes between the two reads is in neither for one tick, so a total
never follows a dip: it waits until the sum is above it again. Totals are therefore never above the
truth, never fall, and are exact as soon as nothing closes while it is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Counts = NDArray[np.int64]

PROCESS_BYTES = 10
"""A struct flow_key begins with tgid, start and exec: so many bytes name the process."""

_COUNTED = ("tx", "rx", "answers", "segments")
"""Fields that struct flow_val and sock_val share: columns here."""

_FIRST_ROOM = 1024


@dataclass(frozen=True, slots=True)
class Growth:
    """Flows that grew in a tick: indices (unique, ascending) and what was added.

    Bytes in each direction; exchanges that were answered, and data segments sent, where we connected.
    """

    flows: Indices
    tx_bytes: Counts
    rx_bytes: Counts
    answers: Counts
    segments: Counts


class FlowTable:
    """All known flows, by index. An index is stable until `forget`; then it may be used again."""

    def __init__(self) -> None:
        self._index: dict[bytes, int] = {}
        self._keys: list[bytes] = []
        self._free: list[int] = []
        self._closed = np.zeros((_FIRST_ROOM, len(_COUNTED)), np.int64)
        self._live = np.zeros((_FIRST_ROOM, len(_COUNTED)), np.int64)
        self.totals = np.zeros((_FIRST_ROOM, len(_COUNTED)), np.int64)
        self.sockets = np.zeros(_FIRST_ROOM, np.int64)
        self.last_growth_s = np.zeros(_FIRST_ROOM, np.float64)
        self.tick = 0
        self._now_s = 0.0
        self.new: list[int] = []
        self.live: Indices = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def now_s(self) -> float:
        """When the latest tick was (monotonic)."""
        return self._now_s

    def key(self, flow: int) -> bytes:
        """The 52 bytes of struct flow_key."""
        return self._keys[flow]

    def index(self, key: bytes) -> int:
        """The index of a struct flow_key, -1 where it is not known."""
        return self._index.get(key, -1)

    def indices(self) -> Indices:
        """Indices of all known flows."""
        return np.fromiter(self._index.values(), np.int64, len(self._index))

    def update(
        self, closed_keys: NDArray[Any], closed_values: NDArray[Any], live: NDArray[Any], now_s: float = 0.0
    ) -> Growth:
        """Folds one tick's rows in; `live` then has the flow of each live socket.

        `new` gains the flows seen for the first time, until somebody empties it.
        `now_s` is monotonic; it only serves `quiet`.
        """
        self.tick += 1
        self._now_s = now_s
        self._fold_closed(closed_keys, closed_values)
        self._live[:] = 0
        self.sockets[:] = 0
        self.live = self._fold_live(live)
        np.add.at(self.sockets, self.live, 1)
        sums = self._closed + self._live
        grown = np.flatnonzero((sums > self.totals).any(axis=1))
        before = self.totals[grown]
        self.totals[grown] = np.maximum(before, sums[grown])
        added = self.totals[grown] - before
        self.last_growth_s[grown] = now_s
        return Growth(grown, *added.T)

    def _fold_closed(self, keys: NDArray[Any], values: NDArray[Any]) -> None:
        flows = self._lookup(keys)
        for column, name in enumerate(_COUNTED):
            np.add.at(self._closed[:, column], flows, values[name].astype(np.int64))

    def _fold_live(self, live: NDArray[Any]) -> Indices:
        flows = self._lookup(np.ascontiguousarray(live["key"]))
        for column, name in enumerate(_COUNTED):
            np.add.at(self._live[:, column], flows, live[name].astype(np.int64))
        return flows

    def find(self, keys: NDArray[Any]) -> Indices:
        """Index of each key (struct flow_key), new ones added; they count as heard of now."""
        flows = self._lookup(np.ascontiguousarray(keys))
        self.last_growth_s[flows] = self._now_s
        return flows

    def retire(self, flow: int, row: NDArray[Any]) -> None:
        """Keeps what a live socket (struct sock_val) counted that is about to leave the kernel's map."""
        self._closed[flow] += [int(row[name]) for name in _COUNTED]

    def _lookup(self, keys: NDArray[Any]) -> Indices:
        """Index of each key, new ones added."""
        raw = keys.view(f"V{keys.dtype.itemsize}").tolist() if len(keys) else []
        index = self._index
        found = list(map(index.get, raw))
        if None in found:
            found = [index[key] if key in index else self._add(key) for key in raw]
        return np.array(found, np.int64)

    def _add(self, key: bytes) -> int:
        if self._free:
            flow = self._free.pop()
            self._keys[flow] = key
        else:
            flow = len(self._keys)
            self._keys.append(key)
            if flow >= len(self.totals):
                self._grow()
        self._index[key] = flow
        self.last_growth_s[flow] = self._now_s
        self.new.append(flow)
        return flow

    def _grow(self) -> None:
        for name in ("_closed", "_live", "totals", "sockets", "last_growth_s"):
            array: NDArray[Any] = getattr(self, name)
            setattr(self, name, np.concatenate([array, np.zeros_like(array)]))

    def quiet(self, for_s: float) -> Indices:
        """Flows without a live socket that have not grown for so many seconds."""
        known: Indices = self.indices()
        old: NDArray[np.bool_] = self._now_s - self.last_growth_s[known] > for_s
        found: Indices = known[old & (self.sockets[known] == 0)]
        return found

    def forget(self, flows: Indices) -> None:
        """Drops flows that no live socket holds. Should one come back, it counts from 0 again."""
        for flow in flows.tolist():
            del self._index[self._keys[flow]]
            self._keys[flow] = b""
            self._free.append(flow)
        for array in (self._closed, self._live, self.totals, self.sockets):
            array[flows] = 0
