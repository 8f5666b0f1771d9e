# SPDX-License-Identifier: Apache-2.0
"""Who talks to whom: processes, roles, classes of peers, bytes of a flow."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from kernob.model.tcp import NO_FACTS, TcpFacts


class Role(enum.IntEnum):
    """Which side opened the connection, seen from the local socket."""

    UNKNOWN = 0
    CLIENT = 1
    SERVER = 2


class Transport(enum.IntEnum):
    """IP protocol number; MPTCP (262) is folded into TCP by the kernel side."""

    TCP = 6
    UDP = 17


class PeerClass(enum.Enum):
    """Where a peer lives (MAP.md); `SELF_HOSTED` exists only by the network file."""

    LOCALHOST = "localhost"
    INTERNAL = "internal"
    EXTERNAL = "external"
    SELF_HOSTED = "self-hosted"
    UNKNOWN = "unknown"


class NameSource(enum.Enum):
    """How a hostname became known: kernob.name.source."""

    GETADDRINFO = "getaddrinfo"
    DNS = "dns"
    SNI = "sni"
    HOSTS = "hosts"
    CONFIGURED = "configured"
    IP = "ip"


@dataclass(frozen=True, slots=True)
class Name:
    """A hostname, normalised (lower case, no trailing dot, 1 to 253 bytes), and where it is from."""

    host: str
    source: NameSource


@dataclass(frozen=True, slots=True)
class ProcessKey:
    """One program image of one process: stable under PID reuse and across exec.

    `start_ticks` is the group leader's start since boot in 10 ms units modulo 2**32 (the unit of
    /proc/PID/stat field 22), `exec_id` the low 16 bits of task_struct.self_exec_id.
    """

    pid: int
    start_ticks: int
    exec_id: int


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """What the kernel side saw of a process at its first network call (all strings sanitised).

    `cgroup` is the path of control group names from the root down, as far as it was captured, for
    example ("system.slice", "nginx.service"). `args` is the start of the command line.
    """

    key: ProcessKey
    executable: str
    comm: str
    args: tuple[str, ...] = ()
    cgroup: tuple[str, ...] = ()
    netns: int = 0
    service: str = ""


@dataclass(frozen=True, slots=True)
class FlowRow:
    """Bytes of one process with one destination, as a screen shows them.

    `*_bytes` are totals since the agent first saw the flow, `*_rate` bytes per second over the last
    aggregation window. For role SERVER `address`/`port` are the local ones and `peer` the client's
    address; for role CLIENT `peer` is the address connected to, and `address` its hostname where one is
    known, else the same. An unconnected UDP socket has address "" and port 0.
    """

    pid: int
    executable: str
    service: str
    alive: bool
    role: Role
    transport: Transport
    address: str
    port: int
    peer: str
    peer_class: PeerClass
    tx_bytes: int
    rx_bytes: int
    tx_rate: float
    rx_rate: float
    tcp: TcpFacts = NO_FACTS
    tcp_window: TcpFacts = NO_FACTS
