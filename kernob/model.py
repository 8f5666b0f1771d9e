# SPDX-License-Identifier: Apache-2.0
"""The nouns every part of Kernob shares: frozen, typed, without behaviour that needs a kernel.

Data enters here from `probes` (decoded map rows), travels through `state` and `derive`, and leaves
through `export` (OTLP) and `ui` (screens). This module imports nothing of ours but `errors`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

AttributeValue = str | int | float | bool
Attributes = tuple[tuple[str, AttributeValue], ...]
"""Attribute pairs in a fixed order; the order is part of a series' identity."""


class MetricKind(enum.Enum):
    """How a metric's points combine over time (OTLP: Sum monotonic, Sum, Gauge, Histogram)."""

    COUNTER = "counter"
    UPDOWN = "updowncounter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric as it is documented and exported.

    `name` is dotted, without unit or `total`; `unit` is UCUM; `attributes` lists the keys that may
    stand on its points. `integer` says whether values are whole numbers (OTLP as_int) or floats.
    """

    name: str
    unit: str
    kind: MetricKind
    description: str
    attributes: tuple[str, ...] = ()
    integer: bool = True


class Role(enum.IntEnum):
    """Which side opened the connection, seen from the local socket."""

    UNKNOWN = 0
    CLIENT = 1
    SERVER = 2


class Transport(enum.IntEnum):
    """IP protocol number; MPTCP (262) is folded into TCP by the kernel side."""

    TCP = 6
    UDP = 17


class Fate(enum.IntEnum):
    """What can happen to a TCP connection: enum fate of bpf/types.h."""

    CONNECTION = 0
    RETRANSMIT = 1
    RESET = 2
    DROP = 3
    STALL = 4
    TIMEOUT = 5


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


class ClosedBy(enum.IntEnum):
    """Who ended a connection: enum closed_by of bpf/types.h."""

    PEER = 0
    SELF = 1
    NETWORK = 2


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
}
"""Every kind of event, and what it is an event of."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to one connection, at the kernel's time; docs/events.md lists the kinds.

    `kind` is the event's name ("kernob.tcp.reset"), `body` the sentence a person reads. `address`, `port`
    and `role` ("client", "server", "unknown") say which destination, as in FlowRow; `peer` and `peer_port`
    are the other end, `local_port` is ours. `reason` is its error.type, `closed_by` "peer", "self" or
    "network", `direction` "transmit" or "receive"; each "" where it does not apply. `idle`: no exchange
    was open. `count` counts segments of retransmits, else 1. Ages are seconds, -1.0 where they are
    unknown: `age_s` since the connection was opened, `gap_s` since the last byte from the peer.

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


@dataclass(frozen=True, slots=True)
class EventQuery:
    """Which events: the newest `limit` of those from `since_unix_ns` on that pass both filters.

    `service` is a name or a pattern with * and ?, "" for all; `kinds` are kinds of EVENT_KINDS, () for all.
    """

    since_unix_ns: int = 0
    service: str = ""
    kinds: tuple[str, ...] = ()
    limit: int = 100


class PeerClass(enum.Enum):
    """Where a peer lives (MAP.md); `SELF_HOSTED` exists only by the network file."""

    LOCALHOST = "localhost"
    INTERNAL = "internal"
    EXTERNAL = "external"
    SELF_HOSTED = "self-hosted"
    UNKNOWN = "unknown"


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


@dataclass(frozen=True, slots=True)
class FlowRow:
    """Bytes of one process with one destination, as a screen shows them.

    `*_bytes` are totals since the agent first saw the flow, `*_rate` bytes per second over the last
    aggregation window. For role SERVER `address`/`port` are the local ones and `peer` the client's
    address; for role CLIENT `address` == `peer`. An unconnected UDP socket has address "" and port 0.
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


class ProbeState(enum.Enum):
    """Outcome of one probe hook."""

    ATTACHED = "attached"
    FAILED = "failed"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One strategy that was tried (or not needed) for a hook, in order of preference."""

    strategy: str
    attached: bool
    reason: str = ""
    measures: str = ""


@dataclass(frozen=True, slots=True)
class HookReport:
    """What `doctor` and kernob.probe.attached say of one hook: every attempt, and the one that holds."""

    probe: str
    hook: str
    state: ProbeState
    strategy: str
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class MapUsage:
    """Fill and memory of one BPF map."""

    name: str
    entries: int
    capacity: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """Attributed bytes over interface bytes of one direction in the last window.

    `ratio` is 0 or more, None where there was too little traffic to say.
    """

    interface: str
    direction: str
    ratio: float | None


@dataclass(frozen=True, slots=True)
class ProgramRuns:
    """How often a probe's programs ran since they were loaded, and for how long (bpf_stats; else absent)."""

    probe: str
    runs: int
    run_time_s: float


@dataclass(frozen=True, slots=True)
class Pulse:
    """Whether the agent lives: its last tick ended `age_s` seconds ago; beyond `limit_s` it does not."""

    age_s: float
    limit_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the agent knew at the end of one tick; immutable, shared by all readers.

    `window_s` is the length of the interval the rates stand for. `losses` maps kernob.cause to a
    cumulative count, `suppressed_events` counts those that only a summary tells, which are not lost.
    """

    time_unix_ns: int
    started_unix_ns: int
    window_s: float
    host: str
    flows: tuple[FlowRow, ...]
    hooks: tuple[HookReport, ...] = ()
    maps: tuple[MapUsage, ...] = ()
    losses: dict[str, int] = field(default_factory=dict)
    coverage: tuple[Coverage, ...] = ()
    runs: tuple[ProgramRuns, ...] = ()
    suppressed_events: int = 0


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """What one machine offers to Kernob, and what became of every hook on it.

    Of the machine: `capabilities` are the effective ones that matter, `lockdown` is "none", "integrity",
    "confidentiality" or "unknown"; `btf` and `headers` are paths and `bcc` a version, "" where there is
    none; `mounts` maps tracefs, debugfs, bpffs and cgroup2 to their mount points, "" where not mounted;
    `may_mount` says whether Kernob can mount its own then. `in_container`: it looked from inside one.

    Of Kernob: `agent` is the socket of the running agent that `hooks`, `maps` and `losses` are from; "" says
    that the hooks were attached for this report and taken away again. `problem` is why none could be, and
    `problem_code` the exit code that `kernob run` would end with.
    `optional_hooks` ("probe.hook") may be missing without making the machine unfit.
    """

    kernel: str
    architecture: str
    uid: int
    capabilities: tuple[str, ...]
    lockdown: str
    btf: str
    headers: str
    mounts: dict[str, str]
    bcc: str
    hooks: tuple[HookReport, ...] = ()
    optional_hooks: tuple[str, ...] = ()
    agent: str = ""
    problem: str = ""
    problem_code: int = 0
    maps: tuple[MapUsage, ...] = ()
    losses: dict[str, int] = field(default_factory=dict)
    blind_spots: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    may_mount: bool = False
    in_container: bool = False
