# SPDX-License-Identifier: Apache-2.0
"""Probe `traffic`: bytes per process and peer.

Hooks: see bpf/traffic.bpf.c. In: the socks map (live TCP sockets) and the flows maps (everything no
live socket holds). Out: TrafficRows, once a tick. Called by `agent`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from kernob.kernel.attach import (
    Attachment,
    Candidate,
    Fexit,
    Hook,
    Kprobe,
    RawTracepoint,
    TypedTracepoint,
    all_of,
    first_of,
)
from kernob.kernel.session import Session
from kernob.model import MetricKind, MetricSpec
from kernob.probes.probe import Probe

PROCESS_IO = MetricSpec(
    "process.network.io",
    "By",
    MetricKind.COUNTER,
    "Bytes a process sent and received, as its own calls returned them.",
    (
        "process.pid",
        "process.executable.name",
        "kernob.service",
        "network.io.direction",
        "network.transport",
    ),
)
FLOW_IO = MetricSpec(
    "kernob.flow.io",
    "By",
    MetricKind.COUNTER,
    "Bytes between a service and a destination; for role server, the address and port are its own.",
    (
        "kernob.service",
        "server.address",
        "server.port",
        "kernob.peer.class",
        "network.tcp.handshake.role",
        "network.io.direction",
        "network.transport",
    ),
)
PROCESS_FLOW_IO = MetricSpec(
    "kernob.process.flow.io",
    "By",
    MetricKind.COUNTER,
    "Bytes between a process and a destination.",
    (
        "process.pid",
        "process.executable.name",
        "kernob.service",
        "server.address",
        "server.port",
        "network.io.direction",
        "network.transport",
    ),
)
SPECS = (PROCESS_IO, FLOW_IO, PROCESS_FLOW_IO)


def _tracepoint(typed: bool, target: str, program: str) -> Attachment:
    if typed:
        return TypedTracepoint(target, f"tp_btf__{program}")
    return RawTracepoint(target, f"raw_tp__{program}")


def _either(name: str, target: str, program: str) -> Hook:
    return first_of(
        "traffic",
        name,
        all_of(_tracepoint(True, target, program)),
        all_of(_tracepoint(False, target, program)),
    )


def _call(function: str, program: str, if_exists: bool = False) -> tuple[Attachment, ...]:
    return (
        Kprobe(function, f"kp__{program}", if_exists=if_exists),
        Kprobe(function, f"krp__{program}", at_return=True, if_exists=if_exists),
    )


_BY_CALLS = "received TCP as each call returned it"
_BY_SEQ = "received TCP by the advance of copied_seq, splice included"


def _receive() -> Hook:
    """Received bytes, and with them the state hook, since copied_seq has to be followed from the start."""
    candidates: list[Candidate] = []
    for typed in (True, False):
        state = _tracepoint(typed, "inet_sock_set_state", "set_state")
        length = _tracepoint(typed, "sock_recv_length", "recv")
        splice_exit = Fexit("tcp_splice_read", "fexit__splice_read")
        splice_probe = _call("tcp_splice_read", "splice_read")
        by_seq = (
            _tracepoint(typed, "inet_sock_set_state", "set_state"),
            _tracepoint(typed, "tcp_rcv_space_adjust", "space_adjust"),
        )
        candidates += [
            # what this kernel may refuse comes first: then nothing else was loaded in vain
            all_of(splice_exit, state, length, measures=_BY_CALLS),
            all_of(*splice_probe, state, length, measures=_BY_CALLS),
            all_of(*by_seq, _tracepoint(typed, "sock_recv_length", "recv_by_seq"), measures=_BY_SEQ),
        ]
    for typed in (True, False):
        state = _tracepoint(typed, "inet_sock_set_state", "set_state")
        exits = (
            Fexit("inet_recvmsg", "fexit__recvmsg"),
            Fexit("inet6_recvmsg", "fexit__recvmsg", if_exists=True),
            Fexit("tcp_splice_read", "fexit__splice_read"),
        )
        candidates.append(all_of(state, *exits, measures=_BY_CALLS))
    for typed in (True, False):
        state = _tracepoint(typed, "inet_sock_set_state", "set_state")
        probes = (
            *_call("inet_recvmsg", "recvmsg"),
            *_call("inet6_recvmsg", "recvmsg", if_exists=True),
            *_call("tcp_splice_read", "splice_read"),
        )
        candidates.append(all_of(state, *probes, measures=_BY_CALLS))
    return first_of("traffic", "receive", *candidates)


def _send() -> Hook:
    """Sent bytes. sendfile has its own way in until Linux 6.5: inet_sendpage."""
    page_exit = Fexit("inet_sendpage", "fexit__sendpage", if_exists=True)
    page_probe = _call("inet_sendpage", "sendmsg", if_exists=True)
    exits = (
        Fexit("inet_sendmsg", "fexit__sendmsg"),
        Fexit("inet6_sendmsg", "fexit__sendmsg", if_exists=True),
        page_exit,
    )
    probes = (
        *_call("inet_sendmsg", "sendmsg"),
        *_call("inet6_sendmsg", "sendmsg", if_exists=True),
        *page_probe,
    )
    return first_of(
        "traffic",
        "send",
        all_of(_tracepoint(True, "sock_send_length", "send"), page_exit),
        all_of(_tracepoint(True, "sock_send_length", "send"), *page_probe),
        all_of(_tracepoint(False, "sock_send_length", "send"), page_exit),
        all_of(_tracepoint(False, "sock_send_length", "send"), *page_probe),
        all_of(*exits),
        all_of(*probes),
    )


PROBE = Probe(
    name="traffic",
    sources=("traffic.bpf.c",),
    # a socket's end first: whatever is noted from then on is also taken away
    hooks=(_either("destroy", "tcp_destroy_sock", "destroy"), _receive(), _send()),
    blind_spots=(
        "the peer of an unconnected UDP socket: its bytes are charged to the process, without destination",
        "the kernel's own traffic (NFS, Ceph, in-kernel TLS record framing) belongs to no process",
        "TCP_ZEROCOPY_RECEIVE, where received TCP is counted by calls (see hook receive)",
        "where received TCP is counted by copied_seq: the first splice out of a socket that was open "
        "before the agent, unless that socket was used otherwise first",
        "one socket used before and after an exec by the same process stays with the program before",
        "SCTP, DCCP, raw and packet sockets",
    ),
)


class Loss(enum.IntEnum):
    """Indices of the losses array: enum loss of bpf/types.h, in its order."""

    SOCKS_FULL = 0
    FLOWS_FULL = 1
    PROCS_FULL = 2
    TX_BYTES = 3
    RX_BYTES = 4
    FATES_FULL = 5
    DURATIONS_FULL = 6
    EVENTS_FULL = 7
    SYSCALLS_FULL = 8
    THREADS_FULL = 9
    LOOKUPS_FULL = 10
    LIVES_FULL = 11
    IMAGES_FULL = 12
    TURNS_FULL = 13
    ENDS_UNTOLD = 14
    CALLS_FULL = 15
    LIFE_EVENTS_FULL = 16


@dataclass(frozen=True, slots=True)
class TrafficRows:
    """One tick's reading.

    `closed_*`: bytes since the last reading that no live socket holds, each once (struct flow_key,
    flow_val). `live`: struct sock_val of every open TCP socket, counters cumulative per socket. A
    socket that closes between the two reads is in neither until the next tick; none is in both twice.
    `sockets` are all of them, those included that no process owns yet, with their keys in the map.
    """

    closed_keys: NDArray[Any]
    closed_values: NDArray[Any]
    live: NDArray[Any]
    addresses: NDArray[Any]
    sockets: NDArray[Any]


def read(session: Session) -> TrafficRows:
    """Swaps and drains the flows map, then reads the sockets. Raises MapError."""
    keys, values = session.swapped("flows").drain()
    addresses, sockets = session.map("socks").read()
    return TrafficRows(keys, values, sockets[sockets["key"]["tgid"] != 0], addresses, sockets)


def seed_listeners(session: Session, listening: set[tuple[int, int]]) -> None:
    """Tells the kernel side which (network namespace, port) pairs were listening before it came."""
    listeners = session.map("listeners")
    for netns, port in listening:
        listeners.update(netns << 16 | port, 1, only_new=True)
