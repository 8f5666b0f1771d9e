# SPDX-License-Identifier: Apache-2.0
"""One tick: read the maps, fold them into state, derive, hand out one immutable snapshot.

In: Settings. Out: a Snapshot and the series in `store`. Called by `agent` from one thread only. This
file and `agent` are where the layers meet; everything below them knows only its own input.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from kernob import event_feed
from kernob.config import Settings
from kernob.features.feature import Feature, Report, Tick, no_report
from kernob.features.lifecycle import Lifecycle
from kernob.features.lifecycle import prepare as prepare_lifecycle
from kernob.features.map import Map
from kernob.features.names import Names
from kernob.features.places import PlaceWatch
from kernob.features.scores import Scores
from kernob.features.syscalls import Syscalls
from kernob.features.tcp import Tcp
from kernob.features.wire import Wire
from kernob.kernel.capabilities import check_view
from kernob.kernel.containers import ContainerNames
from kernob.kernel.listening import Listening
from kernob.kernel.privileges import confined, drop
from kernob.kernel.proc_sockets import ProcSockets, listening_ports_of
from kernob.kernel.procfs import ProcFs
from kernob.kernel.session import KernelOptions, Session, check_permission, settle_memory, spare_memory
from kernob.model import Event, HookReport, MapUsage, ProcessInfo, ProcessKey, ProgramRuns, Snapshot
from kernob.probes import PROBES, lifecycle, process, syscalls, traffic
from kernob.probes.traffic import Loss
from kernob.state import network_text
from kernob.state.events import EventState
from kernob.state.names import needs_full_args, sanitize, service_of, split_args
from kernob.state.network import NetworkFile
from kernob.state.processes import Process
from kernob.state.series import SeriesStore
from kernob.state.stamps import Stamps
from kernob.state.store import Store
from kernob.state.traffic import Caps, TrafficState

__all__ = ["Pipeline", "confined", "kernel_options", "new_session", "spare_memory"]

log = logging.getLogger(__name__)

_LIVENESS_S = 60.0
_FULL_ARGS_BYTES = 65536
_AFTER_TICK_NS = 2_000_000
_CONFIRM_S = 10.0
"""Longer than a backend keeps what it acknowledged in memory only (VictoriaMetrics: 5 s)."""


def check_machine() -> None:
    """Raises PreconditionError, one line, where nothing could be attached at all."""
    check_permission()


def kernel_options(settings: Settings) -> KernelOptions:
    """The part of the settings that the kernel layer understands."""
    return KernelOptions(
        capacities={
            "socks": settings.max_sockets,
            "flows": settings.max_flows,
            "procs": settings.max_processes,
            "fates": settings.max_flows,
            "durations": settings.max_durations,
            "syscalls": settings.max_syscall_histograms,
            **dict.fromkeys(("threads", "slot_owners"), settings.max_threads),
            "events": settings.event_ring_bytes,
            **dict.fromkeys(("lives", "settled"), settings.max_lives),
            **lifecycle.CAPACITIES,
        },
        kinds_off=frozenset(settings.strategies_off),
        btf_path=settings.btf_path,
        cache_dir=settings.cache_dir,
        bpf_stats=settings.bpf_stats,
        proc_root=settings.proc_root,
        http=settings.http,
    )


def new_session(settings: Settings, prepare: Callable[[Session], None] | None = None) -> Session:
    """A session with every probe; nothing is loaded before it is entered."""
    wanted = {
        "tcp": settings.tcp,
        "syscalls": settings.syscalls,
        "names": settings.names,
        "lifecycle": settings.lifecycle,
        "waits": settings.tcp and settings.scores,
    }
    off = {name for name, on in wanted.items() if not on}
    probes = [probe for probe in PROBES if probe.name not in off]
    probes = [syscalls.watching(settings.syscalls) if p is syscalls.PROBE else p for p in probes]
    sources = [source for probe in probes for source in probe.sources]
    hooks = [hook for probe in probes for hook in probe.hooks]

    def prepare_all(session: Session) -> None:
        if settings.syscalls:
            syscalls.choose(session, settings.syscalls)
        if prepare:
            prepare(session)

    return Session(sources, hooks, kernel_options(settings), prepare_all)


def _container_names(settings: Settings) -> ContainerNames | None:
    """What looks names of containers up, None where that is switched off."""
    if not settings.container_names:
        return None
    proc_root, configured = settings.proc_root, settings.host_root
    roots = (configured,) if configured else (proc_root / "1" / "root", Path("/"))
    return ContainerNames(roots, proc_root, sanitize)


def _clean(raw: ProcessInfo, command_line: bytes) -> ProcessInfo:
    """What the kernel side captured, made fit to show."""
    return dataclasses.replace(
        raw,
        executable=sanitize(raw.executable.encode("utf-8", "surrogateescape")),
        comm=sanitize(raw.comm.encode("utf-8", "surrogateescape")),
        args=split_args(command_line, process.ARGS_BYTES),
        cgroup=tuple(sanitize(g.encode("utf-8", "surrogateescape"), 256) for g in raw.cgroup),
    )


class Pipeline:
    """See the module. Use as a context manager: programs are attached inside it.

    `hooks` says what was attached, and how.
    """

    def __init__(
        self,
        settings: Settings,
        on_events: Callable[[], None] = lambda: None,
        kept: Store | None = None,
    ) -> None:
        """`on_events` is called from a thread when `events` has some to give; `kept` outlives a restart."""
        self._settings = settings
        self._proc = ProcFs(settings.proc_root, sanitize, split_args)
        self._containers = _container_names(settings)
        self._network = network_text.load(settings.network_file) if settings.network_file else NetworkFile()
        for line, warning in self._network.warnings():
            log.warning("network file %s:%d: %s", settings.network_file, line, warning)
        self._session = new_session(settings, self._seed)
        networked = settings.otlp.exporter != "none"
        self.store = SeriesStore(settings.resend_interval_s, _CONFIRM_S if networked else 0.0)
        caps = Caps(
            settings.max_process_series,
            settings.max_flow_series,
            settings.max_process_flow_series if settings.process_flows else 0,
        )
        specs = (traffic.PROCESS_IO, traffic.FLOW_IO, traffic.PROCESS_FLOW_IO)
        self._traffic = TrafficState(self.store, specs, caps, self._resolve)
        happened = EventState(self._traffic.known, self.store, settings.max_events_per_second)
        self._feed = event_feed.EventFeed(happened, on_events)
        self._tcp = Tcp(settings, self.store, self._traffic.known, self._proc, self._resolve)
        wire = Wire(self._proc, settings.interfaces, self._traffic.destination)
        self._names = Names(settings, on_events)
        self._traffic.known.name_by(self._names.of)
        self._names.configure(self._network.names)
        if self._network.classes:
            self._traffic.known.classify_by(self._network.class_of)
        known, store = self._traffic.known, self.store
        self.scores = Scores(settings, store, known, self._tcp, kept, self._network)
        lives = Lifecycle(settings, store, self._proc, self._named, on_events)
        calls = Syscalls(settings, store, known.processes, lives.program)
        self._features: tuple[Feature, ...] = (self._names, wire, self._tcp, self.scores, calls, lives)
        if settings.map:
            self._features += (self._map(kept),)
        self._stamps = Stamps(2 * _AFTER_TICK_NS)
        self._started_unix_ns = self._previous_unix_ns = self._stamps.restart()
        self._window_started_s = self._checked_s = time.monotonic()
        self._maps: tuple[MapUsage, ...] = ()
        self.hooks: tuple[HookReport, ...] = ()
        self._window_s = settings.aggregation_window_s

    def _map(self, kept: Store | None) -> Map:
        settings, known = self._settings, self._traffic.known

        def service_of_pid(pid: int) -> str:
            process = known.processes.by_pid(pid)
            if process is not None:
                return process.service
            start = self._proc.read_process(pid, 0)
            info = self._resolve(start.key) if start else None
            return info.service if info else ""

        listening = Listening(settings.proc_root, own_only=settings.map_own_namespace)
        places = PlaceWatch(listening, ProcSockets(settings.proc_root), service_of_pid)
        score_of = self.scores.score if settings.scores else None
        made = Map(settings, self.store, known, self._tcp.connections, places, kept, score_of)
        made.name_clients(self._network.names)
        made.fold_by(self._network.fold_of)
        return made

    def __enter__(self) -> Pipeline:
        """Attaches. Raises PreconditionError or KernelError with nothing left behind."""
        check_view(self._settings.proc_root)
        self._session.__enter__()
        try:
            self._session.require_essential()
            if self._settings.tcp:
                self._feed.open(self._session)
            for feature in self._features:
                feature.open(self._session)
        except BaseException:
            self._session.close()
            raise
        self.hooks = self._session.reports
        if self._settings.tcp:
            self.hooks = (*self.hooks, event_feed.report())
        self._started_unix_ns = self._previous_unix_ns = self._stamps.restart()
        self._window_started_s = self._checked_s = time.monotonic()
        settle_memory()
        for report in self.hooks:
            log.info("%s.%s: %s", report.probe, report.hook, report.strategy or report.state.value)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for feature in reversed(self._features):
            feature.close()
        self._feed.close()
        if self._containers:
            self._containers.close()
        self._session.close()

    def drop_capabilities(self) -> None:
        """Gives up, in this thread, what only attaching needed; before it starts any other thread.

        Raises OSError where the kernel refuses.
        """
        trial = lambda: (self._session.losses(), self._session.run_stats())  # noqa: E731
        left = drop(trial, for_uprobes=self._names.needs_admin)
        log.info("capabilities kept after attaching: %s", ", ".join(left) or "none")

    def watch(self) -> None:
        """Begins to take note of what comes by itself, in threads: events, and the names of containers."""
        self._feed.start()
        for feature in self._features:
            feature.watch()
        self._names.start()
        if self._containers:
            self._containers.start()

    def _seed(self, session: Session) -> None:
        """Before anything attaches: roles of connections that are older than we are depend on it."""
        traffic.seed_listeners(session, self._proc.listening_ports())
        if self._settings.lifecycle:
            prepare_lifecycle(session, self._settings)

    def detach(self) -> None:
        """Takes the programs away; one more tick then reads exactly what they counted."""
        self._names.detach()
        self._session.detach()
        self._feed.stop()
        for feature in self._features:
            feature.detached()

    def events(self) -> list[Event]:
        """What happened since the last call, as far as the rate cap admits it. Cheap where nothing did."""
        found = self._feed.take(self._session)
        self.scores.saw(found)
        return found + [event for feature in self._features for event in feature.events()]

    def summaries(self) -> list[Event]:
        """What was beyond the rate cap since the last call: once a scheduled tick."""
        now_unix_ns = time.time_ns()
        found = [event for feature in self._features for event in feature.summaries(now_unix_ns)]
        return self._feed.summaries(now_unix_ns) + found

    def tick(self, window_s: float, with_flows: bool) -> Snapshot:
        """Reads everything once. `with_flows`: put the flow rows into the snapshot, for a screen.

        `window_s` is the shortest time that rates are formed over. Raises MapError.
        """
        now_s, now_unix_ns = time.monotonic(), self._stamps.next()
        keys, values = self._session.map("procs").read()
        self._traffic.processes.mark_ended(process.ended_keys(keys, values))
        rows = traffic.read(self._session)
        # a little after the tick before, where a series of the same name may have had its last value
        since_unix_ns = min(self._previous_unix_ns + _AFTER_TICK_NS, now_unix_ns - _AFTER_TICK_NS)
        growth = self._traffic.update((rows.closed_keys, rows.closed_values, rows.live), since_unix_ns, now_s)
        ended_s: float | None = None
        if now_s - self._window_started_s >= window_s * 0.95:
            ended_s = self._window_s = now_s - self._window_started_s
            self._traffic.roll(self._window_s)
            self._window_started_s = now_s
        tick = Tick(self._session, rows, growth, now_s, now_unix_ns, since_unix_ns, ended_s)
        for feature in self._features:
            feature.tick(tick)
        self._check_liveness(now_s)
        self._traffic.known.sweep(now_s, self._removed)
        self._previous_unix_ns = now_unix_ns
        self._maps = self._session.usage(
            {
                "socks": len(rows.sockets),
                "flows": len(rows.closed_keys),
                "procs": len(keys),
                **{name: count for f in self._features for name, count in f.usage().items()},
            }
        )
        return Snapshot(
            time_unix_ns=now_unix_ns,
            started_unix_ns=self._started_unix_ns,
            window_s=self._window_s,
            host=os.uname().nodename,
            flows=self._traffic.rows(self._tcp.connections.facts) if with_flows else (),
            hooks=self.hooks,
            maps=self._maps,
            losses=self._losses(),
            suppressed_events=self._feed.suppressed + sum(f.suppressed for f in self._features),
            runs=self._runs(),
            scores=self.scores.composites() if with_flows else {},
            **{name: part for feature in self._features for name, part in feature.parts().items()},
        )

    def report(self, name: str, words: Mapping[str, str]) -> Mapping[str, Any]:
        """Answers a client. Raises ValueError, one line, for what nobody here knows."""
        known: dict[str, Report] = {n: r for feature in self._features for n, r in feature.reports().items()}
        if name in known:
            return known[name](words)
        raise ValueError(no_report(name, known))

    def _losses(self) -> dict[str, int]:
        counts = self._session.losses()
        return {
            "map_full": int(counts[Loss.FLOWS_FULL] + counts[Loss.PROCS_FULL]),
            "sockets_full": int(counts[Loss.SOCKS_FULL]),
            "calls_full": int(counts[Loss.CALLS_FULL]),
            **{cause: n for feature in self._features for cause, n in feature.losses(counts).items()},
            "series_cap": self._traffic.folded + self._feed.folded + sum(f.folded for f in self._features),
            "recursion": sum(s.recursion_misses for s in self._session.run_stats().values()),
            **(self._feed.losses(self._session) if self._settings.tcp else {}),
        }

    def _runs(self) -> tuple[ProgramRuns, ...]:
        """The kernel's time in each probe; nothing where it does not keep it (no false zero)."""
        if not self._settings.bpf_stats:
            return ()
        sums: dict[str, tuple[int, int]] = {}
        for (probe, _program), stats in self._session.run_stats().items():
            time_ns, runs = sums.get(probe, (0, 0))
            sums[probe] = (time_ns + stats.run_time_ns, runs + stats.runs)
        return tuple(ProgramRuns(probe, runs, time_ns / 1e9) for probe, (time_ns, runs) in sums.items())

    def _removed(self, ended: Process) -> None:
        self._session.map("procs").delete(process.encode_key(ended.key))

    def _resolve(self, key: ProcessKey) -> ProcessInfo | None:
        """Names a process: what was captured in the kernel, else what /proc still has of it."""
        row = self._session.map("procs").lookup(process.encode_key(key))
        info = None if row is None else _clean(*process.decode(key, row[0]))
        if info is None or not info.args or needs_full_args(info):
            current = self._proc.read_process(key.pid, _FULL_ARGS_BYTES)
            if current and current.key.start_ticks == key.start_ticks:
                if info is None:
                    info = dataclasses.replace(current, key=key)
                elif current.executable == info.executable:
                    info = dataclasses.replace(info, args=current.args)
        if info is None:
            return None
        ports = (
            listening_ports_of(self._settings.proc_root, key.pid)
            if self._network.wants_ports
            else frozenset()
        )
        service = self._network.service_of(info, ports) or service_of(info, self._containers)
        return dataclasses.replace(info, service=service)

    def _named(self, info: ProcessInfo, command_line: bytes | None) -> ProcessInfo:
        """A program with its service; `command_line` is raw, like the names of `info`; None: all is clean."""
        clean = info if command_line is None else _clean(info, command_line)
        named = self._network.service_of(clean)  # but for rules of ports: a program has none
        return dataclasses.replace(clean, service=named or service_of(clean, self._containers))

    def _check_liveness(self, now_s: float) -> None:
        """Once a minute, asks /proc for processes whose end the kernel side could not tell (exec)."""
        if now_s - self._checked_s < _LIVENESS_S:
            return
        self._checked_s = now_s
        alive = [known.key for known in self._traffic.processes.alive()]
        try:
            gone = [key for key in alive if self._proc.start_ticks(key.pid) != key.start_ticks]
        except OSError as error:  # not one of them has ended by that
            log.warning("cannot look which processes are there: %s", error.strerror)
            return
        self._traffic.processes.mark_ended(gone)
