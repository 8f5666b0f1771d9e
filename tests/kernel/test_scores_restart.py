# SPDX-License-Identifier: Apache-2.0
"""Windows of scores outlive the agent: one that is asked to end, and one that is killed."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest
from harness import Agent, running_agent, wait_until
from tcp_watch import act

GOOD, REFUSED = 30, 10


def connects(port: int) -> None:
    """So many that are answered, then some at a closed door."""
    door = socket.socket()
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    door.bind(("127.0.0.1", port))
    door.listen(64)
    for _ in range(GOOD):
        with socket.create_connection(("127.0.0.1", port)):
            door.accept()[0].close()
    door.close()
    for _ in range(REFUSED):
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", port)) != 0


def told(otlp: Path, port: int, after_line: int) -> dict[str, tuple[float, str]]:
    """What this life of the agent said of a port's reliability: score, and samples with their reason."""
    found: dict[str, tuple[float, str]] = {}
    for line in otlp.read_bytes().split(b"\n")[after_line:-1]:
        if b'"kernob.dependency.' not in line:
            continue
        for metric in json.loads(line)["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]:
            for point in metric.get("gauge", {}).get("dataPoints", ()):
                said = {each["key"]: next(iter(each["value"].values())) for each in point["attributes"]}
                if (said.get("server.port"), said.get("kernob.score.dimension")) != (
                    str(port),
                    "reliability",
                ):
                    continue
                value = float(point.get("asDouble", point.get("asInt", 0)))
                found[metric["name"].rpartition(".")[2]] = value, str(said.get("error.type", ""))
    return found


def test_a_restart_forgets_no_score(agents: Path) -> None:
    """Nor its samples and their reason: after SIGTERM, and after SIGKILL what was written before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    directory = agents / "scores-restart"

    def life(ends_by: signal.Signals, *, first: bool = False) -> dict[str, tuple[float, str]]:
        otlp = directory / "otlp.jsonl"
        before = len(otlp.read_bytes().split(b"\n")) - 1 if otlp.exists() else 0
        with running_agent(directory, names="false", map="false") as agent:
            if first:
                agent.wait_exports(1)
                act(connects, port).wait()

            def complete(agent: Agent = agent) -> bool:
                return (
                    agent.is_ready() and told(otlp, port, before).get("samples", (0, ""))[0] == GOOD + REFUSED
                )

            wait_until(complete, "the score", 60)
            agent.wait_exports(1)
            found = told(otlp, port, before)
            if ends_by is signal.SIGKILL:
                agent.process.kill()
                agent.process.wait()
            else:
                agent.stop(ends_by)
        return found

    first = life(signal.SIGTERM, first=True)
    assert first["samples"] == (float(GOOD + REFUSED), "refused")
    assert first["score"][0] == pytest.approx(GOOD / (GOOD + REFUSED), abs=0.02)
    for ends_by in (signal.SIGKILL, signal.SIGTERM):
        again = life(ends_by)
        assert again["samples"] == first["samples"]
        assert again["score"][0] == pytest.approx(first["score"][0], abs=0.02)
