# SPDX-License-Identifier: Apache-2.0
"""The settings that are Kernob's own: their fields, and how each is read. `config` puts values into them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from kernob.config_lifecycle import LIFECYCLE_SETTINGS
from kernob.config_otel import DEFAULT_SERVICE_NAME, LOGS_DEFAULT, OtlpSettings
from kernob.config_values import (
    SOCKET_PATH,
    Flag,
    Number,
    Numbers,
    PathName,
    Setting,
    SyscallNames,
    Word,
    Words,
)
from kernob.syscall_table import numbers

_SYSCALLS = SyscallNames()
_DEFAULT_SYSCALLS = _SYSCALLS.parse("read,write,epoll_wait,futex") if numbers() else ()
_STRATEGIES = (
    "tp_btf",
    "raw_tp",
    "fentry",
    "kprobe",
    "tracepoint",
    "iter",
    "uprobe_multi",
    "uprobe",
    "cgroup_skb",
    "btf",
)
WINDOW_MAX_S = 3600.0
_DIMENSIONS = ("reliability", "latency", "stability", "packet_health", "responsiveness")
_THRESHOLDS = ("latency_good", "latency_bad", "latency_slack_ms", "loss_good", "loss_bad")


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting of the agent and its screens, checked. docs/configuration.md lists them.

    `otlp` is for metrics, `otlp_logs` for events. `origin` maps each field (those of `otlp` as "otlp.x")
    to where its value came from: "default", "command line", "environment NAME", or the file's path.
    """

    scrape_interval_s: float = 10.0
    aggregation_window_s: float = 10.0
    resend_interval_s: float = 60.0
    socket_path: Path = Path("/run/kernob/agent.sock")
    state_dir: Path = Path("/var/lib/kernob")
    cache_dir: Path = Path("/var/cache/kernob")
    proc_root: Path = Path("/proc")
    host_root: Path | None = None
    container_names: bool = True
    log_level: str = "info"
    max_process_series: int = 10_000
    max_flow_series: int = 20_000
    process_flows: bool = True
    max_process_flow_series: int = 2_000
    tcp: bool = True
    http: bool = True
    syscalls: tuple[str, ...] = _DEFAULT_SYSCALLS
    blocked_after_s: float = 10.0
    max_histogram_series: int = 1_000
    names: bool = True
    max_names: int = 50_000
    lifecycle: bool = True
    lifecycle_events: tuple[str, ...] = ("failures",)
    command_lines: str = "mask"
    command_line_masks: tuple[str, ...] = ()
    crash_loop_restarts: int = 3
    crash_loop_window_s: float = 120.0
    max_lifecycle_series: int = 2_000
    max_lives: int = 65_536
    max_sockets: int = 65_536
    max_flows: int = 65_536
    max_processes: int = 16_384
    max_durations: int = 8_192
    max_syscall_histograms: int = 8_192
    max_threads: int = 65_536
    event_ring_bytes: int = 1_048_576
    max_events_per_second: int = 20
    max_stored_events: int = 100_000
    scores: bool = True
    max_scores: int = 2_000
    score_window_s: float = 600.0
    score_bucket_s: float = 10.0
    score_half_life_s: float = 120.0
    score_weights: tuple[tuple[str, float], ...] = ()
    score_min_samples: tuple[tuple[str, float], ...] = ()
    score_thresholds: tuple[tuple[str, float], ...] = ()
    score_objectives: tuple[tuple[str, float], ...] = ()
    long_poll: tuple[str, ...] = ()
    map: bool = True
    max_map_edges: int = 10_000
    map_own_namespace: bool = False
    map_active_s: float = 900.0
    map_days: int = 90
    learning_period_s: float = 86_400.0
    max_new_destinations: int = 10
    interfaces: tuple[str, ...] = ()
    network_file: Path | None = None
    btf_path: Path | None = None
    strategies_off: tuple[str, ...] = ()
    bpf_stats: bool = False
    drop_capabilities: bool = True
    resource_attributes: tuple[tuple[str, str], ...] = (("service.name", DEFAULT_SERVICE_NAME),)
    otlp: OtlpSettings = field(default_factory=OtlpSettings)
    otlp_logs: OtlpSettings = LOGS_DEFAULT
    origin: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), compare=False)

    @property
    def host_name(self) -> str:
        """The name this host goes by in everything exported: host.name where it is set, else the kernel's."""
        named = dict(self.resource_attributes).get("host.name") or os.uname().nodename
        return named.encode("utf-8", "replace").decode()  # the kernel takes any bytes for one


def _series(default: str) -> Number:
    return Number(1, 1_000_000, f"a whole number of {default}", whole=True)


def _entries(noun: str) -> Number:
    return Number(16, 4_194_304, f"a whole number of {noun}", whole=True)


KERNOB_SETTINGS = (
    Setting(
        "KERNOB_SCRAPE_INTERVAL",
        "scrape_interval_s",
        Number(0.2, 300, "a number of seconds"),
        "seconds between two reads of the kernel's counters",
    ),
    Setting(
        "KERNOB_AGGREGATION_WINDOW",
        "aggregation_window_s",
        Number(0.2, WINDOW_MAX_S, "a number of seconds"),
        "seconds over which shown rates are formed: a whole multiple of the scrape interval (default: it)",
    ),
    Setting(
        "KERNOB_RESEND_INTERVAL",
        "resend_interval_s",
        Number(1, 240, "a number of seconds"),
        "series that did not change are sent again this often",
    ),
    Setting("KERNOB_SOCKET", "socket_path", SOCKET_PATH, "the agent's unix socket"),
    Setting("KERNOB_STATE_DIR", "state_dir", PathName(), "what must outlive a restart"),
    Setting("KERNOB_CACHE_DIR", "cache_dir", PathName(), "compiled programs"),
    Setting("KERNOB_PROC_ROOT", "proc_root", PathName("directory"), "the host's /proc, as mounted here"),
    Setting(
        "KERNOB_HOST_ROOT",
        "host_root",
        PathName("directory"),
        "the host's root, as mounted here: containers' names, machine id (default: process 1's root)",
    ),
    Setting(
        "KERNOB_CONTAINER_NAMES",
        "container_names",
        Flag(),
        "whether containers are called by the names their runtimes keep on disk, else by their ids",
    ),
    Setting("KERNOB_LOG_LEVEL", "log_level", Word(("debug", "info", "warning", "error")), "what is logged"),
    Setting(
        "KERNOB_MAX_PROCESS_SERIES",
        "max_process_series",
        _series("series"),
        "process.network.io; beyond it, processes fold into their service's ~other",
    ),
    Setting("KERNOB_MAX_FLOW_SERIES", "max_flow_series", _series("series"), "kernob.flow.io, likewise"),
    Setting("KERNOB_PROCESS_FLOWS", "process_flows", Flag(), "whether kernob.process.flow.io is exported"),
    Setting(
        "KERNOB_MAX_PROCESS_FLOW_SERIES",
        "max_process_flow_series",
        _series("series"),
        "kernob.process.flow.io, likewise",
    ),
    Setting("KERNOB_TCP", "tcp", Flag(), "whether what happens to TCP connections is counted"),
    Setting("KERNOB_HTTP", "http", Flag(), "whether heads of HTTP/1 are read, to tell responses cut short"),
    Setting(
        "KERNOB_NAMES", "names", Flag(), "whether hostnames are learned; else destinations are addresses"
    ),
    Setting(
        "KERNOB_MAX_NAMES",
        "max_names",
        _entries("names"),
        "hostnames of addresses that are remembered; beyond it, the least used go",
    ),
    Setting(
        "KERNOB_MAX_HISTOGRAM_SERIES",
        "max_histogram_series",
        _series("series"),
        "each histogram metric, likewise; about 2 kB each",
    ),
    Setting(
        "KERNOB_SYSCALLS",
        "syscalls",
        _SYSCALLS,
        "system calls whose durations are measured (default: read, write, epoll_wait, futex), or none",
    ),
    Setting(
        "KERNOB_BLOCKED_AFTER",
        "blocked_after_s",
        Number(0.1, 3600, "a number of seconds"),
        "seconds after which a thread that is still in one of these calls is said to be blocked",
    ),
    *LIFECYCLE_SETTINGS,
    Setting("KERNOB_MAX_SOCKETS", "max_sockets", _entries("sockets"), "capacity of the map of sockets"),
    Setting("KERNOB_MAX_FLOWS", "max_flows", _entries("flows"), "capacity of the map of flows"),
    Setting(
        "KERNOB_MAX_PROCESSES", "max_processes", _entries("processes"), "capacity of the map of processes"
    ),
    Setting(
        "KERNOB_MAX_DURATIONS",
        "max_durations",
        _entries("histograms"),
        "capacity of the map of durations: destinations times kinds, between two reads",
    ),
    Setting(
        "KERNOB_MAX_SYSCALL_HISTOGRAMS",
        "max_syscall_histograms",
        _entries("histograms"),
        "capacity of the map of system calls: processes times calls, between two reads",
    ),
    Setting(
        "KERNOB_MAX_THREADS",
        "max_threads",
        _entries("threads"),
        "capacity of the map of threads that make these calls",
    ),
    Setting(
        "KERNOB_EVENT_RING_BYTES",
        "event_ring_bytes",
        Number(4096, 1 << 28, "a whole number of bytes", whole=True),
        "room for events that wait to be read; rounded up to a power of two",
    ),
    Setting(
        "KERNOB_MAX_EVENTS_PER_SECOND",
        "max_events_per_second",
        Number(1, 10_000, "a whole number of events", whole=True),
        "events a service may have in one second; the rest is counted and summed up in one",
    ),
    Setting(
        "KERNOB_MAX_STORED_EVENTS",
        "max_stored_events",
        Number(1, 10_000_000, "a whole number of events", whole=True),
        "the newest events that are kept in the state directory",
    ),
    Setting("KERNOB_MAP", "map", Flag(), "whether the service map and its new destinations are kept"),
    Setting(
        "KERNOB_MAP_OWN_NAMESPACE",
        "map_own_namespace",
        Flag(),
        "whether the map is of the agent's own network namespace only: one that is a host of its own",
    ),
    Setting(
        "KERNOB_MAX_MAP_EDGES",
        "max_map_edges",
        Number(100, 1_000_000, "a whole number of edges", whole=True),
        "edges of the service map; beyond it, and beyond a tenth of it for one service, they fold",
    ),
    Setting(
        "KERNOB_MAP_ACTIVE",
        "map_active_s",
        Number(60, 86_400, "a number of seconds"),
        "seconds an edge is exported after it was seen last",
    ),
    Setting(
        "KERNOB_MAP_DAYS",
        "map_days",
        Number(1, 3650, "a whole number of days", whole=True),
        "days an edge is remembered after it was seen last",
    ),
    Setting(
        "KERNOB_LEARNING_PERIOD",
        "learning_period_s",
        Number(1, 7_776_000, "a number of seconds"),
        "seconds from a service's first sight in which its new destinations alert nobody",
    ),
    Setting(
        "KERNOB_MAX_NEW_DESTINATIONS",
        "max_new_destinations",
        Number(1, 1000, "a whole number of events", whole=True),
        "events of new destinations a service may have in one minute; the rest is summed up in one",
    ),
    Setting(
        "KERNOB_SCORES", "scores", Flag(), "whether destinations are scored (needs what KERNOB_TCP counts)"
    ),
    Setting(
        "KERNOB_MAX_SCORES",
        "max_scores",
        _series("dependencies"),
        "dependencies that are scored: service, destination, port; about 10 kB each, 11 series",
    ),
    Setting(
        "KERNOB_SCORE_WINDOW",
        "score_window_s",
        Number(0.6, 86_400, "a number of seconds"),
        "how long what happened counts: at least 3 buckets, at most 360",
    ),
    Setting(
        "KERNOB_SCORE_BUCKET",
        "score_bucket_s",
        Number(0.2, 3600, "a number of seconds"),
        "steps in which a score's window moves on",
    ),
    Setting(
        "KERNOB_SCORE_HALF_LIFE",
        "score_half_life_s",
        Number(0.2, 86_400, "a number of seconds"),
        "after so long what happened weighs half; at most the window",
    ),
    Setting(
        "KERNOB_SCORE_WEIGHTS",
        "score_weights",
        Numbers(_DIMENSIONS, Number(0, 1000, "a number"), "dimension"),
        "weights of dimensions in the composite, not all 0 (0.35, 0.15, 0.2, 0.1, 0.2)",
    ),
    Setting(
        "KERNOB_SCORE_MIN_SAMPLES",
        "score_min_samples",
        Numbers(_DIMENSIONS, Number(1, 1_000_000, "a whole number", whole=True), "dimension"),
        "with fewer samples in its window a dimension has no score (5, 20, 5, 500, 5)",
    ),
    Setting(
        "KERNOB_SCORE_THRESHOLDS",
        "score_thresholds",
        Numbers(_THRESHOLDS, Number(0, 10_000, "a number"), "threshold"),
        "where latency (multiples of the baseline) and loss (share) begin to count, and where they score 0",
    ),
    Setting(
        "KERNOB_SCORE_OBJECTIVES",
        "score_objectives",
        Numbers((), Number(0.001, 3_600_000, "milliseconds", scale=1e-3), "host"),
        "baselines of latency by destination, instead of what is usual there",
    ),
    Setting(
        "KERNOB_LONG_POLL",
        "long_poll",
        Words(r"[A-Za-z0-9._:-]{1,253}", "destinations"),
        "destinations that answer late by design: their silence is not scored",
    ),
    Setting(
        "KERNOB_INTERFACES",
        "interfaces",
        Words(r"[^\s/:]{1,15}", "interface names"),
        "interfaces that coverage is measured on (empty: all but loopback and virtual ones)",
    ),
    Setting(
        "KERNOB_NETWORK_FILE",
        "network_file",
        PathName("file"),
        "what is known of the network: classes of peers, folded networks, names of addresses and services",
    ),
    Setting(
        "KERNOB_BTF", "btf_path", PathName("file"), "type information to use instead of the kernel's own"
    ),
    Setting(
        "KERNOB_STRATEGIES_OFF",
        "strategies_off",
        Words("|".join(_STRATEGIES), ", ".join(_STRATEGIES)),
        "ways of attaching that must not be tried",
    ),
    Setting(
        "KERNOB_BPF_STATS", "bpf_stats", Flag(), "let the kernel time Kernob's programs (costs a little)"
    ),
    Setting(
        "KERNOB_DROP_CAPABILITIES",
        "drop_capabilities",
        Flag(),
        "whether kernob run gives up, once attached, what it no longer needs",
    ),
)
