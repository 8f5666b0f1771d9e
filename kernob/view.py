# SPDX-License-Identifier: Apache-2.0
"""What a screen asks of a snapshot, and the one JSON document that answers it.

A `Query` asks, a `View` answers (`kernob.answer` makes it from a `Snapshot`). The same `View`, encoded
here, is a line on the agent's socket and a line of `kernob top --json`; docs/snapshot-json.md describes
its keys. Lines enter and nouns leave, and the other way round. Called by `answer`, by `export.socket` (in
the agent) and by `ui` (which decodes, or selects itself where the agent lives in the same process).

Annotations are evaluated here (no `from __future__ import annotations`): msgspec reads them to check
whatever comes in from outside.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from kernob.model import NO_FACTS, Coverage, Event, EventQuery, HookReport, MapUsage, Pulse, TcpFacts

PROTOCOL_VERSION = 1
MAX_REQUEST_BYTES = 4096
MAX_VIEW_BYTES = 32 * 1024 * 1024
MAX_ROWS = 20_000
MAX_FILTER_CHARS = 256
MAX_NAME_CHARS = 256
MAX_EVENTS = 1_000_000


class Group(enum.Enum):
    """What one row stands for."""

    FLOW = "flow"
    PROCESS = "process"
    SERVICE = "service"
    DESTINATION = "destination"


class Sort(enum.Enum):
    """What rows are ordered by: numbers largest first, names alphabetically, the lowest score first."""

    RATE = "rate"
    TX_RATE = "tx_rate"
    RX_RATE = "rx_rate"
    TOTAL = "total"
    TX_TOTAL = "tx_total"
    RX_TOTAL = "rx_total"
    PROCESS = "process"
    PID = "pid"
    SERVICE = "service"
    DESTINATION = "destination"
    FAULTS = "faults"
    SCORE = "score"


@dataclass(frozen=True, slots=True)
class Query:
    """Which rows, in which order, and how many of them.

    `filter` holds words that must all occur (case ignored) somewhere in a flow's process, PID, service,
    destination, peer, class, role or transport. It is applied before grouping, so that a process's row
    then counts only its matching flows. `limit` is 1..20000 rows.
    """

    group: Group = Group.FLOW
    sort: Sort = Sort.RATE
    reverse: bool = False
    filter: Annotated[str, Meta(max_length=MAX_FILTER_CHARS)] = ""
    limit: Annotated[int, Meta(ge=1, le=MAX_ROWS)] = 100


@dataclass(frozen=True, slots=True)
class Request(Query):
    """One line from a client: a query, and how often to answer it.

    `want` "once" is answered after one `interval_s` (0.2..300) and ends the connection; "snapshot" is
    answered every `interval_s` until the client leaves. A further "snapshot" request on the same
    connection replaces the query and is answered at once. With `hold` the agent keeps answering new
    queries from the snapshot shown last and sends nothing else: a paused screen. `want` "pulse" is answered
    at once by a `Heartbeat`, causes no tick, and ends the connection.
    """

    want: Literal["snapshot", "once", "pulse"] = "snapshot"
    v: Literal[1] = 1
    interval_s: Annotated[float, Meta(ge=0.2, le=300)] = 1.0
    hold: bool = False


@dataclass(frozen=True, slots=True)
class EventRequest:
    """One line from a client that asks for events, as in `EventQuery`; `follow`: and for all further ones."""

    want: Literal["events"]
    v: Literal[1] = 1
    since_unix_ns: int = 0
    service: Annotated[str, Meta(max_length=MAX_FILTER_CHARS)] = ""
    kinds: Annotated[tuple[Annotated[str, Meta(max_length=MAX_FILTER_CHARS)], ...], Meta(max_length=64)] = ()
    limit: Annotated[int, Meta(ge=1, le=MAX_EVENTS)] = 100
    follow: bool = False

    @property
    def query(self) -> EventQuery:
        """What it asks for."""
        return EventQuery(self.since_unix_ns, self.service, self.kinds, self.limit)


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """One line from a client that asks a feature for a document; `words` narrow it down, as the report says.

    The answer is one line, {"v": 1, "report": ...}, or a `Refusal`.
    """

    want: Literal["report"]
    name: Annotated[str, Meta(max_length=64)]
    words: Annotated[
        dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=MAX_FILTER_CHARS)]],
        Meta(max_length=16),
    ] = field(default_factory=dict)
    v: Literal[1] = 1


@dataclass(frozen=True, slots=True)
class EventsEnd:
    """The line behind the last event, where nothing is followed."""

    end: Literal[True] = True
    v: Literal[1] = 1


@dataclass(frozen=True, slots=True)
class Sums:
    """Rows and what they carry: bytes since the agent first saw them, bytes per second in the window."""

    rows: int = 0
    tx_bytes: int = 0
    rx_bytes: int = 0
    tx_rate: float = 0.0
    rx_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """One flow, or the sum of `flows` flows that share what the group keeps.

    What a group does not keep is 0, "" or "unknown". `share` is the row's part (0..1) of all bytes, sent
    and received, that every process of this host moved in the window. `tcp` is what happened to its TCP
    connections since the agent first saw them, `tcp_window` what did in the window. `score` is that of what
    it depends on, 0..1, of several the lowest; None where there is none.
    """

    pid: int
    executable: str
    service: str
    alive: bool
    role: str
    transport: str
    address: str
    port: int
    peer: str
    peer_class: str
    flows: int
    tx_bytes: int
    rx_bytes: int
    tx_rate: float
    rx_rate: float
    share: float
    tcp: TcpFacts = NO_FACTS
    tcp_window: TcpFacts = NO_FACTS
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Leader:
    """The service (or, without one, the executable) that moved most of the window's bytes; `share` 0..1."""

    name: str
    share: float


@dataclass(frozen=True, slots=True)
class View:
    """The answer to one query; what the JSON document says, key by key.

    `total` counts all flows of the host, `matched` the rows that passed the filter, `left_out` those of
    them beyond `limit`. `processes` counts the processes behind `total`.
    """

    time_unix_ns: int
    started_unix_ns: int
    window_s: float
    host: str
    group: Group
    sort: Sort
    reverse: bool
    filter: str
    processes: int
    leader: Leader | None
    total: Sums
    matched: Sums
    left_out: Sums
    rows: tuple[Row, ...]
    hooks: tuple[HookReport, ...] = ()
    maps: tuple[MapUsage, ...] = ()
    losses: dict[str, int] = field(default_factory=dict)
    coverage: tuple[Coverage, ...] = ()
    v: Literal[1] = 1


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the server answers instead of a view, before it closes the connection.

    With `pulse` where it is only too busy to serve one more: who asks for no more than that has it.
    """

    error: str
    v: Literal[1] = 1
    pulse: Pulse | None = None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The answer to `want` "pulse"; `kernob.health` reads it."""

    pulse: Pulse
    v: Literal[1] = 1


@dataclass(frozen=True, slots=True)
class _Want:
    """What any request says first."""

    want: str = "snapshot"


def faults(facts: TcpFacts) -> int:
    """Connections that came to nothing, and resets or cut exchanges, whichever are more (many are both)."""
    return facts.failed + max(facts.resets, facts.drops)


def printable(text: str) -> str:
    """Return at most 256 characters of `text`, with U+FFFD for each one a terminal would obey or hide.

    That is every character Unicode calls control, format (bidirectional overrides among them),
    surrogate, private, unassigned, or a separator other than the space (`str.isprintable`).
    """
    text = text[:MAX_NAME_CHARS]
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def encode_view(view: View) -> bytes:
    """Return the view as one line of JSON without its line feed; control characters are escaped."""
    return msgspec.json.encode(view)


def encode_refusal(reason: str, pulse: Pulse | None = None) -> bytes:
    """Return the error line a client gets instead of a view."""
    return msgspec.json.encode(Refusal(reason, pulse=pulse))


def encode_pulse(pulse: Pulse) -> bytes:
    """Return the agent's pulse as one line of JSON without its line feed."""
    return msgspec.json.encode(Heartbeat(pulse))


def encode_request(request: Request) -> bytes:
    """Return the request as one line of JSON without its line feed."""
    return msgspec.json.encode(request)


def encode_event_request(request: EventRequest) -> bytes:
    """Return the request as one line of JSON without its line feed."""
    return msgspec.json.encode(request)


def encode_report_request(name: str, words: Mapping[str, str]) -> bytes:
    """Return the request as one line of JSON without its line feed."""
    return msgspec.json.encode(ReportRequest("report", name, dict(words)))


def encode_report(document: Mapping[str, Any]) -> bytes:
    """Return the answer to a ReportRequest likewise."""
    return msgspec.json.encode({"v": 1, "report": document})


def decode_report(line: bytes) -> dict[str, Any] | Refusal:
    """Parse and check the answer to a ReportRequest. Raises ValueError with a reason."""
    head = _head(line)
    try:
        if "error" in head:
            return msgspec.json.decode(line, type=Refusal)
        document: dict[str, Any] = msgspec.json.decode(head["report"], type=dict[str, Any])
    except KeyError:
        raise ValueError("its answer is malformed: no report") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"its answer is malformed: {error}") from error
    return document


def encode_event(event: Event) -> bytes:
    """Return the event as one line of JSON without its line feed."""
    return b'{"v":1,' + msgspec.json.encode(event)[1:]


def encode_events_end() -> bytes:
    """Return the line behind the last event."""
    return msgspec.json.encode(EventsEnd())


def decode_event_line(line: bytes) -> Event | EventsEnd | Refusal:
    """Parse and check one line of an answer to an EventRequest. Raises ValueError with a reason."""
    head = _head(line)
    try:
        if "error" in head:
            return msgspec.json.decode(line, type=Refusal)
        if "end" in head:
            return msgspec.json.decode(line, type=EventsEnd)
        return msgspec.json.decode(line, type=Event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"its answer is malformed: {error}") from error


def decode_request(line: bytes) -> Request | EventRequest | ReportRequest:
    """Parse and check one request line. Raises ValueError with a reason fit for the client."""
    try:
        want = msgspec.json.decode(line, type=_Want).want
        if want == "events":
            return msgspec.json.decode(line, type=EventRequest)
        if want == "report":
            return msgspec.json.decode(line, type=ReportRequest)
        return msgspec.json.decode(line, type=Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a valid request: {error}") from error


def decode_answer(line: bytes) -> View | Refusal:
    """Parse and check one line from the server. Raises ValueError with a reason."""
    head = _head(line)
    try:
        if "error" in head:
            return msgspec.json.decode(line, type=Refusal)
        return msgspec.json.decode(line, type=View)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"its answer is malformed: {error}") from error


def _head(line: bytes) -> dict[str, msgspec.Raw]:
    """The keys of an answer of our version of the protocol, or ValueError."""
    try:
        head = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"its answer is malformed: {error}") from error
    if head.get("v") != msgspec.Raw(b"1"):
        raise ValueError("it speaks another version of the protocol; run the same version of kernob")
    return head
