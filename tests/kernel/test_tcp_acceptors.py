# SPDX-License-Identifier: Apache-2.0
"""Whose an accepted connection is: of who accepts it, however that comes about, not of who listens."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tcp_watch import ANSWER, ASK, Watch, abort, act, call, listener, read_exactly, serve
from truth import MissingFeatureError
from uring import SQE_ASYNC, Ring, sqe

pytestmark = pytest.mark.lane

_URING_ACCEPT = 13


def test_prefork_workers_are_charged_what_each_accepts(watch: Watch) -> None:
    """One process listens, three accept: the listener gets nothing."""
    door = listener()

    def work(count: int) -> None:
        for _ in range(count):
            serve(door.accept()[0])

    workers = [(act(work, count), count) for count in (3, 5, 7)]
    callers = [act(call, door.getsockname(), 5) for _ in range(3)]
    door.close()
    for actor in (*callers, *(worker for worker, _ in workers)):
        actor.wait()
    for worker, count in workers:
        assert watch.of(worker.pid) == {"server connection ok": count}
    for caller in callers:
        assert watch.of(caller.pid) == {"client connection ok": 5}
    assert watch.of(os.getpid()) == {}


def test_a_connection_accepted_and_never_used(watch: Watch) -> None:
    """It belongs to who accepted it, not to who listens."""
    door = listener()

    def accept() -> None:
        sock, _ = door.accept()
        time.sleep(0.2)
        sock.close()

    def connect() -> None:
        with socket.create_connection(door.getsockname()) as sock:
            assert sock.recv(1) == b""

    actors = [act(accept), act(connect)]
    door.close()
    for actor in actors:
        actor.wait()
    assert watch.of(actors[0].pid) == {"server connection ok": 1}
    assert watch.of(actors[1].pid) == {"client connection ok": 1}
    assert watch.of(os.getpid()) == {}


def test_a_connection_nobody_accepts(watch: Watch) -> None:
    """It belongs to who listens."""

    def listen() -> None:
        door = listener()
        address = door.getsockname()
        child = act(lambda: socket.create_connection(address).close())
        child.wait()
        time.sleep(0.1)

    actor = act(listen)
    actor.wait()
    assert watch.of(actor.pid)["server connection ok"] == 1


@pytest.mark.parametrize("port", [0, 34871], ids=["chosen by the kernel", "named"])
def test_a_port_is_forgotten_with_its_last_listener(watch: Watch, port: int) -> None:
    """Two sockets listen on one port, then one, then none."""
    listeners = watch.session.map("listeners")

    def known() -> list[int]:
        keys, values = listeners.read()
        return [int(v["count"]) for k, v in zip(keys, values, strict=True) if int(k) & 0xFFFF == port]

    first = socket.create_server(("127.0.0.1", port), reuse_port=True)
    port = first.getsockname()[1]
    assert known() == [1]
    second = socket.create_server(("127.0.0.1", port), reuse_port=True)
    assert known() == [2]
    first.close()
    assert known() == [1]
    second.close()
    assert known() == []


def test_a_worker_that_is_handed_the_socket(watch: Watch) -> None:
    """The connection is its acceptor's; what happens to it later is the worker's that used it last."""
    door = listener()
    ours, theirs = socket.socketpair()

    def accept() -> None:
        sock, _ = door.accept()
        socket.send_fds(ours, [b"x"], [sock.fileno()])
        sock.close()
        ours.recv(1)

    def work() -> None:
        _data, (descriptor,), _flags, _address = socket.recv_fds(theirs, 1, 1)
        sock = socket.socket(fileno=descriptor)
        read_exactly(sock, len(ASK))
        sock.sendall(ANSWER)
        time.sleep(0.1)
        abort(sock)
        theirs.send(b"x")

    def connect() -> None:
        with socket.create_connection(door.getsockname()) as sock:
            sock.sendall(ASK)
            read_exactly(sock, len(ANSWER))
            time.sleep(0.4)

    acceptor, worker, client = act(accept), act(work), act(connect)
    for end in (door, ours, theirs):
        end.close()
    for actor in (acceptor, worker, client):
        actor.wait()
    assert watch.of(acceptor.pid) == {"server connection ok": 1}
    assert watch.of(worker.pid) == {"server reset sent": 1}


def test_asyncio_on_both_ends(watch: Watch) -> None:
    """Fifty connections at once in each of two event loops."""
    door = listener()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(ASK))
        writer.write(ANSWER)
        await writer.drain()
        await reader.read(1)
        writer.close()

    async def ask() -> None:
        incoming, writer = await asyncio.open_connection(*door.getsockname())
        writer.write(ASK)
        await incoming.readexactly(len(ANSWER))
        writer.close()
        await writer.wait_closed()

    async def ask_all() -> None:
        await asyncio.gather(*(ask() for _ in range(50)))

    def run_server() -> None:
        async def until_told() -> None:
            server = await asyncio.start_server(answer, sock=door)
            async with server:
                while not done.exists():
                    await asyncio.sleep(0.05)

        asyncio.run(until_told())

    done = Path(f"/tmp/kernob-test-{os.getpid()}-done")
    try:
        actors = [act(run_server), act(lambda: asyncio.run(ask_all()))]
        actors[1].wait()
        time.sleep(0.2)
        done.touch()
        actors[0].wait()
    finally:
        done.unlink(missing_ok=True)
        door.close()
    assert watch.of(actors[0].pid) == {"server connection ok": 50}
    assert watch.of(actors[1].pid) == {"client connection ok": 50}


SERVICE = """
import socket
door = socket.socket(fileno=3)
sock, _ = door.accept()
while len(sock.recv(100, socket.MSG_WAITALL)) < 100: pass
sock.sendall(b"a" * 300)
sock.recv(1)
"""


def test_a_service_that_is_started_by_its_first_connection(watch: Watch) -> None:
    """Socket activation: a manager listens, and runs a program that finds the listener as descriptor 3."""
    door = listener()
    told, tell = os.pipe()

    def manage() -> None:
        select.select([door], [], [])
        os.dup2(door.fileno(), 3)
        service = subprocess.Popen([sys.executable, "-c", SERVICE], pass_fds=(3,))
        os.write(tell, str(service.pid).encode())
        assert service.wait() == 0

    manager, caller = act(manage), act(call, door.getsockname())
    door.close()
    os.close(tell)
    for actor in (caller, manager):
        actor.wait()
    with os.fdopen(told) as stream:
        service = int(stream.read())
    assert watch.of(service) == {"server connection ok": 1}
    assert watch.of(manager.pid) == {}
    assert watch.of(caller.pid) == {"client connection ok": 1}


@pytest.mark.parametrize("flags", [0, SQE_ASYNC], ids=["inline", "worker"])
def test_an_accept_by_io_uring(watch: Watch, flags: int) -> None:
    """By the caller's own thread, or by a worker of the kernel on its behalf."""
    try:
        os.close(Ring().fd)
    except MissingFeatureError as error:
        pytest.skip(f"missing feature: {error}")
    door = listener()

    def accept() -> None:
        descriptor = Ring().do("ACCEPT", sqe(_URING_ACCEPT, door.fileno(), 0, 0, flags=flags))
        serve(socket.socket(fileno=descriptor))

    actors = [act(accept), act(call, door.getsockname())]
    door.close()
    for actor in actors:
        actor.wait()
    assert watch.of(actors[0].pid) == {"server connection ok": 1}
    assert watch.of(actors[1].pid) == {"client connection ok": 1}
    assert watch.of(os.getpid()) == {}
