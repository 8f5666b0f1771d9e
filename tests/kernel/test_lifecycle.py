# SPDX-License-Identifier: Apache-2.0
"""Starts and ends of processes on a real kernel, against what waitpid told those who had them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Agent, environment, running_agent, scaled, wait_until, workload_command
from test_events import kernob_events

from kernob.state.endings import ending_of
from kernob.state.life_sentences import length
from kernob.ui.client import fetch_report

STORM = 50_000
ALONE = {"syscalls": "none", "names": "false", "tcp": "false"}
"""Other subjects have tests of their own, and a storm makes much for them to tell."""

MEMORY_V1 = Path("/sys/fs/cgroup/memory")
CGROUP2 = Path("/sys/fs/cgroup")


@pytest.fixture(scope="module")
def agent(agents: Path) -> Iterator[Agent]:
    """An agent that tells no more than failures, as by default."""
    with running_agent(agents / "lives", max_lifecycle_series=100_000, **ALONE) as running:
        yield running


@pytest.fixture
def program(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A shell under a name of the test's own."""
    target = tmp_path / f"kb{abs(hash(request.node.name)) % 10**8}"
    shutil.copy(os.path.realpath("/bin/sh"), target)
    return str(target)


def play(tmp_path: Path, case: str, *arguments: object) -> tuple[str, dict[str, Any]]:
    """Runs the workload under a name of its own; that service's name and the workload's ledger."""
    script = tmp_path / f"{case}-{tmp_path.name}.py"
    shutil.copy(workload_command("lives")[1], script)
    done = subprocess.run(
        [sys.executable, str(script), case, *map(str, arguments)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return script.name, json.loads(done.stdout.splitlines()[-1])


def ends_of(agent: Agent, service: str) -> Counter[tuple[int, str]]:
    """Ends of a service by (exit code, signal), as kernob.process.exits has them."""
    found: Counter[tuple[int, str]] = Counter()
    for a, value in agent.totals().series("kernob.process.exits"):
        if a["kernob.service"] == service:
            found[a.get("process.exit.code", 0), a.get("kernob.exit.signal", "")] += value
    return found


def starts_of(agent: Agent, service: str) -> int:
    """kernob.process.starts of a service."""
    return sum(n for a, n in agent.totals().series("kernob.process.starts") if a["kernob.service"] == service)


def expected(statuses: dict[str, int]) -> Counter[tuple[int, str]]:
    """The same out of a ledger."""
    found: Counter[tuple[int, str]] = Counter()
    for status, count in statuses.items():
        ending = ending_of(int(status))
        found[ending.code, ending.signal] += count
    return found


def totals(agent: Agent) -> dict[str, int]:
    """Forks, execs and exits of the whole machine."""
    return dict(fetch_report(agent.otlp.parent / "run" / "agent.sock", "lifecycle")["totals"])


def reported(agent: Agent, service: str) -> dict[str, Any]:
    """What `kernob lifecycle` is told of a service."""
    report = fetch_report(agent.otlp.parent / "run" / "agent.sock", "lifecycle", {"limit": "1000"})
    return next((each for each in report["programs"] if each["service"] == service), {"starts": 0})


def losses(agent: Agent) -> dict[str, int]:
    """kernob.lost by cause."""
    return {a["kernob.cause"]: count for a, count in agent.totals().series("kernob.lost")}


@pytest.mark.lane
def test_fifty_thousand_short_lives_are_counted_exactly(agent: Agent, tmp_path: Path, program: str) -> None:
    """Starts, exits, codes and signals of each service equal the truth; nothing is lost."""
    count, before = scaled(STORM, 500), totals(agent)
    shutil.copy(program, program + "-x")
    few = max(200, count // 10)
    _, quick = play(tmp_path, "shell", count - few, program)
    agent.wait_exports(3)
    service = Path(program).name
    for name, ends in ((service, quick["ends"]), (service + "-x", quick["spawned"])):
        own = expected(ends)
        own[0, ""] += name == service  # the shell itself
        assert ends_of(agent, name) == own
        assert starts_of(agent, name) == own.total()
    # as many at once, killed ones among them
    shutil.copy(program, program + "-y")
    service, ledger = play(tmp_path, "storm", few, program + "-y")
    agent.wait_exports(3)
    for name, ends in ((service, ledger["ends"]), (Path(program).name + "-y", ledger["spawned"])):
        own = expected(ends)
        own[0, ""] += name == service
        assert ends_of(agent, name) == own
        assert starts_of(agent, name) == own.total()
    after = totals(agent)
    assert after["forks"] - before["forks"] >= count + 1
    assert after["exits"] - before["exits"] >= count + 1
    assert after["execs"] - before["execs"] >= sum((*quick["spawned"].values(), *ledger["spawned"].values()))
    lost = losses(agent)
    causes = ("lives_full", "programs_full", "turns_full", "life_ring_full")
    assert [lost[cause] for cause in causes] == [0] * 4


@pytest.mark.lane
def test_every_exit_code_and_signal(agent: Agent, tmp_path: Path, program: str) -> None:
    """256 exit codes, each by a fork and by a program, and all signals that end a process."""
    service, ledger = play(tmp_path, "codes", 1, program)
    agent.wait_exports(3)
    own = expected(ledger["ends"])
    own[0, ""] += 1
    assert ends_of(agent, service) == own
    assert ends_of(agent, Path(program).name) == expected(ledger["spawned"])


@pytest.mark.lane
def test_threads_are_no_processes(agent: Agent, tmp_path: Path) -> None:
    """A process ends once, with its last thread and with the code its parent is told."""
    service, ledger = play(tmp_path, "threads", 9)
    agent.wait_exports(3)
    own = expected(ledger["ends"])
    assert len(own) == 3, own
    own[0, ""] += 1
    assert ends_of(agent, service) == own
    assert starts_of(agent, service) == 1 + 9


def test_threads_that_end_at_once_are_one_end(agent: Agent, tmp_path: Path) -> None:
    """On several processors each of the last threads sees that no other one runs."""
    service, ledger = play(tmp_path, "together", 600)
    agent.wait_exports(3)
    own = expected(ledger["ends"])
    own[0, ""] += 1
    assert ends_of(agent, service) == own
    assert starts_of(agent, service) == 1 + 600


@pytest.mark.lane
def test_each_exec_is_a_start(agent: Agent, tmp_path: Path, program: str) -> None:
    """A process that runs three programs one after the other starts three times and ends once."""
    _, ledger = play(tmp_path, "execs", 10, program)
    agent.wait_exports(3)
    assert starts_of(agent, Path(program).name) == 30
    assert ends_of(agent, Path(program).name) == expected(ledger["spawned"]) == {(4, ""): 10}


@pytest.mark.lane
def test_a_worker_without_exec_has_started_after_a_second(agent: Agent, tmp_path: Path) -> None:
    """It is counted while it lives, and not again at its end."""
    script = tmp_path / f"lasting-{tmp_path.name}.py"
    shutil.copy(workload_command("lives")[1], script)
    command = [sys.executable, str(script), "lasting", "5"]
    workload = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert workload.stdout
        assert json.loads(workload.stdout.readline())["ready"]
        wait_until(lambda: reported(agent, script.name)["starts"] == 6, "starts of living workers", 60)
        told, _ = workload.communicate("\n", timeout=60)
        ledger = json.loads(told)
    finally:
        workload.kill()
        workload.wait()
    agent.wait_exports(3)
    own = expected(ledger["ends"])
    own[0, ""] += 1
    assert ends_of(agent, script.name) == own
    assert starts_of(agent, script.name) == 6


@pytest.mark.lane
def test_a_crash_is_told_in_one_sentence(agent: Agent, tmp_path: Path, program: str) -> None:
    """With its time, its parent, how long it lived, and without the password on its command line."""
    before_ns = time.time_ns()
    crash = subprocess.Popen([program, "-c", "sleep 0.3; kill -SEGV $$", "x", "--password=hunter2", "s3cret"])
    crash.wait()
    after_ns = time.time_ns()
    assert crash.returncode == -11

    def mine() -> list[dict[str, Any]]:
        found = kernob_events(agent.otlp.parent, "--kind", "exit")
        return [event for event in found if event["pid"] == crash.pid]

    wait_until(lambda: bool(mine()), "the event", 30)
    (event,) = mine()
    name = Path(program).name
    assert before_ns - 1_000_000 <= event["time_unix_ns"] <= after_ns + 1_000_000
    assert (event["service"], event["executable"], event["severity"]) == (name, name, "error")
    details = dict(event["details"])
    lived = length(details["kernob.process.lifetime"])
    assert f"{name} (PID {crash.pid}) was killed by SIGSEGV after {lived}" in event["body"]
    assert details["process.parent_pid"] == os.getpid()
    assert details["kernob.exit.signal"] == "SIGSEGV"
    assert 0.3 <= details["kernob.process.lifetime"] < (after_ns - before_ns) / 1e9 + 0.01
    assert "hunter2" not in json.dumps(event)
    assert "--password=***" in details["process.command_line"]


@contextlib.contextmanager
def memory_limit(limit_bytes: int) -> Iterator[Path]:
    """A memory control group of its own; where it is, what a process has to write its PID to."""
    name = f"kernob-test-{os.getpid()}"
    if (MEMORY_V1 / "memory.limit_in_bytes").exists():
        group, limits = MEMORY_V1 / name, {"memory.limit_in_bytes": limit_bytes}
        limits["memory.memsw.limit_in_bytes"] = limit_bytes
    elif "memory" in (CGROUP2 / "cgroup.subtree_control").read_text().split():
        group, limits = CGROUP2 / name, {"memory.max": limit_bytes, "memory.swap.max": 0}
    else:
        pytest.skip("missing feature: a memory control group")
    group.mkdir()
    try:
        for file, value in limits.items():
            if (group / file).exists():
                (group / file).write_text(str(value))
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def test_memory_that_ran_out_is_told_from_a_kill(agent: Agent, tmp_path: Path) -> None:
    """kernob.process.oom_kills counts it, the event says so; a SIGKILL by hand is none."""
    hog = tmp_path / f"hog-{tmp_path.name}.py"
    hog.write_text(
        "import sys, os\n"
        "open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "x = bytearray(400 << 20)\n"
        "for i in range(0, len(x), 4096): x[i] = 1\n"
    )
    with memory_limit(48 << 20) as procs:
        hungry = subprocess.Popen([sys.executable, str(hog), str(procs)])
        assert hungry.wait(60) == -9
    killed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    killed.kill()
    killed.wait()

    def told(pid: int) -> list[dict[str, Any]]:
        return [e for e in kernob_events(agent.otlp.parent, "--kind", "exit") if e["pid"] == pid]

    wait_until(lambda: bool(told(hungry.pid) and told(killed.pid)), "both events", 30)
    agent.wait_exports(2)
    assert "was killed because memory ran out" in told(hungry.pid)[0]["body"]
    assert "was killed by SIGKILL" in told(killed.pid)[0]["body"]
    ooms = {a["kernob.service"]: n for a, n in agent.totals().series("kernob.process.oom_kills")}
    assert ooms == {hog.name: 1}


def test_everything_can_be_told(agents: Path, tmp_path: Path, program: str) -> None:
    """Where exits, execs and forks are asked for, a short life is three events in order."""
    directory = agents / "lives-told"
    with running_agent(
        directory, lifecycle_events="failures,exits,execs,forks", max_events_per_second=10_000, **ALONE
    ) as agent:
        done = subprocess.Popen([program, "-c", "exit 0"])
        done.wait()
        agent.wait_exports(2)
        events = [e for e in kernob_events(directory) if e["pid"] == done.pid]
    kinds = [event["kind"].rpartition(".")[2] for event in events]
    assert kinds == ["fork", "exec", "exit"]
    assert (
        f"was started by {Path(sys.executable).name[:15]}" in events[1]["body"]
        or "by py" in events[1]["body"]
    )
    assert "ended with exit code 0" in events[2]["body"]


def test_it_can_be_switched_off(agents: Path) -> None:
    """KERNOB_LIFECYCLE=false attaches nothing of it, and exports nothing of it."""
    with running_agent(agents / "lives-off", lifecycle="false") as agent:
        subprocess.run(["true"], check=True, env=environment())
        agent.wait_exports(2)
        text = agent.otlp.read_text()
    assert "kernob.process.starts" not in text
    assert '"lifecycle"' not in text
