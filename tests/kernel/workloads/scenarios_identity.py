# SPDX-License-Identifier: Apache-2.0
"""Who a process is: other programs under one process id, one process id for many processes, odd names.

Every scenario returns the ledgers of its processes and may note, under "images", the bytes that each
executable sent; `scenarios.py` runs each in a process of its own.
"""

from __future__ import annotations

import itertools
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from children import Result, fork_child_as, python_copy
from truth import Ledger, client_end, listener, server_end


def _shell_sends(sock: socket.socket, size: int) -> None:
    """Become a shell that writes `size` bytes to `sock`; does not return."""
    os.dup2(sock.fileno(), 9, inheritable=True)
    os.execv("/bin/sh", ["/bin/sh", "-c", f'printf "%0{size}d" 0 >&9'])


def exec_with_the_socket(notes: dict[str, Any]) -> Result:
    """A process sends, then becomes another program that sends on the same socket."""
    listening = listener()
    ledger = Ledger()

    def send_and_exec(own: Ledger) -> None:
        sock = socket.create_connection(listening.getsockname())
        client_end(sock, own).send(100)
        _shell_sends(sock, 200)

    pid = os.fork()
    if pid == 0:
        send_and_exec(Ledger())
    end = server_end(listening.accept()[0], ledger)
    end.drain(300)
    os.waitpid(pid, 0)
    row = dict(ledger.as_dict()["counts"][0], role="client", direction="transmit")
    python, shell = ledger.as_dict()["executable"], Path("/bin/sh").resolve().name
    notes["images"] = {python: 100, shell: 200}
    return [ledger.as_dict(), {"pid": pid, "executable": "", "counts": [dict(row, bytes=300)]}]


def sender_code(listening: socket.socket, size: int) -> str:
    """A program for `python -c` that connects and sends `size` bytes."""
    address = listening.getsockname()
    return f"import socket; socket.create_connection({address!r}).sendall(bytes({size}))"


def exec_then_connect(notes: dict[str, Any]) -> Result:
    """A process sends, becomes another program and sends on a new connection: each name its own bytes."""
    listening = listener()
    with tempfile.TemporaryDirectory() as directory:
        path, environment = python_copy(Path(directory), "second-image")
        pid = os.fork()
        if pid == 0:
            client_end(socket.create_connection(listening.getsockname()), Ledger()).send(111)
            os.execve(path, [str(path), "-c", sender_code(listening, 333)], environment)
        ledger = Ledger()
        for size in (111, 333):
            server_end(listening.accept()[0], ledger).drain(size)
        os.waitpid(pid, 0)
    row = dict(ledger.as_dict()["counts"][0], role="client", direction="transmit")
    notes["images"] = {ledger.as_dict()["executable"]: 111, "second-image": 333}
    return [ledger.as_dict(), {"pid": pid, "executable": "", "counts": [dict(row, bytes=444)]}]


def odd_names(notes: dict[str, Any]) -> Result:
    """Programs whose names hold newlines, escape sequences, invalid UTF-8 and quotes."""
    listening = listener()
    names = [
        b"new\nline\ttab",
        b"esc\x1b[31mred\x1b]0;title\x07",
        b"bad\xff\xfeutf8\xc3",
        b"q\"uo'te\\{}`$(id)",
    ]
    ledger = Ledger()
    results: Result = []
    with tempfile.TemporaryDirectory() as directory:
        plain, environment = python_copy(Path(directory), "plain")
        for number, name in enumerate(names):
            path = os.fsencode(directory) + b"/" + name
            os.link(plain, path)
            size = 501 + number
            arguments = [path, b"-c", sender_code(listening, size).encode()]
            pid = os.spawnve(os.P_NOWAIT, path, arguments, environment)
            server_end(listening.accept()[0], ledger).drain(size)
            os.waitpid(pid, 0)
            row = dict(ledger.as_dict()["counts"][0], role="client", direction="transmit", bytes=size)
            results.append({"pid": pid, "executable": "", "counts": [row]})
    return [*results, ledger.as_dict()]


def _free_pids(count: int, away: int = 0) -> list[int]:
    """Process ids that nothing uses now, far from where the kernel hands them out next (`away`: farther)."""
    top = int(Path("/proc/sys/kernel/pid_max").read_text())
    start = (os.getpid() + top // 2 + away) % top
    candidates = (300 + (start + step) % (top - 300) for step in range(top))
    free = (pid for pid in candidates if not Path(f"/proc/{pid}").exists())
    return list(itertools.islice(free, count))


def reused_pid(notes: dict[str, Any]) -> Result:
    """One process id lives four times, as two programs in turn, each with bytes of its own."""
    listening = listener()
    (pid,) = _free_pids(1)
    server = Ledger()
    with tempfile.TemporaryDirectory() as directory:
        path, environment = python_copy(Path(directory), "second-image")
        for number in range(4):
            size = 1_000 * (number + 1)

            def send(ledger: Ledger, size: int = size, other: int = number % 2) -> None:
                if other:
                    os.execve(path, [str(path), "-c", sender_code(listening, size)], environment)
                client_end(socket.create_connection(listening.getsockname()), ledger).send(size)

            child = fork_child_as(pid, send)
            server_end(listening.accept()[0], server).drain(size)
            if number % 2:
                child.reap()
            else:
                child.result()
            # two lives of one process id in one clock tick (10 ms) cannot be told apart, nor do they occur
            time.sleep(0.03)
    served = server.as_dict()
    row = dict(served["counts"][0], role="client", direction="transmit")
    notes["images"] = {served["executable"]: 1_000 + 3_000, "second-image": 2_000 + 4_000}
    return [served, {"pid": pid, "executable": "", "counts": [dict(row, bytes=10_000)]}]


def reused_pids_in_turn(notes: dict[str, Any]) -> Result:
    """Ten process ids live twenty times each in quick turn, as where pid_max is low."""
    listening = listener()
    pids = _free_pids(10, 1_000)
    server = Ledger()
    results: dict[int, dict[str, Any]] = {}
    for life in range(20):
        for pid in pids:

            def send(ledger: Ledger, size: int = pid % 100 + life + 1) -> None:
                end = client_end(socket.create_connection(listening.getsockname()), ledger)
                end.send(size)

            child = fork_child_as(pid, send)
            server_end(listening.accept()[0], server).drain(pid % 100 + life + 1)
            report = child.result()
            if pid in results:
                results[pid]["counts"][0]["bytes"] += report["counts"][0]["bytes"]
            else:
                results[pid] = report
    return [server.as_dict(), *results.values()]


SCENARIOS = (
    exec_with_the_socket,
    exec_then_connect,
    odd_names,
    reused_pid,
    reused_pids_in_turn,
)
