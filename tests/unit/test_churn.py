# SPDX-License-Identifier: Apache-2.0
"""Weeks of a host on which every minute brings another container: nothing that is kept may grow with them.

The real state classes, over made-up rows; each generation is one process of a service of its own, with a
destination of its own, that fails, ends and never comes back.
"""

from __future__ import annotations

from collections import deque
from typing import Any, cast

import numpy as np
import pytest

from kernob.config import Settings
from kernob.features.feature import Tick
from kernob.features.scores import Scores
from kernob.features.tcp import Tcp
from kernob.kernel.session import Session
from kernob.model import Fate, Outcome, ProcessInfo, ProcessKey, Severity
from kernob.probes import lifecycle, syscalls, tcp, traffic
from kernob.probes.tcp import TcpRows
from kernob.probes.traffic import TrafficRows
from kernob.state import last_times as last_times_module
from kernob.state import lifecycle as lifecycle_module
from kernob.state.blocked import BlockedState
from kernob.state.connections import ConnectionState, TcpCaps
from kernob.state.crash_gauge import CrashGauge
from kernob.state.event_rates import EventRates
from kernob.state.last_times import LastTimes
from kernob.state.lifecycle import LifecycleState, Program, Programs
from kernob.state.series import SeriesStore
from kernob.state.syscalls import SyscallState
from kernob.state.traffic import Caps, TrafficState
from kernob.syscall_table import names
from tests.unit.records import closed, durations, fates, flow_key, live
from tests.unit.score_fixture import AT_NS, FakeTcp
from tests.unit.test_syscalls_state import KEY, NOTHING, READ, VALUE, histogram

CAP = 8
TURN = np.dtype([("image", "u8"), ("kind", "u4"), ("code", "u4")])


def resolve(key: ProcessKey) -> ProcessInfo | None:
    """Process N is the only one of container N."""
    return ProcessInfo(key, f"p{key.pid % 5}", "c", service=f"box{key.pid}")


class Host:
    """What the agent remembers of a host, with a cap of 8 series a metric."""

    def __init__(self) -> None:
        self.store = SeriesStore(60, 10)
        self.traffic = TrafficState(self.store, traffic.SPECS, Caps(CAP, CAP, CAP), resolve)
        known = self.traffic.known
        self.connections = ConnectionState(self.store, tcp.SPECS, TcpCaps(CAP, CAP, CAP), known)
        self.tcp = FakeTcp()
        self.scores = Scores(Settings(max_scores=CAP), self.store, known, cast("Tcp", self.tcp))
        self.programs = Programs(lambda n: Program(f"p{n % 5}", f"box{n}", f"p{n % 5}"))
        specs = (lifecycle.STARTS, lifecycle.EXITS, lifecycle.OOM_KILLS)
        self.lives = LifecycleState(self.store, specs, CAP, self.programs)
        self.calls = SyscallState(
            self.store, (syscalls.DURATION, syscalls.PROCESS_TIME), (CAP, CAP), known.processes, names()
        )
        self.blocked = BlockedState(self.store, CAP)
        self.last_times = LastTimes(self.store)
        self.rates = EventRates(1)
        self.crashes = CrashGauge(self.store.block(lifecycle.CRASH_LOOP))
        self.now_s = 1000.0

    @property
    def unix_ns(self) -> int:
        return AT_NS + round(self.now_s * 1e9)

    def tick(self, number: int = 0, step_s: float = 10.0) -> None:
        """One tick, in which container `number` did everything it ever does; 0: nothing happens."""
        self.now_s += step_s
        now_s, now_ns, since_ns = self.now_s, self.unix_ns, self.unix_ns - 10**9
        peer = f"10.0.{number >> 8}.{number & 255}"
        flows = [flow_key(pid=number, peer=peer)] if number else []
        rows = closed(*((flow, 100, 50) for flow in flows))
        growth = self.traffic.update((*rows, live()), since_ns, now_s)
        facts = [
            (flow, kind, Outcome.REFUSED, 0, 0, 1) for flow in flows for kind in (Fate.CONNECTION, Fate.WAIT)
        ]
        read = TcpRows(*fates(*facts), *durations(*((flow, 0, [10**6]) for flow in flows)))
        found = ((read.fates, read.counts), (read.durations, read.histograms))
        self.connections.update(*found, live(), since_ns)
        self.tcp.read = read
        seen = TrafficRows(*rows, live(), np.zeros(0), live())
        self.scores.tick(Tick(cast("Session", None), seen, growth, now_s, now_ns, since_ns, None))
        turns = np.array([(number, 0, 0), (number, 2, 3 << 8)] if number else [], TURN)
        self.lives.update(turns, np.ones(len(turns), np.int64), since_ns, now_s)
        self.programs.keep([number])
        keys, values = np.zeros(len(flows), KEY), np.zeros(len(flows), VALUE)
        for row in range(len(flows)):
            keys[row] = (number, 7, 1, READ)
            values["durations"][row] = histogram(1_000)
        self.calls.update(keys, values, NOTHING, since_ns, now_s)
        waits = {("p", f"box{number}", "read", "file", "stuck"): 1} if number else {}
        self.blocked.see(waits, since_ns)
        for kind in ("a", "b") if number else ():
            self.last_times.note(f"box{number}", peer, kind, now_ns)
            self.rates.admit(f"box{number}", kind, Severity.INFO, now_ns)
        self.last_times.flush(now_ns)
        self.rates.summaries()
        self.rates.forget(now_ns)
        self.crashes.update([(self.programs.of(number), 5)] if number else [], now_ns)
        self.traffic.known.sweep(now_s, lambda _process: None)
        self.store.acknowledge(self.store.batch(now_ns))

    def live_through(self, first: int, last: int) -> None:
        """So many containers, one after the other; then a calm day."""
        for number in range(first, last):
            self.tick(number)
            self.traffic.processes.mark_ended([ProcessKey(number, 7, 1)])
            self.tick()
        for _ in range(12):
            self.tick(step_s=8_000)


def sizes(of: object) -> dict[str, int]:
    """Lengths of all containers that an object of ours leads to, by where they are."""
    found: dict[str, int] = {}
    seen: set[int] = set()

    def walk(each: Any, path: str) -> None:
        if id(each) in seen:
            return
        seen.add(id(each))
        if isinstance(each, (dict, list, set, deque)):
            found[path] = len(each)
            inside = each.values() if isinstance(each, dict) else each
            for one in list(inside)[:20]:
                walk(one, f"{path}[]")
        elif isinstance(each, np.ndarray):
            found[path] = len(each) if each.ndim else 0
        elif type(each).__module__.startswith(("kernob.", "tests.")):
            slotted = getattr(type(each), "__slots__", ())
            attributes = {**getattr(each, "__dict__", {}), **{s: getattr(each, s, None) for s in slotted}}
            for name, value in attributes.items():
                walk(value, f"{path}.{name}")

    walk(of, "")
    return found


def test_nothing_grows_with_containers_that_came_and_went(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 40 more of them every container of every state class is as long as after the first 40."""
    monkeypatch.setattr(last_times_module, "_LAST_TIMES", CAP)
    monkeypatch.setattr(lifecycle_module, "_PROGRAMS_MOST", CAP)
    host = Host()
    host.live_through(1, 41)
    before = sizes(host)
    host.live_through(41, 81)
    after = sizes(host)
    # tidied later: hosts that are scored at twice the cap, tables of attributes every 1,024 series
    grown = {path: (before.get(path, 0), size) for path, size in after.items() if "._table." not in path}
    assert {path: pair for path, pair in grown.items() if pair[1] > max(pair[0], 2 * CAP + 1)} == {}
    assert len(before) > 150


def test_a_full_cap_has_room_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far more services than a cap admits, over a day: the newest has series of its own, not `~other`."""
    monkeypatch.setattr(last_times_module, "_LAST_TIMES", CAP)
    host = Host()
    host.live_through(1, 41)
    host.tick(41)
    batch = host.store.batch(host.unix_ns, everything=True)
    services: dict[str, set[str]] = {}
    for points in batch.metrics:
        framed, _ = points.take(0, 10**4, 1 << 24)
        services[points.spec.name] = {name for name in ("~other", "box41") if name.encode() in framed}
    counted = {name for name, said in services.items() if "box41" in said}
    assert {"kernob.flow.io", "kernob.tcp.connections", "kernob.process.starts", "kernob.wait.timeouts"} <= (
        counted
    )
    assert [name for name in counted if "~other" in services[name]] == []
