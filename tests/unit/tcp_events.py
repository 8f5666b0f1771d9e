# SPDX-License-Identifier: Apache-2.0
"""Records as the kernel side writes them, and events as the agent makes them, for tests."""

from __future__ import annotations

import socket
import struct
from typing import Any

import numpy as np

from kernob.model import Event, ProcessInfo, ProcessKey, Severity

FLOW = np.dtype([("raw", "V52")])
RECORD = np.dtype(
    [
        ("time_ns", "<u8"),
        ("sk", "<u8"),
        ("flow", FLOW),
        ("sport", "<u2"),
        ("dport", "<u2"),
        ("kind", "u1"),
        ("reason", "u1"),
        ("side", "u1"),
        ("idle", "u1"),
        ("count", "<u4"),
        ("error", "<u4"),
        ("tx", "<u8"),
        ("rx", "<u8"),
        ("age_ns", "<u8"),
        ("gap_ns", "<u8"),
        ("first_ns", "<u8"),
    ]
)


def flow_key(pid: int = 4711, peer: str = "10.0.0.7", port: int = 5672, role: int = 1) -> bytes:
    """A struct flow_key; for role 2 (server) the port is our own and we are 10.0.0.1."""
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    there = socket.inet_pton(family, peer).ljust(16, b"\0")
    here = bytes([10, 0, 0, 1]).ljust(16, b"\0") if role == 2 else bytes(16)
    head = struct.pack("<IIHHBBBBI", pid, 77, 1, port, family, role, 6, 0, 1)
    return head + there + here


def records(*rows: dict[str, Any]) -> np.ndarray[Any, Any]:
    """An array of struct tcp_event; what a row does not say is 0, its flow that of PID 4711."""
    found = np.zeros(len(rows), RECORD)
    for record, row in zip(found, rows, strict=True):
        record["flow"] = np.frombuffer(row.get("flow", flow_key()), FLOW)[0]
        for name, value in row.items():
            if name != "flow":
                record[name] = value
    return found


def resolve(key: ProcessKey) -> ProcessInfo | None:
    """PID 4711 is orders.py, any other worker.py run by python3; 13 is unknown."""
    if key.pid == 13:
        return None
    name = "orders.py" if key.pid == 4711 else "worker.py"
    return ProcessInfo(key, name if key.pid == 4711 else "python3", "python3", service=name)


def event(second: float = 1.0, **changes: Any) -> Event:
    """A reset of orders.py's connection to 10.0.0.7:5672 at that second of the epoch."""
    base: dict[str, Any] = {
        "kind": "kernob.tcp.reset",
        "severity": Severity.WARN,
        "service": "orders.py",
        "body": "orders.py (PID 4711) lost its connection to 10.0.0.7:5672: the peer reset it after 1 s idle",
        "executable": "python3",
        "pid": 4711,
        "start_ticks": 77,
        "role": "client",
        "address": "10.0.0.7",
        "port": 5672,
        "peer": "10.0.0.7",
        "peer_port": 5672,
        "local_port": 40000,
        "direction": "receive",
        "idle": True,
        "tx_bytes": 10,
        "rx_bytes": 20,
        "age_s": 2.5,
        "gap_s": 1.0,
    }
    return Event(**{"time_unix_ns": round(second * 1e9), **base, **changes})
