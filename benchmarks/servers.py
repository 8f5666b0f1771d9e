# SPDX-License-Identifier: Apache-2.0
"""What measuring system calls costs real servers: redis-benchmark and pgbench against servers of their own.

Run as `python -m benchmarks.servers` (as root; Debian: redis-server, redis-tools, postgresql). In every round
each way to have the machine comes once: no programs, empty ones on the same hooks, those that measure system
calls, all of Kernob's. What counts is processor time an operation, of server and client together: it
contains the programs' own, and other work on the machine disturbs it less than wall time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.syscalls import AGAIN, NONE, Arm, empty, measuring
from benchmarks.table import median, progress, show, spread
from kernob.config import load_settings
from kernob.errors import KernobError, PreconditionError
from kernob.pipeline import new_session
from kernob.probes import syscalls

_ROUNDS = 7
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_REDIS_PORT, _POSTGRES_PORT = 45379, 45432
_REQUESTS, _TRANSACTIONS, _CLIENTS = 120_000, 6_000, 4
_FIRST = ("nice", "-n", "-10")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs, and what loads it."""

    name: str
    pid: int
    operations: int
    load: tuple[str, ...]


def _processor_s(pid: int) -> float:
    """Of a process and its children that have ended."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, stat[11:15])) * _TICK_S


def _measured(server: Server) -> tuple[float, float]:
    """One run of the load: microseconds of processor time, and of wall time, an operation."""
    before, began = _processor_s(server.pid), time.monotonic()
    child = subprocess.Popen([*_FIRST, *server.load], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _pid, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - began
    if child.returncode:
        raise RuntimeError(f"{' '.join(server.load)} ended with {child.returncode}")
    time.sleep(0.2)  # the server's last backend ends
    spent = _processor_s(server.pid) - before + usage.ru_utime + usage.ru_stime
    return spent * 1e6 / server.operations, wall * 1e6 / server.operations


def _tool(name: str) -> str:
    places = [str(p) for p in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    found = shutil.which(name, path=os.pathsep.join([*places, os.environ.get("PATH", "")]))
    if found is None:
        raise PreconditionError(f"{name} is missing: apt-get install redis-server redis-tools postgresql")
    return found


@contextlib.contextmanager
def _running(*command: str, ready: Callable[[], bool], user: str | None = None) -> Iterator[int]:
    quiet = subprocess.DEVNULL
    server = subprocess.Popen([*_FIRST, *command], stdout=quiet, stderr=quiet, user=user)
    try:
        deadline = time.monotonic() + 60
        while not ready():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not come up")
            time.sleep(0.1)
        yield server.pid
    finally:
        server.terminate()
        server.wait()


def _answers(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@contextlib.contextmanager
def redis() -> Iterator[Server]:
    """GET by 50 clients without pipelining."""
    port = str(_REDIS_PORT)
    command = (
        _tool("redis-server"),
        "--port",
        port,
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
    )
    ask = partial(_answers, _tool("redis-cli"), "-p", port, "ping")
    load = (_tool("redis-benchmark"), "-p", port, "-t", "get", "-n", str(_REQUESTS), "-c", "50", "-q")
    with _running(*command, ready=ask) as pid:
        yield Server("redis-benchmark, GET", pid, _REQUESTS, load)


@contextlib.contextmanager
def postgres() -> Iterator[Server]:
    """pgbench's transactions that read (-S), by four clients over TCP."""
    with tempfile.TemporaryDirectory(prefix="kernob-bench-") as name:
        data, port = Path(name) / "data", str(_POSTGRES_PORT)
        Path(name).chmod(0o755)
        data.mkdir()
        shutil.chown(data, "postgres", "postgres")
        initdb = [_tool("initdb"), "-D", str(data), "-A", "trust", "-N", "--no-locale"]
        subprocess.run(initdb, check=True, capture_output=True, user="postgres", cwd=name)
        command = (_tool("postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", port, "-k", "")
        options = ("-h", "127.0.0.1", "-p", port, "-U", "postgres")
        ask = partial(_answers, _tool("pg_isready"), *options)
        with _running(*command, ready=ask, user="postgres") as pid:
            pgbench = (_tool("pgbench"), *options)
            subprocess.run([*pgbench, "-i", "-q", "postgres"], check=True, capture_output=True)
            each = str(_TRANSACTIONS // _CLIENTS)
            load = (*pgbench, "-S", "-n", "-c", str(_CLIENTS), "-t", each, "postgres")
            yield Server("pgbench -S", pid, _TRANSACTIONS, load)


def _arms() -> list[Arm]:
    names: frozenset[str] = frozenset()
    return [
        Arm(NONE, contextlib.nullcontext),
        Arm("empty, on the calls' tracepoints", partial(empty, syscalls.DEFAULT, names)),
        Arm("Kernob, system calls", partial(measuring, syscalls.DEFAULT, names)),
        Arm("Kernob, everything", lambda: new_session(load_settings({}))),
        Arm(AGAIN, contextlib.nullcontext),
    ]


def main() -> None:
    """Runs all."""
    arms, rows = _arms(), []
    for start in (redis, postgres):
        with start() as server:
            _measured(server)
            found: dict[str, list[tuple[float, float]]] = {arm.name: [] for arm in arms}
            for i in range(_ROUNDS):
                progress(f"{server.name}: round {i + 1} of {_ROUNDS}")
                for arm in arms:
                    with arm.attached():
                        found[arm.name].append(_measured(server))
        for arm in arms:
            spent, wall = ([each[i] for each in found[arm.name]] for i in (0, 1))
            cells = [server.name, arm.name, f"{median(spent):.2f}", f"{median(wall):.1f}"]
            for i, mine in ((0, spent), (1, wall)):
                base = [each[i] for each in found[NONE]]
                percent = [100 * (b - a) / a for a, b in zip(base, mine, strict=True)]
                cells.append("-" if arm.name == NONE else spread(percent, 1))
            rows.append(cells)
    show(
        "Servers",
        ("load", "programs", "CPU, us an operation", "wall, us", "CPU, + %", "wall, + %"),
        rows,
        f"{_ROUNDS} rounds of all arms. CPU: server and client. Differences to the first arm of the same "
        "round: median (middle half); the last arm's is noise.",
    )


if __name__ == "__main__":
    try:
        main()
    except KernobError as error:
        sys.exit(f"benchmarks: {error}")
