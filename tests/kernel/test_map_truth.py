# SPDX-License-Identifier: Apache-2.0
"""The service map against the declared truth: real services, every edge, none missing, none extra."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from harness import PROGRAM, environment, running_agent, wait_until
from topology import BEYOND, CLIENTS, JOB, PAY_NAME, SERVERS, VIRTUAL, Topology, built

LIMIT_S = 180.0


def show(directory: Path, *command: str) -> dict[str, Any]:
    """The document of a command (`kernob map`), of the agent or the store under `directory`."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        done = subprocess.run(
            [*PROGRAM, *(command or ("map", "--since", "1h", "--format", "json"))],
            env=environment(socket=directory / "run" / "agent.sock", state_dir=directory / "state"),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return dict(json.loads(done.stdout))
        assert "too busy" in done.stderr, done.stderr  # this machine does other things, too
        assert time.monotonic() < deadline, done.stderr


def edges(directory: Path, topology: Topology) -> set[tuple[str, str, int]]:
    """The edges that touch a service of the topology, under the names its truth has."""
    prefix = f"{os.uname().nodename}/{topology.mark}-"
    found = {(e["source"], e["target"], e["port"]) for e in show(directory)["edges"]}
    mine = {e for e in found if prefix in e[0] or prefix in e[1]}
    return {(a.removeprefix(prefix), b.removeprefix(prefix), port) for a, b, port in mine}


def scores(directory: Path, topology: Topology, edge: tuple[str, str, int]) -> dict[str, float]:
    """Scores by dimension of an edge from one service of the topology to another, or to a node's id."""
    prefix = f"{os.uname().nodename}/{topology.mark}-"
    source, target, port = edge
    ends = prefix + source, target if "/" in target else prefix + target, port
    for row in show(directory)["edges"]:
        if (row["source"], row["target"], row["port"]) == ends:
            return dict(row["scores"])
    return {}


def known(directory: Path, topology: Topology, service: str) -> set[tuple[str, int]]:
    """Where the baseline says that a service talks to beyond this host, as a person is shown it."""
    words = ("destinations", "list", f"{topology.mark}-{service}", "--json")
    rows = show(directory, *words)["destinations"]
    return {(row["address"], row["port"]) for row in rows if row["target"].startswith(("ip/", "dns/"))}


def first_seen(directory: Path, topology: Topology) -> dict[tuple[str, str, int], int]:
    """When each of these edges was seen first."""
    rows = show(directory)["edges"]
    mine = [e for e in rows if topology.mark in e["source"] or topology.mark in e["target"]]
    return {(e["source"], e["target"], e["port"]): e["first_unix_ns"] for e in mine}


def until_true(directory: Path, topology: Topology) -> None:
    """Wait for the map to have every edge of the truth; then it must have no other."""
    missing: set[tuple[str, str, int]] = set()

    def complete() -> bool:
        missing.clear()
        missing.update(topology.truth() - edges(directory, topology))
        if missing:
            time.sleep(1)  # asking is not free
        return not missing

    try:
        wait_until(complete, "the map to be complete", LIMIT_S)
    except pytest.fail.Exception:
        extra = edges(directory, topology) - topology.truth()
        pytest.fail(f"missing: {sorted(missing)}; extra: {sorted(extra)}")
    assert edges(directory, topology) == topology.truth()


def test_the_map_is_the_truth_through_restarts_of_everything(agents: Path) -> None:
    """17 services in 5 namespaces; again after each was restarted, and after the agent was.

    nginx, haproxy, redis, postgresql and rabbitmq are the real ones; app forks its workers; web and redis are
    in containers, docker-proxy before web; job.py is cron's; payments is known by its hostname only. Two
    networks are folded to one node each; what of them is this host's own, or has a hostname, is not.
    """
    directory = agents / "map-truth"
    (directory / "topology").mkdir(parents=True)
    with built(directory / "topology") as topology:
        with running_agent(directory, **topology.settings) as agent:
            for name in SERVERS:
                topology.start(name)
            # a first attempt that is refused would be in scraper's score for ten minutes
            wait_until(lambda: topology.listens("redis", 6379), "redis to listen", LIMIT_S)
            for name in CLIENTS:
                topology.start(name)
            for _ in range(3):
                topology.start(JOB)
                topology.running.pop(JOB).wait(30)
            until_true(directory, topology)

            def scored() -> bool:
                good = scores(directory, topology, ("scraper", "redis", 6379))
                bad = scores(directory, topology, ("app", f"ip/{BEYOND}", 443))
                return good.get("reliability") == 1 and bad.get("reliability", 1) < 0.1

            wait_until(scored, "edges to have their own scores", LIMIT_S)
            assert known(directory, topology, "app") == {(BEYOND, 443), (PAY_NAME, 443)}
            for name in (*SERVERS, *CLIENTS):
                topology.stop(name)
                topology.start(name)
            agent.wait_exports(6)
            until_true(directory, topology)
            before = first_seen(directory, topology)
        assert edges(directory, topology) == topology.truth()  # out of the store
        with running_agent(directory, **topology.settings) as agent:
            agent.wait_exports(6)
            until_true(directory, topology)
            assert first_seen(directory, topology) == before
            assert known(directory, topology, "remote") == {(VIRTUAL, 80)}
