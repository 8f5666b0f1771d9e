# SPDX-License-Identifier: Apache-2.0
"""What Kernob says of itself: hooks, maps, coverage, its pulse, what a machine offers."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


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
