# SPDX-License-Identifier: Apache-2.0
"""Probe `tcp`: what becomes of connections, and how long things take on them.

Hooks: see bpf/tcp.bpf.c. In: the fates and durations maps (swapped, counts since the last reading) and the
events ring. Out: TcpRows once a tick, arrays of struct tcp_event as they come. Called by `pipeline`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernob.kernel.session import Session
from kernob.model import MetricKind, MetricSpec
from kernob.probes.probe import Probe

_DESTINATION = ("kernob.service", "server.address", "server.port", "network.tcp.handshake.role")
_FLOW = ("kernob.service", "server.address", "server.port", "kernob.peer.class", "network.tcp.handshake.role")
_PROCESS = ("process.pid", "process.executable.name", "kernob.service")

CONNECTIONS = MetricSpec(
    "kernob.tcp.connections",
    "{connection}",
    MetricKind.COUNTER,
    "Finished attempts to connect and accepted connections, each once; error.type where it failed.",
    (*_DESTINATION, "error.type"),
)
ACTIVE = MetricSpec(
    "kernob.tcp.connections.active",
    "{connection}",
    MetricKind.GAUGE,
    "Connections that are established, or closed by the peer only.",
    _DESTINATION,
)
CONNECT_DURATION = MetricSpec(
    "kernob.tcp.connect.duration",
    "s",
    MetricKind.HISTOGRAM,
    "From the SYN to the established connection, as the kernel saw it.",
    _FLOW,
)
RESPONSE_DURATION = MetricSpec(
    "kernob.tcp.response.duration",
    "s",
    MetricKind.HISTOGRAM,
    "From the last byte of a request sent to the first byte of its response read.",
    _FLOW,
)
RTT = MetricSpec(
    "kernob.tcp.rtt",
    "s",
    MetricKind.HISTOGRAM,
    "The smoothed round trip time, sampled once a second at most and at a connection's end.",
    _FLOW,
)
RETRANSMITS = MetricSpec(
    "kernob.tcp.retransmits", "{packet}", MetricKind.COUNTER, "Segments sent again.", _FLOW
)
RESETS = MetricSpec(
    "kernob.tcp.resets",
    "{reset}",
    MetricKind.COUNTER,
    "RST segments of connections; idle where no exchange was open.",
    (*_FLOW, "network.io.direction", "kernob.reset.idle"),
)
DROPS = MetricSpec(
    "kernob.tcp.drops",
    "{connection}",
    MetricKind.COUNTER,
    "Exchanges that did not come to their end.",
    (*_FLOW, "error.type", "kernob.closed_by"),
)
STALLS = MetricSpec(
    "kernob.tcp.stalls",
    "{stall}",
    MetricKind.COUNTER,
    "Times a peer's closed window kept a process from sending.",
    _FLOW,
)
TIMEOUTS = MetricSpec(
    "kernob.tcp.timeouts",
    "{connection}",
    MetricKind.COUNTER,
    "Established connections that the kernel gave up: data or keepalive probes unacknowledged for too long.",
    (*_FLOW, "error.type"),
)
PROCESS_CONNECTIONS = MetricSpec(
    "kernob.process.tcp.connections",
    "{connection}",
    MetricKind.COUNTER,
    "kernob.tcp.connections by exact process.",
    (*_PROCESS, "network.tcp.handshake.role", "error.type"),
)
PROCESS_RETRANSMITS = MetricSpec(
    "kernob.process.tcp.retransmits",
    "{packet}",
    MetricKind.COUNTER,
    "kernob.tcp.retransmits by exact process.",
    _PROCESS,
)
PROCESS_RESETS = MetricSpec(
    "kernob.process.tcp.resets",
    "{reset}",
    MetricKind.COUNTER,
    "kernob.tcp.resets by exact process.",
    (*_PROCESS, "network.io.direction"),
)
PROCESS_DROPS = MetricSpec(
    "kernob.process.tcp.drops",
    "{connection}",
    MetricKind.COUNTER,
    "kernob.tcp.drops by exact process.",
    (*_PROCESS, "error.type"),
)
SPECS = (
    CONNECTIONS,
    ACTIVE,
    CONNECT_DURATION,
    RESPONSE_DURATION,
    RTT,
    RETRANSMITS,
    RESETS,
    DROPS,
    STALLS,
    TIMEOUTS,
    PROCESS_CONNECTIONS,
    PROCESS_RETRANSMITS,
    PROCESS_RESETS,
    PROCESS_DROPS,
)

PROBE = Probe(name="tcp", sources=(), hooks=())


class Duration(enum.IntEnum):
    """enum duration of bpf/types.h, in its order."""

    CONNECT = 0
    RESPONSE = 1
    RTT = 2


class Option(enum.IntEnum):
    """Indices of the options array: enum option of bpf/types.h."""

    CONNECTION_EVENTS = 0


@dataclass(frozen=True, slots=True)
class TcpRows:
    """What was learned since the last reading, each fact once.

    `fates`: struct fate_key, `counts`: u64 beside it. `durations`: struct duration_key, `histograms`:
    struct duration_val beside it.
    """

    fates: NDArray[Any]
    counts: NDArray[Any]
    durations: NDArray[Any]
    histograms: NDArray[Any]


def read(session: Session) -> TcpRows:
    """Swaps and drains both maps. Raises MapError."""
    fates, counts = session.swapped("fates").drain()
    durations, histograms = session.swapped("durations").drain()
    return TcpRows(fates, counts, durations, histograms)


def events(session: Session, records: Sequence[bytes]) -> NDArray[Any]:
    """Raw records of the ring as an array of struct tcp_event; those of another size are left out.

    KeyError where the kernel has no ring buffers (before Linux 5.8): then session has no map `events`.
    """
    record = session.map("events").spec.value
    return np.frombuffer(b"".join(r for r in records if len(r) == record.itemsize), record)


def tell_connections(session: Session) -> None:
    """Has each opening and close told as an event, too. For use before anything is attached."""
    session.map("options").update(Option.CONNECTION_EVENTS, 1)
