# SPDX-License-Identifier: Apache-2.0
"""Workloads of known byte counts, on the host and in containers, and what VictoriaMetrics made of them.

Enters: what workloads/senders.py printed. Leaves: a list of differences, which must be empty. Called by the
tests of the stack.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compose.victoria import Victoria

from .compose import HERE, progress, run

WORKLOADS = HERE / "workloads"
IMAGE = "kernob/agent:packages"
"""Has a python3; the workloads need nothing else."""
SCRIPT = "senders.py"
SERVICE = f"senders-{os.getpid()}.py"
"""What the agent calls the workload where it runs on the host: not like that of other runs of these tests."""

PROCESS_IO, FLOW_IO, PROCESS_FLOW_IO = (
    "process_network_io_bytes_total",
    "kernob_flow_io_bytes_total",
    "kernob_process_flow_io_bytes_total",
)
LIMIT_S = 600.0


@dataclass
class Truth:
    """Bytes that processes moved, as their own calls returned it, by (process id, direction)."""

    bytes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, printed: dict[str, Any]) -> None:
        """Add what a workload printed."""
        for direction in ("transmit", "receive"):
            for pid, count in printed[direction].items():
                self.bytes[str(pid), direction] += count

    def by_direction(self) -> Counter[tuple[str, ...]]:
        """Bytes by direction, as a query with `by (network_io_direction)` finds them."""
        sums: Counter[tuple[str, ...]] = Counter()
        for (_, direction), count in self.bytes.items():
            sums[(direction,)] += count
        return sums


def workload_command(*arguments: object) -> list[str]:
    """How senders.py is started on the host, under the name of SERVICE."""
    directory = Path(tempfile.gettempdir()) / f"kernob-workload-{os.getpid()}"
    if not directory.exists():
        directory.mkdir()
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        (directory / SERVICE).write_bytes((WORKLOADS / SCRIPT).read_bytes())
    return [sys.executable, str(directory / SERVICE), *map(str, arguments)]


def host_workload(*arguments: object) -> dict[str, Any]:
    """Run senders.py on the host to its end; what it counted."""
    done = subprocess.run(
        workload_command(*arguments),
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def container_workload(name: str, *arguments: object, network: str = "bridge") -> dict[str, Any]:
    """The same in a container of this name; process ids are those that the container sees."""
    script = f"/workloads/{SCRIPT}"
    return dict(json.loads(run(
        "docker", "run", "--rm", "--name", name, "--network", network, "--entrypoint", "python3",
        "-v", f"{WORKLOADS}:/workloads:ro", IMAGE, script, *map(str, arguments),
        limit_s=LIMIT_S,
    )))  # fmt: skip


class Steady:
    """Traffic that goes on until `stop`. It must be stopped; `steady` sees to it."""

    def __init__(self, size: int, pause_s: float) -> None:
        self.process = subprocess.Popen(
            workload_command("steady", size, pause_s),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout
        self.process.stdout.readline()

    def send(self) -> None:
        """Have it send once; only with a pause of 0."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def stop(self) -> dict[str, Any]:
        """End it; what it counted."""
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return dict(json.loads(out))


@contextlib.contextmanager
def steady(size: int, pause_s: float) -> Iterator[Steady]:
    """A running `Steady`, ended in any case."""
    running = Steady(size, pause_s)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        with running.process:
            pass  # waits, and closes its pipes


class Server:
    """A server in a container of its own name, on Docker's default bridge."""

    def __init__(self, name: str) -> None:
        self.process = subprocess.Popen(
            [
                "docker", "run", "-i", "--rm", "--name", name, "--entrypoint", "python3",
                "-v", f"{WORKLOADS}:/workloads:ro", IMAGE, f"/workloads/{SCRIPT}", "serve", "0.0.0.0", "0",
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout
        self.port = int(json.loads(self.process.stdout.readline())["port"])
        found = json.loads(run("docker", "inspect", name))
        self.address = str(found[0]["NetworkSettings"]["Networks"]["bridge"]["IPAddress"])

    def finish(self) -> dict[str, Any]:
        """End it; what it counted."""
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return dict(json.loads(out))


@contextlib.contextmanager
def container_server(name: str) -> Iterator[Server]:
    """A running `Server`, ended in any case."""
    running = Server(name)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            run("docker", "rm", "-f", name)
        with running.process:
            pass


def compare(what: str, truth: Counter[tuple[str, ...]], found: Counter[tuple[str, ...]]) -> list[str]:
    """Every key whose figures differ."""
    return [
        f"{what} {key}: {truth[key]}, VictoriaMetrics says {found[key]}, {found[key] - truth[key]:+d}"
        for key in sorted({*truth, *found})
        if truth[key] != found[key]
    ]


def differences(
    victoria: Victoria, truth: Truth, since_s: float, service: str = SERVICE, by_process: bool = True
) -> list[str]:
    """What increase() since then says otherwise than the truth, to the byte: by process, and by service.

    `service` must have had no other traffic since then.
    """
    victoria.flush()
    chosen = f'kernob_service="{service}"'
    wrong: list[str] = []
    for metric in (PROCESS_IO, FLOW_IO, PROCESS_FLOW_IO):
        sums = victoria.grown(metric, "network_io_direction", since_s, chosen)
        wrong += compare(f"{metric} of {service}", truth.by_direction(), sums)
    if by_process:
        expected: Counter[tuple[str, ...]] = Counter({key: n for key, n in truth.bytes.items() if n})
        for metric in (PROCESS_IO, PROCESS_FLOW_IO):
            found = victoria.grown(metric, "process_pid,network_io_direction", since_s, chosen)
            wrong += compare(metric, expected, found)
    return wrong


def assert_exact(
    victoria: Victoria,
    truth: Truth,
    since_s: float,
    service: str = SERVICE,
    by_process: bool = True,
    limit_s: float = 90.0,
) -> float:
    """Wait until nothing differs; it must stay so. The seconds it took to arrive."""
    began = time.monotonic()
    while wrong := differences(victoria, truth, since_s, service, by_process):
        if time.monotonic() - began > limit_s:
            shown = "\n".join(wrong[:20])
            raise AssertionError(f"{len(wrong)} figures differ after {limit_s:.0f} s:\n{shown}")
        time.sleep(1)
    took_s = time.monotonic() - began
    time.sleep(3)
    assert differences(victoria, truth, since_s, service, by_process) == []
    progress(f"{service}: {sum(truth.bytes.values())} bytes, difference 0 after {took_s:.1f} s")
    return took_s
