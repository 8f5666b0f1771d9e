# SPDX-License-Identifier: Apache-2.0
"""Rows as the kernel side yields them, for tests of pure logic. The layout is bpf/types.h's."""

from __future__ import annotations

import ipaddress
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernob.state.buckets import bucket_of

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
FLOW_VAL = np.dtype([("tx", "<u8"), ("rx", "<u8"), ("answers", "<u8"), ("segments", "<u8")])
SOCK_VAL = np.dtype(
    [
        ("key", FLOW_KEY),
        ("claims", "<u4"),
        ("copied", "<u4"),
        ("copied_known", "<u1"),
        ("state", "<u1"),
        ("phase", "<u1"),
        ("flags", "<u1"),
        ("tx", "<u8"),
        ("rx", "<u8"),
        ("sent_ns", "<u8"),
        ("opened_ns", "<u8"),
        ("sport", "<u2"),
        ("dport", "<u2"),
        ("local", "<u1", (16,)),
        ("answers", "<u4"),
        ("asked", "<u4"),
        ("asked_ns", "<u8"),
        ("syn_retransmits", "<u1"),
        ("silent_waits", "<u1"),
        ("segments", "<u8"),
    ]
)
"""The fields of struct sock_val that pure logic reads."""
FATE_KEY = np.dtype(
    [("flow", FLOW_KEY), ("kind", "<u1"), ("reason", "<u1"), ("side", "<u1"), ("idle", "<u1")]
)
DURATION_KEY = np.dtype([("flow", FLOW_KEY), ("kind", "<u1"), ("pad", "<u1", (3,))])
DURATION_VAL = np.dtype([("sum_ns", "<u8"), ("count", "<u8"), ("buckets", "<u4", (112,))])
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
    values = np.array([(tx, rx, 0, 0) for _, tx, rx in rows], FLOW_VAL)
    return keys, values


def fates(*rows: tuple[bytes, int, int, int, int, int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """A drained fates map: (flow key, kind, reason, side, idle, count)."""
    keys = np.zeros(len(rows), FATE_KEY)
    for i, (flow, *what, _) in enumerate(rows):
        keys[i]["flow"] = np.frombuffer(flow, FLOW_KEY)[0]
        keys[i]["kind"], keys[i]["reason"], keys[i]["side"], keys[i]["idle"] = what
    return keys, np.array([row[-1] for row in rows], np.uint64)


def durations(*rows: tuple[bytes, int, list[int]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """A drained durations map: (flow key, kind, durations in ns)."""
    keys, values = np.zeros(len(rows), DURATION_KEY), np.zeros(len(rows), DURATION_VAL)
    for i, (flow, kind, observed) in enumerate(rows):
        keys[i]["flow"] = np.frombuffer(flow, FLOW_KEY)[0]
        keys[i]["kind"] = kind
        values[i]["sum_ns"], values[i]["count"] = sum(observed), len(observed)
        for duration_ns in observed:
            values[i]["buckets"][bucket_of(duration_ns)] += 1
    return keys, values


def live(*rows: tuple[bytes, int, int]) -> NDArray[Any]:
    """A reading of the socks map: (key, tx, rx)."""
    sockets = np.zeros(len(rows), SOCK_VAL)
    for i, (key, tx, rx) in enumerate(rows):
        sockets[i]["key"] = np.frombuffer(key, FLOW_KEY)[0]
        sockets[i]["tx"], sockets[i]["rx"] = tx, rx
    return sockets
