# SPDX-License-Identifier: Apache-2.0
"""Threads that are blocked now: found, named, and on what; what clients are told; off, wrong and full."""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import PROGRAM, ROOT, Agent, environment, refused_agent, running_agent, wait_until
from otlp_latest import gauges, histograms
from tcp_watch import Actor, act, watching

from kernob.probes import syscalls
from kernob.probes.traffic import Loss
from kernob.syscall_table import expand, numbers
from kernob.ui.client import fetch_report

AFTER_S = 0.5
FUTEX_LOCK_PI, PR_SET_NAME = 6, 15
OWN_COMM = Path("/proc/self/comm").read_text(encoding="utf-8").strip()
libc = ctypes.CDLL(None, use_errno=True)
Row = dict[str, Any]


@pytest.fixture(scope="module")
def agent(agents: Path) -> Iterator[Agent]:
    """One agent for all cases."""
    with running_agent(agents / "blocked-calls", blocked_after=AFTER_S) as running:
        yield running


def socket_of(agent: Agent) -> Path:
    """Where it answers."""
    return agent.otlp.parent / "run" / "agent.sock"


@contextlib.contextmanager
def sitting(*functions: Callable[[], Any]) -> Iterator[list[Actor]]:
    """Processes that sit in a call until the end of the test."""
    actors = [act(function) for function in functions]
    try:
        yield actors
    finally:
        for actor in actors:
            actor.kill()
        for actor in actors:
            actor.wait(-signal.SIGKILL)


def blocked(agent: Agent, pid: int, call: str = "") -> Row:
    """What the agent says of the thread of a process that sits in a call (any, or this)."""
    found: list[Row] = []

    def is_there() -> bool:
        rows = fetch_report(socket_of(agent), "blocked", {"pid": str(pid)})["rows"]
        found[:] = [row for row in rows if not call or row["syscall"] == call]
        return bool(found)

    wait_until(is_there, f"process {pid} to be blocked", 60)
    return found[0]


@pytest.mark.lane
def test_a_writer_to_a_full_pipe_is_stuck_on_its_reader(agent: Agent) -> None:
    """Who does not read is named; the gauge has the thread, and ends with it."""
    reader, writer = os.pipe()

    def sleep() -> None:
        os.close(writer)
        signal.pause()

    def fill() -> None:
        os.setsid()  # a process with a terminal would count as waiting
        os.close(reader)
        while True:
            os.write(writer, bytes(65536))

    def counted() -> int:
        found = gauges(agent.otlp, "kernob.syscall.blocked")
        mine = [
            (a, n) for a, n in found if a["kernob.blocked.on"] == "pipe" and a["kernob.syscall"] == "write"
        ]
        return sum(n for a, n in mine if a["kernob.blocked.class"] == "stuck")

    before = counted()
    with sitting(sleep, fill) as (other, stuck):
        row = blocked(agent, stuck.pid)
        assert (row["syscall"], row["on"], row["class"], row["tid"]) == ("write", "pipe", "stuck", stuck.pid)
        # this process has both ends open, too
        assert row["what"] in {
            f"pipe read by {OWN_COMM}[{a}], {OWN_COMM}[{b}]"
            for a, b in ((os.getpid(), other.pid), (other.pid, os.getpid()))
        }
        assert row["for_s"] >= AFTER_S
        assert row["thread"] == OWN_COMM[:15]
        wait_until(lambda: counted() == before + 1, "the gauge to count it", 60)
    wait_until(lambda: counted() == before, "the gauge to forget it", 60)
    os.close(reader)
    os.close(writer)


@pytest.mark.lane
def test_a_reader_of_a_silent_connection_waits_for_its_peer(agent: Agent) -> None:
    """Both ends are named."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        client = socket.create_connection(door.getsockname())
        server, _ = door.accept()
        local, peer = (":".join(map(str, end)) for end in (client.getsockname(), client.getpeername()))
        with sitting(lambda: os.read(client.fileno(), 1)) as (reader,):
            row = blocked(agent, reader.pid)
            assert (row["syscall"], row["on"], row["class"]) == ("read", "socket", "waiting")
            assert row["what"] == f"tcp {local} - {peer}"
        client.close()
        server.close()


@pytest.mark.lane
def test_a_server_in_epoll_wait_is_idle(agent: Agent) -> None:
    """What it watches is said; the C library's own call is the one that is named."""
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            poll = select.epoll()
            poll.register(door.fileno(), select.EPOLLIN)
            poll.poll()

        with sitting(serve) as (server,):
            row = blocked(agent, server.pid)
            assert row["syscall"] in expand("epoll_wait")
            assert (row["on"], row["class"]) == ("epoll", "idle")
            assert row["what"] == f"1 watched: tcp listening on 127.0.0.1:{door.getsockname()[1]}"


@pytest.mark.lane
def test_the_owner_of_a_pi_futex_is_named(agent: Agent) -> None:
    """The kernel keeps the owner in the word; other futexes have none that could be known."""
    word = mmap.mmap(-1, mmap.PAGESIZE)
    address = ctypes.c_void_p(ctypes.addressof(ctypes.c_uint32.from_buffer(word)))
    futex = numbers()["futex"]

    def lock() -> None:
        if libc.syscall(futex, address, FUTEX_LOCK_PI, 0, None, None, 0):
            os._exit(1)
        signal.pause()

    with sitting(lock) as (owner,):
        wait_until(
            lambda: struct.unpack("=I", word[:4])[0] & 0x3FFFFFFF == owner.pid, "the lock to be held", 60
        )
        with sitting(lock) as (waiter,):
            row = blocked(agent, waiter.pid)
            assert (row["syscall"], row["on"], row["class"]) == ("futex", "futex", "stuck")
            assert row["what"] == f"PI futex {address.value:#x} held by thread {owner.pid} ({OWN_COMM})"


@pytest.mark.lane
def test_a_thread_has_its_own_name_and_a_plain_futex_no_owner(agent: Agent) -> None:
    """A worker thread that waits for a lock: idle as far as the kernel can tell, with its thread's name."""

    def work() -> None:
        lock = threading.Lock()
        lock.acquire()

        def wait() -> None:
            libc.prctl(PR_SET_NAME, b"worker-7", 0, 0, 0)
            with lock:
                pass

        threading.Thread(target=wait).start()
        signal.pause()

    with sitting(work) as (process,):
        row = blocked(agent, process.pid, "futex")
        assert (row["thread"], row["on"], row["class"]) == ("worker-7", "futex", "idle")
        assert row["tid"] != row["pid"] == process.pid
        assert row["what"].startswith("futex 0x")
        assert row["what"].endswith(", until it is woken")


def run_client(agent: Agent, *arguments: str) -> tuple[int, str, str]:
    """One command against the agent."""
    done = subprocess.run(
        [*PROGRAM, *arguments],
        cwd=ROOT,
        env=environment(socket=socket_of(agent)) | {"COLUMNS": "140"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_screens_say_what_a_process_does(agent: Agent) -> None:
    """500 reads of a device, then one that waits: both commands, as pages and as JSON, and OTLP."""
    reader, writer = os.pipe()

    def play() -> None:
        zero = os.open("/dev/zero", os.O_RDONLY)
        for _ in range(500):
            os.read(zero, 1)
        os.close(writer)
        os.read(reader, 1)

    with sitting(play) as (actor,):
        blocked(agent, actor.pid)
        code, out, _ = run_client(agent, "syscalls", "--pid", str(actor.pid), "--json")
        assert code == 0
        (row,) = json.loads(out)["rows"]
        assert (row["pid"], row["syscall"], row["count"]) == (actor.pid, "read", 500)
        assert sum(row["buckets"].values()) == 500
        assert 0 < row["p50_s"] <= row["p99_s"] <= row["max_s"]
        code, out, _ = run_client(agent, "syscalls", "--pid", str(actor.pid), "--bars")
        assert code == 0
        assert f"[{actor.pid}] read: 500 calls" in out
        code, out, _ = run_client(agent, "blocked", "--pid", str(actor.pid))
        assert code == 0
        assert f"[{actor.pid}]" in out
        assert f"pipe written by {OWN_COMM}[{os.getpid()}]" in out
        code, out, _ = run_client(agent, "blocked", "--pid", str(actor.pid), "--json")
        assert json.loads(out)["threads"] == {"stuck": 0, "waiting": 1, "idle": 0}
    agent.wait_exports(2)
    found = [h for a, h in histograms(agent.otlp, "kernob.syscall.duration") if a["kernob.syscall"] == "read"]
    assert sum(h.count for h in found) >= 500
    times = {a.get("process.pid"): n for a, n in agent.totals().series("kernob.process.syscall.time")}
    assert actor.pid in times
    os.close(reader)
    os.close(writer)


def test_switched_off_there_is_nothing_of_it(agents: Path) -> None:
    """KERNOB_SYSCALLS=none: no hook, no series; who asks is told why."""
    with running_agent(agents / "off", syscalls="none") as agent:
        agent.wait_exports(2)
        text = agent.otlp.read_text(encoding="utf-8")
        assert "kernob.syscall" not in text
        assert "process.syscall" not in text
        code, out, error = run_client(agent, "syscalls")
        assert (code, out) == (1, "")
        assert error.strip().endswith("no system calls are measured: switched off by KERNOB_SYSCALLS=none")
    assert "syscalls." not in agent.log.read_text(encoding="utf-8")


def test_an_unknown_name_ends_it_before_anything_attaches(agents: Path) -> None:
    """One line with the nearest right name, exit code 2."""
    code, said = refused_agent(agents / "wrong", syscalls="read,futx")
    assert code == 2
    (line,) = said.splitlines()
    assert line.startswith("kernob: KERNOB_SYSCALLS is 'read,futx' (environment): must be ")
    assert line.endswith("did you mean futex?")


def test_calls_beyond_the_map_are_counted_without_their_process(agents: Path) -> None:
    """More processes than histograms: every call is in one place or the other, and the loss says how many."""
    processes, each = 40, 50
    null = os.open("/dev/null", os.O_WRONLY)

    def play() -> None:
        for _ in range(each):
            os.write(null, b"x")

    with watching(agents / "cache", max_syscall_histograms=16, syscalls="write") as watch:
        syscalls.read(watch.session)
        before = watch.losses()[Loss.SYSCALLS_FULL]
        others_before = int(syscalls.read(watch.session).others["count"].sum())
        actors = [act(play) for _ in range(processes)]
        for actor in actors:
            actor.wait()
        rows = syscalls.read(watch.session)
        mine = np.isin(rows.keys["tgid"], [actor.pid for actor in actors])
        by_process = int(rows.values["durations"]["count"][mine].sum())
        others = int(rows.others["count"].sum()) - others_before
        assert watch.losses()[Loss.SYSCALLS_FULL] - before == others
        assert len(rows.keys) <= 16
        assert by_process + others >= processes * each
        assert others > 0
    os.close(null)


def test_calls_of_threads_beyond_the_map_are_counted_as_lost(agents: Path) -> None:
    """More threads at once than KERNOB_MAX_THREADS: each call was measured, or is in the loss."""
    processes, each = 60, 50
    null = os.open("/dev/null", os.O_WRONLY)

    def play() -> None:
        for _ in range(each):
            os.write(null, b"x")
        signal.pause()

    with watching(agents / "cache", max_threads=16, syscalls="write") as watch:
        syscalls.read(watch.session)
        before = watch.losses()[Loss.THREADS_FULL]
        counts: dict[int, int] = {}
        with sitting(*[play] * processes) as actors:
            mine = {actor.pid for actor in actors}

            def is_done() -> bool:
                rows = syscalls.read(watch.session)
                for key, value in zip(rows.keys, rows.values, strict=True):
                    counts[int(key["tgid"])] = counts.get(int(key["tgid"]), 0) + int(
                        value["durations"]["count"]
                    )
                lost = watch.losses()[Loss.THREADS_FULL] - before
                return sum(n for pid, n in counts.items() if pid in mine) + lost >= processes * each

            wait_until(is_done, "all calls to be accounted for", 60)
        assert len(mine & counts.keys()) <= 16
        assert all(counts[pid] <= each for pid in mine & counts.keys())
    os.close(null)


def test_programs_that_are_gone_before_anybody_looks_have_their_service(agent: Agent, tmp_path: Path) -> None:
    """A hundred lives of milliseconds: each write is counted, under the program's name, none under `?`."""
    program = tmp_path / f"brief{os.getpid()}"
    shutil.copy(os.path.realpath("/bin/sh"), program)
    for _ in range(100):
        subprocess.run([str(program), "-c", "echo x >/dev/null; echo y >/dev/null"], check=True)
    agent.wait_exports(2)
    found = {
        (a["kernob.service"], a["kernob.syscall"]): h.count
        for a, h in histograms(agent.otlp, "kernob.syscall.duration")
        if a["process.executable.name"] == program.name
    }
    assert found[program.name, "write"] == 200
    assert {service for service, _ in found} == {program.name}
