# SPDX-License-Identifier: Apache-2.0
"""The business: customers, nginx, a shop, Redis, PostgreSQL, RabbitMQ, a fulfilment, a payment service.

    customers.py ─▶ nginx ─▶ shop.py ─▶ Redis (container)
                                     ─▶ PostgreSQL ◀─ fulfilment (container) ─▶ RabbitMQ
                                     ─▶ RabbitMQ
                                     ─▶ payments.shop.test (outside, four addresses that rotate)

Enters: an `Owned` that will remove it. Leaves: a `Business` with ports and processes. Servers are Debian's
own, with data directories and ports of the demo's.
"""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compose.project import free_ports

from . import network
from .owned import BrokenError, Owned, Running, sh, wait_until

SERVICES = Path(__file__).parent / "services"
IMAGE = "kernob/demo:packages"
REDIS, FULFILMENT = "kernob-demo-redis", "kernob-demo-fulfilment"
PAYMENTS_NAME, STORAGE_NAME = "payments.shop.test", "storage.shop.test"
PAYMENTS_PORT, STORAGE_PORT = 8443, 8730
PAGES_A_SECOND, ORDERS_A_SECOND = 15, 4
NEEDED = {
    "nginx": "nginx-light", "redis-server": "redis-server", "rabbitmq-server": "rabbitmq-server",
    "epmd": "erlang-base", "ip": "iproute2", "nft": "nftables", "mkfs.ext4": "e2fsprogs",
    "unshare": "util-linux", "setpriv": "util-linux",
}  # fmt: skip
START_LIMIT_S = 120.0
_ERLANG = "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none"


def missing() -> list[str]:
    """Debian packages that the business needs and this host has not."""
    found = {package for program, package in NEEDED.items() if not shutil.which(program)}
    if not _postgres_programs():
        found.add("postgresql")
    return sorted(found)


def _postgres_programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


@dataclass
class Business:
    """The running business; `start` adds to it."""

    owned: Owned
    place: Path
    ports: dict[str, int] = field(default_factory=dict)
    running: dict[str, Running] = field(default_factory=dict)
    redis_address: str = ""

    def program(self, script: str, *arguments: object, name: str = "", outside: bool = False) -> Running:
        """One of demo/services, on the host (with the demo's name server) or outside.

        Its service is `script`. `name` tells two of one script apart in the logs.
        """
        prefix = network.BEHIND if outside else self._with_own_resolver()
        words = [*prefix, sys.executable, str(SERVICES / script), *map(str, arguments)]
        running = self.owned.start(name or script.removesuffix(".py"), words)
        self.running[running.name] = running
        return running

    def wait_for_word(self, name: str, word: str) -> None:
        """Until a program's log has it; BrokenError with its last lines if it ends before, or never does."""
        running = self.running[name]

        def said() -> bool:
            if running.process.poll() is not None:
                last = " | ".join(running.lines()[-5:])
                raise BrokenError(f"{name} ended with {running.process.returncode}: {last}")
            return any(word in line for line in running.lines())

        wait_until(said, f"{name} says {word!r} (log {running.log})", START_LIMIT_S)

    def payments(self, mode: str) -> None:
        """How the payment service behaves from its next request on (services/payments.py)."""
        self._mode_file.write_text(mode)

    @property
    def _mode_file(self) -> Path:
        return self.place / "payments-mode"

    def _with_own_resolver(self) -> tuple[str, ...]:
        bind = f'mount --bind {self.place / "resolv.conf"} /etc/resolv.conf && exec "$@"'
        return ("unshare", "--mount", "sh", "-c", bind, "sh")

    # ---- the parts, in the order in which they start ------------------------------------------------

    def start(self) -> None:
        """Everything, until customers are served."""
        names = ("nginx", "shop", "postgres", "rabbit", "epmd", "distribution", "redis")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        network.build(self.owned)
        (self.place / "resolv.conf").write_text(f"nameserver {network.DNS}\noptions timeout:1 attempts:2\n")
        self.payments("ok")
        self._start_rabbit()
        self._start_postgres()
        self._start_redis()
        self._start_outside()
        # A worker that is refused at first would be right about that, and so would the map.
        self.wait_for_word("rabbit", "completed with")
        self.wait_for_word("postgres", "ready to accept")
        places = (
            f"{self.redis_address}:6379", f"127.0.0.1:{self.ports['postgres']}",
            f"127.0.0.1:{self.ports['rabbit']}", f"{PAYMENTS_NAME}:{PAYMENTS_PORT}",
        )  # fmt: skip
        self.program("shop.py", f"127.0.0.1:{self.ports['shop']}", *places)
        self._start_fulfilment()
        self._start_nginx()
        self.wait_for_word("shop", "shop is open")
        wait_until(lambda: listens(network.HERE, self.ports["nginx"]), "nginx listens", START_LIMIT_S)
        self.program(
            "customers.py", network.HERE, self.ports["nginx"], PAGES_A_SECOND, ORDERS_A_SECOND, outside=True
        )
        self.wait_for_word("shop", ": paid")

    def _start_outside(self) -> None:
        names = (f"{PAYMENTS_NAME}={','.join(network.PAYMENTS)}", f"{STORAGE_NAME}={network.STORAGE}")
        self.program("dns.py", network.DNS, *names, outside=True)
        self.program("payments.py", PAYMENTS_PORT, self._mode_file, outside=True)
        self.program("storage.py", network.STORAGE, STORAGE_PORT, outside=True)
        for name, word in (("dns", "served"), ("payments", "open"), ("storage", "open")):
            self.wait_for_word(name, word)

    def _start_rabbit(self) -> None:
        home = self.place / "rabbit"
        home.mkdir()
        (home / "plugins").write_text("[].\n")
        (home / "rabbit.conf").write_text(
            f"listeners.tcp.local = 127.0.0.1:{self.ports['rabbit']}\nlog.console = false\n"
            "log.file.level = info\ndisk_free_limit.absolute = 50MB\n"
        )
        ports = {"ERL_EPMD_PORT": str(self.ports["epmd"]), "ERL_EPMD_ADDRESS": "127.0.0.1"}
        epmd = self.owned.start("epmd", ["epmd"], ports)
        self.running["epmd"] = epmd
        self.running["rabbit"] = self.owned.start(
            "rabbit",
            ["/usr/lib/rabbitmq/bin/rabbitmq-server"],
            {
                **ports,
                "HOME": str(home),
                "RABBITMQ_NODENAME": "kernob-demo@localhost",
                "RABBITMQ_DIST_PORT": str(self.ports["distribution"]),
                "RABBITMQ_MNESIA_BASE": str(home / "data"),
                "RABBITMQ_LOG_BASE": str(home),
                "RABBITMQ_CONFIG_FILE": str(home / "rabbit.conf"),
                "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ERLANG,
            },
        )

    @property
    def rabbit_log(self) -> Path:
        """RabbitMQ's own log."""
        return self.place / "rabbit" / "kernob-demo@localhost.log"

    def _start_postgres(self) -> None:
        programs, data = _postgres_programs(), self.place / "postgres"
        if programs is None:
            raise BrokenError("no PostgreSQL on this host")
        data.mkdir()
        user = pwd.getpwnam("postgres")
        os.chown(data, user.pw_uid, user.pw_gid)
        as_postgres = (
            "setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=TERM",
        )  # fmt: skip
        sh(*as_postgres, str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", "postgres", "-N")
        self.running["postgres"] = self.owned.start(
            "postgres",
            [
                *as_postgres, str(programs / "postgres"), "-D", str(data), "-k", "", "-h", "127.0.0.1",
                "-p", str(self.ports["postgres"]), "-c", "autovacuum=off", "-c", "shared_buffers=32MB",
            ],
            cwd=data,
        )  # fmt: skip

    def _start_redis(self) -> None:
        identity = self.owned.container(
            REDIS, IMAGE, (), ["redis-server", "--save", "", "--protected-mode", "no"]
        )
        ready = "Ready to accept connections"
        wait_until(lambda: ready in sh("docker", "logs", identity), "Redis is ready", START_LIMIT_S)
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        self.redis_address = sh("docker", "inspect", "--format", form, identity).strip()

    def _start_fulfilment(self) -> None:
        options = ("--network=host", "-v", f"{SERVICES}:/services:ro")
        places = (f"127.0.0.1:{self.ports[name]}" for name in ("rabbit", "postgres"))
        self.owned.container(
            FULFILMENT, IMAGE, options, ["python3", "-u", "/services/fulfilment.py", *places]
        )

    def _start_nginx(self) -> None:
        home = self.place / "nginx"
        home.mkdir()
        (home / "nginx.conf").write_text(
            f"""daemon off; worker_processes 1; pid {home}/pid; error_log stderr warn;
events {{ worker_connections 512; }}
http {{
  access_log {home}/access.log; client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
  server {{
    listen {network.HERE}:{self.ports["nginx"]};
    location / {{ proxy_pass http://127.0.0.1:{self.ports["shop"]}; }}
  }}
}}
"""
        )
        words = ["nginx", "-p", str(home), "-c", str(home / "nginx.conf")]
        self.running["nginx"] = self.owned.start("nginx", words)


def listens(address: str, port: int) -> bool:
    """Whether somebody listens there on this host; who connects to find out would be on the map."""
    return bool(sh("ss", "-Hltn", f"src {address}:{port}").strip())


def orders_in_log(lines: Sequence[str], word: str) -> int:
    """How many orders a shop's log says this of: `paid`, `payment pending`.

    >>> orders_in_log(["12:00:00.000 order 1: paid", "12:00:00.100 order 2: payment pending"], "paid")
    1
    """
    return sum(line.endswith(f": {word}") for line in lines)
