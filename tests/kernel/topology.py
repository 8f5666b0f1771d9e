# SPDX-License-Identifier: Apache-2.0
"""A topology of real services in network namespaces and control groups, and the truth about it.

Used by tests/kernel/test_map_truth.py. Each service runs in a control group called like its unit, so that
it has a name of its own beside whatever else runs on this machine. `outside` is another machine behind a
router that translates addresses both ways: what can be known of it is an address here, and clients there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

WORKLOAD = Path(__file__).parent / "workloads" / "service.py"
HTTP, REDIS = "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "PING\r\n"
POSTGRES = "\x00\x00\x00\x08\x04\xd2\x16\x2f"
"""SSLRequest of PostgreSQL's protocol: the server answers with one letter."""

# of this process alone: another run of the same topology must not have the same addresses
_NET = f"10.{64 + os.getpid() % 64}.{os.getpid() // 64 % 256}"
HOST, WEB, DB, OUTSIDE = f"{_NET}.1", f"{_NET}.2", f"{_NET}.3", "198.51.100.9"
VIP = "192.0.2.80"
NOWHERE = "203.0.113.9"
_HOOKS = (("prerouting", -100), ("output", -100), ("postrouting", 100))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _groups() -> list[Path]:
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _device, point, kind, options, *_ = line.split()
        if kind == "cgroup2" or (kind == "cgroup" and "pids" in options.split(",")):
            found.append(Path(point))
    return found


def program(name: str, *places: str) -> str:
    """Where a program is; skips the test where it is not installed."""
    found = shutil.which(name, path=":".join((os.environ.get("PATH", ""), "/usr/sbin", *places)))
    if found is None:
        pytest.skip(f"missing feature: {name}")
    return found


@dataclass
class Topology:
    """Namespaces, control groups, services by name; and the edges that they make."""

    directory: Path
    mark: str = field(default_factory=lambda: f"kt{os.getpid()}")
    commands: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def ns(self, name: str) -> str:
        """A namespace's name on this machine."""
        return f"{self.mark}-{name}"

    def unit(self, name: str) -> str:
        """What Kernob will call a service."""
        return f"{self.mark}-{name}"

    def start(self, name: str) -> None:
        """Starts a service in its namespace and control group."""
        netns, command = self.commands[name]
        joins = []
        for root in _groups():
            group = root / self.mark / f"{self.unit(name)}.service"
            group.mkdir(parents=True, exist_ok=True)
            joins.append(f"echo $$ > {group}/cgroup.procs")
        script = " && ".join((*joins, 'exec "$@"'))
        with (self.directory / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                ["sh", "-c", script, "sh", "ip", "netns", "exec", self.ns(netns), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, name: str) -> None:
        """Ends a service with all its processes."""
        process = self.running.pop(name)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
                break
        for root in _groups():
            group = root / self.mark / f"{self.unit(name)}.service"
            for _ in range(500):
                left = (group / "cgroup.procs").read_text().split()
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                if not left:
                    break
                time.sleep(0.01)

    def stop_all(self) -> None:
        """Ends whatever runs."""
        for name in list(self.running):
            self.stop(name)

    def python(self, name: str, netns: str, *more: str, **plan: Any) -> None:
        """Adds a service of ours."""
        self.commands[name] = netns, [sys.executable, str(WORKLOAD), json.dumps(plan), *more]

    def truth(self) -> set[tuple[str, str, int]]:
        """Every edge there is: source, target (a service of ours, or a node's id), port."""
        return {
            ("client", "haproxy", 8443), ("haproxy", "nginx", 80), ("nginx", "app", 9001),
            ("app", "redis", 6379), ("app", "postgresql", 5432), ("app", f"ip/{NOWHERE}", 443),
            ("worker", "queue", 5672), ("worker", "postgresql", 5432), ("app", "queue", 5672),
            ("scraper", "app", 9001), ("scraper", "redis", 6379), ("scraper", "nginx", 80),
            ("job", "app", 9001), ("worker", "web", 8080), ("scraper", "web", 8080), ("self", "self", 7000),
            ("browser", "proxy", 8080), ("proxy", "web", 8000),
            ("remote", f"ip/{VIP}", 80), ("clients/external", "nginx", 80),
        }  # fmt: skip


def _network(topology: Topology, stack: contextlib.ExitStack) -> None:
    for name in ("host", "web", "db", "router", "outside"):
        _run("ip", "netns", "add", topology.ns(name))
        stack.callback(_run, "ip", "netns", "delete", topology.ns(name))
        _run("ip", "-n", topology.ns(name), "link", "set", "lo", "up")
    host = topology.ns("host")
    _run("ip", "-n", host, "link", "add", "br-test", "type", "bridge")
    _run("ip", "-n", host, "addr", "add", f"{HOST}/24", "dev", "br-test")
    _run("ip", "-n", host, "link", "set", "br-test", "up")
    for name, address in (("web", WEB), ("db", DB)):
        inner = topology.ns(name)
        _run("ip", "-n", host, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", inner)
        _run("ip", "-n", host, "link", "set", name, "master", "br-test", "up")
        _run("ip", "-n", inner, "addr", "add", f"{address}/24", "dev", "eth0")
        _run("ip", "-n", inner, "link", "set", "eth0", "up")
        _run("ip", "-n", inner, "route", "add", "default", "via", HOST)
    pairs = (("host", "203.0.113.1", "router", "203.0.113.2"), ("router", "198.51.100.1", "outside", OUTSIDE))
    for left, one, right, two in pairs:
        near, far = topology.ns(left), topology.ns(right)
        _run("ip", "-n", near, "link", "add", right, "type", "veth", "peer", "name", left, "netns", far)
        for netns, device, address in ((near, right, one), (far, left, two)):
            _run("ip", "-n", netns, "addr", "add", f"{address}/24", "dev", device)
            _run("ip", "-n", netns, "link", "set", device, "up")
    _run("ip", "-n", topology.ns("outside"), "route", "add", "default", "via", "198.51.100.1")
    for name in ("host", "router"):
        _run("ip", "netns", "exec", topology.ns(name), "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    _translate(topology)


def _translate(topology: Topology) -> None:
    """A published port (destination only), and a router that hides both sides."""
    published = f"tcp dport 8080 ip daddr {HOST} dnat to {WEB}:8000"
    pre, out, post = (f"type nat hook {hook} priority {at};" for hook, at in _HOOKS)
    rules = {
        "host": f"chain pre {{ {pre} {published}; }}\nchain out {{ {out} {published}; }}",
        "router": f"chain pre {{ {pre} ip daddr {VIP} dnat to 203.0.113.1; }}\n"
        f"chain post {{ {post} masquerade; }}",
    }
    for name, chains in rules.items():
        done = subprocess.run(
            ["ip", "netns", "exec", topology.ns(name), program("nft"), "-f", "-"],
            input=f"table ip kernobtest {{\n{chains}\n}}\n",
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"missing feature: nat in nftables ({done.stderr.strip()[:80]})")


def _services(topology: Topology, stack: contextlib.ExitStack) -> None:
    directory, python = topology.directory, topology.python
    nginx = directory / "nginx.conf"
    nginx.write_text(
        f"daemon off; pid {directory}/nginx.pid; error_log stderr; worker_processes 2; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {directory}/b; proxy_temp_path {directory}/p;\n"
        f"fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;\n"
        "server { listen 80; location / { proxy_pass http://127.0.0.1:9001; } } }\n"
    )
    haproxy = directory / "haproxy.cfg"
    haproxy.write_text(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"
        "frontend in\n bind *:8443\n default_backend web\nbackend web\n server one 127.0.0.1:80\n"
    )
    redis = [program("redis-server"), "--bind", WEB, "--port", "6379", "--save", "", "--dir", str(directory)]
    topology.commands["redis"] = "web", [*redis, "--protected-mode", "no"]
    topology.commands["postgresql"] = "db", _postgresql(stack)
    topology.commands["nginx"] = "host", [program("nginx"), "-c", str(nginx), "-p", str(directory)]
    topology.commands["haproxy"] = "host", [program("haproxy"), "-db", "-f", str(haproxy)]
    python("queue", "db", listen=[DB, 5672])
    python("web", "web", listen=["0.0.0.0", 8000], workers=1)
    proxy = ("-proto", "tcp", "-host-ip", "0.0.0.0", "-host-port", "8080", "-container-ip", WEB)
    python("proxy", "host", *proxy, "-container-port", "8000", listen=["0.0.0.0", 8080], relay=[WEB, 8000])
    name, command = topology.commands["proxy"]
    disguise = 'exec -a /usr/bin/docker-proxy "$0" "$@"'
    topology.commands["proxy"] = name, ["bash", "-c", disguise, *command]
    calls = [[WEB, 6379, "keep", REDIS], [DB, 5432, "short", POSTGRES], [DB, 5672, "keep", "x"]]
    calls.append([NOWHERE, 443, "short", "x"])
    python("app", "host", listen=["0.0.0.0", 9001], workers=3, calls=calls)
    worker = [[DB, 5672, "keep", "x"], [DB, 5432, "short", POSTGRES], [HOST, 8080, "keep", HTTP]]
    python("worker", "host", calls=worker)
    scrape = [[HOST, 9001, "short", HTTP], [WEB, 6379, "short", REDIS], [HOST, 80, "short", HTTP]]
    python("scraper", "db", calls=[*scrape, [HOST, 8080, "short", HTTP]])
    python("browser", "host", calls=[["127.0.0.1", 8080, "short", HTTP]])
    python("client", "db", calls=[[HOST, 8443, "keep", HTTP]])
    python("self", "db", listen=["127.0.0.1", 7000], calls=[["127.0.0.1", 7000, "short", "x"]])
    python("remote", "outside", calls=[[VIP, 80, "short", HTTP]])
    python("job", "host", calls=[["127.0.0.1", 9001, "once", HTTP]])


def _postgresql(stack: contextlib.ExitStack) -> list[str]:
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not binaries or not shutil.which("runuser"):
        pytest.skip("missing feature: postgresql")
    # not below pytest's own directory: each session of it on this machine shuts that to other users again
    data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kernob-test-pg-")))
    shutil.chown(data, "postgres", "postgres")
    initdb = [str(binaries[-1] / "initdb"), "-D", str(data), "-A", "trust", "--no-sync"]
    subprocess.run(["runuser", "-u", "postgres", "--", *initdb], check=True, capture_output=True, cwd="/")
    options = ["-h", DB, "-p", "5432", "-k", "", "-c", "fsync=off"]
    server = [str(binaries[-1] / "postgres"), "-D", str(data), *options]
    return ["runuser", "-u", "postgres", "--", *server]


SERVERS = ("redis", "postgresql", "queue", "web", "proxy", "app", "nginx", "haproxy")
CLIENTS = ("worker", "scraper", "browser", "client", "self", "remote")


@contextlib.contextmanager
def built(directory: Path) -> Iterator[Topology]:
    """The topology with everything in place and nothing started; all of it is removed at the end."""
    program("ip")
    topology = Topology(directory)
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_groups, topology)
        try:
            _network(topology, stack)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"missing feature: namespaces with bridge and veth ({error.stderr.strip()[:80]})")
        _services(topology, stack)
        stack.callback(topology.stop_all)
        yield topology


def _remove_groups(topology: Topology) -> None:
    for root in _groups():
        parent = root / topology.mark
        for group in (*parent.glob("*/"), parent):
            with contextlib.suppress(OSError):
                group.rmdir()
