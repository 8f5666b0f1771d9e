# SPDX-License-Identifier: Apache-2.0
"""What happened to a connection, as one sentence that can be read aloud at two in the morning.

In: an Event without its body. Out: the body. Called by `state.events`. Times of day do not stand here: the
event has its own, and its reader has a time zone.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from kernob.model import Event

CONNECTION = "kernob.tcp.connection"
CONNECT_FAILED = "kernob.tcp.connect_failed"
RETRANSMIT = "kernob.tcp.retransmit"
RESET = "kernob.tcp.reset"
DROP = "kernob.tcp.drop"
STALL = "kernob.tcp.stall"
TIMEOUT = "kernob.tcp.timeout"

_MANY = {
    CONNECT_FAILED: "failed attempts to connect",
    RETRANSMIT: "connections with retransmits",
    RESET: "resets",
    DROP: "dropped exchanges",
    STALL: "stalls",
    TIMEOUT: "timed-out connections",
    CONNECTION: "opened connections",
    "kernob.process.exit": "ended processes",
    "kernob.process.exec": "started programs",
    "kernob.process.fork": "forked processes",
}


def span(seconds: float) -> str:
    """A length of time in at most two units.

    >>> [span(s) for s in (0.0000004, 0.0123, 3.21, 75, 15120, 273600)]
    ['0.0004 ms', '12 ms', '3.2 s', '1 min 15 s', '4 h 12 min', '3 d 4 h']
    """
    if seconds < 0.9995:
        return f"{seconds * 1000:.1g} ms" if seconds < 0.00095 else f"{round(seconds * 1000)} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, below, rest in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            more = whole % size // below
            return f"{whole // size} {unit} {more} {rest}" if more else f"{whole // size} {unit}"
    return f"{whole} s"


def size(count: int) -> str:
    """A number of bytes in words: 512 bytes, 1.5 KiB."""
    if count < 1024:
        return "1 byte" if count == 1 else f"{count} bytes"
    amount = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        amount /= 1024
        if amount < 1023.95:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} TiB"


def endpoint(address: str, port: int) -> str:
    """address:port, with brackets where the address has colons."""
    host = f"[{address}]" if ":" in address else address or "an unknown address"
    return f"{host}:{port}" if port else host


def body(event: Event, error: int = 0, *, closing: bool = False) -> str:
    """The sentence for an event; `error` is the socket's errno, 0 for none.

    `closing` tells the end of a connection from its opening, where events of that kind are asked for.
    """
    if event.kind == CONNECTION and closing:
        return (
            f"{_who(event)} is done with {_whom(event)}{_after(event.age_s)}: "
            f"{size(event.tx_bytes)} sent, {size(event.rx_bytes)} received"
        )
    sentence = _SENTENCES.get(event.kind)
    return sentence(event, error) if sentence else f"{_who(event)}: {event.kind} with {_whom(event)}"


def summary(event: Event, rate: str) -> str:
    """The sentence for `event.suppressed` events of one service and kind that were beyond the rate cap."""
    within = span(max(0.001, (event.time_unix_ns - event.first_unix_ns) / 1e9))
    many = _MANY.get(event.kind, f"events {event.kind}")
    return (
        f"{event.service}: {event.suppressed:,} more {many} within {within}, not told one by one "
        f"(at most {rate})"
    )


def _who(event: Event) -> str:
    if not event.pid:
        return "An unknown process"
    if event.executable in ("", event.service):
        return f"{event.service} (PID {event.pid})"
    return f"{event.service} ({event.executable}, PID {event.pid})"


def _whom(event: Event) -> str:
    if event.role == "server":
        return f"its client {endpoint(event.peer, event.peer_port)} on port {event.port}"
    return endpoint(event.address, event.port)


def _since(event: Event) -> str:
    """How long nothing came, or else how old the connection was."""
    if event.idle and event.gap_s >= 0:
        return f" after {span(event.gap_s)} idle"
    if event.idle:  # a heartbeat came with the end
        return " while it was idle" + (
            f", {span(event.age_s)} after it was opened" if event.age_s >= 0 else ""
        )
    if event.gap_s >= 0:
        return f" {span(event.gap_s)} after the last byte from it"
    return f" {span(event.age_s)} after it was opened" if event.age_s >= 0 else ""


def _after(seconds: float, word: str = "after") -> str:
    return f" {word} {span(seconds)}" if seconds >= 0 else ""


def _connect_failed(event: Event, error: int) -> str:
    who, whom = _who(event), _whom(event)
    if event.reason == "refused":
        return f"{who} was refused by {whom}{_after(event.age_s)}"
    if event.reason == "cancelled":
        return f"{who} gave up connecting to {whom}{_after(event.age_s)}"
    why = {
        "timed_out": f"no answer{_after(event.age_s, 'within')}",
        "reset": "it was reset while it was opened",
        "host_unreachable": "the host is unreachable",
        "net_unreachable": "there is no route to its network",
    }.get(event.reason, os.strerror(error).lower() if error else "for an unknown reason")
    return f"{who} could not connect to {whom}: {why}"


def _reset(event: Event, _error: int) -> str:
    who, whom = _who(event), _whom(event)
    if event.direction == "transmit":
        return f"{who} reset its connection to {whom}{_since(event)}"
    return f"{who} lost its connection to {whom}: the peer reset it{_since(event)}"


def _retransmit(event: Event, _error: int) -> str:
    segments = "1 segment" if event.count == 1 else f"{event.count:,} segments"
    took = (event.time_unix_ns - event.first_unix_ns) / 1e9 if event.first_unix_ns else 0.0
    within = f" within {span(took)}" if took >= 0.0005 else ""
    return f"{_who(event)} had to send {segments} again to {_whom(event)}{within}"


_ENDINGS = {"peer": "the peer closed the connection", "network": "the network timed out"}


def _drop(event: Event, error: int) -> str:
    who, whom = _who(event), _whom(event)
    reset = error in (_ECONNRESET, _EPIPE)
    how = "the peer reset the connection" if reset else _ENDINGS.get(event.closed_by, "it gave up waiting")
    got = f"{size(event.rx_bytes)} received in all"
    if event.reason == "reset_mid_response":
        return f"{who} was cut off in the middle of a response from {whom}: {how}{_since(event)}, {got}"
    if event.reason == "eof_mid_response":
        return f"{who} got only part of a response from {whom}: {how}, {got}"
    if event.reason == "stalled_mid_response":
        return f"{who} waits for the rest of a response from {whom}: nothing more came{_silent(event)}, {got}"
    return f"{who} got no answer from {whom}: {how}{_silent(event)}"


_ECONNRESET, _EPIPE = 104, 32


def _silent(event: Event) -> str:
    return f" for {span(event.gap_s)}" if event.reason == "stalled_mid_response" and event.gap_s >= 0 else ""


def _stall(event: Event, _error: int) -> str:
    return f"{_who(event)} cannot send to {_whom(event)}: the peer takes no more data (zero window)"


def _timeout(event: Event, error: int) -> str:
    what = "keepalive probes" if event.reason == "keepalive" else "what it sent"
    why = f"nobody acknowledged {what}" if error in (0, _ETIMEDOUT) else os.strerror(error).lower()
    silent = f", nothing came for {span(event.gap_s)}" if event.gap_s >= 0 else ""
    return f"{_who(event)} lost its connection to {_whom(event)}: it timed out, {why}{silent}"


_ETIMEDOUT = 110


def _connection(event: Event, _error: int) -> str:
    if event.role == "server":
        return f"{_who(event)} accepted {_whom(event).removeprefix('its client ')}"
    return f"{_who(event)} connected to {_whom(event)}{_after(event.age_s, 'in')}"


_SENTENCES: dict[str, Callable[[Event, int], str]] = {
    CONNECT_FAILED: _connect_failed,
    RETRANSMIT: _retransmit,
    RESET: _reset,
    DROP: _drop,
    STALL: _stall,
    TIMEOUT: _timeout,
    CONNECTION: _connection,
}
