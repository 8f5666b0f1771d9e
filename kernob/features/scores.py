# SPDX-License-Identifier: Apache-2.0
"""How well destinations serve the services that use them: facts into windows, windows into scores.

docs/scores.md says what the numbers mean. In: what `features.tcp` read in the same tick. Out: series, and the
reports of `kernob scores` and `kernob score`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernob.config import Settings
from kernob.config_scores import score_rules
from kernob.derive import scores as derive
from kernob.features.feature import Feature, Report, Tick
from kernob.features.score_report import ScoreReport
from kernob.features.tcp import Tcp
from kernob.kernel.session import Session
from kernob.model import Dependency, Dimension, Event, Fate, ScoreRules
from kernob.probes.tcp import TcpRows
from kernob.state.buckets import BUCKETS
from kernob.state.capped import CappedCounters
from kernob.state.dependencies import Dependencies
from kernob.state.destinations import OTHER
from kernob.state.known import Known
from kernob.state.network import NetworkFile
from kernob.state.score_memory import ScoreMemory
from kernob.state.score_series import (
    DESTINATION_SCORE,
    FAILING_NOW,
    LAST_FAILURE,
    SAMPLES,
    SCORE,
    SCORED,
    WAIT_TIMEOUTS,
    SeriesTable,
    absent,
)
from kernob.state.score_windows import Column, Sums, Timed
from kernob.state.series import SeriesStore
from kernob.state.store import Store

_BASELINE_TURNS = 6
"""Baselines move within hours: each tick looks at a sixth of them."""


class Scores(Feature):
    """One for the life of the agent; does nothing where switched off."""

    def __init__(
        self,
        settings: Settings,
        store: SeriesStore,
        known: Known,
        tcp: Tcp,
        kept: Store | None = None,
        network: NetworkFile | None = None,
    ) -> None:
        """`kept` outlives a restart; `network` may name destinations that keep silent by design."""
        self._on = settings.scores and settings.tcp
        self.rules: ScoreRules = score_rules(settings)
        self._known = known
        self._tcp = tcp
        silent = (network or NetworkFile()).is_long_poll
        self.dependencies = Dependencies(
            self.rules, settings.max_scores, known, lambda there: silent(there.peer, there.name, there.port)
        )
        self._objectives = {host.lower(): seconds for host, seconds in self.rules.objectives}
        self._before_s: float | None = None
        self._scored_s = 0.0
        self._pause_s = 0.9 * min(1.0, settings.scrape_interval_s)
        self._turn = 0
        self.table = absent(0, len(SCORED))
        self.recent_s = absent(0, len(Timed))
        self.usual_s = absent(0, len(Timed))
        self.sums = self.dependencies.windows.sums(0)
        self._scores = SeriesTable(store.block(SCORE), len(SCORED))
        self._hosts = SeriesTable(store.block(DESTINATION_SCORE), len(SCORED))
        self._samples = SeriesTable(store.block(SAMPLES), len(Dimension))
        self._failing = SeriesTable(store.block(FAILING_NOW), 1)
        self._failed = SeriesTable(store.block(LAST_FAILURE), 1)
        self._waits = CappedCounters(store.block(WAIT_TIMEOUTS), settings.max_scores)
        self._memory = ScoreMemory(settings.state_dir, kept if self._on else None, self.dependencies)
        self._report = ScoreReport(self)

    def open(self, session: Session) -> None:
        """The first interval begins."""
        self._before_s = time.monotonic()
        self._memory.restore(self._before_s, time.time_ns())

    def saw(self, events: Iterable[Event]) -> None:
        """Takes the exact times of failures from their events."""
        if not self._on:
            return
        for event in events:
            row = self.dependencies.row(Dependency(event.service, event.address, event.port))
            if row is not None and event.kind in _FAILURES:
                times = self.dependencies.failed_unix_ns
                times[row] = max(int(times[row]), event.time_unix_ns)

    def tick(self, tick: Tick) -> None:
        """Folds what happened since the tick before into windows, and scores them."""
        if not self._on or self._tcp.read is None:
            return
        dependencies = self.dependencies
        dependencies.windows.advance(tick.now_s)
        # what happened since the tick before did so about the middle
        at_s = tick.now_s if self._before_s is None else (self._before_s + tick.now_s) / 2
        self._before_s = tick.now_s
        self._fold(tick, self._tcp.read, at_s)
        slow_s = absent(len(dependencies.host_of), 1)[:, 0]
        slow_s[: len(self.recent_s)] = self.recent_s[:, Timed.RESPONSE]
        dependencies.look(tick.rows.live, self._known.flows.live, tick.now_s, slow_s)
        if tick.now_s - self._scored_s >= self._pause_s:
            self._scored_s = tick.now_s
            self._evaluate(len(dependencies))
            self._export(tick.since_unix_ns)
            self._memory.keep(tick.now_s, tick.now_unix_ns)

    def close(self) -> None:
        """Hands over what the next life goes on with."""
        if self._before_s is not None:
            self._memory.keep(self._before_s, time.time_ns(), at_once=True)

    def _fold(self, tick: Tick, read: TcpRows, at_s: float) -> None:
        dependencies = self.dependencies
        dependencies.grow(tick.growth, at_s)
        dependencies.count(read.fates, read.counts, at_s, tick.now_unix_ns)
        dependencies.time(read.durations, read.histograms, at_s)
        waits = (read.fates["kind"] == Fate.WAIT) & (read.fates["flow"]["tgid"] != 0)
        flows, counts = self._known.find(read.fates["flow"][waits]), read.counts[waits]
        counted = ~dependencies.is_long_poll[dependencies.of_flows(flows)]
        for flow, count in zip(flows[counted].tolist(), counts[counted].tolist(), strict=True):
            process, there = self._known.owner(flow), self._known.destination(flow)
            service = ("kernob.service", process.service)
            executable = ("process.executable.name", process.executable)
            slot = self._waits.slot(
                (service, there.where[0], executable),
                (service, ("server.address", OTHER), executable),
                tick.since_unix_ns,
            )
            self._waits.add(np.array([slot]), np.array([count]))
            self._waits.rest((slot,), tick.now_s)
        self._waits.sweep(tick.now_s)

    def _evaluate(self, rows: int) -> None:
        """Scores as of now: `table`, and what it was made of."""
        windows = self.dependencies.windows
        self.sums = with_pending(windows.sums(rows), self.dependencies.pending[:rows])
        histograms = windows.recent(slice(0, rows)).reshape(-1, BUCKETS)
        self.recent_s = derive.quantile(histograms).reshape(rows, len(Timed))
        self._find_baselines(rows)
        # what an earlier life may have counted, before the user said that it is by design
        silenced = self.dependencies.is_long_poll[:rows]
        self.sums.raw[silenced, Column.WAITED] = 0
        self.table = self._scored(self.sums, self.recent_s, self.usual_s)

    def _scored(
        self, sums: Sums, recent_s: NDArray[np.float64], usual_s: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        latencies = derive.latency_scores(recent_s, sums.timed, usual_s, self.rules)
        each = derive.scores(sums, self.rules, latencies)
        return np.column_stack([each, derive.composite(each, self.rules)])

    def _rows_of(self, hosts: Iterable[str]) -> list[int]:
        wanted = set(hosts)
        if not wanted:
            return []
        return [row for name, row in self.dependencies.items() if name.address.lower() in wanted]

    def _find_baselines(self, rows: int) -> None:
        """What is usual: of a sixth of the rows, and of those that are new."""
        before = len(self.usual_s)
        if rows > before:
            self.usual_s = np.concatenate([self.usual_s, absent(rows - before, len(Timed))])
        size = -(-rows // _BASELINE_TURNS)
        self._turn = (self._turn + 1) % _BASELINE_TURNS
        first = self._turn * size
        for part in (slice(first, min(first + size, rows)), slice(before, rows)):
            self.usual_s[part] = self.baselines(self.dependencies.windows.usual(part))
        for row in self._rows_of(self._objectives):
            name = self.dependencies.name(row)
            self.usual_s[row] = self._objectives[name.address.lower()] if name else np.nan

    def baselines(self, histograms: NDArray[np.float32]) -> NDArray[np.float64]:
        """Quantiles of slow histograms (rows by Timed by bucket), NaN where they hold too little."""
        flat = histograms.reshape(-1, BUCKETS)
        # decay takes a little off each sample at once
        enough = flat.sum(axis=1) > self.rules.baseline_min - 0.5
        return np.where(enough, derive.quantile(flat), np.nan).reshape(-1, len(Timed))

    def _export(self, since_unix_ns: int) -> None:
        dependencies = self.dependencies
        rows = len(dependencies)
        names = dependencies.names()
        self._scores.set(names, self.table, lambda r, c: (*where(names[r]), dimension(c)), since_unix_ns)
        counted = derive.samples(self.sums).astype(np.float64)
        counted[counted == 0] = np.nan
        reasons = [""] * rows
        for row, mine in dependencies.windows.blamed().items():
            reasons[row] = commonest(mine)
        sources = dependencies.sources
        self._samples.set(
            dependencies.labels(),
            counted,
            lambda r, c: (*where(names[r]), dimension(c), *error_type(reasons[r], c), *source(sources[r])),
            since_unix_ns,
            reasons,
        )
        failing = dependencies.failing_now[:rows].astype(np.float64)
        calm = self.sums.raw[:, Column.FAILED] == 0
        failing[(failing == 0) & calm] = np.nan
        self._failing.set(names, failing[:, None], lambda r, _c: where(names[r]), since_unix_ns)
        failed = dependencies.failed_unix_ns[:rows] / 1e9
        failed[[not reason for reason in reasons]] = np.nan
        self._failed.set(names, failed[:, None], lambda r, _c: where(names[r]), since_unix_ns)
        self._export_hosts(since_unix_ns)

    def host_table(self) -> tuple[list[str], NDArray[np.float64]]:
        """Addresses, and their scores over all services and ports."""
        hosts = self.dependencies.hosts()
        table = absent(len(hosts), len(SCORED))
        everyone = [row for _name, row in self.dependencies.items() if row < len(self.table)]
        owners = self.dependencies.host_of[everyone]
        # most destinations serve one service on one port: their score is that one's
        shared = np.bincount(owners, minlength=len(hosts))[owners] > 1
        every = np.array(everyone, np.int64)
        table[owners[~shared]] = self.table[every[~shared]]
        if shared.any():
            table[np.unique(owners[shared])] = self._of_shared(every[shared], owners[shared], list(hosts))
        return list(hosts), table

    def _of_shared(
        self, rows: NDArray[np.int64], owners: NDArray[np.int64], names: list[str]
    ) -> NDArray[np.float64]:
        """Scores of destinations that stand for several rows, in the order of their numbers."""
        numbers, mine = np.unique(owners, return_inverse=True)
        hosts = [names[number] for number in numbers.tolist()]
        summed = Sums(*(_by_group(part[rows], mine, len(hosts)) for part in _parts(self.sums)))
        windows = self.dependencies.windows
        everything = slice(0, len(self.dependencies))
        recent = _by_group(windows.recent(everything)[rows], mine, len(hosts))
        usual = _by_group(windows.usual(everything)[rows], mine, len(hosts))
        recent_s = derive.quantile(recent.reshape(-1, BUCKETS)).reshape(-1, len(Timed))
        usual_s = self.baselines(usual)
        for index, host in enumerate(hosts):
            if host.lower() in self._objectives:
                usual_s[index] = self._objectives[host.lower()]
        return self._scored(summed, recent_s, usual_s)

    def _export_hosts(self, since_unix_ns: int) -> None:
        hosts, table = self.host_table()
        self._hosts.set(
            hosts, table, lambda r, c: (("server.address", hosts[r]), dimension(c)), since_unix_ns
        )

    def score(self, service: str, address: str, port: int) -> dict[str, float]:
        """The score of a dependency by dimension, composite included; without those it does not have."""
        row = self.dependencies.row(Dependency(service, address, port))
        if row is None or row >= len(self.table):
            return {}
        pairs = zip(SCORED, self.table[row].tolist(), strict=True)
        return {name: value for name, value in pairs if value == value}  # noqa: PLR0124  NaN is none

    def composites(self) -> dict[Dependency, float]:
        """The composite score of every dependency that has one, for screens."""
        composites = self.table[:, -1].tolist()
        known = ((name, composites[row]) for name, row in self.dependencies.items() if row < len(composites))
        return {name: value for name, value in known if value == value}  # noqa: PLR0124

    def reports(self) -> dict[str, Report]:
        """What `kernob scores` and `kernob score` ask."""
        return {"scores": self._report.table, "score": self._report.explain}

    def has_objective(self, address: str) -> bool:
        """Whether the user said what is usual there."""
        return address.lower() in self._objectives

    @property
    def on(self) -> bool:
        """Whether anything is scored."""
        return self._on

    @property
    def folded(self) -> int:
        """How often a dependency was not scored for the cap (cumulative)."""
        return self.dependencies.folded + self._waits.folded


_FAILURES = frozenset({"kernob.tcp.connect_failed", "kernob.tcp.drop"})


def with_pending(sums: Sums, pending: NDArray[np.int64]) -> Sums:
    """Counts what fails but has not ended: as samples of this moment."""
    weighted, raw = sums.weighted, sums.raw
    for kind, columns in ((0, (Column.ATTEMPTS, Column.FAILED)), (1, (Column.WAITED, Column.SILENT))):
        for column in columns:
            weighted[:, column] += pending[:, kind]
            raw[:, column] += pending[:, kind]
    return Sums(weighted, raw, sums.timed)


def _parts(sums: Sums) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    return sums.weighted, sums.raw, sums.timed


def _by_group(rows: NDArray[Any], groups: NDArray[np.int64], count: int) -> NDArray[Any]:
    """Sums of the rows of each group."""
    order = np.argsort(groups, kind="stable")
    numbers, firsts = np.unique(groups[order], return_index=True)
    found = np.zeros((count, *rows.shape[1:]), rows.dtype)
    found[numbers] = np.add.reduceat(rows[order], firsts, axis=0)
    return found


def where(name: Dependency | None) -> tuple[tuple[str, str | int], ...]:
    """What names a dependency on its series."""
    if name is None:
        return ()
    return (("kernob.service", name.service), ("server.address", name.address), ("server.port", name.port))


def dimension(column: int) -> tuple[str, str]:
    """The attribute that says which."""
    return ("kernob.score.dimension", SCORED[column])


def source(known: str) -> tuple[tuple[str, str], ...]:
    """The attribute that says how the address' name became known."""
    return (("kernob.name.source", known),) if known else ()


def commonest(reasons: Mapping[str, int]) -> str:
    """The commonest reason; "" where there is none. Of two as common, the first by name."""
    return min(reasons, key=lambda reason: (-reasons[reason], reason), default="")


def error_type(reason: str, column: int) -> tuple[tuple[str, str], ...]:
    """The attribute that says why, on the dimension that it brought down."""
    return (("error.type", reason),) if reason and derive.dimension_of(reason) == column else ()
