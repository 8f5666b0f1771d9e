# SPDX-License-Identifier: Apache-2.0
"""What can become of a TCP connection: the enums of bpf/types.h, and counts for screens."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Fate(enum.IntEnum):
    """What can happen to a TCP connection: enum fate of bpf/types.h."""

    CONNECTION = 0
    RETRANSMIT = 1
    RESET = 2
    DROP = 3
    STALL = 4
    TIMEOUT = 5
    SILENCE = 6
    WAIT = 7


class Outcome(enum.IntEnum):
    """How an attempt to connect ended: enum outcome of bpf/types.h; error.type is the name in lower case."""

    OK = 0
    REFUSED = 1
    TIMED_OUT = 2
    RESET = 3
    HOST_UNREACHABLE = 4
    NET_UNREACHABLE = 5
    CANCELLED = 6
    OTHER = 7


class Drop(enum.IntEnum):
    """How an exchange was cut off: enum drop of bpf/types.h; error.type is the name in lower case."""

    UNANSWERED = 0
    RESET_MID_RESPONSE = 1
    EOF_MID_RESPONSE = 2
    STALLED_MID_RESPONSE = 3


class Timeout(enum.IntEnum):
    """What nobody acknowledged for too long: enum timeout of bpf/types.h; likewise."""

    UNACKNOWLEDGED = 0
    KEEPALIVE = 1


class Resent(enum.IntEnum):
    """What was sent again: enum resent of bpf/types.h."""

    DATA = 0
    OTHER = 1


class ClosedBy(enum.IntEnum):
    """Who ended a connection: enum closed_by of bpf/types.h."""

    PEER = 0
    SELF = 1
    NETWORK = 2


@dataclass(frozen=True, slots=True)
class TcpFacts:
    """How often what happened to TCP connections; `failed` are those of `connections` that came to nothing.

    `retransmits` counts segments, `drops` exchanges without their answer.
    """

    connections: int = 0
    failed: int = 0
    retransmits: int = 0
    resets: int = 0
    drops: int = 0


NO_FACTS = TcpFacts()
