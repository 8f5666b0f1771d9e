# SPDX-License-Identifier: Apache-2.0
"""Compares the open connections that we know of with those that /proc shows, and repairs the difference.

In: rows of the socks map (struct sock_val of bpf/types.h) and what /proc says. Out: entries that nothing
stands behind any more, to be deleted; how many connections /proc alone knows the owner of, by series. Called
by `pipeline`: `sweep` about once a minute, `between` at the other ticks.

An entry is stale when it is active here and not in /proc, twice running. A connection is foreign when it
has no owner here: it is older than the agent and was not used since, or its process has not used it yet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kernob.model import MetricKind, MetricSpec
from kernob.state.connections import CLOSE_WAIT, ESTABLISHED, Names

REPAIRS = MetricSpec(
    "kernob.tcp.repairs",
    "{connection}",
    MetricKind.COUNTER,
    "Connections that were still counted as open though the kernel had them no more; found in /proc.",
)

EVERY_S = 60.0
_SOON_S = 5.0
_COST_SHARE = 0.01

_ENDS = np.dtype([("netns", "<u4"), ("sport", "<u2"), ("dport", "<u2"), ("local", "V16"), ("peer", "V16")])


class OpenSocket(Protocol):
    """A connection as /proc shows it (`kernel.proc_sockets.ProcSocket`)."""

    @property
    def netns(self) -> int:
        """Network namespace."""

    @property
    def inode(self) -> int:
        """Its inode, 0 while nobody has accepted it."""

    @property
    def ends(self) -> bytes:
        """Its name, comparable with `ends_of_rows`."""


Naming = Callable[[Collection[Any]], "dict[int, Names]"]
"""Finds who holds these sockets: inode -> attributes of the series of active connections it counts into."""


@dataclass(frozen=True, slots=True)
class Stale:
    """An entry of the map of sockets without a socket: its key, and its row."""

    address: int
    row: NDArray[Any]


def ends_of_rows(rows: NDArray[Any]) -> list[bytes]:
    """Name of each connection, as `OpenSocket.ends` has it."""
    ends = np.zeros(len(rows), _ENDS)
    ends["netns"], ends["sport"], ends["dport"] = rows["key"]["netns"], rows["sport"], rows["dport"]
    ends["local"] = np.ascontiguousarray(rows["local"]).view("V16").ravel()
    ends["peer"] = np.ascontiguousarray(rows["key"]["peer"]).view("V16").ravel()
    names: list[bytes] = ends.view(f"V{_ENDS.itemsize}").tolist()
    return names


class Reconciler:
    """Remembers what the sweep before suspected, and the foreign connections."""

    def __init__(self) -> None:
        self._due_s = self._soon_s = 0.0
        self._suspects: set[tuple[int, int, bytes]] = set()
        self._names: dict[int, Names | None] = {}
        self._foreign: dict[bytes, tuple[int, bool]] = {}

    def due(self, now_s: float) -> bool:
        """Whether it is time for a sweep."""
        return now_s >= self._due_s

    def sweep(
        self,
        addresses: NDArray[Any],
        rows: NDArray[Any],
        found: Iterable[OpenSocket],
        visible: Collection[int],
        name: Naming,
    ) -> list[Stale]:
        """Compare all rows of the map with all connections `found` in the `visible` namespaces."""
        active = _active(rows)
        rows, addresses = rows[active], addresses[active]
        ends = ends_of_rows(rows)
        there = {socket.ends: socket for socket in found}
        owned = rows["key"]["tgid"] != 0
        mine = {each for each, is_owned in zip(ends, owned.tolist(), strict=True) if is_owned}
        others = set(ends) - mine
        without = [socket for each, socket in there.items() if socket.inode and each not in mine]
        unknown = [socket for socket in without if socket.inode not in self._names]
        named = name(unknown) if unknown else {}
        inodes = {socket.inode for socket in without}
        self._names = {inode: names for inode, names in self._names.items() if inode in inodes}
        self._names.update({socket.inode: named.get(socket.inode) for socket in unknown})
        self._foreign = {socket.ends: (socket.inode, socket.ends in others) for socket in without}
        return self._stale(addresses, rows, ends, there.keys(), visible)

    def _stale(
        self,
        addresses: NDArray[Any],
        rows: NDArray[Any],
        ends: list[bytes],
        there: Collection[bytes],
        visible: Collection[int],
    ) -> list[Stale]:
        suspects = {}
        for index, each in enumerate(ends):
            row = rows[index]
            if each not in there and row["sport"] and int(row["key"]["netns"]) in visible:
                suspects[int(addresses[index]), int(row["opened_ns"]), each] = rows[index : index + 1]
        stale = [Stale(key[0], row) for key, row in suspects.items() if key in self._suspects]
        self._suspects = suspects.keys() - {key for key in suspects if key in self._suspects}
        return stale

    def between(self, rows: NDArray[Any]) -> None:
        """Without looking at /proc: drop the foreign connections that closed or got their owner.

        Where others have no owner either, the next sweep comes sooner.
        """
        rows = rows[_active(rows)]
        unowned = ends_of_rows(rows[rows["key"]["tgid"] == 0])
        if any(each not in self._foreign for each in unowned):
            self._due_s = min(self._due_s, self._soon_s)
        if not self._foreign:
            return
        owned = (rows["key"]["tgid"] != 0).tolist()
        now = dict(zip(ends_of_rows(rows), owned, strict=True))
        for ends, (_, has_row) in list(self._foreign.items()):
            # one that has an entry closes with it; one that has none is over when it gets one
            if now.get(ends, has_row):
                del self._foreign[ends]

    def foreign(self) -> dict[Names, int]:
        """How many foreign connections there are of each series."""
        counts: dict[Names, int] = {}
        for inode, _ in self._foreign.values():
            names = self._names.get(inode)
            if names is not None:
                counts[names] = counts.get(names, 0) + 1
        return counts

    def swept(self, now_s: float, took_s: float) -> None:
        """Plan the next sweep: once a minute; sooner, if it is cheap, while something is open to doubt.

        `took_s`: processor time of this one.
        """
        doubt = bool(self._suspects) or any(not has_row for _, has_row in self._foreign.values())
        self._soon_s = now_s + min(EVERY_S, max(_SOON_S, took_s / _COST_SHARE))
        self._due_s = self._soon_s if doubt else now_s + EVERY_S


def _active(rows: NDArray[Any]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (rows["state"] == ESTABLISHED) | (rows["state"] == CLOSE_WAIT)
    return found
