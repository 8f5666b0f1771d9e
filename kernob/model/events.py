# SPDX-License-Identifier: Apache-2.0
"""Single things that happened, and the questions one may ask of them."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from kernob.model.metrics import Attributes


class Severity(enum.Enum):
    """How bad an event is, in OpenTelemetry's words."""

    INFO = "info"
    WARN = "warn"
    ERROR = "error"


EVENT_KINDS: dict[str, str] = {
    "kernob.tcp.connect_failed": "a connection that could not be opened",
    "kernob.tcp.retransmit": "segments that had to be sent again: one event per connection and second",
    "kernob.tcp.reset": "an RST, sent or received, on an open connection",
    "kernob.tcp.drop": "an exchange that was cut off: no answer, or one that broke off",
    "kernob.tcp.stall": "a peer that takes no more data (zero window)",
    "kernob.tcp.timeout": "a connection that timed out: data or keepalive probes unacknowledged for too long",
    "kernob.tcp.connection": "a connection that was opened or closed; only where asked for",
    "kernob.destination.new": "a service that talked to a destination it was never seen to talk to before",
    "kernob.process.exit": "a process that failed, was killed, or, where asked for, ended",
    "kernob.process.exec": "a program that was started; only where asked for",
    "kernob.process.fork": "a process that was forked; only where asked for",
    "kernob.process.crash_loop": "a program that fails and is restarted again and again: begin and end",
}
"""Every kind of event, and what it is an event of."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, at the kernel's time; docs/events.md lists the kinds.

    `kind` is the event's name ("kernob.tcp.reset"), `body` the sentence a person reads. `address`, `port`
    and `role` ("client", "server", "unknown") say which destination, as in FlowRow; `peer` and `peer_port`
    are the other end, `local_port` is ours. `reason` is its error.type, `closed_by` "peer", "self" or
    "network", `direction` "transmit" or "receive"; each "" where it does not apply. `idle`: no exchange
    was open. `count` counts segments of retransmits, else 1. Ages are seconds, -1.0 where they are
    unknown: `age_s` since the connection was opened, `gap_s` since the last byte from the peer.

    `details` are attributes that only this kind of event has, as they are exported.

    A summary has `suppressed` > 0: so many events of this service and kind between `first_unix_ns` and
    `time_unix_ns` were beyond the rate cap; of what they say, only counts are kept.
    """

    time_unix_ns: int
    kind: str
    severity: Severity
    service: str
    body: str
    executable: str = ""
    pid: int = 0
    start_ticks: int = 0
    role: str = "unknown"
    address: str = ""
    port: int = 0
    peer: str = ""
    peer_port: int = 0
    local_port: int = 0
    reason: str = ""
    closed_by: str = ""
    direction: str = ""
    idle: bool = False
    count: int = 1
    tx_bytes: int = 0
    rx_bytes: int = 0
    age_s: float = -1.0
    gap_s: float = -1.0
    first_unix_ns: int = 0
    suppressed: int = 0
    details: Attributes = ()


@dataclass(frozen=True, slots=True)
class EventQuery:
    """Which events: the newest `limit` of those from `since_unix_ns` on that pass both filters.

    `service` is a name or a pattern with * and ?, "" for all; `kinds` are kinds of EVENT_KINDS, () for all.
    """

    since_unix_ns: int = 0
    service: str = ""
    kinds: tuple[str, ...] = ()
    limit: int = 100
