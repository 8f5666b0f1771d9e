# SPDX-License-Identifier: Apache-2.0
"""Starts the real agent, runs workloads beside it, and holds their ledgers against its figures.

Environment: KERNOB_PROGRAM (default .venv/bin/kernob), KERNOB_TEST_SCALE (0 < n <= 1, default 1: the part
of the large workloads that is run). Used by tests/kernel only; otlp.py reads what the agent wrote.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest
from otlp import Totals, read_totals

ROOT = Path(__file__).resolve().parents[2]
WORKLOADS = Path(__file__).parent / "workloads"
SCALE = float(os.environ.get("KERNOB_TEST_SCALE", "1"))
PROGRAM = shlex.split(os.environ.get("KERNOB_PROGRAM", str(ROOT / ".venv/bin/kernob")))

LOAD_PAUSE_S = 0.0 if SCALE == 1 else 0.01
"""Between two steps of a load: an emulated processor must not spend itself on that."""

READY_LIMIT_S = 180.0
# An emulated processor compiles for minutes, which the first agent of a run waits for.
START_LIMIT_S = READY_LIMIT_S if SCALE == 1 else 1300.0
STOP_LIMIT_S = 60.0 if SCALE == 1 else 180.0
WORKLOAD_LIMIT_S = 600.0
# What a lane may set for every agent of a run; all other KERNOB_ variables are the tests' own.
_PASSED_ON = ("KERNOB_STRATEGIES_OFF", "KERNOB_BTF", "KERNOB_PROC_ROOT")


def scaled(count: int, least: int = 1) -> int:
    """`count`, reduced by KERNOB_TEST_SCALE."""
    return max(least, round(count * SCALE))


def environment(**settings: object) -> dict[str, str]:
    """A clean environment for the agent; a setting is named as its variable without KERNOB_ (OTEL_: with)."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KERNOB_", "OTEL_"))}
    kept |= {k: os.environ[k] for k in _PASSED_ON if k in os.environ}
    kept["OTEL_METRICS_EXPORTER"] = kept["OTEL_LOGS_EXPORTER"] = "none"
    if "PYTHONPATH" not in kept:
        kept["PYTHONPATH"] = str(ROOT)
    return kept | {_variable(name): str(value) for name, value in settings.items()}


def _variable(name: str) -> str:
    return name if name.startswith("OTEL_") else f"KERNOB_{name.upper()}"


def patience() -> float:
    """How many times as long as on an idle machine things may take now: runnable threads per processor.

    The average of the last minute, or what runs at this moment where that is more.
    """
    now = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1), now / (os.cpu_count() or 1))


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = READY_LIMIT_S) -> None:
    """Poll until it holds; fails the test, naming `what`, after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {limit_s:.0f} s for {what}")
        time.sleep(0.01)


def complete_lines(otlp: Path) -> int:
    """Lines with metrics that an agent has written to its end."""
    if not otlp.exists():
        return 0
    lines = otlp.read_bytes().split(b"\n")[:-1]
    return sum(b'"resourceMetrics"' in line[:20] for line in lines)


@dataclass
class Agent:
    """One life of the agent: times by time.monotonic(), the last three once it has come that far."""

    process: subprocess.Popen[bytes]
    otlp: Path
    log: Path
    started_s: float
    ready_s: float = 0.0
    asked_to_stop_s: float = 0.0
    ended_s: float = 0.0
    lines_before: int = 0  # in the file when it began: those of an earlier life

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def is_ready(self) -> bool:
        """Whether it is attached; fails the test if it has ended."""
        if self.process.poll() is not None:
            pytest.fail(f"the agent ended with {self.process.returncode}:\n{self.log.read_text()}")
        return self.lines() > self.lines_before or " ready" in self.log.read_text()

    def lines(self) -> int:
        """Complete lines with metrics written so far; events come between them as they happen."""
        return complete_lines(self.otlp)

    def exports(self) -> int:
        """Exports begun. Each begins with one line of the own figures; of others there are any number."""
        return self.otlp.read_bytes().count(b'"process.memory.usage"') if self.otlp.exists() else 0

    def wait_exports(self, count: int) -> None:
        """Let `count` more exports pass, the last of them written to its end.

        The first of them may have read before this call, so after 2 whatever happened before it is there.
        """
        until = self.exports() + count + 1
        wait_until(lambda: self.is_ready() and self.exports() >= until, f"{count} more exports")

    def stop(self, number: signal.Signals = signal.SIGTERM, code: int = 0) -> Totals:
        """End it, check its exit code and that it said nothing of an error; what it wrote."""
        self.asked_to_stop_s = time.monotonic()
        self.process.send_signal(number)
        try:
            self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"the agent did not end by {number.name}:\n{self.log.read_text()}")
        self.ended_s = time.monotonic()
        log = self.log.read_text()
        assert self.process.returncode == code, log
        assert "Traceback" not in log, log
        return self.totals()

    def totals(self) -> Totals:
        """What it has written so far."""
        return read_totals(self.otlp)


@contextlib.contextmanager
def running_agent(directory: Path, *, prefix: Any = (), **settings: object) -> Iterator[Agent]:
    """A ready agent with private paths under `directory`; stopped at the end if the test did not.

    `prefix` are words that go before its command (nsenter --net=...) and become it.
    `settings` are KERNOB_ variables in lower case without prefix (max_sockets=16). The cache of compiled
    programs is shared by all agents of a test session, so that only the first one compiles.
    """
    directory.mkdir(parents=True, exist_ok=True)
    otlp, log = directory / "otlp.jsonl", directory / "log"
    defaults = {
        "scrape_interval": 0.5,
        "socket": directory / "run" / "agent.sock",
        "state_dir": directory / "state",
        "cache_dir": directory.parent / "cache",
        # whatever else this machine does meanwhile must not fold a test's series into ~other
        "max_process_series": 1_000_000,
        "max_flow_series": 1_000_000,
        "max_process_flow_series": 1_000_000,
    }
    began = time.monotonic()
    earlier = complete_lines(otlp)
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*prefix, *PROGRAM, "run", "--otlp-file", str(otlp)],
            cwd=ROOT,
            env=environment(**{**defaults, **settings}),
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
        )
    agent = Agent(process, otlp, log, began, lines_before=earlier)
    try:
        wait_until(agent.is_ready, "the agent to be ready", START_LIMIT_S)
        agent.ready_s = time.monotonic()
        yield agent
        if process.poll() is None:
            agent.stop()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def refused_agent(directory: Path, *prefix: str, **settings: object) -> tuple[int, str]:
    """Start an agent that must end by itself; its exit code and what it said."""
    directory.mkdir(parents=True, exist_ok=True)
    defaults = {
        "socket": directory / "run" / "agent.sock",
        "state_dir": directory / "state",
        "cache_dir": directory.parent / "cache",
    }
    done = subprocess.run(
        [*prefix, *PROGRAM, "run", "--otlp-file", str(directory / "otlp.jsonl")],
        cwd=ROOT,
        env=environment(**{**defaults, **settings}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=START_LIMIT_S,
        check=False,
    )
    return done.returncode, done.stdout


@dataclass
class Outcome:
    """What one workload printed: ledgers, or why there are none."""

    name: str
    processes: list[dict[str, Any]]
    missing: str = ""
    error: str = ""
    raw: dict[str, Any] = field(default_factory=dict)

    def demand(self) -> Outcome:
        """Skip the test if the kernel lacks the feature, fail it if the workload failed."""
        if self.missing:
            pytest.skip(f"missing feature: {self.missing}")
        assert not self.error, self.error
        assert self.processes, self.raw
        return self


def _outcome(line: dict[str, Any]) -> Outcome:
    processes = line.get("processes", [line] if "counts" in line else [])
    return Outcome(line.get("case", ""), processes, line.get("missing", ""), line.get("error", ""), line)


def workload_command(script: str, *arguments: object) -> list[str]:
    """How a workload is started."""
    return [sys.executable, str(WORKLOADS / f"{script}.py"), *map(str, arguments)]


def run_workload(script: str, *arguments: object, prefix: tuple[str, ...] = ()) -> list[Outcome]:
    """Run a workload to its end; one outcome for each line it printed."""
    done = subprocess.run(
        [*prefix, *workload_command(script, *arguments)],
        capture_output=True,
        text=True,
        timeout=WORKLOAD_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{script} ended with {done.returncode}:\n{done.stderr}\n{done.stdout}"
    return [_outcome(json.loads(line)) for line in done.stdout.splitlines()]


class Puppet:
    """A workload that obeys line by line (puppet.py, peer.py). Use as a context manager."""

    def __init__(self, script: str, *arguments: object, prefix: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*prefix, *workload_command(script, *arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def answer(self) -> dict[str, Any]:
        """The next line it prints."""
        stream: IO[str] = self.process.stdout  # type: ignore[assignment]
        line = stream.readline()
        assert line, f"workload {self.pid} ended"
        return dict(json.loads(line))

    def order(self, command: str) -> dict[str, Any]:
        """Have a command carried out; its answer."""
        self.tell(command)
        return self.answer()

    def tell(self, command: str) -> None:
        """Hand over a command without waiting."""
        stream: IO[str] = self.process.stdin  # type: ignore[assignment]
        stream.write(command + "\n")
        stream.flush()

    def __enter__(self) -> Puppet:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def differences(totals: Totals, processes: list[dict[str, Any]]) -> list[str]:
    """Every figure of these processes that the agent does not have exactly, and every one it has on top.

    Compared are process.network.io by pid, direction and transport, and kernob.process.flow.io by pid and
    destination. An empty list means: difference 0 bytes.
    """
    by_pid: dict[int, Counter[Any]] = {p["pid"]: Counter() for p in processes}
    by_peer: dict[int, Counter[Any]] = {p["pid"]: Counter() for p in processes}
    for process in processes:
        for c in process["counts"]:
            where, how = (c["address"], c["port"]), (c["direction"], c["transport"])
            by_pid[process["pid"]][how] += c["bytes"]
            by_peer[process["pid"]][where + how] += c["bytes"]
    found, peers = totals.process_io(), totals.process_flow_io()
    wrong: list[str] = []
    for pid, expected in by_pid.items():
        wrong += _compare(f"pid {pid}", expected, found.get(pid, Counter()))
        wrong += _compare(f"pid {pid} x peer", by_peer[pid], peers.get(pid, Counter()))
    return wrong


def flow_differences(totals: Totals, processes: list[dict[str, Any]]) -> list[str]:
    """The same for kernob.flow.io by role, destination, direction and transport.

    `processes` must be all that belong to their services in this life of the agent, or at least all that
    used these ports.
    """
    flows: Counter[Any] = Counter()
    for process in processes:
        for c in process["counts"]:
            flows[c["role"], c["address"], c["port"], c["direction"], c["transport"]] += c["bytes"]
    ports = {key[2] for key in flows}
    seen = totals.flow_io(totals.services({p["pid"] for p in processes}))
    return _compare("service", flows, Counter({k: n for k, n in seen.items() if k[2] in ports}))


def _compare(what: str, expected: Counter[Any], found: Counter[Any]) -> list[str]:
    return [
        f"{what} {key}: expected {expected[key]}, the agent says {found[key]}"
        for key in sorted({*expected, *found}, key=str)
        if expected[key] != found[key]
    ]
