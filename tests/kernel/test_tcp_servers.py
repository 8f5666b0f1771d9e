# SPDX-License-Identifier: Apache-2.0
"""Real servers and their ordinary clients: nothing normal is a drop, and idle timeouts are what they are.

nginx, haproxy, redis, postgres and rabbitmq from packages, in a namespace of their own. Facts are compared
for that whole namespace: also what servers do among themselves (health checks, node protocols) must be right.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import real_servers as servers
from harness import SCALE, scaled, wait_until
from real_servers import AMQP, HTTP, HTTP_SHORT, HTTPS, POSTGRES, PROXY, REDIS, Stage
from tcp_watch import Watch, name_of

PSQL = ("-h", "127.0.0.1", "-p", POSTGRES, "-U", "postgres")
LOG_LIMIT_S = 0.05
"""How far the kernel's time of a close may be from the time in the server's own log."""


@dataclass
class World:
    """Everything running, and who watches."""

    watch: Watch
    stage: Stage
    processes: dict[str, subprocess.Popen[bytes]]
    told: Counter[str]

    def facts(self) -> Counter[str]:
        """What happened in the namespace since the last call, by "role fact"."""
        time.sleep(0.2)
        now = self.watch.by_fact(self.stage.inode)
        new = now - self.told
        self.told = now
        return new

    def settled(self) -> Counter[str]:
        """The same once every connection has been accepted, too: nobody asks meanwhile, haproxy neither."""
        checks = self.processes["haproxy"]
        checks.send_signal(signal.SIGSTOP)
        try:
            facts: Counter[str] = Counter()

            def equal() -> bool:
                facts.update(self.facts())
                return facts["client connection ok"] == facts["server connection ok"]

            wait_until(equal, "all connections to be accepted")
        finally:
            checks.send_signal(signal.SIGCONT)
        return facts

    def client(self, what: str, port: int, count: int) -> int:
        """Runs a client to its end; how many exchanges it made."""
        done = subprocess.run(
            self.stage.client(what, port, count), capture_output=True, text=True, timeout=120, check=False
        )
        assert (done.returncode, done.stdout) == (0, f"{count}\n"), f"{what}: {done.stdout}{done.stderr}"
        self.watch.drain()  # as an agent does: what others do on this machine fills the maps, too
        return count

    def events_at(self, port: int, side: str, kind: str = "reset") -> list[np.void]:
        """Events of a kind on connections to a port, as one side knows them ("client" or "server")."""
        self.watch.drain()
        role = {"client": 1, "server": 2}[side]
        return [
            event
            for event in self.watch.events
            if int(event["flow"]["netns"]) == self.stage.inode
            and int(event["flow"]["role"]) == role
            and int(event["flow"]["port"]) == port
            and name_of(event).startswith(kind)
        ]


def wrong(facts: Counter[str]) -> list[str]:
    """What normal traffic must not have: drops, timeouts, attempts that failed."""
    fine = ("connection ok", "reset sent", "reset received", "retransmit", "stall")
    return [fact for fact in facts if not any(word in fact for word in fine)]


@pytest.fixture(scope="module")
def world(watch: Watch) -> Iterator[World]:
    """All servers up, under watch."""
    missing = servers.missing()
    if missing:
        pytest.skip(f"missing feature: packages {' '.join(missing)}")
    with servers.stage() as stage:
        processes = servers.start_all(stage)
        yield World(watch, stage, processes, Counter())


def test_ten_thousand_normal_exchanges_are_no_drop(world: World) -> None:
    """Not one drop, timeout or failed attempt, whoever asks whom.

    Keep-alive, Connection: close, HTTP/1.0, HEAD, TLS, HTTP/2, long polls, WebSocket, chunked, proxied;
    commands, pipelines, pub/sub; statements, LISTEN/NOTIFY; AMQP with acknowledgements and heartbeats.
    """
    made = sum(
        world.client(what, port, scaled(count, 20))
        for what, port, count in (
            ("http_keepalive", HTTP, 1500),
            ("http_close", HTTP, 600),
            ("http_10", HTTP, 600),
            ("https", HTTPS, 300),
            ("http_pool", HTTP, 600),
            ("http_long_poll", HTTP, 200),
            ("http_keepalive", PROXY, 500),
            ("http_close", PROXY, 300),
            ("http_pool", PROXY, 200),
            ("websocket", HTTP, 300),
            ("redis_commands", REDIS, 2000),
            ("redis_subscriber", REDIS, 300),
            ("postgres_queries", POSTGRES, 2000),
            ("postgres_listen", POSTGRES, 300),
            ("amqp", AMQP, 1000),
        )
    )
    stage, more = world.stage, scaled(500, 20)
    stage.run("redis-benchmark", "-p", REDIS, "-n", more, "-q", "-t", "get,lpush")
    stage.run("pgbench", *PSQL, "-i", "-q", "postgres")
    stage.run("pgbench", *PSQL, "-c", 4, "-t", more // 4, "postgres")
    stage.run("pgbench", *PSQL, "-C", "-S", "-t", 20, "postgres")
    stage.run("psql", *PSQL, "-c", "select 1", "postgres")
    stage.run("redis-cli", "-p", REDIS, "ping")
    stage.run("curl", "-sS", "-o", "/dev/null", f"http://127.0.0.1:{HTTP}/page?[1-{more}]")
    stage.run("curl", "-sSk", "-o", "/dev/null", f"https://127.0.0.1:{HTTPS}/large")
    many = ("--http2", "-Z", "--parallel-max", 20, "-w", "%{http_version} ", "-o", "/dev/null")
    said = stage.run("curl", "-sSk", *many, f"https://127.0.0.1:{HTTPS}/page?[1-{more}]")
    assert said.split() == ["2"] * more
    stage.run("curl", "-sS", "-I", f"http://127.0.0.1:{PROXY}/large")
    stage.run("curl", "-sS", "-H", "Connection: close", "-o", "/dev/null", f"http://127.0.0.1:{PROXY}/large")
    made += 2 * more + more + 20 + 2 * more + 5
    facts = world.settled()
    print(f"{made} exchanges: {dict(facts)}")
    assert SCALE < 1 or made >= 10_000
    assert wrong(facts) == []
    assert facts["client connection ok"] > 2000 * SCALE
    assert world.watch.lost() == {}


def test_idle_timeouts_of_servers_are_no_drop(world: World) -> None:
    """nginx, haproxy, redis and postgres end idle connections after 2 s; clients meet that anytime."""
    world.client("http_idle", HTTP_SHORT, 6)
    world.client("http_idle_once", PROXY, 2)
    world.client("redis_idle", REDIS, 2)
    world.client("postgres_idle", POSTGRES, 1)
    facts = world.facts()
    assert wrong(facts) == []
    assert not world.events_at(REDIS, "client", "drop")


def test_restarts_are_no_drop(world: World) -> None:
    """Every server ended in order and started again, with clients' connections open and idle meanwhile."""
    holders = {
        port: subprocess.Popen(world.stage.client(what, port, 1), stdout=subprocess.PIPE, text=True)
        for what, port in (("http_hold", HTTP), ("redis_hold", REDIS), ("postgres_hold", POSTGRES))
    }
    for holder in holders.values():
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
    # its health check would be dropped if nginx ended before it accepted it
    world.stage.stop(world.processes["haproxy"], signal.SIGUSR1)
    for name, number in (("nginx", signal.SIGQUIT), ("redis", signal.SIGTERM), ("postgres", signal.SIGINT)):
        world.stage.stop(world.processes[name], number)
        world.processes[name] = servers.STARTERS[name](world.stage)
    world.processes["haproxy"] = servers.STARTERS["haproxy"](world.stage)
    for holder in holders.values():
        assert holder.communicate(timeout=60)[0] == "1\n"
        assert holder.returncode == 0
    facts = world.facts()
    # a pool may have met a closed port for a moment, which is what it was
    assert [fact for fact in wrong(facts) if fact != "client connection refused"] == []


def test_the_brokers_idle_timeout_is_told_at_its_time(world: World) -> None:
    """A consumer that is stopped: the broker misses its heartbeats and resets.

    The event is an idle reset, of that process, at the time in the broker's log.
    """
    client = subprocess.Popen(world.stage.client("amqp_consumer", AMQP, 0), stdout=subprocess.PIPE, text=True)
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == "subscribed\n"
        time.sleep(2.5)  # some heartbeats
        os.kill(client.pid, signal.SIGSTOP)
        log = world.stage.directory / "rabbitmq" / "broker.log"
        wait_until(lambda: "missed heartbeats from client" in log.read_text(), "the broker's timeout", 30)
        time.sleep(0.5)
        offset_ns = time.time_ns() - time.monotonic_ns()
        os.kill(client.pid, signal.SIGCONT)
        assert "ended" in client.communicate(timeout=30)[0]
    finally:
        client.kill()
        client.wait()
    (event,) = world.events_at(AMQP, "client")
    assert name_of(event) == "reset received idle"
    assert int(event["flow"]["tgid"]) == client.pid
    stamps = re.findall(r"^(\S+ \S+) .* missed heartbeats from client", log.read_text(), re.MULTILINE)
    stamp = stamps[-1]
    logged_s = dt.datetime.fromisoformat(stamp).timestamp()
    told_s = (int(event["time_ns"]) + offset_ns) / 1e9
    print(f"broker's log {stamp}, event {1000 * (told_s - logged_s):+.2f} ms")
    assert abs(told_s - logged_s) < LOG_LIMIT_S
    (sent,) = world.events_at(AMQP, "server", "reset sent")[-1:]
    assert abs(int(sent["time_ns"]) - int(event["time_ns"])) < LOG_LIMIT_S * 1e9
    assert wrong(world.facts()) == []


def test_a_server_that_is_killed_in_an_answer_is_a_drop(world: World) -> None:
    """The other way round, so that the tests above mean something: redis killed with commands unanswered."""
    client = subprocess.Popen(
        world.stage.client("redis_blocked", REDIS, 1), stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "asking\n"
    time.sleep(0.5)
    world.stage.stop(world.processes["redis"], signal.SIGKILL)
    assert client.communicate(timeout=30)[0] == "1\n"
    facts = world.facts()
    assert {fact: n for fact, n in facts.items() if "drop" in fact} == {"client drop unanswered by peer": 1}
    world.processes["redis"] = servers.start_redis(world.stage)
