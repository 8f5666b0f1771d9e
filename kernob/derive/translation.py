# SPDX-License-Identifier: Apache-2.0
"""What address translation did, learned from open connections: where a dial really ended.

In: the live sockets of one tick (struct sock_val of bpf/types.h). Out: pairs of a client's row and the
server's row on the same host that are the two ends of one connection, although the addresses differ. Called
by `features.map`.

Where only the destination is translated (docker's port mappings, DNAT), the server sees the client's own
address and port. That alone would also pair two connections that happen to share a source port, so a server's
row counts only where no client's row is its exact mirror. Where the source is translated as well, nothing
is known, and nothing is guessed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernob.model import Role

_WHOLE = np.dtype([("one", "V16"), ("one_port", "<u2"), ("family", "u1"), ("pad", "u1")])


def translations(live: NDArray[Any], wanted: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Pairs (row of a client's socket among the `wanted`, row of the server's socket)."""
    roles, protocol = live["key"]["role"], live["key"]["proto"] == 6
    clients = np.flatnonzero(wanted & (roles == Role.CLIENT) & protocol & (live["sport"] != 0))
    servers = np.flatnonzero((roles == Role.SERVER) & protocol & (live["dport"] != 0))
    if not len(clients) or not len(servers):
        return []
    theirs = _ends(live, clients, live["local"][clients], live["sport"][clients])
    seen = _ends(live, servers, live["key"]["peer"][servers], live["dport"][servers])
    by_end: dict[bytes, list[int]] = {}
    for row, end in zip(clients.tolist(), theirs, strict=True):
        by_end.setdefault(end, []).append(row)
    pairs = []
    for row, end in zip(servers.tolist(), seen, strict=True):
        if end in by_end:
            pairs += [(client, row) for client in by_end[end]]
    return [pair for pair in pairs if not _mirrored(live, pair[1])]


def _ends(
    live: NDArray[Any], rows: NDArray[np.int64], address: NDArray[Any], port: NDArray[Any]
) -> list[bytes]:
    """Each row's (address, port, family) as bytes."""
    ends = np.zeros(len(rows), _WHOLE)
    ends["one"] = np.ascontiguousarray(address).view("V16").ravel()
    ends["one_port"], ends["family"] = port, live["key"]["family"][rows]
    raw: list[bytes] = ends.view(f"V{_WHOLE.itemsize}").tolist()
    return raw


def _mirrored(live: NDArray[Any], server: int) -> bool:
    """Whether some client's row is exactly the other end of this server's row."""
    row = live[server]
    same = live["key"]["role"] == Role.CLIENT
    same &= (live["sport"] == row["dport"]) & (live["dport"] == row["sport"])
    same &= (live["local"] == row["key"]["peer"]).all(axis=1)
    same &= (live["key"]["peer"] == row["local"]).all(axis=1)
    return bool(same.any())
