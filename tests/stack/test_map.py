# SPDX-License-Identifier: Apache-2.0
"""The service map where operators see it: in VictoriaMetrics and on its dashboard, against declared truths.

Three topologies run at the same time: three hosts with an agent each behind a router, whose maps the rules
join; seventeen services on one host; containers of a real engine, told by the stack's own agent.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from grafana import check
from grafana.boards import service_map

from . import dashboards
from .compose import Stack, progress, run, wait_for
from .load import IMAGE

KERNEL = Path(__file__).parents[1] / "kernel"
if str(KERNEL) not in sys.path:
    sys.path.append(str(KERNEL))

import three_hosts  # noqa: E402
import topology  # noqa: E402
from harness import Agent, running_agent  # noqa: E402

pytestmark = pytest.mark.slow_stack
"""Five agents and some thirty services beside the stack: minutes, and more than two busy cores carry."""

Edges = set[tuple[str, str, int]]
LIMIT_S = 420.0
MARK = f"kd{os.getpid()}"
"""Containers of this run are called so."""


@dataclass(frozen=True)
class World:
    """What runs, and since when (Unix time)."""

    stack: Stack
    hosts: topology.Topology
    one: topology.Topology
    containers: Edges
    since_s: float

    def edges(self, mark: str, hosts: tuple[str, ...], query: str = "") -> Edges:
        """Edges that touch a service of a topology, under the names that its truth has.

        By the dashboard's own words those that it shows of all that happened since the agents started.
        """
        shown = check.Range(self.since_s, time.time())
        words = {"host": "|".join(hosts), "class": ".*"}
        found: Edges = set()
        for sample in self.stack.victoria.query(
            check.interpolate(query or service_map.edges_seen(), words, shown)
        ):
            ends = sample.labels["source"], sample.labels["target"]
            if any(f"/{mark}-" in end for end in ends):
                source, target = (end.replace(f"{mark}-", "").removeprefix("vm/") for end in ends)
                found.add((source, target, int(sample.labels["server_port"])))
        return found

    def names(self, hosts: topology.Topology, *names: str) -> tuple[str, ...]:
        """Host names as their agents tell them."""
        return tuple(f"{hosts.mark}-{name}" for name in names)

    def containers_edges(self) -> Edges:
        """Edges of the containers, without the host's name before them."""
        host = socket.gethostname()
        return {
            (a.removeprefix(f"{host}/"), b.removeprefix(f"{host}/"), port)
            for a, b, port in self.edges(MARK, (host,))
        }


@contextlib.contextmanager
def agent_of(stack: Stack, host: str, directory: Path, where: str, **more: Any) -> Iterator[Agent]:
    """An agent that calls its host so and reports to the stack's Collector, which it reaches at `where`.

    It does what the map needs and no more: each of these agents watches the whole machine.
    """
    settings = {
        "scrape_interval": 2,
        "syscalls": "none",
        **dict.fromkeys(("lifecycle", "scores", "http", "process_flows"), "false"),
        **dict.fromkeys(("max_process_series", "max_flow_series", "max_histogram_series"), 10),
        "OTEL_RESOURCE_ATTRIBUTES": f"host.name={host}",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": where,
    }
    with running_agent(directory, **settings, **more) as agent:
        yield agent
        agent.process.terminate()  # what it counted of the whole machine is not looked at here
        agent.process.wait(60)


@contextlib.contextmanager
def containers() -> Iterator[Edges]:
    """A server with published ports, a client on its bridge, one on the host's network; their edges."""
    (gateway,) = {
        each["Gateway"]
        for each in json.loads(run("docker", "network", "inspect", "bridge"))[0]["IPAM"]["Config"]
    }
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        local, bridge = one.getsockname()[1], two.getsockname()[1]
    names = []

    def start(name: str, *options: str, **plan: Any) -> None:
        names.append(f"{MARK}-{name}")
        workloads = KERNEL / "workloads"
        run(
            "docker", "run", "-d", "--name", names[-1], *options, "--entrypoint", "python3",
            "-v", f"{workloads}:/workloads:ro", IMAGE, "/workloads/service.py", json.dumps(plan),
        )  # fmt: skip

    try:
        published = ("-p", f"127.0.0.1:{local}:8000", "-p", f"{gateway}:{bridge}:8000")
        start("server", *published, listen=["0.0.0.0", 8000], workers=2)
        inside = run(
            "docker", "inspect", "-f", "{{.NetworkSettings.Networks.bridge.IPAddress}}", names[-1]
        ).strip()
        start("inside", calls=[[inside, 8000, "keep", topology.HTTP]])
        calls = [[gateway, bridge, "short", topology.HTTP], ["127.0.0.1", local, "short", topology.HTTP]]
        start("outside", "--network", "host", calls=calls)
        yield {
            ("inside", "server", 8000), ("outside", "server", bridge),
            ("outside", "docker-proxy", local), ("docker-proxy", "server", 8000),
        }  # fmt: skip
    finally:
        run("docker", "rm", "-f", *names)


@pytest.fixture(scope="module")
def world(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """All three, complete in VictoriaMetrics; what is missing by then the tests name."""
    directory, collector = tmp_path_factory.mktemp("map"), stack.settings["KERNOB_PORT_OTLP_HTTP"]
    (directory / "hosts").mkdir()
    (directory / "one").mkdir()
    since_s = time.time()
    with contextlib.ExitStack() as entered:
        enter = entered.enter_context
        shown = enter(containers())
        hosts = enter(three_hosts.built(directory / "hosts"))
        enter(three_hosts.relay(hosts, ("127.0.0.1", int(collector))))
        one = enter(topology.built(directory / "one"))
        here = f"http://127.0.0.1:{collector}"
        enter(agent_of(stack, f"{one.mark}-vm", directory / "vm", here, **one.settings))
        for name in (*topology.SERVERS, *topology.CLIENTS):
            one.start(name)
        for _ in range(3):
            one.start(topology.JOB)
            one.running.pop(topology.JOB).wait(60)
        for name, router in three_hosts.ROUTER.items():
            where = f"http://{router}:{three_hosts.PORT}"
            inside = ("nsenter", f"--net=/run/netns/{hosts.ns(name)}")
            own = {"prefix": inside, "map_own_namespace": "true", "names": "false"}
            enter(agent_of(stack, f"{hosts.mark}-{name}", directory / name, where, **own))
        found = World(stack, hosts, one, shown, since_s)
        _wait(found)
        yield found


def _wait(world: World) -> None:
    """Waits until all three are true; says when each was first."""
    began_s = time.monotonic()
    wanted: dict[str, Callable[[], bool]] = {
        "three hosts": lambda: (
            world.edges(world.hosts.mark, world.names(world.hosts, *"abc")) == three_hosts.TRUTH
        ),
        "one host": lambda: world.edges(world.one.mark, world.names(world.one, "vm")) == world.one.truth(),
        "containers": lambda: world.containers_edges() == world.containers,
    }
    told: set[str] = set()

    def complete() -> bool:
        world.stack.victoria.flush()
        true = {name for name, is_true in wanted.items() if is_true()}
        for name in sorted(true - told):
            progress(f"{name}: true after {time.monotonic() - began_s:.0f} s")
        told.update(true)
        return len(true) == len(wanted)

    try:
        took_s = wait_for(complete, "the maps to be true", LIMIT_S, 3)
    except TimeoutError as error:
        progress(f"{error}; now the tests look at what there is")
    else:
        progress(f"the three maps were true {took_s:.0f} s after the last agent was ready")


def test_three_hosts_are_one_map(world: World) -> None:
    """Joined by the rules, edge for edge; what a router hides stays as each side knows it."""
    hosts = world.names(world.hosts, *"abc")
    assert world.edges(world.hosts.mark, hosts) == three_hosts.TRUTH
    alone = world.edges(world.hosts.mark, hosts, 'kernob_map_edge{host_name=~"$host"}')
    assert ("a/shop", f"ip/{three_hosts.ADDRESSES['b']}", 8080) in alone  # what the agents know
    assert ("clients/internal", "a/cache", 6379) in alone


def test_seventeen_services_are_the_truth(world: World) -> None:
    """The metrics say what `kernob map` says (tests/kernel/test_map_truth.py)."""
    found = world.edges(world.one.mark, world.names(world.one, "vm"))
    assert found == world.one.truth()


def test_containers_of_a_real_engine(world: World) -> None:
    """Published ports end at the container; docker-proxy is between where it really relays."""
    assert world.containers_edges() == world.containers


@pytest.mark.parametrize("which", ["hosts", "one", "all"])
def test_the_dashboard_draws_it(world: World, which: str) -> None:
    """Its own queries and transformations, by both releases' code: nothing is lost on the way."""
    chosen = {
        "hosts": world.names(world.hosts, *"abc"), "one": world.names(world.one, "vm"), "all": (),
    }[which]  # fmt: skip
    boards = {"kernob-map": check.load()["kernob-map"]}
    shown = check.Range(world.since_s, time.time())  # while services and agents came up, too
    runs = check.run(world.stack.victoria.url, shown, {"host": list(chosen)} if chosen else {}, boards)
    assert dashboards.query_problems(runs) == []
    assert dashboards.frame_problems(boards, runs) == []
    (edges,) = [each for each in runs if (each.place, each.ref) == ("Service map", "B")]
    (nodes,) = [each for each in runs if (each.place, each.ref) == ("Service map", "A")]
    known = {row["metric"]["id"] for row in nodes.result}
    drawn = [row["metric"] for row in edges.result]
    assert {row[end] for row in drawn for end in ("source", "target")} == known
    if which == "hosts":
        truth, mark = three_hosts.TRUTH, world.hosts.mark
    elif which == "one":
        truth, mark = world.one.truth(), world.one.mark
    else:
        return
    found = set()
    for row in drawn:
        if any(f"/{mark}-" in row[end] for end in ("source", "target")):
            ends = (row[end].replace(f"{mark}-", "").removeprefix("vm/") for end in ("source", "target"))
            found.add((*ends, int(row["server_port"])))
    assert found == truth
