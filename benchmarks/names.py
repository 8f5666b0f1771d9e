# SPDX-License-Identifier: Apache-2.0
"""What hostnames and waits cost those who resolve and wait: getaddrinfo, DNS questions, a large epoll.

Run as `python -m benchmarks.names [rounds]`, as root. Each workload runs without any program of Kernob's and
with all of them, in turn; both ends in one process of a network namespace of its own. CPU time, so that what
else the machine does tells less: medians of the rounds, "more" that of the differences within a round.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.attached import kernob
from benchmarks.table import median, show
from kernob.errors import KernobError
from kernob.kernel import uprobes
from kernob.kernel.libraries import Libraries
from kernob.probes import names as probe

_ROUNDS = 3
_NEWNET = 0x40000000
_CALLS, _QUESTIONS, _SOCKETS, _TIMEOUTS = 4000, 8000, 10_000, 300
_QUESTION = b"\7\7\1\0\0\1\0\0\0\0\0\0" + b"\3api\7example\0" + struct.pack(">HH", 1, 1)
_ANSWER = (
    b"\7\7\x85\x80\0\1\0\2\0\0\0\0" + _QUESTION[12:]
    + b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + bytes((192, 0, 2, 1))
    + b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + bytes((192, 0, 2, 2))
)  # fmt: skip


def resolving() -> int:
    """getaddrinfo of the C library, out of /etc/hosts."""
    for _ in range(_CALLS):
        socket.getaddrinfo("localhost", 80)
    return _CALLS


def asking() -> int:
    """DNS questions by UDP, each answered with two addresses."""
    server, client = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    server.bind(("127.0.0.1", 53))
    client.connect(("127.0.0.1", 53))
    for _ in range(_QUESTIONS):
        client.send(_QUESTION)
        server.sendto(_ANSWER, server.recvfrom(512)[1])
        client.recv(512)
    return _QUESTIONS


def waiting() -> int:
    """An epoll with 10,000 connections, a hundred timeouts a second of 1 ms each."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < _SOCKETS + 100:
        raise KernobError(f"needs {_SOCKETS + 100} open files, may have {hard}: ulimit -Hn")
    door = socket.create_server(("127.0.0.1", 0), backlog=1024)
    held = []
    with select.epoll() as poller:
        for _ in range(_SOCKETS // 2):
            client = socket.create_connection(door.getsockname())
            server = door.accept()[0]
            held += [client, server]
            poller.register(client, select.EPOLLIN)
            poller.register(server, select.EPOLLIN)
        began = time.process_time()
        for _ in range(_TIMEOUTS):
            assert poller.poll(0.001) == []
            time.sleep(0.009)
        _spent.append(time.process_time() - began)
    return _TIMEOUTS


_spent: list[float] = []


def measured(work: Callable[[], int]) -> float:
    """CPU time an operation, in microseconds, of a process that does nothing else."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        if ctypes.CDLL(None, use_errno=True).unshare(_NEWNET):
            os._exit(1)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        work_began = time.process_time()
        count = work()
        spent = _spent[0] if _spent else time.process_time() - work_began
        os.write(writer, f"{spent / count * 1e6}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        found = stream.read()
    os.waitpid(pid, 0)
    if not found:
        raise KernobError("a workload failed")
    return float(found)


@contextlib.contextmanager
def attached() -> Iterator[None]:
    """All of Kernob's programs, on C libraries, too; what they tell is taken away as the agent does."""
    with kernob(stats=False) as session:
        at_return = session.program(probe.RETURN)
        entries = {name: session.program(entry) for name, entry in probe.ENTRIES.items()}
        functions = {name: (entry, at_return) for name, entry in entries.items() if entry and at_return}
        by_link = session.strategy("names", "calls").startswith("uprobe_multi")
        libraries = Libraries(Path("/proc"), functions, uprobes.probe_by_link if by_link else uprobes.probe)
        try:
            libraries.scan()
            yield
        finally:
            libraries.close()


def main() -> None:
    """Prints the table."""
    works = (
        ("getaddrinfo", resolving),
        ("a DNS question and its answer", asking),
        ("a timeout of epoll", waiting),
    )
    without: dict[str, list[float]] = {name: [] for name, _ in works}
    with_all: dict[str, list[float]] = {name: [] for name, _ in works}
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else _ROUNDS
    for _ in range(rounds):
        for name, work in works:
            without[name].append(measured(work))
        with attached():
            for name, work in works:
                with_all[name].append(measured(work))
    asked, rows = works[1][0], []
    for name, _ in works:
        more = [b - a for a, b in zip(without[name], with_all[name], strict=True)]
        least = min(with_all[name]) - min(without[name])
        rows.append(
            [name, *(f"{median(each):.2f}" for each in (without[name], with_all[name], more)), f"{least:.2f}"]
        )
    show(
        "CPU time of who resolves or waits, us",
        ("operation", "without", "with", "more", "more, of the least"),
        rows,
        f"{rounds} rounds of {_CALLS} calls, {_QUESTIONS} questions and {_TIMEOUTS} timeouts, {_SOCKETS} "
        f"sockets; questions a CPU second: {1e6 / median(without[asked]):,.0f} without, "
        f"{1e6 / median(with_all[asked]):,.0f} with; load {os.getloadavg()[0]:.0f}.",
    )


if __name__ == "__main__":
    try:
        main()
    except KernobError as error:
        sys.exit(f"benchmarks: {error}")
