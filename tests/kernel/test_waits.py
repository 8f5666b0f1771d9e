# SPDX-License-Identifier: Apache-2.0
"""Waits that ran out while an answer was due, by each call that can wait: what is silent, and what is not.

Each case is played by processes of its own (tcp_watch.py); what it does not name must not have happened.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import platform
import select
import socket
import struct
import threading
import time
from collections.abc import Callable

import pytest
from harness import scaled
from tcp_watch import ANSWER, ASK, Gate, Watch, act, answer, exchange, in_call, listener, play, read_exactly

OK_CLIENT, OK_SERVER = {"client connection ok": 1}, {"server connection ok": 1}
WAIT_S, LONG_WAIT_S = 0.05, 2.0
Wait = Callable[[socket.socket], None]
LIBC = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
IN = 1


@pytest.fixture(scope="module")
def watch(all_programs: Watch) -> Watch:
    """One session for all cases; it has what they need, or they are skipped."""
    failed = [r for r in all_programs.session.reports if r.probe == "waits" and not r.strategy]
    if failed:
        pytest.skip(f"missing feature: waits {', '.join(r.hook for r in failed)}")
    return all_programs.anew()


def syscall(number: int, *arguments: object) -> None:
    """A system call that must return 0."""
    result = LIBC.syscall(number, *arguments)
    assert result == 0, ctypes.get_errno()


def by_epoll(sock: socket.socket) -> None:
    """epoll_wait."""
    with select.epoll() as poller:
        poller.register(sock, select.EPOLLIN)
        assert poller.poll(WAIT_S) == []


def by_epoll_pwait(sock: socket.socket) -> None:
    """epoll_pwait."""
    with select.epoll() as poller:
        poller.register(sock, select.EPOLLIN)
        events = ctypes.create_string_buffer(12)
        syscall(281 if X86 else 22, poller.fileno(), events, 1, int(WAIT_S * 1000), None, 8)


def by_epoll_pwait2(sock: socket.socket) -> None:
    """epoll_pwait2 (Linux 5.11)."""
    with select.epoll() as poller:
        poller.register(sock, select.EPOLLIN)
        events, timeout = ctypes.create_string_buffer(12), struct.pack("=qq", 0, int(WAIT_S * 1e9))
        syscall(441, poller.fileno(), events, 1, timeout, None, 8)


def by_poll(sock: socket.socket) -> None:
    """poll."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    assert poller.poll(WAIT_S * 1000) == []


def by_ppoll(sock: socket.socket) -> None:
    """ppoll."""
    polled = ctypes.create_string_buffer(struct.pack("=iHH", sock.fileno(), IN, 0), 8)
    timeout = ctypes.create_string_buffer(struct.pack("=qq", 0, int(WAIT_S * 1e9)), 16)
    syscall(271 if X86 else 73, polled, 1, timeout, None, 8)


def by_select(sock: socket.socket) -> None:
    """select, or pselect6, as the library does it."""
    assert select.select([sock], [], [], WAIT_S) == ([], [], [])


def by_pselect(sock: socket.socket) -> None:
    """pselect6."""
    bits = ctypes.create_string_buffer((1 << sock.fileno()).to_bytes(128, "little"), 128)
    timeout = ctypes.create_string_buffer(struct.pack("=qq", 0, int(WAIT_S * 1e9)), 16)
    syscall(270 if X86 else 72, sock.fileno() + 1, bits, None, None, timeout, None)


def by_timeout(sock: socket.socket) -> None:
    """Python's settimeout."""
    sock.settimeout(WAIT_S)
    with pytest.raises(TimeoutError):
        sock.recv(1)
    sock.settimeout(None)


def by_rcvtimeo(sock: socket.socket) -> None:
    """SO_RCVTIMEO."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, int(WAIT_S * 1e6)))
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))


WAITS = [
    by_epoll,
    by_epoll_pwait,
    by_epoll_pwait2,
    by_poll,
    by_ppoll,
    by_select,
    by_pselect,
    by_timeout,
    by_rcvtimeo,
]


def silent_server(sock: socket.socket) -> None:
    """Reads whatever comes, never answers."""
    while sock.recv(10_000):
        pass


@pytest.mark.lane
@pytest.mark.parametrize("wait", WAITS)
def test_an_exchange_that_stays_unanswered_is_silent_once(watch: Watch, wait: Wait) -> None:
    """However many waits ran out on it; each of these is counted."""

    def client(sock: socket.socket) -> None:
        sock.sendall(ASK)
        for _ in range(3):
            wait(sock)

    found, server = play(watch, client, silent_server)
    assert found == {**OK_CLIENT, "client silence": 1, "client wait": 3}
    assert server == OK_SERVER


@pytest.mark.parametrize("wait", WAITS)
def test_a_timer_that_fires_while_the_answer_is_under_way_is_nothing(watch: Watch, wait: Wait) -> None:
    """The answer comes after a wait has run out."""
    waited = Gate()

    def client(sock: socket.socket) -> None:
        for _ in range(3):
            sock.sendall(ASK)
            wait(sock)
            waited.open()
            assert len(read_exactly(sock, len(ANSWER))) == len(ANSWER)

    def server(sock: socket.socket) -> None:
        for _ in range(3):
            assert len(read_exactly(sock, len(ASK))) == len(ASK)
            waited.wait()
            sock.sendall(ANSWER)

    assert play(watch, client, server) == (OK_CLIENT, OK_SERVER)


@pytest.mark.parametrize("wait", WAITS[:-1])  # by_rcvtimeo after an answer: it may have stalled there
def test_waiting_without_a_question_is_nothing(watch: Watch, wait: Wait) -> None:
    """Before the first question, and after the answer: subscribers, pools, event loops with timers."""

    def client(sock: socket.socket) -> None:
        wait(sock)
        exchange(sock)
        wait(sock)

    def server(sock: socket.socket) -> None:
        answer(sock)
        silent_server(sock)

    assert play(watch, client, server) == (OK_CLIENT, OK_SERVER)


@pytest.mark.lane
def test_only_what_is_waited_on_for_input_counts(watch: Watch) -> None:
    """A wait for output, or on another connection, says nothing of this one; looking is not waiting."""

    def client(sock: socket.socket) -> None:
        sock.sendall(ASK)
        other, _peer = socket.socketpair()
        by_select(other)
        by_poll(other)
        poller = select.poll()
        poller.register(sock, select.POLLPRI << 8)
        poller.poll(50)
        for _ in range(20):
            assert select.select([sock], [], [], 0) == ([], [], [])
            assert select.select([sock], [], [], 0.002) == ([], [], [])

    assert play(watch, client, silent_server) == (OK_CLIENT, OK_SERVER)


@pytest.mark.lane
def test_a_question_within_the_wait_is_not_waited_for_from_its_start(watch: Watch) -> None:
    """Another thread asks while this one waits: its wait began before the question, so it is not for it."""

    def client(sock: socket.socket) -> None:
        asked = threading.Event()

        def ask_within() -> None:
            deadline = time.monotonic() + LONG_WAIT_S
            while not in_call(os.getpid(), "select", "pselect6"):
                assert time.monotonic() < deadline
                time.sleep(0.001)
            sock.sendall(ASK)
            asked.set()

        thread = threading.Thread(target=ask_within)
        thread.start()
        assert select.select([sock], [], [], LONG_WAIT_S) == ([], [], [])
        thread.join()
        assert asked.is_set()

    assert play(watch, client, silent_server) == (OK_CLIENT, OK_SERVER)


@pytest.mark.parametrize("small", [b"ack" * 8, b"QUIT\r\n"])
def test_a_small_message_after_answers_may_want_none(watch: Watch, small: bytes) -> None:
    """An acknowledgement, a heartbeat, a farewell."""

    def client(sock: socket.socket) -> None:
        exchange(sock)
        sock.sendall(small)
        by_poll(sock)

    def server(sock: socket.socket) -> None:
        answer(sock)
        silent_server(sock)

    assert play(watch, client, server) == (OK_CLIENT, OK_SERVER)


def test_who_only_ever_sends_waits_for_nothing(watch: Watch) -> None:
    """A log shipper with an event loop: sends for more than a second, is never answered."""

    def client(sock: socket.socket) -> None:
        for _ in range(6):
            sock.sendall(ASK)
            for _ in range(4):
                by_epoll(sock)

    assert play(watch, client, silent_server) == (OK_CLIENT, OK_SERVER)


def poll_many(socks: list[socket.socket]) -> None:
    """One epoll."""
    with select.epoll() as poller:
        for sock in socks:
            poller.register(sock, select.EPOLLIN)
        assert poller.poll(WAIT_S) == []


def select_many(socks: list[socket.socket]) -> None:
    """One set of 1024, with the last of them far behind the others."""
    late = socket.socket(fileno=fcntl.fcntl(socks[-1], fcntl.F_DUPFD, 900))
    with late:
        assert select.select([*socks[:-1], late], [], [], WAIT_S) == ([], [], [])


@pytest.mark.lane
@pytest.mark.parametrize("wait", [poll_many, select_many])
def test_the_right_one_of_many(watch: Watch, wait: Callable[[list[socket.socket]], None]) -> None:
    """40 connections in one wait, each with an answer; one more that never gets any."""
    doors = listener(), listener()
    asked = 40

    def serve() -> None:
        held = []
        for _ in range(asked):
            sock, _ = doors[0].accept()
            answer(sock)
            held.append(sock)
        sock, _ = doors[1].accept()
        silent_server(sock)

    def connect() -> None:
        held = []
        for _ in range(asked):
            held.append(socket.create_connection(doors[0].getsockname()))
            exchange(held[-1])
        held.append(socket.create_connection(doors[1].getsockname()))
        held[-1].sendall(ASK)
        wait(held)

    server, client = act(serve), act(connect)
    client.wait()
    server.wait()
    facts = watch.of(client.pid)
    assert facts == {"client connection ok": asked + 1, "client silence": 1, "client wait": 1}
    for door in doors:
        door.close()


async def ask_with_timers(port: int, count: int) -> int:
    """An event loop with a timer of 50 ms and answers after 300 ms, a hundred connections at a time."""
    answered = 0

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.05)

    async def ask(number: int) -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(number):
            writer.write(ASK)
            await reader.readexactly(len(ANSWER))
            answered += 1
        writer.close()
        await writer.wait_closed()

    ticking = asyncio.create_task(tick())
    await asyncio.gather(*(ask(count // 100) for _ in range(100)))
    ticking.cancel()
    return answered


async def answer_late(door: socket.socket) -> None:
    """Answers each question after 300 ms."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readexactly(len(ASK))
                await asyncio.sleep(0.3)
                writer.write(ANSWER)
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(serve, sock=door)
    await server.serve_forever()


@pytest.mark.lane
def test_timers_of_an_event_loop_are_no_timeouts(watch: Watch) -> None:
    """asyncio, a 50 ms timer, 300 ms answers: 2,000 exchanges, none silent, none dropped."""
    door = listener()
    port = door.getsockname()[1]
    count = scaled(2000, 100) // 100 * 100

    def connect() -> None:
        door.close()
        assert asyncio.run(ask_with_timers(port, count)) == count

    server = act(lambda: asyncio.run(answer_late(door)))
    client = act(connect)
    door.close()
    client.wait()
    server.kill()
    server.wait(-9)
    assert watch.of(client.pid) == {"client connection ok": 100}
