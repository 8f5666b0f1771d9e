# SPDX-License-Identifier: Apache-2.0
"""Rows as the kernel side yields them, for tests of pure logic. The layout is bpf/types.h's."""

from __future__ import annotations

import ipaddress
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOW_KEY = np.dtype(
    [
        ("tgid", "<u4"),
        ("start", "<u4"),
        ("exec", "<u2"),
        ("port", "<u2"),
        ("family", "<u1"),
        ("role", "<u1"),
        ("proto", "<u1"),
        ("pad", "<u1"),
        ("netns", "<u4"),
        ("peer", "<u1", (16,)),
        ("local", "<u1", (16,)),
    ]
)
FLOW_VAL = np.dtype([("tx", "<u8"), ("rx", "<u8")])
SOCK_VAL = np.dtype(
    [
        ("key", FLOW_KEY),
        ("claims", "<u4"),
        ("copied", "<u4"),
        ("copied_known", "<u4"),
        ("tx", "<u8"),
        ("rx", "<u8"),
    ]
)
_HEAD = struct.Struct("<IIHHBBBBI")


def flow_key(
    pid: int = 100,
    peer: str = "10.0.0.1",
    port: int = 443,
    role: int = 1,
    proto: int = 6,
    start: int = 7,
    exec_id: int = 1,
    local: str = "0.0.0.0",
) -> bytes:
    """One struct flow_key."""
    address = ipaddress.ip_address(peer)
    family = 2 if address.version == 4 else 10
    head = _HEAD.pack(pid, start, exec_id, port, family, role, proto, 0, 4026531840)
    own = ipaddress.ip_address(local).packed if role == 2 else b""
    return head + address.packed.ljust(16, b"\0") + own.ljust(16, b"\0")


def closed(*rows: tuple[bytes, int, int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """A drained flows map: (key, tx, rx)."""
    keys = np.frombuffer(b"".join(key for key, _, _ in rows), FLOW_KEY)
    values = np.array([(tx, rx) for _, tx, rx in rows], FLOW_VAL)
    return keys, values


def live(*rows: tuple[bytes, int, int]) -> NDArray[Any]:
    """A reading of the socks map: (key, tx, rx)."""
    sockets = np.zeros(len(rows), SOCK_VAL)
    for i, (key, tx, rx) in enumerate(rows):
        sockets[i]["key"] = np.frombuffer(key, FLOW_KEY)[0]
        sockets[i]["tx"], sockets[i]["rx"] = tx, rx
    return sockets
