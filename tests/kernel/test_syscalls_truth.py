# SPDX-License-Identifier: Apache-2.0
"""Durations of system calls against the clock of who makes them: counts exact, sums within 1 %.

Each case is a forked process that makes the calls itself, one by one, and keeps a ledger in shared memory
(so that keeping it makes no call).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import select
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import SCALE, scaled
from tcp_watch import act, in_call, watching

from kernob.kernel.session import Session
from kernob.model import ProbeState
from kernob.probes import syscalls
from kernob.syscall_table import expand, names, numbers

WAYS = {"tracepoint": "", "tp_btf": "tracepoint", "raw_tp": "tracepoint,tp_btf"}
HELD_S = 0.18
FLOOR, DISK_FLOOR = (0.99, 0.95) if SCALE == 1 else (0.0, 0.0)
"""Part of what the caller saw that must be there: an emulated processor may stand still before a call."""
EPOLL = expand("epoll_wait")
FUTEX_WAIT, FUTEX_WAKE = 0, 1
CLONE3 = 435
SLOTS = 32_768  # THREAD_SLOTS of bpf/types.h
_PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)


def fork() -> int:
    """The call alone: from Python 3.12 on os.fork reads /proc/self/stat, which counts as well."""
    return int(libc.fork())


class Ledger:
    """Calls and their time by name, where a parent can read it after its child's end."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _PAGE)

    def keep(self, done: dict[str, tuple[int, int]]) -> None:
        """Write down {call: (how many, ns)}."""
        text = json.dumps(done).encode()
        self._memory[: len(text)] = text

    def read(self) -> dict[str, tuple[int, int]]:
        """What the child wrote."""
        return {k: (v[0], v[1]) for k, v in json.loads(self._memory[:].rstrip(b"\0")).items()}


class Clock:
    """Counts and times calls."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.ns: Counter[str] = Counter()

    def time(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Make one call."""
        begin = time.perf_counter_ns()
        result = call(*arguments)
        self.ns[name] += time.perf_counter_ns() - begin
        self.done[name] += 1
        return result

    def entries(self) -> dict[str, tuple[int, int]]:
        """For the ledger."""
        return {name: (count, self.ns[name]) for name, count in self.done.items()}


@pytest.fixture(
    scope="module",
    params=[pytest.param(way, marks=pytest.mark.lane if not off else ()) for way, off in WAYS.items()],
)
def way(request: pytest.FixtureRequest) -> str:
    """One strategy after the other; in the emulated kernels the one that is chosen there."""
    return str(request.param)


@pytest.fixture(scope="module")
def session(way: str, agents: Path) -> Iterator[Session]:
    """All programs attached, system calls in the way of this round."""
    with watching(agents / "cache", strategies_off=WAYS[way]) as watch:
        (report,) = (r for r in watch.session.reports if (r.probe, r.hook) == ("syscalls", "calls"))
        if report.state is not ProbeState.ATTACHED or not report.strategy.startswith(way):
            pytest.skip(f"missing feature: {way} for system calls")
        yield watch.session


def measured(session: Session, *pids: int) -> dict[str, tuple[int, int]]:
    """Calls and ns by name of these processes since the last reading; buckets must add up."""
    rows = syscalls.read(session)
    found: dict[str, tuple[int, int]] = {}
    for key, value in zip(rows.keys, rows.values, strict=True):
        if int(key["tgid"]) in pids:
            histogram, name = value["durations"], names()[int(key["number"])]
            assert int(histogram["buckets"].sum()) == int(histogram["count"])
            assert value["comm"].tobytes().partition(b"\0")[0] == Path("/proc/self/comm").read_bytes().strip()
            count, ns = found.get(name, (0, 0))
            found[name] = (count + int(histogram["count"]), ns + int(histogram["sum_ns"]))
    return found


def come_first() -> None:
    """Lets nothing run between a look at the clock and the call: on a busy machine that is more than 1 %."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:  # real-time groups of control groups v1
        os.setpriority(os.PRIO_PROCESS, 0, -20)


def played(session: Session, play: Callable[[Clock], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A process that makes calls: its own figures, and what the kernel side measured of it."""
    ledger = Ledger()

    def child() -> None:
        come_first()
        clock = Clock()
        play(clock)
        ledger.keep(clock.entries())

    actor = act(child)
    actor.wait()
    return ledger.read(), measured(session, actor.pid)


def within_a_percent(truth: dict[str, Any], found: dict[str, Any]) -> None:
    """Counts equal; sums differ by at most 1 %, and are not larger than what the caller saw."""
    assert {name: count for name, (count, _) in found.items()} == {n: c for n, (c, _) in truth.items()}
    for name, (_, ns) in truth.items():
        assert FLOOR * ns <= found[name][1] <= ns, (name, truth, found)
        assert found[name][1] > 0


def test_slow_reads_of_a_pipe_are_counted_and_timed(session: Session) -> None:
    """A reader that waits 20 ms each time: as many reads as it made, as long as it saw."""
    rounds = scaled(20, 5)

    def play(clock: Clock) -> None:
        reader, writer = os.pipe()
        if not fork():
            for _ in range(rounds):
                time.sleep(0.02)
                os.write(writer, b"x")
            os._exit(0)
        for _ in range(rounds):
            clock.time("read", os.read, reader, 1)
        os.wait()

    within_a_percent(*played(session, play))


def test_writes_are_counted_one_by_one(session: Session) -> None:
    """100,000 fast calls: not one too few."""
    count = scaled(100_000, 2000)

    def play(clock: Clock) -> None:
        null = os.open("/dev/null", os.O_WRONLY)
        for _ in range(count):
            os.write(null, b"x")
        clock.done["write"] = count

    truth, found = played(session, play)
    assert {name: n for name, (n, _) in found.items()} == {"write": count}
    assert truth["write"][0] == count


def test_a_lock_that_is_held_for_180_ms(session: Session) -> None:
    """A process that sleeps on a futex until another lets go sees 180 ms in futex, and so do we."""
    word = mmap.mmap(-1, _PAGE)
    address = ctypes.addressof(ctypes.c_uint32.from_buffer(word))
    futex = numbers()["futex"]

    def play(clock: Clock) -> None:
        word[:4] = struct.pack("=I", 1)
        if not fork():
            while not in_call(os.getppid(), "futex"):
                time.sleep(0.001)
            time.sleep(HELD_S)
            word[:4] = struct.pack("=I", 0)
            libc.syscall(futex, ctypes.c_void_p(address), FUTEX_WAKE, 1, None, None, 0)
            os._exit(0)
        while struct.unpack("=I", word[:4])[0]:
            clock.time("futex", libc.syscall, futex, ctypes.c_void_p(address), FUTEX_WAIT, 1, None, None, 0)
        os.wait()

    truth, found = played(session, play)
    within_a_percent(truth, found)
    assert found["futex"][1] >= HELD_S * 1e9


def test_timeouts_of_epoll_wait(session: Session) -> None:
    """Waits that run their full timeout, under the name of the call that the C library made."""
    rounds = scaled(10, 3)

    def play(clock: Clock) -> None:
        poll = select.epoll()
        for _ in range(rounds):
            clock.time("epoll", poll.poll, 0.03)

    truth, found = played(session, play)
    (name,) = found
    assert name in EPOLL
    within_a_percent({name: truth["epoll"]}, found)
    assert found[name][1] >= rounds * 0.03e9


def test_synchronous_writes(session: Session, tmp_path: Path) -> None:
    """A writer to O_SYNC sees in write() what the disk takes."""
    rounds = scaled(20, 5)

    def play(clock: Clock) -> None:
        file = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT | os.O_SYNC)
        for _ in range(rounds):
            clock.time("write", os.write, file, bytes(65536))

    truth, found = played(session, play)
    assert found["write"][0] == truth["write"][0]
    assert DISK_FLOOR * truth["write"][1] <= found["write"][1] <= truth["write"][1]
    assert found["write"][1] > 0


def test_a_call_that_is_older_than_the_agent_is_not_guessed(way: str, agents: Path) -> None:
    """A read that was under way when the programs came has no duration; the next has."""
    go_in, go_out = os.pipe()

    def reader() -> None:
        os.read(go_in, 1)
        os.read(go_in, 1)

    actor = act(reader)
    deadline = time.monotonic() + 30
    while not in_call(actor.pid, "read"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with watching(agents / "cache", strategies_off=WAYS[way]) as watch:
        os.write(go_out, b"xx")
        actor.wait()
        assert measured(watch.session, actor.pid).get("read", (0, 0))[0] == 1
    os.close(go_in)
    os.close(go_out)


def test_threads_in_a_call_are_seen_and_forgotten_at_their_end(session: Session) -> None:
    """While a process sits in read() it is found there; after a kill nothing of it is left."""
    begin = time.monotonic_ns()
    reader, _writer = os.pipe()
    actor = act(os.read, reader, 1)
    deadline = time.monotonic() + 30
    while True:
        _ids, found, _count = syscalls.blocked(session, time.monotonic_ns())
        mine = found[found["key"]["tgid"] == actor.pid]
        if len(mine) and names()[int(mine[0]["key"]["number"])] == "read":
            break
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert begin <= int(mine[0]["entered_ns"]) <= time.monotonic_ns()
    actor.kill()
    actor.wait(-signal.SIGKILL)
    assert not known_threads(session, actor.pid)


def known_threads(session: Session, tid: int) -> list[str]:
    """The maps that have this thread."""
    return [name for name in syscalls.THREAD_MAPS if tid in session.map(name).read()[1]["tid"].tolist()]


@contextlib.contextmanager
def many_pids() -> Iterator[None]:
    """Process ids beyond the usual 32,768."""
    setting = Path("/proc/sys/kernel/pid_max")
    before = setting.read_text()
    setting.write_text(str(max(int(before), 4 * SLOTS)))
    try:
        yield
    finally:
        setting.write_text(before)


def fork_as(pid: int) -> int:
    """fork(2) with a process id of one's choice; as that returns."""
    wanted = (ctypes.c_int * 1)(pid)
    # struct clone_args: only exit_signal, set_tid and set_tid_size are not 0
    arguments = (ctypes.c_uint64 * 11)(0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1, 0)
    return int(libc.syscall(CLONE3, arguments, ctypes.sizeof(arguments)))


def test_threads_that_want_one_slot_are_told_apart(session: Session) -> None:
    """Processes whose ids differ by the number of slots, at once: each has its own calls, none is left."""
    rounds = scaled(2_000, 200)
    go_in, go_out = os.pipe()
    with many_pids():
        pids: list[int] = []
        for i in range(3):
            child = fork_as(pids[0] + i * SLOTS) if pids else os.fork()
            if not child:
                null = os.open("/dev/null", os.O_WRONLY)
                for _ in range((i + 1) * rounds):
                    os.write(null, b"x")
                os.read(go_in, 1)
                os._exit(0)
            if child < 0:
                pytest.skip("missing feature: clone3 with set_tid")
            pids.append(child)
        deadline = time.monotonic() + 60
        while any("read" not in waits_of(session, pid) for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        kept = sorted(known_threads(session, pid) for pid in pids)  # whoever called first has the slot
        assert kept == [["thread_slots"], ["threads"], ["threads"]]
        os.write(go_out, b"xxx")
        assert {os.waitpid(pid, 0)[1] for pid in pids} == {0}
    rows = syscalls.read(session)
    found = {}
    for key, value in zip(rows.keys, rows.values, strict=True):
        found[int(key["tgid"]), names()[int(key["number"])]] = value
    for i, pid in enumerate(pids):
        assert int(found[pid, "write"]["durations"]["count"]) == (i + 1) * rounds
        assert int(found[pid, "read"]["durations"]["count"]) == 1
        assert not known_threads(session, pid)
    os.close(go_in)
    os.close(go_out)


def waits_of(session: Session, tid: int) -> list[str]:
    """The calls that a thread is in now."""
    _tids, found, _count = syscalls.blocked(session, time.monotonic_ns())
    return [names()[int(each["key"]["number"])] for each in found if int(each["tid"]) == tid]


def test_calls_of_32_bit_code_are_not_taken_for_others(session: Session) -> None:
    """int 0x80 with number 202 is getegid there, not futex."""
    if os.uname().machine != "x86_64":
        pytest.skip("missing feature: int 0x80")
    code = mmap.mmap(-1, _PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    # mov eax, 202; int 0x80; ret
    code[:8] = b"\xb8" + struct.pack("=I", numbers()["futex"]) + b"\xcd\x80\xc3"
    call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))

    def play(clock: Clock) -> None:
        for _ in range(10):
            call()
        clock.done["read"] = 1
        with contextlib.closing(os.fdopen(os.open("/dev/null", os.O_RDONLY), "rb", buffering=0)) as null:
            null.read(1)

    def probe() -> None:
        os._exit(0 if call() == os.getegid() else 1)

    actor = act(probe)
    if os.waitstatus_to_exitcode(os.waitpid(actor.pid, 0)[1]):
        pytest.skip("missing feature: 32-bit calls (CONFIG_IA32_EMULATION)")
    _truth, found = played(session, play)
    assert {name: count for name, (count, _) in found.items()} == {"read": 1}
