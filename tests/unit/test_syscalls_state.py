# SPDX-License-Identifier: Apache-2.0
"""From histograms of system calls to series: names, caps, ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernob.model import ProcessInfo, ProcessKey
from kernob.probes import syscalls
from kernob.state.blocked import BLOCKED, IDLE, STUCK, WAITING, BlockedState, class_of
from kernob.state.buckets import BUCKETS, bucket_of
from kernob.state.known import Known
from kernob.state.lifecycle import Program
from kernob.state.series import SeriesStore
from kernob.state.syscalls import SyscallState
from kernob.syscall_table import names, numbers
from tests.unit.series_points import points_of
from tests.unit.test_histograms import points_of as histograms_of

KEY = np.dtype([("tgid", "<u4"), ("start", "<u4"), ("exec", "<u2"), ("number", "<u2")])
DURATIONS = np.dtype([("sum_ns", "<u8"), ("count", "<u8"), ("buckets", "<u4", (BUCKETS,))])
VALUE = np.dtype([("durations", DURATIONS), ("image", "<u8"), ("comm", "u1", (16,))])
NOTHING = np.zeros(512, DURATIONS)
AT_NS = 1_700_000_000_000_000_000
READ, FUTEX = numbers()["read"], numbers()["futex"]
TIME = syscalls.PROCESS_TIME.name


class World:
    """A state whose processes are those of `there` (pid -> executable and service)."""

    def __init__(self, caps: tuple[int, int] = (100, 100)) -> None:
        self.there = {1: ("postgres", "postgresql.service"), 2: ("python3", "orders.py")}
        self.store = SeriesStore()
        self.known = Known(self._resolve)
        specs = (syscalls.DURATION, syscalls.PROCESS_TIME)
        self.programs: dict[int, Program] = {}
        processes = self.known.processes
        self.state = SyscallState(self.store, specs, caps, processes, names(), self.programs.get)
        self.now_s = 0.0

    def _resolve(self, key: ProcessKey) -> ProcessInfo | None:
        if key.pid not in self.there:
            return None
        executable, service = self.there[key.pid]
        return ProcessInfo(key=key, executable=executable, comm=executable, service=service)

    def see(
        self,
        *calls: tuple[int, int, tuple[int, ...]],
        comm: bytes = b"x",
        others: NDArray[Any] = NOTHING,
        image: int = 0,
    ) -> None:
        """A reading: (pid, number, durations in ns) of each process and call."""
        keys, values = np.zeros(len(calls), KEY), np.zeros(len(calls), VALUE)
        for row, (pid, number, durations) in enumerate(calls):
            keys[row] = (pid, 5, 0, number)
            values["durations"][row] = histogram(*durations)
            values["image"][row] = image
            values["comm"][row][: len(comm)] = np.frombuffer(comm, "u1")
        self.state.update(keys, values, others, AT_NS, self.now_s)

    def values(self, metric: str) -> dict[tuple[Any, ...], float]:
        """Attributes' values -> the last value, of a metric of numbers; gone ones are left out."""
        found: dict[tuple[Any, ...], float] = {}
        for point in points_of(self.store.batch(AT_NS + 10**10, everything=True), metric):
            said = said_by(point)
            found.pop(said, None)
            if not point.flags:
                found[said] = point.as_double if point.HasField("as_double") else point.as_int
        return found

    def durations(self) -> dict[tuple[Any, ...], tuple[int, float]]:
        """Attributes' values -> (count, sum in s) of the histograms."""
        batch = self.store.batch(AT_NS + 10**10, everything=True)
        points = histograms_of(batch)
        return {said_by(point): (point.count, round(point.sum, 9)) for point in points}


def said_by(point: Any) -> tuple[Any, ...]:
    """The values of a point's attributes, in their order."""
    return tuple(getattr(kv.value, str(kv.value.WhichOneof("value"))) for kv in point.attributes)


def histogram(*durations: int) -> NDArray[Any]:
    value = np.zeros((), DURATIONS)
    for ns in durations:
        value["sum_ns"] += ns
        value["count"] += 1
        value["buckets"][bucket_of(ns)] += 1
    return value


def test_durations_stand_by_executable_and_service_and_time_by_process() -> None:
    """Two processes of one service share a histogram; each has its own time."""
    world = World()
    world.there[3] = world.there[1]
    world.see((1, READ, (1_000_000, 3_000_000)), (3, READ, (2_000_000,)), (2, FUTEX, (180_000_000,)))
    world.see((1, READ, (4_000_000,)))
    assert world.durations() == {
        ("postgres", "postgresql.service", "read"): (4, 0.01),
        ("python3", "orders.py", "futex"): (1, 0.18),
    }
    assert world.values(TIME) == pytest.approx(
        {
            (1, "postgres", "postgresql.service", "read"): 0.008,
            (3, "postgres", "postgresql.service", "read"): 0.002,
            (2, "python3", "orders.py", "futex"): 0.18,
        }
    )


def test_a_process_that_nobody_can_name_any_more_stands_under_its_own_name() -> None:
    """Short lives: the kernel side kept the name, the service is unknown; nothing is kept by PID."""
    world = World()
    world.see((77, READ, (1_000,)), (78, READ, (3_000,)), comm=b"ls\0garbage")
    world.see((79, READ, (5_000,)), comm=b"evil\x1b[31m")
    assert world.durations() == {("ls", "?", "read"): (2, 4e-6), ("evil\ufffd[31m", "?", "read"): (1, 5e-6)}
    assert world.values(TIME) == pytest.approx({("~other", "?", "read"): 9e-6})
    assert len(world.known.processes) == 0
    assert sorted((c.pid, c.executable, c.sum_ns) for c in world.state.calls()) == [
        (0, "evil\ufffd[31m", 5_000),
        (0, "ls", 4_000),
    ]


def test_a_process_that_is_gone_has_the_service_of_its_program() -> None:
    """Short lives: who runs which program the kernel side still knows, by its number."""
    world = World()
    world.programs[7] = Program("bash", "backup.service", "backup.sh")
    world.see((77, READ, (1_000,)), (78, READ, (3_000,)), comm=b"bash", image=7)
    world.see((79, READ, (5_000,)), comm=b"bash", image=8)
    assert world.durations() == {
        ("bash", "backup.service", "read"): (2, 4e-6),
        ("bash", "?", "read"): (1, 5e-6),
    }
    assert world.values(TIME) == pytest.approx(
        {("~other", "backup.service", "read"): 4e-6, ("~other", "?", "read"): 5e-6}
    )


def test_programs_that_came_and_went_are_no_leak() -> None:
    """Beyond a thousand of them, the next sweep forgets their totals on screen; their series stay exact."""
    world = World((5_000, 5_000))
    for number in range(1, 1_200):
        world.programs[number] = Program(f"job{number}", "jobs", "job")
        world.see((77, READ, (1_000,)), image=number)
    world.now_s = 60
    world.see((77, READ, (1_000,)), image=1)
    assert len(list(world.state.calls())) < 10
    world.see((77, READ, (1_000,)), image=1)
    assert world.durations()["job1", "jobs", "read"] == (3, 3e-6)


def test_calls_that_had_no_room_by_process_stand_under_other() -> None:
    """The kernel side's array of them is cumulative; what grew is added."""
    world = World()
    others = NOTHING.copy()
    others[READ] = histogram(1_000_000)
    world.see(others=others)
    others = others.copy()
    others[READ] = histogram(1_000_000, 2_000_000)
    world.see(others=others)
    world.see(others=others)
    assert world.durations() == {("~other", "~other", "read"): (2, 0.003)}
    assert world.values(TIME) == pytest.approx({("~other", "~other", "read"): 0.003})


def test_beyond_the_caps_executables_and_processes_fold() -> None:
    """No call is lost: what is not admitted counts into its service's ~other."""
    world = World(caps=(1, 1))
    world.there[3] = ("psql", "postgresql.service")
    world.see((1, READ, (1_000_000,)), (3, READ, (2_000_000,)))
    assert world.durations() == {
        ("postgres", "postgresql.service", "read"): (1, 0.001),
        ("~other", "postgresql.service", "read"): (1, 0.002),
    }
    assert world.values(TIME)["~other", "postgresql.service", "read"] == pytest.approx(0.002)
    assert world.state.folded == 2


def test_a_process_that_ended_is_forgotten_and_its_executable_stays_for_a_while() -> None:
    """The series of its PID ends with it; that of its executable when nothing was added for 15 minutes."""
    world = World()
    world.see((1, READ, (1_000_000,)))
    (process,) = world.known.processes.alive()
    process.alive = False
    for _ in range(2):
        world.now_s += 40
        world.known.flows.tick += 1
        world.known.sweep(world.now_s, lambda _process: None)
    world.see()
    assert list(world.state.calls()) == []
    world.store.acknowledge(world.store.batch(AT_NS + 1, everything=True))
    assert world.values(TIME) == {}
    assert ("postgres", "postgresql.service", "read") in world.durations()
    world.now_s += 1000
    world.see()
    world.store.acknowledge(world.store.batch(AT_NS + 2, everything=True))
    assert world.durations() == {}


@pytest.mark.parametrize("named", [True, False])
def test_a_late_reading_of_a_forgotten_process_gets_a_series_that_lives(named: bool) -> None:
    """Its old series went with it, between two of our own sweeps: what comes later is not added to that."""
    world = World()
    world.see((1, READ, (1_000_000,)))
    (process,) = world.known.processes.alive()
    process.alive = False
    for _ in range(2):
        world.known.sweep(world.now_s, lambda _process: None)
        world.known.flows.tick += 1
        world.now_s += 31
    assert len(world.known.processes) == 0
    world.now_s = 1.0  # within the time between two sweeps
    world.store.acknowledge(world.store.batch(AT_NS + 1, everything=True))
    world.store.acknowledge(world.store.batch(AT_NS + 2, everything=True))
    if not named:
        del world.there[1]
    for _ in range(2):
        world.see((1, READ, (2_000_000,)), comm=b"postgres")
    who = (1, "postgres", "postgresql.service") if named else ("~other", "?")
    assert world.values(TIME) == pytest.approx({(*who, "read"): 0.004})


def test_blocked_counts_appear_change_and_end() -> None:
    """A gauge exists while there are such threads, and says so when it ends."""
    store = SeriesStore()
    state = BlockedState(store, 10)
    sort = ("cat", "cat", "write", "pipe", STUCK)
    world = World()
    world.store = store
    state.see({sort: 3}, AT_NS)
    assert world.values(BLOCKED.name) == {sort: 3}
    state.see({sort: 1}, AT_NS)
    assert world.values(BLOCKED.name) == {sort: 1}
    state.see({}, AT_NS)
    assert world.values(BLOCKED.name) == {}


@pytest.mark.parametrize(
    ("call", "on", "state", "arguments", "expected"),
    [
        ("write", "pipe", "S", (), STUCK),
        ("write", "socket", "S", (), STUCK),
        ("fsync", "file", "S", (), STUCK),
        ("connect", "socket", "S", (), STUCK),
        ("read", "file", "S", (), STUCK),
        ("read", "unknown", "S", (), STUCK),
        ("read", "socket", "S", (), WAITING),
        ("recvfrom", "socket", "S", (), WAITING),
        ("read", "pipe", "S", (), WAITING),
        ("read", "pipe", "D", (), STUCK),
        ("read", "terminal", "S", (), IDLE),
        ("read", "timerfd", "S", (), IDLE),
        ("epoll_wait", "epoll", "S", (), IDLE),
        ("futex", "futex", "S", (0x7F00, 0x80, 2), IDLE),
        ("futex", "futex", "S", (0x7F00, 0x86, 0), STUCK),
        ("futex", "futex", "S", (), IDLE),
    ],
)
def test_what_a_wait_means(call: str, on: str, state: str, arguments: tuple[int, ...], expected: str) -> None:
    """Pools and servers wait all day: only what is asked of the machine itself is stuck."""
    assert class_of(call, on, state, arguments) == expected


def test_somebody_who_left_a_pager_open_is_no_alarm() -> None:
    """A write to a pipe by a process with a terminal waits for a person; its disk can be stuck."""
    assert class_of("write", "pipe", "S", (), interactive=True) == WAITING
    assert class_of("write", "file", "S", (), interactive=True) == STUCK
    assert class_of("write", "pipe", "D", (), interactive=True) == STUCK
