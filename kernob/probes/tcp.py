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

from kernob.kernel.attach import (
    Fexit,
    Hook,
    Kprobe,
    PerfTracepoint,
    RawTracepoint,
    TypedTracepoint,
    Walk,
    all_of,
    first_of,
)
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


def _either(name: str, target: str, program: str) -> Hook:
    return first_of(
        "tcp",
        name,
        all_of(TypedTracepoint(target, f"tp_btf__{program}")),
        all_of(RawTracepoint(target, f"raw_tp__{program}")),
        essential=False,
    )


def _accept() -> Hook:
    return first_of(
        "tcp",
        "accept",
        # with fewer arguments the first is refused, with more the second would read one
        all_of(Fexit("inet_csk_accept", "fexit__accept_of_four")),
        all_of(Fexit("inet_csk_accept", "fexit__accept_of_two")),
        all_of(Kprobe("inet_csk_accept", "krp__accept", at_return=True)),
        all_of(
            PerfTracepoint("syscalls/sys_exit_accept4", "tp__accept"),
            PerfTracepoint("syscalls/sys_exit_accept", "tp__accept"),
            measures="connections accepted by io_uring are charged at their first use",
        ),
        essential=False,
    )


def _connect() -> Hook:
    def probes(function: str) -> tuple[Kprobe, Kprobe]:
        optional = function == "tcp_v6_connect"
        return (
            Kprobe(function, "kp__connect", if_exists=optional),
            Kprobe(function, "krp__connect", at_return=True, if_exists=optional),
        )

    return first_of(
        "tcp",
        "connect",
        all_of(
            Fexit("tcp_v4_connect", "fexit__connect4"),
            Fexit("tcp_v6_connect", "fexit__connect6", if_exists=True),
        ),
        all_of(*probes("tcp_v4_connect"), *probes("tcp_v6_connect")),
        all_of(
            PerfTracepoint("syscalls/sys_exit_connect", "tp__connect_failed"),
            measures="attempts by io_uring that no route leads to are not seen",
        ),
        all_of(
            PerfTracepoint("syscalls/sys_enter_connect", "tp__connect_enter"),
            PerfTracepoint("syscalls/sys_exit_connect", "tp__connect_exit"),
            measures="attempts by io_uring that no route leads to are not seen",
        ),
        essential=False,
    )


PROBE = Probe(
    name="tcp",
    sources=("tcp.bpf.c",),
    hooks=(
        _either("retransmit", "tcp_retransmit_skb", "retransmit"),
        _either("synack", "tcp_retransmit_synack", "synack"),
        _either("reset", "tcp_send_reset", "reset"),
        _accept(),
        _connect(),
        # last: from now on it is known whose the older sockets are
        first_of("tcp", "seed", all_of(Walk("task_file", "iter__file")), essential=False),
    ),
    blind_spots=(
        "answers cut short by an orderly close (eof_mid_response) are told of HTTP/1 in plain text only",
        "a process that splices to the end of a connection: whether it waited for an answer there",
        "a blocking send that waits for the peer's window is no stall; only a refused one is",
        "RST segments for closed ports belong to no process; before Linux 6.10 they are not seen",
        "MPTCP: connections are counted by subflow, and charged to who listens",
    ),
)


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
