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
    cumulative count.
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
