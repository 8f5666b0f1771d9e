# SPDX-License-Identifier: Apache-2.0
"""Real servers and their ordinary clients: nothing that is normal is called a drop."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import real_servers as servers
from real_servers import Stage
from tcp_watch import Watch, watching


@pytest.fixture(scope="module")
def watch(agents: Path) -> Iterator[Watch]:
    with watching(agents / "cache") as found:
        yield found


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with servers.stage() as made:
        yield made


def play(stage, name, port, count):
    import time
    t = time.monotonic()
    done = subprocess.run(stage.client(name, port, count), capture_output=True, text=True)
    print(name, count, done.stdout.strip()[-200:], done.stderr[-1500:], f"{time.monotonic()-t:.1f} s")


def test_it(watch: Watch, stage: Stage) -> None:
    import time
    t=time.monotonic()
    nginx = servers.start_nginx(stage); print("nginx", time.monotonic()-t); t=time.monotonic()
    hap = servers.start_haproxy(stage); print("hap", time.monotonic()-t); t=time.monotonic()
    red = servers.start_redis(stage); print("red", time.monotonic()-t); t=time.monotonic()
    pg = servers.start_postgres(stage); print("pg", time.monotonic()-t); t=time.monotonic()
    rab = servers.start_rabbitmq(stage); print("rab", time.monotonic()-t); t=time.monotonic()
    app = subprocess.Popen(stage.client("application", servers.SLOW_HTTP, 0)); stage.wait_for(servers.SLOW_HTTP)
    def show(what):
        facts = watch.by_fact(stage.inode)
        new = facts - show.before
        show.before = facts
        print(what, dict(new))
    from collections import Counter
    show.before = Counter()
    show("start")
    for name, port, count in [("http_keepalive", 80, 1000), ("http_close", 80, 500), ("http_10", 80, 500), ("https", 443, 300), ("http_pool", 80, 500), ("http_keepalive", 8080, 400), ("http_close", 8080, 300), ("http_pool", 8080, 200), ("http_idle", 81, 20), ("websocket", 80, 200), ("redis_commands", 6379, 2000), ("redis_subscriber", 6379, 300), ("postgres_queries", 5432, 2000), ("postgres_listen", 5432, 300), ("amqp", 5672, 1000)]:
        play(stage, name, port, count)
        show(name)
    print(stage.run("redis-benchmark", "-p", 6379, "-n", 1000, "-q", "-t", "get,set,lpush")[-200:])
    show("redis-benchmark")
    stage.run("pgbench", "-h", "127.0.0.1", "-U", "postgres", "-i", "-q", "postgres")
    print(stage.run("pgbench", "-h", "127.0.0.1", "-U", "postgres", "-c", "4", "-t", "100", "postgres")[-300:])
    show("pgbench")
    print(stage.run("pgbench", "-h", "127.0.0.1", "-U", "postgres", "-c", "2", "-t", "50", "-C", "-S", "postgres")[-300:])
    show("pgbench -C")
    stage.run("curl", "-sS", "-o", "/dev/null", "http://127.0.0.1/page?[1-500]")
    show("curl")
    for i in range(10): stage.run("curl", "-sSk", "-o", "/dev/null", "https://127.0.0.1/large")
    show("curl tls")
    for i in range(5): stage.run("curl", "-sS", "-I", "http://127.0.0.1/large")
    for i in range(5): stage.run("curl", "-sS", "-H", "Connection: close", "-o", "/dev/null", "http://127.0.0.1:8080/large")
    show("curl more")
    k, v = watch.session.map("procs").read()
    comm = {int(a["tgid"]): bytes(b["comm"]) for a, b in zip(k, v)}
    for e in watch.events:
        if int(e["flow"]["netns"]) == stage.inode:
            from tcp_watch import name_of
            n = name_of(e)
            if "connection" not in n: print(n, comm.get(int(e["flow"]["tgid"])), int(e["flow"]["port"]), "role", int(e["flow"]["role"]), int(e["tx"]), int(e["rx"]), int(e["gap_ns"])/1e6, "ms")
    app.terminate(); app.wait()
