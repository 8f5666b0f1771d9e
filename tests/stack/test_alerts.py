# SPDX-License-Identifier: Apache-2.0
"""The rules in the running stack: their unit tests, their health, and alerts that fire on real faults.

For the faults a second vmalert evaluates a copy of the rules with short durations (`quick`), so that what
takes ten minutes in life takes one here; expressions are otherwise as they are. Recordings of the copy and
of the stack's own vmalert stand side by side in the database for that time, with the same values.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from compose.rules import quick

from .compose import ROOT, Stack, free_ports, progress, run, wait_for

IMAGE = "kernob/victoriametrics:packages"
PLACE = ROOT / "victoriametrics"
TEST_FILES = sorted(file.name for file in (PLACE / "tests").glob("*.yaml"))
BYTES_PER_S = 20_000_000
SINK = ("10.93.71.1", "10.93.71.2", 9_000)

SENDER = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as peer:
    while True:
        peer.sendall(bytes(int(sys.argv[3]) // 20))
        time.sleep(0.05)
"""
RECEIVER = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:
    print("ready", flush=True)
    peer, _ = server.accept()
    while peer.recv(1 << 20):
        pass
"""


@dataclass(frozen=True)
class Alert:
    """One alert that vmalert holds."""

    name: str
    state: str
    labels: dict[str, str]
    annotations: dict[str, str]


NO_ANSWER = (OSError, HTTPException)
PATIENCE_S = 60


def get_now(url: str) -> Any:
    """JSON that a GET answers; one of NO_ANSWER is raised where it does not in time."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


def get(url: str) -> Any:
    """The same, asked again while a busy machine does not answer in time."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return get_now(url)
        except NO_ANSWER:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(1)


class Alarm:
    """A vmalert of our own, on the host's network, that evaluates the quick copy."""

    def __init__(self, stack: Stack, rules: Path) -> None:
        for file in (PLACE / "rules").glob("*.yaml"):
            (rules / file.name).write_text(quick(file.read_text()))
        port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{port}"
        database = stack.url("VICTORIAMETRICS")
        self.container = run(
            "docker", "run", "-d", "--rm", "--network=host", "-v", f"{rules}:/rules:ro",
            "--entrypoint=/usr/bin/vmalert", IMAGE, "-rule=/rules/*.yaml",
            f"-httpListenAddr=127.0.0.1:{port}", f"-datasource.url={database}",
            f"-remoteWrite.url={database}",
            "-remoteWrite.flushInterval=1s",
            "-rule.evalDelay=0s", "-notifier.blackhole", "-external.url=http://grafana.example",
        ).strip()  # fmt: skip

    def alerts(self, name: str) -> list[Alert]:
        """The pending and firing alerts of this name."""
        found = get(f"{self.url}/api/v1/alerts")["data"]["alerts"] or []
        every = (Alert(a["name"], a["state"], a["labels"], a["annotations"]) for a in found)
        return [alert for alert in every if alert.name == name]

    def firing(self, name: str, **labels: str) -> list[Alert]:
        """Those that fire and have these labels."""
        return [
            alert for alert in self.alerts(name)
            if alert.state == "firing" and labels.items() <= alert.labels.items()
        ]  # fmt: skip

    def wait_firing(self, name: str, limit_s: float, **labels: str) -> Alert:
        """Wait until it fires."""
        found: list[Alert] = []

        def fires() -> bool:
            found[:] = self.firing(name, **labels)
            return bool(found)

        took_s = wait_for(fires, f"{name} to fire", limit_s)
        progress(f"{name} fires after {took_s:.0f} s")
        return found[0]

    def wait_resolved(self, name: str, limit_s: float, **labels: str) -> None:
        """Wait until it fires no more."""
        took_s = wait_for(lambda: not self.firing(name, **labels), f"{name} to resolve", limit_s)
        progress(f"{name} resolved after {took_s:.0f} s")


@pytest.fixture
def alarm(healthy: Stack, tmp_path: Path) -> Iterator[Alarm]:
    """The second vmalert, ended at the end."""
    running = Alarm(healthy, tmp_path)
    try:
        wait_for(lambda: answers(running.url), "vmalert to answer", 30)
        yield running
    finally:
        run("docker", "rm", "-f", running.container)


def answers(url: str) -> bool:
    """Whether vmalert is there."""
    try:
        return bool(get_now(f"{url}/api/v1/rules")["status"] == "success")
    except NO_ANSWER:
        return False


@contextlib.contextmanager
def cable() -> Iterator[str]:
    """A network namespace at the end of an interface that counts (its name is not a virtual kind's)."""
    tag = f"kn{os.getpid() % 100_000}"
    run("ip", "netns", "add", tag)
    try:
        run("ip", "link", "add", f"{tag}a", "type", "veth", "peer", "name", f"{tag}b", "netns", tag)
        run("ip", "address", "add", f"{SINK[0]}/24", "dev", f"{tag}a")
        run("ip", "link", "set", f"{tag}a", "up")
        run("ip", "-n", tag, "address", "add", f"{SINK[1]}/24", "dev", f"{tag}b")
        run("ip", "-n", tag, "link", "set", f"{tag}b", "up")
        yield tag
    finally:
        run("ip", "netns", "delete", tag)


@contextlib.contextmanager
def program(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is killed at the end."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", TEST_FILES)
def test_rules_do_what_their_tests_say(images: float, name: str) -> None:
    """vmalert-tool of the image the stack runs passes the rules' unit tests."""
    printed = run(
        "docker", "run", "--rm", "--network=none", "-v", f"{PLACE}:/rules:ro",
        "--entrypoint=/usr/bin/vmalert-tool", IMAGE, "unittest", f"--files=/rules/tests/{name}", "--external.url=http://grafana.example",
        "--disableAlertgroupLabel=true",
    )  # fmt: skip
    assert "SUCCESS" in printed


def test_every_rule_is_evaluated_without_error(healthy: Stack) -> None:
    """The stack's own vmalert has read all rules, and evaluates each on real data."""
    written = sum(
        len(re.findall(r"^ +- (?:alert|record): ", file.read_text(), re.MULTILINE))
        for file in (PLACE / "rules").glob("*.yaml")
    )

    rules: list[dict[str, Any]] = []

    def all_evaluated() -> bool:
        groups = get(f"{healthy.url('VMALERT')}/api/v1/rules")["data"]["groups"]
        rules[:] = [rule for group in groups for rule in group["rules"]]
        return all(not rule["lastEvaluation"].startswith("0001") for rule in rules)

    wait_for(all_evaluated, "every rule's first evaluation", 180, 2)
    assert len(rules) == written
    assert {rule["name"]: rule["lastError"] for rule in rules if rule["lastError"]} == {}


def test_the_owner_of_the_interface_is_named_and_then_no_more(alarm: Alarm, healthy: Stack) -> None:
    """20 MB/s of one process over an interface fire KernobInterfaceOwned with its PID; their end ends it."""
    address, port = SINK[1], str(SINK[2])
    with cable() as namespace, program(
        "ip", "netns", "exec", namespace, sys.executable, "-c", RECEIVER, address, port
    ) as receiver:  # fmt: skip
        assert receiver.stdout
        assert receiver.stdout.readline() == "ready\n"
        with program(sys.executable, "-c", SENDER, address, port, str(BYTES_PER_S)) as sender:
            who = {"process_pid": str(sender.pid), "network_io_direction": "transmit"}
            alert = alarm.wait_firing("KernobInterfaceOwned", 150, **who)
            told = " ".join(alert.annotations.values())
            assert f"PID {sender.pid}" in told
            assert f"{address} port {port}" in told
            assert f"http://grafana.example/d/kernob-bandwidth?var-host={alert.labels['host_name']}" in told
            since = healthy.victoria.query(f'kernob:owner:since_seconds{{process_pid="{sender.pid}"}}')
            assert since
            assert all(0 <= time.time() - sample.value < 200 for sample in since)
        alarm.wait_resolved("KernobInterfaceOwned", 120, **who)


def silence_the_collector(alarm: Alarm, stack: Stack, host: dict[str, str]) -> None:
    """Stop it so that the agent's last sample is no older than the last of the Collector's own.

    Else the agent is silent for longer than its host, and is accused for as long as that, which is right.
    """
    name = host["host_name"]
    own, agent = (
        f'max(tlast_over_time({metric}{{host_name="{name}"}}[5m]))'
        for metric in ("system_cpu_load_average_1m", "kernob_lost_total")
    )

    def agent_came_last() -> bool:
        stack.victoria.flush()
        return bool(stack.victoria.query(f"{agent} >= {own}"))

    for _ in range(10):
        for alert in ("KernobAgentDown", "KernobCollectorDown"):
            alarm.wait_resolved(alert, 120, **host)
        wait_for(agent_came_last, "the agent to come last", 60)
        stack.stop("collector")
        if agent_came_last():
            return
        progress("the Collector's own sample came last; it is stopped once more")
        stack.start("collector")
    pytest.fail("the Collector never ended with the agent's sample as the last one")


def test_a_silent_agent_and_a_silent_collector_are_told_apart(alarm: Alarm, healthy: Stack) -> None:
    """Without its agent a host is KernobAgentDown's, without its Collector KernobCollectorDown's alone."""
    host = {"host_name": socket.gethostname()}
    healthy.stop("agent")
    alert = alarm.wait_firing("KernobAgentDown", 120, **host)
    assert "silent since 20" in alert.annotations["description"]
    assert not alarm.firing("KernobCollectorDown")
    healthy.start("agent")
    alarm.wait_resolved("KernobAgentDown", 60, **host)

    silence_the_collector(alarm, healthy, host)
    accused: list[Alert] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(1):
            with contextlib.suppress(*NO_ANSWER):
                accused.extend(alarm.firing("KernobAgentDown", **host))

    witness = threading.Thread(target=look)
    witness.start()
    try:
        alert = alarm.wait_firing("KernobCollectorDown", 120, **host)
        assert "agent there is silent too" in alert.annotations["description"]
    finally:
        over.set()
        witness.join()
        healthy.start("collector")
    assert accused == []
    alarm.wait_resolved("KernobCollectorDown", 60, **host)
