# SPDX-License-Identifier: Apache-2.0
"""Crash loops under real supervisors on a real kernel, and what looks like one and is none."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Agent, running_agent, wait_until
from test_events import kernob_events

from kernob.ui.client import fetch_report

ALONE = {"syscalls": "none", "names": "false", "tcp": "false"}
WINDOW_S = 5
SHELL = os.path.realpath("/bin/sh")


@pytest.fixture(scope="module")
def agent(agents: Path) -> Iterator[Agent]:
    """An agent for which a loop is over after five calm seconds."""
    with running_agent(agents / "loops", crash_loop_window=WINDOW_S, **ALONE) as running:
        yield running


@pytest.fixture
def worker(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A program under a name of the test's own that lives a few milliseconds and ends with its argument."""
    target = tmp_path / f"kw{abs(hash(request.node.name)) % 10**8}"
    shutil.copy(SHELL, target)
    return target


def loop_events(agent: Agent, service: str) -> list[dict[str, Any]]:
    """Begins and ends of crash loops of a service, in order."""
    found = kernob_events(agent.otlp.parent, "--kind", "crash_loop")
    return [event for event in found if event["service"] == service]


def began(agent: Agent, service: str) -> dict[str, Any]:
    """The event that it began; fails the test where none comes."""
    wait_until(lambda: bool(loop_events(agent, service)), f"a crash loop of {service}", 60)
    event = loop_events(agent, service)[0]
    assert dict(event["details"])["kernob.crash_loop.state"] == "begin"
    assert event["severity"] == "error"
    return event


@contextlib.contextmanager
def running(*command: object, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor; it and all it started are gone at the end."""
    process = subprocess.Popen(
        [str(word) for word in command],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **options,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_shells_loop_with_lives_of_milliseconds(agent: Agent, worker: Path, tmp_path: Path) -> None:
    """One event when it begins, one when it ends, with counts and reasons; a metric meanwhile."""
    loop = tmp_path / "keep-alive.sh"
    loop.write_text(f"while :; do {worker} -c 'exit 139'; sleep 0.05; done\n")
    with running(SHELL, loop):
        event = began(agent, worker.name)
        report = fetch_report(agent.otlp.parent / "run" / "agent.sock", "lifecycle")
        (now,) = [each for each in report["crash_loops"] if each["service"] == worker.name]
        agent.wait_exports(2)
    details = dict(event["details"])
    assert details["kernob.crash_loop.restarts"] >= 3
    assert "exit code 139" in details["kernob.crash_loop.reasons"]
    assert "started again by keep-alive.sh" in event["body"]
    assert now["restarts_in_window"] >= 3
    assert [each["code"] for each in now["reasons"]] == [139]
    wait_until(lambda: len(loop_events(agent, worker.name)) == 2, "the end of the loop", 60)
    end = loop_events(agent, worker.name)[1]
    restarts = dict(end["details"])["kernob.crash_loop.restarts"]
    assert dict(end["details"])["kernob.crash_loop.state"] == "end"
    assert f"exit code 139 ({restarts + 1:,} times)" in end["body"]
    assert '"kernob.process.crash_loop"' in agent.otlp.read_text()


def test_supervisord(agent: Agent, worker: Path, tmp_path: Path) -> None:
    """It starts again at once what it was told to keep running.

    Its own retries would be too far apart for this agent's window of a few seconds.
    """
    program = shutil.which("supervisord")
    if program is None:
        pytest.skip("missing feature: supervisord")
    config = tmp_path / "supervisord.conf"
    config.write_text(
        f"[supervisord]\nnodaemon=true\nlogfile={tmp_path}/log\npidfile={tmp_path}/pid\nchildlogdir={tmp_path}\n"
        f"[program:crashing]\ncommand={worker} -c 'kill -SEGV $$'\nstartsecs=0\nautorestart=true\n"
    )
    with running(program, "-c", config, cwd=tmp_path):
        event = began(agent, worker.name)
    assert "SIGSEGV" in event["body"]
    assert "started again by supervisord" in event["body"]


def test_runit(agent: Agent, worker: Path, tmp_path: Path) -> None:
    """runsv restarts once a second."""
    program = shutil.which("runsv")
    if program is None:
        pytest.skip("missing feature: runsv")
    service = tmp_path / "crashing"
    service.mkdir()
    run = service / "run"
    run.write_text(f"#!/bin/sh\nexec {worker} -c 'exit 1'\n")
    run.chmod(0o755)
    with running(program, service):
        event = began(agent, worker.name)
    assert "started again by runsv" in event["body"]


CRASHING = """
#include <stdlib.h>
#include <time.h>
int main(int count, char **arguments)
{
    struct timespec life = {0, 5000000};
    nanosleep(&life, 0);
    return atoi(arguments[count - 1]);
}
"""


def docker(*words: str, stdin: bytes | None = None) -> str:
    """What the engine answers."""
    done = subprocess.run(["docker", *words], input=stdin, capture_output=True, timeout=120, check=True)
    return done.stdout.decode().strip()


@pytest.fixture
def image(tmp_path: Path) -> Iterator[str]:
    """An image with nothing but a program that lives 5 ms and ends with its argument."""
    if shutil.which("gcc") is None:
        pytest.skip("missing feature: gcc")
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], check=False, capture_output=True).returncode
    ):
        pytest.skip("missing feature: a Docker engine")
    source = tmp_path / "crashing.c"
    source.write_text(CRASHING)
    built = subprocess.run(
        ["gcc", "-static", "-Os", "-o", str(tmp_path / "crashing"), str(source)],
        check=False,
        capture_output=True,
        text=True,
    )
    if built.returncode:
        pytest.skip(f"missing feature: a static C library: {built.stderr.strip()[-200:]}")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(tmp_path / "crashing", "crashing")
    name = docker("import", "-", stdin=packed.getvalue())
    yield name
    docker("rmi", "--force", name)


@contextlib.contextmanager
def container(image: str, policy: str, code: int) -> Iterator[str]:
    """A container's name while it is there."""
    name = f"kernob-{policy.replace(':', '-')}-{code}-{os.getpid()}"
    docker(
        "run",
        "--detach",
        "--network=none",
        f"--restart={policy}",
        f"--name={name}",
        image,
        "/crashing",
        str(code),
    )
    try:
        yield name
    finally:
        docker("rm", "--force", name)


def test_restart_policies_of_docker(agents: Path, image: str) -> None:
    """Lives of 5 ms, started again after 0.1, 0.2, 0.4... s: loops under the containers' names.

    `on-failure:5` gives up by itself; what ends well or is not started again is none.
    """
    with (
        # a busy engine takes a second and more for each start
        running_agent(agents / "loops-docker", crash_loop_window=20, **ALONE) as agent,
        container(image, "always", 0) as well,
        container(image, "no", 3) as once,
        container(image, "always", 139) as crashing,
        container(image, "on-failure:5", 3) as failing,
    ):
        for name, code in ((crashing, 139), (failing, 3)):
            event = began(agent, name)
            assert dict(event["details"])["kernob.crash_loop.restarts"] >= 3
            assert f"exit code {code}" in event["body"]
        wait_until(lambda: len(loop_events(agent, failing)) == 2, "the end of the one that gave up", 60)
        end = loop_events(agent, failing)[1]
        assert dict(end["details"])["kernob.crash_loop.restarts"] == 5
        assert "exit code 3 (6 times)" in end["body"]
        restarts = int(docker("inspect", "--format={{.RestartCount}}", well))
        assert restarts >= 3
        assert loop_events(agent, well) == loop_events(agent, once) == []


def test_what_is_none(agent: Agent, worker: Path, tmp_path: Path) -> None:
    """Short commands, polls, builds, pools, cron: many failures, no crash loop."""
    script = tmp_path / "none.sh"
    script.write_text(
        "i=0; while [ $i -lt 40 ]; do echo a | grep -q b; [ -e /nowhere ]; i=$((i + 1)); done\n"  # answers
        # a build: every tenth command fails, most are other commands
        f'i=0; while [ $i -lt 100 ]; do {worker} -c "exit $((i % 10 == 0))" $((i % 10)); i=$((i + 1)); done\n'
        # jobs, each of which has a parent of its own
        f"i=0; while [ $i -lt 10 ]; do ({worker} -c 'exit 1' job; :); i=$((i + 1)); done\n"
        "i=0; while [ $i -lt 10 ]; do (exit 1); i=$((i + 1)); done\n"  # subshells
    )
    pool = tmp_path / "pool.py"
    pool.write_text(
        "import os\n"
        "for _ in range(30):\n"
        "    if not os.fork(): os._exit(1)\n"
        "    os.wait()\n"
        "pids = [os.fork() or os.execlp('sleep', 'sleep', '60') for _ in range(20)]\n"
        "for pid in pids: os.kill(pid, 9)\n"
        "for _ in pids: os.wait()\n"
    )
    subprocess.run([SHELL, str(script)], check=False)
    subprocess.run([sys.executable, str(pool)], check=True)
    agent.wait_exports(3)
    names = {"grep", "[", worker.name, "none.sh", "pool.py", "sleep", Path(SHELL).name}
    found = [event for name in names for event in loop_events(agent, name)]
    assert [event["body"] for event in found] == []
