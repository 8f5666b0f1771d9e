# SPDX-License-Identifier: Apache-2.0
"""Processes that share sockets or pass them on, and threads that outlive their leader.

Every scenario returns the ledgers of its processes; `scenarios.py` runs each in a process of its own.
Processes wait for each other by pipes, never by time, unless a comment says why.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import linux
from children import Child, Gate, Result
from truth import End, Ledger, client_end, listener, server_end

SYS_EXIT = 60 if os.uname().machine == "x86_64" else 93


def two_processes(notes: dict[str, Any]) -> Result:
    """A client and a server: both figures of both."""
    listening = listener()

    def serve(ledger: Ledger) -> None:
        end = server_end(listening.accept()[0], ledger)
        end.drain(10_007)
        end.send(20_011)

    def ask(ledger: Ledger) -> None:
        end = client_end(socket.create_connection(listening.getsockname()), ledger)
        end.send(10_007)
        end.drain(20_011)

    children = [Child(serve), Child(ask)]
    return [child.result() for child in children]


def brief_processes(notes: dict[str, Any]) -> Result:
    """Thirty processes that each connect, send, read and are gone, faster than any scrape."""
    listening = listener()

    def serve(ledger: Ledger) -> None:
        for index in range(30):
            end = server_end(listening.accept()[0], ledger)
            end.drain(1_000)
            end.send(index + 1)
            end.close()

    def ask(size: int) -> Callable[[Ledger], None]:
        def work(ledger: Ledger) -> None:
            end = client_end(socket.create_connection(listening.getsockname()), ledger)
            end.send(1_000)
            end.drain(size)

        return work

    server = Child(serve)
    clients = [Child(ask(index + 1)).result() for index in range(30)]
    return [server.result(), *clients]


def shared_socket(notes: dict[str, Any]) -> Result:
    """One connection, a parent and four children that all send and receive on it."""
    listening = listener()

    def serve(ledger: Ledger) -> None:
        end = server_end(listening.accept()[0], ledger)
        end.drain(sum((10, 201, 202, 203, 204, 7)))
        end.send(4 * 50 + 3)

    server = Child(serve)
    ledger = Ledger()
    end = client_end(socket.create_connection(listening.getsockname()), ledger)
    end.send(10)

    def talk(size: int) -> Callable[[Ledger], None]:
        def work(own: Ledger) -> None:
            mine = End(end.sock, own, end.role, end.address, end.port)
            mine.send(size)
            mine.drain(50)

        return work

    children = [Child(talk(200 + number)) for number in (1, 2, 3, 4)]
    end.send(7)
    results = [child.result() for child in children]
    end.drain(3)
    return [server.result(), *results, ledger.as_dict()]


def passed_descriptor(notes: dict[str, Any]) -> Result:
    """An acceptor reads the start, passes the connection (SCM_RIGHTS), a worker does the rest."""
    listening = listener()
    left, right = socket.socketpair()

    def accept(ledger: Ledger) -> None:
        for first in (100, 0):
            end = server_end(listening.accept()[0], ledger)
            end.drain(first)
            socket.send_fds(left, [b"!"], [end.sock.fileno()])
            end.close()

    def work(ledger: Ledger) -> None:
        for first in (100, 0):
            _, fds, _, _ = socket.recv_fds(right, 1, 1)
            end = server_end(socket.socket(fileno=fds[0]), ledger)
            end.drain(5_000 - first)
            end.send(321)
            end.close()

    def ask(ledger: Ledger) -> None:
        for _ in range(2):
            end = client_end(socket.create_connection(listening.getsockname()), ledger)
            end.send(5_000)
            end.drain(321)
            end.close()

    children = [Child(accept), Child(work), Child(ask)]
    return [child.result() for child in children]


def prefork_server(notes: dict[str, Any]) -> Result:
    """Four workers accept from one listener that their parent made and never uses."""
    listening = listener()
    gates = [Gate() for _ in range(4)]

    def serve(gate: Gate, number: int) -> Callable[[Ledger], None]:
        def work(ledger: Ledger) -> None:
            for _ in range(3):
                gate.wait()
                end = server_end(listening.accept()[0], ledger)
                end.drain(400)
                end.send(1_000 + number)
                end.close()

        return work

    workers = [Child(serve(gate, number)) for number, gate in enumerate(gates)]
    ledger = Ledger()
    for _ in range(3):
        for number, gate in enumerate(gates):
            gate.open()
            end = client_end(socket.create_connection(listening.getsockname()), ledger)
            end.send(400)
            end.drain(1_000 + number)
            end.close()
    return [*(worker.result() for worker in workers), ledger.as_dict()]


def first_use_race(notes: dict[str, Any]) -> Result:
    """Two processes, two threads each, write to a freshly accepted socket at the same moment, 100 times."""
    listening = listener()
    rounds = 100
    connected = [socket.create_connection(listening.getsockname()) for _ in range(rounds)]
    accepted = [listening.accept()[0] for _ in range(rounds)]
    gate, ready = Gate(), Gate()

    def write(size: int) -> Callable[[Ledger], None]:
        def work(ledger: Ledger) -> None:
            def all_of_them(own: Ledger) -> None:
                for sock in accepted:
                    server_end(sock, own).send(size)

            other = Ledger()
            thread = threading.Thread(target=all_of_them, args=(other,))
            ready.open()
            gate.wait()
            thread.start()
            all_of_them(ledger)
            thread.join()
            ledger.counts.update(other.counts)

        return work

    writers = [Child(write(3)), Child(write(5))]
    for _ in writers:
        ready.wait()
    gate.open(2)
    results = [writer.result() for writer in writers]
    ledger = Ledger()
    for sock in connected:
        client_end(sock, ledger).drain(16)
    return [*results, ledger.as_dict()]


def owner_dies_first(notes: dict[str, Any]) -> Result:
    """The process that used a socket first ends; its child lives on with it over several scrapes."""
    listening = listener()
    gate = Gate()

    def serve(ledger: Ledger) -> None:
        end = server_end(listening.accept()[0], ledger)
        end.drain(1_500)
        end.send(40)

    server = Child(serve)
    read_fd, write_fd = os.pipe()

    def own(ledger: Ledger) -> None:
        end = client_end(socket.create_connection(listening.getsockname()), ledger)
        end.send(1_000)

        def inherit(later: Ledger) -> None:
            gate.wait()
            mine = End(end.sock, later, end.role, end.address, end.port)
            mine.send(500)
            mine.drain(40)
            os.write(write_fd, b"done")
            mine.close()

        ledger.notes["heir"] = Child(inherit).pid

    owner = Child(own).result()
    # several scrapes must see the owner dead and its socket open
    time.sleep(3.0)
    gate.open()
    os.read(read_fd, 4)
    served = server.result()
    time.sleep(1.5)
    keys = {key: served["counts"][0][key] for key in ("address", "port", "transport")}
    heir = {
        "pid": owner["notes"]["heir"],
        "executable": owner["executable"],
        "counts": [
            {"role": "client", "direction": "transmit", "bytes": 500, **keys},
            {"role": "client", "direction": "receive", "bytes": 40, **keys},
        ],
    }
    return [served, owner, heir]


def leader_thread_gone(notes: dict[str, Any]) -> Result:
    """The main thread ends, another thread of the process goes on to send."""
    listening = listener()

    def serve(ledger: Ledger) -> None:
        end = server_end(listening.accept()[0], ledger)
        end.drain(1_100)

    read_fd, write_fd = os.pipe()
    server = Child(serve)
    pid = os.fork()
    if pid == 0:

        def outlive() -> None:
            stat = ""
            while " Z " not in stat:  # the leader is a zombie until the process ends
                stat = Path(f"/proc/{os.getpid()}/stat").read_text()
            end = client_end(socket.create_connection(listening.getsockname()), Ledger())
            os.write(write_fd, str(end.send(1_100)).encode())
            os._exit(0)

        threading.Thread(target=outlive).start()
        linux.libc.syscall(ctypes.c_long(SYS_EXIT), 0)
    sent = int(os.read(read_fd, 10))
    os.waitpid(pid, 0)
    served = server.result()
    row = dict(served["counts"][0], role="client", direction="transmit", bytes=sent)
    return [served, {"pid": pid, "executable": served["executable"], "counts": [row]}]


SCENARIOS = (
    two_processes,
    brief_processes,
    shared_socket,
    passed_descriptor,
    prefork_server,
    first_use_race,
    owner_dies_first,
    leader_thread_gone,
)
